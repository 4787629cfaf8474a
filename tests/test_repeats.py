"""A call on device arrays that look like those of one before, which was checked."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import (
    Workspace,
    _operator,
    roi_align,
    roi_align_backward,
    roi_align_box_backward,
)
from numba_roialign._repeats import repeats_of

from .conftest import COMPILED, SIMULATOR, misaligned, random_features, random_rois
from .test_dispatch import CuPyArray, CuPyDevice, new_cupy_array

pytestmark = pytest.mark.only("cuda")
SHAPE = 2, 3, 6, 7


@pytest.fixture(autouse=True)
def forgotten():
    repeats_of.cache_clear()
    yield
    repeats_of.cache_clear()


@pytest.fixture
def checks(monkeypatch):
    """Return what the checks of calls have been asked to look at so far."""
    checked, received = [], _operator.received

    def noted(name, *arrays):
        checked.append(name)
        return received(name, *arrays)

    monkeypatch.setattr(_operator, "received", noted)
    return checked


def arrays(rng, shape=SHAPE, count=3, bins=2, dtype=np.float32):
    """Return features, boxes and a gradient of what is pooled from them."""
    rois = random_rois(rng, count, shape)
    return (
        random_features(rng, shape, dtype),
        rois,
        random_features(rng, (count, shape[1], bins, bins), dtype),
    )


OPERATIONS = {
    "average": lambda x, r, g, w, **k: roi_align(x, r, 2, 0.75, **k),
    "maximum": lambda x, r, g, w, **k: roi_align(x, r, 2, mode="max", **k),
    "winners": lambda x, r, g, w, **k: roi_align(x, r, 2, mode="max", return_argmax=True, **k),
    "gradient": lambda x, r, g, w, **k: roi_align_backward(g, r, SHAPE, 0.75, **k),
    "of a maximum": lambda x, r, g, w, **k: roi_align_backward(
        g, r, SHAPE, mode="max", argmax=w, **k
    ),
    "boxes": lambda x, r, g, w, **k: roi_align_box_backward(g, x, r, 0.75, **k),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_is_not_checked_again(target, rng, checks, name):
    """Its result is that of its own arrays, with a workspace and a place for it or without."""
    call, workspace, out = OPERATIONS[name], Workspace(), None
    for given in ({}, {"workspace": workspace}):
        for _ in range(3):
            x, r, g = arrays(rng)
            w = roi_align(x, r, 2, mode="max", return_argmax=True)[1]
            expected = call(x, r, g, w)
            del checks[:]
            found = call(*map(target.array, (x, r, g, w)), **given)
            if not isinstance(found, tuple):
                found, expected = [found], [expected]
            for one, other in zip(found, expected, strict=True):
                assert_allclose(target.numpy(one), other, atol=1e-4)
            assert len(checks) == (out is None)
            out = found[0]
    for known in (False, True):
        del checks[:]
        result = call(*map(target.array, (x, r, g, w)), out=out, workspace=workspace)
        assert out is (result[0] if isinstance(result, tuple) else result)
        assert len(checks) == (not known)
        assert_allclose(target.numpy(out), expected[0], atol=1e-4)


DIFFERENT = {
    "dtype": dict(dtype=np.float64),
    "half": dict(dtype=np.float16),
    "map": dict(shape=(2, 3, 7, 6)),
    "images": dict(shape=(1, 3, 6, 7)),
    "boxes": dict(count=2),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_arrays_that_look_different_are_checked(target, rng, checks, name):
    x, r, _ = arrays(rng)
    roi_align(target.array(x), target.array(r), 2, 0.75, 2)
    x, r, _ = arrays(rng, **DIFFERENT[name])
    expected = roi_align(x, r, 2, 0.75, 2)
    del checks[:]
    found = target.numpy(roi_align(target.array(x), target.array(r), 2, 0.75, 2))
    assert len(checks) == 1
    assert found.dtype == x.dtype
    assert_allclose(found, expected, atol=2e-2 if x.dtype == np.float16 else 1e-5)


@pytest.mark.parametrize(
    "different",
    [
        {"output_size": 3},
        {"spatial_scale": 1.0},
        {"sampling_ratio": 1},
        {"aligned": True},
        {"mode": "max"},
        {"max_sampling_ratio": 1},
        {"convention": "torchvision_aligned"},
        {"validate": True},
    ],
    ids=str,
)
def test_calls_that_ask_for_something_else_are_checked(target, rng, checks, different):
    x, r, _ = arrays(rng)
    asked = {"output_size": 2, "spatial_scale": 0.75, "sampling_ratio": -1}
    given = target.array(x), target.array(r)
    roi_align(*given, **asked)
    expected = roi_align(x, r, **{**asked, **different})
    del checks[:]
    found = roi_align(*given, **{**asked, **different})
    assert len(checks) == 1
    assert_allclose(target.numpy(found), expected, atol=1e-5)


def test_strides_tell_arrays_apart(target, rng, checks):
    x, r, _ = arrays(rng, shape=(2, 6, 6, 6))
    turned = target.permute(target.array(x), (0, 2, 3, 1))
    expected = roi_align(x.transpose(0, 2, 3, 1), r, 2)
    for same in (target.array(x), turned):
        roi_align(same, target.array(r), 2)
    assert len(checks) == 2
    assert_allclose(target.numpy(roi_align(turned, target.array(r), 2)), expected, atol=1e-5)
    assert len(checks) == 2


def test_what_is_refused_is_refused_again(target, rng):
    x, r, _ = arrays(rng)
    x, r, out = target.array(x), target.array(r), target.array(np.zeros((3, 3, 2, 2), np.float32))
    small = target.array(np.zeros((3, 3, 2, 1), np.float32))
    for _ in range(3):
        for keywords, error, match in [
            ({"out": small}, ValueError, "out must be"),
            ({"layout": ["NCHW"]}, ValueError, "layout"),
            ({"layout": "CHWN"}, ValueError, "layout"),
            ({"stream": "0"}, TypeError, "stream"),
            ({"workspace": 3}, TypeError, "workspace"),
            ({"validate": 3}, TypeError, "validate"),
            ({"return_argmax": True}, ValueError, "return_argmax"),
        ]:
            with pytest.raises(error, match=match):
                roi_align(x, r, 2, **{"out": out, **keywords})
        with pytest.raises(ValueError, match="rois"):
            roi_align(x, target.array(np.zeros((3, 4), np.float32)), 2)
        roi_align(x, r, 2, out=out)


def test_a_workspace_that_serves_a_call_refuses_another(target, rng):
    x, r, _ = arrays(rng)
    x, r, workspace = target.array(x), target.array(r), Workspace()
    for _ in range(2):
        roi_align(x, r, 2, workspace=workspace)
    workspace._begin()
    with pytest.raises(RuntimeError, match="one call at a time"):
        roi_align(x, r, 2, workspace=workspace)
    workspace._end()
    roi_align(x, r, 2, workspace=workspace)


@pytest.fixture
def cupy(monkeypatch):
    if not (SIMULATOR or COMPILED):
        pytest.skip("a device does not read this memory")
    stream = SimpleNamespace(get_current_stream=lambda device: SimpleNamespace(ptr=0))
    library = SimpleNamespace(ndarray=CuPyArray, empty=new_cupy_array, cuda=stream)
    monkeypatch.setitem(sys.modules, "cupy", library)


def test_where_arrays_lie_is_looked_at_in_every_call(target, rng, cupy, checks):
    """They look alike, and one is misaligned, or lies where the result goes."""
    x, r, out = arrays(rng)
    expected = roi_align(x, r, 2)
    memory = np.zeros(2 * x.size, np.float32)
    inside = memory[: x.size].reshape(x.shape)
    inside[...] = x
    beside = memory[x.size :][: out.size].reshape(out.shape)
    del checks[:]
    for _ in range(2):
        roi_align(CuPyArray(x), CuPyArray(r), 2, out=CuPyArray(out))
        assert_allclose(out, expected, atol=1e-5)
    assert len(checks) == 1
    roi_align(CuPyArray(inside), CuPyArray(r), 2, out=CuPyArray(beside))
    assert_allclose(beside, expected, atol=1e-5)
    assert len(checks) == 1
    over = memory[x.size - 1 :][: out.size].reshape(out.shape)
    before = memory.copy()
    for _ in range(2):
        with pytest.raises(ValueError, match="out overlaps features"):
            roi_align(CuPyArray(inside), CuPyArray(r), 2, out=CuPyArray(over))
        for wrong in [
            (misaligned(x), r, out),
            (x, misaligned(r), out),
            (x, r, misaligned(out)),
        ]:
            given = [*map(CuPyArray, wrong)]
            with pytest.raises(ValueError, match="misaligned"):
                roi_align(*given[:2], 2, out=given[2])
    assert_array_equal(memory, before)


def test_a_device_that_is_not_current(target, rng, cupy, monkeypatch):
    """Every call is made with the arrays' device current, by its plan there."""
    from numba import cuda

    from numba_roialign._cuda import queue

    entered, streams = [], {"default_stream": cuda.default_stream}

    @contextmanager
    def current(device):
        entered.append(device)
        yield

    x, r, _ = arrays(rng)
    x, r, expected = CuPyArray(x), CuPyArray(r), roi_align(x, r, 2)
    monkeypatch.setattr(queue, "current_device", lambda: 1)
    for _ in range(2):
        monkeypatch.setattr(queue, "cuda", SimpleNamespace(gpus={0: current(0)}, **streams))
        assert_allclose(roi_align(x, r, 2).values, expected, atol=1e-5)
    assert entered == [0, 0]
    monkeypatch.setattr(CuPyDevice, "id", 1)
    assert_allclose(roi_align(x, r, 2).values, expected, atol=1e-5)
    assert entered == [0, 0]
