"""Which threads run a call: Numba's, unless entering their runtime would end the process.

GNU OpenMP kills the child of a process that forked after its first parallel region: a call there
runs on the calling thread alone. Numba's ``workqueue`` layer ends a process that is in it twice at
once, be it from two threads, one of which may be a parallel function of the user's own, or from
within such a function: there a call has threads of the package's own. Either way it computes the
same.
"""

from __future__ import annotations

import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from numba import config, get_num_threads, threading_layer

from ._cpu_job import call_in_threads

# Layers that may be entered while something is in them.
REENTRANT = ("omp", "tbb")

_forked = False  # from a process that had started Numba's threads


def _runtime_started() -> bool:
    runtime = sys.modules.get("numba.np.ufunc.parallel")
    return runtime is not None and getattr(runtime, "_is_initialized", True)


def _after_fork_in_child():
    global _forked
    _forked = _forked or _runtime_started()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def usable_threads() -> int:
    """Return how many threads a call may spread over; it starts Numba's."""
    return 1 if _forked else get_num_threads()


def run(function, threads, job, owner):
    """Run a `Compiled` function on the job at an address, with the numbers of all threads.

    `owner` holds the memory that the job points to.
    """
    if threads == 1:
        function.call(0, job)
    elif threading_layer() in REENTRANT:
        call_in_threads(threads, function.address, job)
    else:
        _run_in_own_threads(function.call, threads, job, owner)


@functools.cache
def _own_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, config.NUMBA_NUM_THREADS - 1), "numba_roialign")


def _run_in_own_threads(call, threads, job, owner):
    # The last argument is for a caller who is interrupted: what others still write to then stays.
    others = []
    try:
        for thread in range(1, threads):
            others.append(_own_threads().submit(lambda n, _: call(n, job), thread, owner))
    except RuntimeError:  # the interpreter is about to end, and starts no more threads
        pass
    call(0, job)
    for thread in range(1, threads):
        if thread > len(others) or others[thread - 1].cancel():  # not begun: all threads are busy
            call(thread, job)
        else:
            others[thread - 1].result()
