"""Branches, and the lanes of a warp: which are active, which wait, and for which others.

Each function returns whether it has set what the warp does next.
"""

from .compiling import compiled
from .instructions import KIND, NUMBER
from .integers import first_lane
from .lanes import load, load_predicate
from .state import DEADLOCK, FULL, LANES

BRA, BSSY, BSYNC, BREAK, WARPSYNC, BAR, CALL, RET, EXIT = (
    NUMBER[name]
    for name in ["BRA", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "CALL", "RET", "EXIT"]
)
BYTES = 16  # of an instruction
BARRIERS = 16


@compiled
def place_lanes(warp, lanes, pc):
    for lane in range(LANES):
        if lanes >> lane & 1:
            warp.pc[lane] = pc


@compiled
def lanes_at(warp, pc):
    """Return the lanes that could run from there."""
    runnable, found = (warp.exited | warp.waiting) ^ FULL, 0
    for lane in range(LANES):
        if runnable >> lane & 1 and warp.pc[lane] == pc:
            found |= 1 << lane
    return found


@compiled
def regroup(warp):
    """Go on with the lanes that are least far, if any can run."""
    runnable = (warp.exited | warp.waiting) ^ FULL
    warp.active = 0
    if runnable:
        least = warp.pc[first_lane(runnable)]
        for lane in range(LANES):
            if runnable >> lane & 1:
                least = min(least, warp.pc[lane])
        warp.active_pc, warp.active = least, lanes_at(warp, least)
    return warp.active != 0


@compiled
def release(warp, barrier):
    """Let the lanes of a barrier go on when all of them wait at it."""
    needed = warp.barriers[barrier] & (warp.exited ^ FULL)
    if not needed or needed & (warp.waiting ^ FULL):
        return
    for lane in range(LANES):
        if needed >> lane & 1 and warp.barrier[lane] != barrier:
            return
    warp.waiting &= needed ^ FULL
    warp.barriers[barrier] = 0
    for lane in range(LANES):
        if needed >> lane & 1:
            warp.pc[lane] += 1
            warp.barrier[lane] = -1


@compiled
def go_to(warp, lanes, target):
    """Let some active lanes go elsewhere; those that fall through go first."""
    others, pc = warp.active & (lanes ^ FULL), warp.active_pc
    if not lanes:
        return False
    if not others:
        warp.active_pc = target
        return True
    place_lanes(warp, lanes, target)
    warp.active, warp.active_pc = others, pc + 1
    return True


@compiled
def wait(warp, barrier, fault):
    pc, here = warp.active_pc, warp.active
    place_lanes(warp, here, pc)
    for lane in range(LANES):
        if here >> lane & 1:
            warp.barrier[lane] = barrier
    warp.waiting |= here
    release(warp, barrier)
    if not warp.waiting & here:
        warp.active, warp.active_pc = lanes_at(warp, pc + 1), pc + 1
    elif not regroup(warp):
        fault[0] = DEADLOCK
    return True


@compiled
def leave(warp, mask, fault):
    """Let lanes exit; the warp is over when all have."""
    warp.exited |= mask
    left, pc = warp.active & (mask ^ FULL), warp.active_pc
    if warp.exited == FULL:
        warp.alive = 0
    elif left:
        warp.active, warp.active_pc = left, pc + 1
    elif not regroup(warp):
        for barrier in range(BARRIERS):
            release(warp, barrier)
        if not regroup(warp):
            fault[0] = DEADLOCK
    return True


@compiled
def come_back(warp, registers, operands, mask, values):
    """Return from a call, each lane to where it came from."""
    load(warp, registers, operands[0], values[0])
    place_lanes(warp, warp.active & (mask ^ FULL), warp.active_pc + 1)
    for lane in range(LANES):
        if mask >> lane & 1:
            warp.pc[lane] = values[0, lane] // BYTES
    regroup(warp)
    return True


@compiled
def control(warp, registers, record, operands, mask, values, fault):
    does, mode = record.does, record.mode
    if does == BRA:
        lanes = mask
        if record.operands and operands[0, KIND]:
            lanes &= load_predicate(warp, operands[0])
        return go_to(warp, lanes, record.target)
    if does == CALL:
        return go_to(warp, mask, record.target)
    if does == RET:
        return come_back(warp, registers, operands, mask, values)
    if does == EXIT:
        return leave(warp, mask, fault)
    if does == BSYNC:
        return wait(warp, mode, fault)
    if does == WARPSYNC:
        warp.barriers[mode] = warp.exited ^ FULL
        return wait(warp, mode, fault)
    if does == BSSY:
        warp.barriers[mode] |= warp.active
    elif does == BREAK:
        warp.barriers[mode] &= mask ^ FULL
        release(warp, mode)
    return False
