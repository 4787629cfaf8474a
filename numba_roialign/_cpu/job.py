"""A job: all that a call hands to compiled code, as one record of addresses and numbers.

Python fills an array of int64; compiled code sees a `Job`, whose fields have types. A call into
compiled code then takes a microsecond, where Numba's unboxing of 40 arguments took 20, and every
function has one C signature, ``void(intp thread, job)``. So one parallel region, compiled once,
runs them all by their addresses; when the region called a schedule by name, Numba compiled it once
more, in 7 seconds.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import NamedTuple, get_type_hints

from llvmlite import ir
from numba import njit, prange, types
from numba.core import ccallback
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
)

from .._compiling import uncollected
from .._geometry import Convention, Sampling
from .._kernels import Strides
from .._memory import LINE
from .._taps import AxisSamples, AxisTaps
from .arrays import array_at
from .cache import cached_njit, package_cache
from .lanes import REGISTER

# error_model="numpy": a division by zero is an infinity, as on CUDA, and not an exception.
OPTIONS = {"error_model": "numpy"}
# For functions that allocate nothing: _nrt=False keeps Numba from counting references to the arrays
# they pass around, which is an atomic instruction each and made the scalar schedule 3 times slower.
# Python calls none of them, so they have no wrappers, and no `nogil`: where their options are those
# of `_geometry.compilable`, Numba compiles what both call once.
UNCOUNTED = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, **OPTIONS}
# contract: multiply and add fuse, as on CUDA; the order of operations stays as written.
CONTRACTED = {"fastmath": {"contract"}, **UNCOUNTED}
# Numba's own inlining: compiling each helper for itself took 1.5 s of a schedule's 5.
INLINED = {"inline": "always", "forceinline": True, **CONTRACTED}
# Compiled for itself and inlined by LLVM, for large ones deep inside: Numba copies what it inlines
# at each level. With `pack_rows` and `write` so, `average_channels` compiles in 0.8 of the time.
INLINED_BY_LLVM = {"forceinline": True, **CONTRACTED}

# The fields in their order, with their types; "storage", "number" and "result" are addresses of
# elements of the job's own types.
ADDRESSES = {
    # the tables of a batch of RoIs
    "rois": types.float64,  # (table_rows, 5)
    "table_images": types.intp,  # (table_rows,): -1 where a row cannot be pooled
    "spans": types.intp,  # (table_rows, 4): first row and end, first column and end, of the taps
    "y_pixels": types.int32,
    "y_weights": "number",
    "y_bounds": types.intp,
    "x_pixels": types.int32,
    "x_weights": "number",
    "x_bounds": types.intp,
    # of samples: see `_taps.AxisSamples`
    "y_firsts": types.intp,
    "y_grids": types.intp,
    "x_firsts": types.intp,
    "x_grids": types.intp,
    # taps turned round: see `_taps.turn_taps`
    "y_turned": types.int32,
    "y_turned_weights": "number",
    "y_turned_bounds": types.intp,
    "x_turned": types.int32,
    "x_turned_weights": "number",
    "x_turned_bounds": types.intp,
    "found": types.intp,  # (threads, END): see `found`
    # how the batch is cut into tasks: see `divide`
    "sparse_rows": types.intp,  # (table_rows,): 1 where a RoI's taps lie far apart
    "ends": types.intp,  # (DIGIT + 2,): of the rows with each digit
    "order": types.intp,
    "chunks": types.intp,
    "counter": types.int64,  # (1,): the next task
    # what threads work in
    "scratch": "number",  # (threads, scratch_size)
    "staging": "result",  # (threads, staging_size)
    "numbers": types.int64,  # (threads, numbers_size): of an argmax
    # the caller's arrays; a gradient's "features" are the pooled features' gradient
    "features": "storage",
    "out": "result",
    "argmax": types.int64,  # of a maximum: in C order, in the layout of the pooled features
}
NUMBERS = {
    # of a batch
    **dict.fromkeys(("start", "rows", "threads"), types.intp),
    # of a call
    "validates": types.intp,  # 1 where nothing is pooled if a row cannot be
    "may_stream": types.intp,
    # of a batch, as it is divided: see `divide`
    **dict.fromkeys(("blocks", "chunk_count", "parts", "task_top", "task_rows"), types.intp),
    **dict.fromkeys(("banded", "streams"), types.intp),
    "splits": types.intp,  # 1 where sparse rows are pooled by `sparse_work`
    "work": types.intp,  # what computes other rows
    # addresses of what is compiled, 0 where it is not yet
    **dict.fromkeys(("fill", "divide", "dense_work", "apart_work", "sparse_work"), types.intp),
    **dict.fromkeys(("table_rows", "y_slots", "x_slots", "scratch_size", "window"), types.intp),
    **dict.fromkeys(("staging_size", "numbers_size", "out_skew", "channels"), types.intp),
    **dict.fromkeys(("most_threads", "serial_work"), types.intp),
    **dict.fromkeys(("dense_blocks", "apart_blocks"), types.intp),
    **dict.fromkeys(("most_bins", "apart_most_bins", "sparse_most_bins"), types.intp),
    "apart_reads": types.float64,  # `schedules.Schedules.reads`
    "sparse_limit": types.intp,  # `schedules.Schedules.limit`
    "packs": types.intp,
    "mode": types.intp,
    "corner": types.intp,  # of a slope: see `_taps.fill_slopes`
    "keeps_argmax": types.intp,
    "channels_last": types.intp,
    "band_rows": types.intp,  # of the map in a task, at most; 0 where tasks have rows of bins
    **{f"in_{name}": types.intp for name in Strides._fields},
    **{f"out_{name}": types.intp for name in Strides._fields},
    **{
        name: types.float64 if kind is float else types.intp
        for record in (Sampling, Convention)
        for name, kind in get_type_hints(record).items()
    },
}
POSITIONS = {name: position for position, name in enumerate([*ADDRESSES, *NUMBERS])}


# Bytes of the side of a patch. AVX-512 can hold sixteen pixels of sixteen planes, but then keeps no
# registers for addresses, nearly all loads cross a line of cache, and narrow boxes are padded.
PATCH = 32


class Job(types.Type):
    """Numba's type of a job: a pointer to its fields.

    `storage` is the type of the elements read, `result` of those written, and `number` that of
    sums, of which a vector has `lanes`; `reads` and `writes` are those of `Kinds`, by which code is
    chosen while it compiles. Beside the fields it has ``zero``, a number; ``tag``, a tuple as long
    as a vector; ``wide``, one as long as four registers; ``square``, one as long as the side of
    what `tile` transposes: as many numbers as a register holds, since with twice as many the square
    leaves the registers, and packing took 1.7 times as long; ``patch``, one as long as the side
    of what is summed where it lies and then transposed; and ``line`` and ``out_line``, as long as a
    line of the cache, in elements that are read and written.
    """

    def __init__(self, kinds, lanes):
        self.storage, self.result, self.number, self.reads, self.writes = kinds
        self.lanes = lanes
        super().__init__(name=f"Job({', '.join(map(str, kinds))}, {lanes})")

    def type_of(self, name):
        if name in ADDRESSES:
            kind = ADDRESSES[name]
            return types.CPointer(getattr(self, kind) if isinstance(kind, str) else kind)
        return NUMBERS.get(name) or self.constants().get(name)

    def constants(self):
        register = 8 * REGISTER // self.number.bitwidth
        square = min(self.lanes, register)
        return {
            "tag": types.UniTuple(types.intp, self.lanes),
            "wide": types.UniTuple(types.intp, 4 * register),
            "square": types.UniTuple(types.intp, square),
            "patch": types.UniTuple(types.intp, min(self.lanes, 8 * PATCH // self.number.bitwidth)),
            "line": types.UniTuple(types.intp, 8 * LINE // self.storage.bitwidth),
            "out_line": types.UniTuple(types.intp, 8 * LINE // self.result.bitwidth),
            "zero": self.number,
        }


@register_model(Job)
class _JobModel(models.PrimitiveModel):
    def __init__(self, manager, job):
        super().__init__(manager, job, ir.IntType(64).as_pointer())


@infer_getattr
class _JobFields(AttributeTemplate):
    key = Job

    def generic_resolve(self, job, name):
        return job.type_of(name)


@lower_getattr_generic(Job)
def _lower_field(context, builder, job, value, name):
    numba_type = job.type_of(name)
    if name in job.constants():
        return context.get_constant_null(numba_type)
    field = builder.gep(value, [ir.Constant(ir.IntType(64), POSITIONS[name])])
    return builder.load(builder.bitcast(field, context.get_value_type(numba_type).as_pointer()))


@lower_setattr_generic(Job)
def _lower_set_field(context, builder, sig, args, name):
    job, value = args
    field = builder.gep(job, [ir.Constant(ir.IntType(64), POSITIONS[name])])
    builder.store(value, builder.bitcast(field, value.type.as_pointer()))


@intrinsic
def address_of_job(typing_context, job):
    """Return where a job lies."""

    def codegen(context, builder, sig, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.intp(job), codegen


@intrinsic
def call_at(typing_context, address, thread, job):
    """Call the compiled function at an address with a thread's number and a job's address."""

    def codegen(context, builder, sig, args):
        address, *arguments = args
        signature = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(builder.inttoptr(address, signature.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@cached_njit(parallel=True, nogil=True, **OPTIONS)
def call_in_threads(threads, address, job):
    """Call the compiled function at an address from each thread of a parallel region."""
    for thread in prange(threads):
        call_at(address, thread, job)


class Compiled(NamedTuple):
    """A function of a thread's number and a job, compiled."""

    address: int
    call: Callable[[int, int], None]  # the same for Python; it releases the GIL
    owner: object  # keeps the code


@functools.cache
def compiled(function, kinds, lanes, contracted=True) -> Compiled:
    """Compile a function ``(thread, job)`` for a type of job, or load it from the on-disk cache."""
    signature = (types.intp, Job(kinds, lanes)), types.void
    options = {"nopython": True, **(CONTRACTED if contracted else UNCOUNTED)}
    code = ccallback.CFunc(function, signature, locals={}, options=options)
    code._cache = package_cache(function)
    with uncollected():
        code.compile()
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_void_p)
    return Compiled(code.address, prototype(code.address), code)


@njit(**INLINED)
def axis_tables(job):
    """Return the taps of the batch along y and x."""
    rows, y_slots, x_slots = job.table_rows, job.y_slots, job.x_slots
    y = AxisTaps(
        array_at(job.y_pixels, (y_slots,)),
        array_at(job.y_weights, (y_slots,)),
        array_at(job.y_bounds, (rows, job.output_height + 1)),
    )
    x = AxisTaps(
        array_at(job.x_pixels, (x_slots,)),
        array_at(job.x_weights, (x_slots,)),
        array_at(job.x_bounds, (rows, job.output_width + 1)),
    )
    return y, x


@njit(**INLINED)
def sample_tables(job):
    """Return the samples of the batch along y and x."""
    rows = job.table_rows
    y, x = axis_tables(job)
    return (
        AxisSamples(
            y.pixels, y.weights, y.bounds,
            array_at(job.y_firsts, (rows, job.output_height)), array_at(job.y_grids, (rows,)),
        ),
        AxisSamples(
            x.pixels, x.weights, x.bounds,
            array_at(job.x_firsts, (rows, job.output_width)), array_at(job.x_grids, (rows,)),
        ),
    )  # fmt: skip


@njit(**INLINED)
def turned_tables(job):
    """Return the bins that tap the pixels of the batch along y and x."""
    rows, y_slots, x_slots = job.table_rows, job.y_slots, job.x_slots
    y = AxisTaps(
        array_at(job.y_turned, (y_slots,)),
        array_at(job.y_turned_weights, (y_slots,)),
        array_at(job.y_turned_bounds, (rows, job.height + 2)),
    )
    x = AxisTaps(
        array_at(job.x_turned, (x_slots,)),
        array_at(job.x_turned_weights, (x_slots,)),
        array_at(job.x_turned_bounds, (rows, job.width + 2)),
    )
    return y, x


class Span(NamedTuple):
    """The rows ``top:bottom`` and the columns ``left:right`` of the map that a RoI taps."""

    top: int
    bottom: int
    left: int
    right: int


@njit(**INLINED)
def span_of(job, roi):
    """Return the part of the map that a RoI taps."""
    spans, at = job.spans, 4 * roi
    return Span(spans[at], spans[at + 1], spans[at + 2], spans[at + 3])


@njit(**INLINED)
def map_at(job, roi, c):
    """Return where the map of a RoI's image begins, in a channel."""
    return job.table_images[roi] * job.in_image + c * job.in_channel


@njit(**INLINED)
def out_at(job, roi, c, ph):
    """Return where a row of bins of a RoI begins in the output, in a channel."""
    return (job.start + roi) * job.out_image + c * job.out_channel + ph * job.out_row


@njit(**INLINED)
def strides_in(job):
    return Strides(job.in_image, job.in_channel, job.in_row, job.in_column)


@njit(**INLINED)
def strides_out(job):
    return Strides(job.out_image, job.out_channel, job.out_row, job.out_column)
