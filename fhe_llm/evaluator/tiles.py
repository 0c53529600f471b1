"""Transposition of 16 x 16 tiles of words, in LLVM's portable vector instructions.

A transform changes direction in its middle, from blocks of contiguous words to columns. A loop over single words
spends more time on that than on half the butterflies; sixteen vector loads, four rounds of shuffles and sixteen
stores do not.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from fhe_llm.evaluator.vectors import element
from fhe_llm.evaluator.views import contiguous, intrinsic

TILE: Final = 16


def _shuffled(builder: Any, rows: list[Any]) -> list[Any]:
    """The transposed tile: in round d, lanes whose index has bit d set change places between rows i and i + d."""
    index = ir.VectorType(ir.IntType(32), TILE)
    for d in (8, 4, 2, 1):
        low = ir.Constant(index, [lane if not lane & d else TILE + lane - d for lane in range(TILE)])
        high = ir.Constant(index, [lane + d if not lane & d else TILE + lane for lane in range(TILE)])
        for i in range(TILE):
            if not i & d:
                a, b = rows[i], rows[i + d]
                rows[i] = builder.shuffle_vector(a, b, low)
                rows[i + d] = builder.shuffle_vector(a, b, high)
    return rows


def _vector_at(builder: Any, start: Any, offset: Any) -> Any:
    vector = ir.VectorType(ir.IntType(32), TILE)
    return builder.bitcast(builder.gep(start, [offset]), vector.as_pointer())


@intrinsic
def gather_tile(typing_context, source, starts, first, column, target, offset, stride):  # type: ignore[no-untyped-def]
    """target[offset + k * stride + j] = source[starts[column + j] + first + k] for j, k < 16.

    ``source``, ``target``: flat uint32; ``starts``: flat int32. Offsets are not checked.
    """
    contiguous(source)
    contiguous(target)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        source, starts, first, column, target, offset, stride = arguments
        word = ir.IntType(64)
        from_ = element(context, builder, signature.args[0], source, first)
        columns = element(context, builder, signature.args[1], starts, column)
        to = element(context, builder, signature.args[4], target, offset)
        rows = []
        for j in range(TILE):
            start = builder.sext(builder.load(builder.gep(columns, [ir.Constant(word, j)])), word)
            rows.append(builder.load(_vector_at(builder, from_, start), align=4))
        for k, row in enumerate(_shuffled(builder, rows)):
            at = builder.mul(stride, ir.Constant(word, k))
            builder.store(row, _vector_at(builder, to, at), align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(source, starts, i, i, target, i, i), codegen


@intrinsic
def scatter_tile(typing_context, source, offset, stride, target, starts, first, column):  # type: ignore[no-untyped-def]
    """target[starts[column + j] + first + k] = source[offset + k * stride + j] for j, k < 16: the way back."""
    contiguous(source)
    contiguous(target)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        source, offset, stride, target, starts, first, column = arguments
        word = ir.IntType(64)
        from_ = element(context, builder, signature.args[0], source, offset)
        to = element(context, builder, signature.args[3], target, first)
        columns = element(context, builder, signature.args[4], starts, column)
        rows = []
        for k in range(TILE):
            at = builder.mul(stride, ir.Constant(word, k))
            rows.append(builder.load(_vector_at(builder, from_, at), align=4))
        for j, row in enumerate(_shuffled(builder, rows)):
            start = builder.sext(builder.load(builder.gep(columns, [ir.Constant(word, j)])), word)
            builder.store(row, _vector_at(builder, to, start), align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(source, i, i, target, starts, i, i), codegen
