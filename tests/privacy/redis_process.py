"""A real Redis server of a test's own, on a socket and a port: started, stopped, killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
START_S = 20.0
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class RedisProcess:
    """A server whose data lies in ``folder``; ``options`` are those of its command line, the last one counts."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.port = free_port()
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None
        command = [
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(self.folder), "--daemonize", "no", "--logfile", str(self.folder / "redis.log")),
            *DURABLE,
            *self.options,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + START_S
        while not self._answers():
            log = self.folder / "redis.log"
            assert self._process.poll() is None, log.read_text() if log.exists() else "redis-server ended"
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.closing(self.client()) as client:
            try:
                return bool(client.ping())
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
                return True
            except redis.RedisError:
                return False

    def client(self) -> redis.Redis:
        """Somebody else's connection to it."""
        return redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        """SIGKILL: what was not written is gone."""
        self._end(hard=True)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(hard=False)

    def _end(self, *, hard: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill() if hard else process.terminate()
            process.wait()

    def __enter__(self) -> RedisProcess:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisProcess]:
    """One in a folder of its own, whose name is short enough for a socket: in memory, as no test cuts the power."""
    needed()
    with (
        tempfile.TemporaryDirectory(prefix="fhe-llm-redis-", dir=IN_MEMORY) as folder,
        RedisProcess(Path(folder), *options) as server,
    ):
        yield server


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def needed() -> None:
    """Skip the test where there is no redis-server; where all tests must run, fail."""
    if shutil.which("redis-server") is None:
        why = "redis-server is not installed (apt-get install redis-server)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
