"""Scratch that calls on a GPU use again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Workspace:
    """Device memory for the scratch of calls, kept from one call to the next.

    A call with `out` and a workspace that has served one of the same sizes before allocates nothing
    on the device, copies nothing and waits for nothing, so that a CUDA graph can capture it.
    Without one, scratch comes from the allocator of the library of the features.

    The calls that share a workspace must follow each other on the device: on one stream, or on
    streams that wait for each other. It moves when it grows for a call, and is freed with the
    object. A captured graph uses its memory at every replay: give the graph a workspace of its own,
    and keep that as long.

    Attributes
    ----------
    nbytes : int
        Bytes of device memory held.

    Raises
    ------
    RuntimeError
        Two threads call with one workspace at the same time.

    Examples
    --------
    >>> from numba_roialign import Workspace
    >>> workspace = Workspace()  # for roi_align(features, rois, 7, out=out, workspace=workspace)
    >>> workspace.nbytes
    0
    """

    def __init__(self) -> None:
        self._memory: list[Any] = []  # bytes, for each time that a call asks for some
        self._taken = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Workspace(nbytes={self.nbytes})"

    @property
    def nbytes(self) -> int:
        return sum(memory.shape[0] for memory in self._memory)

    def _begin(self) -> None:
        """Serve a call, which takes its memory from the first on, until `_end`."""
        if not self._lock.acquire(False):
            raise RuntimeError("a Workspace serves one call at a time: give each thread its own")
        self._taken = 0

    def _end(self) -> None:
        self._lock.release()

    def _bytes(self, size: int, allocate: Callable[[int], Any]) -> Any:
        """Return the next memory of a call, at least so large: that of the call before."""
        place, self._taken = self._taken, self._taken + 1
        if place == len(self._memory):
            self._memory.append(allocate(size))
        memory = self._memory[place]
        if memory.shape[0] < size:
            memory = self._memory[place] = allocate(size)
        return memory
