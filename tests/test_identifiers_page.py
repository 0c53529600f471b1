"""The page about identifiers says what the committed record says, and its examples do what it shows."""

from __future__ import annotations

import json
import re

import make_identifiers_page as maker
import pytest

from fhe_llm.privacy import Pseudonymiser
from fhe_llm.privacy.identifiers import default_recognisers

RECORD = json.loads(maker.RECORD.read_text("utf-8"))
TEXT = maker.PAGE.read_text("utf-8")


def test_the_measured_part_is_made_from_the_committed_record() -> None:
    assert maker.page(TEXT, RECORD) == TEXT, "run: python benchmarks/make_identifiers_page.py"


def test_the_record_is_of_two_hundred_documents_that_were_not_tuned_on() -> None:
    ours = RECORD["recognisers"]["patterns"]
    assert ours["documents"] == ours["restored_exactly"] == 200
    assert RECORD["split"] == "judge" != RECORD["tuned_on"]["split"]
    assert RECORD["seed"] != RECORD["tuned_on"]["seed"]
    assert {"PERSON", "EMAIL", "PHONE", "CARD", "IBAN", "ADDRESS"} <= set(ours["kinds"])
    assert RECORD["commit"]
    assert "dirty" not in RECORD["commit"]


def test_a_changed_figure_would_be_noticed() -> None:
    changed = json.loads(json.dumps(RECORD))
    changed["recognisers"]["patterns"]["kinds"]["PERSON"]["leak_rate"] += 0.01
    assert maker.page(TEXT, changed) != TEXT


def test_the_page_lists_exactly_the_types_that_are_recognised() -> None:
    table = TEXT.split("## What is recognised")[1].split("## Measured")[0]
    listed = {kind for line in table.splitlines() for kind in re.findall(r"`([A-Z]+)`", line.split(" | ")[0])}
    assert listed == frozenset[str]().union(*(one.entity_types for one in default_recognisers()))


@pytest.mark.parametrize("line", [line for line in TEXT.splitlines() if line.startswith("protected = ")])
def test_the_example_is_what_it_says(line: str) -> None:
    (text,) = re.findall(r'\["(.*)"\]', line)
    conversation = Pseudonymiser().start()
    protected = conversation.replace([text])
    shown = dict(re.findall(r"^(\S.*?\))? *# (.*)$", TEXT, re.MULTILINE)).values()
    assert f'("{protected.value[0]}",)' in TEXT
    assert f'"{protected.event.describe()}"' in TEXT
    assert conversation.restore("Dear [PERSON_1], your card [CARD_1] …") in TEXT
    assert shown
