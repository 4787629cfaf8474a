"""Which threads a call may use: Numba's, unless entering their runtime would end the process.

GNU OpenMP kills the child of a process that forked after its first parallel region, and Numba's
``workqueue`` layer ends a process that enters it from two threads at once. There a call runs on the
calling thread alone, and computes the same.
"""

from __future__ import annotations

import os
import sys
import threading

from numba import get_num_threads, threading_layer

# Layers that several threads may enter at once.
REENTRANT = ("omp", "tbb")

_region = threading.Lock()  # held by the call that is in a layer not among these
_forked = False  # from a process that had started Numba's threads


def _runtime_started() -> bool:
    runtime = sys.modules.get("numba.np.ufunc.parallel")
    return runtime is not None and getattr(runtime, "_is_initialized", True)


def _after_fork_in_child():
    global _forked, _region
    _forked = _forked or _runtime_started()
    _region = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Threads:
    """The threads of one call, a context manager: 1 where others cannot be used."""

    def __init__(self, wanted=True):
        self.count, self.region = 1, None
        if not wanted or _forked:
            return
        self.count = get_num_threads()  # starts the runtime
        if self.count > 1 and threading_layer() not in REENTRANT:
            if _region.acquire(blocking=False):
                self.region = _region
            else:
                self.count = 1

    def __enter__(self):
        return self.count

    def __exit__(self, *_):
        if self.region is not None:
            self.region.release()
