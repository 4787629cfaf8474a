"""Half-precision storage on the CPU, as LLVM instructions.

Numba's CPU target has no half types, so a float16 array travels as uint16 and a bfloat16 array as
int16: the same bits, told apart by dtype. The functions here convert vectors of such bits to
float32 and back.
"""

from __future__ import annotations

import platform

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, types

I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def processor_features() -> set[str]:
    """Return what the processor that Numba compiles for can do, as far as that is said."""
    if config.CPU_NAME or config.CPU_FEATURES:
        flags = (config.CPU_FEATURES or "").split(",")
        return {flag.removeprefix("+") for flag in flags if flag.startswith("+")}
    return {flag for flag, can in llvm.get_host_cpu_features().items() if can}


def converts_float16() -> bool:
    """Say whether the processor that Numba compiles for converts float16 itself.

    Without the instruction LLVM calls a library routine that Numba's JIT cannot find.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return "f16c" in processor_features()


def widened(values, dtype):
    """Return an array of a dtype, or of its bits, as one that NumPy sums as exactly as we do."""
    if dtype == "float64":
        return values
    if dtype == "bfloat16" and values.dtype == np.int16:
        return (values.astype(np.int32) << 16).view(np.float32)
    return values.astype(np.float32)


def narrowed(values, dtype, storage):
    """Return a float32 array in a half type, as `storage`: the type itself or its bits."""
    if dtype == "bfloat16" and storage == np.int16:
        bits = np.ascontiguousarray(values).view(np.int32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.int16)
    return values.astype(storage)


def _types(value):
    """Return i16, i32 and float types as wide as a vector, and a maker of i32 constants."""
    lanes = value.type.count
    i16, i32, f32 = (ir.VectorType(element, lanes) for element in (I16, I32, F32))
    return i16, i32, f32, lambda number: ir.Constant(i32, [number] * lanes)


def _float16_to_float32(builder, bits):
    _, i32, f32, constant = _types(bits)
    if converts_float16():
        half = ir.VectorType(ir.HalfType(), bits.type.count)
        return builder.fpext(builder.bitcast(bits, half), f32)
    wide = builder.zext(bits, i32)
    sign = builder.shl(builder.and_(wide, constant(0x8000)), constant(16))
    magnitude = builder.shl(builder.and_(wide, constant(0x7FFF)), constant(13))
    # Scaling by 2**112 moves the exponent's bias from 15 to 127, subnormals included.
    scale = ir.Constant(f32, [2.0**112] * bits.type.count)
    finite = builder.bitcast(builder.fmul(builder.bitcast(magnitude, f32), scale), i32)
    special = builder.or_(magnitude, constant(0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, constant(0x7C00 << 13))
    absolute = builder.select(is_special, special, finite)
    return builder.bitcast(builder.or_(absolute, sign), f32)


def _float32_to_float16(builder, value):
    i16, i32, f32, constant = _types(value)
    if converts_float16():
        half = ir.VectorType(ir.HalfType(), value.type.count)
        return builder.bitcast(builder.fptrunc(value, half), i16)
    bits = builder.bitcast(value, i32)
    sign = builder.lshr(builder.and_(bits, constant(0x80000000)), constant(16))
    magnitude = builder.and_(bits, constant(0x7FFFFFFF))
    # Adding 0.5 lines a subnormal's bits up at the bottom of the word and rounds to even.
    half = ir.Constant(f32, [0.5] * value.type.count)
    shifted = builder.bitcast(builder.fadd(builder.bitcast(magnitude, f32), half), i32)
    subnormal = builder.sub(shifted, constant(0x3F000000))
    odd = builder.and_(builder.lshr(magnitude, constant(13)), constant(1))
    rebiased = builder.sub(magnitude, constant((127 - 15) << 23))
    rounded = builder.add(builder.add(rebiased, constant(0xFFF)), odd)
    normal = builder.lshr(rounded, constant(13))
    is_small = builder.icmp_unsigned("<", magnitude, constant((127 - 14) << 23))
    finite = builder.select(is_small, subnormal, normal)
    is_nan = builder.icmp_unsigned(">", magnitude, constant(0x7F800000))
    special = builder.select(is_nan, constant(0x7E00), constant(0x7C00))
    is_large = builder.icmp_unsigned(">=", magnitude, constant((127 + 16) << 23))
    absolute = builder.select(is_large, special, finite)
    return builder.trunc(builder.or_(absolute, sign), i16)


def _bfloat16_to_float32(builder, bits):
    _, i32, f32, constant = _types(bits)
    return builder.bitcast(builder.shl(builder.zext(bits, i32), constant(16)), f32)


def _float32_to_bfloat16(builder, value):
    i16, i32, _, constant = _types(value)
    bits = builder.bitcast(value, i32)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.lshr(builder.add(builder.add(bits, constant(0x7FFF)), odd), constant(16))
    quiet = builder.or_(builder.lshr(bits, constant(16)), constant(0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), i16)


# Numba's type of the storage: (bits to float32, float32 to bits).
CONVERSIONS = {
    types.uint16: (_float16_to_float32, _float32_to_float16),
    types.int16: (_bfloat16_to_float32, _float32_to_bfloat16),
}
