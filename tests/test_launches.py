"""How kernels are launched where the simulator does not show it."""

from importlib.util import find_spec

import numpy as np
import pytest

from .conftest import SIMULATOR

pytestmark = [
    pytest.mark.only("cpu"),
    pytest.mark.skipif(SIMULATOR or find_spec("numba_cuda") is None, reason="needs numba-cuda"),
]


class Array:
    """A device array, as far as its type goes."""

    def __init__(self, dtype, layout="C", axes=1):
        from numba.cuda import types
        from numba.np.numpy_support import from_dtype

        self._numba_type_ = types.Array(from_dtype(np.dtype(dtype)), axes, layout)


class Kernel:
    """Remembers what it was specialised for and launched with."""

    def __init__(self):
        self.specialisations, self.configurations, self.launches = 0, 0, []

    def specialize(self, *arguments):
        self.specialisations += 1
        return self

    def __getitem__(self, configuration):
        self.configurations += 1
        return lambda *arguments: self.launches.append((configuration, arguments))


NARROW, HALF = np.uint32(3), np.float32(0.5)


def arguments(dtype=np.float32, layout="C", row=NARROW, scale=HALF):
    from numba_roialign._kernels import Strides

    return Array(dtype), Array(np.float32, layout, 2), 5, Strides(1, 2, row, np.uint32(1)), scale


def test_a_kernel_is_typed_and_configured_once(monkeypatch):
    from numba import cuda

    from numba_roialign._cuda import arrays

    class Device:
        compute_capability = (9, 0)

    monkeypatch.setattr(cuda, "get_current_device", lambda: Device)
    kernel = Kernel()
    given = [arguments() for _ in range(3)]
    for each in given:
        arrays.configured(kernel, (2, 3), 4, 5)(*each)
    assert (kernel.specialisations, kernel.configurations) == (1, 1)
    assert kernel.launches == [(((2, 3), 4, 5), each) for each in given]
    other = [
        arguments(dtype=np.float64),
        arguments(layout="A"),
        arguments(row=1 << 33),
        arguments(scale=np.float64(0.5)),
    ]
    for number, each in enumerate(other, start=2):
        arrays.configured(kernel, (2, 3), 4, 5)(*each)
        assert kernel.specialisations == number
    Device.compute_capability = (8, 0)
    arrays.configured(kernel, (2, 3), 4, 5)(*given[0])
    assert kernel.specialisations == len(other) + 2


def test_kinds_tell_apart_what_numba_types_apart():
    """Every pair of arguments that Numba gives two types has two kinds."""
    from numba.cuda.typing.typeof import Purpose, typeof

    from numba_roialign._cuda.arrays import kind_of
    from numba_roialign._geometry import Sampling
    from numba_roialign._kernels import Strides
    from numba_roialign.conventions import TORCHVISION

    f32, f64 = np.float32(1), np.float64(1)
    samplings = [Sampling(1, 2, 3, 4, 5, f, f, 0, 0, 9) for f in (f32, f64)]
    values = [5, True, f32, f64, np.uint32(5), *samplings, TORCHVISION, Strides(1, 2, 3, 4)]
    values += [Strides(1, 2, np.uint32(3), np.uint32(4)), (1, 2), (1, 2, 3, 4)]
    for one in values:
        for other in values:
            same_type = typeof(one, Purpose.argument) == typeof(other, Purpose.argument)
            assert same_type == (kind_of(one) == kind_of(other)), (one, other)
