"""What kernels need to share one evaluation among threads without the interpreter: atomics, a clock, a yield.

Every thread runs the same kernel and takes the next task of a phase from a counter, so a thread that starts late or
loses its core for a while costs no more than the task it holds. LLVM's own instructions and two POSIX calls; nothing
here depends on the processor.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from fhe_llm.evaluator.vectors import element
from fhe_llm.evaluator.views import intrinsic

SPINS_BEFORE_YIELD: Final = 200
_CLOCK_MONOTONIC: Final = 1


@intrinsic
def atomic_add(typing_context, counters, index, value):  # type: ignore[no-untyped-def]
    """counters[index] += value for int64 arrays; returns the value before."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = element(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", address, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), codegen


@intrinsic
def atomic_read(typing_context, counters, index):  # type: ignore[no-untyped-def]
    """counters[index] of an int64 array, as other threads have left it."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = element(context, builder, signature.args[0], *arguments[:2])
        return builder.load_atomic(address, "seq_cst", 8)

    return types.int64(counters, types.int64), codegen


@intrinsic
def give_way(typing_context):  # type: ignore[no-untyped-def]
    """sched_yield(2): let another thread have the core."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        function_type = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, function_type, "sched_yield")
        return builder.call(function, [])

    return types.int32(), codegen


@intrinsic
def nanoseconds(typing_context):  # type: ignore[no-untyped-def]
    """clock_gettime(2) of the monotonic clock, in nanoseconds."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        spec = cgutils.alloca_once(builder, ir.ArrayType(word, 2))
        function_type = ir.FunctionType(ir.IntType(32), [ir.IntType(32), spec.type])
        function = cgutils.get_or_insert_function(builder.module, function_type, "clock_gettime")
        builder.call(function, [ir.Constant(ir.IntType(32), _CLOCK_MONOTONIC), spec])
        seconds = builder.extract_value(builder.load(spec), 0)
        rest = builder.extract_value(builder.load(spec), 1)
        return builder.add(builder.mul(seconds, ir.Constant(word, 1_000_000_000)), rest)

    return types.int64(), codegen


@njit(inline="always")
def take(counters, phase):  # type: ignore[no-untyped-def]
    """The next task of ``phase``; ``counters`` [phases, 2, 8] flat: tasks taken, tasks done, each on its own line."""
    return atomic_add(counters, 16 * phase, 1)


@njit(nogil=True, cache=True)
def finish_phase(counters, phase, done, total):  # type: ignore[no-untyped-def]
    """Count ``done`` tasks and wait until all ``total`` tasks of ``phase`` are done."""
    if atomic_add(counters, 16 * phase + 8, done) + done >= total:
        return
    spins = 0
    while atomic_read(counters, 16 * phase + 8) < total:
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            give_way()
