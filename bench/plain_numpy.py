"""RoIAlign in plain NumPy, as one would write it without a compiler: the baseline of the tables.

A bin is a weighted sum of rows and columns, so a box is two matrix products over all channels. The
arithmetic is float32, as everywhere else in the benchmark.
"""

import math

import numpy as np


def sample_positions(first, last, problem):
    """Return where the bins sample one axis, (bins, samples), in pixels of the map."""
    t = np.float32  # the number of adaptive samples is decided in it, by every operator
    offset = 0.5 if problem.aligned else 0.0
    start = first * problem.scale - offset
    size = (last - first) * problem.scale
    rounded = (t(last) * t(problem.scale) - t(offset)) - (t(first) * t(problem.scale) - t(offset))
    if not problem.aligned:
        size, rounded = max(size, 1.0), max(rounded, t(1))
    samples = problem.sampling
    if samples <= 0:
        samples = max(int(np.ceil(rounded / t(problem.bins))), 0)
    steps = np.arange(problem.bins * samples) + 0.5
    return (start + steps * (size / max(len(steps), 1))).reshape(problem.bins, samples)


def axis_weights(first, last, length, problem):
    """Return the pixels that a box reads along one axis, and the weight of each in each bin."""
    positions = sample_positions(first, last, problem)
    inside = (positions >= -1) & (positions <= length)
    if not inside.any():
        return np.arange(0), np.zeros((problem.bins, 0), np.float32)
    positions = positions.clip(0, length - 1)
    pixels = np.arange(int(positions.min()), min(int(positions.max()) + 2, length))
    hats = np.maximum(0, 1 - np.abs(positions[:, :, None] - pixels)) * inside[:, :, None]
    weights = hats.mean(axis=1)
    used = np.flatnonzero(weights.any(axis=0))
    return pixels[used], np.asarray(weights[:, used], np.float32)


def index_of(pixels):
    """Return a slice where the pixels are neighbours: it is a view, where an index copies."""
    if len(pixels) and pixels[-1] - pixels[0] + 1 == len(pixels):
        return slice(pixels[0], pixels[-1] + 1)
    return pixels


def roi_align(problem):
    _, channels, height, width = problem.features.shape
    out = np.empty((len(problem.rois), channels, problem.bins, problem.bins), np.float32)
    for n, (image, x1, y1, x2, y2) in enumerate(problem.rois.tolist()):
        rows, row_weights = axis_weights(y1, y2, height, problem)
        columns, column_weights = axis_weights(x1, x2, width, problem)
        crop = problem.features[int(image)][:, index_of(rows)][:, :, index_of(columns)]
        np.matmul(row_weights, np.matmul(crop, column_weights.T), out=out[n])
    return out


def compulsory_bytes(problem):
    """Return the bytes that no pooling can avoid: pixels that a sample reads, and the output."""
    images, channels, height, width = problem.features.shape
    read = np.zeros((images, height, width), bool)
    for image, x1, y1, x2, y2 in problem.rois.tolist():
        rows, _ = axis_weights(y1, y2, height, problem)
        columns, _ = axis_weights(x1, x2, width, problem)
        read[int(image), rows[:, None], columns] = True
    outputs = len(problem.rois) * problem.bins**2
    return int((read.sum() + outputs) * channels * problem.features.itemsize)


def gradient_bytes(problem):
    """Return the bytes that no gradient can avoid: the one given read, the map's written whole."""
    return problem.features.nbytes + math.prod(problem.pooled_shape) * problem.features.itemsize
