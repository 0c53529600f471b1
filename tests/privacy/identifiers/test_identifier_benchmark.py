"""What the recognisers find of what was planted, never less than the floors; every answer comes back exactly.

The floors lie below what ``docs/identifiers.md`` publishes: Faker's lists change from version to version.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from finds import Words
from hypothesis import given
from hypothesis import strategies as st
from identifier_documents import FOREIGN, LOCALES, Document, Planted, documents, templates
from identifier_scores import Judged, answered_exactly, judged
from identifier_slots import KINDS
from identifiers import JUDGE_SEED, TUNE_SEED

from fhe_llm.privacy import Pseudonymiser
from fhe_llm.privacy.identifiers import Pseudonyms, checksums

DEFAULT = Pseudonymiser()
FLOORS = {"CARD": 0.95, "IBAN": 0.95, "EMAIL": 0.95, "IP": 0.9, "PHONE": 0.85, "ADDRESS": 0.8, "PERSON": 0.75}
"""Overlapping recall of each type."""


def check_floors(result: Judged, kinds: dict[str, float]) -> None:
    assert result.restored == result.documents
    for kind, floor in kinds.items():
        score = result.kinds[kind].plain()
        assert score["overlap"]["recall"] >= floor, (kind, result.leaks)
    total = result.total().plain()
    assert total["overlap"]["precision"] >= 0.85, result.wrong
    assert total["leak_rate"] <= 0.2, result.leaks


def test_twenty_documents() -> None:
    result = judged(documents(21, JUDGE_SEED, "judge"), Pseudonymiser())
    assert result.documents == 21
    check_floors(result, FLOORS)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "split"), [(JUDGE_SEED, "judge"), (TUNE_SEED, "tune")])
def test_two_hundred_documents(seed: int, split: str) -> None:
    result = judged(documents(200, seed, split), Pseudonymiser())
    assert result.documents == 200
    check_floors(result, FLOORS)


@pytest.mark.slow
def test_answers_come_back_exactly_with_presidio_too() -> None:
    pytest.importorskip("presidio_analyzer")
    from identifiers import sets_of_recognisers

    made = documents(200, JUDGE_SEED, "judge")
    for make in sets_of_recognisers().values():
        assert judged(made, make()).restored == 200


def test_documents_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    assert documents(14, 5, "judge") == documents(14, 5, "judge")
    assert documents(14, 5, "judge") != documents(14, 6, "judge")


def test_the_two_splits_share_no_template_and_cover_every_kind_of_document() -> None:
    kinds = {"letter", "ticket", "medical", "contract", "chat", "email"}
    for language in {*LOCALES.values(), *FOREIGN.values()}:
        tune, judge = templates(language, "tune"), templates(language, "judge")
        assert {kind for kind, _ in tune} == {kind for kind, _ in judge} == kinds
        assert not {text for _, text in tune} & {text for _, text in judge}


def test_what_is_planted_stands_where_it_is_said_to_and_has_right_check_digits() -> None:
    made = documents(42, JUDGE_SEED, "judge")
    planted = [
        (one.entity_type, document.text[one.start : one.end]) for document in made for one in document.planted
    ]
    assert {kind for kind, _ in planted} == set(KINDS.values())
    for kind, text in planted:
        assert text == text.strip()
        dense = "".join(c for c in text if c.isalnum())
        assert kind != "CARD" or checksums.luhn(dense)
        assert kind != "IBAN" or checksums.mod97(dense)
        assert kind != "EMAIL" or "@" in text


def document(text: str, *planted: tuple[int, int, str]) -> Document:
    return Document(text, tuple(Planted(*one) for one in planted), "letter", "en_US")


def scored(text: str, planted: tuple[int, int, str], *recognisers: Words) -> dict[str, Any]:
    result = judged([document(text, planted)], Pseudonymiser(list(recognisers)))
    return {
        name: value for name, value in result.kinds["NAME"].plain().items() if isinstance(value, int | float)
    }


def test_counts_of_a_whole_a_part_a_wrong_type_and_nothing() -> None:
    span = (3, 11, "NAME")
    whole = scored("hi Jane Doe!", span, Words("NAME", ("Jane Doe",)))
    assert whole == dict(zip(whole, (1, 1, 1, 1, 1, 0, 0, 0.0), strict=True))
    part = scored("hi Jane Doe!", span, Words("NAME", ("Jane",)))
    assert part == dict(zip(part, (1, 1, 0, 1, 1, 1, 0, 1.0), strict=True))
    other = scored("hi Jane Doe!", span, Words("OTHER", ("Jane Doe",)))
    assert other == dict(zip(other, (1, 0, 0, 0, 0, 0, 0, 0.0), strict=True))
    nothing = scored("hi Jane Doe!", span, Words("NAME", ("John",)))
    assert nothing == dict(zip(nothing, (1, 0, 0, 0, 0, 1, 1, 1.0), strict=True))


def test_a_wrong_find_lowers_precision() -> None:
    result = judged(
        [document("Jane met April", (0, 4, "NAME"))], Pseudonymiser([Words("NAME", ("Jane", "April"))])
    )
    assert result.total().plain()["exact_match"] == {"recall": 1.0, "precision": 0.5, "f1": 0.6667}
    assert result.wrong == [(0, "NAME", "April")]


def test_an_answer_that_comes_back_changed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Pseudonymiser([Words("NAME", ("Jane",))]).start
    assert answered_exactly("hi Jane", make(), random.Random(1))
    restore = Pseudonyms.restore
    monkeypatch.setattr(Pseudonyms, "restore", lambda self, text: restore(self, text).upper())
    assert not answered_exactly("hi Jane", make(), random.Random(1))


@given(st.integers(0, 1000))
def test_answers_come_back_exactly_whatever_way_placeholders_are_written(seed: int) -> None:
    text = "From: Jane Doe <jane@example.com>\nCall +1 202 555 0143, Jane."
    assert answered_exactly(text, DEFAULT.start(), random.Random(seed))
