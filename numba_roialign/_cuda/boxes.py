"""Boxes brought together on a device, and one brought back."""

from __future__ import annotations

import numpy as np
from numba import cuda

from .._flat import stacked_dtype
from .arrays import as_numba, dtype_of, fetch
from .launches import over


@cuda.jit
def copy_boxes(boxes, image, rois, first):
    """Write an image's boxes into rois from row `first` on: one thread per box."""
    for n in range(cuda.grid(1), boxes.shape[0], cuda.gridsize(1)):
        rois[first + n, 0] = image
        for column in range(4):
            rois[first + n, column + 1] = boxes[n, column]


def stack_boxes(boxes, queue):
    """Return per-image boxes as one array of Numba's, an image index before each box."""
    count = sum(box.shape[0] for box in boxes)
    rois = queue.empty((count, 5), stacked_dtype(dtype_of(box.dtype) for box in boxes))
    first = 0
    for image, box in enumerate(boxes):
        if box.shape[0]:
            over(copy_boxes, box.shape[0], queue)(box, image, rois, first)
        first += box.shape[0]
    return as_numba(rois)


@cuda.jit
def copy_indexed_boxes(images, boxes, rois):
    """Write boxes and the image of each into rois: one thread per box."""
    for n in range(cuda.grid(1), boxes.shape[0], cuda.gridsize(1)):
        rois[n, 0] = images[n]
        for column in range(4):
            rois[n, column + 1] = boxes[n, column]


def join_boxes(images, boxes, queue):
    """Return boxes and the image of each as one array of Numba's."""
    dtype = np.result_type(np.float32, dtype_of(boxes.dtype))
    rois = queue.empty((boxes.shape[0], 5), dtype)
    if boxes.shape[0]:
        over(copy_indexed_boxes, boxes.shape[0], queue)(images, boxes, rois)
    return as_numba(rois)


@cuda.jit
def copy_row(rois, n, row):
    if cuda.grid(1) == 0:
        for column in range(5):
            row[column] = rois[n, column]


def row_of(rois, n, queue):
    """Return the values of one row of rois on the host."""
    row = queue.empty(5, np.float64)
    over(copy_row, 1, queue)(rois, n, row)
    return fetch(row, queue.stream).tolist()
