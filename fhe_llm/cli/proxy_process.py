"""A proxy of one's own: a child process on a free loopback port, for as long as a ``with`` block lasts."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from fhe_llm.errors import FheLlmError, TransportError
from fhe_llm.progress import Progress, silent

_LISTENING: Final = re.compile(r"listening on (http://[\w.:\[\]-]+)")
_POLL_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 10.0


class ProxyStartError(FheLlmError):
    """The proxy process did not come up."""

    code = "proxy_failed"


class ProxyProcess:
    """``python -m fhe_llm_server`` with its output kept in :attr:`log_path`.

    ``data_dir`` None is the proxy's usual one, where encoded weights are cached between runs.
    """

    def __init__(
        self,
        model: str,
        *,
        preset: str = "default",
        port: int = 0,
        data_dir: Path | None = None,
        arguments: Sequence[str] = (),
        progress: Progress = silent,
        ready_seconds: float = 1800.0,
    ) -> None:
        self._command = [sys.executable, "-m", "fhe_llm_server", "--model", model, "--preset", preset]
        self._command += ["--port", str(port), *arguments]
        self._command += [] if data_dir is None else ["--data-dir", str(data_dir)]
        self._progress = progress
        self._ready_seconds = ready_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log_path(self) -> Path:
        """Where the process's standard output and error go; gone after :meth:`stop`."""
        if self._folder is None:
            raise ProxyStartError("cannot read the proxy's log: the proxy was not started. Start it first.")
        return Path(self._folder.name) / "proxy.log"

    @property
    def pid(self) -> int:
        """The running process's id; raises :class:`ProxyStartError` where there is none."""
        if self._process is None:
            raise ProxyStartError(
                "cannot name the proxy's process: the proxy is not running. Start it first."
            )
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it serves; raises :class:`ProxyStartError` with its last words."""
        require_server()
        atexit.register(self.stop)  # a notebook's kernel is restarted without a word to its children
        self._folder = tempfile.TemporaryDirectory(prefix="fhe-llm-proxy-", ignore_cleanup_errors=True)
        deadline = time.monotonic() + self._ready_seconds
        try:
            with self.log_path.open("wb") as log:
                # A session of its own, so that Ctrl-C reaches the client first and the proxy is stopped in order.
                self._process = subprocess.Popen(  # noqa: S603
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                )
            self.base_url = self._wait_listening(deadline)
            wait_ready(self.base_url, deadline, self._progress, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End the process at once, as a crash would. The log stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the process in order and forget its log."""
        atexit.unregister(self.stop)
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _wait_listening(self, deadline: float) -> str:
        while time.monotonic() < deadline:
            found = _LISTENING.search(self.log_path.read_text("utf-8", "replace"))
            if found:
                return found[1]
            self._check_alive()
            time.sleep(_POLL_SECONDS)
        raise ProxyStartError(
            "cannot start the proxy: it did not open its port in time. Look at the machine's load."
        )

    def _check_alive(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            lines = self.log_path.read_text("utf-8", "replace").strip().splitlines()
            said = lines[-1][:500] if lines else f"exit status {status}"
            raise ProxyStartError(f"cannot start the proxy: {said}")


def require_server() -> None:
    """Raise :class:`ProxyStartError` unless the proxy's packages are installed (without importing them)."""
    missing = [
        name for name in ("fhe_llm_server", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ProxyStartError(
            f"cannot start a proxy: {', '.join(missing)} is not installed. Run: pip install 'fhe-llm[server]'."
        )


def wait_ready(
    base_url: str, deadline: float, progress: Progress, check_alive: Callable[[], None] = lambda: None
) -> None:
    """Poll ``/readyz`` until it answers 200, showing the phase it reports; raises :class:`TransportError`."""
    with httpx.Client(base_url=base_url, timeout=10.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                response = client.get("/readyz")
            except httpx.HTTPError:
                response = None
            if response is not None and response.status_code == 200:
                return
            if response is not None:
                _show_phase(response, progress)
            check_alive()
            time.sleep(2 * _POLL_SECONDS)
    raise TransportError(
        f"cannot use the proxy at {base_url}: it did not become ready in time. Look at its log."
    )


def _show_phase(response: httpx.Response, progress: Progress) -> None:
    try:
        state = json.loads(response.content)
        progress(f"Proxy: {state['phase']}", int(state["done"]), int(state["total"]))
    except (ValueError, KeyError, TypeError):
        return
