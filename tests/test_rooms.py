"""Folders are trust boundaries: who may import whom (docs and README draw the same picture)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fhe_llm
import fhe_llm.privacy
import fhe_llm.providers

ROOT = Path(__file__).parents[1]
CLIENT_MAY_USE = {"plan", "packed_plan", "rns", "encoding"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth, with ``from a import b`` counted as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize(
    "folder",
    [
        "fhe_llm/evaluator",
        "fhe_llm/wire",
        "fhe_llm/models",
        "fhe_llm/privacy",
        "fhe_llm/providers",
        "server/fhe_llm_server",
    ],
)
def test_the_untrusted_side_knows_neither_seal_nor_the_client(folder: str) -> None:
    for path in files(folder):
        for name in imports(path):
            assert not name.startswith(("tenseal", "fhe_llm.client", "fhe_llm.llm")), (
                f"{path.name} imports {name}"
            )


def test_only_the_client_and_the_benchmark_against_it_import_tenseal() -> None:
    users = {
        p.relative_to(ROOT).as_posix()
        for p in files("fhe_llm")
        if any(n.startswith("tenseal") for n in imports(p))
    }
    assert all(u.startswith("fhe_llm/client/") or u == "fhe_llm/cli/bench/product.py" for u in users)


def test_the_client_uses_only_the_layout_and_the_arithmetic_of_the_evaluator() -> None:
    used: set[str] = set()
    for path in files("fhe_llm/client"):
        for name in imports(path):
            assert not name.startswith("fhe_llm_server"), f"{path.name} imports {name}"
            if name.startswith("fhe_llm.evaluator."):
                assert name.split(".")[2] in CLIENT_MAY_USE, f"{path.name} imports {name}"
                used.add(name.split(".")[2])
    assert used == CLIENT_MAY_USE  # nothing is allowed that is not needed


@pytest.mark.parametrize("folder", ["fhe_llm/privacy", "fhe_llm/providers"])
def test_what_leaves_in_the_clear_has_no_part_in_the_encryption(folder: str) -> None:
    for path in files(folder):
        for name in imports(path):
            assert not name.startswith(("fhe_llm.evaluator", "fhe_llm.wire", "fhe_llm_server")), path.name


@pytest.mark.parametrize("folder", ["fhe_llm", "server/fhe_llm_server"])
def test_nothing_unpickles(folder: str) -> None:
    for path in files(folder):
        assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & imports(path), path.name


@pytest.mark.parametrize("folder", ["fhe_llm_langchain", "fhe_llm_llamaindex"])
def test_integrations_use_public_names_only(folder: str) -> None:
    rooms = (fhe_llm, fhe_llm.privacy, fhe_llm.providers)
    public = {f"{room.__name__}.{name}" for room in rooms for name in room.__all__}
    public |= {room.__name__ for room in rooms}
    for path in files(folder):
        for name in imports(path):
            ours = name in public or name.startswith("fhe_llm.errors")
            assert ours or not name.startswith(("fhe_llm.", "fhe_llm_server")), f"{path.name} imports {name}"
