"""The pages say what the code does: codes, settings, flags, metrics, commands and links."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from typer.main import get_command

import fhe_llm
from fhe_llm import errors
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
    found, todo = {}, [FheLlmError]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
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


def test_every_command_in_the_quickstart_exists() -> None:
    text = (DOCS / "quickstart.md").read_text()
    used = set(re.findall(r"fhe-llm (\w+)", text)) - {"cd"}
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert used <= set(commands)
    options = {option for command in commands.values() for p in command.params for option in p.opts}
    assert set(re.findall(r"fhe-llm generate.* (--[a-z-]+)", text)) <= options


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
