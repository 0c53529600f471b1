"""Borrowed views for kernels: a range of an array without the reference counting that a slice costs.

Counting references takes an atomic instruction at both ends of a view's life. A kernel that cuts its operands into
runs of 64 words spends a quarter of its time there. A borrowed view is a pointer and a length, valid while the array it
was taken from is alive; kernels hold theirs for one loop.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils, extending
from numba.core.errors import TypingError

intrinsic: Any = extending.intrinsic
"""Numba's decorator without its types: kernels call an intrinsic without the typing context it declares."""


def contiguous(array: Any) -> None:
    """Refuse to compile a kernel for arrays that flat offsets do not describe."""
    if not isinstance(array, types.Array) or array.layout != "C":
        raise TypingError(f"cannot take flat offsets into {array}: it is not C-contiguous. Copy it first.")


@intrinsic
def view(typing_context, array, offset, length):  # type: ignore[no-untyped-def]
    """Words offset ... offset + length - 1 of a C-contiguous array of any shape, flat. The range is not checked."""
    contiguous(array)
    kind = types.Array(array.dtype, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        borrowed = context.make_array(kind)(context, builder)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        length = arguments[2]
        borrowed.data = builder.gep(source.data, [arguments[1]])
        borrowed.nitems = length
        borrowed.itemsize = size
        borrowed.shape = cgutils.pack_array(builder, [length])
        borrowed.strides = cgutils.pack_array(builder, [size])
        borrowed.meminfo = cgutils.get_null_value(borrowed.meminfo.type)
        borrowed.parent = cgutils.get_null_value(borrowed.parent.type)
        return borrowed._getvalue()

    return kind(array, types.int64, types.int64), codegen


@intrinsic
def array_at(typing_context, address, like):  # type: ignore[no-untyped-def]
    """The C-contiguous array at ``address``, of the type and shape of ``like``; the caller keeps it alive.

    Kernels take one array per argument, and a batch has one set of keys per client: they pass addresses.
    """
    contiguous(like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, like = arguments
        known = context.make_array(signature.args[1])(context, builder, like)
        borrowed = context.make_array(signature.args[1])(context, builder)
        borrowed.data = builder.inttoptr(address, known.data.type)
        borrowed.nitems, borrowed.itemsize = known.nitems, known.itemsize
        borrowed.shape, borrowed.strides = known.shape, known.strides
        borrowed.meminfo = cgutils.get_null_value(borrowed.meminfo.type)
        borrowed.parent = cgutils.get_null_value(borrowed.parent.type)
        return borrowed._getvalue()

    return like(types.int64, like), codegen
