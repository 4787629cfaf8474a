"""How the CPU divides a batch of RoIs: into tasks, which threads take one by one.

A task is a chunk of RoIs, on a block of channels, for some of their rows of bins. Threads take
tasks from a common counter, so that one enormous RoI among many small ones holds up nobody. Every
output is computed within one task in one order: results do not depend on the number of threads.
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit

from ._cpu_job import INLINED
from ._cpu_tables import SPARSE_KEY
from ._lanes import fetch_add

TASKS_PER_THREAD = 4
# Sorting this few RoIs takes longer than packing some rows again.
FEW_ROIS = 16


@njit(**INLINED)
def next_task(job):
    """Take a task: the numbers of its block of channels, its chunk of `order`, and its part.

    The block is -1 where none is left.
    """
    parts, chunk_count = job.parts, job.chunk_count
    task = fetch_add(job.counter, 1)
    part, chunk, block = task % parts, task // parts % chunk_count, task // (parts * chunk_count)
    if block >= job.blocks:
        block, chunk = -1, 0
    return block, chunk, part


@njit(**INLINED)
def chunk_of(job, chunk):
    """Return which of `order` a chunk holds."""
    return job.chunks[chunk], job.chunks[chunk + 1]


@njit(**INLINED)
def part_of(job, part, rows):
    """Return which rows, of bins or of the map, a part holds."""
    return part * rows // job.parts, (part + 1) * rows // job.parts


def sorted_rows(keys, invalid, split):
    """Return the rows that can be pooled by image and first row, sparse ones last if they `split`.

    A map's row is then packed once, just ahead of its use.
    """
    if not split:
        keys = keys & (SPARSE_KEY - 1)
    return np.argsort(keys, kind="stable")[: len(keys) - invalid]


def image_borders(images):
    """Return where in the order another image begins."""
    return (np.flatnonzero(np.diff(images)) + 1).tolist()


def cut(segments, blocks, bins, most_bins, threads):
    """Cut a batch into tasks, few but enough to keep every thread busy.

    `segments` says where images begin and end in the order. Returns where chunks do, and into how
    many parts their rows of bins are cut: chunks first, since the parts of one RoI read rows in
    common. A part has at most `most_bins` rows of bins.
    """
    if threads == 1:
        return segments, -(-bins // most_bins)
    wanted = -(-TASKS_PER_THREAD * threads // blocks)
    pieces = -(-wanted // (len(segments) - 1))
    chunks = segments[:1]
    for first, last in itertools.pairwise(segments):
        count = min(pieces, last - first)
        chunks += [first + (last - first) * (k + 1) // count for k in range(count)]
    parts = max(-(-bins // most_bins), min(bins, -(-wanted // max(1, len(chunks) - 1))))
    return chunks, parts
