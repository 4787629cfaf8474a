"""Scratch that calls on a GPU use again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Workspace:
    """Device memory for the scratch of calls, kept from one call to the next.

    A call with `out` and a workspace that has served one of the same sizes before allocates nothing
    on the device, copies nothing and waits for nothing, so that a CUDA graph can capture it.
    Without one, scratch comes from the allocator of the library of the features.

    The calls that share a workspace must follow each other on the device: on one stream, or on
    streams that wait for each other. A captured graph uses its memory at every replay, so keep the
    workspace as long as the graph. It grows as calls need it, and is freed with the object.

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
        # For each array that a call asks for, an array of bytes after its size.
        self._memory: list[tuple[int, Any]] = []
        self._arrays: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Workspace(nbytes={self.nbytes})"

    @property
    def nbytes(self) -> int:
        return sum(size for size, _ in self._memory)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Return a context for one call, which takes its arrays from the first on."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a Workspace serves one call at a time: give each thread its own")
        self._taken = 0
        try:
            yield
        finally:
            self._lock.release()

    def _empty(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        size: int,
        allocate: Callable[[int], Any],
        typed: Callable[..., Any],
    ) -> Any:
        """Return the next array of a call: that of the call before, where it was the same."""
        place, self._taken = self._taken, self._taken + 1
        key = place, shape, dtype
        if key not in self._arrays:
            if place == len(self._memory):
                self._memory.append((0, None))
            if self._memory[place][0] < size:
                self._arrays = {k: array for k, array in self._arrays.items() if k[0] != place}
                self._memory[place] = size, allocate(size)
            self._arrays[key] = typed(self._memory[place][1], shape, dtype)
        return self._arrays[key]
