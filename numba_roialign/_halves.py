"""Half-precision storage on the CPU.

Numba's CPU target has no half types, so a float16 array travels as uint16 and a bfloat16 array as
int16: the same bits, told apart by dtype. `as_numbers` gives a view of either whose elements are
float32: loads and stores convert, and nothing is copied.
"""

from __future__ import annotations

import operator
import platform

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _converts_float16() -> bool:
    """Say whether the processor that Numba compiles for converts float16 itself.

    Without the instruction LLVM calls a library routine that Numba's JIT cannot find.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    if config.CPU_NAME or config.CPU_FEATURES:
        return "+f16c" in (config.CPU_FEATURES or "")
    return bool(llvm.get_host_cpu_features().get("f16c", False))


def _float16_to_float32(builder, bits):
    if _converts_float16():
        return builder.fpext(builder.bitcast(bits, ir.HalfType()), F32)
    wide = builder.zext(bits, I32)
    sign = builder.shl(builder.and_(wide, I32(0x8000)), I32(16))
    magnitude = builder.shl(builder.and_(wide, I32(0x7FFF)), I32(13))
    # Scaling by 2**112 moves the exponent's bias from 15 to 127, subnormals included.
    finite = builder.fmul(builder.bitcast(magnitude, F32), F32(2.0**112))
    special = builder.or_(magnitude, I32(0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, I32(0x7C00 << 13))
    absolute = builder.select(is_special, special, builder.bitcast(finite, I32))
    return builder.bitcast(builder.or_(absolute, sign), F32)


def _float32_to_float16(builder, value):
    if _converts_float16():
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), I16)
    bits = builder.bitcast(value, I32)
    sign = builder.lshr(builder.and_(bits, I32(0x80000000)), I32(16))
    magnitude = builder.and_(bits, I32(0x7FFFFFFF))
    # Adding 0.5 lines a subnormal's bits up at the bottom of the word and rounds to even.
    shifted = builder.fadd(builder.bitcast(magnitude, F32), F32(0.5))
    subnormal = builder.sub(builder.bitcast(shifted, I32), I32(0x3F000000))
    odd = builder.and_(builder.lshr(magnitude, I32(13)), I32(1))
    rebiased = builder.sub(magnitude, I32((127 - 15) << 23))
    normal = builder.lshr(builder.add(builder.add(rebiased, I32(0xFFF)), odd), I32(13))
    finite = builder.select(
        builder.icmp_unsigned("<", magnitude, I32((127 - 14) << 23)), subnormal, normal
    )
    is_large = builder.icmp_unsigned(">=", magnitude, I32((127 + 16) << 23))
    is_nan = builder.icmp_unsigned(">", magnitude, I32(0x7F800000))
    special = builder.select(is_nan, I32(0x7E00), I32(0x7C00))
    absolute = builder.select(is_large, special, finite)
    return builder.trunc(builder.or_(absolute, sign), I16)


def _bfloat16_to_float32(builder, bits):
    return builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), F32)


def _float32_to_bfloat16(builder, value):
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    rounded = builder.lshr(builder.add(builder.add(bits, I32(0x7FFF)), odd), I32(16))
    quiet = builder.or_(builder.lshr(bits, I32(16)), I32(0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), I16)


HALF_STORAGE = {"float16": np.dtype(np.uint16), "bfloat16": np.dtype(np.int16)}

_CONVERSIONS = {
    types.uint16: (_float16_to_float32, _float32_to_float16),
    types.int16: (_bfloat16_to_float32, _float32_to_bfloat16),
}


class Halves(types.Type):
    """The type of a float32 view over 16-bit floats: a pointer to the first."""

    def __init__(self, storage):
        self.storage = storage
        super().__init__(name=f"Halves({storage})")


@register_model(Halves)
class _HalvesModel(models.PrimitiveModel):
    def __init__(self, manager, halves):
        super().__init__(manager, halves, I16.as_pointer())


@infer_global(operator.getitem)
class _TypeLoad(AbstractTemplate):
    def generic(self, args, kws):
        view, index = args
        if isinstance(view, Halves) and isinstance(index, types.Integer):
            return signature(types.float32, view, types.uintp)


@lower_builtin(operator.getitem, Halves, types.uintp)
def _lower_load(context, builder, sig, args):
    load, _ = _CONVERSIONS[sig.args[0].storage]
    return load(builder, builder.load(builder.gep(args[0], [args[1]])))


@infer_global(operator.setitem)
class _TypeStore(AbstractTemplate):
    def generic(self, args, kws):
        view, index, _ = args
        if isinstance(view, Halves) and isinstance(index, types.Integer):
            return signature(types.none, view, types.uintp, types.float32)


@lower_builtin(operator.setitem, Halves, types.uintp, types.float32)
def _lower_store(context, builder, sig, args):
    _, store = _CONVERSIONS[sig.args[0].storage]
    builder.store(store(builder, args[2]), builder.gep(args[0], [args[1]]))
    return context.get_dummy_value()


@intrinsic
def _halves(typing_context, array):
    def codegen(context, builder, sig, args):
        return cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0]).data

    return Halves(array.dtype)(array), codegen


def as_numbers(array):
    """Return what a kernel reads and writes in place of a flat storage array."""
    raise NotImplementedError("for use in compiled code")


@overload(as_numbers, inline="always")
def _overload_as_numbers(array):
    if array.dtype in _CONVERSIONS:
        return lambda array: _halves(array)
    return lambda array: array
