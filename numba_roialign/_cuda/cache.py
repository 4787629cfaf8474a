"""An on-disk cache of compiled kernels that is never stale, as the CPU's; see `_cpu.cache`."""

from __future__ import annotations

import contextlib

import numba_cuda
from numba.core.caching import NullCache
from numba.cuda.dispatcher import CUDACache, CUDACacheImpl

from .._compiling import package_stamp, uncollected


def stamp():
    # Numba's own forgets that another numba-cuda compiles other code.
    return f"{package_stamp()} {numba_cuda.__version__}"


class _PackageCacheImpl(CUDACacheImpl):
    def __init__(self, py_func):
        super().__init__(py_func)
        self.locator.get_source_stamp = stamp


class _PackageCache(CUDACache):
    _impl_class = _PackageCacheImpl

    def save_overload(self, sig, data):
        # Kernels that other files are linked to, as those of bfloat16, cannot be kept.
        with contextlib.suppress(RuntimeError):
            super().save_overload(sig, data)


def compile_kernel(kernel, arguments):
    """Return a kernel compiled for arguments, in this process or an earlier one."""
    if not isinstance(kernel._cache, _PackageCache):
        try:
            kernel._cache = _PackageCache(kernel.py_func)
        except RuntimeError:  # Numba's word for "no locator available"
            kernel._cache = NullCache()
    with uncollected():
        return kernel.compile(tuple(kernel.typeof_pyval(argument) for argument in arguments))
