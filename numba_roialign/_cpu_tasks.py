"""What the CPU's schedules share: a batch of RoIs cut into tasks, handed out one by one.

A task is a chunk of RoIs, on a block of channels, for some of their rows of bins. Threads take
tasks from a common counter, so that one enormous RoI among many small ones holds up nobody. Every
output is computed within one task in one order: results do not depend on the number of threads.

Each schedule writes out its own loop over tasks and its own parallel wrapper: a function that takes
the schedule as an argument, or closes over it, misses the on-disk cache in every process.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numba import njit

# error_model="numpy": a division by zero is an infinity, as on CUDA, and not an exception.
OPTIONS = {"error_model": "numpy", "nogil": True}
# For functions that allocate nothing: _nrt=False keeps Numba from counting references to the arrays
# they pass around, which is an atomic instruction each and made the scalar schedule 3 times slower.
UNCOUNTED = {"_nrt": False, **OPTIONS}
# contract: multiply and add fuse, as on CUDA; the order of operations stays as written.
INLINED = {"forceinline": True, "fastmath": {"contract"}, **UNCOUNTED}

TASKS_PER_THREAD = 4
# Sorting this few RoIs takes longer than packing some rows again.
FEW_ROIS = 16


class Batch(NamedTuple):
    """A batch of RoIs, rows of the tap tables, and how it is cut into tasks."""

    start: int  # the RoI of the tables' first row
    images: np.ndarray  # (rows,)
    spans: np.ndarray  # (rows, 4): first row and end, first column and end of the pixels tapped
    order: np.ndarray  # rows that can be pooled, by image and first row
    chunks: np.ndarray  # chunk k is order[chunks[k] : chunks[k + 1]], within one image
    blocks: int  # of channels
    parts: int  # of a RoI's rows of bins
    counter: np.ndarray  # (1,) int64: the next task


class Shape(NamedTuple):
    """What a schedule goes over."""

    channels: int
    bins: int  # rows of them
    width: int  # bins in a row
    map_width: int
    window: int  # pixels of packed rows that the scratch of a thread holds


@njit(**INLINED)
def count_tasks(batch):
    return batch.blocks * batch.parts * (batch.chunks.shape[0] - 1)


@njit(**INLINED)
def task_of(task, batch, bins):
    """Return a task's block of channels, its chunk's bounds in `order`, and its rows of bins."""
    parts, chunks = batch.parts, batch.chunks.shape[0] - 1
    part, chunk, block = task % parts, task // parts % chunks, task // (parts * chunks)
    bounds = batch.chunks[chunk], batch.chunks[chunk + 1]
    return block, bounds, (part * bins // parts, (part + 1) * bins // parts)


def cut(start, images, spans, blocks, bins, most_bins, threads) -> Batch:
    """Cut a batch into tasks, few but enough to keep every thread busy.

    Chunks are cut before rows of bins, since the parts of one RoI read rows in common. A part has
    at most `most_bins` rows of bins.
    """
    if len(images) <= FEW_ROIS and 0 <= images.min() == images.max():
        order = np.arange(len(images))
        segments = [0, len(order)]
    else:
        order = np.lexsort((spans[:, 0], images))[np.count_nonzero(images < 0) :]
        borders = np.flatnonzero(np.diff(images[order])) + 1
        segments = [0, *borders.tolist(), len(order)]
    wanted = -(-TASKS_PER_THREAD * threads // blocks) if threads > 1 else 1
    pieces = -(-wanted // (len(segments) - 1))
    chunks = [0]
    for first, last in itertools.pairwise(segments):
        count = min(pieces, last - first)
        chunks += [first + (last - first) * (k + 1) // count for k in range(count)]
    parts = max(-(-bins // most_bins), min(bins, -(-wanted // max(1, len(chunks) - 1))))
    return Batch(
        start, images, spans, order, np.array(chunks, np.intp), blocks, parts, np.zeros(1, np.int64)
    )
