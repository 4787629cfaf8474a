"""Array families: where an array lives, and results like what came in.

A family is recognised from the object itself. Nothing is imported to look: an array of CuPy or
PyTorch can only come from a caller who has imported it.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np

from ._flat import DeviceArray, c_strides
from ._memory import check_size, empty_result

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def require_cuda() -> None:
    """Raise where the package that runs kernels on a device is missing."""
    if importlib.util.find_spec("numba_cuda") is None:
        raise ModuleNotFoundError(
            "arrays on a CUDA device need the numba-cuda package: "
            'pip install "numba_roialign[cuda12]" or "numba_roialign[cuda13]", '
            "whichever matches your CUDA driver"
        )


@functools.cache
def _name_of(dtype) -> str:
    return np.dtype(dtype).name


class NumPy:
    """NumPy arrays, and what converts to them: the CPU's family."""

    target = "cpu"

    @staticmethod
    def owns(x) -> bool:
        protocols = ("__array__", "__array_interface__", "__dlpack__")
        return isinstance(x, np.ndarray) or any(hasattr(x, p) for p in protocols)

    @staticmethod
    def device(x) -> int | None:
        """Return the number of the device, or None where it has none or does not say."""
        return None

    @staticmethod
    def dtype(x) -> str:
        return _name_of(x.dtype)

    @staticmethod
    def adopt(x):
        """Return the array an object offers through a protocol, without a copy; or itself."""
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError("a masked array is read with what it masks: pass its filled(value)")
        if isinstance(x, np.ndarray):
            return x
        if getattr(x, "stop_gradient", True) is False:  # Paddle's word
            raise TypeError(
                "a tensor requires a gradient, which is lost here: pass tensor.detach()"
            )
        if hasattr(x, "__array__") or hasattr(x, "__array_interface__"):
            return np.asarray(x)
        return np.from_dlpack(x)

    @staticmethod
    def array(x):
        """Return an array as its target reads it; bfloat16 may be its bits."""
        return x

    @staticmethod
    def boxes(x):
        """Return rois as their target reads them: numbers of any dtype."""
        return x

    @staticmethod
    def empty(shape, like, dtype=None):
        """Return an array to write a result to, of the dtype of another or of one named."""
        return empty_result(shape, dtype or like.dtype)

    @staticmethod
    def seen(x) -> tuple[int, Any]:
        """Return where an array on a device lies, and what all have in common that look like it.

        That is in its library's own words: to make others of them takes longer. Of an array on the
        CPU, or of one that does not say, it is None.
        """
        return 0, None

    @staticmethod
    def note_written(x):
        """Tell the library of an array that it holds other numbers."""

    @staticmethod
    def stream(x) -> int | None:
        """Return the handle of the stream to run on, or None for the target's default."""
        return None


def untraced(function: Function) -> Function:
    """Keep PyTorch's compiler, where it is at work, out of a function and all that it calls.

    It would trace through NumPy and ctypes, which it takes for other things than they are. What
    PyTorch has for this takes time of every call, 0.5 us in 2.13, so other calls go without.
    """
    entries: list[Any] = []

    @functools.wraps(function)
    def entry(*arguments, **keywords):
        torch = sys.modules.get("torch")
        if torch is None or not _is_compiling(torch):
            return function(*arguments, **keywords)
        if not entries:
            entries.append(torch.compiler.disable(function))
        return entries[0](*arguments, **keywords)

    return cast(Function, entry)


def _is_compiling(torch) -> bool:
    """Say whether PyTorch's compiler traces this call, or would trace what it calls."""
    if torch.compiler.is_dynamo_compiling():
        return True
    callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)
    return callback is None or callback() is not None  # an older PyTorch does not tell


def _detached(x):
    """Return a tensor without its history, which is refused where that would lose a gradient."""
    if not x.requires_grad:
        return x
    if sys.modules["torch"].is_grad_enabled():
        raise TypeError(
            "a tensor requires a gradient, which is lost here: use numba_roialign.torch.roi_align, "
            "or pass tensor.detach()"
        )
    return x.detach()


@functools.cache
def _name_of_torch(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _widened(x):
    """Return a tensor of half precision, which NumPy may not know, as float32."""
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x


def _new_empty(shape, like, dtype):
    """Return a new tensor beside another."""
    if dtype is None:
        return like.new_empty(shape)
    return like.new_empty(shape, dtype=getattr(sys.modules["torch"], dtype))


class TorchCPU(NumPy):
    """PyTorch tensors in the CPU's memory, which NumPy reads and writes in place."""

    @staticmethod
    def adopt(x):
        return _detached(x)

    @staticmethod
    def dtype(x) -> str:
        return _name_of_torch(x.dtype)

    @staticmethod
    def array(x) -> np.ndarray:
        torch = sys.modules["torch"]
        if x.dtype == torch.bfloat16:  # NumPy has no such type of its own
            return x.view(torch.int16).numpy()
        return x.numpy()

    @staticmethod
    def boxes(x) -> np.ndarray:
        return _widened(x).numpy()

    @staticmethod
    def empty(shape, like, dtype=None):
        check_size(math.prod(shape) * (8 if dtype == "int64" else like.element_size()))
        return _new_empty(shape, like, dtype)

    @staticmethod
    def seen(x):
        return TorchCUDA.seen(x) if x.is_cuda else (0, None)  # asked before the family is known

    @staticmethod
    def note_written(x):
        # PyTorch then refuses gradients by the old numbers.
        if not x.is_inference():
            sys.modules["torch"].autograd.graph.increment_version(x)


DLPACK_CUDA = 2  # DLPack's number for memory of a CUDA device


def _from_dlpack(x):
    """Return an array on a device that has DLPack alone as one of CuPy's, which reads it."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        raise TypeError(
            f"a {type(x).__name__} on a CUDA device offers DLPack but no __cuda_array_interface__: "
            "import cupy, which can read it"
        )
    return cupy.from_dlpack(x)


class NumbaCUDA:
    """Numba device arrays, and whatever else has the CUDA array interface.

    An array made through the interface counts as on the device that was current then.
    """

    target = "cuda"

    @staticmethod
    def owns(x) -> bool:
        # Numba's own mark comes first: an interface is made anew whenever one looks whether it is
        # there. The simulator's arrays have none.
        if hasattr(x, "__cuda_ndarray__") or hasattr(x, "__cuda_array_interface__"):
            return True
        return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == DLPACK_CUDA

    @staticmethod
    def device(x) -> int | None:
        context = getattr(getattr(x, "gpu_data", None), "context", None)
        return None if context is None else context.device.id

    @staticmethod
    def dtype(x) -> str:
        return _name_of(x.dtype)

    @staticmethod
    def seen(x) -> tuple[int, Any]:
        device = NumbaCUDA.device(x)
        if hasattr(x, "gpu_data"):  # Numba's own, whose interface takes 2 us
            return x.device_ctypes_pointer.value or 0, (x.shape, x.strides, x.dtype, None, device)
        own = getattr(x, "__cuda_array_interface__", None)
        if own is None:  # what the simulator's arrays wrap has one; slices of managed memory
            own = getattr(getattr(x, "_ary", x), "__array_interface__", None)
        if own is None:
            return 0, None
        if own.get("mask") is not None:
            raise TypeError("a masked array is read with what it masks: pass it filled")
        strides = own.get("strides")  # None: C order
        look = tuple(own["shape"]), strides and tuple(strides), getattr(x, "dtype", None)
        return own["data"][0] or 0, (*look, own["typestr"], device)

    @classmethod
    def pointer(cls, x) -> int:
        return cls.seen(x)[0]

    @staticmethod
    @functools.lru_cache(1024)
    def words(shape, strides, dtype, typestr, device):
        """Return the shape, strides, dtype and element size of arrays of a look, for kernels."""
        dtype, name = np.dtype(dtype), _name_of(dtype)
        itemsize = 2 if name == "bfloat16" else dtype.itemsize
        if (typestr or dtype.str).startswith(">" if sys.byteorder == "little" else "<"):
            raise ValueError(
                "a byte-swapped array on a CUDA device cannot be read in place: pass a copy"
            )
        return shape, strides or c_strides(shape, itemsize), name, itemsize

    @classmethod
    def array(cls, x) -> DeviceArray:
        pointer, look = cls.seen(x)
        return DeviceArray(pointer, *cls.words(*look), x)  # type: ignore[call-arg]

    @classmethod
    def boxes(cls, x) -> DeviceArray:
        return cls.array(x)

    @staticmethod
    def note_written(x):
        pass

    @staticmethod
    def adopt(x):
        require_cuda()
        if hasattr(x, "__cuda_ndarray__"):
            return x
        if not hasattr(x, "__cuda_array_interface__"):
            return _from_dlpack(x)
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return x
        from numba import cuda

        return cuda.as_cuda_array(x, sync=False)

    @staticmethod
    def empty(shape, like, dtype=None):
        from numba import cuda

        return cuda.device_array(shape, dtype or like.dtype)

    @staticmethod
    def stream(x) -> int | None:
        if getattr(x, "stream", None) == 0:  # as Numba's arrays have it, if none is bound to them
            return None
        return getattr(x, "__cuda_array_interface__", {}).get("stream")

    @staticmethod
    def allocating(x, stream):
        """Return a context in which `empty` gives memory for use on a stream."""
        return nullcontext()


class _Handle:
    """A stream's handle, as libraries take it from each other."""

    def __init__(self, stream):
        self.stream = stream

    def __cuda_stream__(self):
        return 0, self.stream


class CuPy(NumbaCUDA):
    """CuPy arrays, from its memory pool and on its current stream."""

    @staticmethod
    def device(x) -> int | None:
        return x.device.id

    @staticmethod
    def adopt(x):
        require_cuda()
        return x

    @staticmethod
    def seen(x) -> tuple[int, Any]:
        return x.data.ptr, (x.shape, x.strides, x.dtype, None, x.device.id)

    @staticmethod
    def empty(shape, like, dtype=None):
        cupy = sys.modules["cupy"]
        with like.device:
            return cupy.empty(shape, dtype or like.dtype)

    @staticmethod
    def stream(x) -> int:
        return sys.modules["cupy"].cuda.get_current_stream(x.device.id).ptr

    @staticmethod
    @contextmanager
    def allocating(x, stream):
        Stream = sys.modules["cupy"].cuda.Stream
        if hasattr(Stream, "from_external"):  # CuPy 14, where `ExternalStream` warns
            own = Stream.from_external(_Handle(stream))
        else:
            own = sys.modules["cupy"].cuda.ExternalStream(stream)
        with x.device, own:
            yield


class TorchCUDA(NumbaCUDA):
    """PyTorch tensors on a device, from its caching allocator and on its current stream."""

    @staticmethod
    def device(x) -> int | None:
        return x.get_device()  # x.device makes an object

    @staticmethod
    def adopt(x):
        require_cuda()
        return _detached(x)

    @staticmethod
    def dtype(x) -> str:
        return _name_of_torch(x.dtype)

    @staticmethod
    def seen(x) -> tuple[int, Any]:
        look = x.shape, x.stride(), x.dtype, x.requires_grad, x.get_device()
        return x.data_ptr(), look

    @staticmethod
    def pointer(x) -> int:
        return x.data_ptr()

    @staticmethod
    @functools.lru_cache(1024)
    def words(shape, strides, dtype, requires_grad, device):
        size = dtype.itemsize
        return tuple(shape), tuple([n * size for n in strides]), _name_of_torch(dtype), size

    @classmethod
    def boxes(cls, x) -> DeviceArray:
        return cls.array(_widened(x))

    @staticmethod
    def empty(shape, like, dtype=None):
        return _new_empty(shape, like, dtype)

    note_written = TorchCPU.note_written

    @staticmethod
    def stream(x) -> int:
        return _current_stream()(x.get_device())

    @staticmethod
    def allocating(x, stream):
        torch = sys.modules["torch"]
        return torch.cuda.stream(torch.cuda.ExternalStream(stream, device=x.device))


@functools.cache
def _current_stream() -> Callable[[int], int]:
    """Return a function from a device's number to the handle of PyTorch's stream there.

    PyTorch's compiled code has such a one; its public one makes objects for 3 us.
    """
    torch = sys.modules["torch"]
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw or (lambda device: torch.cuda.current_stream(device).cuda_stream)


@functools.lru_cache(256)
def family_of_all(kind):
    """Return the family of all arrays of a type, or None where each is to be looked at.

    All tensors of PyTorch count as on the CPU.
    """
    if kind is np.ndarray:
        return NumPy
    torch = sys.modules.get("torch")
    if torch is not None and issubclass(kind, torch.Tensor):
        return TorchCPU
    cupy = sys.modules.get("cupy")
    if cupy is not None and issubclass(kind, cupy.ndarray):
        return CuPy
    return NumbaCUDA if hasattr(kind, "__cuda_ndarray__") else None


def family_of(x):
    """Return the family of an array, or None when it is no array."""
    kind: Any = type(x)
    family = family_of_all(kind)
    if family is TorchCPU:
        return TorchCUDA if x.is_cuda else TorchCPU if x.is_cpu else None
    if family:
        return family
    if isinstance(x, (bool, int, float, complex, str, bytes, list, tuple, dict, type(None))):
        return None
    return next((family for family in (NumbaCUDA, NumPy) if family.owns(x)), None)


def place(family, x) -> str:
    """Name where an array lives."""
    if family.target == "cpu":
        return "the CPU"
    device = family.device(x)
    return "a CUDA device" if device is None else f"CUDA device {device}"


def check_places(one, other):
    """Refuse arrays that live apart, each given after its name and its family: a hidden copy costs
    too much."""
    (name, family, x), (other_name, other_family, y) = one, other
    if family.target == other_family.target == "cpu":
        return
    device, other_device = family.device(x), other_family.device(y)
    apart = device is not None and other_device is not None and device != other_device
    if apart or family.target != other_family.target:
        raise TypeError(
            f"{name} is on {place(family, x)} and {other_name} is on {place(other_family, y)}: "
            "move one to where the other is"
        )
