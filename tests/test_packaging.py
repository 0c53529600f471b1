"""What is declared is what is meant: the image's requirements, and the imports of the proxy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def named(requirements: list[str]) -> dict[str, str]:
    """Package to bound."""
    return dict(re.fullmatch(r"([a-z0-9-]+)(.*)", r).groups() for r in requirements)  # type: ignore[union-attr]


DOCKERFILE = (ROOT / "server" / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
"""What each stage of the image does."""


def installed(stage: str) -> dict[str, str]:
    """What a stage installs."""
    return named(re.findall(r'"([a-z0-9-]+>=[0-9.]+)"', STAGES[stage]))


DECLARED = named(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["server"])


def test_the_image_installs_what_the_project_declares() -> None:
    image = installed("build")
    assert set(PROJECT["optional-dependencies"]["server"]) <= {name + bound for name, bound in image.items()}
    assert image.items() <= DECLARED.items()
    assert "tenseal" not in image


def test_the_image_has_everything_the_proxy_imports() -> None:
    code = (
        "import sys, fhe_llm_server.app, fhe_llm_server.serving, fhe_llm.evaluator.cpu, fhe_llm.models.resolve; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    image = installed("build")
    ours = {name for name in DECLARED if name.replace("-", "_") in loaded.split()}
    assert {"numpy", "numba", "fastapi", "uvicorn"} <= ours
    assert ours <= set(image)


def test_every_dependency_has_a_lower_bound() -> None:
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for requirement in group:
            assert ">=" in requirement or requirement.startswith("fhe-llm["), requirement


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "cuda11"])
def test_the_image_for_a_gpu_installs_the_extra_that_was_chosen(extra: str, tmp_path: Path) -> None:
    script = re.search(r"^RUN (.*?[^\\])$", STAGES["build-cuda"], re.MULTILINE | re.DOTALL)
    assert script
    pip = 'pip() { for word; do echo "$word"; done; }; '
    command = ["sh", "-c", f"CUDA={extra}; {pip}{script[1]}"]
    done = subprocess.run(command, capture_output=True, text=True)
    chosen = [line for line in done.stdout.splitlines() if ">=" in line]
    assert chosen == PROJECT["optional-dependencies"].get(extra, [])
    assert (done.returncode == 0) == bool(chosen)


def test_images_differ_in_cupy_and_in_their_device_only() -> None:
    assert list(STAGES)[-1] == "cpu"  # what is built where no target is named
    assert "COPY --from=build /install" in STAGES["cpu"]
    assert "FHE_LLM_DEVICE" not in STAGES["cpu"] + STAGES["runtime"]
    assert "NVIDIA" not in STAGES["cpu"] + STAGES["runtime"]
    assert "COPY --from=build-cuda /install" in STAGES["cuda"]
    settings = dict(re.findall(r"(\w+)=(\S+)", STAGES["cuda"]))
    assert settings["FHE_LLM_DEVICE"] == "cuda"
    assert settings["CUPY_CACHE_DIR"].startswith("/data/")  # the root is read-only
    for stage in ("cuda", "cpu"):
        assert re.search(rf"^FROM runtime AS {stage}$", DOCKERFILE, re.MULTILINE)
    assert "USER 10001" in STAGES["runtime"]


def documents(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return list(yaml.safe_load_all((ROOT / "server" / name).read_text()))


def test_compose_asks_for_a_gpu_and_changes_nothing_else() -> None:
    (plain,), (gpu,) = documents("compose.yaml"), documents("compose.cuda.yaml")
    assert set(gpu["services"]) == set(plain["services"]) == {"proxy"}
    proxy = gpu["services"]["proxy"]
    assert set(proxy) == {"build", "image", "deploy"}
    assert proxy["build"]["target"] in STAGES
    (device,) = proxy["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_patch_for_kubernetes_meets_what_is_there() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    (base,), (overlay,) = documents("k8s/kustomization.yaml"), documents("k8s/cuda/kustomization.yaml")
    assert overlay["resources"] == [".."]
    found = [document for name in base["resources"] for document in documents(f"k8s/{name}")]
    (patch,) = overlay["patches"]
    (target,) = (d for d in found if {"kind": d["kind"], "name": d["metadata"]["name"]} == patch["target"])
    for operation in yaml.safe_load(patch["patch"]):
        *folders, last = (part.replace("~1", "/") for part in operation["path"].split("/")[1:])
        place: Any = target
        for part in folders:
            place = place[int(part) if isinstance(place, list) else part]
        assert (last in place) == (operation["op"] == "replace")
        place[last] = operation["value"]
    (container,) = target["spec"]["template"]["spec"]["containers"]
    assert container["image"] == documents("compose.cuda.yaml")[0]["services"]["proxy"]["image"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
