"""The innermost kernel of packed products: a tile of a modular matrix product in registers.

It is emitted as LLVM vectors of eight 64-bit lanes, because a loop vectoriser does not keep a two-dimensional tile of
accumulators in registers; LLVM lowers the same code for machines with narrower vectors. One signed 32-bit by 32-bit
multiplication and one addition serve eight products; eight rows share each load of the right-hand side.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from fhe_llm.evaluator.vectors import element, in_all_lanes
from fhe_llm.evaluator.views import intrinsic

TILE_ROWS: Final = 8
TILE_COLUMNS: Final = 16
LAZY_PRODUCTS: Final = 24
"""Products below 2^58 that a signed 64-bit sum holds beside a folded one below 2^60 + 2^32."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_I32, TILE_COLUMNS)
_LANES = ir.VectorType(_I64, TILE_COLUMNS // 2)
_ZERO: Final = ir.Constant(_LANES, [0] * (TILE_COLUMNS // 2))


def _multiply_tile(  # type: ignore[no-untyped-def]
    _context, v, _v_at, _v_stride, x, _x_at, _depth, out, _out_at, _out_stride, _q, _q_inverse, _fold
):
    position = types.intp
    signature = types.void(
        *(v, position, position),
        *(x, position, position),
        *(out, position, position),
        *(types.uint32, types.uint32, types.int32),
    )

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        starts = [element(context, builder, sig.args[i], args[i], args[i + 1]) for i in (0, 3, 6)]
        _emit(builder, _Operands(builder, starts, args))
        return context.get_dummy_value()

    return signature, codegen


multiply_tile: Any = intrinsic(_multiply_tile)
"""``multiply_tile(v, v_at, v_stride, x, x_at, depth, out, out_at, out_stride, q, q_inverse, fold)``, in compiled code:
out[r, c] = sum over k of v[r, k] x[k, c] / 2^32 mod q for 8 rows, 16 columns and ``depth`` >= 1 products each.

``v``, ``x`` are flat int32 arrays of residues of magnitude below 2^29, ``out`` a flat uint32 array of residues below
``q`` < 2^30; the tile starts at the given positions, rows of ``v`` and ``out`` lie a stride apart and those of ``x``
follow one another. ``fold`` is 2^32 mod q, of magnitude below 2^29. Nothing is bounds-checked."""


class _Operands:
    """Pointers to the tile's rows, and the modulus as lanes."""

    def __init__(self, builder: Any, starts: Any, args: Any) -> None:
        self.depth = args[5]
        self.v = _rows(builder, starts[0], args[2])
        self.x = builder.bitcast(starts[1], _LANES.as_pointer())
        self.out = _rows(builder, starts[2], args[8])
        self.q = in_all_lanes(builder, builder.zext(args[9], _I64), _LANES)
        self.q_inverse = in_all_lanes(builder, builder.zext(args[10], _I64), _LANES)
        self.fold = _signed(builder, in_all_lanes(builder, builder.sext(args[11], _I64), _LANES))


def _emit(builder: Any, o: _Operands) -> None:
    """Blocks of at most LAZY_PRODUCTS products, each followed by a fold of the sums; then the reduction."""
    count = 2 * TILE_ROWS
    before = builder.block
    outer = builder.append_basic_block("block")
    inner = builder.append_basic_block("product")
    folding = builder.append_basic_block("fold")
    done = builder.append_basic_block("reduce")
    zero = ir.Constant(_I64, 0)
    builder.branch(outer)

    builder.position_at_end(outer)
    first = _phi(builder, _I64, zero, before)
    folded = [_phi(builder, _LANES, _ZERO, before) for _ in range(count)]
    limit = builder.add(first, ir.Constant(_I64, LAZY_PRODUCTS))
    last = builder.select(builder.icmp_signed("<", limit, o.depth), limit, o.depth)
    builder.branch(inner)

    builder.position_at_end(inner)
    k = _phi(builder, _I64, first, outer)
    sums = [_phi(builder, _LANES, start, outer) for start in folded]
    added = _add_products(builder, o, k, sums)
    following = builder.add(k, ir.Constant(_I64, 1))
    k.add_incoming(following, inner)
    for total, new in zip(sums, added, strict=True):
        total.add_incoming(new, inner)
    builder.cbranch(builder.icmp_signed("<", following, last), inner, folding)

    builder.position_at_end(folding)
    reduced = [_fold(builder, o, total) for total in added]
    first.add_incoming(last, folding)
    for start, total in zip(folded, reduced, strict=True):
        start.add_incoming(total, folding)
    builder.cbranch(builder.icmp_signed("<", last, o.depth), outer, done)

    builder.position_at_end(done)
    for row in range(TILE_ROWS):
        even, odd = (_reduce(builder, o, reduced[2 * row + part]) for part in range(2))
        both = builder.or_(even, builder.shl(odd, _splat(32)))
        target = builder.bitcast(o.out[row], _WORDS.as_pointer())
        builder.store(builder.bitcast(both, _WORDS), target, align=4)


def _add_products(builder: Any, o: _Operands, k: Any, sums: list[Any]) -> list[Any]:
    """The sums after product ``k``: the even columns' lanes and the odd ones' of each row in turn."""
    pair = builder.load(builder.gep(o.x, [k]), align=4)
    columns = [_signed(builder, pair), builder.ashr(pair, _splat(32))]
    added = []
    for row in range(TILE_ROWS):
        word = builder.load(builder.gep(o.v[row], [k]), align=4)
        weight = _signed(builder, builder.bitcast(in_all_lanes(builder, word, _WORDS), _LANES))
        added += [builder.add(sums[2 * row + part], builder.mul(weight, columns[part])) for part in range(2)]
    return added


def _fold(builder: Any, o: _Operands, total: Any) -> Any:
    """An equal sum modulo q of magnitude below 2^60 + 2^32."""
    low = builder.and_(total, _splat(0xFFFFFFFF))
    high = builder.ashr(total, _splat(32))
    return builder.add(low, builder.mul(high, o.fold))


def _reduce(builder: Any, o: _Operands, total: Any) -> Any:
    """total / 2^32 mod q, 0 ... q - 1 (Montgomery), for magnitudes below 2^61 and q above 2^29."""
    mask = _splat(0xFFFFFFFF)
    m = builder.and_(builder.mul(builder.and_(total, mask), o.q_inverse), mask)
    taken = builder.lshr(builder.mul(m, o.q), _splat(32))
    r = builder.sub(builder.ashr(total, _splat(32)), taken)
    for _ in range(2):
        negative = builder.ashr(r, _splat(63))
        r = builder.add(r, builder.and_(negative, o.q))
    return r


def _phi(builder: Any, kind: Any, value: Any, block: Any) -> Any:
    phi = builder.phi(kind)
    phi.add_incoming(value, block)
    return phi


def _rows(builder: Any, start: Any, stride: Any) -> list[Any]:
    return [builder.gep(start, [builder.mul(stride, ir.Constant(_I64, row))]) for row in range(TILE_ROWS)]


def _signed(builder: Any, lanes: Any) -> Any:
    """The low words of the lanes, sign-extended: what a 32-bit signed multiplication reads anyway."""
    return builder.ashr(builder.shl(lanes, _splat(32)), _splat(32))


def _splat(value: int) -> Any:
    return ir.Constant(_LANES, [value] * (TILE_COLUMNS // 2))
