"""An on-disk cache of compiled functions that is never stale.

Numba stamps a cached function with the file it stands in, but its code holds that of every
function it calls. Here the stamp is the source of the whole package, so that a change to any file
compiles anew. The cache lies where Numba's own would: in ``NUMBA_CACHE_DIR``, beside the source, or
in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.runtime.nrt import rtsys


@functools.cache
def package_stamp() -> str:
    """Return a digest of every source file of the package."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class _PackageCacheImpl(CompileResultCacheImpl):
    def __init__(self, py_func):
        super().__init__(py_func)
        self.locator.get_source_stamp = package_stamp


class _PackageCache(FunctionCache):
    _impl_class = _PackageCacheImpl

    def load_overload(self, sig, target_context):
        # Numba's own first registers all that compiling needs, in 0.2 s. What is compiled already
        # needs its runtime, if that.
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def _index_key(self, sig, codegen):
        # Numba's own forgets that NUMBA_BOUNDSCHECK compiles other code.
        return *super()._index_key(sig, codegen), config.BOUNDSCHECK  # type: ignore[attr-defined]


def package_cache(function):
    """Return a function's cache; where no folder can be written, it compiles in every process."""
    try:
        return _PackageCache(function)
    except RuntimeError:  # Numba's word for "no locator available"
        return NullCache()


def cached_njit(**options):
    """Return `numba.njit` with the package's cache: for functions that Python calls."""

    def decorate(function):
        dispatcher = njit(**options)(function)
        dispatcher._cache = package_cache(function)
        return dispatcher

    return decorate
