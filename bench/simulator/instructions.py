"""Machine code of sm_90: what nvdisasm prints of a kernel, as arrays of instructions.

An instruction is a record, of what it does and of its control code, and six operands. What it does
is a number out of `NAMES`, in groups by what computes it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

NAMES = [
    # integers and predicates
    "MOV", "IMAD", "IMAD_X", "IMAD_WIDE", "IMAD_HI", "IADD3", "IADD3_X", "VIADD", "VIADDMNMX",
    "VIMNMX", "LEA", "LEA_HI_X", "LEA_HI_X_SX32", "LOP3", "SEL", "SHF_L", "SHF_L_HI", "SHF_R",
    "SHF_R_LO", "IABS", "PRMT", "POPC", "FLO", "ISETP", "PLOP3", "P2R", "R2P", "VOTEU", "VOTE",
    "SHFL", "S2R", "R2UR", "CS2R", "LDC",
    # floats, conversions
    "FADD", "FMUL", "FFMA", "FSEL", "FMNMX", "FRND", "MUFU", "FSETP", "FCHK",
    "F2I_U32", "F2I_S32", "F2I_S64", "I2F_U32", "I2F_S32", "I2F_S64",
    # memory, control
    "LDG", "STG", "LDS", "STS", "ATOMS",
    "BRA", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "CALL", "RET", "EXIT", "NOP",
]  # fmt: skip
NUMBER = {name: number for number, name in enumerate(NAMES)}

NONE, REGISTER, UNIFORM, IMMEDIATE, PREDICATE, UNIFORM_PREDICATE = range(6)  # kinds of operands
KIND, VALUE, NEGATED, ABSOLUTE, INVERTED = range(5)  # columns of an operand
ZERO, UNIFORM_ZERO, TRUE = 255, 63, 7  # RZ, URZ and PT
OPERANDS = 6

NO_PIPE, ANY_FMA, HEAVY_FMA, ALU, XU, UNIFORM_PIPE, QUEUE = range(7)
XU_LATENCY, WIDE_LATENCY, LONGER = 24, 8, 20  # cycles; what 64 bits take more; where none is known
LATENCIES = {"SHFL": 29, "S2R": 30, "R2UR": 12}
CONSTANT_LATENCY = 40  # of constants that threads read, not warps

INSTRUCTION = np.dtype(
    [
        (name, np.int32)
        for name in [
            "does",
            "guard",
            "guard_negated",
            "guard_uniform",
            "target_register",
            "predicate",
            "second_predicate",
            "operands",
            "mode",
            "flag",
            "combine",
            "uniform",
            "offset",
            "target",
            "stall",
            "writes",
            "reads",
            "waits",
            "pipe",
            "cost",
            "latency",
        ]
    ]
)
COMPARISONS = {"LT": 0, "EQ": 1, "LE": 2, "GT": 3, "NE": 4, "GE": 5}
SPECIAL = {
    "SR_TID.X": 0, "SR_TID.Y": 1, "SR_TID.Z": 2, "SR_CTAID.X": 3, "SR_CTAID.Y": 4,
    "SR_CTAID.Z": 5, "SR_CgaCtaId": 6, "SR_LANEID": 7, "SR_LTMASK": 8,
}  # fmt: skip
EXTENDED = 4  # of `combine`: the comparison goes on with that of the lower halves


class UnknownInstruction(ValueError):
    """An instruction, or a form of one, that the simulator does not know."""


class Program(NamedTuple):
    """The instructions of a kernel."""

    records: np.ndarray
    operands: np.ndarray  # (instructions, OPERANDS, columns)
    texts: list

    @property
    def registers(self):
        """How many registers may be named, those of wide operands included."""
        reads = self.operands[..., VALUE][self.operands[..., KIND] == REGISTER]
        writes = self.records["target_register"][self.records["target_register"] != ZERO]
        return 4 + int(max(reads.max(initial=0), writes.max(initial=0)))


def as_signed(number):
    return (number & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def is_predicate(text):
    return re.fullmatch(r"!?U?P[\dT]", text) is not None


def predicate_operand(text):
    negated, uniform, name = re.fullmatch(r"(!?)(U?)P([\dT])", text).groups()
    number = TRUE if name == "T" else int(name)
    return UNIFORM_PREDICATE if uniform else PREDICATE, number, bool(negated), 0, 0


def operand_of(text, encoded=0):
    """Return an operand's columns; `encoded` are the 32 bits of a float that stands in the code."""
    text = text.removesuffix(".reuse").replace(".reuse", "")
    if is_predicate(text):
        return predicate_operand(text)
    if found := re.fullmatch(r"([-~]?)(\|?)(U?R)(\d+|Z)(?:\.64)?\|?(?:\.64)?", text):
        sign, absolute, kind, number = found.groups()
        signs = sign == "-", bool(absolute), sign == "~"
        if number == "Z":
            return IMMEDIATE, 0, *signs
        return REGISTER if kind == "R" else UNIFORM, int(number), *signs
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return IMMEDIATE, as_signed(int(text, 16)), 0, 0, 0
    if re.fullmatch(r"[-+]?(INF|QNAN|[\d.]+(e[-+]?\d+)?)", text.strip()):
        return IMMEDIATE, as_signed(encoded), 0, 0, 0
    raise ValueError(f"an operand {text}")


def register_of(text):
    uniform, number = re.fullmatch(r"(U?)R(\d+|Z)(?:\.64)?", text).groups()
    return (UNIFORM_ZERO if uniform else ZERO) if number == "Z" else int(number)


def predicate_of(text):
    return predicate_operand(text)[VALUE]


def pipe_of(name, uniform):
    """Return the pipe of an instruction, how long it takes it, and the latency of its result."""
    if name in ("FADD", "FMUL", "FFMA"):
        return ANY_FMA, 2, LONGER
    if name in ("IMAD", "IMAD_X", "IMAD_WIDE", "IMAD_HI") and not uniform:
        return HEAVY_FMA, 4 if name in ("IMAD_WIDE", "IMAD_HI") else 2, LONGER
    if name in ("F2I_S64", "I2F_S64"):
        return XU, 16, XU_LATENCY + WIDE_LATENCY
    if name in ("MUFU", "FLO", "POPC", "FCHK", "FRND") or name.startswith(("F2I", "I2F")):
        return XU, 8, XU_LATENCY
    if name in ("LDG", "STG", "LDS", "STS", "ATOMS", "SHFL"):
        return QUEUE, 0, LATENCIES.get(name, LONGER)
    if NUMBER[name] >= NUMBER["BRA"]:
        return NO_PIPE, 0, LONGER
    if name == "LDC" and not uniform:
        return UNIFORM_PIPE, 2, CONSTANT_LATENCY
    if uniform or name in ("LDC", "S2R", "R2UR", "VOTEU", "CS2R"):
        return UNIFORM_PIPE, 2, LATENCIES.get(name, LONGER)
    return ALU, 2, LONGER


class Reader:
    """Reads one instruction into its record and its operands."""

    def __init__(self, record, operands, text, low, high, labels):
        self.record, self.slots, self.labels = record, operands, labels
        self.encoded = low >> 32
        record["stall"] = high >> 41 & 15
        record["writes"], record["reads"] = high >> 46 & 7, high >> 49 & 7
        record["waits"] = high >> 52 & 63
        record["guard"], record["target_register"], record["target"] = TRUE, ZERO, -1
        record["predicate"] = record["second_predicate"] = -1
        if guard := re.match(r"@(\S+)\s+", text):
            kind, number, negated, _, _ = predicate_operand(guard[1])
            record["guard"], record["guard_negated"] = number, negated
            record["guard_uniform"] = kind == UNIFORM_PREDICATE
            text = text[guard.end() :]
        name, _, rest = text.partition(" ")
        self.name, *self.modifiers = name.split(".")
        self.words = [word.strip() for word in re.split(r",(?![^\[]*\])", rest) if word.strip()]
        if self.name in UNIFORM_NAMES:
            record["uniform"], self.name = 1, UNIFORM_NAMES[self.name]

    def read(self):
        FORMS[self.name](self)

    def has(self, modifier):
        return modifier in self.modifiers

    def allow(self, *modifiers):
        if unknown := set(self.modifiers) - set(modifiers):
            raise ValueError(f"modifiers {', '.join(sorted(unknown))}")

    def does(self, name, operands=()):
        """Set what it does, and the operands it reads."""
        record, uniform = self.record, self.record["uniform"]
        record["does"], record["operands"] = NUMBER[name], len(operands)
        record["pipe"], record["cost"], record["latency"] = pipe_of(name, uniform)
        for slot, word in enumerate(operands):
            self.slots[slot] = operand_of(word, self.encoded)

    def plain(self):
        """A register, then what it is made of."""
        self.record["target_register"] = register_of(self.words[0])
        self.does(self.name, self.words[1:])

    def with_carries(self, name):
        """A register, the predicates of its carries, then what it is made of."""
        self.record["target_register"] = register_of(self.words[0])
        words = self.words[1:]
        for field in "predicate", "second_predicate":
            if is_predicate(words[0]):
                self.record[field] = predicate_of(words.pop(0))
        self.does(name, words)

    def two_predicates(self, operands):
        self.record["predicate"] = predicate_of(self.words[0])
        self.record["second_predicate"] = predicate_of(self.words[1])
        self.does(self.name, operands)

    def minimum(self):
        self.record["mode"] = self.has("U32")
        self.plain()

    def half_moves(self):  # a constant, by way of a pipe that is free
        if not {*self.words[1:3]} <= {"RZ", "-RZ"}:
            raise ValueError("more than a constant")
        self.name = "MOV"
        self.record["target_register"] = register_of(self.words[0])
        self.does("MOV")
        self.record["operands"] = 1
        self.slots[0] = IMMEDIATE, as_signed(self.encoded), 0, 0, 0

    def moves(self):
        self.record["target_register"] = register_of(self.words[0])
        self.does("MOV", self.words[1:2])

    def multiplies(self):
        self.allow("WIDE", "HI", "U32", "X", "MOV", "IADD", "SHL")
        if self.has("HI") and not self.has("U32"):
            raise ValueError("signed")
        self.record["mode"] = not self.has("U32")
        kinds = [kind for kind in ("WIDE", "HI", "X") if self.has(kind)]
        self.with_carries("_".join(["IMAD", *kinds]))
        if self.record["predicate"] not in (-1, TRUE):
            raise ValueError("a carry")

    def adds(self):
        self.with_carries("IADD3_X" if self.has("X") else "IADD3")

    def scales(self):
        kinds = "_HI_X_SX32" if self.has("SX32") else "_HI_X" if self.has("HI") else ""
        self.with_carries("LEA" + kinds)

    def logic(self):
        if is_predicate(self.words[0]):
            self.record["predicate"] = predicate_of(self.words.pop(0))
        if self.words[5] not in ("!PT", "!UPT"):
            raise ValueError("a predicate that takes part")
        self.record["target_register"] = register_of(self.words[0])
        self.record["mode"] = int(self.words[4], 16)
        self.does("LOP3", self.words[1:4])

    def predicate_logic(self):
        self.record["mode"], self.record["flag"] = (int(word, 16) for word in self.words[5:7])
        self.two_predicates(self.words[2:5])

    def compares(self):
        comparison = self.modifiers[0]
        if self.name == "FSETP":
            unordered = comparison.endswith("U")
            comparison, self.record["flag"] = comparison.removesuffix("U"), unordered
        else:
            self.record["flag"] = self.has("U32")
        self.record["mode"] = COMPARISONS[comparison]
        combine = next(k for k, word in enumerate(("AND", "OR", "XOR")) if self.has(word))
        self.record["combine"] = combine + EXTENDED * self.has("EX")
        self.two_predicates(self.words[2:])

    def special_function(self):
        self.record["mode"] = ["RCP", "RSQ", "SQRT"].index(self.modifiers[0])
        self.plain()

    def checks(self):
        self.record["predicate"] = predicate_of(self.words[0])
        self.does("FCHK", self.words[1:])

    def to_integer(self):
        self.allow("FTZ", "U32", "S64", "TRUNC", "NTZ")
        kind = "S64" if self.has("S64") else "U32" if self.has("U32") else "S32"
        self.name = f"F2I_{kind}"
        self.plain()

    def to_float(self):
        self.allow("U32", "S64", "RP", "F32", "S32")
        kind = "S64" if self.has("S64") else "U32" if self.has("U32") else "S32"
        if self.has("RP") and kind != "U32":
            raise ValueError("signed, rounded up")
        self.record["mode"], self.name = self.has("RP"), f"I2F_{kind}"
        self.plain()

    def votes(self):
        self.allow("ANY")
        if len(self.words) == 2:  # whether any thread says so
            self.record["predicate"] = predicate_of(self.words[0])
        else:
            self.record["target_register"] = register_of(self.words[0])
        self.does(self.name, self.words[-1:])

    def shuffles(self):
        self.allow("IDX", "UP")
        self.record["target_register"] = register_of(self.words[1])
        if self.has("UP"):
            self.record["predicate"], self.record["mode"] = predicate_of(self.words[0]), 1
        self.does("SHFL", self.words[2:4])

    def special_register(self):
        self.record["target_register"] = register_of(self.words[0])
        self.record["mode"] = SPECIAL[self.words[1]]
        self.does("S2R")

    def zeros(self):
        if self.words[1] != "SRZ":
            raise ValueError("more than zeros")
        self.record["target_register"] = register_of(self.words[0])
        self.record["mode"] = not self.has("32")
        self.does("CS2R")

    def constants(self):
        self.allow("64", "U8")
        form = r"c\[0x0\]\[(?:(U?RZ|U?R\d+)?\+?)?(-?0x[0-9a-f]+)?\]"
        register, offset = re.fullmatch(form, self.words[1]).groups()
        self.record["target_register"] = register_of(self.words[0])
        self.record["offset"] = int(offset or "0", 16)
        self.record["mode"] = 8 if self.has("64") else 1 if self.has("U8") else 4
        self.does("LDC", [register] if register else [])

    def memory(self):
        self.allow("E", "64", "128", "ADD", "CONSTANT")
        stores = self.name in ("STG", "STS")
        place = re.search(r"\[([^\[\]]*)\]$", self.words[0 if stores else 1])[1]
        self.does(self.name)
        self.record["mode"] = 16 if self.has("128") else 8 if self.has("64") else 4
        self.slots[0] = IMMEDIATE, 0, 0, 0, 0
        for part in place.split("+"):
            if part.startswith(("0x", "-0x")):
                self.record["offset"] += int(part, 16)
            elif part.startswith("UR"):
                self.slots[2] = operand_of(part)
            else:
                self.slots[0] = operand_of(part.replace(".U32", "").replace(".64", ""))
                self.record["flag"] = ".64" not in part  # an address of 32 bits
        if stores:
            self.slots[1] = operand_of(self.words[1])
        else:
            self.record["target_register"] = register_of(self.words[0])
            if self.name == "ATOMS":
                self.slots[1] = operand_of(self.words[2])

    def branches(self):
        self.does(self.name, self.words[:-1] if self.name == "BRA" else [])
        self.record["target"] = self.labels[re.search(r"`\(\.?(.*?)\)", self.words[-1])[1]]

    def returns(self):
        self.does("RET", [self.words[0].split()[0]])

    def barrier(self):
        word = self.words[0 if self.name == "BSSY" else -1]
        self.record["mode"] = int(word.removeprefix("B"))
        self.does(self.name)

    def all_together(self):
        if not self.has("ALL"):
            raise ValueError("some threads of a warp")
        self.record["mode"] = 15  # a barrier that compilers do not name
        self.does("WARPSYNC")

    def nothing(self):
        self.does("NOP")

    def bare(self):
        self.does(self.name)

    def shifts(self):
        self.record["target_register"] = register_of(self.words[0])
        if self.has("L"):
            name = "SHF_L_HI" if self.has("HI") else "SHF_L"
        elif self.has("HI"):
            name, self.record["mode"] = "SHF_R", self.has("S32")
        else:
            name = "SHF_R_LO"
        self.does(name, self.words[1:])

    def predicates_moved(self):
        self.allow()
        if self.name == "P2R":
            self.record["target_register"] = register_of(self.words.pop(0))
        if self.words[0] != "PR":
            raise ValueError("other than predicates")
        self.record["mode"] = int(self.words[2], 16)
        self.does(self.name, self.words[1:2])

    def rounds(self):
        if self.modifiers != ["CEIL"]:
            raise ValueError("not up")
        self.plain()


OF_WARPS = ["IADD3", "IMAD", "ISETP", "LEA", "LOP3", "MOV", "SEL", "SHF", "FLO", "POPC", "PRMT"]
UNIFORM_NAMES = {"ULDC": "LDC", "S2UR": "S2R"} | {"U" + name: name for name in OF_WARPS}
FORMS = {
    "MOV": Reader.moves, "HFMA2": Reader.half_moves, "IMAD": Reader.multiplies,
    "IADD3": Reader.adds, "VIADDMNMX": Reader.minimum, "VIMNMX": Reader.minimum,
    "LEA": Reader.scales, "LOP3": Reader.logic, "PLOP3": Reader.predicate_logic,
    "ISETP": Reader.compares, "FSETP": Reader.compares, "MUFU": Reader.special_function,
    "FCHK": Reader.checks, "F2I": Reader.to_integer, "I2F": Reader.to_float,
    "I2FP": Reader.to_float, "VOTEU": Reader.votes, "VOTE": Reader.votes, "SHFL": Reader.shuffles,
    "S2R": Reader.special_register, "CS2R": Reader.zeros, "LDC": Reader.constants,
    "BRA": Reader.branches, "CALL": Reader.branches, "RET": Reader.returns,
    "BSSY": Reader.barrier, "BSYNC": Reader.barrier, "BREAK": Reader.barrier,
    "WARPSYNC": Reader.all_together, "NOP": Reader.nothing, "YIELD": Reader.nothing,
    "SHF": Reader.shifts, "P2R": Reader.predicates_moved, "R2P": Reader.predicates_moved,
    "FRND": Reader.rounds,
    **dict.fromkeys(["LDG", "STG", "LDS", "STS", "ATOMS"], Reader.memory),
    **dict.fromkeys(["BAR", "EXIT"], Reader.bare),
    **dict.fromkeys(["VIADD", "FMNMX", "SEL", "FSEL", "FADD", "FMUL", "FFMA"], Reader.plain),
    **dict.fromkeys(["FLO", "POPC", "R2UR", "IABS", "PRMT"], Reader.plain),
}  # fmt: skip


def lines_of(text):
    """Return the instructions of a kernel (text and encoding), and where its labels are."""
    found, labels, waiting = [], {}, []
    encoding = r"/\* 0x([0-9a-f]{16}) \*/"
    lines = iter(text.split("\n"))
    for line in lines:
        if label := re.match(r"\s*(\.L_x_\d+|\$?[\w$.]+):\s*$", line):
            waiting.append(label[1].removeprefix("."))
        if code := re.match(rf"\s*/\*([0-9a-f]{{4,}})\*/\s+(.*?);\s*{encoding}", line):
            if int(code[1], 16) != 16 * len(found):
                raise ValueError("the text is of more than one function")
            labels |= dict.fromkeys(waiting, len(found))
            waiting = []
            high = re.search(encoding, next(lines))[1]
            found.append((code[2].strip(), int(code[3], 16), int(high, 16)))
    return found, labels


def parse(text):
    """Return the program that nvdisasm printed, with ``-hex``."""
    lines, labels = lines_of(text)
    records = np.zeros(len(lines), INSTRUCTION)
    operands = np.zeros((len(lines), OPERANDS, 5), np.int32)
    for record, slots, (line, low, high) in zip(records, operands, lines, strict=True):
        try:
            Reader(record, slots, line, low, high, labels).read()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UnknownInstruction(f"unknown instruction {line}: {error!r}") from error
    return Program(records, operands, [line for line, _, _ in lines])
