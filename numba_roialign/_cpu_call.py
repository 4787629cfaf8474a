"""A call on the CPU, batch by batch: its memory, its tables and its tasks."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from ._cpu_job import ADDRESSES, FOUND, POSITIONS
from ._cpu_plan import memory_layout
from ._cpu_tasks import FEW_ROIS, TASKS_PER_THREAD, cut, sorted_rows
from ._cpu_threads import run
from ._memory import LINE, address_of, aligned_empty

# Below, in multiplications, a call runs on the calling thread alone. Waking threads takes 10 to
# 50 us, and milliseconds on a busy machine; this much work takes some 100 us.
SERIAL_WORK = 1 << 20
# The same for the tap tables, in bins of RoIs.
SERIAL_BINS = 1 << 11
# Results of at least this many bytes are written around the caches, which they only flush: a call
# that writes 50 or 100 MB takes 1.05 to 1.3 times as long without.
STREAM_BYTES = 16 << 20
# Workspaces kept for later calls, and the most bytes of one.
SPARES, SPARE_BYTES = 2, 64 << 20
JOB_BYTES = -(-8 * len(POSITIONS) // LINE) * LINE


class Workspace:
    """Memory for a call: its job, and the arrays that the job points to.

    It is kept for the next call: where a page of new memory costs 3 us, as on a virtual machine,
    those of a small call made it 1.3 times longer.
    """

    spare: ClassVar[list[Workspace]] = []  # not in use

    def __init__(self, size):
        self.memory = aligned_empty(JOB_BYTES + size)
        self.address = address_of(self.memory)
        self.job = self.memory[: 8 * len(POSITIONS)].view(np.int64)

    @classmethod
    def borrow(cls, size):
        """Return a workspace with so many bytes beside the job, until it is given back."""
        try:
            workspace = cls.spare.pop()
        except IndexError:
            return cls(size)
        return workspace if workspace.memory.size >= JOB_BYTES + size else cls(size)

    def give_back(self):
        if self.memory.size <= SPARE_BYTES and len(self.spare) < SPARES:
            self.spare.append(self)

    def set(self, **fields):
        """Set fields of the job."""
        job = self.job
        for name, value in fields.items():
            job[POSITIONS[name]] = value

    def table(self, name, count):
        """Return the first integers of an array."""
        start = int(self.job[POSITIONS[name]]) - self.address
        return self.memory[start : start + 8 * count].view(np.int64)


class Found(NamedTuple):
    """What filling the tables found in a batch."""

    rows: int
    invalid: int  # rows that cannot be pooled
    first_invalid: int  # RoI
    low: int  # image
    high: int
    taps: int  # pixels that all bins tap together


class Call:
    """One call on NumPy arrays, with `features` and `out` as the job has them."""

    def __init__(self, plan, features, rois, out, threads, argmax=None):
        self.plan, self.rois, self.threads = plan, rois, threads
        self.arrays = features, out, argmax  # kept while other threads may work on them
        self.table_rows = plan.table_rows(len(rois))
        size, starts = memory_layout(plan, self.table_rows, self.threads)
        self.workspace = Workspace.borrow(size)
        job, out_address = self.workspace.job, address_of(out)
        np.add(starts, self.workspace.address + JOB_BYTES, out=job[: len(ADDRESSES)])
        job[len(ADDRESSES) :] = plan.numbers
        self.workspace.set(
            features=address_of(features),
            rois=address_of(rois),
            out=out_address,
            out_skew=-out_address % LINE // plan.result_bytes,
            table_rows=self.table_rows,
            y_slots=self.table_rows * plan.y_capacity,
            x_slots=self.table_rows * plan.x_capacity,
        )
        if argmax is not None:
            self.workspace.set(argmax=address_of(argmax))
        self.streams = plan.can_stream and out.nbytes >= STREAM_BYTES
        if plan.staging_size == 0:  # written from vectors, which must not straddle a line
            self.streams = self.streams and out_address % LINE == 0
        self.invalid = []  # RoIs found so that cannot be pooled
        self.batches = range(0, len(rois), self.table_rows)

    def fill(self, start):
        """Fill the tables with the batch that starts at a RoI; return what was found there."""
        plan, rows = self.plan, min(self.table_rows, len(self.rois) - start)
        few = rows * (plan.sampling.output_height + plan.sampling.output_width) < SERIAL_BINS
        threads = 1 if few else self.threads
        self.workspace.set(start=start, rows=rows, threads=threads)
        run(plan.fill, threads, self.workspace.address, self)
        found = self.workspace.table("found", threads * FOUND).tolist()
        invalid, first_invalid, low, high, taps = (found[n::FOUND] for n in range(5))
        return Found(rows, sum(invalid), start + min(first_invalid), min(low), max(high), sum(taps))

    def order(self, start, found):
        """Put the rows that can be pooled in order; return where the images begin and end."""
        table, rows = self.workspace.table, found.rows
        images, spans = table("table_images", rows), table("spans", 4 * rows)
        order, segments = sorted_rows(images, spans.reshape(rows, 4))
        table("order", len(order))[:] = order
        self.invalid += (start + np.flatnonzero(images < 0)).tolist()
        return images[order], segments

    def work(self, threads, **fields):
        self.workspace.set(**fields)
        run(self.plan.work, threads, self.workspace.address, self)

    def run_batch(self, start, found):
        """Compute the batch in the tables."""
        raise NotImplementedError

    def run(self, validate):
        """Compute all RoIs, or return the first invalid one with its number where asked for."""
        found = None
        if validate:
            for start in self.batches:
                found = self.fill(start)
                if found.invalid:
                    row = found.first_invalid
                    return row, self.rois[row].tolist()
        for start in self.batches:
            if found is None or len(self.batches) > 1:
                found = self.fill(start)
            self.run_batch(start, found)
        return None


class Pooling(Call):
    """A call that pools."""

    def run_batch(self, start, found):
        plan, table = self.plan, self.workspace.table
        rows, invalid, _, low, high, taps = found
        segments = [0, rows]
        if invalid or low < high or rows > FEW_ROIS:
            _, segments = self.order(start, found)
            if invalid == rows:
                return
        work = plan.channels * max(
            taps, rows * plan.sampling.output_height * plan.sampling.output_width
        )
        threads = 1 if work < SERIAL_WORK else self.threads
        chunks, parts = cut(
            segments, plan.blocks, plan.sampling.output_height, plan.most_rows, threads
        )
        if len(chunks) > 2 or invalid:
            table("chunks", len(chunks))[:] = chunks
        streams = self.streams and parts == 1
        self.work(threads, chunk_count=len(chunks) - 1, parts=parts, streams=streams)


class Gradient(Call):
    """A call that computes the gradient of a map, whose parts are its tasks."""

    def run_batch(self, start, found):
        plan, images = self.plan, self.plan.sampling.images
        ordered, _ = self.order(start, found)
        self.workspace.table("chunks", images + 1)[:] = np.searchsorted(
            ordered, np.arange(images + 1)
        )
        tasks = plan.blocks * images
        parts = max(
            plan.bands, min(plan.sampling.height, -(-TASKS_PER_THREAD * self.threads // tasks))
        )
        self.work(self.threads, chunk_count=images, parts=parts, adds=start > 0)
