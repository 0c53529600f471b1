"""Lists of names, compared without accents and case."""

from __future__ import annotations

from pathlib import Path

import pytest

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers import gazetteer


def test_words_are_compared_without_accents_apostrophes_and_case() -> None:
    assert gazetteer.folded("Søren") == "SOREN"
    assert gazetteer.folded("o’Brien") == "OBRIEN"
    assert gazetteer.folded("Weiß") == "WEISS"
    assert gazetteer.is_first_name("rené")
    assert gazetteer.is_first_name("Jean-Luc")
    assert not gazetteer.is_first_name("Jean-Table")
    assert gazetteer.is_surname("Müller")
    assert not gazetteer.is_surname("Xqzt")


def test_words_with_another_meaning() -> None:
    assert gazetteer.is_ambiguous("May")
    assert gazetteer.is_no_name("Regards")
    assert not gazetteer.is_no_name("Jane")
    assert gazetteer.is_common_surname("Hall")
    assert not gazetteer.is_common_surname("Quorbin")
    assert gazetteer.begins_sentences("Will")
    assert gazetteer.announces("Kunde")
    assert gazetteer.announces("Dr.")
    assert not gazetteer.announces("Jane")


def test_without_its_package_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gazetteer, "files", lambda _: tmp_path)
    with pytest.raises(PrivacyParameterError, match=r"fhe-llm\[privacy\]"):
        gazetteer._census("dist.all.last")
