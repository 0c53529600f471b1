"""A headless Chromium for tests, over its DevTools protocol: what a page shows, logs, requests and measures."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
START_S = 60


class Tab:
    """One tab. ``requests`` are the URLs a page asked for, ``complaints`` what it logged, violated or threw."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """One command of the protocol; events that come before its answer are noted."""
        message: dict[str, Any] = {"id": next(self._ids), "method": method, "params": params}
        self._connection.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            received = self._receive()
            if received.get("id") == message["id"]:
                assert "error" not in received, received
                return received["result"]

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file and wait until it has loaded."""
        self.requests.clear()
        self.complaints.clear()
        self._loaded = False
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._receive()

    def value(self, expression: str) -> Any:
        """What an expression comes to in the page, as plain data; it may wait."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _receive(self) -> dict[str, Any]:
        received: dict[str, Any] = json.loads(self._connection.recv(timeout=START_S))
        params = received.get("params", {})
        match received.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(params["args"]))
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"dialog: {params['message']}")
                self._connection.send(
                    json.dumps(
                        {
                            "id": next(self._ids),
                            "method": "Page.handleJavaScriptDialog",
                            "params": {"accept": True},
                            "sessionId": self._session,
                        }
                    )
                )
            case _:
                pass
        return received


@contextmanager
def chromium(folder: Path) -> Iterator[Tab]:
    """A browser with an empty profile in ``folder``; skips where none is installed, unless on CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        assert not os.environ.get("CI"), "chromium is not installed"
        pytest.skip("chromium is not installed")
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port, path = _address(folder / "DevToolsActivePort", process)
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait(30)


def _address(file: Path, process: subprocess.Popen[bytes]) -> list[str]:
    """Where the browser listens: it writes it down when it is ready."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert process.poll() is None, "chromium ended before it listened"
        if file.exists() and len(words := file.read_text().split()) == 2:
            return words
        time.sleep(0.05)
    raise AssertionError("chromium does not listen")
