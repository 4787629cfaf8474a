"""The float64 truth: the oracle of the tests, on as much of a workload as takes a second or two."""

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


def subset(problem):
    """Return the boxes and the channels to check: all of a small workload, else some at random.

    The largest box is always among them, and so are the first and the last channel.
    """
    rng = np.random.default_rng(0)
    counts = sample_counts(problem)
    largest = int(counts.argmax())
    order = [largest, *(n for n in rng.permutation(len(counts)).tolist() if n != largest)]
    fits = np.cumsum(counts[order]) <= LARGEST_SAMPLES
    rows = sorted(n for n, fit in zip(order, fits, strict=True) if fit or n == largest)
    channels = problem.features.shape[1]
    if channels <= LARGEST_CHANNELS:
        return rows, list(range(channels))
    between = rng.choice(np.arange(1, channels - 1), LARGEST_CHANNELS - 2, replace=False)
    return rows, [0, *sorted(between.tolist()), channels - 1]


def truth(problem, rows, channels):
    return reference.roi_align(
        problem.features[:, channels],
        problem.rois[rows],
        (problem.bins, problem.bins),
        problem.scale,
        problem.sampling,
        problem.aligned,
    )


def largest_error(result, expected):
    """Return the largest difference; infinite where a shape differs or a number is missing."""
    if result.shape != expected.shape or not np.isfinite(result).all():
        return float("inf")
    return float(np.abs(result.astype(np.float64) - expected).max(initial=0))
