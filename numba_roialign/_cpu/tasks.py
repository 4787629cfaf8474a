"""How threads run the tasks of a batch, one by one from a common counter.

So no thread waits for another, even where one RoI is enormous and the rest are small. A task is run
by the schedule of its RoIs, which is compiled for itself and called by its address.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from . import found as at
from .job import INLINED, address_of_job, call_at
from .lanes import fence, fetch_add


class Task(NamedTuple):
    """Some RoIs of one image, on a block of channels, for some of their rows of bins.

    Where the map is cut into bands, `low` and `high` are rows of the map.
    """

    block: int
    image: int  # of a gradient
    begin: int  # of the RoIs in `order`
    end: int
    low: int  # of the rows of bins, or of the band
    high: int


@njit(**INLINED)
def task_of(thread, job):
    """Return the task that a thread is at."""
    found, line = job.found, thread * at.END
    return Task(
        found[line + at.BLOCK], found[line + at.IMAGE],
        found[line + at.BEGIN], found[line + at.STOP],
        found[line + at.FIRST_ROW], found[line + at.LAST_ROW],
    )  # fmt: skip


@njit(**INLINED)
def first_channel(job, block):
    """Return the first channel of a block of lanes; the last overlaps the one before."""
    lanes = len(job.tag)
    return max(0, min(block * lanes, job.channels - lanes))


@njit(**INLINED)
def channels_of(job, block):
    """Return the first and the end of a block's channels, where no lanes hold them."""
    return block * job.channels // job.blocks, (block + 1) * job.channels // job.blocks


def run_tasks(thread, job):
    """Run tasks until none is left, each by the schedule of its RoIs.

    Sparse RoIs come in the order of all: what they and their neighbours read of a plane comes into
    the caches once. With all others before them many_1000x3 took 1.1 to 1.2 times as long.
    """
    found, line, address = job.found, thread * at.END, address_of_job(job)
    order, sparse_rows, chunks = job.order, job.sparse_rows, job.chunks
    parts, chunk_count, top, rows = job.parts, job.chunk_count, job.task_top, job.task_rows
    splits, dense, sparse = job.splits, job.work, job.sparse_work
    count = job.blocks * chunk_count * parts
    while True:
        task = fetch_add(job.counter, 1)
        if task >= count:
            break
        part, place = task % parts, task // parts
        chunk, block = place % chunk_count, place // chunk_count
        found[line + at.BLOCK], found[line + at.IMAGE] = block, chunk
        found[line + at.FIRST_ROW] = top + part * rows // parts
        found[line + at.LAST_ROW] = top + (part + 1) * rows // parts
        begin, end = chunks[chunk], chunks[chunk + 1]
        while True:  # once for a gradient's image without RoIs too
            stop, work = end, dense
            if splits:
                is_sparse, stop = sparse_rows[order[begin]], begin + 1
                while stop < end and sparse_rows[order[stop]] == is_sparse:
                    stop += 1
                work = sparse if is_sparse else dense
            found[line + at.BEGIN], found[line + at.STOP] = begin, stop
            call_at(work, thread, address)
            begin = stop
            if begin >= end:
                break
    fence()


run_tasks_here = njit(**INLINED)(run_tasks)


def run_at_once(thread, job):
    """Compute a batch on one thread from its boxes on, and tell in `found` whether that is done.

    It stops before the tasks where they are for several threads or their schedule is not compiled
    yet, and, with `validates`, where a row cannot be pooled.
    With each step called from Python small_8x64 took 1.05 times as long, 1.1 channels last.
    """
    found, address = job.found, address_of_job(job)
    call_at(job.fill, thread, address)
    call_at(job.divide, thread, address)
    ready = job.work != 0 or found[at.DENSE] == 0
    ready &= job.sparse_work != 0 or job.splits == 0
    ready &= found[at.THREADS] == 1
    found[at.DONE] = ready and not (job.validates and found[at.INVALID] > 0)
    if found[at.DONE]:
        run_tasks_here(thread, job)
