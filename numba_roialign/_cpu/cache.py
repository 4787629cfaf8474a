"""An on-disk cache of compiled functions that is never stale.

A change to any file of the package compiles anew. The cache lies where Numba's own would: in
``NUMBA_CACHE_DIR``, beside the source, or in the user's cache folder.
"""

from __future__ import annotations

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.runtime.nrt import rtsys

from .._compiling import package_stamp


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
