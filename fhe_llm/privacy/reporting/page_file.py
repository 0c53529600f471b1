"""The report as one file of HTML that loads nothing, runs nothing but its own filter, and needs neither to be read.

Names and events are hostile input: the template escapes everything, and the page's policy admits exactly the style and
the script that were written into it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
from importlib.resources import files
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup

from fhe_llm.errors import RequestError
from fhe_llm.privacy.reporting.report import BudgetReport
from fhe_llm.privacy.reporting.view import view_of
from fhe_llm.privacy.reporting.words import KIND_WORDS

PARTS: Final = files("fhe_llm.privacy.reporting") / "page"


def html_page(report: BudgetReport) -> str:
    """The page of a report."""
    css, script = (PARTS.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(PARTS.joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        view=view_of(report),
        kinds=KIND_WORDS,
        css=Markup(css),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        policy=f"default-src 'none'; style-src {_digest(css)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def write_page(page: str, path: Path) -> int:
    """Write a page to ``path`` (mode 0600), in one step and over what was there; returns its size in bytes.

    Raises :class:`RequestError` where the file cannot be written.
    """
    content = page.encode("utf-8", "replace")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            draft.replace(path)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
    except OSError as error:
        raise RequestError(
            f"cannot write the report to {path}: {error.strerror or error}. Name another file with --output."
        ) from error
    return len(content)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
