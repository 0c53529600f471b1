"""Eight doubles as one value, beside the word vectors of ``lanes``: for transforms of weights that are no words yet."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import models, register_model

from fhe_llm.evaluator.lanes import sums_type
from fhe_llm.evaluator.views import contiguous, intrinsic

FLOATS: Final = 8
"""Lanes of a vector of doubles."""

_DOUBLE, _I32 = ir.DoubleType(), ir.IntType(32)
_FLOATS_IR = ir.VectorType(_DOUBLE, FLOATS)


class FloatsType(types.Type):
    """Eight float64."""

    def __init__(self) -> None:
        super().__init__(name="Floats8")


floats_type = FloatsType()


@register_model(FloatsType)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS_IR)  # type: ignore[no-untyped-call]


def _at(context: Any, builder: Any, kind: Any, operands: Any, vector: Any) -> Any:
    array, offset = operands
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


@intrinsic
def load_floats(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Eight numbers of a float64 array."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(_at(context, builder, signature.args[0], arguments, _FLOATS_IR), align=8)

    return floats_type(array, types.int64), codegen


@intrinsic
def load_singles(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Eight numbers of a float32 array, as doubles."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        narrow = ir.VectorType(ir.FloatType(), FLOATS)
        loaded = builder.load(_at(context, builder, signature.args[0], arguments, narrow), align=4)
        return builder.fpext(loaded, _FLOATS_IR)

    return floats_type(array, types.int64), codegen


@intrinsic
def store_floats(typing_context, array, offset, value):  # type: ignore[no-untyped-def]
    """Write eight numbers to a float64 array."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array, offset, value = arguments
        builder.store(value, _at(context, builder, signature.args[0], (array, offset), _FLOATS_IR), align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, floats_type), codegen


@intrinsic
def spread_float(typing_context, number):  # type: ignore[no-untyped-def]
    """The same number in all eight lanes."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        undefined = ir.Constant(_FLOATS_IR, ir.Undefined)
        one = builder.insert_element(undefined, arguments[0], ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, FLOATS), [0] * FLOATS)
        return builder.shuffle_vector(one, undefined, zeros)

    return floats_type(types.float64), codegen


def _binary(operation: str, document: str) -> Any:
    def typed(typing_context, x, y):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return getattr(builder, operation)(*arguments)

        return floats_type(floats_type, floats_type), codegen

    typed.__doc__ = document
    return intrinsic(typed)


plus = _binary("fadd", "x + y.")
minus = _binary("fsub", "x - y.")
times = _binary("fmul", "x * y.")


@intrinsic
def nearest(typing_context, x):  # type: ignore[no-untyped-def]
    """The nearest whole numbers, ties to even."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(_FLOATS_IR, [_FLOATS_IR])
        rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.v8f64")
        return builder.call(rint, arguments)

    return floats_type(floats_type), codegen


@intrinsic
def to_residues(typing_context, x, modulus):  # type: ignore[no-untyped-def]
    """Whole numbers from -modulus to modulus (below 2^31) as residues below it, in the low halves of 64-bit lanes."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        x, modulus = arguments
        narrow = builder.fptosi(x, ir.VectorType(_I32, FLOATS))
        wide = builder.sext(narrow, modulus.type)
        sign = builder.ashr(wide, ir.Constant(modulus.type, [63] * FLOATS))
        return builder.add(wide, builder.and_(sign, modulus))

    return sums_type(floats_type, sums_type), codegen
