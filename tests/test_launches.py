"""How kernels are launched where the simulator does not show it."""

import ctypes
import struct
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from .conftest import SIMULATOR

pytestmark = [
    pytest.mark.only("cpu"),
    pytest.mark.skipif(SIMULATOR or find_spec("numba_cuda") is None, reason="needs numba-cuda"),
]


class Array:
    """A device array, as far as launches look at it."""

    def __init__(self, dtype, layout="C", shape=(6,)):
        like = np.empty(shape, dtype, layout if layout in "CF" else "C")
        self.dtype, self.ndim, self.size = like.dtype, like.ndim, like.size
        self.shape, self.strides = like.shape, like.strides
        self.device_ctypes_pointer = ctypes.c_void_p(0x7F00_0000_1000)
        self._numba_type_ = SimpleNamespace(layout=layout)


class Kernel:
    """Remembers what it was specialised for and, without the driver, launched with."""

    handle = 7

    def __init__(self):
        self.specialisations, self.launches = 0, []
        library = SimpleNamespace(get_cufunc=lambda: SimpleNamespace(handle=self.handle))
        self.overloads = {(): SimpleNamespace(_codelibrary=library)}

    def specialize(self, *arguments):
        self.specialisations += 1
        return self

    def __getitem__(self, configuration):
        warnings.warn("Grid size 6 will likely result in GPU under-utilization", stacklevel=1)
        return lambda *arguments: self.launches.append((configuration, arguments))


class Driver:
    """Reads what a launch hands to the driver, eight bytes for each number."""

    def __init__(self):
        self.device, self.problem, self.error, self.numbers, self.launches = 0, 0, 0, 0, []

    def cuCtxGetDevice(self):
        return self.problem, self.device

    def cuLaunchKernel(self, function, *rest):
        *sizes, shared, stream, pointers, extra = rest
        assert (shared, extra) == (0, 0)
        places = (ctypes.c_void_p * self.numbers).from_address(pointers)
        held = [ctypes.string_at(place, 8) for place in places]
        self.launches.append((function, tuple(sizes), stream, held))
        return (self.error,)


@pytest.fixture
def driver(monkeypatch):
    from numba_roialign._cuda import launches

    driver = Driver()
    monkeypatch.setattr(launches, "driver", driver)
    monkeypatch.setattr(launches, "_compiled", {})
    return driver


NARROW, HALF = np.uint32(3), np.float32(0.5)
STREAM = SimpleNamespace(handle=11)


def arguments(dtype=np.float32, layout="C", row=NARROW, scale=HALF):
    from numba_roialign._kernels import Strides

    matrix = Array(np.float32, layout, (2, 3))
    return Array(dtype), matrix, 5, Strides(1, -2, row, np.uint32(1)), scale, True


def test_a_kernel_is_compiled_once_for_kinds_of_arguments(driver):
    from numba_roialign._cuda.launches import configured

    kernel = Kernel()
    for _ in range(3):
        configured(kernel, (2, 3), 4, STREAM)(*arguments())
    assert (kernel.specialisations, len(driver.launches)) == (1, 3)
    other = [
        arguments(dtype=np.float64),
        arguments(layout="F"),
        arguments(row=1 << 33),
        arguments(scale=np.float64(0.5)),
    ]
    for number, each in enumerate(other, start=2):
        configured(kernel, (2, 3), 4, STREAM)(*each)
        assert kernel.specialisations == number
    driver.device = 1
    configured(kernel, (2, 3), 4, STREAM)(*arguments())
    assert kernel.specialisations == len(other) + 2
    assert not kernel.launches


def test_arguments_lie_as_a_kernel_reads_them(driver, monkeypatch):
    from numba_roialign._cuda.arrays import Span
    from numba_roialign._cuda.launches import configured

    monkeypatch.setattr(Span, "as_numba", lambda span: span)  # which needs a device
    first, second, *numbers = arguments()
    pointer = first.device_ctypes_pointer.value
    span = Span(pointer, 9, "bfloat16", 2, None)
    driver.numbers = 7 + 9 + 7 + 7
    configured(Kernel(), (2, 3), (32, 8), STREAM)(first, second, span, *numbers)
    [(function, sizes, stream, held)] = driver.launches
    assert (function, sizes, stream) == (7, (2, 3, 1, 32, 8, 1), 11)
    integers = [0, 0, 6, 4, pointer, 6, 4]  # no owner; elements, bytes of one, place; axes
    integers += [0, 0, 6, 4, pointer, 2, 3, 12, 4]
    integers += [0, 0, 9, 2, pointer, 9, 2]
    integers += [5, 1, -2]
    assert [struct.unpack("q", each)[0] for each in held[: len(integers)]] == integers
    codes = ["I4x", "I4x", "f4x", "?7x"]
    rest = [struct.unpack(code, each)[0] for code, each in zip(codes, held[-4:], strict=True)]
    assert rest == [3, 1, 0.5, True]


def test_a_thread_without_a_context_gets_numbas(driver, monkeypatch):
    from numba_roialign._cuda import launches

    assert launches.current_device() == 0
    driver.problem, driver.device = 201, None  # CUDA_ERROR_INVALID_CONTEXT
    monkeypatch.setattr(launches.cuda, "get_current_device", lambda: SimpleNamespace(id=3))
    assert launches.current_device() == 3


def test_a_launch_that_fails_raises(driver):
    from numba_roialign._cuda.launches import configured

    driver.error = 719
    with pytest.raises(RuntimeError, match="719"):
        configured(Kernel(), 1, 1, STREAM)(*arguments())


def test_numba_launches_what_hides_its_handle(driver):
    from numba_roialign._cuda.launches import configured

    kernel, given = Kernel(), arguments()
    del kernel.overloads
    configured(kernel, (2, 3), 4, STREAM)(*given)
    assert kernel.launches == [(((2, 3), 4, STREAM), given)]
    assert not driver.launches


def kinds_of(argument):
    from numba_roialign._cuda.launches import read

    kinds = []
    read(argument, kinds, [], [])
    return kinds


def test_kinds_tell_apart_what_numba_types_apart():
    """Every pair of arguments that Numba gives two types has two kinds."""
    from numba.cuda.typing.typeof import Purpose, typeof

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
            assert same_type == (kinds_of(one) == kinds_of(other)), (one, other)
