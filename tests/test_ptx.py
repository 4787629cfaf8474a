"""The CUDA kernels compile and assemble without a device, into the code they should be."""

import inspect
import os
import re
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import numba_roialign
from tests.conftest import SIMULATOR

REQUIRED = bool(os.environ.get("NUMBA_ROIALIGN_REQUIRE_PTX"))
CAPABILITIES = [(7, 5), (8, 0), (9, 0)]
# Of 65536 on a multiprocessor: with 80 it holds three blocks of 256 threads, with 128 two.
MOST_REGISTERS = 80
# Samples and their numbers, kept apart; and 16 loads on their way at once.
MORE_REGISTERS = ("schedule_maxima", "schedule_winners", "schedule_lines")
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


def arguments_of(kernel, feature, width):
    """Return the types of a launch's arguments by their names, as `_cuda.target` passes them."""
    from numba.cuda import types

    from numba_roialign._cuda.average import BinTable
    from numba_roialign._geometry import Convention, Sampling
    from numba_roialign._kernels import Strides
    from numba_roialign._taps import AxisSamples, AxisTaps

    i32, i64, u32, boolean = types.int32, types.int64, types.uint32, types.boolean

    def flat(dtype, axes=1):
        return types.Array(dtype, axes, "C")

    slots = [flat(i32), flat(width), flat(i64, 2)]
    taps = types.NamedTuple(slots, AxisTaps)
    samples = types.NamedTuple([*slots, flat(i64, 2), flat(i64)], AxisSamples)
    table = [flat(i32), flat(i32, 2), flat(i32, 2), flat(u32), flat(u32), flat(width)]
    strides = types.NamedUniTuple(i64, 4, Strides)
    narrowed = ("schedule_lines", "schedule_channels", "schedule_gradient")
    known = {
        **dict.fromkeys(("features", "grad", "source"), flat(feature)),
        **dict.fromkeys(("out", "slopes"), flat(feature)),
        **dict.fromkeys(("start", "count", "channels", "own", "mode", "corner", "column"), i64),
        **dict.fromkeys(("y_taps", "x_taps", "y_bins", "x_bins"), taps),
        **dict.fromkeys(("y_samples", "x_samples"), samples),
        **dict.fromkeys(("y_codes", "x_codes", "counts"), flat(i32)),
        **dict.fromkeys(("adds", "keeps_argmax"), boolean),
        "strides": types.NamedTuple([i64, i64, u32, u32], Strides)
        if kernel in narrowed
        else strides,
        **dict.fromkeys(("out_strides", "argmax_strides"), strides),
        **dict.fromkeys(("slope_strides", "source_strides"), strides),
        "rois": flat(types.float32, 2),
        "argmax": flat(i64),
        "images": flat(i64),
        "grids": flat(i64),
        "spans": flat(i64, 2),
        "lists": flat(i32, 2),
        "dots": flat(width),
        "y_slots": i64,
        "bins": types.UniTuple(i64, 2),
        "table": types.NamedTuple(table, BinTable),
        "sampling": types.NamedTuple([i64] * 5 + [width] * 2 + [i64] * 3, Sampling),
        "convention": types.NamedTuple([width] * 4 + [boolean] * 3, Convention),
        "zero": width,
        "shape": types.UniTuple(i64, 2 if kernel in ("schedule_outputs", "schedule_maxima") else 4),
    }
    if kernel == "schedule_dots":
        known["slopes"] = flat(width)
    if kernel == "schedule_sums":
        known["out"] = flat(width, 2)
    return known


def compile_ptx(module, kernel, dtype, capability, monkeypatch):
    from numba.cuda import types

    width = types.float64 if dtype == "float64" else types.float32
    function = getattr(import_module(f"numba_roialign._cuda.{module}"), kernel).py_func
    known = arguments_of(kernel, getattr(types, dtype), width)
    arguments = [known[name] for name in inspect.signature(function).parameters]
    return ptx_of(function, arguments, capability, monkeypatch)


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


def ptx_of(function, arguments, capability, monkeypatch):
    from numba import cuda
    from numba.cuda import dispatcher, types

    class Device:
        compute_capability = capability

    # Device functions are compiled for "the current device", which a machine without one lacks.
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: Device)
    ptx, _ = cuda.compile(
        function, types.void(*arguments), cc=capability, device=False, abi="numba", output="ptx"
    )
    return ptx


def kernels_of_the_target():
    """Return the modules, the names and the parameters of all kernels.

    Read from the source, without importing what a machine may lack.
    """
    found = r"^@cuda\.jit\ndef (schedule_\w+)\((.*?)\):"
    return [
        (path.stem, name, re.findall(r"\w+", parameters))
        for path in sorted(Path(numba_roialign.__file__).parent.glob("_cuda/*.py"))
        for name, parameters in re.findall(found, path.read_text(), re.MULTILINE | re.DOTALL)
    ]


def combinations():
    """Give every kernel in float32 for every capability, and in the types that make it another.

    All pairs took twice as long.
    """
    for module, kernel, parameters in kernels_of_the_target():
        for capability in CAPABILITIES:
            yield module, kernel, "float32", capability
        yield module, kernel, "float64", (8, 0)
        if {"features", "grad", "source", "out"} & set(parameters) and kernel != "schedule_sums":
            yield module, kernel, "float16", (8, 0)
            yield module, kernel, "bfloat16", (8, 0)


@pytest.mark.parametrize(("module", "kernel", "dtype", "capability"), list(combinations()), ids=str)
def test_a_kernel_computes_in_its_own_type_and_in_registers(
    module, kernel, dtype, capability, monkeypatch, tmp_path
):
    ptx = compile_ptx(module, kernel, dtype, capability, monkeypatch)
    assert re.search(r"\.target\s+sm_{}{}".format(*capability), ptx)
    assert re.search(rf"\.entry\s+\S*{kernel}", ptx)
    doubles = re.findall(r"\S+\.f64\S*", ptx)
    assert bool(doubles) == (dtype == "float64" and kernel not in MOVES), doubles[:3]
    if dtype == "bfloat16":  # numba-cuda links the functions that convert it when it loads a kernel
        assemble(ptx, capability, tmp_path, "-c")
        return
    registers, spilled = assemble(ptx, capability, tmp_path)
    print(f"{kernel} {dtype} {capability}: {registers} registers")
    assert spilled == 0
    most = 128 if dtype == "float64" or kernel in MORE_REGISTERS else MOST_REGISTERS
    assert 0 < registers <= most


def test_a_kernel_of_the_user_computes_in_its_own_type(monkeypatch):
    from numba.cuda import types

    from .test_scalar import masks_of

    f32, arrays = types.float32, [types.Array(types.float32, axes, "C") for axes in (4, 2)]
    arguments = [*arrays, f32, f32, types.Array(types.boolean, 3, "C")]
    ptx = ptx_of(masks_of.py_func, arguments, (8, 0), monkeypatch)
    assert ".entry" in ptx
    assert not re.findall(r"\S+\.f64\S*", ptx)
