"""Plain arrays: memory in C order as compiled code sees it, a pointer and a shape.

Numba's own arrays have ten fields and index by anything that NumPy does, and passing them on counts
references. Here indices are unsigned: none is negative, and no select asks whether it is.
"""

from __future__ import annotations

import operator

from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    make_attribute_wrapper,
    models,
    register_model,
)


class PlainArray(types.Type):
    """The type of an array of `dtype` that has `ndim` axes."""

    def __init__(self, dtype, ndim):
        self.dtype, self.ndim = dtype, ndim
        super().__init__(name=f"PlainArray({dtype}, {ndim})")

    @property
    def index(self):
        return types.uintp if self.ndim == 1 else types.UniTuple(types.uintp, self.ndim)

    def takes(self, index):
        """Say whether an index is one integer for each axis."""
        indices = (index,) if self.ndim == 1 else getattr(index, "types", ())
        return len(indices) == self.ndim and all(isinstance(i, types.Integer) for i in indices)


@register_model(PlainArray)
class _PlainArrayModel(models.StructModel):
    def __init__(self, manager, array):
        data, shape = types.CPointer(array.dtype), types.UniTuple(types.uintp, array.ndim)
        super().__init__(manager, array, [("data", data), ("shape", shape)])


make_attribute_wrapper(PlainArray, "shape", "shape")


@intrinsic
def array_at(typing_context, pointer, shape):
    """Return memory as an array."""
    array = PlainArray(pointer.dtype, len(shape))

    def codegen(context, builder, sig, args):
        value = cgutils.create_struct_proxy(array)(context, builder)
        value.data, value.shape = args
        return value._getvalue()

    return array(pointer, types.UniTuple(types.uintp, len(shape))), codegen


@infer_global(operator.getitem)
class _TypeGet(AbstractTemplate):
    def generic(self, args, kws):
        array, index = args
        if isinstance(array, PlainArray) and array.takes(index):
            return signature(array.dtype, array, array.index)


@infer_global(operator.setitem)
class _TypeSet(AbstractTemplate):
    def generic(self, args, kws):
        array, index, _ = args
        if isinstance(array, PlainArray) and array.takes(index):
            return signature(types.none, array, array.index, array.dtype)


def _element(context, builder, array_type, array, index):
    """Return the address of an element."""
    array = cgutils.create_struct_proxy(array_type)(context, builder, array)
    indices = [index] if array_type.ndim == 1 else cgutils.unpack_tuple(builder, index)
    lengths, at = cgutils.unpack_tuple(builder, array.shape), indices[0].type(0)
    for i, length in zip(indices, lengths, strict=True):
        if context.enable_boundscheck:
            cgutils.do_boundscheck(context, builder, i, length)
        at = builder.add(builder.mul(at, length), i)
    return builder.gep(array.data, [at])


@lower_builtin(operator.getitem, PlainArray, types.uintp)
@lower_builtin(operator.getitem, PlainArray, types.UniTuple)
def _lower_get(context, builder, sig, args):
    return builder.load(_element(context, builder, sig.args[0], *args))


@lower_builtin(operator.setitem, PlainArray, types.uintp, types.Number)
@lower_builtin(operator.setitem, PlainArray, types.UniTuple, types.Number)
def _lower_set(context, builder, sig, args):
    *place, value = args
    builder.store(value, _element(context, builder, sig.args[0], *place))
    return context.get_dummy_value()
