"""The simulated GPU runs kernels' own machine code, and says what is wrong with it."""

from importlib.util import find_spec

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bench.simulator import instructions
from bench.simulator.instructions import NAMES, NUMBER, UnknownInstruction, parse
from bench.simulator.machine import SimulationError, simulate
from bench.simulator.state import CYCLES, ISSUED, ISSUED_AT, ISSUES, PASSES, QUEUE_BUSY, Device

from . import reference
from .conftest import random_features
from .test_ptx import REQUIRED, toolchain_problem

pytestmark = pytest.mark.xdist_group("simulator")  # one process compiles the simulator, in a minute

BASE, PARAMETERS = 1 << 40, 0x210
STALL = 41  # where a control code has it
UNUSED = 7 << 46 | 7 << 49 | 1 << STALL  # scoreboards, and one cycle
ONE = Device(multiprocessors=1)


@pytest.fixture(scope="module")
def launches():
    """Return the module that compiles kernels, where there is what it takes."""
    problem = toolchain_problem()
    if not problem:
        from bench.simulator import launches

        if not find_spec("cuda.bindings") or not launches.nvdisasm():
            problem = "nvdisasm is not installed (nvidia-cuda-nvdisasm)"
    if problem:
        if REQUIRED:
            pytest.fail(f"the ptx lane was asked for: {problem}")
        pytest.skip(problem)
    return launches


def printed(lines):
    """Return lines as nvdisasm prints them; a number of cycles may follow an instruction."""
    text, place = [], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        line, _, stall = line.partition(" // ")
        control = UNUSED + (int(stall or 1) - 1 << STALL)
        text += [f"/*{place:04x}*/ {line} ; /* 0x{0:016x} */", f"/* 0x{control:016x} */"]
        place += 16
    return "\n".join(text)


def run(lines, threads, words=64, shared=256):
    """Run a program of one block, and return the memory that its parameter points to."""
    memory, bank = np.zeros(4 * words, np.uint8), np.zeros(PARAMETERS + 8, np.uint8)
    bank[PARAMETERS:].view(np.int64)[0] = BASE
    in_l2 = np.zeros(memory.size // 32, np.uint8)
    outcome = simulate(
        parse(printed(lines)), bank, memory, BASE, in_l2, (1, 1, 1), (threads, 1, 1), 32, shared,
        ONE,
    )  # fmt: skip
    assert outcome.counts[CYCLES] > ONE.block_start
    return memory.view(np.uint32)


SHARED_REVERSED = [
    "S2R R0, SR_TID.X",
    "LDC.64 R2, c[0x0][0x210]",
    "ISETP.GT.U32.AND P0, PT, R0, 0x1f, PT",
    "@!P0 BRA `(.L_x_0)",
    *["NOP // 15"] * 9,  # the second warp comes later
    ".L_x_0:",
    "IMAD.SHL.U32 R4, R0, 0x4, RZ",
    "STS [R4+0x400], R0",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "IADD3 R5, -R4, 0xfc, RZ",
    "LDS R6, [R5+0x400]",
    "IMAD.WIDE.U32 R2, R0, 0x4, R2",
    "STG.E desc[UR4][R2.64], R6",
    "EXIT",
]


def test_a_missing_barrier_is_seen_in_the_result():
    assert_array_equal(run(SHARED_REVERSED, 64), np.arange(64)[::-1])
    without = [line for line in SHARED_REVERSED if not line.startswith("BAR")]
    pooled = run(without, 64)
    assert (pooled[:32] == 0xCDCDCDCD).all()  # which nobody had written
    assert_array_equal(pooled[32:], np.arange(32)[::-1])


ADDED_UP = [
    "S2R R0, SR_LANEID",
    "LDC.64 R2, c[0x0][0x210]",
    "VOTE.ANY R4, PT, PT // 15",
    "SHFL.UP P0, R5, R0, 0x2, RZ // 15",
    "NOP // 15",
    "IMAD.MOV.U32 R6, RZ, RZ, R4",
    "@P0 IMAD.MOV.U32 R6, RZ, RZ, R5 // 15",
    "SHF.R.U64 R7, R0, 0x4, R6",
    "IMAD.WIDE.U32 R2, R0, 0x4, R2 // 15",
    "STG.E desc[UR4][R2.64], R7",
    "EXIT",
]


def test_threads_learn_of_each_other():
    lanes = np.arange(32, dtype=np.uint64)
    high = np.where(lanes < 2, 0xFFFFFFFF, lanes - np.uint64(2)).astype(np.uint64)
    expected = (high << np.uint64(32) | lanes) >> np.uint64(4) & np.uint64(0xFFFFFFFF)
    assert_array_equal(run(ADDED_UP, 32)[:32], expected)


def any_above(lane):
    """Return a program whose threads write 1 where any of their warp lies above a lane, or 0."""
    return [
        "S2R R0, SR_LANEID",
        "LDC.64 R2, c[0x0][0x210]",
        "NOP // 15",
        f"ISETP.GT.U32.AND P0, PT, R0, {lane:#x}, PT // 15",
        "VOTEU.ANY UP0, P0 // 15",
        "PLOP3.LUT P1, PT, PT, PT, UP0, 0x80, 0x0 // 15",
        "IMAD.MOV.U32 R6, RZ, RZ, RZ",
        "@P1 IMAD.MOV.U32 R6, RZ, RZ, 0x1",
        "IMAD.WIDE.U32 R2, R0, 0x4, R2 // 15",
        "STG.E desc[UR4][R2.64], R6",
        "EXIT",
    ]


def test_threads_vote():
    assert (run(any_above(30), 32)[:32] == 1).all()
    assert (run(any_above(31), 32)[:32] == 0).all()


ADDRESS = ["LDC.64 R2, c[0x0][0x210]"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*ADDRESS, "LDG.E R0, desc[UR4][R2.64+0x100]"], r"bad address 0x10000000100 in lane 0"),
        ([*ADDRESS, "STG.E desc[UR4][R2.64+-0x4], R0"], r"bad address 0xfffffffffc in lane 0"),
        ([*ADDRESS, "LDG.E.64 R0, desc[UR4][R2.64+0x4]"], "bad address"),  # not of 8 bytes
        (["LDS R0, [R4+0x500]"], "bad address in shared memory 0x500"),
        (["LDS R0, [R4]"], "bad address in shared memory 0x0"),
        (["LDC R0, c[0x0][0x1000]"], "bad address of a constant 0x1000"),
    ],
)
def test_bad_addresses_are_reported(lines, message):
    with pytest.raises(SimulationError, match=message) as raised:
        run([*lines, "EXIT"], 32)
    assert lines[-1] in str(raised.value)


def test_threads_that_wait_for_each_other_are_reported():
    lines = [
        "S2R R0, SR_LANEID",
        "ISETP.GT.AND P0, PT, R0, 0xf, PT",
        "BSSY B0, `(.L_x_0)",
        "BSSY B1, `(.L_x_1)",
        "@P0 BRA `(.L_x_1)",
        ".L_x_0:",
        "BSYNC B0",
        ".L_x_1:",
        "BSYNC B1",
        "EXIT",
    ]
    with pytest.raises(SimulationError, match=r"wait for each other at .*: BSYNC"):
        run(lines, 32)
    together = [line for line in lines if not line.startswith("@P0")]
    run(together, 32)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("@!P2 IMAD.MOV.U32 R8, RZ, RZ, R5.reuse", {"guard": 2, "guard_negated": 1}),
        ("IADD3 R8, P1, P2, R4, -R5, UR4", {"predicate": 1, "second_predicate": 2}),
        ("LOP3.LUT P0, RZ, R3, 0x7f, RZ, 0xc0, !PT", {"mode": 0xC0, "target_register": 255}),
        ("ULEA UR4, UR5, UR6, 0x18", {"does": NUMBER["LEA"], "uniform": 1}),
        ("ISETP.GE.U32.AND.EX P0, PT, R3, UR9, PT, P0", {"mode": 5, "flag": 1, "combine": 4}),
        ("SHFL.UP P5, R20, R23, 0x1, RZ", {"predicate": 5, "target_register": 20, "mode": 1}),
        ("LDC.U8 R2, c[0x0][R4+0x21c]", {"mode": 1, "offset": 0x21C}),
        ("STG.E.128 desc[UR4][R2.64+-0x10], R8", {"mode": 16, "offset": -16, "flag": 0}),
    ],
)
def test_instructions_are_read(line, fields):
    record = parse(printed([line])).records[0]
    assert {name: record[name] for name in fields} == fields
    assert NAMES[record["does"]].split("_")[0] in line


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("-R7", (instructions.REGISTER, 7, 1, 0, 0)),
        ("|UR3|", (instructions.UNIFORM, 3, 0, 1, 0)),
        ("~R9.reuse", (instructions.REGISTER, 9, 0, 0, 1)),
        ("-0x1", (instructions.IMMEDIATE, -1, 0, 0, 0)),
        ("1.5", (instructions.IMMEDIATE, 0x3FC00000, 0, 0, 0)),
        ("!UP2", (instructions.UNIFORM_PREDICATE, 2, 1, 0, 0)),
    ],
)
def test_operands_are_read(text, columns):
    assert instructions.operand_of(text, 0x3FC00000) == columns


@pytest.mark.parametrize(
    "line", ["STL [R1+0x2c], R0", "HFMA2.MMA R0, R1, R2, R3", "F2I.FLOOR R0, R1"]
)
def test_an_unknown_instruction_is_named(line):
    with pytest.raises(UnknownInstruction) as raised:
        parse(printed([line]))
    assert line in str(raised.value)


def boxes(rng, count, sides, shape):
    """Return boxes with sides within bounds, in a map."""
    height, width = shape[2:]
    sizes = rng.uniform(*sides, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sizes)
    image = rng.integers(0, shape[0], (count, 1))
    return np.hstack([image, corners, corners + sizes]).astype(np.float32)


CASES = {  # kernels, constants that choose them, shape, samples
    "a small call": (["schedule_small"], {}, (2, 5, 12, 15), 2),
    "boxes by columns": (
        ["schedule_boxes"],
        {"small.MOST_RESULTS": 0, "average.RESIDENT": 0, "banded.BINS_OF_PIXEL": np.inf},
        (2, 5, 12, 15),
        2,
    ),
    "bands, and a large box": (
        ["schedule_homes", "schedule_wide_bands", "schedule_large"],
        {
            "banded.BINS_OF_PIXEL": 0,
            "banded.LEAST_OUTPUTS": 0,
            "banded.LOOKS_OF_RESULT": np.inf,
            "whole.MOST_BOXES": 0,
        },
        (1, 8, 90, 80),
        0,
    ),
    "a few boxes of small maps": (
        ["schedule_whole"],
        {"small.MOST_RESULTS": 0, "banded.BINS_OF_PIXEL": 0},
        (2, 9, 12, 15),
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_machine_code_pools_what_the_reference_does(launches, rng, monkeypatch, case):
    from numba_roialign.conventions import TORCHVISION

    names, constants, shape, samples = CASES[case]
    for name, value in constants.items():
        monkeypatch.setattr(f"numba_roialign._cuda.{name}", value)
    features, rois = random_features(rng, shape, np.float32), boxes(rng, 4, (3, 9), shape)
    rois[1, 1:] = 0, 0, shape[3], shape[2]
    call = launches.record(features, rois, 3, 1.0, samples, TORCHVISION)
    assert [launch.name for launch in call.launches] == names
    for launch in call.launches:
        outcome = launches.run(launch, call.memory)
        counts, spent = outcome.counts, outcome.spent.sum(0)
        assert outcome.held >= 1
        assert counts[CYCLES] > Device().block_start
        assert (spent[ISSUES], spent[PASSES]) == (counts[ISSUED], counts[QUEUE_BUSY])
        assert len(outcome.texts) == len(outcome.spent)
        began = outcome.spent[0]
        assert Device().block_start <= began[ISSUED_AT] / began[ISSUES] < counts[CYCLES]
        assert began[ISSUED_AT] / began[ISSUES] < spent[ISSUED_AT] / spent[ISSUES] < counts[CYCLES]
    expected = reference.roi_align(features, rois, (3, 3), 1.0, samples)
    assert_allclose(call.pooled, expected, rtol=0, atol=5e-5)
