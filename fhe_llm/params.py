"""Encryption parameters: an unchecked literal, the security table, and the checked, named presets.

Every preset has multiplicative depth one: one plaintext product, rotations, one rescale, decrypt.
The last prime is the special one; it never carries data and only serves key switching.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Final

from fhe_llm.errors import ParameterError

MAX_LOG_QP_CLASSICAL: Final = {2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}
"""Largest log2(QP) for 128 bits against classical attackers, ternary secret (Bossuat et al., "Security
Guidelines for Implementing Homomorphic Encryption", 2024, table 5.2)."""

MAX_LOG_QP_QUANTUM: Final = {2048: 50, 4096: 101, 8192: 203, 16384: 409, 32768: 825}
"""The same against quantum attackers; shipped presets stay under this row."""


@dataclass(frozen=True, slots=True)
class ParameterLiteral:
    """Unchecked CKKS parameters, as a user or a file would write them.

    ``ring_degree`` is N; ``prime_bits`` lists the bit lengths of the ciphertext primes, the special one last.
    """

    ring_degree: int
    prime_bits: tuple[int, ...]

    @property
    def log_qp(self) -> int:
        """Upper bound on log2 of the product of all primes, in bits."""
        return sum(self.prime_bits)


@dataclass(frozen=True, slots=True)
class Preset:
    """Checked, immutable CKKS parameters under a name both sides know.

    ``primes`` are the largest primes of the given bit lengths congruent to 1 modulo 2N, in SEAL's order;
    ``log_input_scale`` and ``log_weight_scale`` are log2 of the encoding scales; a reply is rescaled until
    ``reply_limbs`` primes are left.
    """

    name: str
    wire_id: int
    ring_degree: int
    prime_bits: tuple[int, ...]
    primes: tuple[int, ...]
    log_input_scale: int
    log_weight_scale: int
    reply_limbs: int
    security_bits: int

    @property
    def slots(self) -> int:
        """Complex slots of one plaintext, N/2."""
        return self.ring_degree // 2

    @property
    def data_primes(self) -> tuple[int, ...]:
        """The primes that carry data, without the special one."""
        return self.primes[:-1]

    @property
    def log_qp(self) -> int:
        """Upper bound on log2 of the product of all primes, in bits."""
        return sum(self.prime_bits)

    @property
    def table_row(self) -> str:
        """The row of the security table this preset meets: ``quantum`` or ``classical``."""
        quantum = MAX_LOG_QP_QUANTUM.get(self.ring_degree, 0)
        return "quantum" if self.log_qp <= quantum else "classical"

    def log_reply_scale(self, log_weight_scale: float) -> float:
        """log2 of the scale of a reply's plaintext: input's and weights' scale, less the primes rescaling dropped."""
        dropped = self.data_primes[self.reply_limbs :]
        return self.log_input_scale + log_weight_scale - sum(log2(p) for p in dropped)


def check(literal: ParameterLiteral) -> None:
    """Raise :class:`ParameterError` unless the literal meets 128 bits, classical (ternary secret)."""
    limit = MAX_LOG_QP_CLASSICAL.get(literal.ring_degree)
    if limit is None:
        allowed = ", ".join(str(n) for n in MAX_LOG_QP_CLASSICAL)
        raise ParameterError(
            f"cannot use ring degree {literal.ring_degree}: it is not in the security table. Use one of {allowed}."
        )
    if len(literal.prime_bits) < 2 or not all(20 <= bits <= 60 for bits in literal.prime_bits):
        raise ParameterError(
            f"cannot use primes of {literal.prime_bits} bits: at least two of 20 to 60 bits are needed. "
            "Use a named preset."
        )
    if literal.log_qp > limit:
        raise ParameterError(
            f"cannot use log2(QP) = {literal.log_qp} at N = {literal.ring_degree}: 128-bit security allows {limit}. "
            "Use smaller primes, a larger ring, or a named preset."
        )


def make_preset(
    name: str,
    wire_id: int,
    literal: ParameterLiteral,
    *,
    log_input_scale: int,
    log_weight_scale: int,
    reply_limbs: int,
) -> Preset:
    """Check a literal and turn it into a preset; raises :class:`ParameterError`."""
    check(literal)
    return Preset(
        name=name,
        wire_id=wire_id,
        ring_degree=literal.ring_degree,
        prime_bits=literal.prime_bits,
        primes=_largest_ntt_primes(literal),
        log_input_scale=log_input_scale,
        log_weight_scale=log_weight_scale,
        reply_limbs=reply_limbs,
        security_bits=128,
    )


def preset(name: str) -> Preset:
    """The preset of that name; raises :class:`ParameterError` naming the ones there are."""
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(sorted(PRESETS))
        raise ParameterError(
            f"cannot use preset {name!r}: there is no such preset. Use one of {known}."
        ) from None


def _largest_ntt_primes(literal: ParameterLiteral) -> tuple[int, ...]:
    """SEAL's ``CoeffModulus::Create``: per bit length, the largest primes = 1 (mod 2N), handed out in descending
    order from the back of the list, so that the special prime is the largest of its length."""
    step = 2 * literal.ring_degree
    pools: dict[int, list[int]] = {}
    for bits in set(literal.prime_bits):
        wanted = literal.prime_bits.count(bits)
        found: list[int] = []
        candidate = ((1 << bits) - 1) // step * step + 1
        while len(found) < wanted:
            if _is_prime(candidate):
                found.append(candidate)
            candidate -= step
        pools[bits] = found
    return tuple(pools[bits].pop() for bits in literal.prime_bits)


def _is_prime(n: int) -> bool:
    """Deterministic Miller-Rabin for n < 3.3e24 (Sorenson and Webster, 2015)."""
    small = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if any(n % p == 0 for p in small):
        return n in small
    d, r = n - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for a in small:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(r - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


PRESETS: Final[dict[str, Preset]] = {
    p.name: p
    for p in (
        make_preset(
            "default",
            1,
            ParameterLiteral(4096, (30, 30, 31)),
            log_input_scale=32,
            log_weight_scale=24,
            reply_limbs=1,
        ),
        make_preset(
            "wide",
            2,
            ParameterLiteral(8192, (30, 30, 30, 31)),
            log_input_scale=40,
            log_weight_scale=30,
            reply_limbs=2,
        ),
    )
}
