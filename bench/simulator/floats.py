"""Instructions on numbers of 32 bits with a fraction, and conversions to and from them."""

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy import float32, int64

from .compiling import compiled
from .instructions import KIND, NUMBER, REGISTER, UNIFORM
from .integers import store_comparison
from .lanes import (
    load,
    load_float,
    load_integer,
    load_predicate,
    signed,
    store,
    store_predicate,
)
from .state import LANES

FADD, FMUL, FFMA, FSEL, FMNMX = (NUMBER[name] for name in ["FADD", "FMUL", "FFMA", "FSEL", "FMNMX"])
FRND, MUFU, FSETP, FCHK = (NUMBER[name] for name in ["FRND", "MUFU", "FSETP", "FCHK"])
F2I_U32, F2I_S32, F2I_S64 = (NUMBER[name] for name in ["F2I_U32", "F2I_S32", "F2I_S64"])
I2F_U32, I2F_S32 = NUMBER["I2F_U32"], NUMBER["I2F_S32"]
LAST_FLOAT, LAST_CONVERSION = FCHK, NUMBER["I2F_S64"]


@intrinsic
def multiplied_and_added(context, x, y, z):
    """The sum of a product and a number, rounded once."""
    number = types.float32

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return number(number, number, number), generate


@compiled
def compared(x, y, comparison):
    if comparison == 0:
        return x < y
    if comparison == 1:
        return x == y
    if comparison == 2:
        return x <= y
    if comparison == 3:
        return x > y
    if comparison == 4:
        return x < y or x > y
    return x >= y


@compiled
def divides_slowly(a, b):
    """Say whether exponents are such that a quotient takes a longer way."""
    of_a, of_b = a >> 23 & 255, b >> 23 & 255
    if of_b == 0 or of_b >= 253 or of_a == 255:
        return True
    apart = of_a - of_b
    return of_a != 0 and (apart >= 126 or apart <= -125 or of_a <= 24)


@compiled
def special(x, mode):
    if mode == 0:
        return float32(1) / x
    root = float32(np.sqrt(x))
    return float32(1) / root if mode == 1 else root


@compiled
def lesser(x, y):
    return x if x < y or y != y else y


@compiled
def floating(warp, registers, record, operands, mask, values):
    does, count = record.does, record.operands
    a, b, c, result = values[0], values[1], values[2], values[3]
    x, y, z, out = a.view(float32), b.view(float32), c.view(float32), result.view(float32)
    load_float(warp, registers, operands[0], a)
    if count > 1:
        load_float(warp, registers, operands[1], b)
    if does == FFMA:
        load_float(warp, registers, operands[2], c)
        for lane in range(LANES):
            out[lane] = multiplied_and_added(x[lane], y[lane], z[lane])
    elif does == FADD:
        for lane in range(LANES):
            out[lane] = x[lane] + y[lane]
    elif does == FMUL:
        for lane in range(LANES):
            out[lane] = x[lane] * y[lane]
    elif does in (FSEL, FMNMX):
        chosen = load_predicate(warp, operands[2])
        for lane in range(LANES):
            first = chosen >> lane & 1 != 0
            if does == FSEL:
                result[lane] = a[lane] if first else b[lane]
            elif first:
                out[lane] = lesser(x[lane], y[lane])
            else:
                out[lane] = -lesser(-x[lane], -y[lane])
    elif does == FRND:
        for lane in range(LANES):
            out[lane] = np.ceil(x[lane])
    elif does == MUFU:
        for lane in range(LANES):
            out[lane] = special(x[lane], record.mode)
    elif does == FSETP:
        found = 0
        for lane in range(LANES):
            unordered = x[lane] != x[lane] or y[lane] != y[lane]
            true = compared(x[lane], y[lane], record.mode) or (record.flag != 0 and unordered)
            found |= true << lane
        store_comparison(warp, record, found, load_predicate(warp, operands[2]), mask)
        return
    else:  # FCHK
        slow = 0
        for lane in range(LANES):
            slow |= divides_slowly(int64(a[lane]), int64(b[lane])) << lane
        store_predicate(warp, record, record.predicate, slow, mask)
        return
    store(warp, registers, record, result, mask)


@compiled
def truncated(x, low, high, of_nan):
    """Return a number without its fraction, within bounds that floats can hold or exceed."""
    if x != x:
        return of_nan
    wide = np.float64(x)
    if wide <= low:
        return low
    return high if wide >= high else int64(wide)


@compiled
def rounded_up(number):
    """Return a number as the bits of the next float that is not less."""
    bits = np.empty(1, np.float32)
    bits[0] = float32(number)
    raised = int64(bits.view(np.uint32)[0])
    return raised + 1 if np.float64(bits[0]) < np.float64(number) else raised


@compiled
def conversion(warp, registers, record, operands, mask, values):
    does, a, b, result, upper = record.does, values[0], values[1], values[2], values[3]
    x, out = a.view(float32), result.view(float32)
    if does in (F2I_U32, F2I_S32, F2I_S64):
        load_float(warp, registers, operands[0], a)
        for lane in range(LANES):
            if does == F2I_U32:
                result[lane] = truncated(x[lane], 0, 0xFFFFFFFF, 0)
            elif does == F2I_S32:
                result[lane] = truncated(x[lane], -0x80000000, 0x7FFFFFFF, 0)
            else:
                number = truncated(x[lane], LEAST, MOST, LEAST)
                result[lane] = number
                upper[lane] = number >> 32
        store(warp, registers, record, result, mask)
        if does == F2I_S64:
            store(warp, registers, record, upper, mask, 1)
        return
    if does in (I2F_U32, I2F_S32):
        load_integer(warp, registers, operands[0], a)
        for lane in range(LANES):
            number = int64(a[lane])
            if does == I2F_S32:
                out[lane] = float32(signed(number))
            elif record.mode:
                result[lane] = rounded_up(number)
            else:
                out[lane] = float32(number)
    else:
        load(warp, registers, operands[0], a)
        if operands[0, KIND] == REGISTER or operands[0, KIND] == UNIFORM:
            load(warp, registers, operands[0], b, 1)
        else:
            for lane in range(LANES):
                b[lane] = signed(int64(a[lane])) >> 32
        for lane in range(LANES):
            out[lane] = float32(int64(b[lane]) << 32 | int64(a[lane]))
    store(warp, registers, record, result, mask)


LEAST, MOST = -(1 << 63), (1 << 63) - 1
