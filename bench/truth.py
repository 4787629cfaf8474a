"""The float64 truth: the oracle of the tests, on as much of a workload as takes a few seconds."""

import numpy as np

from tests import reference

LARGEST_SAMPLES = 100_000  # samples per check; the oracle takes about 10 microseconds for each
LARGEST_CHANNELS = 16


def sample_counts(problem):
    """Return how many samples each box takes, near enough to plan with."""
    if problem.sampling > 0:
        per_bin = np.full(len(problem.rois), problem.sampling**2)
    else:
        sizes = (problem.rois[:, 3:] - problem.rois[:, 1:3]) * problem.scale / problem.bins
        per_bin = np.ceil(np.maximum(sizes, 1)).prod(axis=1)
    return per_bin * problem.bins**2


def some_channels(problem):
    """Return the channels to check: all of a few, else some at random with the first and last."""
    channels = problem.features.shape[1]
    if channels <= LARGEST_CHANNELS:
        return list(range(channels))
    rng = np.random.default_rng(0)
    between = rng.choice(np.arange(1, channels - 1), LARGEST_CHANNELS - 2, replace=False)
    return [0, *sorted(between.tolist()), channels - 1]


def subset(problem):
    """Return the boxes and the channels to check: all of a small workload, else some at random.

    The largest box is always among them.
    """
    rng = np.random.default_rng(0)
    counts = sample_counts(problem)
    largest = int(counts.argmax())
    order = [largest, *(n for n in rng.permutation(len(counts)).tolist() if n != largest)]
    fits = np.cumsum(counts[order]) <= LARGEST_SAMPLES
    rows = sorted(n for n, fit in zip(order, fits, strict=True) if fit or n == largest)
    return rows, some_channels(problem)


def gradient_subset(problem):
    """Return all images, since every box gives to its own, and the channels to check."""
    return list(range(len(problem.features))), some_channels(problem)


def truth(problem, rows, channels):
    return reference.roi_align(
        problem.features[:, channels],
        problem.rois[rows],
        (problem.bins, problem.bins),
        problem.scale,
        problem.sampling,
        problem.aligned,
    )


def axis_weights(first, last, length, problem):
    """Return the pixels that a box gives to along one axis, and the weight of each in each bin."""
    convention = reference.ALIGNED if problem.aligned else reference.LEGACY
    bins = reference.axis_samples(
        first, last, problem.bins, problem.scale, problem.sampling, None, convention, np.float32
    )
    weights = np.zeros((problem.bins, length))
    for row, samples in zip(weights, bins, strict=True):
        for position in samples:
            for pixel, weight in reference.corners(position, length):
                row[pixel] += weight / len(samples)
    used = np.flatnonzero(weights.any(axis=0))
    return used, weights[:, used]


def gradient_truth(problem, images, channels):
    """Return the gradient of the features, two matrix products a box: the axes are independent.

    The samples and their weights are the oracle's, whose own loops would take minutes.
    """
    grad = problem.gradient()[:, channels].astype(np.float64)
    shape = problem.features.shape
    result = np.zeros((shape[0], len(channels), *shape[2:]))
    for given, (image, x1, y1, x2, y2) in zip(grad, problem.rois.tolist(), strict=True):
        rows, row_weights = axis_weights(y1, y2, shape[2], problem)
        columns, column_weights = axis_weights(x1, x2, shape[3], problem)
        shares = row_weights.T @ (given @ column_weights)
        result[int(image)][:, rows[:, None], columns] += shares
    return result[images]


def largest_error(result, expected):
    """Return the largest difference; infinite where a shape differs or a number is missing."""
    if result.shape != expected.shape or not np.isfinite(result).all():
        return float("inf")
    return float(np.abs(result.astype(np.float64) - expected).max(initial=0))
