"""Documents with planted identifiers: templates filled by Faker and by our own makers, the same for the same seed.

A template is a block of ``identifier_templates/<language>.txt`` below ``# <kind> <split>``. ``{name2}`` plants an
identifier, ``{!order}`` writes a decoy that is none; a line behind ``?`` is left out half the time, and one way of
``[[a|b]]`` is drawn. Templates of the split ``tune`` were used to improve the recognisers, those of ``judge`` were not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from faker import Faker
from identifier_slots import KINDS, Cast, Decoys

TEMPLATES: Final = Path(__file__).parent / "identifier_templates"
LOCALES: Final = {
    "en_US": "en",
    "en_GB": "en",
    "de_DE": "de",
    "fr_FR": "fr",
    "es_ES": "es",
    "it_IT": "it",
    "nl_NL": "nl",
}
"""Locales of the documents and the language of their templates."""

FOREIGN: Final = {"sv_SE": "en", "pl_PL": "en", "en_IN": "en", "tr_TR": "en", "pt_BR": "en"}
"""Locales for whose addresses, telephones and words the recognisers were not made, in English text."""

_HEAD: Final = re.compile(r"^# (\w+) (\w+)\n", re.MULTILINE)
_SLOT: Final = re.compile(r"\{(!?)([a-zA-Z]+)([0-9]?)(_line)?\}")


@dataclass(frozen=True, slots=True)
class Planted:
    """``text[start:end]`` of a document is an identifier."""

    start: int
    end: int
    entity_type: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text, what is planted in it in its order, and where it comes from."""

    text: str
    planted: tuple[Planted, ...]
    kind: str
    locale: str


def templates(language: str, split: str) -> list[tuple[str, str]]:
    """Kind and text of every template of a language in a split."""
    blocks = _HEAD.split((TEMPLATES / f"{language}.txt").read_text("utf-8"))[1:]
    found = zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True)
    return [(kind, text.strip("\n")) for kind, of, text in found if of == split]


def documents(count: int, seed: int, split: str, locales: dict[str, str] = LOCALES) -> list[Document]:
    """``count`` documents, locales and templates in turn."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        locale, language = list(locales.items())[number % len(locales)]
        choices = templates(language, split)
        kind, template = choices[number // len(locales) % len(choices)]
        fake = Faker(locale)
        fake.seed_instance(draw.getrandbits(64))
        made.append(
            _filled(template, kind, locale, Cast(fake, locale, draw), Decoys(fake, locale, draw), draw)
        )
    return made


def _filled(
    template: str, kind: str, locale: str, cast: Cast, decoys: Decoys, draw: random.Random
) -> Document:
    template = "\n".join(
        line.removeprefix("?")
        for line in template.split("\n")
        if not line.startswith("?") or draw.random() < 0.5
    )
    template = re.sub(r"\[\[(.*?)\]\]", lambda match: draw.choice(match[1].split("|")), template)
    text, planted, at, person = "", list[Planted](), 0, (False, "")
    for slot in _SLOT.finditer(template):
        text += template[at : slot.start()]
        at = slot.end()
        decoy, name, number, line = slot.groups()
        maker: Callable[[], str] = getattr(decoys, name) if decoy else cast.maker(name, number or "1")
        value = maker()
        value = ", ".join(value.split("\n")) if line else value
        if not decoy:
            one = Planted(len(text), len(text) + len(value), KINDS[name.lower()])
            begun = _name_begun(planted, text, person == (True, number) and KINDS[name.lower()] == "PERSON")
            planted.append(Planted(planted.pop().start, one.end, "PERSON") if begun else one)
        person = not decoy and name in ("first", "last"), number
        text += value
    return Document(text + template[at:], tuple(planted), kind, locale)


def _name_begun(planted: list[Planted], text: str, same_person: bool) -> bool:
    """Whether what is planted next goes on with the name before it: ``{first2} {last2}`` and ``{last}, {first}``."""
    return same_person and bool(planted) and text[planted[-1].end :] in (" ", ", ")
