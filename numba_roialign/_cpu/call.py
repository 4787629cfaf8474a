"""A call on the CPU, batch by batch: its memory, its tables and its tasks."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import numpy as np

from .._memory import LINE, address_of, aligned_empty
from . import found as at
from .job import ADDRESSES, POSITIONS
from .plan import memory_layout, typeless
from .tasks import run_at_once, run_tasks
from .threads import run_in_threads

# With fewer bins, of all RoIs along both axes, the calling thread alone fills the tables: see
# `plan.SERIAL_WORK`.
SERIAL_BINS = 1 << 11
# Results of at least this many bytes are written around the caches, which they only flush: a call
# that writes 50 or 100 MB takes 1.05 to 1.3 times as long without.
STREAM_BYTES = 16 << 20
# How much memory is kept for later calls: so many of `CallMemory`, each of at most so many bytes.
SPARES, SPARE_BYTES = 2, 64 << 20
JOB_BYTES = -(-8 * len(POSITIONS) // LINE) * LINE


def writer(*names):
    """Return a function that writes fields of a job, which stand side by side, into its memory."""
    first, pack = POSITIONS[names[0]], struct.Struct(f"{len(names)}q").pack_into
    assert [POSITIONS[name] - first for name in names] == list(range(len(names)))

    def write(memory, *values):
        pack(memory, 8 * first, *values)

    return write


write_arrays = writer("features", "out", "argmax")
write_batch = writer("start", "rows", "threads")
write_options = writer("validates", "may_stream")


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
        self.fields = memoryview(self.job).cast("B")
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
    """One call on NumPy arrays, with `features` and `out` as the job has them."""

    def __init__(self, plan, features, rois, out, threads, argmax=None):
        self.plan, self.rois, self.threads = plan, rois, threads
        self.arrays = features, out, argmax  # kept while other threads may work on them
        layout = memory_layout(plan, len(rois), threads)
        self.memory = memory = CallMemory.borrow(layout)
        out_address = address_of(out)
        argmax_address = 0 if argmax is None else address_of(argmax)
        write_arrays(memory.fields, address_of(features), out_address, argmax_address)
        self.streams = plan.can_stream and out.nbytes >= STREAM_BYTES
        if self.streams:
            if plan.staging_size == 0:  # written from vectors, which must not straddle a line
                self.streams = out_address % LINE == 0
            memory.job[POSITIONS["out_skew"]] = -out_address % LINE // plan.result_bytes
        self.invalid = []  # RoIs found so that cannot be pooled
        self.batches = range(0, len(rois), layout.rows)

    def rows(self, start):
        """Return how many RoIs the batch has that starts at one."""
        return min(self.batches.step, len(self.rois) - start)

    def load(self, start, threads):
        """Write the batch that starts at a RoI to the job, for threads to fill its tables."""
        rows = self.rows(start)
        self.memory.rois[:rows] = self.rois[start : start + rows]
        write_batch(self.memory.fields, start, rows, threads)

    def filling_threads(self, start):
        """Return how many threads fill the tables with the batch that starts at a RoI."""
        sampling = self.plan.sampling
        bins = self.rows(start) * (sampling.output_height + sampling.output_width)
        return 1 if bins < SERIAL_BINS else self.threads

    def fill(self, start):
        """Fill the tables with the batch that starts at a RoI; return what is found there."""
        plan, memory, threads = self.plan, self.memory, self.filling_threads(start)
        self.load(start, threads)
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

    def run(self, validate):
        """Compute all RoIs, or return the first invalid one with its number where asked for."""
        write_options(self.memory.fields, validate, self.streams)
        if len(self.batches) == 1 and self.filling_threads(0) == 1:
            return self.run_at_once(validate)
        found = None
        if validate:
            for start in self.batches:
                found = self.fill(start)
                if found[at.INVALID]:
                    return self.first_invalid(start, found)
        for start in self.batches:
            if found is None or len(self.batches) > 1:
                found = self.fill(start)
            self.note_invalid(start, found)
            self.compute(found)
        return None

    def run_at_once(self, validate):
        """As `run`, where one thread fills the tables with all RoIs."""
        at_once = typeless(run_at_once)
        self.load(0, 1)
        at_once.call(0, self.memory.address)
        found = self.memory.found.tolist()
        if found[at.INVALID]:
            if validate:
                return self.first_invalid(0, found)
            self.note_invalid(0, found)
        if found[at.DONE]:
            return None
        if found[at.THREADS] == 1:  # all that was missing is compiled machine code
            self.memory.write_schedules(self.plan.schedules, found)
            at_once.call(0, self.memory.address)
        else:
            self.compute(found)
        return None
