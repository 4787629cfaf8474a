"""How the CPU divides a batch of RoIs: into tasks, which threads take one by one.

A task is a chunk of RoIs, on a block of channels, for some of their rows of bins. Threads take
tasks from a common counter, so that one enormous RoI among many small ones holds up nobody. Every
output is computed within one task in one order: results do not depend on the number of threads.

The dividing is compiled too: between two kernels, Python and NumPy's sorting took 80 to 150 us.
"""

from __future__ import annotations

from numba import njit

from . import _cpu_found as at
from ._cpu_job import INLINED
from ._lanes import fetch_add

TASKS_PER_THREAD = 4


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
    return block, job.first_chunk + chunk, part


@njit(**INLINED)
def chunk_of(job, chunk):
    """Return which of `order` a chunk holds."""
    return job.chunks[chunk], job.chunks[chunk + 1]


@njit(**INLINED)
def part_of(job, part, rows):
    """Return which rows, of bins or of the map, a part holds."""
    return part * rows // job.parts, (part + 1) * rows // job.parts


@njit(**INLINED)
def join(found, threads):
    """Join what the threads have found in the line of the first."""
    for line in range(at.END, threads * at.END, at.END):
        for k in range(at.INVALID, at.FIRST_INVALID):
            found[k] += found[line + k]
        for k in range(at.FIRST_INVALID, at.HIGH):
            found[k] = min(found[k], found[line + k])
        for k in range(at.HIGH, at.THREADS):
            found[k] = max(found[k], found[line + k])


@njit(**INLINED)
def sort(keys, step, key_count, rows, count, target, ends):
    """Sort rows by ``keys[step * row]``, numbers below `key_count`, and say where each key's end.

    Rows with the same key keep their order.
    """
    for key in range(key_count + 1):
        ends[key] = 0
    for i in range(count):
        ends[keys[step * rows[i]] + 1] += 1
    for key in range(key_count):
        ends[key + 1] += ends[key]
    for i in range(count):
        key = keys[step * rows[i]]
        target[ends[key]] = rows[i]  # so far, `ends` says where the key's next row goes
        ends[key] += 1


@njit(**INLINED)
def put_in_order(job, split):
    """Put the rows that can be pooled in the order of their images, each image's by first row.

    A map's row is then packed once, just ahead of its use. Sparse rows come after all others where
    they `split`. The ends of all kinds are left in `ends`.
    """
    kinds, order, spare, count = job.kinds, job.order, job.chunks, 0
    for row in range(job.rows):
        if kinds[row] >= 0:
            if kinds[row] >= job.images and not split:
                kinds[row] -= job.images
            order[count] = row
            count += 1
    sort(job.spans, 4, job.height, order, count, spare, job.ends)
    sort(kinds, 1, 2 * job.images, spare, count, order, job.ends)


@njit(**INLINED)
def cut(job, first_kind, first_chunk, blocks, most_bins, threads):
    """Cut the rows of kinds from one on, as many as there are images, into tasks.

    They are few but enough to keep every thread busy. Returns how many chunks of one image each
    there are, `chunks` saying from `first_chunk` on where they begin and end, and into how many
    parts their rows of bins are cut: chunks first, since the parts of one RoI read rows in common.
    A part has at most `most_bins` rows of bins.
    """
    chunks, ends, bins = job.chunks, job.ends, job.output_height
    begin = ends[first_kind - 1] if first_kind > 0 else 0
    images, last = 0, begin
    for kind in range(first_kind, first_kind + job.images):
        images += ends[kind] > last
        last = ends[kind]
    parts = -(-bins // most_bins)
    if images == 0:
        return 0, parts
    wanted = -(-TASKS_PER_THREAD * threads // blocks) if threads > 1 else 1
    pieces = -(-wanted // images)
    chunk, last = first_chunk, begin
    chunks[chunk] = begin
    for kind in range(first_kind, first_kind + job.images):
        first, last = last, ends[kind]
        count = min(pieces, last - first)
        for k in range(count):
            chunk += 1
            chunks[chunk] = first + (last - first) * (k + 1) // count
    if threads > 1:
        parts = max(parts, min(bins, -(-wanted // (chunk - first_chunk))))
    return chunk - first_chunk, parts


def divide(thread, job):
    """Divide a batch to pool, whose tables are filled; what comes of it is left in `found`."""
    found, images = job.found, job.images
    join(found, job.threads)
    taps, alone, split = found[at.TAPS], found[at.ALONE], found[at.SPARSE] > 0
    if split and job.shares:
        # Where it pays to pack what RoIs have in common, sparse ones find it packed.
        pixels = (found[at.BOTTOM] - found[at.TOP]) * (found[at.RIGHT] - found[at.LEFT])
        split = (found[at.HIGH] - found[at.LOW] + 1) * pixels > alone
    put_in_order(job, split)
    results = job.rows * job.output_height * job.output_width
    work = job.channels * max(taps, alone, results)
    threads = 1 if work < job.serial_work else job.most_threads
    chunks, parts = cut(job, 0, 0, job.dense_blocks, job.most_bins, threads)
    sparse_chunks, sparse_parts = 0, 1
    if split:
        sparse_chunks, sparse_parts = cut(
            job, images, chunks, job.sparse_blocks, job.sparse_most_bins, threads
        )
    found[at.THREADS], found[at.CHUNKS], found[at.PARTS] = threads, chunks, parts
    found[at.SPARSE_CHUNKS], found[at.SPARSE_PARTS] = sparse_chunks, sparse_parts
    job.counter[0] = 0


def divide_by_image(thread, job):
    """Divide a batch whose gradient is computed: into a chunk for each image."""
    join(job.found, job.threads)
    put_in_order(job, False)
    job.chunks[0] = 0
    for image in range(job.images):
        job.chunks[image + 1] = job.ends[image]
    job.counter[0] = 0
