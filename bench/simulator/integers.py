"""Instructions on integers and on predicates."""

from numpy import int64

from .compiling import compiled
from .instructions import (
    EXTENDED,
    INVERTED,
    NEGATED,
    NUMBER,
    TRUE,
    VALUE,
)
from .lanes import load, load_integer, load_predicate, signed, store, store_predicate
from .state import BAD_CONSTANT, FULL, LANES

MOV, IMAD, IMAD_X, IMAD_WIDE, IMAD_HI = (
    NUMBER[name] for name in ["MOV", "IMAD", "IMAD_X", "IMAD_WIDE", "IMAD_HI"]
)
IADD3, IADD3_X, VIADD = (NUMBER[name] for name in ["IADD3", "IADD3_X", "VIADD"])
VIADDMNMX, VIMNMX = NUMBER["VIADDMNMX"], NUMBER["VIMNMX"]
LEA, LEA_HI_X, LEA_HI_X_SX32 = (NUMBER[name] for name in ["LEA", "LEA_HI_X", "LEA_HI_X_SX32"])
LOP3, SEL, IABS, PRMT, POPC = (NUMBER[name] for name in ["LOP3", "SEL", "IABS", "PRMT", "POPC"])
SHF_L, SHF_L_HI = NUMBER["SHF_L"], NUMBER["SHF_L_HI"]
SHF_R, SHF_R_LO = NUMBER["SHF_R"], NUMBER["SHF_R_LO"]
ISETP, PLOP3, P2R, R2P = (NUMBER[name] for name in ["ISETP", "PLOP3", "P2R", "R2P"])
VOTEU, VOTE = NUMBER["VOTEU"], NUMBER["VOTE"]
SHFL, S2R, R2UR, CS2R, LDC = (NUMBER[name] for name in ["SHFL", "S2R", "R2UR", "CS2R", "LDC"])
LAST_OF_ONE_RESULT, LAST_INTEGER = NUMBER["FLO"], NUMBER["LDC"]


@compiled
def looked_up(a, b, c, table):
    """Return the bits that a table of eight gives for each three bits."""
    result = 0
    for row in range(8):
        if table >> row & 1:
            x = a if row & 4 else a ^ FULL
            y = b if row & 2 else b ^ FULL
            z = c if row & 1 else c ^ FULL
            result |= x & y & z
    return result


@compiled
def bits_set(number):
    count = 0
    while number:
        number &= number - 1
        count += 1
    return count


@compiled
def highest_bit(number):
    place = -1
    while number:
        number >>= 1
        place += 1
    return place


@compiled
def first_lane(mask):
    return bits_set((mask & -mask) - 1)


@compiled
def least(a, b, chosen, unsigned):
    """Return the lesser of two, or the greater."""
    if not unsigned:
        a, b = signed(a), signed(b)
    return min(a, b) if chosen else max(a, b)


@compiled
def permuted(a, selection, c):
    bytes_of, result = c << 32 | a, 0
    for place in range(4):
        chosen = selection >> 4 * place & 15
        byte = bytes_of >> 8 * (chosen & 7) & 255
        if chosen & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * place
    return result


@compiled
def multiply_wide(warp, registers, record, operands, mask, values):
    """The product of 32 bits by 32, with 64 bits added: all of it, or its upper half."""
    a, b, c, high, upper = values[0], values[1], values[2], values[3], values[4]
    load_integer(warp, registers, operands[0], a)
    load_integer(warp, registers, operands[1], b)
    load(warp, registers, operands[2], c)
    load(warp, registers, operands[2], high, 1)
    is_signed = record.mode and record.does == IMAD_WIDE
    for lane in range(LANES):
        x, y = int64(a[lane]), int64(b[lane])
        if is_signed:
            x, y = signed(x), signed(y)
        total = x * y + (int64(high[lane]) << 32 | int64(c[lane]))
        a[lane] = total
        upper[lane] = total >> 32
    if record.does == IMAD_WIDE:
        store(warp, registers, record, a, mask)
        store(warp, registers, record, upper, mask, 1)
    else:
        store(warp, registers, record, upper, mask)


@compiled
def add_three(warp, registers, record, operands, mask, values):
    """A sum of three, with predicates that are carries."""
    a, b, c, result = values[0], values[1], values[2], values[3]
    load(warp, registers, operands[0], a)
    load(warp, registers, operands[1], b)
    load(warp, registers, operands[2], c)
    carried, extra = 0, 0
    if record.does == IADD3_X:
        carried = load_predicate(warp, operands[3]) if record.operands > 3 else 0
        extra = load_predicate(warp, operands[4]) if record.operands > 4 else 0
    one, two, flips, added = 0, 0, values[4], 0
    for k in range(3):
        flips[k] = FULL if operands[k, NEGATED] or operands[k, INVERTED] else 0
        added += 1 if operands[k, NEGATED] and not operands[k, INVERTED] else 0
    flip_a, flip_b, flip_c = int64(flips[0]), int64(flips[1]), int64(flips[2])
    for lane in range(LANES):
        total = (int64(a[lane]) ^ flip_a) + (int64(b[lane]) ^ flip_b) + (int64(c[lane]) ^ flip_c)
        total += added + (carried >> lane & 1) + (extra >> lane & 1)
        result[lane] = total
        one |= (total >> 32 != 0) << lane
        two |= (total >> 33 != 0) << lane
    store(warp, registers, record, result, mask)
    store_predicate(warp, record, record.predicate, one, mask)
    store_predicate(warp, record, record.second_predicate, two, mask)


@compiled
def scale(warp, registers, record, operands, mask, values):
    a, b, c, result = values[0], values[1], values[2], values[3]
    load_integer(warp, registers, operands[0], a)
    load_integer(warp, registers, operands[1], b)
    carried, carry = 0, 0
    does = record.does
    if does == LEA:
        shift = operands[2, VALUE]
    elif does == LEA_HI_X:
        load_integer(warp, registers, operands[2], c)
        shift = operands[3, VALUE]
        carried = load_predicate(warp, operands[4]) if record.operands > 4 else 0
    else:
        shift = operands[2, VALUE]
        carried = load_predicate(warp, operands[3]) if record.operands > 3 else 0
    for lane in range(LANES):
        x, y = int64(a[lane]), int64(b[lane])
        if does == LEA:
            total = (x << shift & FULL) + y
            carry |= (total >> 32) << lane
        elif does == LEA_HI_X:
            total = ((int64(c[lane]) << 32 | x) << shift >> 32) + y + (carried >> lane & 1)
        else:
            total = (signed(x) << shift >> 32) + y + (carried >> lane & 1)
        result[lane] = total
    store(warp, registers, record, result, mask)
    store_predicate(warp, record, record.predicate, carry, mask)


@compiled
def one_result(warp, registers, record, operands, mask, values):
    """Instructions that make a register of up to three integers and a predicate."""
    does, mode, count = record.does, record.mode, record.operands
    a, b, c, result = values[0], values[1], values[2], values[3]
    load_integer(warp, registers, operands[0], a)
    if count > 1:
        load_integer(warp, registers, operands[1], b)
    if count > 2:
        load_integer(warp, registers, operands[2], c)
    chosen = 0
    if does in (SEL, VIMNMX):
        chosen = load_predicate(warp, operands[2])
    elif does in (VIADDMNMX, IMAD_X):
        chosen = load_predicate(warp, operands[3])
    if does == MOV:
        result[:] = a
    elif does == IMAD:
        for lane in range(LANES):
            result[lane] = a[lane] * b[lane] + c[lane]
    elif does == VIADD:
        for lane in range(LANES):
            result[lane] = a[lane] + b[lane]
    elif does == SEL:
        for lane in range(LANES):
            result[lane] = a[lane] if chosen >> lane & 1 else b[lane]
    elif does == LOP3:
        nonzero = 0
        for lane in range(LANES):
            result[lane] = looked_up(int64(a[lane]), int64(b[lane]), int64(c[lane]), mode)
            nonzero |= (result[lane] != 0) << lane
        store_predicate(warp, record, record.predicate, nonzero, mask)
    else:
        for lane in range(LANES):
            x, y, z, choice = int64(a[lane]), int64(b[lane]), int64(c[lane]), chosen >> lane & 1
            if does == IMAD_X:
                value = x * y + z + choice
            elif does == VIADDMNMX:
                value = least(x + y & FULL, z, choice, mode)
            elif does == VIMNMX:
                value = least(x, y, choice, mode)
            elif does == SHF_L:
                value = x << y if y < LANES else 0
            elif does == SHF_L_HI:
                value = (z << 32 | x) << (y & 63) >> 32
            elif does == SHF_R:
                value = signed(z) >> min(y, 31) if mode else z >> y if y < LANES else 0
            elif does == SHF_R_LO:
                value = z << 32 - (y & 31) | x >> (y & 31) if y < LANES else z >> (y & 31)
            elif does == IABS:
                value = abs(signed(x))
            elif does == PRMT:
                value = permuted(x, y, z)
            elif does == POPC:
                value = bits_set(x)
            else:  # FLO
                value = highest_bit(x)
            result[lane] = value
    store(warp, registers, record, result, mask)


@compiled
def compare(warp, registers, record, operands, mask, values):
    a, b, comparison = values[0], values[1], record.mode
    load_integer(warp, registers, operands[0], a)
    load_integer(warp, registers, operands[1], b)
    extended, lower, found = record.combine & EXTENDED, 0, 0
    if extended:
        lower = load_predicate(warp, operands[3])
    for lane in range(LANES):
        x, y = int64(a[lane]), int64(b[lane])
        if not record.flag:
            x, y = signed(x), signed(y)
        less, equal = x < y, x == y
        of_equal = equal
        if extended:
            of_equal = equal and lower >> lane & 1 != 0
            less_or_equal = less or of_equal
            more_or_equal = (not less and not equal) or of_equal
            # of what lies above, less and less-or-equal differ only in the lower halves
            less, more = less_or_equal, more_or_equal
        else:
            less_or_equal = less or equal
            more, more_or_equal = not less and not equal, not less
        if comparison == 0:
            result = less
        elif comparison == 1:
            result = of_equal
        elif comparison == 2:
            result = less_or_equal
        elif comparison == 3:
            result = more
        elif comparison == 4:
            result = not equal or (extended != 0 and lower >> lane & 1 != 0)
        else:
            result = more_or_equal
        found |= result << lane
    store_comparison(warp, record, found, load_predicate(warp, operands[2]), mask)


@compiled
def store_comparison(warp, record, found, other, mask):
    """Write the predicate of a comparison, combined with another, and that of its opposite."""
    combine, opposite = record.combine & 3, found ^ FULL
    if combine == 0:
        found, opposite = found & other, opposite & other
    elif combine == 1:
        found, opposite = found | other, opposite | other
    else:
        found, opposite = found ^ other, opposite ^ other
    store_predicate(warp, record, record.predicate, found, mask)
    store_predicate(warp, record, record.second_predicate, opposite, mask)


@compiled
def on_predicates(warp, registers, record, operands, mask, values):
    does, a = record.does, values[0]
    if does == PLOP3:
        x = load_predicate(warp, operands[0])
        y = load_predicate(warp, operands[1])
        z = load_predicate(warp, operands[2])
        store_predicate(warp, record, record.predicate, looked_up(x, y, z, record.mode), mask)
        second = looked_up(x, y, z, record.flag)
        store_predicate(warp, record, record.second_predicate, second, mask)
    elif does == VOTEU:
        found = mask & load_predicate(warp, operands[0])
        if record.predicate < 0:
            warp.uniform[record.target_register] = found
        else:
            warp.uniform_predicates[record.predicate] = found != 0
    else:
        load_integer(warp, registers, operands[0], a)
        for which in range(TRUE):
            if record.mode >> which & 1 == 0:
                continue
            if does == R2P:
                found = 0
                for lane in range(LANES):
                    found |= (int64(a[lane]) >> which & 1) << lane
                store_predicate(warp, record, which, found, mask)
            else:
                for lane in range(LANES):
                    bit = warp.predicates[which] >> lane & 1
                    a[lane] = int64(a[lane]) & (FULL ^ (1 << which)) | bit << which
        if does == P2R:
            store(warp, registers, record, a, mask)


@compiled
def load_constants(warp, registers, record, operands, mask, constants, values, fault):
    places, out, size = values[0], values[1], record.mode
    load(warp, registers, operands[0], places)
    lanes = (1 if mask else 0) if record.uniform else mask
    for word in range(2 if size == 8 else 1):
        for lane in range(LANES):
            if lanes >> lane & 1 == 0:
                continue
            place, value = int64(places[lane]) + record.offset + 4 * word, 0
            if place < 0 or place + min(size, 4) > constants.size:
                fault[0], fault[2], fault[3] = BAD_CONSTANT, lane, place
                return
            for byte in range(min(size, 4)):
                value |= int64(constants[place + byte]) << 8 * byte
            out[lane] = value
        store(warp, registers, record, out, mask, word)


@compiled
def special_register(which, thread, block, launch):
    width, height, _ = launch.threads
    value = 0
    if which == 0:
        value = thread % width
    elif which == 1:
        value = thread // width % height
    elif which == 2:
        value = thread // (width * height)
    elif which == 3:
        value = block.x
    elif which == 4:
        value = block.y
    elif which == 5:
        value = block.z
    elif which == 7:
        value = thread % LANES
    elif which == 8:
        value = (1 << thread % LANES) - 1
    return value


@compiled
def moves(warp, registers, record, operands, mask, values, block, launch):
    """Values of other lanes, of the warp, and what a thread is."""
    does, a, b, result = record.does, values[0], values[1], values[2]
    if does == SHFL:
        load_integer(warp, registers, operands[0], a)
        load_integer(warp, registers, operands[1], b)
        inside = 0
        for lane in range(LANES):
            other = int64(b[lane]) & 31
            if record.mode:  # up from so many lanes below, where there are
                other = lane - other if other <= lane else LANES
            inside |= (other < LANES) << lane
            result[lane] = a[other if other < LANES else lane]
        store(warp, registers, record, result, mask)
        if record.mode:
            store_predicate(warp, record, record.predicate, inside, mask)
    elif does == VOTE:
        result[:] = mask & load_predicate(warp, operands[0])
        store(warp, registers, record, result, mask)
    elif does == R2UR:
        load_integer(warp, registers, operands[0], a)
        if mask:
            warp.uniform[record.target_register] = a[first_lane(mask)]
    elif does == CS2R:
        result[:] = 0
        store(warp, registers, record, result, mask)
        if record.mode:
            store(warp, registers, record, result, mask, 1)
    else:  # S2R
        for lane in range(LANES):
            thread = warp.number * LANES + lane
            result[lane] = special_register(record.mode, thread, block, launch)
        store(warp, registers, record, result, mask)


@compiled
def integer(warp, registers, record, operands, mask, values, constants, fault, block, launch):
    does = record.does
    if does in (IMAD_WIDE, IMAD_HI):
        multiply_wide(warp, registers, record, operands, mask, values)
    elif does in (IADD3, IADD3_X):
        add_three(warp, registers, record, operands, mask, values)
    elif does in (LEA, LEA_HI_X, LEA_HI_X_SX32):
        scale(warp, registers, record, operands, mask, values)
    elif does <= LAST_OF_ONE_RESULT:
        one_result(warp, registers, record, operands, mask, values)
    elif does == ISETP:
        compare(warp, registers, record, operands, mask, values)
    elif does == LDC:
        load_constants(warp, registers, record, operands, mask, constants, values, fault)
    elif does in (VOTE, SHFL, S2R, R2UR, CS2R):
        moves(warp, registers, record, operands, mask, values, block, launch)
    else:
        on_predicates(warp, registers, record, operands, mask, values)
