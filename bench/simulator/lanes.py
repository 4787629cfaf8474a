"""Operands and results of an instruction, of all lanes of a warp.

Masks of lanes are int64, as numbers of 32 bits are while one reckons with them: Numba makes floats
of signed and unsigned numbers together.
"""

from .compiling import compiled
from .instructions import (
    ABSOLUTE,
    IMMEDIATE,
    INVERTED,
    KIND,
    NEGATED,
    PREDICATE,
    REGISTER,
    TRUE,
    UNIFORM,
    UNIFORM_PREDICATE,
    UNIFORM_ZERO,
    VALUE,
    ZERO,
)
from .state import FULL, LANES


@compiled
def signed(number):
    return ((number & FULL) ^ (1 << 31)) - (1 << 31)


@compiled
def load(warp, registers, operand, out, further=0):
    """Read an operand without its sign; `further` is how many registers after the one named."""
    kind, value = operand[KIND], operand[VALUE]
    if kind == REGISTER:
        out[:] = registers[value + further]
    elif kind == UNIFORM:
        out[:] = warp.uniform[value + further]
    elif kind == IMMEDIATE and further:
        out[:] = FULL if value < 0 else 0
    elif kind == IMMEDIATE:
        out[:] = value & FULL
    else:
        out[:] = 0


@compiled
def load_integer(warp, registers, operand, out):
    load(warp, registers, operand, out)
    if operand[NEGATED]:
        for lane in range(LANES):
            out[lane] = -out[lane]
    elif operand[INVERTED]:
        for lane in range(LANES):
            out[lane] = ~out[lane]


@compiled
def load_float(warp, registers, operand, out):
    load(warp, registers, operand, out)
    if operand[ABSOLUTE]:
        for lane in range(LANES):
            out[lane] &= 0x7FFFFFFF
    if operand[NEGATED]:
        for lane in range(LANES):
            out[lane] ^= 0x80000000


@compiled
def load_predicate(warp, operand):
    kind, value, mask = operand[KIND], operand[VALUE], 0
    if kind == PREDICATE:
        mask = warp.predicates[value]
    elif kind == UNIFORM_PREDICATE and warp.uniform_predicates[value]:
        mask = FULL
    return mask ^ FULL if operand[NEGATED] else mask


@compiled
def store(warp, registers, record, values, mask, further=0):
    """Write a result of the active lanes, or of the warp."""
    target = record.target_register
    if record.uniform:
        if mask and target < UNIFORM_ZERO:
            warp.uniform[target + further] = values[0]
    elif target != ZERO:
        row = registers[target + further]
        if mask == FULL:
            row[:] = values
        else:
            for lane in range(LANES):
                if mask >> lane & 1:
                    row[lane] = values[lane]


@compiled
def store_predicate(warp, record, which, value, mask):
    if which < 0 or which == TRUE:
        return
    if record.uniform:
        if mask:
            warp.uniform_predicates[which] = value & 1
    else:
        warp.predicates[which] = warp.predicates[which] & (mask ^ FULL) | value & mask
