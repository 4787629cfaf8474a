"""How schedules with channels in the lanes write results.

From vectors in scratch to the output; or, channels last, straight there as bins are pooled.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import overload

from .job import INLINED, INLINED_BY_LLVM, strides_out
from .kinds import PIXELS, PLANES, SCATTERED
from .lanes import stream, stream_tile, tile, view


@njit(**INLINED)
def store(out, at, number, streams):
    """Write a vector to a view of the output, around the caches or not."""
    if streams:
        stream(out, at, number)
    else:
        out[at] = number


def write_pixels(job, cells, staging, at, rows, width):
    """Write rows of bins, the channels of each side by side (channels last)."""
    strides, lanes = strides_out(job), len(job.tag)
    numbers, out, streams = view(job.scratch, 0, job.tag), view(job.out, 0, job.tag), job.streams
    for ph in range(rows):
        for pw in range(width):
            store(out, at + ph * strides.row + pw * strides.column, numbers[cells], streams)
            cells += lanes


def write_scattered(job, cells, staging, at, rows, width):
    """Write rows of bins, each number to its place."""
    strides, lanes = strides_out(job), len(job.tag)
    numbers, out = view(job.scratch, 0, (0,)), view(job.out, 0, (0,))
    for p in range(rows * width):
        o = at + (p // width) * strides.row + (p % width) * strides.column
        for k in range(lanes):
            out[o + k * strides.channel] = numbers[cells + p * lanes + k]


@njit(**INLINED)
def transpose(job, cells, bins, memory, at, stride):
    """Write bins end to end, one channel's `stride` elements after the one before."""
    lanes, square = len(job.tag), len(job.square)
    done = 0
    if bins >= square:
        source, target = view(job.scratch, 0, job.square), view(memory, 0, job.square)
        while done + 2 < bins:  # a bin or two are cheaper one by one
            done = min(done, bins - square)  # the last square overlaps the one before
            for k in range(0, lanes, square):
                tile(
                    source, cells + done * lanes + k, lanes, target, at + done + k * stride, stride
                )
            done += square
    numbers, out = view(job.scratch, 0, (0,)), view(memory, 0, (0,))
    for p in range(done, bins):
        for k in range(lanes):
            out[at + p + k * stride] = numbers[cells + p * lanes + k]


@njit(**INLINED)
def copy_around_caches(job, staging, at, count):
    """Copy elements to the output, by whole cache lines that need not be read first."""
    square = len(job.square)
    source, out = view(job.staging, staging, job.square), view(job.out, at, job.square)
    one, one_out = view(job.staging, staging, (0,)), view(job.out, at, (0,))
    head = min(count, (job.out_skew - at) % square)  # to the first whole line
    whole = head + (count - head) // square * square
    for k in range(head):
        one_out[k] = one[k]
    for k in range(head, whole, square):
        stream(out, np.uintp(k), source[k])
    for k in range(whole, count):
        one_out[k] = one[k]


def write_planes(job, cells, staging, at, rows, width):
    """Write rows of bins, those of each channel side by side."""
    bins = rows * width
    if job.streams:
        transpose(job, cells, bins, job.staging, staging, bins)
        copy_around_caches(job, staging, at, bins * len(job.tag))
    else:
        transpose(job, cells, bins, job.out, at, job.out_channel)


@njit(**INLINED)
def write_lines(job, cells, bins, staging, at):
    """Write a row of bins of each lane, one after the other as they lie in the output.

    Rows of whole lines of the cache go around it from the registers where one holds a line: crops
    take 0.7 of the time, and 0.75 by way of `staging`, as others go. Halves of lines took 1.5.
    """
    lanes, square, stride = len(job.tag), len(job.square), job.out_row
    whole = square == len(job.out_line) and stride % square == 0
    if job.may_stream and whole and (at - job.out_skew) % square == 0:
        source, target = view(job.scratch, 0, job.square), view(job.out, 0, job.square)
        for k in range(0, lanes, square):
            row = at + k * stride
            for done in range(0, bins, square):
                stream_tile(source, cells + done * lanes + k, lanes, target, row + done, stride)
        return
    memory, to = job.out, at
    if job.may_stream:
        memory, to = job.staging, staging
    transpose(job, cells, bins, memory, to, stride)
    if job.may_stream:
        copy_around_caches(job, staging, at, bins * lanes)


WRITERS = {PIXELS: write_pixels, PLANES: write_planes, SCATTERED: write_scattered}


def write(job, cells, staging, at, rows, width):
    """Write rows of `width` bins of a block of channels to the output, from element `at` on.

    For compiled code, which knows how the output lies.
    """
    raise NotImplementedError


@overload(write, jit_options=INLINED_BY_LLVM)
def _write(job, cells, staging, at, rows, width):
    return WRITERS[job.writes]


def put_pixel(job, number, cells, cell, out, at):
    """Write a bin, its channels side by side."""
    store(out, at, number, job.streams)


def put_number(job, number, cells, cell, out, at):
    """Leave a bin to be written later."""
    cells[cell] = number


def put(job, number, cells, cell, out, at):
    """Put a bin to ``cells[cell]``, where `finish` finds it, or to ``out[at]`` at once.

    Between sums memory takes what goes around the caches; written one RoI after the other, channels
    last, c4_14_adaptive took 1.35 times as long and fpn_p4_s2 1.2.
    """
    raise NotImplementedError


@overload(put, jit_options=INLINED_BY_LLVM)
def _put(job, number, cells, cell, out, at):
    return put_pixel if job.writes == PIXELS else put_number


def is_written(job, cells, staging, at, rows, width):
    """Leave rows of bins whose every number was put to the output."""


def finish(job, cells, staging, at, rows, width):
    """Write rows of bins that have been `put`, as `write` does those in scratch."""
    raise NotImplementedError


@overload(finish, jit_options=INLINED_BY_LLVM)
def _finish(job, cells, staging, at, rows, width):
    return is_written if job.writes == PIXELS else WRITERS[job.writes]
