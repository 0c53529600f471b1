"""The pages say what the code does: codes, settings, flags, metrics, commands and links."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pages
import pytest
from typer.main import get_command

import fhe_llm
from fhe_llm import Answer, EncryptedLLM, errors
from fhe_llm.cli.__main__ import app
from fhe_llm.errors import FheLlmError
from fhe_llm_server.__main__ import FLAGS
from fhe_llm_server.metrics import PHASES, Metrics
from fhe_llm_server.refusal import STATUS
from fhe_llm_server.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    text = (DOCS / page).read_text().split(f"## {heading}\n")[1]
    table = next(part for part in text.split("\n\n") if part.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def first_codes(page: str, heading: str) -> list[str]:
    return [row[0].strip("` |") for row in rows(page, heading)]


def client_errors() -> dict[str, str]:
    """Code to class, of every error the library defines in any module."""
    for module in pkgutil.walk_packages(fhe_llm.__path__, "fhe_llm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds, todo = dict[type[FheLlmError], None](), [FheLlmError]
    while todo:
        kinds[kind := todo.pop()] = None
        todo += kind.__subclasses__()  # some have two parents
    found = dict[str, str]()
    for kind in kinds:
        if kind.__module__.startswith("fhe_llm."):
            assert kind.code not in found, f"{kind.__name__} has the code of {found.get(kind.code)}"
            found[kind.code] = kind.__name__
    return found


def test_the_page_lists_exactly_the_client_codes() -> None:
    listed = [(row[0].strip("`"), row[1].strip("`")) for row in rows("errors.md", "Client codes")]
    assert len(listed) == len(dict(listed))
    assert dict(listed) == client_errors()


def test_the_tree_in_the_module_shows_every_error() -> None:
    words = set(re.findall(r"\w+", errors.__doc__ or ""))
    for code, name in client_errors().items():
        assert name in words
        assert code in words or name in ("FheLlmError", "ProxyError")


def test_the_page_lists_exactly_the_proxy_codes_and_their_status() -> None:
    listed = [(row[0].strip("`"), int(row[1])) for row in rows("errors.md", "Proxy codes")]
    assert listed == list(STATUS.items())


def test_the_page_lists_exactly_the_settings_and_their_flags() -> None:
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows("operating-the-proxy.md", "Settings")}
    fields = {f"FHE_LLM_{name.upper()}": name.replace("_", "-") for name in Settings.model_fields}
    assert listed == {name: f"--{flag}" if flag in FLAGS else "–" for name, flag in fields.items()}


def test_the_page_lists_exactly_the_metrics() -> None:
    metrics = Metrics()
    source = (ROOT / "server" / "fhe_llm_server" / "proxy.py").read_text()
    for name in re.findall(r'watch\("(\w+)"', source):
        metrics.watch(name, "x", lambda: 0.0)
    published = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
    }
    assert set(first_codes("operating-the-proxy.md", "Metrics")) == published
    text = (DOCS / "operating-the-proxy.md").read_text()
    assert all(f"`{phase}`" in text for phase in PHASES)


FIRST_PAGES = pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "quickstart.md"], ids=lambda p: p.stem
)


def options(command: Any) -> set[str]:
    """All its options, their negations and ``--help`` among them."""
    found = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    return {option for option in found if option.startswith("-")} | {"--help"}


def inside(command: Any) -> dict[str, Any]:
    """The commands of a group; none of a command."""
    found: dict[str, Any] = getattr(command, "commands", {})
    return found


def with_inner(command: Any) -> list[Any]:
    return [command, *(found for each in inside(command).values() for found in with_inner(each))]


@FIRST_PAGES
def test_every_command_line_has_a_command_and_options_that_exist(page: Path) -> None:
    found = [words for words in pages.invocations(page, "fhe-llm") if words]
    assert found
    for words in found:
        command, rest = get_command(app), list(words)
        while inside(command) and rest and not rest[0].startswith("-"):
            assert rest[0] in inside(command), words
            command = inside(command)[rest.pop(0)]
        assert {word for word in rest if word.startswith("--")} <= options(command), words
    for words in pages.invocations(page, "python -m fhe_llm_server"):
        assert {word for word in words if word.startswith("--")} <= {f"--{flag}" for flag in FLAGS}, words


@FIRST_PAGES
def test_every_argument_in_a_python_call_exists(page: Path) -> None:
    found = list(pages.calls(page))
    assert {"EncryptedLLM"} < {name for name, _, _ in found}
    for name, given, taken in found:
        assert given <= taken, name


@FIRST_PAGES
def test_every_option_and_argument_named_in_a_sentence_exists(page: Path) -> None:
    flags = {option for command in with_inner(get_command(app)) for option in options(command)}
    taken = pages.parameters(EncryptedLLM) | pages.parameters(EncryptedLLM.chat)
    for code in pages.inline(page):
        if code.startswith("--"):
            assert code.split()[0] in flags
        if re.fullmatch(r"\w+=", code):
            assert code.rstrip("=") in taken


@FIRST_PAGES
def test_every_variable_and_every_make_target_exists(page: Path) -> None:
    source = "".join(path.read_text() for path in (ROOT / "fhe_llm").rglob("*.py"))
    assert all(name in source for name in re.findall(r"FHE_LLM_[A-Z_]+", page.read_text()))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[0] for words in pages.invocations(page, "make")} <= targets


def test_the_front_page_lists_exactly_the_commands() -> None:
    (listed,) = re.findall(r"`fhe-llm --help` lists ([^.]*)\.", (ROOT / "README.md").read_text())
    assert set(re.findall(r"`(\w+)`", listed)) == set(inside(get_command(app)))


def test_the_quickstart_names_what_an_answer_prints() -> None:
    (listed,) = re.findall(r"prints one JSON object: ([^.]*)\.", (DOCS / "quickstart.md").read_text())
    names = set(re.findall(r"`(\w+)`", listed))
    assert names
    source = inspect.getsource(Answer.to_dict)
    assert all(f'"{name}":' in source for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {h.lower().replace(" ", "-") for h in headings}, target


def test_every_page_is_on_the_map() -> None:
    front, index, decisions = (
        path.read_text() for path in (ROOT / "README.md", DOCS / "index.md", DOCS / "adr" / "README.md")
    )
    assert "docs/index.md" in front
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name
    for page in (DOCS / "adr").glob("[0-9]*.md"):
        assert f"({page.name})" in decisions, page.name
