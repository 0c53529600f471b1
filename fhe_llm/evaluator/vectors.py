"""What vector instructions have in common: where a vector lies in an array, and one value in all of its lanes.

This is LLVM code in the making: of it ``lanes``, ``float_lanes``, ``tiles`` and ``packed_tile`` make what kernels call.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from fhe_llm.evaluator.views import contiguous, intrinsic


def element(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Pointer to the element at a flat offset of a C-contiguous array of Numba type ``kind``."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def address(context: Any, builder: Any, kind: Any, operands: Any, vector: Any) -> Any:
    """Pointer to the vector at a flat offset of a C-contiguous array: ``operands`` are both."""
    return builder.bitcast(element(context, builder, kind, *operands), vector.as_pointer())


def in_all_lanes(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of equal values."""
    word = ir.IntType(32)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(word, 0))
    zeros = ir.Constant(ir.VectorType(word, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def loading(kind: Any, vector: Any, align: int, document: str) -> Any:
    """An instruction ``(array, offset)`` that reads a vector, as a value of Numba type ``kind``."""

    def typed(typing_context, array, offset):  # type: ignore[no-untyped-def]
        contiguous(array)

        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = address(context, builder, signature.args[0], arguments, vector)
            return builder.load(pointer, align=align)

        return kind(array, types.int64), codegen

    typed.__doc__ = document
    return intrinsic(typed)


def storing(kind: Any, vector: Any, align: int, document: str) -> Any:
    """An instruction ``(array, offset, value)`` that writes a vector, a value of Numba type ``kind``."""

    def typed(typing_context, array, offset, value):  # type: ignore[no-untyped-def]
        contiguous(array)

        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = address(context, builder, signature.args[0], arguments[:2], vector)
            builder.store(arguments[2], pointer, align=align)
            return context.get_dummy_value()

        return types.void(array, types.int64, kind), codegen

    typed.__doc__ = document
    return intrinsic(typed)


def spreading(kind: Any, vector: Any, element: Any, document: str) -> Any:
    """An instruction ``(value)`` that puts a scalar of Numba type ``element`` in all lanes of a ``kind``."""

    def typed(typing_context, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return in_all_lanes(builder, arguments[0], vector)

        return kind(element), codegen

    typed.__doc__ = document
    return intrinsic(typed)


def computing(kind: Any, operation: Any, document: str) -> Any:
    """An instruction ``(x, y)`` on two vectors of Numba type ``kind``: ``operation`` takes the builder and both."""

    def typed(typing_context, x, y):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return operation(builder, *arguments)

        return kind(kind, kind), codegen

    typed.__doc__ = document
    return intrinsic(typed)
