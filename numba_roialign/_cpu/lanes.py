"""Lanes: number types of the CPU target that hold several numbers at once.

A *view* of memory stands in for a flat array in a kernel: ``view[i]`` is a number, and the kernel's
source does not tell which. With one lane it is element `i`; with `L` lanes it is a vector of the
`L` elements from `i` on, and ``weight * number`` and ``number + number`` work on all at once. Loads
and stores convert half-precision storage (`halves`). How many lanes is the length of a tuple,
since in Numba that belongs to an argument's type.

Made with llvmlite inside Numba's extension interface: Numba itself vectorises the kernel's loops,
which have a handful of rounds, badly or not at all.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

from .._kernels import take
from .halves import CONVERSIONS, processor_features

I32 = ir.IntType(32)
# The bytes of a vector register, as far as Numba lets one know.
REGISTER = 64 if "avx512f" in processor_features() else 32
# Multiply and add fuse, as in the scalar kernels.
CONTRACT = ["contract"]


class Lanes(types.Type):
    """The type of a vector of floats, or of int64."""

    def __init__(self, element, count):
        self.element, self.count = element, count
        super().__init__(name=f"Lanes({element}, {count})")


class View(types.Type):
    """The type of a view: a pointer to its storage."""

    def __init__(self, storage, count):
        self.storage, self.count = storage, count
        self.element = types.float32 if storage in CONVERSIONS else storage
        self.number = Lanes(self.element, count) if count > 1 else self.element
        super().__init__(name=f"View({storage}, {count})")


def _element(numba_type):
    if isinstance(numba_type, types.Integer):
        return ir.IntType(numba_type.bitwidth)
    return ir.DoubleType() if numba_type == types.float64 else ir.FloatType()


def _storage(numba_type):
    return ir.IntType(16) if numba_type in CONVERSIONS else _element(numba_type)


class Lines(types.Type):
    """The type of several lines of a map as one: element `i` is the vector of theirs."""

    def __init__(self, storage, count):
        self.storage, self.count = storage, count
        self.number = View(storage, count).number
        super().__init__(name=f"Lines({storage}, {count})")


class Planes(types.Type):
    """The type of several planes of a map as one: element `i` is a square, as many elements from
    `i` on of each as there are planes."""

    def __init__(self, storage, count):
        self.storage, self.count = storage, count
        self.number = Lanes(View(storage, count).element, count * count)
        super().__init__(name=f"Planes({storage}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(_element(lanes.element), lanes.count))


@register_model(View)
class _ViewModel(models.PrimitiveModel):
    def __init__(self, manager, view):
        super().__init__(manager, view, _storage(view.storage).as_pointer())


@register_model(Lines)
@register_model(Planes)
class _LinesModel(models.PrimitiveModel):
    def __init__(self, manager, lines):
        starts = ir.ArrayType(_storage(lines.storage).as_pointer(), lines.count)
        super().__init__(manager, lines, starts)


def _load(builder, storage, count, pointer):
    """Load `count` consecutive elements as a vector of floats."""
    vector = ir.VectorType(_storage(storage), count)
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=storage.bitwidth // 8)
    return CONVERSIONS[storage][0](builder, value) if storage in CONVERSIONS else value


def _store(builder, storage, pointer, value, align=None):
    """Store a float, or a vector of them to consecutive elements."""
    if not isinstance(value.type, ir.VectorType):
        value = _splat(builder, value, 1)
    if storage in CONVERSIONS:
        value = CONVERSIONS[storage][1](builder, value)
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    return builder.store(value, pointer, align=align or storage.bitwidth // 8)


def _stream(builder, store):
    """Make a store go around the caches."""
    store.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


def _splat(builder, scalar, count):
    vector = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined), scalar, I32(0)
    )
    return builder.shuffle_vector(vector, vector, _mask([0] * count))


def _mask(lanes):
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


@intrinsic
def view(typing_context, pointer, offset, lanes):
    """Return a view of the memory from element `offset` on, with ``len(lanes)`` lanes."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return View(pointer.dtype, lanes.count)(pointer, types.uintp, lanes), codegen


@intrinsic
def zero_of(typing_context, view):
    """Return the zero of a view's numbers."""

    def codegen(context, builder, sig, args):
        return context.get_constant_null(sig.return_type)

    return view.number(view), codegen


@intrinsic
def lines_of(typing_context, pointer, stride, pixels, first, last, lanes):
    """Return lines that start `stride` elements times ``pixels[first]`` and so on after a pointer.

    There are ``len(lanes)``; where `last` comes before, its forerunner is repeated.
    """

    def codegen(context, builder, sig, args):
        pointer, stride, pixels, first, last, _ = args
        lines = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        end = builder.sub(last, last.type(1))
        for k in range(lanes.count):
            slot = builder.add(first, first.type(k))
            slot = builder.select(builder.icmp_signed("<", slot, end), slot, end)
            pixel = builder.sext(builder.load(builder.gep(pixels, [slot])), stride.type)
            start = builder.gep(pointer, [builder.mul(stride, pixel)])
            lines = builder.insert_value(lines, start, k)
        return lines

    index = types.intp
    return (
        Lines(pointer.storage, lanes.count)(pointer, index, pixels, index, index, lanes), codegen
    )  # fmt: skip


@intrinsic
def planes_of(typing_context, pointer, offset, stride, planes):
    """Return ``len(planes)`` planes, `stride` elements apart, the first at element `offset`."""

    def codegen(context, builder, sig, args):
        pointer, offset, stride, _ = args
        starts = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        for k, start in enumerate(_pointers(builder, pointer, offset, stride, planes.count)):
            starts = builder.insert_value(starts, start, k)
        return starts

    index = types.uintp
    return Planes(pointer.dtype, planes.count)(pointer, index, index, planes), codegen


@infer_global(operator.getitem)
class _TypeLoad(AbstractTemplate):
    def generic(self, args, kws):
        view, index = args
        if isinstance(view, (View, Lines, Planes)) and isinstance(index, types.Integer):
            return signature(view.number, view, types.uintp)


@lower_builtin(operator.getitem, View, types.uintp)
def _lower_load(context, builder, sig, args):
    view, pointer = sig.args[0], builder.gep(args[0], [args[1]])
    value = _load(builder, view.storage, view.count, pointer)
    return value if view.count > 1 else builder.extract_element(value, I32(0))


@lower_builtin(operator.getitem, Lines, types.uintp)
def _lower_gather(context, builder, sig, args):
    lines, storage = sig.args[0], sig.args[0].storage
    value = ir.Constant(ir.VectorType(_storage(storage), lines.count), ir.Undefined)
    for k in range(lines.count):
        element = builder.load(builder.gep(builder.extract_value(args[0], k), [args[1]]))
        value = builder.insert_element(value, element, I32(k))
    return CONVERSIONS[storage][0](builder, value) if storage in CONVERSIONS else value


@lower_builtin(operator.getitem, Planes, types.uintp)
def _lower_square(context, builder, sig, args):
    planes, count = sig.args[0], sig.args[0].count
    starts = [builder.extract_value(args[0], k) for k in range(count)]
    rows = [_load(builder, planes.storage, count, builder.gep(s, [args[1]])) for s in starts]
    while len(rows) > 1:
        whole = _mask(list(range(2 * rows[0].type.count)))
        rows = [
            builder.shuffle_vector(*pair, whole) for pair in zip(rows[::2], rows[1::2], strict=True)
        ]
    return rows[0]


@infer_global(operator.setitem)
class _TypeStore(AbstractTemplate):
    def generic(self, args, kws):
        view, index, _ = args
        if isinstance(view, View) and isinstance(index, types.Integer):
            return signature(types.none, view, types.uintp, view.number)


@lower_builtin(operator.setitem, View, types.uintp, Lanes)
@lower_builtin(operator.setitem, View, types.uintp, types.Float)
@lower_builtin(operator.setitem, View, types.uintp, types.Integer)
def _lower_store(context, builder, sig, args):
    pointer, index, value = args
    _store(builder, sig.args[0].storage, builder.gep(pointer, [index]), value)
    return context.get_dummy_value()


@intrinsic
def stream(typing_context, view, index, number):
    """Store a number as ``view[index] = number`` does, but around the caches.

    The address must be a multiple of the number's size, or of 64 bytes where that is more.
    """

    def codegen(context, builder, sig, args):
        view, index, number = args
        storage = sig.args[0].storage
        align = min(64, sig.args[0].count * storage.bitwidth // 8)
        _stream(builder, _store(builder, storage, builder.gep(view, [index]), number, align))
        return context.get_dummy_value()

    return types.void(view, types.uintp, number), codegen


def _fetch(builder, pointer):
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
    to_read, near, data = I32(0), I32(2), I32(1)
    builder.call(prefetch, [pointer, to_read, near, data])


@intrinsic
def fetch(typing_context, view, index):
    """Ask for what lies at ``view[index]``, if anything does, to come into the second cache."""

    def codegen(context, builder, sig, args):
        _fetch(builder, builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(view, types.uintp), codegen


@intrinsic
def fetch_lines(typing_context, lines, index):
    """As `fetch`, of each of several lines."""

    def codegen(context, builder, sig, args):
        for k in range(lines.count):
            _fetch(builder, builder.gep(builder.extract_value(args[0], k), [args[1]]))
        return context.get_dummy_value()

    return types.void(lines, types.uintp), codegen


@intrinsic
def fence(typing_context):
    """Order what `stream` stored before what comes next."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@infer_global(operator.mul)
class _TypeMultiply(AbstractTemplate):
    def generic(self, args, kws):
        weight, number = args
        if isinstance(number, Lanes) and isinstance(weight, types.Float):
            return signature(number, number.element, number)


@lower_builtin(operator.mul, types.Float, Lanes)
def _lower_multiply(context, builder, sig, args):
    weight, number = args
    return builder.fmul(_splat(builder, weight, number.type.count), number, flags=CONTRACT)


@infer_global(operator.add)
class _TypeAdd(AbstractTemplate):
    def generic(self, args, kws):
        one, other = args
        if isinstance(one, Lanes) and one == other:
            return signature(one, one, one)


@lower_builtin(operator.add, Lanes, Lanes)
def _lower_add(context, builder, sig, args):
    return builder.fadd(*args, flags=CONTRACT)


@intrinsic
def add_parts(typing_context, total, weights, first, numbers):
    """Add the parts of a longer vector to `total`, each times its weight, from `first` on."""
    lanes, count = total.count, numbers.count // total.count

    def codegen(context, builder, sig, args):
        total, weights, first, numbers = args
        for k in range(count):
            weight = builder.load(builder.gep(weights, [builder.add(first, first.type(k))]))
            part = builder.shuffle_vector(
                numbers, numbers, _mask([*range(k * lanes, (k + 1) * lanes)])
            )
            product = builder.fmul(_splat(builder, weight, lanes), part, flags=CONTRACT)
            total = builder.fadd(total, product, flags=CONTRACT)
        return total

    return total(total, weights, types.uintp, numbers), codegen


@intrinsic
def _take(typing_context, best, number, value, at, found):
    """As `_kernels.take`, lane by lane."""
    numbers = Lanes(types.int64, value.count)

    def codegen(context, builder, sig, args):
        best, number, value, at, found = args
        if sig.args[1] != numbers:
            number = _splat(builder, number, value.type.count)
        at = _splat(builder, at, value.type.count)
        # One instruction that ignores a NaN in `best`, which then keeps its place.
        larger = builder.select(builder.fcmp_ordered(">", best, value), best, value)
        nan = builder.fcmp_unordered("uno", best, best)
        larger = builder.select(nan, best, larger)
        keeps = builder.or_(nan, builder.fcmp_ordered(">=", best, value))
        numbered = builder.select(keeps, number, at)
        pair = builder.select(found, larger, value), builder.select(found, numbered, at)
        return context.make_tuple(builder, sig.return_type, pair)

    result = types.Tuple((value, numbers))
    at_type = number if number == numbers else types.int64
    return result(best, at_type, value, types.int64, types.boolean), codegen


@overload(take, jit_options={"_nrt": False, "forceinline": True})
def _take_lanes(best, number, value, at, found):
    if isinstance(value, Lanes):
        return lambda best, number, value, at, found: _take(best, number, value, at, found)
    return None


def _transpose(builder, rows):
    """Transpose a square of vectors: within 128 bits by interleaving, then blocks of 128 bits.

    Each exchange is one instruction of AVX or SSE. Exchanging single elements across the whole
    vector, the shorter program, takes two, and made writing results three times slower.
    """

    def exchange(one, other, low, high):
        return [builder.shuffle_vector(one, other, _mask(mask)) for mask in (low, high)]

    rows, count = list(rows), len(rows)
    group = min(count, 2 if isinstance(rows[0].type.element, ir.DoubleType) else 4)
    starts = range(0, count, group)
    low = [half * count + b + i for b in starts for i in range(group // 2) for half in (0, 1)]
    high = [lane + group // 2 for lane in low]
    for start in starts:
        size = group
        while size > 1:  # a perfect shuffle of the group's rows for each bit of an index
            pairs = [(rows[start + k], rows[start + k + group // 2]) for k in range(group // 2)]
            shuffled = [row for pair in pairs for row in exchange(*pair, low, high)]
            rows[start : start + group] = shuffled
            size //= 2
    size = group
    while size < count:
        low = [lane if not lane & size else count + lane - size for lane in range(count)]
        high = [lane + size if not lane & size else count + lane for lane in range(count)]
        for k in range(count):
            if not k & size:
                rows[k], rows[k + size] = exchange(rows[k], rows[k + size], low, high)
        size *= 2
    return rows


def _pointers(builder, base, offset, stride, count):
    for k in range(count):
        yield builder.gep(base, [builder.add(offset, builder.mul(stride, stride.type(k)))])


def _lower_tile(builder, sig, args):
    """Transpose a square; return the stores that write it."""
    source, offset, stride, target, target_offset, target_stride = args
    count = max(sig.args[0].count, sig.args[3].count)
    rows = [
        _load(builder, sig.args[0].storage, count, pointer)
        for pointer in _pointers(builder, source, offset, stride, count)
    ]
    pointers = _pointers(builder, target, target_offset, target_stride, count)
    return [
        _store(builder, sig.args[3].storage, pointer, row)
        for pointer, row in zip(pointers, _transpose(builder, rows), strict=True)
    ]


@intrinsic
def tile(typing_context, source, offset, stride, target, target_offset, target_stride):
    """Transpose a square: ``target[target_offset + i * target_stride + k]`` becomes
    ``source[offset + k * stride + i]`` for all `i` and `k` below the number of lanes."""

    def codegen(context, builder, sig, args):
        _lower_tile(builder, sig, args)
        return context.get_dummy_value()

    index = types.uintp
    return types.void(source, index, index, target, index, index), codegen


@intrinsic
def stream_tile(typing_context, source, offset, stride, target, target_offset, target_stride):
    """Transpose a square as `tile` does, but around the caches.

    Addresses of the target's rows must be multiples of a row's size.
    """

    def codegen(context, builder, sig, args):
        for store in _lower_tile(builder, sig, args):
            store.align = sig.args[3].count * sig.args[3].storage.bitwidth // 8
            _stream(builder, store)
        return context.get_dummy_value()

    index = types.uintp
    return types.void(source, index, index, target, index, index), codegen


@intrinsic
def turn(typing_context, square, target, offset, stride):
    """Store a square of `Planes` transposed: ``target[offset + i * stride + k]`` becomes element
    `i` of plane `k`."""
    count = target.count

    def codegen(context, builder, sig, args):
        square, target, offset, stride = args
        starts = range(0, count * count, count)
        rows = [
            builder.shuffle_vector(square, square, _mask([*range(s, s + count)])) for s in starts
        ]
        pointers = _pointers(builder, target, offset, stride, count)
        for pointer, row in zip(pointers, _transpose(builder, rows), strict=True):
            _store(builder, sig.args[1].storage, pointer, row)
        return context.get_dummy_value()

    return types.void(square, target, types.uintp, types.uintp), codegen


@intrinsic
def fetch_add(typing_context, pointer, value):
    """Add to an int64 in memory, atomically, and return what it was."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", *args, "monotonic")

    return types.int64(pointer, types.int64), codegen
