"""How the simulator is compiled: all of it into one function, kept on disk until a file changes."""

from pathlib import Path

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache

compiled = njit(error_model="numpy")


def stamp():
    """Return what changes with any file of the simulator: Numba looks at a function's own."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [(path.name, path.stat().st_mtime, path.stat().st_size) for path in files]


class _CacheImpl(CompileResultCacheImpl):
    def __init__(self, function):
        super().__init__(function)
        self.locator.get_source_stamp = stamp


class _Cache(FunctionCache):
    _impl_class = _CacheImpl


def kept(dispatcher):
    """Keep what a compiled function, which Python calls, is compiled to."""
    try:
        dispatcher._cache = _Cache(dispatcher.py_func)
    except RuntimeError:  # Numba's word for "no locator available"
        dispatcher._cache = NullCache()
    return dispatcher
