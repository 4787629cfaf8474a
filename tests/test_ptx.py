"""The CUDA kernels compile without a device, and compute in the type they should."""

import os
import re
from importlib.util import find_spec

import pytest

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


def signature(kernel, feature, width):
    """Return the types of a launch's arguments, as `_cuda.pool` passes them."""
    from numba.cuda import types

    from numba_roialign._geometry import AxisTaps, Convention, Sampling
    from numba_roialign._kernels import Strides

    i64 = types.int64
    flat, rois = types.Array(feature, 1, "C"), types.Array(types.float32, 2, "C")
    sampling = types.NamedTuple([i64] * 5 + [width] * 2 + [i64] * 2, Sampling)
    convention = types.NamedTuple([width] * 4 + [types.boolean] * 3, Convention)
    strides = types.NamedUniTuple(i64, 4, Strides)
    taps = types.NamedTuple(
        [
            types.Array(types.int32, 1, "C"),
            types.Array(width, 1, "C"),
            types.Array(i64, 2, "C"),
        ],
        AxisTaps,
    )
    tables = types.Array(i64, 1, "C"), taps, taps, width
    if kernel == "schedule_taps":
        return types.void(rois, i64, sampling, convention, *tables)
    shape = types.UniTuple(i64, 2)
    return types.void(flat, strides, i64, sampling, *tables, flat, strides, shape)


def compile_ptx(kernel, dtype, capability, monkeypatch):
    from numba import cuda
    from numba.cuda import dispatcher, types

    from numba_roialign import _cuda

    class Device:
        compute_capability = capability

    # Device functions are compiled for "the current device", which a machine without one lacks.
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: Device)
    width = types.float64 if dtype == "float64" else types.float32
    arguments = signature(kernel, getattr(types, dtype), width)
    function = getattr(_cuda, kernel).py_func
    ptx, _ = cuda.compile(
        function, arguments, cc=capability, device=False, abi="numba", output="ptx"
    )
    return ptx


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda cc: "sm_{}{}".format(*cc))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kernel", ["schedule_taps", "schedule_outputs"])
def test_kernels_compute_in_their_own_type(kernel, dtype, capability, monkeypatch):
    ptx = compile_ptx(kernel, dtype, capability, monkeypatch)
    assert re.search(r"\.target\s+sm_{}{}".format(*capability), ptx)
    assert re.search(rf"\.entry\s+\S*{kernel}", ptx)
    doubles = re.findall(r"\S+\.f64\S*", ptx)
    if dtype == "float64":
        assert doubles
    else:
        assert not doubles
