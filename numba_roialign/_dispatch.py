"""The dispatcher: arrays run where they live.

The CUDA target is imported with the first array on a device, so that a CPU process never pays for
it nor needs it installed.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from importlib import import_module

from ._cpu import target as cpu

_NO_QUEUE = nullcontext()


@functools.cache
def cuda(name):
    """Return a module of the CUDA target; an import statement takes 0.6 us of every call."""
    return import_module(f"._cuda.{name}", __package__)


def target_of(family):
    """Return the module of a family's target."""
    return cpu if family.target == "cpu" else cuda("target")


def queue_for(family, x, stream, workspace=None):
    """Return a context that gives what a call on an array runs on: None, or a stream and scratch.

    The order of CPU calls is that of the program, so they have no stream, and their scratch is kept
    without being asked for.
    """
    if family.target == "cuda":
        return cuda("queue").queue_for(family, x, stream, workspace)
    if stream is not None or workspace is not None:
        name = "workspace" if stream is None else "stream"
        raise TypeError(f"{name}= is for arrays on a CUDA device, and these are on the CPU")
    return _NO_QUEUE
