"""How schedules with channels in the lanes read features: packed pixel by pixel into scratch.

The twin of `results`. A block's channels then lie side by side: transposed in squares where they
lie apart in memory, copied where they lie side by side (channels last).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import overload

from .job import INLINED_BY_LLVM
from .kinds import PIXELS
from .lanes import fetch, tile, view

# How many pixels ahead of packing a pixel's channels are fetched, where they lie side by side: a
# block's lie a line or two in each pixel's many, which no processor foresees. Channels last,
# mixed_adaptive, fpn_p4_s2 and fpn_p5_s2 take 0.92 to 0.96 of the time; 16, 32 or 128 ahead more.
AHEAD = 64
# The same in lines of the cache, where channels lie apart: in more planes than a processor follows.
# FPN levels, mask heads and beyond_cache take 0.93 to 0.97 of the time; 24 or 48 ahead up to 1.1.
# Maxima, whose windows are narrow, take 0.8 to 0.95.
LINES_AHEAD = 4


def pack_pixels(job, origin, to, pixels):
    """Copy a run of pixels of a block of channels to scratch, the channels side by side."""
    lanes, column_stride = len(job.tag), job.in_column
    source, target = view(job.features, 0, job.tag), view(job.scratch, 0, job.tag)
    for p in range(pixels):
        element = origin + p * column_stride
        ahead = element + AHEAD * column_stride
        # NumPy's large arrays begin within a line of cache, and so a block lies on one more. With
        # the first line alone mixed_adaptive takes 1.05 times as long.
        fetch(source, np.uintp(ahead))
        fetch(source, np.uintp(ahead + lanes - 1))
        target[to + p * lanes] = source[element]


def pack_planes(job, origin, to, pixels):
    """As `pack_pixels`, where channels lie apart."""
    channel_stride, column_stride = job.in_channel, job.in_column
    lanes, square = len(job.tag), len(job.square)
    if column_stride == 1 and pixels >= square:
        ahead = LINES_AHEAD * len(job.line)
        ahead = ahead if ahead < pixels else job.in_row  # of a narrow window, the next row
        source, target = view(job.features, 0, job.square), view(job.scratch, 0, job.square)
        for k in range(0, lanes, square):
            plane = origin + k * channel_stride
            for p in range(0, pixels, square):
                p = min(p, pixels - square)  # the last square overlaps the one before
                for j in range(square):
                    fetch(source, np.uintp(plane + p + ahead + j * channel_stride))
                tile(source, plane + p, channel_stride, target, to + p * lanes + k, lanes)
    else:
        source, target = view(job.features, 0, (0,)), view(job.scratch, 0, (0,))
        for p in range(pixels):
            for k in range(lanes):
                element = origin + p * column_stride + k * channel_stride
                target[to + p * lanes + k] = source[element]


def pack(job, origin, to, pixels):
    """Pack a run of pixels. For compiled code, which knows how the map lies in memory."""
    raise NotImplementedError


@overload(pack, jit_options=INLINED_BY_LLVM)
def _pack(job, origin, to, pixels):
    return pack_pixels if job.reads == PIXELS else pack_planes


@njit(**INLINED_BY_LLVM)
def pack_rows(job, origin, columns, to, rows):
    """Copy rows of `columns` pixels of a block's planes to scratch, where they lie end to end."""
    if job.in_row == columns * job.in_column:  # and in the map they do too
        rows, columns = 1, rows * columns
    for row in range(rows):
        pack(job, origin + row * job.in_row, to + row * columns * len(job.tag), columns)
