"""On which stream a call runs."""

import ctypes

import numpy as np
import pytest

import numba_roialign.onnx
from numba_roialign import (
    ROIAlign,
    ROIAlignGrad,
    roi_align,
    roi_align_backward,
    roi_align_box_backward,
)

from .conftest import COMPILED, SIMULATOR

FEATURES = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
ROIS = np.array([[0, 0, 0, 4, 4]], np.float32)
GRAD = np.ones((1, 1, 2, 2), np.float32)


def calls(place):
    """Return every public operation as a function of its keywords, on arrays in one place."""
    features, rois, grad, boxes = (place(x) for x in (FEATURES, ROIS, GRAD, ROIS[:, 1:]))
    images = place(np.zeros(1, np.int64))
    return {
        "roi_align": lambda **k: roi_align(features, rois, 2, **k),
        "a list": lambda **k: roi_align(features, [boxes], 2, **k),
        "backward": lambda **k: roi_align_backward(grad, rois, features.shape, **k),
        "box_backward": lambda **k: roi_align_box_backward(grad, features, rois, **k),
        "ROIAlign": lambda **k: ROIAlign(2, 2, 1.0)(features, rois, **k),
        "ROIAlignGrad": lambda **k: ROIAlignGrad((1, 1, 4, 4), 2, 2, 1.0)(grad, rois, **k),
        "onnx": lambda **k: numba_roialign.onnx.roi_align(features, boxes, images, **k),
    }


@pytest.mark.only("cpu")
@pytest.mark.parametrize("name", calls(np.asarray))
def test_a_stream_is_refused_on_the_cpu(target, name):
    with pytest.raises(TypeError, match=r"stream=.*CPU"):
        calls(target.array)[name](stream=0)


class Known:
    """A stream as some library makes it: an attribute that leads to its handle."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Protocol:
    def __cuda_stream__(self):
        return 0, 77


STREAMS = {
    "handle": 77,
    "numpy": np.int64(77),
    "protocol": Protocol(),
    "cupy": Known(ptr=77),
    "torch": Known(cuda_stream=77),
    "numba": Known(handle=ctypes.c_void_p(77)),
    "new numba": Known(handle=77),
}


@pytest.mark.only("cuda")
@pytest.mark.parametrize("name", STREAMS)
def test_the_handle_of_a_stream(target, name):
    from numba_roialign._cuda.queue import handle_of

    assert handle_of(STREAMS[name]) == 77


@pytest.mark.only("cuda")
@pytest.mark.parametrize("stream", [True, 1.5, "1", object(), Known(ptr="1")], ids="abcde")
def test_what_is_no_stream(target, stream):
    with pytest.raises(TypeError, match="stream"):
        roi_align(target.array(FEATURES), target.array(ROIS), 2, stream=stream)


@pytest.mark.only("cuda")
def test_the_default_stream_of_numba_has_handle_0(target):
    from numba_roialign._cuda.queue import handle_of

    assert handle_of(Known(handle=ctypes.c_void_p())) == 0
    assert handle_of(0) == 0


@pytest.mark.only("cuda")
@pytest.mark.parametrize("name", calls(np.asarray))
def test_every_launch_goes_to_the_stream(target, name, monkeypatch):
    """Without a device there is one stream, so what is launched on is told by a name for it."""
    from numba import cuda

    from numba_roialign._cuda import queue

    seen, expected = [], target.numpy(calls(target.array)[name]())
    has_one = SIMULATOR or COMPILED
    stream = queue.numba_stream(0) if has_one else cuda.stream()
    handle = 77 if has_one else queue.handle_of(stream)
    monkeypatch.setattr(queue, "numba_stream", lambda found: seen.append(found) or stream)
    result = calls(target.array)[name](stream=handle)
    stream.synchronize()
    np.testing.assert_array_equal(target.numpy(result), expected)
    assert set(seen) == {handle}


@pytest.mark.only("cuda")
def test_the_stream_of_the_array_interface_is_the_default(target):
    from numba_roialign._families import NumbaCUDA

    interface = {"stream": 5}
    assert NumbaCUDA.stream(Known(__cuda_array_interface__=interface)) == 5
    assert NumbaCUDA.stream(Known(__cuda_array_interface__={})) is None
