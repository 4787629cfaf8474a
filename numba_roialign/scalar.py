"""RoIAlign one value at a time, for kernels of your own.

`pooled_value` works inside functions compiled by `numba.njit` and by `numba.cuda.jit`, and in the
interpreter. It allocates nothing, so a kernel can pool a value and use it at once, without a launch
and an array between. It computes the geometry of its bin each time; where all channels of a box are
wanted, `numba_roialign.roi_align` computes it once for all.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from ._geometry import LARGEST_GRID, Convention, axis_of, compilable, real, skips
from ._taps import pixel_below, samples_of

__all__ = ["pooled_value"]

Number = TypeVar("Number", float, np.float32)


@compilable()
def _line(features: Any, image: int, channel: int, y: int, x: int, beyond: Any, zero: Any) -> Any:
    """Return the value at a row and between two columns; a pixel of weight 0 is not read."""
    T = type(zero)
    value = T(features[image, channel, y, x]) * (T(1) - beyond)
    if beyond != 0:
        value += T(features[image, channel, y, x + 1]) * beyond
    return value


@compilable()
def pooled_value(
    features: Any,
    image: int,
    channel: int,
    box: tuple[Any, Any, Any, Any],
    bin_index: tuple[int, int],
    output_size: tuple[int, int],
    spatial_scale: Number,
    sampling_ratio: int,
    convention: Convention,
) -> Number:
    """Return one value of RoIAlign's average: of one channel, in one bin of one box.

    Parameters
    ----------
    features : array of (N, C, H, W)
        Of float32, float64 or integers; in a CUDA kernel, a device array.
    image, channel : int
        Which plane to read, inside the array: this is not checked.
    box : (float, float, float, float)
        ``(x1, y1, x2, y2)`` in image pixels.
    bin_index : (int, int)
        Row and column of the bin.
    output_size : (int, int)
        Bins per box: pooled height and width.
    spatial_scale : float
        Feature-map pixels per image pixel. Its type is the type computed in and returned, float64
        for an integer: pass ``np.float32(0.25)`` to a CUDA kernel that should hold no float64
        instruction.
    sampling_ratio : int
        Samples per bin and axis; zero or less is adaptive.
    convention : Convention
        How samples are laid, such as ``CONVENTIONS["torchvision_aligned"]``; bind it to a name
        outside the kernel. A box that cannot be pooled, not finite or too large, gives NaN.

    Returns
    -------
    float
        What ``roi_align`` writes there, to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from numba import njit
    >>> from numba_roialign import CONVENTIONS
    >>> from numba_roialign.scalar import pooled_value
    >>> aligned = CONVENTIONS["torchvision_aligned"]
    >>> @njit
    ... def brightest(features, box):
    ...     best = -np.inf
    ...     for ph in range(2):
    ...         for pw in range(2):
    ...             value = pooled_value(features, 0, 0, box, (ph, pw), (2, 2), 1.0, -1, aligned)
    ...             best = max(best, value)
    ...     return best
    >>> brightest(np.arange(16.0).reshape(1, 1, 4, 4), (0.0, 0.0, 4.0, 4.0))
    12.5
    """
    scale = real(spatial_scale)
    T = type(scale)
    zero = T(0)
    height, width = features.shape[2], features.shape[3]
    y_axis = axis_of(
        T(box[1]), T(box[3]), scale, output_size[0], sampling_ratio, LARGEST_GRID,
        height, convention, zero,
    )  # fmt: skip
    x_axis = axis_of(
        T(box[0]), T(box[2]), scale, output_size[1], sampling_ratio, LARGEST_GRID,
        width, convention, zero,
    )  # fmt: skip
    if y_axis.samples < 0 or x_axis.samples < 0:
        return zero * T(float("nan"))
    if skips(T(box[0]), T(box[2]), convention):
        return zero
    y_step = y_axis.bin_size / T(max(y_axis.samples, 1))
    x_step = x_axis.bin_size / T(max(x_axis.samples, 1))
    top, first_row, last_row = samples_of(y_axis, bin_index[0], y_step)
    left, first_column, last_column = samples_of(x_axis, bin_index[1], x_step)
    total = zero
    for i in range(first_row, last_row):
        y, below = pixel_below(top + (T(i) + T(0.5)) * y_step, height)
        if y < 0:
            continue
        for j in range(first_column, last_column):
            x, beyond = pixel_below(left + (T(j) + T(0.5)) * x_step, width)
            if x < 0:
                continue
            total += _line(features, image, channel, y, x, beyond, zero) * (T(1) - below)
            if below != 0:
                total += _line(features, image, channel, y + 1, x, beyond, zero) * below
    return total / T(max(y_axis.samples * x_axis.samples, 1))
