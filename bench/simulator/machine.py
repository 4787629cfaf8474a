"""The machine: it runs a launch's program on all multiprocessors, cycle by cycle.

Each instruction is executed when its warp issues it, so memory holds what the kernel computes. When
it issues, its control code, its pipe and what it waits for decide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiling import compiled, kept
from .control import BAR, BRA, CALL, EXIT, RET, control
from .floats import LAST_CONVERSION, LAST_FLOAT, conversion, floating
from .instructions import ANY_FMA, HEAVY_FMA, NO_PIPE, QUEUE, TRUE, UNIFORM_PIPE, XU
from .integers import LAST_INTEGER, integer
from .memory import LDG, READ, access_global, access_shared
from .state import (
    BAD_ADDRESS,
    BAD_CONSTANT,
    BAD_SHARED_ADDRESS,
    BLOCK,
    BLOCKS,
    CACHE_LINE,
    CARVEOUTS,
    COUNTS,
    CYCLES,
    DEADLOCK,
    FULL,
    ISSUED,
    ISSUED_AT,
    ISSUES,
    L1_BYTES,
    LANES,
    LINE,
    MULTIPROCESSOR,
    PASSES,
    QUARTER,
    QUEUE_BUSY,
    REGISTERS,
    SHARED_BYTES,
    SHARED_START,
    SPENT,
    UNWRITTEN,
    WAITED,
    WARP,
    WARP_INSTRUCTIONS,
    WARPS,
    WAYS,
    Device,
    Launch,
    State,
)

STG = LDG + 1
NEVER = np.iinfo(np.int64).max
NO_SCOREBOARD = 6
QUARTERS, BARRIER_TIME, REGISTERS_READ = 4, 10, 4 + READ
PROBLEMS = {
    DEADLOCK: "threads wait for each other",
    BAD_ADDRESS: "bad address",
    BAD_SHARED_ADDRESS: "bad address in shared memory",
    BAD_CONSTANT: "bad address of a constant",
}


class Outcome(NamedTuple):
    """What a launch took."""

    counts: np.ndarray
    held: int  # blocks of a multiprocessor
    spent: (
        np.ndarray
    )  # of each instruction: how often warps issued it, its passes, their waiting, its cycles
    texts: list  # the instructions


class SimulationError(RuntimeError):
    """The program did what a device would not bear."""


@compiled
def start_block(state, device, launch, place, slot, number, now):
    """Put a block into a slot of a multiprocessor."""
    block = state.blocks[place, slot]
    width, height, _ = launch.grid
    block.alive, block.arrived, block.done = 1, 0, 0
    block.x, block.y = number % width, number // width % height
    block.z = number // (width * height)
    index = place * launch.blocks_at_once + slot
    state.shared[index, :] = UNWRITTEN
    threads = launch.threads[0] * launch.threads[1] * launch.threads[2]
    for k in range(launch.warps_of_block):
        w = index * launch.warps_of_block + k
        state.registers[w, :, :] = 0
        warp = state.warps[w]
        warp.uniform[:] = 0
        warp.predicates[:] = 0
        warp.uniform_predicates[:] = 0
        warp.predicates[TRUE] = warp.uniform_predicates[TRUE] = FULL
        warp.pc[:] = 0
        warp.barrier[:] = -1
        warp.barriers[:] = 0
        warp.scoreboards[:] = 0
        warp.alive, warp.block, warp.number, warp.waiting, warp.at_barrier = 1, index, k, 0, 0
        warp.active = (1 << min(LANES, threads - LANES * k)) - 1
        warp.exited, warp.active_pc = warp.active ^ FULL, 0
        warp.next = now + device.block_start
        quarter = state.quarters[place, w % QUARTERS]
        listed, order = False, state.order[place, w % QUARTERS]
        for other in range(quarter.count):
            listed = listed or order[other] == w
        if not listed:
            order[quarter.count] = w
            quarter.count += 1
        quarter.wake = min(quarter.wake, warp.next)


@compiled
def meet(state, launch, place, warp, now):
    """Let the warps of a block go on when all that are left are at its barrier."""
    block = state.blocks[place, warp.block % launch.blocks_at_once]
    if block.arrived + block.done < launch.warps_of_block:
        return
    block.arrived = 0
    for k in range(launch.warps_of_block):
        w = warp.block * launch.warps_of_block + k
        other = state.warps[w]
        if other.alive and other.at_barrier:
            other.at_barrier = 0
            other.next = max(other.next, now + BARRIER_TIME)
            quarter = state.quarters[place, w % QUARTERS]
            quarter.wake = min(quarter.wake, other.next)


@compiled
def end_warp(state, launch, place, warp, now):
    block = state.blocks[place, warp.block % launch.blocks_at_once]
    block.done += 1
    if block.done == launch.warps_of_block:
        block.alive = 0
        state.multiprocessors[place].next_block = now + 1
    elif block.arrived:
        meet(state, launch, place, warp, now)


@compiled
def execute(state, device, launch, place, w, now):
    """Execute a warp's next instruction."""
    warp, registers = state.warps[w], state.registers[w]
    pc = warp.active_pc
    record, operands, fault = state.program[pc], state.operands[pc], state.fault
    state.counts[WARP_INSTRUCTIONS] += 1
    state.spent[pc, ISSUES] += 1
    state.spent[pc, WAITED] += now - warp.next
    state.spent[pc, ISSUED_AT] += now
    busy = state.counts[QUEUE_BUSY]
    mask, guard = warp.active, warp.predicates[record.guard]
    if record.guard_uniform:
        guard = FULL if warp.uniform_predicates[record.guard] else 0
    mask &= guard ^ FULL if record.guard_negated else guard
    does, values, jumped, time = record.does, state.values, False, max(record.stall, 1)
    done, read = now + record.latency, now + REGISTERS_READ
    fault[1], fault[2] = pc, 0
    if does <= LAST_INTEGER:
        block = state.blocks[place, warp.block % launch.blocks_at_once]
        integer(
            warp, registers, record, operands, mask, values, state.constants, fault, block, launch
        )
    elif does <= LAST_FLOAT:
        floating(warp, registers, record, operands, mask, values)
    elif does <= LAST_CONVERSION:
        conversion(warp, registers, record, operands, mask, values)
    elif does <= STG:
        done, read = access_global(
            state, device, launch.base, place, warp, registers, record, operands, mask, now
        )
    elif does < BRA:
        done, read = access_shared(
            state, device, place, launch.shared_end, warp, registers, record, operands, mask, now
        )
    elif does == BAR:
        if mask:
            state.blocks[place, warp.block % launch.blocks_at_once].arrived += 1
            warp.at_barrier, warp.next = 1, now
            meet(state, launch, place, warp, now)
    else:
        jumped = control(warp, registers, record, operands, mask, values, fault)
        if not warp.alive:
            end_warp(state, launch, place, warp, now)
            return
    state.spent[pc, PASSES] += state.counts[QUEUE_BUSY] - busy
    if not jumped:
        warp.active_pc = pc + 1
    elif warp.active_pc != pc + 1 and (does in (BRA, CALL, RET, EXIT)):
        time += device.branch
    warp.next = max(warp.next, now + time) if does == BAR else now + time
    for board, when in ((record.writes, done), (record.reads, read)):
        if board < NO_SCOREBOARD:
            warp.scoreboards[board] = max(warp.scoreboards[board], when)


@compiled
def ready(warp, record):
    """Return when a warp may issue, for its own sake."""
    time = warp.next
    if record.waits:
        for board in range(NO_SCOREBOARD):
            if record.waits >> board & 1:
                time = max(time, warp.scoreboards[board])
    return time


@compiled
def take_pipe(state, device, place, quarter, record, now):
    """Take an instruction's pipe if it is free, and return when it is."""
    pipe, end = record.pipe, now + record.cost
    if pipe == NO_PIPE:
        return now
    if pipe == QUEUE:
        return state.multiprocessors[place].queue - device.queue
    if pipe == ANY_FMA and quarter.heavy > quarter.light:
        free = quarter.light
        if free <= now:
            quarter.light = end
    elif pipe in (ANY_FMA, HEAVY_FMA):
        free = quarter.heavy
        if free <= now:
            quarter.heavy = end
    elif pipe == XU:
        free = quarter.xu
        if free <= now:
            quarter.xu = end
    elif pipe == UNIFORM_PIPE:
        free = quarter.uniform
        if free <= now:
            quarter.uniform = end
    else:
        free = quarter.alu
        if free <= now:
            quarter.alu = end
    return free


@compiled
def issue(state, device, launch, place, which, now):
    """Issue an instruction of a quarter: of the warp that issued last, else of the oldest.

    Return when there may be another.
    """
    quarter, order = state.quarters[place, which], state.order[place, which]
    best, k = NEVER, -1
    while k < quarter.count:
        w = quarter.last if k < 0 else order[k]
        if w < 0 or (k >= 0 and w == quarter.last):
            k += 1
            continue
        warp = state.warps[w]
        if not warp.alive:
            if k < 0:
                quarter.last = -1
                k += 1
            else:
                quarter.count -= 1
                for other in range(k, quarter.count):
                    order[other] = order[other + 1]
            continue
        k += 1
        if warp.at_barrier:
            continue
        record = state.program[warp.active_pc]
        time = ready(warp, record)
        if time <= now:
            time = take_pipe(state, device, place, quarter, record, now)
            if time <= now:
                execute(state, device, launch, place, w, now)
                quarter.last = w
                state.counts[ISSUED] += 1
                return now + 1
        best = min(best, time)
    return best


@kept
@compiled
def run(state, device, launch):
    """Run all blocks."""
    total = launch.grid[0] * launch.grid[1] * launch.grid[2]
    places, begun, now = state.multiprocessors.size, 0, 0
    for slot in range(launch.blocks_at_once):
        for place in range(places):
            if begun < total:
                start_block(state, device, launch, place, slot, begun, now)
                begun += 1
    while True:
        following = NEVER
        for place in range(places):
            unit = state.multiprocessors[place]
            if unit.next_block == now:
                for slot in range(launch.blocks_at_once):
                    if begun < total and not state.blocks[place, slot].alive:
                        start_block(state, device, launch, place, slot, begun, now)
                        begun += 1
            for k in range(QUARTERS):
                which = (k + now) % QUARTERS
                if state.quarters[place, which].wake <= now:
                    time = issue(state, device, launch, place, which, now)
                    if state.fault[0]:
                        return
                    state.quarters[place, which].wake = time
            for k in range(QUARTERS):
                following = min(following, state.quarters[place, k].wake)
            if unit.next_block > now:
                following = min(following, unit.next_block)
        if following == NEVER:
            break
        now = max(now + 1, following)
    state.counts[CYCLES] = now
    for w in range(state.warps.size):
        if state.warps[w].alive:
            state.fault[0], state.fault[1] = DEADLOCK, state.warps[w].active_pc - 1
            return


def blocks_at_once(warps, registers, shared_bytes):
    """Return how many blocks a multiprocessor holds."""
    of_warp = -(-registers // 8) * 8 * LANES
    by_registers = REGISTERS // 4 // of_warp * 4 // warps
    return min(by_registers, WARPS // warps, SHARED_BYTES // (shared_bytes + SHARED_START), BLOCKS)


def state_of(program, constants, memory, in_l2, warps, held, registers, shared_bytes, device):
    """Return a device before a launch."""
    places = device.multiprocessors
    needed = held * (shared_bytes + SHARED_START)
    cache = max(L1_BYTES - min(size for size in CARVEOUTS if size >= needed), 8 << 10)
    quarters = np.zeros((places, QUARTERS), QUARTER)
    quarters["last"] = -1
    lines = np.zeros((places, cache // (LINE * WAYS), WAYS), CACHE_LINE)
    lines["tag"] = -1
    rows = max(registers, program.registers)
    return State(
        program.records, program.operands, constants, memory.view(np.uint32), in_l2,
        registers=np.empty((places * held * warps, rows, LANES), np.uint32),
        warps=np.zeros(places * held * warps, WARP),
        blocks=np.zeros((places, held), BLOCK),
        shared=np.empty((places * held, (SHARED_START + shared_bytes + 3) // 4), np.uint32),
        quarters=quarters,
        order=np.zeros((places, QUARTERS, held * warps + 1), np.int64),
        multiprocessors=np.zeros(places, MULTIPROCESSOR),
        lines=lines,
        slices=np.zeros(device.l2_slices, np.int64),
        dram=np.zeros(1),
        values=np.zeros((5, LANES), np.uint32),
        addresses=np.zeros(LANES, np.int64),
        distinct=np.zeros(4 * LANES, np.int64),
        banks=np.zeros(32, np.int64),
        counts=np.zeros(COUNTS, np.int64),
        spent=np.zeros((len(program.texts), SPENT), np.int64),
        fault=np.zeros(4, np.int64),
    )  # fmt: skip


def simulate(
    program, constants, memory, base, in_l2, grid, threads, registers, shared_bytes, device=None
):
    """Run a launch on memory that begins at an address, and return what it took.

    `in_l2` says of each sector of the memory whether the L2 cache has it, and is written.
    """
    device = device or Device()
    warps = -(-int(np.prod(threads)) // LANES)
    held = blocks_at_once(warps, registers, shared_bytes)
    if held < 1:
        raise SimulationError("a multiprocessor does not hold a block")
    state = state_of(
        program, constants, memory, in_l2, warps, held, registers, shared_bytes, device
    )  # fmt: skip
    end = SHARED_START + shared_bytes
    run(state, device, Launch(tuple(grid), tuple(threads), warps, held, end, base))
    kind, pc, lane, address = (int(number) for number in state.fault)
    if kind:
        where = f"{16 * pc:#x}: {program.texts[pc]}"
        detail = "" if kind == DEADLOCK else f" {address:#x} in lane {lane}"
        raise SimulationError(f"{PROBLEMS[kind]}{detail} at {where}")
    return Outcome(state.counts, held, state.spent, program.texts)


def shares(counts, device):
    """Return which parts of the cycles instructions were issued in, and the queue was busy in."""
    cycles = int(counts[CYCLES]) * device.multiprocessors
    return counts[ISSUED] / (QUARTERS * cycles), counts[QUEUE_BUSY] / cycles
