"""Loads and stores: what they read and write, and when it is there."""

import math

from numpy import int64, uint64

from .compiling import compiled
from .instructions import KIND, NUMBER, REGISTER, UNIFORM, VALUE
from .integers import bits_set
from .lanes import load, store
from .state import (
    BAD_ADDRESS,
    BAD_SHARED_ADDRESS,
    BANK_PASSES,
    DRAM_SECTORS,
    FRACTION,
    L1_HITS,
    L2_SECTORS,
    LANES,
    LINE,
    LINES,
    LOADS,
    QUEUE_BUSY,
    SECTOR,
    SHARED_START,
    WAYS,
    WRITTEN_SECTORS,
)

LDG, LDS, STS, ATOMS = (NUMBER[name] for name in ["LDG", "LDS", "STS", "ATOMS"])
HASH, BANKS = 0x9E3779B97F4A7C15, 32
ON_THE_WAY = 100  # cycles to L2, of its latency
QUEUED, READ = 4, 8  # cycles until an instruction is in its queue; until its registers are read
ATOMIC = 20  # that it takes longer
NOBODY = 8  # cycles of an access that no lane makes


@compiled
def spread(number, shift, count):
    return int64((uint64(number) * uint64(HASH) >> uint64(shift)) % uint64(count))


@compiled
def insert(distinct, count, number):
    """Put a number into a sorted list that has none twice, and return how many it has."""
    place = count
    while place and distinct[place - 1] > number:
        place -= 1
    if place and distinct[place - 1] == number:
        return count
    for k in range(count, place, -1):
        distinct[k] = distinct[k - 1]
    distinct[place] = number
    return count + 1


@compiled
def reach_l2(state, device, sector, time, writes):
    """Take a sector's turn at its slice of L2; return when it is had, from DRAM if need be."""
    chosen = spread(sector, 40, device.l2_slices)
    had = max(state.slices[chosen], time)
    state.slices[chosen] = had + 1
    if not state.in_l2[sector]:
        state.in_l2[sector] = 1
        state.dram[0] = max(state.dram[0], float(had)) + SECTOR / device.dram_bytes
        if not writes:
            state.counts[DRAM_SECTORS] += 1
            had = int64(state.dram[0]) + device.dram_latency
    return had


@compiled
def load_sector(state, device, place, sector, base, time):
    """Return when a multiprocessor has a sector, by way of its L1."""
    line, part = sector * SECTOR // LINE, sector % (LINE // SECTOR)
    ways = state.lines[place, spread(line, 33, state.lines.shape[1])]
    chosen = 0
    for way in range(WAYS):
        if ways[way].tag == line:
            chosen = way
            break
        if ways[way].used < ways[chosen].used:
            chosen = way
    own = ways[chosen]
    if own.tag == line:
        own.used = time
        if own.valid >> part & 1:
            state.counts[L1_HITS] += 1
            return max(own.ready[part], time + device.l1_latency)
    else:
        own.tag, own.valid, own.used = line, 0, time
    state.counts[L2_SECTORS] += 1
    had = reach_l2(state, device, sector - base // SECTOR, time + ON_THE_WAY, False)
    back = max(had + device.l2_latency - ON_THE_WAY, 0)
    unit = state.multiprocessors[place]
    unit.port = max(unit.port, back * FRACTION)
    done = unit.port // FRACTION
    unit.port += FRACTION * SECTOR // device.l2_bytes
    own.valid |= 1 << part
    own.ready[part] = done
    return done


@compiled
def take_queue(state, place, passes, now):
    """Take a multiprocessor's turns for memory instructions, and return the first of them."""
    unit = state.multiprocessors[place]
    start = max(unit.queue, now + QUEUED)
    unit.queue = start + passes
    state.counts[QUEUE_BUSY] += passes
    return start


@compiled
def access_global(state, device, base, place, warp, registers, record, operands, mask, now):
    """Load or store; return when the result is there, and when the registers are read."""
    low, high, values = state.values[0], state.values[1], state.values[2]
    addresses, sectors, size = state.addresses, state.distinct, record.mode
    is_load = record.does == LDG
    load(warp, registers, operands[0], low)
    high[:] = 0
    if operands[0, KIND] == REGISTER and not record.flag:
        load(warp, registers, operands[0], high, 1)
    start = int64(record.offset)
    if operands[2, KIND] == UNIFORM:
        named = operands[2, VALUE]
        start += int64(warp.uniform[named + 1]) << 32 | int64(warp.uniform[named])
    end, count = base + 4 * state.memory.size, 0
    for lane in range(LANES):
        addresses[lane] = (int64(high[lane]) << 32 | int64(low[lane])) + start
        if mask >> lane & 1:
            address = addresses[lane]
            if address < base or address + size > end or address % size:
                state.fault[0], state.fault[2], state.fault[3] = BAD_ADDRESS, lane, address
                return now, now
            count = insert(sectors, count, address // SECTOR)
    for word in range(size // 4):
        if not is_load:
            load(warp, registers, operands[1], values, word)
        for lane in range(LANES):
            if mask >> lane & 1:
                where = (addresses[lane] - base) // 4 + word
                if is_load:
                    values[lane] = state.memory[where]
                else:
                    state.memory[where] = values[lane]
        if is_load:
            store(warp, registers, record, values, mask, word)
    if not mask:
        return now + NOBODY, now + QUEUED + READ
    lines = 0
    for k in range(count):
        per_line = LINE // SECTOR
        lines += k == 0 or sectors[k] // per_line != sectors[k - 1] // per_line
    passes = max(int64(math.ceil(lines * device.line)), (size * bits_set(mask) + LINE - 1) // LINE)
    state.counts[LINES] += lines
    state.counts[LOADS] += 1
    first = take_queue(state, place, passes, now)
    if is_load:
        last = first + passes + device.l1_latency
        for k in range(count):
            time = first + k * passes // count
            last = max(last, load_sector(state, device, place, sectors[k], base, time))
    else:
        unit, last = state.multiprocessors[place], first + passes
        for k in range(count):
            state.counts[WRITTEN_SECTORS] += 1
            unit.written = max(unit.written, first * FRACTION)
            time = unit.written // FRACTION + ON_THE_WAY
            unit.written += FRACTION * SECTOR // device.written_bytes
            reach_l2(state, device, sectors[k] - base // SECTOR, time, True)
    return last, first + passes + READ


@compiled
def bank_passes(addresses, words, banks, size, mask):
    """Return how often the banks are read, a word of each at a time, for parts of a warp."""
    part, passes = 32 if size <= 4 else 16 if size == 8 else 8, 0
    for start in range(0, LANES, part):
        count = 0
        for lane in range(start, start + part):
            if mask >> lane & 1:
                for word in range(size // 4):
                    count = insert(words, count, addresses[lane] // 4 + word)
        most, banks[:] = 0, 0
        for k in range(count):
            bank = words[k] % BANKS
            banks[bank] += 1
            most = max(most, banks[bank])
        passes += most
    return passes


@compiled
def access_shared(state, device, place, end, warp, registers, record, operands, mask, now):
    """Load, store or add; return when the result is there, and when the registers are read."""
    low, values, old = state.values[0], state.values[1], state.values[2]
    addresses, size, memory = state.addresses, record.mode, state.shared[warp.block]
    does = record.does
    load(warp, registers, operands[0], low)
    start = int64(record.offset)
    if operands[2, KIND] == UNIFORM:
        start += int64(warp.uniform[operands[2, VALUE]])
    for lane in range(LANES):
        address = int64(low[lane]) + start
        addresses[lane] = address
        if mask >> lane & 1 and (address < SHARED_START or address + size > end or address % size):
            state.fault[0], state.fault[2], state.fault[3] = BAD_SHARED_ADDRESS, lane, address
            return now, now
    for word in range(size // 4):
        if does != LDS:
            load(warp, registers, operands[1], values, word)
        for lane in range(LANES):
            if mask >> lane & 1:
                where = addresses[lane] // 4 + word
                old[lane] = memory[where]
                if does == STS:
                    memory[where] = values[lane]
                elif does == ATOMS:
                    memory[where] += values[lane]
        if does != STS:
            store(warp, registers, record, old, mask, word)
    passes = bank_passes(addresses, state.distinct, state.banks, size, mask)
    passes = max(1, 2 * passes if does == ATOMS else passes)
    state.counts[BANK_PASSES] += passes
    first = take_queue(state, place, passes, now)
    last = first + passes + device.shared_latency - 1 + (ATOMIC if does == ATOMS else 0)
    return last, first + passes + READ
