"""The word lists beside this file, ``words/*.txt``: entries apart by commas, written by hand; a line end is a space."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


@cache
def entries(name: str) -> tuple[str, ...]:
    """The entries of ``words/<name>.txt`` in their order."""
    text = files(__package__).joinpath("words", f"{name}.txt").read_text("utf-8")
    return tuple(" ".join(entry.split()) for entry in text.split(",") if entry.strip())


def alternation(name: str) -> str:
    """A regular expression for any entry, the longest first; an apostrophe may be a curly one."""
    ordered = sorted(entries(name), key=lambda entry: (-len(entry), entry))
    return "(?:" + "|".join(re.escape(entry).replace("'", "['’]") for entry in ordered) + ")"
