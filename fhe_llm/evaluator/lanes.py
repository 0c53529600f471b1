"""Short vectors as values: sixteen 32-bit or eight 64-bit words that a kernel loads, computes with and stores.

A kernel that keeps several rows in registers at once reads and writes memory a fraction as often as a chain of loops
over single rows, but compilers give up proving that so many rows do not overlap. Said with vectors there is nothing
to prove. These are LLVM's portable vectors: one register with AVX-512, several narrower ones elsewhere.

Loads and stores take a C-contiguous array of any shape and a flat offset, which is not checked.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import models, register_model

from fhe_llm.evaluator.vectors import address, computing, loading, spreading, storing
from fhe_llm.evaluator.views import contiguous, intrinsic

WORDS: Final = 16
"""Lanes of a vector of words."""
SUMS: Final = 8
"""Lanes of a vector of 64-bit sums."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS_IR, _SUMS_IR = ir.VectorType(_I32, WORDS), ir.VectorType(_I64, SUMS)


class WordsType(types.Type):
    """Sixteen uint32."""

    def __init__(self) -> None:
        super().__init__(name="Words16")


class SumsType(types.Type):
    """Eight uint64."""

    def __init__(self) -> None:
        super().__init__(name="Sums8")


words_type, sums_type = WordsType(), SumsType()


@register_model(WordsType)
class _WordsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _WORDS_IR)  # type: ignore[no-untyped-call]


@register_model(SumsType)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _SUMS_IR)  # type: ignore[no-untyped-call]


load = loading(words_type, _WORDS_IR, 4, "Sixteen words of a uint32 array.")
store = storing(words_type, _WORDS_IR, 4, "Write sixteen words to a uint32 array.")
spread = spreading(words_type, _WORDS_IR, types.uint32, "The same word in all sixteen lanes.")
load_sums = loading(sums_type, _SUMS_IR, 8, "Eight 64-bit words of a uint64 array.")
store_sums = storing(sums_type, _SUMS_IR, 8, "Write eight 64-bit words to a uint64 array.")
spread_sum = spreading(sums_type, _SUMS_IR, types.uint64, "The same uint64 in all eight lanes.")


def _minimum(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_unsigned("<", x, y), x, y)


def _high_product(builder: Any, x: Any, y: Any) -> Any:
    """Even and odd lanes apart, as one 64-bit multiplication each: half the instructions of widening and narrowing."""
    shift = ir.Constant(_SUMS_IR, [32] * SUMS)
    low, high = (ir.Constant(_SUMS_IR, [mask] * SUMS) for mask in (0xFFFFFFFF, 0xFFFFFFFF << 32))
    x, y = builder.bitcast(x, _SUMS_IR), builder.bitcast(y, _SUMS_IR)
    even = builder.mul(builder.and_(x, low), builder.and_(y, low))
    odd = builder.mul(builder.lshr(x, shift), builder.lshr(y, shift))
    both = builder.or_(builder.lshr(even, shift), builder.and_(odd, high))
    return builder.bitcast(both, _WORDS_IR)


add = computing(words_type, lambda builder, x, y: builder.add(x, y), "x + y modulo 2^32.")
sub = computing(words_type, lambda builder, x, y: builder.sub(x, y), "x - y modulo 2^32.")
low_product = computing(words_type, lambda builder, x, y: builder.mul(x, y), "x * y modulo 2^32.")
high_product = computing(words_type, _high_product, "floor(x * y / 2^32).")
minimum = computing(words_type, _minimum, "The smaller of two unsigned words.")


def _halves(documentation: str, part: Any) -> Any:
    def typed(typing_context, x):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return part(builder, builder.bitcast(arguments[0], _SUMS_IR))

        return sums_type(words_type), codegen

    typed.__doc__ = documentation
    return intrinsic(typed)


def _upper(builder: Any, x: Any) -> Any:
    return builder.lshr(x, ir.Constant(_SUMS_IR, [32] * SUMS))


even = _halves(
    "Words 0, 2, ... in the low halves of 64-bit lanes; the high halves are arbitrary.", lambda _, x: x
)
odd = _halves("Words 1, 3, ... in the low halves of 64-bit lanes.", _upper)


@intrinsic
def high_words(typing_context, evens, odds):  # type: ignore[no-untyped-def]
    """The high halves of both, put back in the order that ``even`` and ``odd`` took apart."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        evens, odds = arguments
        high = ir.Constant(_SUMS_IR, [0xFFFFFFFF << 32] * SUMS)
        return builder.bitcast(builder.or_(_upper(builder, evens), builder.and_(odds, high)), _WORDS_IR)

    return words_type(sums_type, sums_type), codegen


@intrinsic
def no_sums(typing_context):  # type: ignore[no-untyped-def]
    """Eight zeros."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return ir.Constant(_SUMS_IR, [0] * SUMS)

    return sums_type(), codegen


@intrinsic
def multiply_add(typing_context, total, x, y):  # type: ignore[no-untyped-def]
    """total + x * y modulo 2^64, where only the low 32 bits of x and y count: one multiplication a lane."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        total, x, y = arguments
        mask = ir.Constant(_SUMS_IR, [0xFFFFFFFF] * SUMS)
        return builder.add(total, builder.mul(builder.and_(x, mask), builder.and_(y, mask)))

    return sums_type(sums_type, sums_type, sums_type), codegen


@intrinsic
def multiply_low(typing_context, x, y):  # type: ignore[no-untyped-def]
    """x * y modulo 2^32 in the low halves; the high halves are arbitrary."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        x, y = (builder.bitcast(argument, _WORDS_IR) for argument in arguments)
        return builder.bitcast(builder.mul(x, y), _SUMS_IR)

    return sums_type(sums_type, sums_type), codegen


folded = computing(
    sums_type,
    lambda builder, total, bound: _minimum(builder, total, builder.sub(total, bound)),
    "min(total, total - bound) in 64-bit lanes: below ``bound`` for totals below twice that.",
)


@intrinsic
def will_read_once(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Ask for the cache line at ``offset`` ahead of its use, and not to keep it in the outer caches."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        line = address(context, builder, signature.args[0], arguments, ir.IntType(8))
        word = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [line.type, word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, no_locality, data = (ir.Constant(word, value) for value in (0, 0, 1))
        builder.call(prefetch, [line, read, no_locality, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


def _stored_half(context: Any, builder: Any, kind: Any, operands: Any, half: Any) -> Any:
    builder.store(half, address(context, builder, kind, operands, half.type), align=4)
    return context.get_dummy_value()


@intrinsic
def store_high(typing_context, array, offset, sums):  # type: ignore[no-untyped-def]
    """Write the high halves of eight 64-bit lanes to an array of words."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        high = builder.trunc(_upper(builder, arguments[2]), ir.VectorType(_I32, SUMS))
        return _stored_half(context, builder, signature.args[0], arguments[:2], high)

    return types.void(array, types.int64, sums_type), codegen


@intrinsic
def store_first(typing_context, array, offset, value):  # type: ignore[no-untyped-def]
    """Write the first eight of sixteen words to an array of words."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        first = ir.Constant(ir.VectorType(_I32, SUMS), list(range(SUMS)))
        half = builder.shuffle_vector(arguments[2], ir.Constant(_WORDS_IR, ir.Undefined), first)
        return _stored_half(context, builder, signature.args[0], arguments[:2], half)

    return types.void(array, types.int64, words_type), codegen
