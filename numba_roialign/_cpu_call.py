"""A call on the CPU, batch by batch: its memory, its tables and its tasks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ._cpu_found import END, Found
from ._cpu_job import ADDRESSES, POSITIONS
from ._cpu_plan import memory_layout
from ._cpu_tasks import TASKS_PER_THREAD
from ._cpu_threads import run
from ._memory import LINE, address_of, aligned_empty

# Below, in bins of RoIs, the calling thread alone fills the tables; see `_cpu_plan.SERIAL_WORK`.
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
        self.memory = aligned_empty((JOB_BYTES + size,))
        self.address = address_of(self.memory)
        self.job = self.memory[: 8 * len(POSITIONS)].view(np.int64)
        self.origins = np.zeros(len(POSITIONS), np.int64)  # of what a job's fields are relative to
        self.origins[: len(ADDRESSES)] = self.address + JOB_BYTES

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


class Call:
    """One call on NumPy arrays, with `features` and `out` as the job has them."""

    def __init__(self, plan, features, rois, out, threads, argmax=None):
        self.plan, self.rois, self.threads = plan, rois, threads
        self.arrays = features, out, argmax  # kept while other threads may work on them
        self.table_rows = plan.table_rows(len(rois))
        size, job = memory_layout(plan, self.table_rows, threads)
        self.workspace = Workspace.borrow(size)
        np.add(job, self.workspace.origins, out=self.workspace.job)
        out_address = address_of(out)
        self.workspace.set(features=address_of(features), rois=address_of(rois), out=out_address)
        if argmax is not None:
            self.workspace.set(argmax=address_of(argmax))
        self.streams = plan.can_stream and out.nbytes >= STREAM_BYTES
        if self.streams:
            if plan.staging_size == 0:  # written from vectors, which must not straddle a line
                self.streams = out_address % LINE == 0
            self.workspace.set(out_skew=-out_address % LINE // plan.result_bytes)
        self.invalid = []  # RoIs found so that cannot be pooled
        self.batches = range(0, len(rois), self.table_rows)

    def rows(self, start):
        """Return how many RoIs the batch has that starts at one."""
        return min(self.table_rows, len(self.rois) - start)

    def fill(self, start):
        """Fill the tables with the batch that starts at a RoI; return what is found there."""
        plan, workspace, rows = self.plan, self.workspace, self.rows(start)
        few = rows * (plan.sampling.output_height + plan.sampling.output_width) < SERIAL_BINS
        threads = 1 if few else self.threads
        workspace.set(start=start, rows=rows, threads=threads)
        run(plan.fill, threads, workspace.address, self)
        plan.divide.call(0, workspace.address)
        return Found(*workspace.table("found", END).tolist())

    def work(self, schedule, threads, **fields):
        self.workspace.set(blocks=schedule.blocks, **fields)
        run(schedule.compiled, threads, self.workspace.address, self)

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
                    row = start + found.first_invalid
                    return row, self.rois[row].tolist()
        for start in self.batches:
            if found is None or len(self.batches) > 1:
                found = self.fill(start)
            if found.invalid:
                images = self.workspace.table("table_images", self.rows(start))
                self.invalid += (start + np.flatnonzero(images < 0)).tolist()
            self.run_batch(start, found)
        return None


class Pooling(Call):
    """A call that pools."""

    def run_batch(self, start, found):
        plan, streams = self.plan, self.streams
        if found.chunks:
            self.work(
                plan.schedule, found.threads,
                first_chunk=0, chunk_count=found.chunks, parts=found.parts,
                streams=streams and found.parts == 1,
            )  # fmt: skip
        if found.sparse_chunks:
            self.workspace.table("counter", 1)[0] = 0
            self.work(
                plan.sparse, found.threads,
                first_chunk=found.chunks, chunk_count=found.sparse_chunks,
                parts=found.sparse_parts, streams=streams and found.sparse_parts == 1,
            )  # fmt: skip


class Gradient(Call):
    """A call that computes the gradient of a map, whose parts are its tasks."""

    def run_batch(self, start, found):
        plan, images = self.plan, self.plan.sampling.images
        tasks = plan.schedule.blocks * images
        parts = max(
            plan.bands, min(plan.sampling.height, -(-TASKS_PER_THREAD * self.threads // tasks))
        )
        self.work(plan.schedule, self.threads, chunk_count=images, parts=parts, adds=start > 0)
