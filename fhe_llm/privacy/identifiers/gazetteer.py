"""First names and surnames: the US census of 1990 (package ``names``), and word lists of our own around it."""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.resources import files
from typing import Final

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers.word_lists import entries

_COMMON: Final = 3000
_STROKES: Final = str.maketrans(
    {"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae", "œ": "oe", "’": "", "'": ""}
)


def folded(word: str) -> str:
    """``word`` in capitals without accents and apostrophes, as the census writes names."""
    apart = unicodedata.normalize("NFKD", word.translate(_STROKES))
    return "".join(c for c in apart if not unicodedata.combining(c)).upper()


def is_first_name(word: str) -> bool:
    """Whether the word, or each part of a hyphenated one, is a first name."""
    return all(part in _first_names() for part in folded(word).split("-"))


def is_surname(word: str) -> bool:
    """Whether the word, or a part of a hyphenated one, is a surname of the census."""
    return any(part in _surnames() for part in folded(word).split("-"))


def is_common_surname(word: str) -> bool:
    """Whether the word is one of the census's 3000 most frequent surnames."""
    return folded(word) in _common_surnames()


def is_no_name(word: str) -> bool:
    """Whether the word begins sentences, heads fields, or belongs to products and organisations."""
    return folded(word) in _folded_entries("not_names")


def begins_sentences(word: str) -> bool:
    """Whether the first name is also a word that sentences begin with: Will, May, So."""
    return folded(word) in _folded_entries("sentence_words")


def announces(word: str) -> bool:
    """Whether the word stands before names without being one: a title, a label, a relation."""
    return word.casefold().rstrip(".") in _announcing()


def is_ambiguous(word: str) -> bool:
    """Whether the first name is also a word, a month or a place."""
    return folded(word) in _folded_entries("ambiguous_first_names")


@cache
def _first_names() -> frozenset[str]:
    return _census("dist.female.first") | _census("dist.male.first") | _folded_entries("first_names")


@cache
def _surnames() -> frozenset[str]:
    return _census("dist.all.last")


@cache
def _common_surnames() -> frozenset[str]:
    return frozenset(_census_lines("dist.all.last")[:_COMMON])


@cache
def _announcing() -> frozenset[str]:
    lists = ("titles", "name_labels", "relations", "introductions", "weak_introductions")
    return frozenset(entry.split()[-1].casefold().rstrip(".") for name in lists for entry in entries(name))


@cache
def _folded_entries(name: str) -> frozenset[str]:
    return frozenset(folded(entry) for entry in entries(name))


def _census(name: str) -> frozenset[str]:
    return frozenset(_census_lines(name))


def _census_lines(name: str) -> list[str]:
    """The names of a list, the most frequent first."""
    try:
        lines = files("names").joinpath(name).read_text("ascii").splitlines()
    except (ImportError, OSError):
        raise PrivacyParameterError(
            "cannot recognise names: the package names is not installed. Run: pip install 'fhe-llm[privacy]'."
        ) from None
    return [line.split()[0] for line in lines if line.strip()]
