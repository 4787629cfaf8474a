"""A call on the CPU, batch by batch: its memory, its tables and its tasks."""

from __future__ import annotations

import functools
import struct
from typing import Any, ClassVar

import numpy as np

from .._memory import LINE, address_of, aligned_empty
from . import found as at
from .job import ADDRESSES, POSITIONS
from .plan import memory_layout, typeless
from .tasks import run_tasks
from .threads import run_in_threads

# Results of at least this many bytes are written around the caches, which they only flush: calls
# that write 10 to 100 MB take 0.6 to 0.9 of the time. Whoever then reads 10 MB of results on one
# thread has them in 0.75 to 1.05 of the time nonetheless; 5 MB in 1.0 to 1.05, 2.5 MB in 1.3.
STREAM_BYTES = 8 << 20
# How much memory is kept for later calls: so many of `CallMemory`, each of at most so many bytes.
SPARES, SPARE_BYTES = 2, 64 << 20
JOB_BYTES = -(-8 * len(POSITIONS) // LINE) * LINE
BATCH_FIELDS = "start", "rows", "threads"
CALL_FIELDS = "features", "out", "argmax", *BATCH_FIELDS, "validates", "may_stream"


def writer(memory, names):
    """Return a function that writes fields of a job, which stand side by side, into its memory."""
    first = POSITIONS[names[0]]
    assert [POSITIONS[name] - first for name in names] == list(range(len(names)))
    return functools.partial(struct.Struct(f"{len(names)}q").pack_into, memory, 8 * first)


class CallMemory:
    """Memory for a call: its job, and the arrays that the job points to.

    It is kept for the next call: where a page of new memory costs 3 us, as on a virtual machine,
    those of a small call made it 1.3 times longer.
    """

    spare: ClassVar[list[CallMemory]] = []  # not in use

    def __init__(self, size):
        self.buffer = aligned_empty((JOB_BYTES + size,))
        self.address = address_of(self.buffer)
        self.job = self.buffer[: 8 * len(POSITIONS)].view(np.int64)
        self.layout: Any = None  # until it is laid out

    @classmethod
    def borrow(cls, layout):
        """Return memory with such a layout, until it is given back."""
        try:
            memory = cls.spare.pop()
        except IndexError:
            memory = cls(layout.size)
        if memory.layout is not layout:
            if memory.buffer.size < JOB_BYTES + layout.size:
                memory = cls(layout.size)
            memory.lay_out(layout, memory.address + JOB_BYTES)
        return memory

    def lay_out(self, layout, origin):
        """Write what the job starts from; `origin` is where its arrays begin."""
        self.job[...] = layout.job
        self.job[: len(ADDRESSES)] += origin
        self.layout = layout
        fields = memoryview(self.job).cast("B")
        self.write_call = writer(fields, CALL_FIELDS)
        self.write_batch = writer(fields, BATCH_FIELDS)
        self.rois = self.table("rois", 5 * layout.rows).view(np.float64).reshape(-1, 5)
        self.found = memoryview(self.table("found", at.END))

    def write_schedules(self, schedules, found):
        """Write where the machine code lies that a batch needs; it may be compiled for that."""
        for name, schedule in schedules.needed(found).items():
            address = schedule.compiled.address
            # in the layout too, for later calls that start from it
            self.job[POSITIONS[name]] = self.layout.job[POSITIONS[name]] = address
            if name != "sparse_work":
                self.job[POSITIONS["work"]] = address

    def give_back(self):
        if self.buffer.size <= SPARE_BYTES and len(self.spare) < SPARES:
            self.spare.append(self)

    def table(self, name, count):
        """Return the first integers of an array."""
        start = int(self.job[POSITIONS[name]]) - self.address
        return self.buffer[start : start + 8 * count].view(np.int64)


class Call:
    """A call of several batches, for several threads or for what is not compiled yet."""

    def __init__(self, plan, layout, memory, arrays, threads, validate):
        self.plan, self.layout, self.memory = plan, layout, memory
        self.arrays = arrays  # kept while other threads may work on them
        self.rois, self.threads, self.validate = arrays[0], threads, validate
        self.invalid = []  # RoIs found so that cannot be pooled

    def rows(self, start):
        """Return how many RoIs the batch has that starts at one."""
        return min(self.layout.rows, len(self.rois) - start)

    def fill(self, start):
        """Fill the tables with the batch that starts at a RoI; return what is found there."""
        plan, memory, rows = self.plan, self.memory, self.rows(start)
        threads = plan.filling_threads(rows, self.threads)
        memory.rois[:rows] = self.rois[start : start + rows]
        memory.write_batch(start, rows, threads)
        run_in_threads(plan.fill, threads, memory.address, self)
        plan.divide.call(0, memory.address)
        return memory.found.tolist()

    def compute(self, found):
        """Compute the batch in the tables."""
        self.memory.write_schedules(self.plan.schedules, found)
        run_in_threads(typeless(run_tasks), found[at.THREADS], self.memory.address, self)

    def note_invalid(self, start, found):
        """Note which RoIs of the batch in the tables cannot be pooled."""
        if found[at.INVALID]:
            images = self.memory.table("table_images", self.rows(start))
            self.invalid += (start + np.flatnonzero(images < 0)).tolist()

    def first_invalid(self, start, found):
        """Return the first RoI of the batch that cannot be pooled, with its number."""
        row = found[at.FIRST_INVALID]
        return start + row, self.memory.rois[row].tolist()

    def run(self):
        """Compute all RoIs, or return the first invalid one with its number where asked for."""
        found, batches = None, range(0, len(self.rois), self.layout.rows)
        if self.validate:
            for start in batches:
                found = self.fill(start)
                if found[at.INVALID]:
                    return self.first_invalid(start, found)
        for start in batches:
            if found is None or len(batches) > 1:
                found = self.fill(start)
            self.note_invalid(start, found)
            self.compute(found)
        return None

    def finish(self):
        """As `run`, after `run_at_once` has filled the tables with all RoIs."""
        memory, found = self.memory, self.memory.found
        if found[at.INVALID]:
            if self.validate:
                return self.first_invalid(0, found)
            self.note_invalid(0, found)
        if found[at.DONE]:
            return None
        if found[at.THREADS] == 1:  # all that was missing is compiled machine code
            memory.write_schedules(self.plan.schedules, found)
            self.plan.run_at_once(0, memory.address)
        else:
            self.compute(found)
        return None


def may_stream(plan, out, memory):
    """Say whether results may go around the caches, and note where they lie in a line of them."""
    if out.nbytes < STREAM_BYTES:
        return False
    skew = -address_of(out) % LINE
    memory.job[POSITIONS["out_skew"]] = skew // plan.result_bytes
    # Where there is no staging area, vectors are written, which must not straddle a line.
    return plan.staging_size > 0 or skew == 0


def run(plan, features, rois, out, threads, validate, argmax=None):
    """Run a call on NumPy arrays, with `features` and `out` as the job has them.

    Returns the invalid RoI it found first, where asked for, and all it found. A call of few boxes
    is done here, with little of the interpreter's code: the kernels have taken its place in the
    caches. With a `Call` and more writes to the job small_8x64 took 1.2 times as long.
    """
    layout = memory_layout(plan, len(rois), threads)
    memory = CallMemory.borrow(layout)
    memory.write_call(
        address_of(features), address_of(out), 0 if argmax is None else address_of(argmax),
        0, layout.rows, 1, validate, plan.can_stream and may_stream(plan, out, memory),
    )  # fmt: skip
    if layout.at_once:
        memory.rois[...] = rois
        plan.run_at_once(0, memory.address)
        if memory.found[at.DONE] and not memory.found[at.INVALID]:
            memory.give_back()
            return None, ()
    call = Call(plan, layout, memory, (rois, features, out, argmax), threads, validate)
    invalid = call.finish() if layout.at_once else call.run()
    memory.give_back()
    return invalid, call.invalid
