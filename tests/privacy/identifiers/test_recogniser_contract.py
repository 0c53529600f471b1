"""Overlapping finds are settled so that nothing found leaves; a recogniser that lies is refused."""

from __future__ import annotations

import itertools

import pytest
from finds import Lying
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers.contract import Identifier, check_entity_type, check_found, settled

TEXT = "ab cd, ef-gh. ij kl (mn) op"


@st.composite
def finds(draw: st.DrawFn) -> list[Identifier]:
    made = []
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, len(TEXT) - 1))
        end = draw(st.integers(start + 1, len(TEXT)))
        made.append(
            Identifier(
                start, end, draw(st.sampled_from(("AB", "CD"))), draw(st.sampled_from((0.5, 0.8, 1.0)))
            )
        )
    return made


@given(finds())
def test_what_is_settled_is_disjoint_in_order_and_covers_every_letter_found(found: list[Identifier]) -> None:
    kept = settled(TEXT, found)
    assert all(0 <= one.start < one.end <= len(TEXT) for one in kept)
    assert all(one.end <= after.start for one, after in itertools.pairwise(kept))
    covered = {at for one in kept for at in range(one.start, one.end)}
    wanted = {at for one in found for at in range(one.start, one.end) if TEXT[at].isalnum()}
    assert wanted <= covered <= {at for one in found for at in range(one.start, one.end)}


@given(finds(), st.randoms(use_true_random=False))
def test_the_order_of_the_finds_does_not_matter(found: list[Identifier], random: st.DataObject) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert settled(TEXT, shuffled) == settled(TEXT, found)


def test_the_higher_score_wins_then_the_longer() -> None:
    weak, strong = Identifier(0, 13, "AB", 0.5), Identifier(3, 5, "CD", 1.0)
    assert settled(TEXT, [weak, strong]) == [
        Identifier(0, 2, "AB", 0.5),
        strong,
        Identifier(7, 12, "AB", 0.5),
    ]
    short, long = Identifier(3, 5, "AB", 0.5), Identifier(3, 9, "CD", 0.5)
    assert settled(TEXT, [short, long]) == [long]


@pytest.mark.parametrize("find", [(-1, 2), (0, 99), (3, 3), (4, 2)])
def test_a_span_outside_the_text_is_refused(find: tuple[int, int]) -> None:
    liar = Lying((*find, "CARD", 0.5))
    with pytest.raises(PrivacyParameterError, match="cannot use Lying: it returned a span"):
        list(check_found(liar.find(TEXT), len(TEXT), liar))


@pytest.mark.parametrize("score", [0.0, -1.0, 1.5, float("nan")])
def test_a_score_outside_its_range_is_refused(score: float) -> None:
    liar = Lying((0, 2, "CARD", score))
    with pytest.raises(PrivacyParameterError, match="score outside"):
        list(check_found(liar.find(TEXT), len(TEXT), liar))


def test_a_type_that_was_not_declared_is_refused() -> None:
    liar = Lying((0, 2, "OTHER", 0.5))
    with pytest.raises(PrivacyParameterError, match="'OTHER'"):
        list(check_found(liar.find(TEXT), len(TEXT), liar))


@pytest.mark.parametrize("name", ["", "A", "card", "CARD_NO", "CARD1", "A" * 25, None, "KARTÉ", "AB\n"])
def test_names_of_types_are_capital_letters(name: str) -> None:
    with pytest.raises(PrivacyParameterError, match="capital letters"):
        check_entity_type(name)
