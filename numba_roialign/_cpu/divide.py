"""How the CPU divides a batch of RoIs into tasks: see `tasks`.

A task is a chunk of RoIs, on a block of channels, for some of their rows of bins; or for a band of
the map's rows: what a gradient gives to it, or, channels last, the rows of bins that begin there.
Every output is computed within one task in one order: results do not depend on the number of
threads.

The dividing is compiled too: between two kernels, Python and NumPy's sorting took 80 to 120 us.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from . import found as at
from .job import INLINED, UNCOUNTED

# Tasks for each thread; fewer where each packs for itself what its RoIs have in common: with four a
# map of 64 channels and 270 x 480 pixels took 1.2 to 1.4 times as long, of 32 channels 1.1 to 1.25.
# With one, some took 0.8 of the time and others 1.2.
TASKS_PER_THREAD, PACKING_TASKS = 4, 2
# Channels last, pixels come whole, but in halves of at least so many channels where RoIs tap few
# elements: tasks are then more even. few_4x2048 takes 0.87 of the time; with four times as many
# pixels it would take 1.1.
HALF, FEW_ELEMENTS = 1 << 10, 1 << 22
# Bits of a key in one pass of the sort: RoIs on a map of up to 4096 rows take one pass.
DIGIT_BITS = 12
DIGIT = (1 << DIGIT_BITS) - 1


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


@njit(**UNCOUNTED)
def sort(keys, step, most, rows, spare, count, ends):
    """Sort rows by ``keys[step * row]``, 0 to `most`, digit by digit.

    Rows with the same key keep their order. Called twice, it is compiled once, for itself.
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
def put_in_order(job):
    """Put the rows that can be pooled in the order of their images, each image's by first row.

    A map's row is then packed once, just ahead of its use. Returns how many rows there are.
    """
    images, order, spare, ends = job.table_images, job.order, job.chunks, job.ends
    # for literals `sort` would be compiled once more
    count, one, four = np.intp(0), np.intp(1), np.intp(4)
    for row in range(job.rows):
        if images[row] >= 0:
            order[count] = row
            count += 1
    sort(job.spans, four, job.height - 1, order, spare, count, ends)
    sort(images, one, job.images - 1, order, spare, count, ends)
    return count


@njit(**INLINED)
def cut(job, count, least_pieces):
    """Cut `count` rows of the order into chunks, each of one image; return how many.

    There are `least_pieces` of each image, if it has so many rows. `chunks` says where they begin
    and end.
    """
    chunks, order, row_images = job.chunks, job.order, job.table_images
    chunk, first = 0, 0
    chunks[0] = 0
    while first < count:
        last = first + 1
        while last < count and row_images[order[last]] == row_images[order[first]]:
            last += 1
        pieces = min(least_pieces, last - first)
        for k in range(pieces):
            chunk += 1
            chunks[chunk] = first + (last - first) * (k + 1) // pieces
        first = last
    return chunk


@njit(**INLINED)
def images_of(job, count):
    """Return how many images `count` rows of the order are of."""
    order, row_images = job.order, job.table_images
    images, image = 0, -1
    for i in range(count):
        images += row_images[order[i]] != image
        image = row_images[order[i]]
    return images


@njit(**INLINED)
def set_parts(job, chunks, top, rows, most, wanted):
    """Cut ``top : top + rows``, of bins or of the map, into parts of at most `most` rows.

    So many that there are as many tasks as are `wanted`, if there are rows for them.
    """
    job.chunk_count, job.task_top, job.task_rows = chunks, top, rows
    job.parts = max(-(-rows // most), min(rows, -(-wanted // max(chunks, 1))))


def divide_batch(thread, job):
    """Divide a batch to pool, whose tables are filled.

    Into few tasks, but enough to keep every thread busy: chunks first, since the parts of one RoI
    read rows in common.
    """
    found = job.found
    join(found, job.threads)
    taps, alone = found[at.TAPS], found[at.ALONE]
    top, rows = found[at.TOP], found[at.BOTTOM] - found[at.TOP]
    common = rows * (found[at.RIGHT] - found[at.LEFT]) * (found[at.HIGH] - found[at.LOW] + 1)
    large = found[at.LARGE] > 0
    apart = job.apart_reads > 0 and (large or alone < job.apart_reads * common)
    # Where what RoIs have in common is packed, sparse ones find it so.
    splits = found[at.SPARSE] > 0 and (apart or large or not job.packs)
    count = put_in_order(job)
    results = job.rows * job.output_height * job.output_width
    work = job.channels * max(taps, alone, results)
    threads = 1 if work < job.serial_work else job.most_threads
    job.work, job.blocks, most_bins = job.dense_work, job.dense_blocks, job.most_bins
    if apart:
        job.work, job.blocks, most_bins = job.apart_work, job.apart_blocks, job.apart_most_bins
        few = threads > 1 and job.band_rows > 0 and job.channels * alone < FEW_ELEMENTS
        if few and job.channels >= 2 * HALF * job.blocks:
            job.blocks *= 2
    if splits:
        most_bins = min(most_bins, job.sparse_most_bins)
    job.splits = splits
    tasks = PACKING_TASKS if job.packs and not apart else TASKS_PER_THREAD
    wanted = -(-tasks * threads // job.blocks) if threads > 1 else 1
    job.banded = apart and alone > common and rows > job.band_rows > 0
    pieces = -(-wanted // max(images_of(job, count), 1))
    if job.banded:
        pieces, most = 1, job.band_rows
    else:
        top, rows, most = 0, job.output_height, most_bins
    set_parts(job, cut(job, count, pieces), top, rows, most, wanted)
    # Around the caches go whole RoIs; or, channels last, whole vectors.
    job.streams = job.may_stream and (job.out_channel == 1 if job.banded else job.parts == 1)
    found[at.THREADS], found[at.SPLIT], found[at.APART] = threads, splits, apart
    found[at.DENSE] = count - splits * found[at.SPARSE]
    job.counter[0] = 0


def divide_by_image(thread, job):
    """Divide a batch whose gradient is computed: into a chunk for each image, and bands."""
    found, threads = job.found, job.most_threads
    join(found, job.threads)
    count = put_in_order(job)
    chunks, order, row_images, end = job.chunks, job.order, job.table_images, 0
    chunks[0] = 0
    for image in range(job.images):  # also where it has no rows
        while end < count and row_images[order[end]] == image:
            end += 1
        chunks[image + 1] = end
    job.work, job.blocks, job.splits = job.dense_work, job.dense_blocks, 0
    job.streams = job.may_stream
    wanted = -(-TASKS_PER_THREAD * threads // job.blocks)
    set_parts(job, job.images, 0, job.height, job.band_rows, wanted)
    found[at.THREADS], found[at.SPLIT], found[at.APART], found[at.DENSE] = threads, 0, 0, 1
    job.counter[0] = 0
