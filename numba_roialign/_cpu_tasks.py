"""How the CPU divides a batch of RoIs: into tasks, which threads take one by one.

A task is a chunk of RoIs, on a block of channels, for some of their rows of bins. Threads take
tasks from a common counter, so that one enormous RoI among many small ones holds up nobody. Every
output is computed within one task in one order: results do not depend on the number of threads.

The dividing is compiled too: between two kernels, Python and NumPy's sorting took 80 to 120 us.
"""

from __future__ import annotations

from numba import njit

from . import _cpu_found as at
from ._cpu_job import INLINED
from ._lanes import fetch_add

TASKS_PER_THREAD = 4
# What rows are sorted by at a time: a map of as many rows is sorted at once.
DIGIT_BITS = 12
DIGIT = (1 << DIGIT_BITS) - 1


@njit(**INLINED)
def next_task(job, rows):
    """Take a task: a block of channels, a chunk of RoIs, and a part of `rows`.

    Returns the numbers of the block and of the chunk, where the chunk begins and ends in `order`,
    and which rows, of bins or of the map, the part holds. The block is -1 where no task is left.
    """
    parts, chunk_count = job.parts, job.chunk_count
    task = fetch_add(job.counter, 1)
    part, chunk, block = task % parts, task // parts % chunk_count, task // (parts * chunk_count)
    if block >= job.blocks:
        block, chunk = -1, 0
    chunk += job.first_chunk
    within = job.chunks[chunk], job.chunks[chunk + 1]
    return block, chunk, within, (part * rows // parts, (part + 1) * rows // parts)


@njit(**INLINED)
def first_channel(job, block):
    """Return the first channel of a block of lanes; the last overlaps the one before."""
    lanes = len(job.tag)
    return max(0, min(block * lanes, job.channels - lanes))


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
def sort(keys, step, most, rows, spare, count, ends):
    """Sort rows by ``keys[step * row]``, 0 to `most`, digit by digit.

    Rows with the same key keep their order.
    """
    shift = 0
    while most >> shift > 0:
        digits = min(most >> shift, DIGIT) + 1
        for digit in range(digits + 1):
            ends[digit] = 0
        for i in range(count):
            ends[(keys[step * rows[i]] >> shift & DIGIT) + 1] += 1
        for digit in range(digits):
            ends[digit + 1] += ends[digit]
        for i in range(count):
            digit = keys[step * rows[i]] >> shift & DIGIT
            spare[ends[digit]] = rows[i]  # so far, `ends` says where the digit's next row goes
            ends[digit] += 1
        for i in range(count):
            rows[i] = spare[i]
        shift += DIGIT_BITS


@njit(**INLINED)
def put_in_order(job, split):
    """Put the rows that can be pooled in the order of their images, each image's by first row.

    A map's row is then packed once, just ahead of its use. Sparse rows come after all others where
    they `split`. Returns how many rows come before these, and how many there are.
    """
    kinds, order, dense, count = job.kinds, job.order, 0, 0
    for row in range(job.rows):
        if kinds[row] >= 0:
            if kinds[row] >= job.images and not split:
                kinds[row] -= job.images
            dense += kinds[row] < job.images
            order[count] = row
            count += 1
    spare, ends = job.chunks, job.ends
    sort(job.spans, 4, job.height - 1, order, spare, count, ends)
    sort(kinds, 1, 2 * job.images - 1, order, spare, count, ends)
    return dense, count


@njit(**INLINED)
def cut(job, begin, end, first_chunk, blocks, most_bins, threads):
    """Cut rows ``begin:end`` of the order into tasks, few but enough to keep every thread busy.

    Returns how many chunks there are, each of one image, and into how many parts their rows of bins
    are cut: chunks first, since the parts of one RoI read rows in common. A part has at most
    `most_bins` rows of bins. From `first_chunk` on, `chunks` says where they begin and end.
    """
    chunks, order, kinds, bins = job.chunks, job.order, job.kinds, job.output_height
    images, kind = 0, -1
    for i in range(begin, end):
        images += kinds[order[i]] != kind
        kind = kinds[order[i]]
    wanted = -(-TASKS_PER_THREAD * threads // blocks) if threads > 1 else 1
    pieces = -(-wanted // max(images, 1))
    chunk, first = first_chunk, begin
    chunks[chunk] = begin
    while first < end:
        last = first + 1
        while last < end and kinds[order[last]] == kinds[order[first]]:
            last += 1
        count = min(pieces, last - first)
        for k in range(count):
            chunk += 1
            chunks[chunk] = first + (last - first) * (k + 1) // count
        first = last
    count, parts = chunk - first_chunk, -(-bins // most_bins)
    if threads > 1 and count > 0:
        parts = max(parts, min(bins, -(-wanted // count)))
    return count, parts


def divide(thread, job):
    """Divide a batch to pool, whose tables are filled; what comes of it is left in `found`."""
    found = job.found
    join(found, job.threads)
    taps, alone = found[at.TAPS], found[at.ALONE]
    common = (found[at.BOTTOM] - found[at.TOP]) * (found[at.RIGHT] - found[at.LEFT])
    common *= found[at.HIGH] - found[at.LOW] + 1
    apart = alone < job.apart_reads * common
    # Where what RoIs have in common is packed, sparse ones find it so.
    split = found[at.SPARSE] > 0 and (apart or not job.packs)
    dense, pooled = put_in_order(job, split)
    results = job.rows * job.output_height * job.output_width
    work = job.channels * max(taps, alone, results)
    threads = 1 if work < job.serial_work else job.most_threads
    blocks, most_bins = job.dense_blocks, job.most_bins
    if apart:
        blocks, most_bins = job.apart_blocks, job.apart_most_bins
    chunks, parts = cut(job, 0, dense, 0, blocks, most_bins, threads)
    sparse_chunks, sparse_parts = 0, 1
    if dense < pooled:
        sparse_chunks, sparse_parts = cut(
            job, dense, pooled, chunks, job.sparse_blocks, job.sparse_most_bins, threads
        )
    found[at.THREADS], found[at.CHUNKS], found[at.PARTS] = threads, chunks, parts
    found[at.SPARSE_CHUNKS], found[at.SPARSE_PARTS] = sparse_chunks, sparse_parts
    found[at.APART] = apart
    job.counter[0] = 0


def divide_by_image(thread, job):
    """Divide a batch whose gradient is computed: into a chunk for each image."""
    join(job.found, job.threads)
    _, count = put_in_order(job, False)
    chunks, order, kinds, end = job.chunks, job.order, job.kinds, 0
    chunks[0] = 0
    for image in range(job.images):
        while end < count and kinds[order[end]] == image:
            end += 1
        chunks[image + 1] = end
    job.counter[0] = 0
