"""Noise is discrete Gaussian of the scale that the claim takes, confirmed by OpenDP, fresh in every process."""

from __future__ import annotations

import math
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
from forking import forked
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.errors import PrivacyError
from fhe_llm.privacy.gaussian_noise import GaussianNoise, root_above


@pytest.mark.parametrize("kind", ["whole", "float"])
@pytest.mark.parametrize("rho", [Fraction(1, 2), Fraction(1, 10**12), Fraction(7, 3), Fraction(10**6)])
def test_the_scale_is_the_smallest_that_is_confirmed(kind: str, rho: Fraction) -> None:
    made = GaussianNoise(1000.0, rho, kind)  # type: ignore[arg-type]
    confirmed = Fraction(made._mine.measurement.map(1000.0))  # type: ignore[no-untyped-call]
    assert confirmed <= rho
    assert made.scale == pytest.approx(1000.0 / math.sqrt(2 * rho), rel=1e-12)
    assert (1000 / Fraction(made.scale)) ** 2 / 2 <= rho


def test_a_claim_that_is_not_confirmed_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def map(self, _: float) -> float:
            return math.inf

    monkeypatch.setattr("fhe_llm.privacy.gaussian_noise._measurement", lambda *_: Never())
    with pytest.raises(PrivacyError, match="does not confirm"):
        GaussianNoise(1.0, Fraction(1, 2), "whole")


def test_without_opendp_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "opendp" or n.startswith("opendp.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PrivacyError, match=r"OpenDP is missing. Install fhe-llm\[privacy\]"):
        GaussianNoise(1.0, Fraction(1, 2), "whole")


@pytest.mark.parametrize("kind", ["whole", "float"])
def test_draws_have_the_deviation(kind: str) -> None:
    """Mean and variance of n draws are more than 6 deviations off twice in a thousand million times."""
    made, count = GaussianNoise(50.0, Fraction(1, 2), kind), 4000  # type: ignore[arg-type]
    start = [7] * count if kind == "whole" else [7.0] * count
    noise = np.array(made(start)) - 7
    assert abs(noise.mean()) < 6 * made.scale / math.sqrt(count)
    assert abs(noise.var() / made.scale**2 - 1) < 6 * math.sqrt(2 / count)
    if kind == "whole":
        assert np.array_equal(noise, np.rint(noise))


def test_nothing_gets_no_noise() -> None:
    assert GaussianNoise(1.0, Fraction(1, 2), "whole")([]) == []


def test_threads_share_one_and_draw_differently() -> None:
    made = GaussianNoise(2.0**26, Fraction(1, 2), "whole")
    drawn: list[int] = []

    def use() -> None:
        drawn.extend(made([0] * 200))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 800
    assert len(set(drawn)) > 790


@pytest.mark.parametrize("kind", ["whole", "float"])
def test_forked_children_draw_anew(kind: str) -> None:
    made = GaussianNoise(2.0**26, Fraction(1, 2), kind)  # type: ignore[arg-type]

    def draw() -> bytes:
        return repr(made([0, 0, 0] if kind == "whole" else [0.0, 0.0, 0.0])).encode()

    draw()
    with forked(draw) as one, forked(draw) as other:
        assert len({one(), other(), draw()}) == 3


def test_a_child_draws_while_its_parent_was_drawing() -> None:
    made = GaussianNoise(2.0**26, Fraction(1, 2), "whole")
    stop = threading.Event()

    def keep_on() -> None:
        while not stop.is_set():
            made([0] * 500)

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        for _ in range(5):
            with forked(lambda: str(len(made([0] * 3))).encode()) as result:
                assert result() == b"3"
    finally:
        stop.set()
        thread.join()


@given(st.fractions(min_value=Fraction(1, 10**30), max_value=10**30))
def test_a_root_is_not_below(number: Fraction) -> None:
    root = root_above(number)
    assert Fraction(root) ** 2 >= number
    assert Fraction(math.nextafter(math.nextafter(math.nextafter(root, 0), 0), 0)) ** 2 < number
