"""uvicorn, set up for a hostile network: one socket, no compression, bounded messages, clean exits."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from fhe_llm_server.guarded_protocols import GuardedWebSocket, guarded_http
from fhe_llm_server.settings import Settings

GRACE_SECONDS = 10
SPARE_CONNECTIONS = 32
"""Raw connections beyond ``max_connections``: room for health checks and for answering ``busy``."""


class ProxyServer(uvicorn.Server):
    """Says where it listens, and stops when the model cannot be loaded."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, announce the address, and watch the loading."""
        await super().startup(sockets)
        for listening in sockets or []:
            self._announce(url_of(listening))
        self._watch = asyncio.create_task(self._exit_on_failure())

    async def _exit_on_failure(self) -> None:
        await self._app.state.proxy.failed.wait()
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket; raises ``OSError`` when the address is taken or not ours."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(0)  # a port that another process listens on is refused here at the latest
    except OSError:
        bound.close()
        raise
    return bound


def url_of(bound: socket.socket) -> str:
    """``http://host:port`` of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The uvicorn configuration."""
    return uvicorn.Config(
        app,
        http=guarded_http(settings.max_connections + SPARE_CONNECTIONS),
        ws=GuardedWebSocket,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def serve(app: FastAPI, settings: Settings, bound: socket.socket, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGINT or a failed load; returns normally in each case."""
    server = ProxyServer(config(app, settings), app, announce)
    # uvicorn raises the signal again once it has shut down; by then there is nothing left to interrupt.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    server.run(sockets=[bound])
