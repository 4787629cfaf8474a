"""The plan of a call: its launches, taken down once for all calls on arrays that look alike.

Taken down in 100 to 250 us, they are made again in 3 and what the driver takes. What differs
between such calls is where their arrays lie, and their scratch, which is one block of memory.
"""

from __future__ import annotations

import functools
import threading

from .._flat import DeviceArray
from .launches import Launch

# The work of more launches is longer than their making: it is not kept.
MOST_LAUNCHES = 64
GRAIN = 256  # bytes between the arrays of a scratch, as much as any allocator aligns


class TooLong(Exception):
    """A call has more launches than a plan keeps."""


class Planner:
    """What a call's launches go to, and its scratch comes from, while they are taken down."""

    def __init__(self, device):
        self.device, self.launches, self.size = device, [], 0

    def empty(self, shape, dtype):
        """Return a place in the scratch that there will be."""
        array = DeviceArray.new(self.size, shape, dtype, base=0)
        self.size += -(-array.nbytes // GRAIN) * GRAIN
        return array

    def launch(self, kernel, blocks, threads, shared, *arguments):
        if len(self.launches) == MOST_LAUNCHES:
            raise TooLong
        self.launches.append(Launch(kernel, blocks, threads, shared, arguments))


class Plan:
    """The launches of a call."""

    def __init__(self, planner):
        self.launches, self.size = planner.launches, planner.size
        self.lock = threading.Lock()

    def run(self, queue, pointers):
        """Make the launches for a call's arrays, by where each lies."""
        scratch = queue.bytes(self.size) if self.size else None
        origins = (scratch.pointer if scratch else 0, *pointers)
        with self.lock:
            for launch in self.launches:
                launch.make(queue.stream, origins)


class Call:
    """Work on arrays that look so. It is told apart as an object: to hash all of it takes 1 us."""

    def __init__(self, work, looks, options):
        self.work, self.looks, self.options = work, looks, options

    def plan(self, device):
        return plan_of(self, device)


call_of = functools.lru_cache(1024)(Call)


@functools.lru_cache(1024)
def plan_of(call, device):
    """Return the plan of a call on a device; None where it is too long."""
    planner = Planner(device)
    arrays = [
        None if look is None else DeviceArray(0, *look, base=base)
        for base, look in enumerate(call.looks, start=1)
    ]
    try:
        call.work(planner, *arrays, *call.options)
    except TooLong:
        return None
    return Plan(planner)


def run(work, queue, arrays, *options):
    """Do work on arrays by its plan."""
    looks = tuple([None if array is None else array.look for array in arrays])
    queue.call = call_of(work, looks, options)
    plan = queue.call.plan(queue.device)
    if plan is None:
        work(queue, *arrays, *options)
    else:
        plan.run(queue, [0 if array is None else array.pointer for array in arrays])
