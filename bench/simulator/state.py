"""What a simulated device is and holds: plain arrays, which compiled functions share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LANES, FULL = 32, (1 << 32) - 1  # of a warp; the mask of all of them
SHARED_START = 1 << 10  # of a block's own shared memory: what is before is the device's
REGISTERS, WARPS, SHARED_BYTES, L1_BYTES, BLOCKS = 1 << 16, 64, 228 << 10, 256 << 10, 32
CARVEOUTS = [n << 10 for n in (0, 8, 16, 32, 64, 100, 132, 164, 196, 228)]  # of it shared memory
WAYS, LINE, SECTOR = 8, 128, 32  # of L1: lines of a set; bytes
FRACTION = 64  # parts of a cycle that widths are counted in
UNWRITTEN = 0xCDCDCDCD  # what shared memory holds when a block starts

FINE, DEADLOCK, BAD_ADDRESS, BAD_SHARED_ADDRESS, BAD_CONSTANT, UNKNOWN = range(6)
(
    CYCLES, WARP_INSTRUCTIONS, L2_SECTORS, L1_HITS, LINES, LOADS, BANK_PASSES, DRAM_SECTORS,
    WRITTEN_SECTORS, QUEUE_BUSY, ISSUED, COUNTS,
) = range(12)  # fmt: skip


ISSUES, PASSES, WAITED, ISSUED_AT, SPENT = range(5)  # of an instruction


class Device(NamedTuple):
    """Counts, and times in cycles. Those of an H200, the last two calibrated by a measured run."""

    multiprocessors: int = 132
    branch: int = 6  # that is taken
    shared_latency: int = 29
    l1_latency: int = 36
    l2_latency: int = 270
    dram_latency: int = 350
    l2_slices: int = 96
    dram_bytes: float = 2430.0  # a cycle
    l2_bytes: int = 64  # a cycle, to a multiprocessor
    written_bytes: int = 32  # a cycle, from it
    queue: int = 16  # how far the queue of memory instructions may be ahead
    block_start: int = 300
    line: float = 0.5  # of a line of L1 that a load reads


WARP = np.dtype(
    [
        ("uniform", np.uint32, 64),
        ("predicates", np.int64, 8),
        ("uniform_predicates", np.int64, 8),
        ("pc", np.int32, LANES),  # of lanes that are not active
        ("barrier", np.int32, LANES),  # at which a lane waits
        ("barriers", np.int64, 16),  # the lanes that each waits for
        ("scoreboards", np.int64, 8),
        ("alive", np.int64),
        ("block", np.int64),
        ("number", np.int64),
        ("exited", np.int64),
        ("waiting", np.int64),
        ("active", np.int64),
        ("active_pc", np.int64),
        ("next", np.int64),  # when it may issue
        ("at_barrier", np.int64),  # of its block
    ]
)
BLOCK = np.dtype([(name, np.int64) for name in ("alive", "x", "y", "z", "arrived", "done")])
QUARTER = np.dtype(  # of a multiprocessor; when each pipe is free
    [
        (name, np.int64)
        for name in ["heavy", "light", "alu", "xu", "uniform", "wake", "last", "count"]
    ]
)  # fmt: skip
MULTIPROCESSOR = np.dtype([(n, np.int64) for n in ("queue", "port", "written", "next_block")])
CACHE_LINE = np.dtype(
    [("tag", np.int64), ("valid", np.int64), ("used", np.int64), ("ready", np.int64, 4)]
)


class Launch(NamedTuple):
    """Numbers of a launch, and of what of it a multiprocessor holds."""

    grid: tuple
    threads: tuple
    warps_of_block: int
    blocks_at_once: int
    shared_end: int
    base: int  # address of the simulated memory


class State(NamedTuple):
    program: np.ndarray
    operands: np.ndarray
    constants: np.ndarray
    memory: np.ndarray  # words
    in_l2: np.ndarray  # a flag for each sector of it
    registers: np.ndarray  # (warps, registers, lanes)
    warps: np.ndarray
    blocks: np.ndarray  # (multiprocessors, slots)
    shared: np.ndarray  # (blocks, words)
    quarters: np.ndarray  # (multiprocessors, 4)
    order: np.ndarray  # (multiprocessors, 4, warps), oldest first
    multiprocessors: np.ndarray
    lines: np.ndarray  # (multiprocessors, sets, WAYS)
    slices: np.ndarray
    dram: np.ndarray
    values: np.ndarray  # scratch: 32 bits for each lane, of operands and results
    addresses: np.ndarray
    distinct: np.ndarray
    banks: np.ndarray
    counts: np.ndarray
    spent: np.ndarray  # (instructions, SPENT)
    fault: np.ndarray  # kind, instruction, lane, address
