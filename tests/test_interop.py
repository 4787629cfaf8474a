"""Arrays of other libraries on a CUDA device: no copies, results of the same family, their stream.

These need a device and the library; elsewhere each says what is missing.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from numba_roialign import InvalidRoIError, Workspace, roi_align, roi_align_backward

from .conftest import COMPILED, SIMULATOR, cuda_problem, random_features, random_rois

pytestmark = [
    pytest.mark.only("cuda"),
    pytest.mark.skipif(SIMULATOR or COMPILED or bool(cuda_problem()), reason="needs a CUDA device"),
]
SHAPE = 2, 5, 11, 13


@pytest.fixture
def case(rng):
    features, rois = random_features(rng, SHAPE), random_rois(rng, 6, SHAPE)
    return features, rois, roi_align(features, rois, 3, sampling_ratio=2)


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is an optional peer")


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no device")
    return torch


def test_cupy_arrays(target, case, cupy):
    features, rois, expected = case
    x, r = cupy.asarray(features), cupy.asarray(rois)
    result = roi_align(x, r, 3, sampling_ratio=2)
    assert type(result) is cupy.ndarray
    assert result.device == x.device
    assert_allclose(result.get(), expected, atol=1e-5)
    out = cupy.full(expected.shape, -7, cupy.float32)
    assert roi_align(x, r, 3, sampling_ratio=2, out=out) is out
    assert_allclose(out.get(), expected, atol=1e-5)
    with pytest.raises(InvalidRoIError, match="row 0"):
        roi_align(x, cupy.full_like(r, cupy.nan), 3, validate=True)


def test_views_of_cupy_arrays_are_read_in_place(target, case, cupy):
    features, rois, expected = case
    x = cupy.asarray(features.transpose(0, 2, 3, 1).copy())
    before = cupy.get_default_memory_pool().used_bytes()
    moved = x.transpose(0, 3, 1, 2)
    assert moved.data.ptr == x.data.ptr
    result = roi_align(moved, cupy.asarray(rois), 3, sampling_ratio=2)
    assert_allclose(result.get(), expected, atol=1e-5)
    del moved
    assert cupy.get_default_memory_pool().used_bytes() - before < x.nbytes


def test_the_current_stream_of_cupy_is_kept_in_order(target, case, cupy):
    """Pooling comes after what a stream that does not wait for others was given before it."""
    features, rois, expected = case
    stream, work = cupy.cuda.Stream(non_blocking=True), cupy.ones((2048, 2048), cupy.float32)
    with stream:
        x, r = cupy.zeros(SHAPE, cupy.float32), cupy.asarray(rois)
        for _ in range(20):
            work = work @ work * 1e-4
        x[...] = cupy.asarray(features)
        result = roi_align(x, r, 3, sampling_ratio=2)
    stream.synchronize()
    assert_allclose(result.get(), expected, atol=1e-5)


def test_a_stream_that_is_given(target, case, cupy):
    features, rois, expected = case
    x, r = cupy.asarray(features), cupy.asarray(rois)
    cupy.cuda.Device().synchronize()
    stream, workspace = cupy.cuda.Stream(non_blocking=True), Workspace()
    for given in (stream, stream.ptr):
        result = roi_align(x, r, 3, sampling_ratio=2, stream=given, workspace=workspace)
        stream.synchronize()
        assert_allclose(result.get(), expected, atol=1e-5)


def test_torch_tensors(target, case, torch):
    features, rois, expected = case
    x, r = (torch.from_numpy(values).cuda() for values in (features, rois))
    result = roi_align(x, r, 3, sampling_ratio=2)
    assert type(result) is torch.Tensor
    assert result.device == x.device
    assert_allclose(result.cpu().numpy(), expected, atol=1e-5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_allclose(roi_align(last, r, 3, sampling_ratio=2).cpu().numpy(), expected, atol=1e-5)
    for dtype, tolerance in [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float64, 1e-5)]:
        result = roi_align(x.to(dtype), r, 3, sampling_ratio=2)
        assert result.dtype == dtype
        assert_allclose(result.double().cpu().numpy(), expected, atol=tolerance)


def test_torch_tensors_that_require_a_gradient(target, case, torch):
    from numba_roialign.torch import roi_align as differentiable

    features, rois, expected = case
    x, r = torch.from_numpy(features).cuda().requires_grad_(), torch.from_numpy(rois).cuda()
    with pytest.raises(TypeError, match=r"numba_roialign\.torch"):
        roi_align(x, r, 3)
    with torch.no_grad():
        result = roi_align(x, r, 3, sampling_ratio=2)
    assert_allclose(result.cpu().numpy(), expected, atol=1e-5)
    differentiable(x, r, 3, sampling_ratio=2).sum().backward()
    ones = np.ones(expected.shape, np.float32)
    gradient = roi_align_backward(ones, rois, SHAPE, sampling_ratio=2)
    assert_allclose(x.grad.cpu().numpy(), gradient, atol=1e-4)


def test_a_graph_of_torch_with_a_workspace_or_without(target, case, torch):
    features, rois, _ = case
    x, r = (torch.from_numpy(values).cuda() for values in (features, rois))
    for keywords in ({}, {"workspace": Workspace()}):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            roi_align(x, r, 3, **keywords)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = roi_align(x, r, 3, **keywords)
        x.mul_(-1)
        graph.replay()
        torch.cuda.synchronize()
        assert_allclose(result.cpu().numpy(), roi_align(x, r, 3).cpu().numpy())


def test_arrays_of_jax_through_their_protocol(target, case):
    jax = pytest.importorskip("jax", reason="JAX is an optional peer")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX sees no device")
    features, rois, expected = case
    x, r = (jax.block_until_ready(jax.numpy.asarray(values)) for values in (features, rois))
    from numba import cuda

    result = roi_align(x, r, 3, sampling_ratio=2)
    assert hasattr(result, "__cuda_array_interface__")
    cuda.synchronize()
    assert_allclose(cuda.as_cuda_array(result).copy_to_host(), expected, atol=1e-5)


SECOND_PROCESS = """
import numpy as np
from numba import cuda
from numba_roialign import roi_align
from numba_roialign._cuda.average import schedule_few

features, rois = cuda.to_device(np.ones((1, 1, 4, 4), "f")), cuda.to_device(np.zeros((1, 5), "f"))
print(roi_align(features, rois, 1).copy_to_host().item())
stats = schedule_few.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    told = [
        subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert told == [["1.0", "0 1"], ["1.0", "1 0"]]


def test_the_device_of_the_arrays_is_used_whichever_is_current(target, case):
    from numba import cuda

    if len(cuda.gpus) < 2:
        pytest.skip("needs two devices")
    features, rois, expected = case
    with cuda.gpus[1]:
        x, r = cuda.to_device(features), cuda.to_device(rois)
    with cuda.gpus[0]:
        result = roi_align(x, r, 3, sampling_ratio=2)
        other = cuda.to_device(rois)
        with pytest.raises(TypeError, match=r"device 1.*device 0"):
            roi_align(x, other, 3)
    assert result.gpu_data.context.device.id == 1
    with cuda.gpus[1]:
        assert_allclose(result.copy_to_host(), expected, atol=1e-5)


def test_the_device_of_tensors_is_used_whichever_is_current(target, case, torch):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    features, rois, expected = case
    x, r = (torch.from_numpy(values).to("cuda:1") for values in (features, rois))
    result = roi_align(x, r, 3, sampling_ratio=2)
    assert result.device == x.device
    assert_allclose(result.cpu().numpy(), expected, atol=1e-5)
