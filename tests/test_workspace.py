"""A call with `out` and a workspace does nothing on the device but launch kernels."""

import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numba_roialign import (
    ROIAlign,
    ROIAlignGrad,
    Workspace,
    roi_align,
    roi_align_backward,
    roi_align_box_backward,
)

from .conftest import COMPILED, SIMULATOR, random_features, random_rois


def operations(rng, target):
    """Return calls of every operation as functions of keywords, and an `out` for each."""
    shape = 2, 3, 7, 9
    features, grad = random_features(rng, shape), random_features(rng, (3, 3, 2, 2))
    rois = random_rois(rng, 3, shape)
    winners = np.zeros(grad.shape, np.int64)
    x, g, r, w = (target.array(values) for values in (features, grad, rois, winners))
    last = np.zeros((3, 2, 2, 9))
    halves = target.array(grad.astype(np.float16))
    pool, mindspore = ROIAlign(2, 2, 1.0), ROIAlignGrad(shape, 2, 2, 1.0)
    return {
        "average": (lambda **k: roi_align(x, r, 2, **k), grad),
        "channels last": (
            lambda **k: roi_align(x, r, 2, layout="NHWC", **k),
            last,
        ),
        "maximum": (lambda **k: roi_align(x, r, 2, mode="max", **k), grad),
        "gradient": (lambda **k: roi_align_backward(g, r, shape, **k), features),
        "gradient in half": (lambda **k: roi_align_backward(halves, r, shape, **k), features),
        "of a maximum": (
            lambda **k: roi_align_backward(g, r, shape, mode="max", argmax=w, **k),
            features,
        ),
        "boxes": (lambda **k: roi_align_box_backward(g, x, r, **k), rois),
        "ROIAlign": (lambda **k: pool(x, r, **k), grad),
        "ROIAlignGrad": (lambda **k: mindspore(g, r, **k), features),
    }


NAMES = list(operations(np.random.default_rng(0), type("Host", (), {"array": lambda _, x: x})()))


# Averages by tables in shared memory. An adaptive one of planes keeps those of boxes of wide bins.
WITHOUT_SCRATCH = ("channels last", "ROIAlign")


@pytest.mark.only("cuda")
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_was_made_before_only_launches(target, rng, name, monkeypatch):
    from numba import cuda

    from numba_roialign import _families
    from numba_roialign._cuda import arrays

    call, like = operations(rng, target)[name]
    expected = target.numpy(call())
    out = target.array(np.full(like.shape, -7, expected.dtype))
    workspace = Workspace()
    assert call(out=out, workspace=workspace) is out
    assert (workspace.nbytes > 0) == (name not in WITHOUT_SCRATCH)
    assert call(out=out, workspace=workspace, validate=True) is out
    held = workspace.nbytes
    out = target.array(np.full(like.shape, -7, expected.dtype))

    def forbidden(*_, **__):
        raise AssertionError("it allocates, copies or waits")

    with monkeypatch.context() as patch:
        for holder, function in [
            *((cuda, f) for f in ("device_array", "to_device", "pinned_array", "synchronize")),
            (_families.NumbaCUDA, "empty"),
            (arrays, "fetch"),
            (type(out), "copy_to_host"),
            (type(out), "copy_to_device"),
        ]:
            patch.setattr(holder, function, forbidden, raising=False)
        call(out=out, workspace=workspace)
    assert workspace.nbytes == held
    assert_array_equal(target.numpy(out), expected)


@pytest.mark.only("cuda")
def test_other_sizes_in_one_workspace(target, rng):
    workspace = Workspace()
    for shape, count, bins in [((1, 2, 5, 6), 1, 1), ((2, 3, 9, 8), 4, 3), ((1, 2, 5, 6), 1, 1)]:
        features, rois = random_features(rng, shape), random_rois(rng, count, shape)
        x, r = target.array(features), target.array(rois)
        for mode in ("avg", "max"):
            expected = target.numpy(roi_align(x, r, bins, mode=mode))
            found = roi_align(x, r, bins, mode=mode, workspace=workspace)
            assert_array_equal(target.numpy(found), expected)


@pytest.mark.only("cuda")
def test_a_plan_serves_all_arrays_that_look_alike(target, rng):
    """Of four calls the last three are made by the plan of the first, each on arrays elsewhere."""
    from numba_roialign._cuda.plans import plan_of

    shape, given, plan_of_before = (2, 3, 7, 9), [], plan_of.cache_info()
    for _ in range(4):
        features, rois = random_features(rng, shape), random_rois(rng, 3, shape)
        given.append((target.array(features), target.array(rois)))  # they stay, so none lies alike
        expected = roi_align(features, rois, 2, 0.75)
        found = roi_align(*given[-1], 2, 0.75)
        np.testing.assert_allclose(target.numpy(found), expected, atol=1e-5)
    assert plan_of.cache_info().hits - plan_of_before.hits == 3


@pytest.mark.only("cuda")
def test_a_call_too_long_for_a_plan(target, rng, monkeypatch):
    from numba_roialign._cuda import plans

    for name, (call, _) in operations(rng, target).items():
        expected = target.numpy(call())
        with monkeypatch.context() as patch:
            patch.setattr(plans, "MOST_LAUNCHES", 0)
            patch.delattr(plans.Plan, "run")
            plans.plan_of.cache_clear()
            assert_array_equal(target.numpy(call()), expected, err_msg=name)
        plans.plan_of.cache_clear()


@pytest.mark.only("cuda")
def test_the_number_of_launches(target, rng, monkeypatch):
    """Each costs the host some 2 us and the device one: two where boxes may have wide bins."""
    from numba_roialign._cuda.launches import Launch

    launched, make = [], Launch.make

    def counted(launch, *arguments):
        launched.append(launch)
        return make(launch, *arguments)

    monkeypatch.setattr(Launch, "make", counted)
    counts = {}
    for name, (call, _) in operations(rng, target).items():
        launched.clear()
        call()
        counts[name] = len(launched)
    assert counts == {
        "average": 2,
        "channels last": 1,
        "maximum": 2,
        "gradient": 4,
        "gradient in half": 4,
        "of a maximum": 4,
        "boxes": 16,
        "ROIAlign": 1,
        "ROIAlignGrad": 4,
    }


@pytest.mark.only("cuda")
def test_what_is_no_workspace(target):
    features, rois = (target.array(np.zeros(shape, np.float32)) for shape in [(1, 1, 2, 2), (1, 5)])
    with pytest.raises(TypeError, match="workspace"):
        roi_align(features, rois, 1, workspace=1 << 20)


@pytest.mark.only("cpu")
def test_a_workspace_is_refused_on_the_cpu(target):
    features, rois = np.zeros((1, 1, 2, 2), np.float32), np.zeros((1, 5), np.float32)
    with pytest.raises(TypeError, match=r"workspace=.*CPU"):
        roi_align(features, rois, 1, workspace=Workspace())


def test_two_threads_in_one_workspace():
    workspace, told = Workspace(), []

    def enter():
        try:
            workspace._begin()
            workspace._end()
        except RuntimeError as error:
            told.append(str(error))

    workspace._begin()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    workspace._end()
    assert "one call at a time" in told[0]
    enter()
    assert len(told) == 1


@pytest.mark.only("cuda")
@pytest.mark.skipif(SIMULATOR or COMPILED, reason="graphs need a device")
def test_capture_in_a_graph(target, rng):
    """With CuPy, whose streams capture; a replay pools what the arrays hold by then."""
    cupy = pytest.importorskip("cupy", reason="CuPy captures the graph")
    shape = 2, 16, 12, 13
    features = cupy.asarray(random_features(rng, shape))
    rois = cupy.asarray(random_rois(rng, 5, shape))
    out, workspace = cupy.zeros((5, 16, 3, 3), cupy.float32), Workspace()
    grad, grad_out = cupy.ones_like(out), cupy.empty_like(features)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()  # the stream does not wait for what made the arrays

    def call():
        roi_align(features, rois, 3, out=out, workspace=workspace)
        roi_align_backward(grad, rois, shape, out=grad_out, workspace=gradient_workspace)

    gradient_workspace = Workspace()
    with stream:
        call()
        stream.begin_capture()
        call()
        graph = stream.end_capture()
        features *= 2
        grad *= 3
        graph.launch(stream)
    stream.synchronize()
    cupy.testing.assert_array_equal(out, roi_align(features, rois, 3))
    cupy.testing.assert_array_equal(grad_out, roi_align_backward(grad, rois, shape))
