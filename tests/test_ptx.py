"""The CUDA kernels compile and assemble without a device, into the code they should be."""

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import numba_roialign
from tests.conftest import SIMULATOR

REQUIRED = bool(os.environ.get("NUMBA_ROIALIGN_REQUIRE_PTX"))
CAPABILITIES = [(7, 5), (8, 0), (9, 0)]
REGISTERS = 1 << 16  # of a multiprocessor
MOST_REGISTERS = 80  # with which it holds three blocks of 256 threads; with 128 it is two
# Samples and their numbers, kept apart; and how threads share the bins of a box.
MORE_REGISTERS = ("schedule_maxima", "schedule_winners", "schedule_tabled")
# Of float64, walks pool.
FLOATS_ALONE = ("schedule_whole", "schedule_homes", "schedule_bands", "schedule_wide_bands")
MOVES = ("schedule_tiles", "schedule_zeros")  # kernels without arithmetic on numbers


def toolchain_problem() -> str:
    """Say why PTX cannot be compiled here, or return an empty string."""
    if SIMULATOR:
        return "the simulator has no compiler"
    if find_spec("numba_cuda") is None:
        return "the package numba-cuda is not installed (extras cuda12, cuda13)"
    from numba.cuda.cudadrv.nvvm import NVVM

    try:
        NVVM()
    except Exception as error:
        return f"the CUDA compiler library does not load: {error}"
    return "" if assembler() else "ptxas is not installed (nvidia-cuda-nvcc)"


def assembler():
    """Return the path of ptxas, of a wheel or of an installed toolkit, or None."""
    from cuda.pathfinder import find_nvidia_binary_utility

    return find_nvidia_binary_utility("ptxas")


@pytest.fixture(scope="module", autouse=True)
def toolchain():
    if problem := toolchain_problem():
        if REQUIRED:
            pytest.fail(f"the ptx lane was asked for: {problem}")
        pytest.skip(problem)


class Notes:
    """What calls queue their work on: it notes the kernels and what they are launched with."""

    stream, device = None, 0

    def __init__(self):
        self.launches = {}

    def empty(self, shape, dtype):
        return device_array(shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype).name)

    def reuse(self):
        pass

    def launch(self, kernel, blocks, threads, shared, *arguments):
        bounds = kernel.targetoptions.get("launch_bounds")
        self.launches[kernel.py_func.__name__] = kernel.py_func, bounds, arguments


def device_array(shape, dtype):
    from numba_roialign._cuda.arrays import dtype_of
    from numba_roialign._flat import DeviceArray, c_strides

    itemsize = dtype_of(dtype).itemsize
    return DeviceArray(0, shape, c_strides(shape, itemsize), dtype, itemsize)


def launches_of(dtype, monkeypatch):
    """Return all kernels by name, with arguments as calls on features of a dtype launch them."""
    from numba_roialign._cuda import banded, target
    from numba_roialign._cuda.launches import Limits
    from numba_roialign._geometry import Sampling
    from numba_roialign._kernels import MAX
    from numba_roialign.conventions import TORCHVISION

    monkeypatch.setattr(target, "limits_of", lambda _: Limits(100, 200 << 10, 200 << 10))
    monkeypatch.setattr(banded, "BINS_OF_PIXEL", np.inf)
    queue, sampling = Notes(), Sampling(2, 40, 50, 7, 7, 0.5, 0.5, 2, 2, 99)
    rois = device_array((9, 5), "float32")
    out_rois = device_array((9, 5), "float64" if dtype == "float64" else "float32")
    for layout, shape, pooled_shape in [
        ("NCHW", (2, 3, 40, 50), (9, 3, 7, 7)),
        ("NHWC", (2, 40, 50, 3), (9, 7, 7, 3)),
    ]:
        features, pooled = device_array(shape, dtype), device_array(pooled_shape, dtype)
        argmax = device_array(pooled_shape, "int64")
        how = target.How(sampling, TORCHVISION, dtype, layout, batch_bytes=1)
        of_max = how._replace(mode=MAX)
        target.queue_pooling(queue, features, rois, pooled, None, how)
        target.queue_pooling(queue, features, rois, pooled, argmax, of_max)
        target.queue_gradient(queue, pooled, rois, features, None, how)
        target.queue_gradient(queue, pooled, rois, features, argmax, of_max)
        target.queue_box_gradient(queue, pooled, features, rois, out_rois, how)
    # Averages that other kernels pool: many boxes, of more channels, of bins with many taps that
    # are wide or not, and with a table that has no room.
    how = how._replace(layout="NCHW", batch_bytes=target.BATCH_BYTES)
    many = device_array((100_000, 5), "float32")
    pooled, pooled_5 = (device_array((100_000, channels, 7, 7), dtype) for channels in (3, 5))
    features, features_5 = (device_array((2, channels, 40, 50), dtype) for channels in (3, 5))
    target.queue_pooling(queue, features, many, pooled, None, how)
    target.queue_pooling(queue, features_5, many, pooled_5, None, how)
    adaptive = how._replace(sampling=sampling._replace(samples_y=0, samples_x=0))
    target.queue_pooling(queue, features_5, many, pooled_5, None, adaptive)
    adaptive = how._replace(sampling=adaptive.sampling._replace(width=500))
    wide = device_array((2, 3, 40, 500), dtype)
    target.queue_pooling(queue, wide, many, pooled, None, adaptive)
    large = how._replace(sampling=sampling._replace(output_height=3000))
    pooled = device_array((9, 3, 3000, 7), dtype)
    target.queue_pooling(queue, features, rois, pooled, None, large)
    # And by bands of the map, which suit many boxes.
    monkeypatch.setattr(banded, "BINS_OF_PIXEL", 0)
    target.queue_pooling(queue, features_5, many, pooled_5, None, how)
    wide = device_array((2, 5, 40, 500), dtype)
    target.queue_pooling(queue, wide, many, pooled_5, None, adaptive)
    few, pooled = device_array((8, 5), "float32"), device_array((8, 5, 7, 7), dtype)
    adaptive = how._replace(sampling=sampling._replace(samples_y=0, samples_x=0))
    target.queue_pooling(queue, features_5, few, pooled, None, adaptive)
    target.queue_zeros(queue, features)
    monkeypatch.setattr(target, "fetch", lambda images, _: np.zeros(images.shape))
    assert target.first_invalid(rois, how, queue) is None
    return queue.launches


def library_of(kernel, dtype, monkeypatch):
    """Return a kernel's intermediate code, of which PTX for every capability is made."""
    from numba.cuda.typing.typeof import Purpose, typeof

    from numba_roialign._cuda.arrays import of_its_type
    from numba_roialign._cuda.launches import mapped

    function, bounds, arguments = launches_of(dtype, monkeypatch)[kernel]
    types = [typeof(argument, Purpose.argument) for argument in mapped(of_its_type, arguments)]
    if dtype == "bfloat16":  # what is not linked yet is not inlined yet, and takes more registers
        bounds = None
    return compile_library(function, types, monkeypatch, launch_bounds=bounds)


def assemble(ptx, capability, folder, *options):
    """Return registers per thread, and bytes of the stack frame and of spills, by the assembler."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    target = "sm_{}{}".format(*capability)
    done = subprocess.run(
        [assembler(), "-v", f"-arch={target}", *options, source, "-o", folder / "kernel.cubin"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (registers,) = re.findall(r"Used (\d+) registers", done.stderr)
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
    )
    assert frames, done.stderr
    return int(registers), sum(int(size) for frame in frames for size in frame)


def compile_library(function, arguments, monkeypatch, **options):
    from numba import cuda
    from numba.cuda import dispatcher, types
    from numba.cuda.codegen import CUDACodeLibrary

    class Device:
        compute_capability = CAPABILITIES[0]

    # Device functions are compiled for "the current device", which a machine without one lacks.
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: Device)
    with monkeypatch.context() as patch:  # Numba's front end takes ten times as long as the rest
        patch.setattr(CUDACodeLibrary, "get_asm_strs", lambda library, cc: [library])
        library, _ = cuda.compile(
            function, types.void(*arguments), cc=CAPABILITIES[0], device=False, abi="numba",
            output="ptx", **options,
        )  # fmt: skip
    return library


def kernels_of_the_target():
    """Return the names and the parameters of all kernels.

    Read from the source, without importing what a machine may lack.
    """
    found = r"^def (schedule_\w+)\((.*?)\):"
    return [
        (name, re.findall(r"\w+", parameters))
        for path in sorted(Path(numba_roialign.__file__).parent.glob("_cuda/*.py"))
        for name, parameters in re.findall(found, path.read_text(), re.MULTILINE | re.DOTALL)
    ]


def warps_of_kernels():
    """Return how many warps a multiprocessor is taken to hold, of kernels that divide boxes so."""
    from numba_roialign._cuda.average import WARPS

    return {kernel.py_func.__name__: warps for kernel, warps in WARPS.items()}


def combinations():
    """Give every kernel in float32 for all capabilities, and in the types that make it another.

    All pairs took twice as long.
    """
    for kernel, parameters in kernels_of_the_target():
        halves_alone = kernel == "schedule_copies"
        yield kernel, "float16" if halves_alone else "float32", CAPABILITIES
        if not halves_alone:
            if kernel not in FLOATS_ALONE:
                yield kernel, "float64", [(8, 0)]
            if {"features", "grad", "out"} & set(parameters) and kernel != "schedule_sums":
                yield kernel, "float16", [(8, 0)]
                yield kernel, "bfloat16", [(8, 0)]


@pytest.mark.parametrize(
    ("kernel", "dtype", "capabilities"),
    [pytest.param(*case, id="-".join(case[:2])) for case in combinations()],
)
def test_a_kernel_computes_in_its_own_type_and_in_registers(
    kernel, dtype, capabilities, monkeypatch, tmp_path
):
    library = library_of(kernel, dtype, monkeypatch)
    for capability in capabilities:
        ptx = library.get_asm_str(cc=capability)
        assert re.search(r"\.target\s+sm_{}{}".format(*capability), ptx)
        assert re.search(rf"\.entry\s+\S*{kernel}", ptx)
        doubles = re.findall(r"\S+\.f64\S*", ptx)
        assert bool(doubles) == (dtype == "float64" and kernel not in MOVES), doubles[:3]
        # numba-cuda links the functions that convert bfloat16 when it loads a kernel.
        options = ["-c"] if dtype == "bfloat16" else []
        registers, spilled = assemble(ptx, capability, tmp_path, *options)
        if dtype == "bfloat16":
            continue
        print(f"{kernel} {dtype} {capability}: {registers} registers")
        assert spilled == 0
        most = 128 if dtype == "float64" or kernel in MORE_REGISTERS else MOST_REGISTERS
        assert 0 < registers <= most
        if dtype == "float32" and capability == (9, 0):
            assert registers <= REGISTERS // (32 * warps_of_kernels().get(kernel, 1))


def test_a_kernel_of_the_user_computes_in_its_own_type(monkeypatch):
    from numba.cuda import types

    from .test_scalar import masks_of

    f32, arrays = types.float32, [types.Array(types.float32, axes, "C") for axes in (4, 2)]
    arguments = [*arrays, f32, f32, types.Array(types.boolean, 3, "C")]
    ptx = compile_library(masks_of.py_func, arguments, monkeypatch).get_asm_str(cc=(8, 0))
    assert ".entry" in ptx
    assert not re.findall(r"\S+\.f64\S*", ptx)
