"""The presets meet the security table, and nothing above it is accepted."""

from __future__ import annotations

from math import log2, prod

import pytest

from fhe_llm.errors import ParameterError
from fhe_llm.params import (
    MAX_LOG_QP_CLASSICAL,
    MAX_LOG_QP_QUANTUM,
    PRESETS,
    ParameterLiteral,
    check,
    make_preset,
    preset,
)


@pytest.mark.parametrize(("name", "degree", "log_qp"), [("default", 4096, 91), ("wide", 8192, 121)])
def test_each_preset_meets_the_quantum_row(name: str, degree: int, log_qp: int) -> None:
    chosen = PRESETS[name]
    assert (chosen.ring_degree, chosen.log_qp, chosen.security_bits) == (degree, log_qp, 128)
    assert log_qp <= MAX_LOG_QP_QUANTUM[degree] < MAX_LOG_QP_CLASSICAL[degree]
    assert chosen.table_row == "quantum"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_primes_fit_the_engine(name: str) -> None:
    chosen = PRESETS[name]
    product = 1
    for bits, prime in zip(chosen.prime_bits, chosen.primes, strict=True):
        assert prime.bit_length() == bits <= 31
        assert prime % (2 * chosen.ring_degree) == 1
        product *= prime
    assert len(set(chosen.primes)) == len(chosen.primes)
    assert product.bit_length() <= chosen.log_qp
    assert all(q < 1 << 30 for q in chosen.data_primes)  # sixteen products fit a 64-bit sum
    assert max(chosen.data_primes) < 2 * min(chosen.data_primes)


@pytest.mark.parametrize(("degree", "limit"), sorted(MAX_LOG_QP_CLASSICAL.items()))
def test_one_bit_above_the_table_is_refused(degree: int, limit: int) -> None:
    count = max(2, -(-limit // 60))
    bits = [limit // count + (i < limit % count) for i in range(count)]
    check(ParameterLiteral(degree, tuple(bits)))
    bits[-1] += 1
    with pytest.raises(ParameterError, match=str(limit)):
        check(ParameterLiteral(degree, tuple(bits)))


def test_what_seal_would_still_allow_is_refused() -> None:
    with pytest.raises(ParameterError, match="106"):
        make_preset(
            "loose",
            9,
            ParameterLiteral(4096, (36, 36, 37)),
            log_input_scale=32,
            log_weight_scale=24,
            reply_limbs=1,
        )


@pytest.mark.parametrize(
    "literal",
    [ParameterLiteral(1024, (27,)), ParameterLiteral(4096, (30,)), ParameterLiteral(4096, (30, 61))],
)
def test_malformed_literals_are_refused(literal: ParameterLiteral) -> None:
    with pytest.raises(ParameterError, match="cannot use"):
        check(literal)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="default, wide"):
        preset("fast")


@pytest.mark.parametrize("name", PRESETS)
def test_a_reply_has_the_scale_of_the_product_less_the_primes_it_lost(name: str) -> None:
    chosen = preset(name)
    dropped = prod(chosen.data_primes) // prod(chosen.data_primes[: chosen.reply_limbs])
    found = chosen.log_reply_scale(24)
    assert found == pytest.approx(log2(2 ** (chosen.log_input_scale + 24) / dropped), abs=1e-9)
    assert found == pytest.approx(
        chosen.log_input_scale + 24 - 30 * (len(chosen.data_primes) - chosen.reply_limbs), abs=0.01
    )
