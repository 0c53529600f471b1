"""What is declared is what is meant: the image's requirements, and the imports of the proxy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def named(requirements: list[str]) -> dict[str, str]:
    """Package to bound."""
    return dict(re.fullmatch(r"([a-z0-9-]+)(.*)", r).groups() for r in requirements)  # type: ignore[union-attr]


DECLARED = named(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["server"])


def test_the_image_installs_what_the_project_declares() -> None:
    image = named(re.findall(r'"([a-z0-9-]+>=[0-9.]+)"', (ROOT / "server" / "Dockerfile").read_text()))
    assert set(PROJECT["optional-dependencies"]["server"]) <= {name + bound for name, bound in image.items()}
    assert image.items() <= DECLARED.items()
    assert "tenseal" not in image


def test_the_image_has_everything_the_proxy_imports() -> None:
    code = (
        "import sys, fhe_llm_server.app, fhe_llm_server.serving, fhe_llm.evaluator.cpu, fhe_llm.models.resolve; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    image = named(re.findall(r'"([a-z0-9-]+>=[0-9.]+)"', (ROOT / "server" / "Dockerfile").read_text()))
    ours = {name for name in DECLARED if name.replace("-", "_") in loaded.split()}
    assert {"numpy", "numba", "fastapi", "uvicorn"} <= ours
    assert ours <= set(image)


def test_every_dependency_has_a_lower_bound() -> None:
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for requirement in group:
            assert ">=" in requirement or requirement.startswith("fhe-llm["), requirement
