"""What the kernels are written in: numba, with pointers, stored types that Python has no word for, and exact rules.

A kernel is a function of pointers and numbers, compiled by LLVM for this processor at its first use (a second or two;
or elsewhere: see `compile_elsewhere`), kept on disk beside this file or where NUMBA_CACHE_DIR says, and called with
addresses, without the GIL. Nothing is
compiled with fast-math: sums that may be split into lanes say so one by one (`added`), so that the differences and
double-doubles beside them stay as they are written.

Memory is of kinds that do not overlap, which spares the compiler its checks: what is given, which `load` reads; the
output, which `store` writes; a table, for `look` and `note`; what is computed with, for `get` and `put`. A kernel may
have its output where its input is, as it never reads what it has written.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from normcore.kernels.base import NotCompiled, Variant

# Partly typed, each release otherwise; what is built with them is anything at all to the type checker.
numba: Any = importlib.import_module("numba")
extending: Any = importlib.import_module("numba.extending")
caching: Any = importlib.import_module("numba.core.caching")
compiler_lock: Any = importlib.import_module("numba.core.compiler_lock")
registry: Any = importlib.import_module("numba.core.registry")
llvm: Any = importlib.import_module("llvmlite.binding")
ir: Any = importlib.import_module("llvmlite.ir")
types = numba.types


class Bits16(types.Type):  # type: ignore[name-defined, misc]
    """A 16-bit float as it lies in memory; computed with as float32."""


HALF, BRAIN = Bits16(name="half"), Bits16(name="brain")


@extending.register_model(Bits16)
class _Bits16Model(extending.models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, ir.IntType(16))


STORED = {
    torch.float16: HALF,
    torch.bfloat16: BRAIN,
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.bool: types.uint8,
    torch.uint8: types.uint8,
    torch.int8: types.int8,
    torch.uint16: types.uint16,
    torch.int16: types.int16,
    torch.uint32: types.uint32,
    torch.int32: types.int32,
    torch.uint64: types.uint64,
    torch.int64: types.int64,
}
# What float32 holds exactly.
narrow = (HALF, BRAIN, types.float32, types.uint8, types.int8, types.uint16, types.int16)

# Types of a kernel's parameters: pointers to the input, the output, parameters, and what is computed with; numbers.
X, Y, P = (types.Opaque(f"to {name}") for name in ("input", "output", "parameters"))
F64 = types.CPointer(types.float64)
BYTES, INTS = types.CPointer(types.uint8), types.CPointer(types.int64)
INT, REAL, FLAG = types.int64, types.float64, types.boolean
float64 = types.float64  # within a kernel: as float64, which `float` leaves a float32 from becoming


def inlined(function: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    return numba.njit(error_model="numpy")(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that is its own LLVM instructions: given types, its signature and what generates them."""
    return extending.intrinsic(function)


KERNELS: dict[str, Kernel] = {}

# Is told of each kernel that is needed and not there. None: kernels are compiled here, at their first use.
_elsewhere: Callable[[Variant], None] | None = None


def compile_elsewhere(ask: Callable[[Variant], None] | None) -> None:
    """Compile nothing in this process from now on; call `ask`, on any thread, once for each kernel that is missing.

    `ask` should have another process compile the kernel, and then call `Kernel.load`. None: compile here again.
    """
    global _elsewhere
    _elsewhere = ask


def keep_in(folder: Path) -> None:
    """Keep what is compiled below a folder, whatever NUMBA_CACHE_DIR says."""
    numba.config.CACHE_DIR = str(folder)


class Kernel:
    """A compiled function, one for each combination of types of input, output and parameters that is asked for."""

    def __init__(self, function: Any, parameters: tuple[Any, ...], returns: Any) -> None:
        self._function = function
        self._parameters = parameters
        self._returns = returns
        self._compiled: dict[tuple[torch.dtype, torch.dtype], Callable[..., Any]] = {}
        self._missing: set[tuple[torch.dtype, torch.dtype]] = set()
        self._lock = threading.Lock()
        KERNELS[self.name] = self

    @property
    def name(self) -> str:
        """The function's."""
        return str(self._function.__name__)

    @property
    def loaded(self) -> int:
        """Return the number of type combinations that are loaded."""
        return len(self._compiled)

    def variants(self) -> list[Variant]:
        """All that it can be compiled for: see `of`."""
        inputs = list(STORED) if X in self._parameters else [torch.float64]
        parameters = [torch.float32, torch.float64] if P in self._parameters else [torch.float64]
        return [Variant(self.name, x, p) for x in inputs for p in parameters]

    def of(self, x: torch.dtype, parameters: torch.dtype = torch.float64) -> Callable[..., Any]:
        """The function for an input of one type and parameters of another; its pointers are addresses.

        Raises:
            NotCompiled: it is compiled elsewhere, and not there yet.
        """
        return self._compiled.get((x, parameters)) or self._obtained(x, parameters)

    def load(self, x: torch.dtype, parameters: torch.dtype) -> bool:
        """Take the function from disk, into use; whether it was there."""
        function, signature = self._variant(x, parameters)
        try:
            cache = caching.FunctionCache(function)
        except RuntimeError:  # there is nowhere to keep it
            return False
        try:
            with compiler_lock.global_compiler_lock:
                found = cache.load_overload(signature, registry.cpu_target.target_context)
        except Exception:  # a file was cut short; any error may come of its bytes
            cache.flush()
            return False
        if found is None:
            return False
        _KEPT.append(found)
        self._use(x, parameters, found)
        return True

    def folder(self) -> Path | None:
        """Return the cache folder of the compiled functions; None if no folder can be written to."""
        try:
            return Path(caching.FunctionCache(self._function).cache_path)
        except RuntimeError:
            return None

    def _obtained(self, x: torch.dtype, parameters: torch.dtype) -> Callable[..., Any]:
        if (x, parameters) in self._missing and _elsewhere is not None:
            raise NotCompiled
        with self._lock:
            if (x, parameters) not in self._compiled and not self.load(x, parameters):
                if _elsewhere is not None:
                    if (x, parameters) not in self._missing:
                        self._missing.add((x, parameters))
                        _elsewhere(Variant(self.name, x, parameters))
                    raise NotCompiled
                self._compile(x, parameters)
            return self._compiled[x, parameters]

    def _compile(self, x: torch.dtype, parameters: torch.dtype) -> None:
        function, signature = self._variant(x, parameters)
        options = {"error_model": "numpy", "nogil": True}
        try:
            compiled = numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # there is nowhere to keep it, or no room
            compiled = numba.njit(signature, **options)(function)
        _KEPT.append(compiled)
        self._use(x, parameters, compiled.overloads[signature.args])

    def _use(self, x: torch.dtype, parameters: torch.dtype, found: Any) -> None:
        # What is called is not a dispatcher, which would look at the types of numbers that have but one.
        self._compiled[x, parameters] = found.entry_point
        self._missing.discard((x, parameters))

    def _variant(self, x: torch.dtype, parameters: torch.dtype) -> tuple[FunctionType, Any]:
        """The function under a name of its own, and its signature.

        What is kept on disk is found again by its name. Each variant has a file of its own, for one processor and one
        edition of the sources: so processes that keep the same one at the same time write the same.
        """
        out = x if x.is_floating_point else torch.float32
        stored = {X: STORED[x], Y: STORED[out], P: STORED[parameters]}
        pointers = {one: types.CPointer(stored[one]) for one in stored}
        signature = self._returns(*(pointers.get(one, one) for one in self._parameters))
        source = self._function
        function = FunctionType(source.__code__, source.__globals__, source.__name__, None, source.__closure__)
        function.__module__ = source.__module__
        variant = str(Variant(self.name, x, parameters)).replace(" ", "-")
        function.__qualname__ = f"{variant}-{_EDITION}"
        return function, signature


@extending.unbox(types.CPointer)  # type: ignore[untyped-decorator]
def _pointer(kind: Any, number: Any, native: Any) -> Any:
    """A pointer of an address."""
    address = native.pyapi.long_as_voidptr(number)
    pointer = native.builder.bitcast(address, native.context.get_value_type(kind))
    return extending.NativeValue(pointer, is_error=native.pyapi.c_api_error())


def kernel(*parameters: Any, returns: Any = types.void) -> Callable[[Callable[..., Any]], Kernel]:
    """A function of parameters of these types, as a kernel."""
    return lambda function: Kernel(function, parameters, returns)


_KEPT: list[Any] = []
_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
_PROCESSOR = (
    numba.config.CPU_NAME or llvm.get_host_cpu_name(),
    numba.config.CPU_FEATURES if numba.config.CPU_FEATURES is not None else llvm.get_host_cpu_features().flatten(),
)
_EDITION = hashlib.sha256(_SOURCES + repr((numba.__version__, _PROCESSOR)).encode()).hexdigest()[:12]

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index], inbounds=True)


def _apart(builder: Any, instruction: Any, kind: str) -> Any:
    """Mark a load or store as one of one kind of memory, which overlaps no other."""
    module = builder.module
    domain = module.add_metadata(["normstats"])
    scopes = {name: module.add_metadata([f"normstats {name}", domain]) for name in ("in", "out", "table", "work")}
    instruction.set_metadata("alias.scope", module.add_metadata([scopes.pop(kind)]))
    instruction.set_metadata("noalias", module.add_metadata(list(scopes.values())))
    return instruction


def _reader(kind: str) -> Any:
    @intrinsic
    def read(_typing: Any, pointer: Any, _index: Any) -> Any:
        stored = pointer.dtype
        value = types.float32 if stored in narrow else types.float64

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            # Tensors that were received may lie anywhere in their message.
            align = 1 if kind == "in" else None
            bits = _apart(builder, builder.load(_address(builder, *arguments), align=align), kind)
            if stored == HALF:
                return builder.fpext(builder.bitcast(bits, ir.HalfType()), _FLOAT)
            if stored == BRAIN:
                return builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), _FLOAT)
            return context.cast(builder, bits, stored, value)

        return value(pointer, types.int64), generate

    return read


def _writer(kind: str) -> Any:
    @intrinsic
    def write(_typing: Any, pointer: Any, _index: Any, value: Any) -> Any:
        stored = pointer.dtype

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            address, number = _address(builder, *arguments[:2]), arguments[2]
            if stored in (HALF, BRAIN):
                number = _rounded16(builder, context.cast(builder, number, value, types.float32), stored)
            else:
                number = context.cast(builder, number, value, stored)
            _apart(builder, builder.store(number, address), kind)
            return context.get_dummy_value()

        return types.void(pointer, types.int64, value), generate

    return write


def _rounded16(builder: Any, value: Any, stored: Any) -> Any:
    """The bits of a float32, or of several, rounded to the nearest, ties to even."""
    several = isinstance(value.type, ir.VectorType)

    def of(element: Any) -> Any:
        return ir.VectorType(element, value.type.count) if several else element

    def number(constant: int) -> Any:
        return ir.Constant(of(_I32), [constant] * value.type.count if several else constant)

    if stored == HALF:
        return builder.bitcast(builder.fptrunc(value, of(ir.HalfType())), of(ir.IntType(16)))
    bits = builder.bitcast(value, of(_I32))
    even = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.add(builder.add(bits, number(0x7FFF)), even)
    quiet = builder.or_(bits, number(0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, number(16)), of(ir.IntType(16)))


load, look, get = _reader("in"), _reader("table"), _reader("work")
store, note, put = _writer("out"), _writer("table"), _writer("work")


@intrinsic
def whole(_typing: Any, pointer: Any, _index: Any) -> Any:
    """A whole number of a plan."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _apart(builder, builder.load(_address(builder, *arguments)), "in")

    return types.int64(pointer, types.int64), generate


@intrinsic
def flag(_typing: Any, pointer: Any, _index: Any) -> Any:
    """Whether a byte of a mask is not 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = _apart(builder, builder.load(_address(builder, *arguments)), "in")
        return builder.icmp_unsigned("!=", byte, byte.type(0))

    return types.boolean(pointer, types.int64), generate


@intrinsic
def at(_typing: Any, pointer: Any, _index: Any) -> Any:
    """The pointer, so many elements further."""
    return pointer(pointer, types.int64), lambda _c, builder, _s, arguments: _address(builder, *arguments)


@intrinsic
def is_wide(_typing: Any, pointer: Any) -> Any:
    """Whether what is stored needs more than float32; known when compiled."""
    wide = pointer.dtype not in narrow
    return types.boolean(pointer), lambda _c, _b, _s, _a: ir.Constant(ir.IntType(1), int(wide))


@intrinsic
def fetch(_typing: Any, pointer: Any, _index: Any) -> Any:
    """Have memory on its way to the cache."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        target = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [target, _I32, _I32, _I32]), name
        )
        builder.call(function, [builder.bitcast(_address(builder, *arguments), target), _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate


def _float64(operation: str, flags: tuple[str, ...]) -> Any:
    @intrinsic
    def apply(_typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            numbers = (
                context.cast(builder, value, kind, types.float64) for value, kind in zip(arguments, (a, b), strict=True)
            )
            return getattr(builder, operation)(*numbers, flags=flags)

        return types.float64(a, b), generate

    return apply


# a + b as part of a sum whose order is the compiler's to choose; a + b and a * b that may become one operation.
added = _float64("fadd", ("reassoc", "nsz", "contract"))
plus = _float64("fadd", ("contract",))
times = _float64("fmul", ("contract",))


def _extreme(comparison: str) -> Any:
    @intrinsic
    def extreme(_typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            first, second = arguments[0], context.cast(builder, arguments[1], b, a)
            flags = ("nnan", "nsz")
            chosen = builder.fcmp_ordered(comparison, first, second, flags=flags)
            return builder.select(chosen, first, second, flags=flags)

        return a(a, b), generate

    return extreme


# Of numbers that are no NaN: whoever uses these looks for NaN otherwise.
smaller, larger = _extreme("<"), _extreme(">")


@intrinsic
def stream(_typing: Any, target: Any, source: Any) -> Any:
    """Copy 64 bytes to an address that 64 divides, past the caches."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), 16).as_pointer()
        value = builder.load(builder.bitcast(arguments[1], line), align=1)
        written = builder.store(value, builder.bitcast(arguments[0], line), align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
        return context.get_dummy_value()

    return types.void(target, source), generate


@intrinsic
def copied(_typing: Any, target: Any, source: Any, _index: Any) -> Any:
    """Copy one stored value, bit for bit, between places that may be of any kind of memory."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        into, out_of, index = arguments
        builder.store(builder.load(_address(builder, out_of, index)), _address(builder, into, index))
        return context.get_dummy_value()

    return types.void(target, source, types.int64), generate


@intrinsic
def item_bytes(_typing: Any, pointer: Any) -> Any:
    """The size of what is stored; known when compiled."""
    size = 2 if isinstance(pointer.dtype, Bits16) else pointer.dtype.bitwidth // 8
    return types.int64(pointer), lambda _c, _b, _s, _a: ir.Constant(_I64, size)


@intrinsic
def address(_typing: Any, pointer: Any) -> Any:
    """The address of a pointer."""
    return types.int64(pointer), lambda _c, builder, _s, arguments: builder.ptrtoint(arguments[0], _I64)


@intrinsic
def streamed(_typing: Any) -> Any:
    """What was streamed is visible to others from here on."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _claimed(_typing: Any, turns: Any) -> Any:
    """The number of a part that no other thread has."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], _I64(1), "monotonic")

    return types.int64(turns), generate


@inlined
def begin(turns: Any, total: int) -> int:
    """The first of range(total) for this thread, `total` if there is none: see `follow`."""
    return 0 if address(turns) == 0 else min(total, _claimed(turns) * whole(turns, 1))


@inlined
def follow(turns: Any, one: int, total: int) -> Any:
    """The next one for this thread.

    turns is the number of the next part, which threads share, and how long parts are; its address is 0 where this
    thread is to do all of them. So parts are taken without the GIL; to wait for it gets a thread put beside another.
    """
    one += 1
    if address(turns) == 0 or one % whole(turns, 1) != 0:
        return one
    return begin(turns, total)
