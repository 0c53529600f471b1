"""Recall, precision and leaks of the identifier recognisers on documents with planted identifiers.

``python benchmarks/identifiers.py [--documents 200] [--output docs/results/identifiers.json]`` measures on the judging
templates and seed; ``--tune`` works on the tuning ones and lists what leaked and what was replaced wrongly.
The recognisers were improved on the tuning templates and seed only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from identifier_documents import FOREIGN, LOCALES, Document, documents
from identifier_scores import Judged, judged

from fhe_llm.cli.bench.record import keep, record
from fhe_llm.privacy import Pseudonymiser
from fhe_llm.privacy.identifiers.defaults import default_recognisers
from fhe_llm.privacy.identifiers.person_names import PersonNameRecogniser

TUNE_SEED = 1
JUDGE_SEED = 20_240_601
PACKAGES = ("faker", "phonenumbers", "names", "presidio-analyzer")


def sets_of_recognisers() -> dict[str, Callable[[], Pseudonymiser]]:
    """Ours alone, and eager for names; with Presidio installed, its patterns alone (no model) and with ours."""
    made: dict[str, Callable[[], Pseudonymiser]] = {"patterns": Pseudonymiser, "eager": eager}
    if find_spec("presidio_analyzer"):
        from fhe_llm.privacy.identifiers.presidio import PresidioRecogniser

        made["presidio"] = lambda: Pseudonymiser([PresidioRecogniser()])
        made["patterns+presidio"] = lambda: Pseudonymiser([*default_recognisers(), PresidioRecogniser()])
    return made


def eager() -> Pseudonymiser:
    """The default recognisers with names found eagerly."""
    others = [one for one in default_recognisers() if not isinstance(one, PersonNameRecogniser)]
    return Pseudonymiser([*others, PersonNameRecogniser(eager=True)])


def figures(count: int) -> dict[str, Any]:
    """What the record says beside where it was made."""
    main = documents(count, JUDGE_SEED, "judge")
    foreign = documents(count // 4, JUDGE_SEED, "judge", FOREIGN)
    makers = sets_of_recognisers()
    return {
        "split": "judge",
        "seed": JUDGE_SEED,
        "tuned_on": {"split": "tune", "seed": TUNE_SEED},
        "locales": sorted(LOCALES),
        "kinds_of_document": dict(sorted(Counter(one.kind for one in main).items())),
        "characters": sum(len(one.text) for one in main),
        "recognisers": {name: judged(main, make()).plain() for name, make in makers.items()},
        "by_locale": by_locale(main, LOCALES),
        "foreign": {"locales": sorted(FOREIGN), **judged(foreign, Pseudonymiser()).plain()},
    }


def by_locale(made: list[Document], locales: dict[str, str]) -> dict[str, Any]:
    """All types together, for each locale."""
    return {
        locale: judged([one for one in made if one.locale == locale], Pseudonymiser()).total().plain()
        for locale in locales
    }


def show(made: list[Document], result: Judged) -> None:
    """What leaked and what was replaced wrongly, with the text around it."""
    for title, cases in (("LEAKED", result.leaks), ("WRONG", result.wrong)):
        for number, kind, text in cases:
            whole = made[number].text
            at = whole.find(text)
            around = whole[max(0, at - 40) : at + len(text) + 30]
            print(f"{title} {number} {made[number].locale} {made[number].kind} {kind} {text!r} in {around!r}")
    for kind, score in sorted(result.kinds.items()):
        print(kind, json.dumps(score.plain()))
    print("ALL", json.dumps(result.total().plain()), f"restored {result.restored}/{result.documents}")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--tune", action="store_true", help="work on the tuning templates and seed")
    parser.add_argument("--foreign", action="store_true", help="with --tune: locales without word lists")
    parser.add_argument("--eager", action="store_true", help="with --tune: names found eagerly")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    if chosen.tune:
        made = documents(chosen.documents, TUNE_SEED, "tune", FOREIGN if chosen.foreign else LOCALES)
        show(made, judged(made, eager() if chosen.eager else Pseudonymiser()))
        return
    result = record("identifiers", None, figures(chosen.documents))
    result["software"] |= {
        package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))
    }
    if chosen.output:
        keep(result, chosen.output)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
