"""How kernels are launched where the simulator does not show it."""

import ctypes
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from .conftest import SIMULATOR

pytestmark = [
    pytest.mark.only("cpu"),
    pytest.mark.skipif(SIMULATOR or find_spec("numba_cuda") is None, reason="needs numba-cuda"),
]


def array(dtype="float32", shape=(6,), strides=None, pointer=0x7F00_0000_1000, base=None):
    from numba_roialign._cuda.arrays import dtype_of
    from numba_roialign._flat import DeviceArray, c_strides

    itemsize = dtype_of(dtype).itemsize
    strides = strides or c_strides(shape, itemsize)
    return DeviceArray(pointer, shape, strides, dtype, itemsize, base=base)


class Kernel:
    """Remembers what it was compiled for and, without the driver, launched with."""

    def __init__(self):
        self.compilations, self.launches = [], []
        self._codelibrary = SimpleNamespace(get_cufunc=lambda: SimpleNamespace(handle=7))

    def __getitem__(self, configuration):
        warnings.warn("Grid size 6 will likely result in GPU under-utilization", stacklevel=1)
        return lambda *arguments: self.launches.append((configuration, arguments))


class Driver:
    """Reads what a launch hands to the driver, eight bytes for each number."""

    def __init__(self):
        self.device, self.problem, self.error, self.numbers, self.launches = 0, 0, 0, 0, []
        self.shared, self.granted = 0, []

    def cuCtxGetDevice(self):
        return self.problem, self.device

    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="size",
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT="carveout",
    )

    def cuKernelSetAttribute(self, name, value, kernel, device):
        self.granted.append((name, value, kernel, device))
        return (self.error,)

    def cuLaunchKernel(self, function, *rest):
        *sizes, shared, stream, pointers, extra = rest
        assert (shared, extra) == (self.shared, 0)
        places = (ctypes.c_void_p * self.numbers).from_address(pointers)
        held = [ctypes.string_at(place, 8) for place in places]
        self.launches.append((function, tuple(sizes), stream, held))
        return (self.error,)


@pytest.fixture
def driver(monkeypatch):
    from numba_roialign._cuda import launches

    def compile_kernel(kernel, arguments):
        kernel.compilations.append(arguments)
        return kernel

    driver = Driver()
    monkeypatch.setattr(launches, "driver", driver)
    monkeypatch.setattr(launches, "compile_kernel", compile_kernel)
    monkeypatch.setattr(launches, "_compiled", {})
    return driver


NARROW, HALF = np.uint32(3), np.float32(0.5)
STREAM = SimpleNamespace(handle=11)


def arguments(dtype="float32", strides=None, row=NARROW, scale=HALF, base=None):
    from numba_roialign._kernels import Strides

    matrix = array("float32", (2, 3), strides)
    return array(dtype, base=base), matrix, 5, Strides(1, -2, row, np.uint32(1)), scale, True


def launch(kernel, given, blocks=(2, 3), threads=4):
    from numba_roialign._cuda.launches import Launch

    return Launch(kernel, blocks, threads, 0, given)


def test_a_kernel_is_compiled_once_for_kinds_of_arguments(driver):
    kernel = Kernel()
    for _ in range(3):
        launch(kernel, arguments()).make(STREAM)
    assert (len(kernel.compilations), len(driver.launches)) == (1, 3)
    other = [
        arguments(dtype="float64"),
        arguments(strides=(16, 4)),
        arguments(row=1 << 33),
        arguments(scale=np.float64(0.5)),
    ]
    for number, each in enumerate(other, start=2):
        launch(kernel, each)
        assert len(kernel.compilations) == number
    driver.device = 1
    launch(kernel, arguments())
    assert len(kernel.compilations) == len(other) + 2
    assert not kernel.launches


def test_arguments_lie_as_a_kernel_reads_them(driver):
    first, second, *numbers = arguments()
    half = array("bfloat16", (9,))
    driver.numbers = 7 + 9 + 7 + 7
    launch(Kernel(), (first, second, half, *numbers), threads=(32, 8)).make(STREAM)
    [(function, sizes, stream, held)] = driver.launches
    assert (function, sizes, stream) == (7, (2, 3, 1, 32, 8, 1), 11)
    integers = [0, 0, 6, 4, first.pointer, 6, 4]  # no owner; elements, bytes of one, place; axes
    integers += [0, 0, 6, 4, first.pointer, 2, 3, 12, 4]
    integers += [0, 0, 9, 2, first.pointer, 9, 2]
    integers += [5, 1, -2]
    assert [struct.unpack("q", each)[0] for each in held[: len(integers)]] == integers
    codes = ["I4x", "I4x", "f4x", "?7x"]
    rest = [struct.unpack(code, each)[0] for code, each in zip(codes, held[-4:], strict=True)]
    assert rest == [3, 1, 0.5, True]


def test_a_launch_asks_for_shared_memory(driver):
    from numba_roialign._cuda.launches import Launch

    driver.shared = 512
    Launch(Kernel(), 1, 32, 512, arguments()).make(STREAM)
    assert len(driver.launches) == 1


def test_arrays_that_count_from_a_base_lie_where_it_does(driver):
    given = array(pointer=256, base=1), 5, array(base=0, pointer=0)
    driver.numbers = 7 + 1 + 7
    again = launch(Kernel(), given)
    for origins in [(4096, 8192), (4096, 1 << 40), (0, 0)]:
        again.make(STREAM, origins)
        held = [struct.unpack("q", each)[0] for each in driver.launches[-1][-1]]
        assert [held[4], held[12]] == [256 + origins[1], origins[0]]
        assert held[7] == 5


def test_a_thread_without_a_context_gets_numbas(driver, monkeypatch):
    from numba_roialign._cuda import launches

    assert launches.current_device() == 0
    driver.problem, driver.device = 201, None  # CUDA_ERROR_INVALID_CONTEXT
    monkeypatch.setattr(launches.cuda, "get_current_device", lambda: SimpleNamespace(id=3))
    assert launches.current_device() == 3


def test_a_launch_that_fails_raises(driver):
    driver.error = 719
    with pytest.raises(RuntimeError, match="719"):
        launch(Kernel(), arguments(), 1, 1).make(STREAM)


def test_numba_launches_what_hides_its_handle(driver, monkeypatch):
    from numba_roialign._cuda import launches

    monkeypatch.setattr(launches, "as_numba", lambda array: array.pointer)  # which needs a device
    kernel, given = Kernel(), arguments(base=1)
    del kernel._codelibrary
    launch(kernel, given).make(STREAM, (0, 512))
    first, second, *numbers = given
    places = first.pointer + 512, second.pointer
    assert kernel.launches == [(((2, 3), 4, STREAM, 0), (*places, *numbers))]
    assert not driver.launches


def test_kinds_tell_apart_what_numba_types_apart():
    """Every pair of arguments that Numba gives two types has two kinds."""
    from numba.cuda.typing.typeof import Purpose, typeof

    from numba_roialign._cuda.arrays import of_its_type
    from numba_roialign._cuda.launches import Layout, mapped
    from numba_roialign._geometry import Sampling
    from numba_roialign._kernels import Strides
    from numba_roialign.conventions import TORCHVISION

    f32, f64 = np.float32(1), np.float64(1)
    samplings = [Sampling(1, 2, 3, 4, 5, f, f, 0, 0, 9) for f in (f32, f64)]
    values = [5, True, f32, f64, np.uint32(5), *samplings, TORCHVISION, Strides(1, 2, 3, 4)]
    values += [Strides(1, 2, np.uint32(3), np.uint32(4)), (1, 2), (1, 2, 3, 4)]
    values += [array(dtype) for dtype in ("float32", "float16", "bfloat16", "int16", "float64")]
    values += [array(shape=(2, 3)), array(shape=(1, 3), strides=(99, 4))]
    values += [array(shape=(2, 3), strides=strides) for strides in [(16, 4), (4, 8), (0, 4)]]
    types = [typeof(mapped(of_its_type, value), Purpose.argument) for value in values]
    kinds = [Layout(value).kinds for value in values]
    for type_, kind in zip(types, kinds, strict=True):
        for other_type, other_kind in zip(types, kinds, strict=True):
            assert (type_ == other_type) == (kind == other_kind), (kind, other_kind)


class Saved:
    """A compiled kernel, as far as the cache looks at it."""

    codegen = SimpleNamespace(magic_tuple=lambda: ((13, 0), (9, 0)))

    def __init__(self, **states):
        self.states = states

    def _reduce_states(self):
        if not self.states:
            raise RuntimeError("Cannot pickle CUDACodeLibrary with linking files")
        return self.states


def test_a_kernel_is_loaded_until_the_package_or_numba_cuda_changes(monkeypatch, tmp_path):
    from numba import config
    from numba.cuda.dispatcher import _Kernel

    from numba_roialign._cuda import cache
    from numba_roialign._cuda.average import schedule_boxes

    def load(sig):
        return cache._PackageCache(schedule_boxes.py_func)._load_overload(sig, context)

    context = SimpleNamespace(codegen=lambda: Saved.codegen)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_Kernel, "_rebuild", lambda **states: states)
    cache._PackageCache(schedule_boxes.py_func).save_overload(("one",), Saved(name="kernel"))
    cache._PackageCache(schedule_boxes.py_func).save_overload(("halves",), Saved())
    assert load(("one",)) == {"name": "kernel"}
    assert load(("other",)) is None
    assert load(("halves",)) is None, "what cannot be kept is compiled anew"
    newer = SimpleNamespace(__version__="newer")
    for name, value in [("package_stamp", lambda: "edited"), ("numba_cuda", newer)]:
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, value)
            assert load(("one",)) is None


def test_without_a_folder_kernels_compile_in_every_process(monkeypatch):
    from numba_roialign._cuda import cache

    def no_folder(function):
        raise RuntimeError("cannot cache function: no locator available")

    kernel = SimpleNamespace(
        py_func=None, _cache=None, typeof_pyval=type, compile=lambda types: ("compiled", types)
    )
    monkeypatch.setattr(cache._PackageCache, "__init__", lambda self, function: no_folder(function))
    assert cache.compile_kernel(kernel, (1, 2.0)) == ("compiled", (int, float))
    assert isinstance(kernel._cache, cache.NullCache)


class Queue:
    stream, device = STREAM, 0


def test_a_plan_is_made_for_each_device(driver, monkeypatch):
    from numba_roialign._cuda import plans

    made = []

    def work(queue, x):
        made.append(driver.device)
        queue.launch(Kernel(), 1, 1, 0, x)

    driver.numbers = 7
    for driver.device in (0, 1, 0, 1):
        monkeypatch.setattr(Queue, "device", driver.device)
        plans.run(work, Queue, [array()])
    assert made == [0, 1]
    assert len(driver.launches) == 4


def test_a_kernel_keeps_the_most_shared_memory_that_a_launch_asked_for(driver, monkeypatch):
    """A launch that is kept may be made again after one that asks for less."""
    from numba_roialign._cuda import launches

    monkeypatch.setattr(launches, "_granted", {})
    kernel, x = Kernel(), (array(),)
    for driver.device in (0, 1):
        for kilobytes in (30, 45, 60, 50, 80):  # 45, and what the kernel declares
            launches.Launch(kernel, 1, 1, kilobytes << 10, x)
    sizes = [grant for grant in driver.granted if grant[0] == "size"]
    assert sizes == [("size", size << 10, 7, device) for device in (0, 1) for size in (45, 60, 80)]
    assert len(driver.granted) == 2 * len(sizes)
    driver.error = 1
    with pytest.raises(RuntimeError, match="shared memory"):
        launches.Launch(kernel, 1, 1, 90 << 10, x)


def test_threads_take_turns_in_a_plan(driver):
    """While one thread is with the driver, no other writes where the driver reads."""
    from numba_roialign._cuda.plans import Plan, Planner

    inside, launch, others = threading.Semaphore(0), driver.cuLaunchKernel, []

    def slow(*arguments):
        inside.release()
        others.append(inside.acquire(timeout=0.2) and inside.acquire(timeout=0.2))
        return launch(*arguments)

    driver.numbers, driver.cuLaunchKernel = 7, slow
    planner, pointers = Planner(0), [4096, 8192]
    planner.launch(Kernel(), 1, 1, 0, array(base=1, pointer=0))
    plan = Plan(planner)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pointer: plan.run(Queue, [pointer]), pointers))
    held = [struct.unpack("q", launch[-1][4])[0] for launch in driver.launches]
    assert sorted(held) == pointers
    assert others == [False, False]


@pytest.mark.parametrize("pointer", [512, None])
def test_an_array_of_numbas_is_known_by_its_own_words(pointer):
    """Its interface takes longer. An array of nothing may lie nowhere."""
    from numba_roialign._families import NumbaCUDA

    own = SimpleNamespace(
        gpu_data=None,
        device_ctypes_pointer=ctypes.c_void_p(pointer),
        shape=(2, 3),
        strides=(24, 4),
        dtype=np.dtype("f4"),
    )
    known = NumbaCUDA.array(own)
    assert (known.pointer, known.owner) == (pointer or 0, own)
    assert known.look == ((2, 3), (24, 4), "float32", 4)
    own.dtype = np.dtype(">f4")
    with pytest.raises(ValueError, match="byte-swapped"):
        NumbaCUDA.array(own)
