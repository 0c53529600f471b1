"""The client bundle, fetched from the proxy once: pinned for known models, trusted on first use for others.

The proxy is not trusted with it. A bundle is used only if its SHA-256 is the one pinned in this library, or the one
remembered from the first time; where there is neither, it is remembered now and the caller is told so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fhe_llm.client.keyfile import replace_file
from fhe_llm.client.listing import ModelListing
from fhe_llm.client.transport.operations import HttpCall, Routine
from fhe_llm.client.transport.routines import Patience, http_refusal, settled
from fhe_llm.errors import DownloadError, ModelError
from fhe_llm.models.bundle import PINNED_DIGESTS, ClientBundle, load_bundle
from fhe_llm.models.digests import file_sha256
from fhe_llm.progress import Progress, silent
from fhe_llm.receipt import ModelTrust

_LOG: Final = logging.getLogger(__name__)
_CHUNK_BYTES: Final = 4 << 20
_TRUSTED: Final = "trusted-bundles.json"


@dataclass(frozen=True, slots=True)
class FetchedBundle:
    """A checked bundle, where it lies, and why its digest is trusted."""

    bundle: ClientBundle
    path: Path
    trust: ModelTrust


def fetch_bundle(
    model: ModelListing, cache_dir: Path, *, progress: Progress = silent, patience: Patience | None = None
) -> Routine[FetchedBundle]:
    """The bundle of ``model``: from ``cache_dir`` if it is there intact, else downloaded (resumed where it broke off).

    Raises :class:`ModelError` (digest not the trusted one, or not a bundle), :class:`DownloadError`,
    :class:`TransportError`, :class:`ProxyError`.
    """
    folder = cache_dir / "bundles"
    trust = _judge(model, folder)
    path = folder / f"{model.bundle.digest}.safetensors"
    if not _intact(path, model.bundle.digest):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _partial_file(path) as partial:
                yield from _download(model, partial, progress, patience)
                partial.replace(path)
        except OSError as error:
            raise DownloadError(
                f"cannot store the bundle in {folder}: {error.strerror or error}. Free some space or set another cache."
            ) from None
    bundle = load_bundle(path, model.bundle.digest)
    if bundle.model_digest != model.model_digest:
        raise ModelError(
            f"cannot use model {model.name}: the proxy's weights are not those its bundle belongs to. "
            "Ask whoever runs the proxy."
        )
    if trust == "first_use":
        _remember(model, folder)
    return FetchedBundle(bundle, path, trust)


def _judge(model: ModelListing, folder: Path) -> ModelTrust:
    """Whether the digest is pinned, remembered or new; raises :class:`ModelError` where it is another one."""
    pinned = PINNED_DIGESTS.get(model.name)
    known = pinned or _remembered(folder).get(model.name)
    if known is None:
        return "first_use"
    if known != model.bundle.digest:
        source = "pinned in this library" if pinned else f"remembered in {folder / _TRUSTED}"
        raise ModelError(
            f"cannot use model {model.name}: the proxy's bundle has digest {model.bundle.digest[:16]}…, "
            f"the one {source} is {known[:16]}…. Do not use this proxy unless its operator can explain the change."
        )
    return "pinned" if pinned else "remembered"


def _remembered(folder: Path) -> dict[str, str]:
    path = folder / _TRUSTED
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and all(isinstance(digest, str) for digest in found.values()):
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}. Restore it, or delete it to trust anew.") from None
    raise ModelError(
        f"cannot read {path}: it is not a table of digests. Restore it, or delete it to trust anew."
    )


def _remember(model: ModelListing, folder: Path) -> None:
    known = _remembered(folder) | {model.name: model.bundle.digest}
    try:
        replace_file(folder / _TRUSTED, [json.dumps(known, indent=1, sort_keys=True).encode()])
    except OSError as error:
        raise ModelError(
            f"cannot remember the digest of {model.name}: {error.strerror}. Free some space."
        ) from None


def _intact(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    if file_sha256(path) == digest:
        return True
    _LOG.warning("the cached bundle %s is damaged: fetching it again", path)
    return False


def _download(
    model: ModelListing, partial: Path, progress: Progress, patience: Patience | None
) -> Routine[None]:
    """Fill ``partial`` chunk by chunk; leaves a file of the right hash, or raises."""
    for _ in range(2):
        yield from _fill(model, partial, progress, patience)
        if file_sha256(partial) == model.bundle.digest:
            return
        partial.unlink()
    raise DownloadError(
        f"cannot use the bundle of {model.name}: what arrived, twice, is not of the announced digest. "
        "Check what stands between this machine and the proxy."
    )


def _fill(model: ModelListing, partial: Path, progress: Progress, patience: Patience | None) -> Routine[None]:
    size, label = model.bundle.size, f"Downloading {model.name}"
    with partial.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        while (have := file.seek(0, os.SEEK_END)) < size:
            last = min(have + _CHUNK_BYTES, size) - 1
            headers = {"range": f"bytes={have}-{last}"}
            call = HttpCall("GET", f"/v1/models/{model.name}/bundle", headers, max_answer_bytes=size + 1)
            answer = yield from settled(call, patience)
            if answer.status == 200:  # something in between does not know ranges
                file.truncate(0)
            elif answer.status != 206:
                raise http_refusal(answer).error()
            expected = size if answer.status == 200 else last - have + 1
            if len(answer.body) != expected:
                raise DownloadError(
                    f"cannot download the bundle of {model.name}: {len(answer.body)} bytes came instead of {expected}. "
                    "Try again; if it stays, ask whoever runs the proxy."
                )
            file.write(answer.body)
            file.flush()
            progress(label, file.tell(), size)
        os.fsync(file.fileno())


@contextmanager
def _partial_file(path: Path) -> Iterator[Path]:
    """Where to collect the download: one name, so that it can be resumed, unless another process is at it."""
    partial = path.with_suffix(".part")
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            partial = path.with_suffix(f".{os.getpid()}.part")
        yield partial
    finally:
        os.close(lock)
        with contextlib.suppress(OSError):
            if partial.name.endswith(f".{os.getpid()}.part"):
                partial.unlink(missing_ok=True)
