"""Eight doubles as one value, beside the word vectors of ``lanes``: for transforms of weights that are no words yet."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import models, register_model

from fhe_llm.evaluator.lanes import sums_type
from fhe_llm.evaluator.vectors import address, computing, loading, spreading, storing
from fhe_llm.evaluator.views import contiguous, intrinsic

FLOATS: Final = 8
"""Lanes of a vector of doubles."""

_FLOATS_IR = ir.VectorType(ir.DoubleType(), FLOATS)


class FloatsType(types.Type):
    """Eight float64."""

    def __init__(self) -> None:
        super().__init__(name="Floats8")


floats_type = FloatsType()


@register_model(FloatsType)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS_IR)  # type: ignore[no-untyped-call]


load_floats = loading(floats_type, _FLOATS_IR, 8, "Eight numbers of a float64 array.")
store_floats = storing(floats_type, _FLOATS_IR, 8, "Write eight numbers to a float64 array.")
spread_float = spreading(floats_type, _FLOATS_IR, types.float64, "The same number in all eight lanes.")
plus = computing(floats_type, lambda builder, x, y: builder.fadd(x, y), "x + y.")
minus = computing(floats_type, lambda builder, x, y: builder.fsub(x, y), "x - y.")
times = computing(floats_type, lambda builder, x, y: builder.fmul(x, y), "x * y.")


@intrinsic
def load_singles(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Eight numbers of a float32 array, as doubles."""
    contiguous(array)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        narrow = ir.VectorType(ir.FloatType(), FLOATS)
        loaded = builder.load(address(context, builder, signature.args[0], arguments, narrow), align=4)
        return builder.fpext(loaded, _FLOATS_IR)

    return floats_type(array, types.int64), codegen


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
        narrow = builder.fptosi(x, ir.VectorType(ir.IntType(32), FLOATS))
        wide = builder.sext(narrow, modulus.type)
        sign = builder.ashr(wide, ir.Constant(modulus.type, [63] * FLOATS))
        return builder.add(wide, builder.and_(sign, modulus))

    return sums_type(floats_type, sums_type), codegen
