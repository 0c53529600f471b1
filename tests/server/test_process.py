"""The real process: ``python -m fhe_llm_server`` from start to exit code."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rounds_kit import key_frame, listed_elements, request_frame, upload, wait_until

import fhe_llm
import fhe_llm_server
from fhe_llm.wire import frame as wire

ROOTS = [str(Path(package.__file__).parent.parent) for package in (fhe_llm, fhe_llm_server)]


def environment(*first: Path, **extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FHE_LLM_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([*map(str, first), *ROOTS]), **extra}


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    command = [sys.executable, "-m", "fhe_llm_server", *arguments]
    return subprocess.run(command, env=environment(**extra), capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def started(log: Path, env: dict[str, str], *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process that is ready, and its URL."""
    command = [sys.executable, "-m", "fhe_llm_server", "--port", "0", *arguments]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=env, stderr=stderr)
    try:
        wait_until(lambda: process.poll() is not None or "listening on" in log.read_text(), seconds=60)
        match = re.search(r"^listening on (http://127\.0\.0\.1:\d+)$", log.read_text(), re.MULTILINE)
        assert match, log.read_text()
        wait_until(lambda: httpx.get(f"{match[1]}/readyz").status_code == 200, seconds=600)
        yield process, match[1]
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_it_serves_where_tenseal_cannot_be_imported_and_stops_cleanly(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "tenseal.py").write_text("raise ImportError('tenseal is not here')\n")
    arguments = ("--model", str(tiny_model_path), "--data-dir", str(tmp_path / "data"), "--threads", "1")
    log = tmp_path / "log"
    with started(log, environment(stub), *arguments) as (process, url):
        listing = httpx.get(f"{url}/v1/models").json()
        frame = key_frame(listed_elements(listing))
        assert upload(url, frame).status_code == 201
        body = wire.encode(request_frame(listing, frame))
        reply = wire.decode(httpx.post(f"{url}/v1/evaluate", content=body).content)
        assert isinstance(reply, wire.EvaluateReply)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    text = log.read_text()
    assert "Traceback" not in text
    assert "\r" not in text  # no progress bar where nobody watches
    assert "this machine only" in text
    assert body[-40:].hex() not in text


def test_encoding_shows_one_bar_on_a_terminal(tmp_path: Path, tiny_model_path: Path) -> None:
    arguments = ("--model", str(tiny_model_path), "--data-dir", str(tmp_path / "data"), "--threads", "1")
    terminal, attached = pty.openpty()
    termios.tcsetwinsize(attached, (24, 100))
    command = [sys.executable, "-m", "fhe_llm_server", "--port", "0", *arguments]
    process, said = subprocess.Popen(command, env=environment(), stderr=attached), b""
    os.close(attached)
    try:
        while b"model: ready" not in said:
            said += os.read(terminal, 4096)  # EIO ends the test where the process does
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
        os.close(terminal)
    assert b"\rEncoding:" in said
    assert b"model: encoding" in said


def test_a_port_in_use_is_one_line_and_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run("--port", port, "--data-dir", str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use.")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_a_public_host_needs_api_keys(tmp_path: Path, host: str) -> None:
    ended = run("--host", host, "--port", "0", "--data-dir", str(tmp_path))
    assert ended.returncode == 2
    assert "without API keys the proxy serves this machine only" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "99999"), "cannot use --port"),
        (("--port", "many"), "cannot use --port"),
        (("--preset", "tiny"), "--preset"),
        (("--device", "abacus"), "cannot use --device"),
        (("--threads", "0"), "cannot use --threads"),
        (("--api-key-file", "/nonexistent"), "cannot read the API key file"),
    ],
)
def test_wrong_settings_are_one_line_and_code_2(arguments: tuple[str, ...], said: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_empty_api_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    ended = run("--api-key-file", str(tmp_path / "keys"))
    assert (ended.returncode, "holds no key" in ended.stderr) == (2, True)


def test_a_model_that_cannot_be_loaded_is_code_1_and_its_reason_comes_last(tmp_path: Path) -> None:
    ended = run("--model", "no-such-model", "--port", "0", "--data-dir", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("cannot find model 'no-such-model'")
    assert "Traceback" not in ended.stderr
