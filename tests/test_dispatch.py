"""Where a call runs, what it returns, and what it does not import."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import ROIAlign, Workspace, roi_align

from . import reference
from .conftest import COMPILED, SIMULATOR, random_features, random_rois


def case(rng):
    features = random_features(rng, (1, 2, 4, 4))
    return features, random_rois(rng, 2, features.shape)


def test_the_result_is_of_the_family_and_place_of_the_features(target, rng):
    features, rois = (target.array(values) for values in case(rng))
    for result in (roi_align(features, rois, 2), ROIAlign(2, 2, 1.0)(features, rois)):
        assert type(result) is type(features)
        assert target.numpy(result).shape == (2, 2, 2, 2)


def test_rois_in_another_dtype_do_not_change_the_result_dtype(target, rng):
    features, rois = case(rng)
    result = roi_align(target.array(features), target.array(rois.astype(np.float64)), 2)
    assert target.numpy(result).dtype == np.float32


@pytest.mark.only("cuda")
def test_a_mix_of_places_names_both(target, rng):
    features, rois = case(rng)
    for mixed in [(features, target.array(rois)), (target.array(features), rois)]:
        for call in (lambda *arrays: roi_align(*arrays, 2), ROIAlign(2, 2, 1.0)):
            with pytest.raises(TypeError, match=r"features.*CPU|features.*CUDA") as told:
                call(*mixed)
            assert "rois" in str(told.value)
            assert "CPU" in str(told.value)
            assert "CUDA" in str(told.value)


@pytest.mark.only("cuda")
def test_a_mix_of_places_in_a_list(target, rng):
    features, rois = case(rng)
    with pytest.raises(TypeError, match=r"CPU.*CUDA|CUDA.*CPU"):
        roi_align(target.array(features), [rois[:, 1:]], 2)


@pytest.mark.only("cuda")
def test_out_in_another_place(target, rng):
    features, rois = case(rng)
    out = np.full((2, 2, 2, 2), -7, np.float32)
    with pytest.raises(TypeError, match="out"):
        roi_align(target.array(features), target.array(rois), 2, out=out)
    with pytest.raises(TypeError, match="out"):
        roi_align(features, rois, 2, out=target.array(out))
    assert_array_equal(out, -7)


@pytest.mark.only("cpu")
def test_arrays_that_convert_without_a_copy(target, rng):
    features, rois = case(rng)

    class Wrapped:
        def __init__(self, values):
            self.__array_interface__ = values.__array_interface__
            self.values = values

    result = roi_align(Wrapped(features), Wrapped(rois), 2)
    assert_array_equal(target.numpy(result), roi_align(features, rois, 2))


@pytest.mark.only("cpu")
def test_subclasses_of_numpy_arrays(target, rng, tmp_path):
    features, rois = case(rng)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert_array_equal(np.asarray(roi_align(mapped, rois, 2)), roi_align(features, rois, 2))


def run_python(code):
    variables = {name: value for name, value in os.environ.items() if "CUDASIM" not in name}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.only("cpu")
def test_a_cpu_call_imports_no_device_package(target):
    done = run_python("""
import sys
import numpy as np
heavy = ("numba.cuda", "numba_cuda", "cupy", "torch")
import numba_roialign
print([name for name in heavy if name in sys.modules])
features = np.ones((1, 1, 2, 2), np.float32)
result = numba_roialign.roi_align(features, np.array([[0, 0, 0, 1, 1]], np.float32), 1)
print([name for name in heavy if name in sys.modules], result.ravel())
""")
    assert done.stdout.splitlines() == ["[]", "[] [1.]"], done.stderr


@pytest.mark.only("cpu")
def test_a_device_array_without_the_extra_names_the_extra(target):
    done = run_python("""
import sys
import numpy as np
import numba_roialign

sys.modules["numba_cuda"] = sys.modules["numba.cuda"] = None  # as if not installed

class Array:
    def __init__(self, shape):
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(np.float32)
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (0, False), "version": 3, "strides": None
        }

try:
    numba_roialign.roi_align(Array((1, 1, 2, 2)), Array((1, 5)), 1)
except Exception as error:
    print(type(error).__name__, error)
""")
    assert "cuda12" in done.stdout, done.stderr
    assert "cuda13" in done.stdout, done.stderr


class OnlyDLPack:
    """An array on a device that offers DLPack alone."""

    def __init__(self, held):
        self.held = held

    def __dlpack_device__(self):
        return 2, 0


@pytest.mark.only("cuda")
def test_dlpack_alone_is_read_by_cupy(target, rng, monkeypatch):
    features, rois = (target.array(values) for values in case(rng))
    wrapped = OnlyDLPack(features), OnlyDLPack(rois)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        with pytest.raises(TypeError, match="import cupy"):
            roi_align(*wrapped, 2)

    class Library:
        ndarray = ()  # nothing is one of its arrays

        @staticmethod
        def from_dlpack(x):
            return x.held

    monkeypatch.setitem(sys.modules, "cupy", Library)
    expected = target.numpy(roi_align(features, rois, 2))
    assert_array_equal(target.numpy(roi_align(*wrapped, 2)), expected)


@pytest.mark.only("cpu")
def test_threads_may_call_at_once(target, rng):
    cases = []
    for _ in range(4):
        features = random_features(rng, (2, 17, 9, 9))
        cases.append((features, random_rois(rng, 9, features.shape)))
    expected = [roi_align(*arrays, 3) for arrays in cases]
    barrier = Barrier(len(cases))

    def call(arrays):
        barrier.wait(timeout=60)
        return [roi_align(*arrays, 3) for _ in range(10)]

    with ThreadPoolExecutor(len(cases)) as pool:
        results = list(pool.map(call, cases))
    for result, once in zip(results, expected, strict=True):
        for repeated in result:
            assert_array_equal(repeated, once)


def test_torch_tensors_on_the_cpu(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")
    features, rois = case(rng)
    expected = reference.roi_align(features, rois, (2, 2))
    for dtype, tolerance in [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-5)]:
        tensor = torch.from_numpy(features).to(dtype)
        result = roi_align(tensor, torch.from_numpy(rois), 2)
        assert type(result) is torch.Tensor
        assert result.dtype == dtype
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=0, atol=tolerance)
    coarse = torch.from_numpy(rois).bfloat16()
    tensor = torch.from_numpy(features)
    assert torch.equal(roi_align(tensor, coarse, 2), roi_align(tensor, coarse.float(), 2))
    out = torch.full(expected.shape, -7.0)
    channels_last = torch.from_numpy(features).contiguous(memory_format=torch.channels_last)
    assert roi_align(channels_last, torch.from_numpy(rois), 2, out=out) is out
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-5)


class CuPyArray:
    """An array in memory that a kernel reads without a device, with what CuPy's arrays have."""

    def __init__(self, values):
        self.values, self.itemsize = values, values.itemsize
        self.shape, self.strides, self.dtype = values.shape, values.strides, values.dtype
        self.data = SimpleNamespace(ptr=values.__array_interface__["data"][0])
        self.device = CuPyDevice()


class CuPyDevice(nullcontext):
    id = 0


def new_cupy_array(shape, dtype):
    return CuPyArray(np.full(shape, 7, dtype))


@pytest.mark.only("cuda")
@pytest.mark.skipif(not (SIMULATOR or COMPILED), reason="a device does not read this memory")
def test_arrays_as_cupy_has_them(target, rng, monkeypatch):
    stream = SimpleNamespace(get_current_stream=lambda device: SimpleNamespace(ptr=0))
    library = SimpleNamespace(ndarray=CuPyArray, empty=new_cupy_array, cuda=stream)
    monkeypatch.setitem(sys.modules, "cupy", library)
    features, rois = case(rng)
    strided = np.repeat(rois, 2, axis=1)[:, ::2]
    expected = roi_align(features, rois, 2)
    arrays = CuPyArray(features), CuPyArray(strided)
    for x, r in [arrays, (arrays[0], target.array(rois))]:
        result = roi_align(x, r, 2)
        assert type(result) is CuPyArray
        assert_allclose(result.values, expected, atol=1e-5)
    assert roi_align(*arrays, 2, out=result, workspace=Workspace()) is result
    assert_allclose(result.values, expected, atol=1e-5)
    result = roi_align(target.array(features), arrays[1], 2)
    assert_allclose(target.numpy(result), expected, atol=1e-5)
