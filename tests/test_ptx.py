"""The CUDA kernels compile without a device, and compute in the type they should."""

import inspect
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import numba_roialign
from tests.conftest import SIMULATOR

REQUIRED = bool(os.environ.get("NUMBA_ROIALIGN_REQUIRE_PTX"))
CAPABILITIES = [(7, 5), (8, 0), (9, 0)]


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
    return ""


@pytest.fixture(scope="module", autouse=True)
def toolchain():
    if problem := toolchain_problem():
        if REQUIRED:
            pytest.fail(f"the ptx lane was asked for: {problem}")
        pytest.skip(problem)


def arguments_of(kernel, feature, width):
    """Return the types of a launch's arguments by their names, as `_cuda` passes them."""
    from numba.cuda import types

    from numba_roialign._geometry import Convention, Sampling
    from numba_roialign._kernels import Strides
    from numba_roialign._taps import AxisSamples, AxisTaps

    i64, boolean = types.int64, types.boolean

    def flat(dtype, axes=1):
        return types.Array(dtype, axes, "C")

    table = [flat(types.int32), flat(width), flat(i64, 2)]
    taps = types.NamedTuple(table, AxisTaps)
    samples = types.NamedTuple([*table, flat(i64, 2), flat(i64)], AxisSamples)
    shape = types.UniTuple(i64, 4 if kernel == "schedule_copies" else 2)
    known = {
        **dict.fromkeys(("features", "grad", "source"), flat(feature)),
        **dict.fromkeys(("out", "slopes"), flat(feature)),
        **dict.fromkeys(("start", "count", "channels", "mode", "corner", "column"), i64),
        **dict.fromkeys(("y_taps", "x_taps", "y_bins", "x_bins"), taps),
        **dict.fromkeys(("y_samples", "x_samples"), samples),
        **dict.fromkeys(("y_codes", "x_codes"), flat(types.int32)),
        **dict.fromkeys(("adds", "keeps_argmax"), boolean),
        "rois": flat(types.float32, 2),
        "argmax": flat(i64),
        "images": flat(i64),
        "grids": flat(i64),
        "spans": flat(i64, 2),
        "dots": flat(width),
        "sampling": types.NamedTuple([i64] * 5 + [width] * 2 + [i64] * 3, Sampling),
        "convention": types.NamedTuple([width] * 4 + [boolean] * 3, Convention),
        "zero": width,
        "shape": shape,
    }
    if kernel == "schedule_dots":
        known["slopes"] = flat(width)
    if kernel == "schedule_sums":
        known["out"] = flat(width, 2)
    strides = types.NamedUniTuple(i64, 4, Strides)
    return known, strides


def compile_ptx(kernel, dtype, capability, monkeypatch):
    from numba.cuda import types

    from numba_roialign import _cuda_kernels

    width = types.float64 if dtype == "float64" else types.float32
    function = getattr(_cuda_kernels, kernel).py_func
    known, strides = arguments_of(kernel, getattr(types, dtype), width)
    names = inspect.signature(function).parameters
    arguments = [strides if "strides" in name else known[name] for name in names]
    return ptx_of(function, arguments, capability, monkeypatch)


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
    """Return the names of all kernels, without importing what a machine may lack."""
    source = Path(numba_roialign.__file__).with_name("_cuda_kernels.py")
    return re.findall(r"^@cuda\.jit\ndef (schedule_\w+)", source.read_text(), re.MULTILINE)


# Every kernel for every capability, and in every type for one: all pairs took twice as long.
COMBINATIONS = [("float32", capability) for capability in CAPABILITIES]
COMBINATIONS += [(dtype, (8, 0)) for dtype in ("float16", "bfloat16", "float64")]


@pytest.mark.parametrize(("dtype", "capability"), COMBINATIONS, ids=str)
@pytest.mark.parametrize("kernel", kernels_of_the_target())
def test_kernels_compute_in_their_own_type(kernel, dtype, capability, monkeypatch):
    ptx = compile_ptx(kernel, dtype, capability, monkeypatch)
    assert re.search(r"\.target\s+sm_{}{}".format(*capability), ptx)
    assert re.search(rf"\.entry\s+\S*{kernel}", ptx)
    doubles = re.findall(r"\S+\.f64\S*", ptx)
    if dtype == "float64":
        assert doubles
    else:
        assert not doubles


def test_a_kernel_of_the_user_computes_in_its_own_type(monkeypatch):
    from numba.cuda import types

    from .test_scalar import masks_of

    f32, arrays = types.float32, [types.Array(types.float32, axes, "C") for axes in (4, 2)]
    arguments = [*arrays, f32, f32, types.Array(types.boolean, 3, "C")]
    ptx = ptx_of(masks_of.py_func, arguments, (8, 0), monkeypatch)
    assert ".entry" in ptx
    assert not re.findall(r"\S+\.f64\S*", ptx)
