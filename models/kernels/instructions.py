"""What kernels do that Numba has no words for: memory that threads share, and calls by address.

An *address* is an int64.
"""

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from models.kernels.jit import instruction

_I64 = ir.IntType(64)
_PAUSES = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}
_PAUSE = _PAUSES.get(platform.machine())


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@instruction
def load(typing_context: Any, address: Any) -> Any:
    """The int64 at an address, and whatever was written before it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_place(builder, arguments[0]), "acquire", 8)

    return types.int64(types.int64), generate


@instruction
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address, after all that was written before."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _place(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@instruction
def add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, whoever else does; returns what it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = _place(builder, arguments[0])
        return builder.atomic_rmw("add", place, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@instruction
def replace(typing_context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write an int64 to an address unless another than expected is there: 1 if it was, else 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place, *values = arguments
        both = builder.cmpxchg(_place(builder, place), *values, "acq_rel", "acquire")
        return builder.zext(builder.extract_value(both, 1), _I64)

    return types.int64(types.int64, types.int64, types.int64), generate


@instruction
def pause(typing_context: Any) -> Any:
    """Let the processor do something else for a moment."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        if _PAUSE:
            known = builder.module.globals.get(_PAUSE)
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(known or ir.Function(builder.module, kind, _PAUSE), [])
        return context.get_dummy_value()

    return types.void(), generate


class Parcel:
    """What a piece of work is done with, as one kernel hands it to those of other threads.

    Args:
        contents: Numba's type of a tuple.
    """

    def __init__(self, contents: types.BaseTuple) -> None:
        @instruction
        def pack(typing_context: Any, parts: Any) -> Any:
            """The address of the parts, which stay where they are while their kernel runs."""

            def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
                slot = cgutils.alloca_once_value(builder, arguments[0])
                return builder.ptrtoint(slot, _I64)

            return types.int64(contents), generate

        @instruction
        def unpack(typing_context: Any, address: Any) -> Any:
            """The parts at an address."""

            def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
                kind = context.get_value_type(contents).as_pointer()
                parts = builder.load(builder.inttoptr(arguments[0], kind))
                context.nrt.incref(builder, contents, parts)
                return parts

            return contents(types.int64), generate

        self.pack, self.unpack = pack, unpack


@instruction
def invoke(typing_context: Any, function: Any, parts: Any, first: Any, last: Any) -> Any:
    """Call what :func:`models.kernels.jit.compile_callable` gave the address of.

    Returns:
        1; or 0 if it has failed.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, *others = arguments
        kind = ir.FunctionType(_I64, [_I64] * len(others))
        return builder.call(builder.inttoptr(address, kind.as_pointer()), others)

    return types.int64(*[types.int64] * 4), generate


@instruction
def keep(typing_context: Any, parts: Any) -> Any:
    """Have the parts of a :class:`Parcel` be there until now.

    A kernel lets go of its arrays when it names them for the last time.
    """

    def generate(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_dummy_value()

    return types.void(parts), generate
