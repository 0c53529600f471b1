"""What a page of the documentation tells its reader to type: commands, calls, and names in the text."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import fhe_llm

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of blocks without a language, and code inside sentences."""
    for language, block in _FENCED.findall(page.read_text()):
        if not language:
            yield from block.splitlines()
    yield from inline(page)


def inline(page: Path) -> list[str]:
    """Code inside sentences."""
    return re.findall(r"`([^`\n]+)`", _FENCED.sub("", page.read_text()))


def invocations(page: Path, program: str) -> Iterator[list[str]]:
    """The words behind ``program``, each time it is called."""
    for line in shell_lines(page):
        if found := re.search(rf"(?:^|[|;&] ){re.escape(program)} (.*)", line):
            yield shlex.split(found[1], comments=True)


def calls(page: Path) -> Iterator[tuple[str, set[str], set[str]]]:
    """What is called in Python, the keywords it is given, and those it takes: classes of ours, and methods of what they
    made."""
    for language, block in _FENCED.findall(page.read_text()):
        if language == "python":
            yield from _calls(block)
    for code in inline(page):
        if re.fullmatch(r"[A-Z]\w+\(.*\)", code):
            yield from _calls(f"from fhe_llm import *\n{code}")


def _calls(source: str) -> Iterator[tuple[str, set[str], set[str]]]:
    tree, ours, made = ast.parse(source), dict[str, Any](), dict[str, Any]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fhe_llm"):
            module = importlib.import_module(node.module or "")
            names = [alias.name for alias in node.names]
            ours |= {name: getattr(module, name) for name in (fhe_llm.__all__ if names == ["*"] else names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem | ast.Assign):
            value = node.context_expr if isinstance(node, ast.withitem) else node.value
            target = node.optional_vars if isinstance(node, ast.withitem) else node.targets[0]
            if isinstance(value, ast.Call) and isinstance(target, ast.Name):
                made[target.id] = ours.get(ast.unparse(value.func))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name, _, method = ast.unparse(node.func).partition(".")
            called = getattr(made[name], method) if made.get(name) and method else ours.get(name)
            if called is not None:
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                yield ast.unparse(node.func), given, parameters(called)


def parameters(called: Any) -> set[str]:
    """Names of the arguments it takes, those of an unpacked ``TypedDict`` and of a pydantic model among them."""
    found = inspect.signature(called).parameters
    unpacked = [
        name for name, p in found.items() if p.kind is p.VAR_KEYWORD and "Unpack" in str(p.annotation)
    ]
    more = {key for name in unpacked for key in get_type_hints(get_args(get_type_hints(called)[name])[0])}
    more |= set(getattr(called, "model_fields", ()))
    return {name for name, p in found.items() if p.kind is not p.VAR_KEYWORD} | more
