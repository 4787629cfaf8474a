"""The operator of PyTorch: gradients, tracing, and what it does with tensors of every kind."""

import doctest
import importlib
import os
import subprocess
import sys

import pytest
from numpy.testing import assert_allclose, assert_array_equal

import numba_roialign.onnx
from numba_roialign import InvalidRoIError, _families, roi_align_backward, roi_align_box_backward
from numba_roialign import roi_align as numpy_roi_align

from .test_processes import layers, run_script

if os.environ.get("NUMBA_ROIALIGN_REQUIRE_TORCH"):
    torch = importlib.import_module("torch")
else:
    torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")
roi_align = importlib.import_module("numba_roialign.torch").roi_align

pytestmark = pytest.mark.only("cpu")
BOXES = [[0, 0.3, 0.4, 5.2, 4.1], [1, -1.2, 2.6, 3.3, 7.4], [1, 4.4, 3.9, 1.1, 0.7]]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def case(rng, dtype=torch.float64, shape=(2, 3, 6, 7)):
    features = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    return features.requires_grad_(), torch.tensor(BOXES, dtype=dtype)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [2, -1])
def test_gradcheck_of_features_and_boxes(rng, sampling, aligned, layout):
    features, rois = case(rng)
    if layout == "NHWC":
        features = features.detach().permute(0, 2, 3, 1).contiguous().requires_grad_()
    columns = rois[:, 1:].clone().requires_grad_()

    def pool(features, columns):
        boxes = torch.cat([rois[:, :1], columns], dim=1)
        return roi_align(features, boxes, (2, 3), 0.5, sampling, aligned, layout=layout)

    assert torch.autograd.gradcheck(pool, (features, columns))


def test_gradgradcheck_of_features(rng):
    features, rois = case(rng, shape=(2, 1, 4, 4))
    assert torch.autograd.gradgradcheck(lambda x: roi_align(x, rois, 2, 0.5, 2), features)


@pytest.mark.parametrize("mode", ["max", "corner_max"])
def test_gradcheck_of_maxima(rng, mode):
    features, rois = case(rng)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 2, 0.5, 2, mode=mode), features)
    pooled = roi_align(features, rois.requires_grad_(), 2, mode=mode)
    with pytest.raises(NotImplementedError, match="mode"):
        pooled.sum().backward()


def operator_arguments(features, rois, mode="avg"):
    convention = [0.0, -0.5, 0.0, -float("inf"), 0.0, 0.0, 0.0]
    return features, rois, 2, 3, 0.5, 0.5, 2, 2, 2**30, convention, mode, "NCHW", None


# PyTorch's own checks warn of what they do themselves.
own_warnings = pytest.mark.filterwarnings("ignore:The .grad attribute")


@own_warnings
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_opcheck(rng, mode):
    features, rois = case(rng, torch.float32)
    rois.requires_grad_(mode == "avg")
    operator = torch.ops.numba_roialign.roi_align.default
    torch.library.opcheck(operator, operator_arguments(features, rois, mode))


@own_warnings
def test_opcheck_of_the_gradients(rng):
    features, rois = case(rng, torch.float32)
    _, _, *arguments = operator_arguments(features, rois)
    grad, none = torch.randn(3, 3, 2, 3, generator=rng), torch.empty(0, dtype=torch.int64)
    operators = torch.ops.numba_roialign
    torch.library.opcheck(
        operators.roi_align_backward.default,
        (grad.requires_grad_(), rois, none, list(features.shape), *arguments[2:]),
    )
    torch.library.opcheck(
        operators.roi_align_box_backward.default,
        (grad.detach(), features.detach(), rois, *arguments[2:8], "NCHW", None),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_through(rng, dynamic):
    features, rois = case(rng, torch.float32)

    def loss(features, rois):
        return (roi_align(features * 2, rois, (2, 3), 0.5, aligned=True) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (3, 2):
        features.grad = None
        boxes = rois[:count].clone().requires_grad_()
        compiled(features, boxes).backward()
        traced, features.grad = (features.grad, boxes.grad), None
        boxes.grad = None
        loss(features, boxes).backward()
        assert_allclose(traced[0], features.grad, atol=1e-5)
        assert_allclose(traced[1], boxes.grad, atol=1e-5)


def test_compile_traces_through_sizes_it_leaves_open(rng):
    def pooled(features, rois):
        return roi_align(features, rois, (2, features.shape[2] // 3), features.shape[3] / 14)

    compiled = torch.compile(pooled, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in (2, 3, 6, 7), (2, 3, 9, 14):
        features, rois = (x.detach() for x in case(rng, torch.float32, shape))
        assert_array_equal(compiled(features, rois), pooled(features, rois))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(rng, dtype):
    features, rois = case(rng, dtype)
    boxes = rois.float().requires_grad_()
    pooled = roi_align(features, boxes, 2, 0.5, 2)
    pooled.sum().backward()
    assert pooled.dtype == features.grad.dtype == dtype
    assert boxes.grad.dtype == torch.float32
    wide = features.detach().double().requires_grad_()
    exact_boxes = boxes.detach().double().requires_grad_()
    exact = roi_align(wide, exact_boxes, 2, 0.5, 2)
    exact.sum().backward()
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    for one, other in [
        (pooled, exact), (features.grad, wide.grad), (boxes.grad, exact_boxes.grad)
    ]:  # fmt: skip
        assert_allclose(one.detach().double(), other.detach(), rtol=tolerance, atol=tolerance)


def test_it_is_the_operator_on_numpy(rng):
    features, rois = case(rng, torch.float32)
    rois.requires_grad_()
    pooled = roi_align(features, rois, 2, 0.5, 2, True)
    grad = torch.randn(pooled.shape, generator=rng)
    pooled.backward(grad)
    arrays = features.detach().numpy(), rois.detach().numpy()
    expected = numpy_roi_align(*arrays, 2, 0.5, 2, True)
    assert_array_equal(pooled.detach(), expected)
    g = grad.numpy()
    spread = roi_align_backward(g, arrays[1], tuple(features.shape), 0.5, 2, True)
    assert_array_equal(features.grad, spread)
    assert_array_equal(rois.grad, roi_align_box_backward(g, *arrays, 0.5, 2, True))


def test_channels_last_stays_channels_last(rng):
    features, rois = case(rng, torch.float32, (2, 8, 6, 7))
    plain = roi_align(features, rois, 2, 0.5, 2)
    grad = torch.randn(plain.shape, generator=rng)
    plain.backward(grad)
    last = features.detach().to(memory_format=torch.channels_last).requires_grad_()
    pooled = roi_align(last, rois, 2, 0.5, 2)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    pooled.backward(grad.to(memory_format=torch.channels_last))
    assert_allclose(pooled.detach(), plain.detach(), atol=1e-6)
    assert_allclose(last.grad, features.grad, atol=1e-6)
    assert last.grad.is_contiguous(memory_format=torch.channels_last)


def test_lists_argmax_and_errors(rng):
    features, rois = case(rng, torch.float32)
    boxes = [rois[:1, 1:], rois[1:, 1:]]
    assert_array_equal(
        roi_align(features, boxes, 2).detach(), roi_align(features, rois, 2).detach()
    )
    assert roi_align(features, [], 2).shape == (0, 3, 2, 2)
    pooled, argmax = roi_align(features, rois, 2, mode="max", return_argmax=True)
    assert argmax.dtype == torch.int64
    assert not argmax.requires_grad
    assert pooled.requires_grad
    rois[1, 0] = 5
    with pytest.raises(InvalidRoIError, match="row 1"):
        roi_align(features, rois, 2)
    with pytest.raises(ValueError, match="features"):
        roi_align(features[0], rois, 2)
    with pytest.raises(ValueError, match="rois"):
        roi_align(features, rois[:, :4], 2)
    with pytest.raises(ValueError, match="return_argmax"):
        roi_align(features, rois, 2, return_argmax=True)
    for bad, match in (rois.numpy(), "rois"), ([rois[:, 1:], [1]], r"rois\[1\]"):
        with pytest.raises(TypeError, match=match):
            roi_align(features, bad, 2)
    with pytest.raises(ValueError, match=r"rois\[1\] must be \(K, 4\)"):
        roi_align(features, [rois[:, 1:], rois], 2)
    with pytest.raises(TypeError, match="features"):
        roi_align(features.detach().numpy(), rois, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
def test_lists_of_narrow_boxes_keep_the_numbers_of_images(dtype):
    images = 2100  # float16 counts to 2048, bfloat16 and uint8 to 256
    features = torch.arange(float(images)).reshape(images, 1, 1, 1)
    boxes = [torch.tensor([[0, 0, 1, 1]], dtype=dtype)] * images
    assert_array_equal(roi_align(features, boxes, 1).flatten(), torch.arange(float(images)))


def test_the_operator_on_arrays_refuses_to_lose_a_gradient(rng):
    features, rois = case(rng, torch.float32)
    with pytest.raises(TypeError, match=r"numba_roialign\.torch"):
        numpy_roi_align(features, rois, 2)
    with torch.no_grad():
        assert numpy_roi_align(features, rois, 2).shape == (3, 3, 2, 2)


def test_a_gradient_by_numbers_that_out_overwrote_is_refused(rng):
    features, rois = case(rng, torch.float32)
    out, weight = torch.zeros(3, 3, 2, 2), torch.ones(3, 3, 2, 2, requires_grad=True)
    total = (out * weight).sum()
    numpy_roi_align(features.detach(), rois, 2, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    with torch.inference_mode():
        numpy_roi_align(features.detach(), rois, 2, out=torch.zeros(3, 3, 2, 2))


@pytest.mark.parametrize("convert", [torch.Tensor.detach, lambda x: x.detach().numpy()])
def test_the_compiler_stays_out_of_the_operators_on_arrays(rng, convert):
    features, rois = (convert(x) for x in case(rng, torch.float32))
    compiled = torch.compile(lambda *arrays: numpy_roi_align(*arrays, 2) * 2, backend="aot_eager")
    for _ in range(2):
        assert_array_equal(compiled(features, rois), numpy_roi_align(features, rois, 2) * 2)


def test_the_compiler_stays_out_of_more_kinds_of_calls_than_it_compiles(rng):
    """It compiles so many and then makes calls as they are, and would trace what they call."""
    features, rois = (x.detach() for x in case(rng, torch.float32))

    def pooled(features, rois, **how):
        return numpy_roi_align(features, rois, 2, **how) * 2

    compiled = torch.compile(pooled, backend="aot_eager")
    hows = [{}, {"aligned": True}, {"mode": "max"}, {"validate": True}, {"sampling_ratio": 2}]
    for how in [*hows, *[{"spatial_scale": 1 / n} for n in range(1, 20)]]:
        assert_array_equal(compiled(features, rois, **how), pooled(features, rois, **how))


def test_a_call_outside_of_the_compiler_does_not_ask_it_to_stay_out(rng, monkeypatch):
    if not hasattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback"):
        pytest.skip("this PyTorch does not tell whether its compiler is at work")
    features, rois = (x.detach() for x in case(rng, torch.float32))
    monkeypatch.delattr(torch.compiler, "disable")
    assert _families.untraced(numpy_roi_align.__wrapped__)(features, rois, 2).shape == (3, 3, 2, 2)


def test_no_boxes_have_gradients_too(rng):
    features, rois = case(rng, torch.float32)
    none = rois[:0].requires_grad_()
    roi_align(features, none, 2).sum().backward()
    assert (features.grad == 0).all()
    assert none.grad.shape == (0, 5)


def test_examples():
    failed, attempted = doctest.testmod(importlib.import_module("numba_roialign.torch"))
    assert attempted
    assert not failed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_what_kernels_are_told_of_a_tensor(dtype):
    """A device's family looks at tensors as it would there: it reads none of their numbers."""
    from numba_roialign._families import TorchCUDA

    tensor = torch.zeros(2, 3, 4, 6).to(getattr(torch, dtype))[:, 1:, :, ::2].transpose(1, 3)
    array, size = TorchCUDA.array(tensor), tensor.element_size()
    assert array.pointer == tensor.data_ptr()
    assert array.look == ((2, 3, 4, 2), (72 * size, 2 * size, 6 * size, 24 * size), dtype, size)
    assert array.owner is tensor
    pointer, look = TorchCUDA.seen(tensor)
    assert pointer == tensor.data_ptr()
    alike = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    assert TorchCUDA.seen(alike)[1] == look
    if tensor.is_floating_point():  # whose gradient a call may have to refuse
        assert TorchCUDA.seen(tensor.detach().requires_grad_())[1] != look
    boxes = TorchCUDA.boxes(tensor)
    assert boxes.dtype == ("float32" if dtype == "bfloat16" else dtype)
    assert (boxes.owner is tensor) == (dtype != "bfloat16")


def test_arrays_of_several_families_in_one_call(rng):
    """Each is read as its own family has it; the result is of the family of the features."""
    features, rois = case(rng, torch.float32)
    features, rois = features.detach(), rois.detach()
    grad = torch.ones(len(rois), features.shape[1], 2, 2)
    expected = roi_align_box_backward(grad, features, rois)
    found = roi_align_box_backward(grad.numpy(), features, rois.numpy())
    assert torch.equal(found, expected)
    images, boxes = rois[:, 0].long(), rois[:, 1:].contiguous()
    pooled = numba_roialign.onnx.roi_align(features, boxes, images)
    assert torch.equal(numba_roialign.onnx.roi_align(features, boxes, images.numpy()), pooled)
    assert torch.equal(numba_roialign.onnx.roi_align(features, boxes.numpy(), images), pooled)


def test_the_package_does_not_import_torch():
    script = "import sys, numba_roialign, numba_roialign.onnx; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_training_finds_the_box(rng):
    """What gradients of boxes are for: a box slides to where its features look as asked."""
    ramp = torch.arange(20.0, dtype=torch.float64)
    features = torch.stack([ramp.expand(20, 20), ramp[:, None].expand(20, 20)])[None]
    wanted = roi_align(features, torch.tensor([[0, 6.0, 5, 12, 13]]).double(), 3, 1.0, 2)
    corners = torch.tensor([[2.0, 3, 9, 9]], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([corners], max_iter=50)

    def loss():
        optimiser.zero_grad()
        boxes = torch.cat([torch.zeros(1, 1, dtype=torch.float64), corners], dim=1)
        error = ((roi_align(features, boxes, 3, 1.0, 2) - wanted) ** 2).sum()
        error.backward()
        return error

    optimiser.step(loss)
    assert_allclose(corners.detach(), [[6, 5, 12, 13]], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_invalid_row_pools_nan(rng, dtype):
    features, rois = case(rng, dtype)
    rois[1, 0] = 7
    pooled = numpy_roi_align(features.detach(), rois, 2, validate=False)
    assert pooled[1].isnan().all()
    assert pooled[[0, 2]].isfinite().all()


LOADER = """
import torch
from numba_roialign.torch import roi_align as torch_roi_align

class Pooled(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, n):
        rois = torch.from_numpy(ROIS) + torch.tensor([0.0, n, n, n, n])
        return torch_roi_align(torch.from_numpy(FEATURES), rois, 7)
"""


@layers
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_in_the_workers_of_a_loader(tmp_path, layer, start):
    body = f"""
loader = torch.utils.data.DataLoader(
    Pooled(), batch_size=2, num_workers=2, multiprocessing_context={start!r}
)
assert torch.equal(torch.cat(list(loader)), torch.stack([Pooled()[n] for n in range(8)]))
"""
    run_script(tmp_path, layer, body, LOADER)
