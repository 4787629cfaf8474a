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
import threading
from queue import SimpleQueue

from numba import config, get_num_threads, threading_layer

from .job import call_in_threads

# Layers that may be entered while something is in them.
REENTRANT = ("omp", "tbb")
RUNTIME = "numba.np.ufunc.parallel"  # the module that Numba's threads are started from

_forked = False  # from a process that had started Numba's threads


def _runtime_started() -> bool:
    runtime = sys.modules.get(RUNTIME)
    return runtime is not None and getattr(runtime, "_is_initialized", True)


def _after_fork_in_child():
    global _forked
    _forked = _forked or _runtime_started()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@functools.cache
def _thread_counter():
    """Start Numba's threads, and return what counts those that it may use now.

    That is what its own `get_num_threads` calls with a lock, which took 0.6 us of every call.
    """
    get_num_threads()
    return getattr(sys.modules[RUNTIME], "_get_num_threads", get_num_threads)


def usable_threads() -> int:
    """Return how many threads a call may spread over; it starts Numba's."""
    return 1 if _forked else _thread_counter()()


def run_in_threads(function, threads, job, owner):
    """Run a `Compiled` function on the job at an address, with the numbers of all threads.

    `owner` holds the memory that the job points to.
    """
    if threads == 1:
        function.call(0, job)
    elif threading_layer() in REENTRANT:
        call_in_threads(threads, function.address, job)
    else:
        _run_in_own_threads(function.call, threads, job, owner)


class _Part:
    """A thread's part of a call, for whichever thread is free first.

    It holds nothing but the interpreter's own locks, which an interrupt cannot leave half taken:
    2 of 25 processes that were interrupted 30 times hung in the executor of `concurrent.futures`.
    """

    def __init__(self, call, thread, job, owner):
        self.arguments, self.call = (thread, job), call
        self.owner = owner  # an interrupted caller lets go of memory that this part may still use
        self.begun, self.ended = threading.Lock(), threading.Lock()
        self.ended.acquire()

    def attempt(self) -> bool:
        """Run it, unless another thread has begun to; say whether this one has."""
        if not self.begun.acquire(blocking=False):
            return False
        self.call(*self.arguments)
        self.ended.release()
        return True


_parts: SimpleQueue[_Part] = SimpleQueue()
_servers: list[threading.Thread] = []


def _serve():
    while True:
        _parts.get().attempt()


def _start_servers():
    try:
        while len(_servers) < config.NUMBA_NUM_THREADS - 1:
            server = threading.Thread(target=_serve, name="numba_roialign", daemon=True)
            server.start()
            _servers.append(server)
    except RuntimeError:  # the interpreter is about to end: the caller runs all parts
        pass


def _run_in_own_threads(call, threads, job, owner):
    _start_servers()
    parts = [_Part(call, thread, job, owner) for thread in range(1, threads)]
    for part in parts:
        _parts.put(part)
    call(0, job)
    for part in parts:
        if not part.attempt():
            part.ended.acquire()
