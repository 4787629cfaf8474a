"""The two operations that are timed: what each returns, how it is checked, and its bytes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import plain_numpy, truth


class Operation(NamedTuple):
    """Functions of a problem, and the largest error that is another rounding of the operator."""

    shape: Callable  # of the result
    subset: Callable  # the part of the result to check: indices of its first axis, and channels
    truth: Callable  # of the problem and a subset
    compulsory_bytes: Callable
    tolerance: float  # for numbers around 1

    def allowed(self, expected, rounding):
        """Return the largest error of a right result; less where all of the truth is small.

        A box of many samples gives each pixel thousandths: there the tolerance itself would let
        zeros pass. `rounding` is what a narrow dtype adds, relative to the largest number.
        """
        largest = float(np.abs(expected).max(initial=0))
        return self.tolerance * min(largest, 1.0) + rounding * largest


OPERATIONS = {
    "pool": Operation(
        shape=lambda problem: problem.pooled_shape,
        subset=truth.subset,
        truth=truth.truth,
        compulsory_bytes=plain_numpy.compulsory_bytes,
        tolerance=5e-3,
    ),
    # a pixel sums hundreds of terms
    "backward": Operation(
        shape=lambda problem: problem.features.shape,
        subset=truth.gradient_subset,
        truth=truth.gradient_truth,
        compulsory_bytes=plain_numpy.gradient_bytes,
        tolerance=1e-2,
    ),
}
