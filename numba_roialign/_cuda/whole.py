"""The average of a few boxes of a small map on a device: a block for some channels of all boxes.

While some threads of a block find the taps of the boxes, the others pack the whole map, so that the
one is not waited for before the other begins; then all pool from shared memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _kernels
from .average import ceil_div, narrowed_source
from .banded import fillers_of, is_packable, pixels_apart
from .bands import (
    CHUNK,
    QUAD,
    SUMS,
    WARP,
    WIDE_THREADS,
    Band,
    asked_for,
    pack,
    quad_of,
    stack_sums,
    taps_at,
    write_stack,
)
from .box_tables import capacities, locate_axis, locate_image
from .homes import FILLERS, Box, find_taps
from .indices import (
    MOST_DIVIDED,
    in_32_bits,
    narrowed,
    quotient,
    reciprocal_of,
    split,
    this_thread,
)
from .launches import MOST_BLOCKS, TAKEN_BYTES, bounded, configured
from .stacks import STACK, Taps

element_at = cuda.jit(device=True)(_kernels.element_at)

KEPT = 8  # boxes, of which a block can know the images
MOST_BOXES = KEPT  # of a call: each block finds the taps of all
BOXES_AT_ONCE = 4  # whose taps a block finds at once
AT_ONCE = 2  # blocks of a multiprocessor
QUADS = 1, 2, 4  # of channels, of a block
FINDING = 4  # quads, that are pooled in the time in which a block finds the taps
NO_IMAGE = np.uint32(0xFFFFFFFF)
DECLARED_BYTES = 2 * 4 * KEPT  # a multiple of 16: what a launch asks for lies behind


class Whole(NamedTuple):
    """How blocks divide channels, and threads the boxes. In 32 bits."""

    quads: int  # of channels, of a block: a power of two
    bits: int  # of that power
    apart: int  # pixels, from one quad's to the next's
    boxes: int
    stacks: int  # of a box
    of_stacks: int  # the reciprocal of that; in 64 bits
    of_across: int  # and of the threads that take a stack, one for each quad and column of bins
    at_once: int  # stacks, that a block pools at once
    finders: int  # threads, of a block, that find taps; the others pack


@cuda.jit(device=True)
def find_all_taps(images, rois, sampling, convention, slots, fillers, taps, whole, zero):
    """Find the taps of all boxes by some threads, and for each axis the image of each box.

    That is `NO_IMAGE` where it cannot be pooled along this axis.
    """
    weights, others = cuda.local.array(STACK, type(zero)), cuda.local.array(STACK, type(zero))
    box, item = split(this_thread()[0], 2 * FILLERS)
    number, filler = split(item, FILLERS)
    is_y, at_once = number == 0, split(whole.finders, 2 * FILLERS)[0]
    own = fillers[0] if is_y else fillers[1]
    while box < whole.boxes:
        # At one place in the code for both axes: compiled twice, it could round in two ways.
        axis = locate_axis(rois, np.intp(box), is_y, sampling, convention, zero)
        image = locate_image(rois, np.intp(box), sampling, convention)
        if image < 0 or axis.samples < 0:
            images[number, box] = NO_IMAGE
        else:
            images[number, box] = image
            here = Box(box, np.uint32(image), np.uint32(sampling.output_height))
            how = filler, own, slots, None
            find_taps(taps, None, None, here, is_y, axis, *how, (weights, others), zero)
        box = np.uint32(box + at_once)


@cuda.jit(**bounded(WIDE_THREADS, AT_ONCE))
def schedule_whole(
    features, strides, rois, sampling, convention, slots, fillers, counts, whole, zero,
    out, out_strides, channels,
):  # fmt: skip
    """Pool RoIs, some channels of all those of an image by this block.

    `counts` are the numbers of `Taps`, whose arrays follow the map in shared memory.
    """
    # Types by way of an array, since the simulator wants a dtype.
    number_type, word = cuda.local.array(1, type(zero)), cuda.local.array(1, np.uint64)
    (numbers,), tables = asked_for(number_type.dtype), cuda.shared.array(0, word.dtype)
    images = cuda.shared.array((2, KEPT), np.uint32)
    sums = cuda.local.array(SUMS, type(zero))
    taps, thread = Taps(tables, tables, tables, *counts), this_thread()[0]
    height, width = np.uint32(sampling.output_height), np.uint32(sampling.output_width)
    image, channel = np.uint32(cuda.blockIdx.y), np.uint32(cuda.blockIdx.x * whole.quads * QUAD)
    start = np.uintp(image) * np.uintp(strides.image)
    rows, columns = np.uint32(sampling.height), np.uint32(sampling.width)
    band = Band(
        numbers, np.uint32(0), rows, columns, whole.apart, start, channel, np.uint32(channels)
    )
    if thread < whole.finders:
        find_all_taps(images, rois, sampling, convention, slots, fillers, taps, whole, zero)
    else:
        pack(features, strides, band, whole.quads, zero, whole.finders)
    cuda.syncthreads()
    place, items = quotient(thread, whole.of_across), np.uint32(whole.boxes * whole.stacks)
    item = np.uint32(thread - place * np.uint32(whole.quads * width))
    pw, number = np.uint32(item >> whole.bits), np.uint32(item & np.uint32(whole.quads - 1))
    quad = quad_of(band, number, strides)
    if place >= whole.at_once:
        place = items
    while place < items:
        box = quotient(place, whole.of_stacks)
        stack = np.uint32(place - box * whole.stacks)
        ph = np.uint32(stack * STACK)
        last = np.uint32(min(np.uint32(STACK), np.uint32(height - ph)) - 1)
        here, is_valid = images[0, box], images[0, box] != NO_IMAGE and images[1, box] != NO_IMAGE
        is_own = here == image if is_valid else image == 0
        if is_valid and is_own:
            own = taps_at(taps, box, ph, np.uint32(0), last, pw, height)
            stack_sums(features, strides, band, quad, taps, *own, sums, True, zero)
        for i in range(SUMS):
            if not is_valid:
                sums[i] = zero * type(zero)(math.nan)
        if is_own:
            to = element_at(out_strides, np.intp(box), quad.channel, ph, pw)
            write_stack(out, to, out_strides, quad.there, sums, np.uint32(0), last)
        place = np.uint32(place + whole.at_once)


def division_of(case):
    """Return how blocks divide channels, the numbers of `Taps`, and the bytes of a block.

    That is None where two blocks do not fit a multiprocessor.
    """
    sampling, limits, rois = case.sampling, case.limits, case.rois
    height, width = sampling.output_height, sampling.output_width
    pixels, slots = sampling.height * sampling.width, capacities(sampling)
    room = min(limits.shared_bytes // AT_ONCE - TAKEN_BYTES, limits.block_bytes) - DECLARED_BYTES
    found = None
    for quads in QUADS:
        apart = pixels_apart(pixels, quads)
        bound = quads * apart * QUAD * case.number_bytes // 8
        row = ceil_div(bound + rois * (height + width), 2)
        column = 2 * (row + rois * slots[0])
        size = 8 * (column + rois * slots[1])
        blocks = sampling.images * ceil_div(case.channels, QUAD * quads)
        time = ceil_div(blocks, AT_ONCE * limits.multiprocessors) * (FINDING + quads)
        if size > room or quads * width > WIDE_THREADS:
            break
        if found is None or time < found[0]:
            finders = 2 * FILLERS * min(rois, BOXES_AT_ONCE, (WIDE_THREADS - WARP) // (2 * FILLERS))
            across, stacks = quads * width, ceil_div(height, STACK)
            whole = Whole(
                quads, quads.bit_length() - 1, apart, rois, stacks, reciprocal_of(stacks),
                reciprocal_of(across), WIDE_THREADS // across, finders,
            )  # fmt: skip
            counts = height + width, *slots, bound, row, column
            found = time, whole, counts, size
    return found


def suits(case, strides):
    """Say whether a call has few boxes, of maps of which all pixels are worth packing."""
    sampling = case.sampling
    return (
        0 < case.rois <= MOST_BOXES
        and case.rois * sampling.output_height < MOST_DIVIDED
        and sampling.images <= MOST_BLOCKS
        and sampling.height * sampling.width >= CHUNK
        and is_packable(case, strides)
        and division_of(case) is not None
    )


class WholeMaps:
    """The average of a few boxes: how blocks divide it, and the launch."""

    def __init__(self, rois, geometry, queue, case):
        self.rois, self.queue, self.case = rois, queue, case
        self.sampling, self.convention, self.zero = geometry
        _, whole, counts, self.shared_bytes = division_of(case)
        self.whole, self.counts = in_32_bits(whole), tuple(map(np.uint32, counts))
        groups = ceil_div(case.channels, QUAD * whole.quads)
        self.blocks = groups, self.sampling.images

    def pool(self, source, target):
        """Pool all boxes; `source` and `target` are a flat array and its strides each."""
        sampling, (out, out_strides) = self.sampling, target
        source = narrowed_source(source, self.case)
        fillers = fillers_of(int(self.whole.stacks)), fillers_of(sampling.output_width)
        how = sampling, self.convention, capacities(sampling), fillers, self.counts, self.whole
        configured(schedule_whole, self.blocks, WIDE_THREADS, self.queue, self.shared_bytes)(
            *source, self.rois, *how, self.zero, out, narrowed(out_strides), self.case.channels
        )
