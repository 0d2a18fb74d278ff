"""Sixteen values side by side, for loops that are not left to the compiler's vectorizer.

Those are the ones through memory: lines to come must be asked for (`fetch`) in between, and float32 compared sixteen at
a time beside float64 added up eight at a time. A processor with narrower registers takes several.

Sixteen values are float32 where float32 holds what is stored, else float64. They have +, -, * among themselves and with
a float64, which makes them float64; `fused` may round once.
"""

from __future__ import annotations

import operator
from typing import Any

from normcore.kernels.cpu.compiled.language import (
    BRAIN,
    HALF,
    _address,
    _apart,
    _rounded16,
    address,
    extending,
    inlined,
    intrinsic,
    ir,
    item_bytes,
    narrow,
    types,
)

LANES = 16


class Lanes(types.Type):  # type: ignore[misc]
    """Sixteen values of one type."""

    def __init__(self, element: Any) -> None:
        self.element = element
        super().__init__(name=f"{LANES} {element}")


@extending.register_model(Lanes)
class _LanesModel(extending.models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        element = ir.FloatType() if fe_type.element == types.float32 else ir.DoubleType()
        super().__init__(manager, fe_type, ir.VectorType(element, LANES))


SINGLES, DOUBLES = Lanes(types.float32), Lanes(types.float64)
_F32S, _F64S = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.DoubleType(), LANES)


def _vector(element: Any) -> Any:
    return ir.VectorType(element, LANES)


def _place(builder: Any, kind: Any, pointer: Any, index: Any) -> Any:
    return builder.bitcast(_address(builder, pointer, index), kind.as_pointer())


def _size(stored: Any) -> int:
    return 2 if stored in (HALF, BRAIN) else int(stored.bitwidth) // 8


def _reader(kind: str) -> Any:
    @intrinsic
    def read(_typing: Any, pointer: Any, _index: Any) -> Any:
        stored = pointer.dtype
        value = SINGLES if stored in narrow else DOUBLES

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            memory = ir.HalfType() if stored == HALF else context.get_value_type(stored)
            align = 1 if kind == "in" else _size(stored)
            bits = builder.load(_place(builder, _vector(memory), *arguments), align=align)
            _apart(builder, bits, kind)
            target = context.get_value_type(value)
            if stored == HALF:
                return builder.fpext(bits, target)
            if stored == BRAIN:
                words = _vector(ir.IntType(32))
                return builder.bitcast(builder.shl(builder.zext(bits, words), words([16] * LANES)), target)
            if isinstance(stored, types.Float):
                return bits
            return builder.sitofp(bits, target) if stored.signed else builder.uitofp(bits, target)

        return value(pointer, types.int64), generate

    return read


def _writer(kind: str) -> Any:
    @intrinsic
    def write(_typing: Any, pointer: Any, _index: Any, value: Any) -> Any:
        stored = pointer.dtype

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            _apart(builder, _written(builder, stored, value, arguments, _size(stored)), kind)
            return _context.get_dummy_value()

        return types.void(pointer, types.int64, value), generate

    return write


def _written(builder: Any, stored: Any, value: Any, arguments: Any, align: int) -> Any:
    pointer, index, number = arguments
    if stored in (HALF, BRAIN):
        number = _rounded16(builder, builder.fptrunc(number, _F32S) if value == DOUBLES else number, stored)
    elif stored == types.float32 and value == DOUBLES:
        number = builder.fptrunc(number, _F32S)
    elif stored == types.float64 and value == SINGLES:
        number = builder.fpext(number, _F64S)
    return builder.store(number, _place(builder, number.type, pointer, index), align=align)


load_lanes, look_lanes, get_lanes = _reader("in"), _reader("table"), _reader("work")
store_lanes, put_lanes = _writer("out"), _writer("work")


@intrinsic
def stream_lanes(_typing: Any, pointer: Any, _index: Any, value: Any) -> Any:
    """Write past the caches, to an address that the size of sixteen values divides."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        written = _written(builder, pointer.dtype, value, arguments, min(64, LANES * _size(pointer.dtype)))
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, value), generate


@inlined
def before_line(pointer: Any) -> Any:
    """How many elements lie before the next address that 64 divides."""
    return ((64 - address(pointer) % 64) % 64) // item_bytes(pointer)


@intrinsic
def spread_lanes(_typing: Any, value: Any) -> Any:
    """Sixteen times the same."""
    kind = SINGLES if value == types.float32 else DOUBLES

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[0], value, kind.element)
        return _spread(builder, number)

    return kind(value), generate


def _spread(builder: Any, number: Any) -> Any:
    vector = _vector(number.type)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
    mask = ir.Constant(_vector(ir.IntType(32)), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _doubles(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    """Sixteen float64 of sixteen values or of one."""
    if isinstance(kind, Lanes):
        return value if kind == DOUBLES else builder.fpext(value, _F64S)
    return _spread(builder, context.cast(builder, value, kind, types.float64))


def _operation(name: str, flags: tuple[str, ...] = ()) -> Any:
    @intrinsic
    def apply(_typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            first, second = (_doubles(context, builder, *one) for one in zip(arguments, (a, b), strict=True))
            return getattr(builder, name)(first, second, flags=flags)

        return DOUBLES(a, b), generate

    return apply


def _overload(symbol: Any, name: str) -> None:
    apply = _operation(name)
    extending.overload(symbol)(  # a lambda, as numba compares annotations too
        lambda a, b: (lambda a, b: apply(a, b)) if isinstance(a, Lanes) or isinstance(b, Lanes) else None
    )


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload(_symbol, _name)


@inlined
def two_sum_lanes(a: Any, b: Any) -> Any:
    """`twofold.two_sum` of numbers that are finite; the low word is NaN otherwise."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@intrinsic
def fused(_typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        first, second, third = (_doubles(context, builder, *one) for one in zip(arguments, (a, b, c), strict=True))
        return builder.fadd(builder.fmul(first, second, flags=("contract",)), third, flags=("contract",))

    return DOUBLES(a, b, c), generate


def _extreme(comparison: str) -> Any:
    @intrinsic
    def extreme(_typing: Any, a: Any, b: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            flags = ("nnan", "nsz")
            chosen = builder.fcmp_ordered(comparison, *arguments, flags=flags)
            return builder.select(chosen, *arguments, flags=flags)

        return a(a, b), generate

    return extreme


# Of numbers that are no NaN, of one type: see `language.smaller`.
smaller_lanes, larger_lanes = _extreme("<"), _extreme(">")


@intrinsic
def clipped_lanes(_typing: Any, value: Any, _low: Any, _high: Any) -> Any:
    """Values within low and high; NaN stays."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = arguments[0]
        for comparison, limit in (("<", arguments[1]), (">", arguments[2])):
            bound = _spread(builder, limit)
            number = builder.select(builder.fcmp_ordered(comparison, number, bound), bound, number)
        return number

    return DOUBLES(value, types.float64, types.float64), generate


def _folded(combine: Any) -> Any:
    @intrinsic
    def fold(_typing: Any, value: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            number, width = arguments[0], LANES
            while width > 1:
                width //= 2
                nothing = ir.Constant(number.type, ir.Undefined)
                half = ir.VectorType(ir.IntType(32), width)
                low = builder.shuffle_vector(number, nothing, ir.Constant(half, list(range(width))))
                high = builder.shuffle_vector(number, nothing, ir.Constant(half, list(range(width, 2 * width))))
                number = combine(builder, low, high)
            return builder.extract_element(number, ir.IntType(32)(0))

        return value.element(value), generate

    return fold


def _chosen(comparison: str) -> Any:
    flags = ("nnan", "nsz")
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(comparison, a, b, flags=flags), a, b, flags=flags)


# Of sixteen values one: halves with halves.
sum_of, smallest_of, largest_of = _folded(lambda b, x, y: b.fadd(x, y)), _folded(_chosen("<")), _folded(_chosen(">"))


@intrinsic
def as_values(_typing: Any, pointer: Any, like: Any) -> Any:
    """The pointer, to what values of another are computed with: float32 where that holds them, else float64."""
    target = types.CPointer(types.float32 if like.dtype in narrow else types.float64)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(target))

    return target(pointer, like), generate
