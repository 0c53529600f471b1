"""Rounds: one frame per POST, or many over one WebSocket. Both carry the same bytes.

On the socket any number of requests may be under way (the proxy stops reading beyond
``REQUESTS_PER_SOCKET``), replies carry the request's id and may overtake each other. A frame that fails is
answered with an error frame and the socket stays open; a message that is no frame of this protocol at all
gets an error frame and close code 1003.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import Response
from starlette.types import Message

from fhe_llm_server.auth import TENANT
from fhe_llm_server.limits import REQUESTS_PER_SOCKET
from fhe_llm_server.proxy import Proxy
from fhe_llm_server.refusal import Refusal, internal
from fhe_llm_server.rounds import error_frame, is_frame

logger = logging.getLogger(__name__)
router = APIRouter()

FRAME_TYPE = "application/octet-stream"


@router.post("/v1/evaluate")
async def evaluate(request: Request) -> Response:
    """One request frame in, one reply frame out."""
    proxy: Proxy = request.app.state.proxy
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    answer = asyncio.ensure_future(proxy.rounds.answer(body, request.scope[TENANT]))
    gone = asyncio.ensure_future(_disconnected(request))
    await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not answer.done():
        answer.cancel()
        return Response(status_code=204)
    return Response(answer.result(), media_type=FRAME_TYPE)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.websocket("/v1/evaluate")
async def evaluate_socket(websocket: WebSocket) -> None:
    """Frames both ways until either side closes."""
    await websocket.accept()
    await _Socket(websocket, websocket.app.state.proxy).serve()


class _Socket:
    def __init__(self, websocket: WebSocket, proxy: Proxy) -> None:
        self._websocket = websocket
        self._proxy = proxy
        self._room = asyncio.Semaphore(REQUESTS_PER_SOCKET)
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        try:
            while await self._next():
                pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _next(self) -> bool:
        await self._room.acquire()
        message = await self._websocket.receive()
        if message["type"] != "websocket.receive":
            return False
        data = _binary(message)
        if data is None:
            refusal = Refusal(
                "bad_frame", "cannot read this message: it is not a frame. Send frames.", reason="bad_magic"
            )
            self._proxy.metrics.errors.labels(refusal.proxy_code).inc()
            await self._send(error_frame(b"", refusal))
            await self._websocket.close(1003)
            return False
        task = asyncio.create_task(self._answer(data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer(self, data: bytes) -> None:
        try:
            try:
                reply = await self._proxy.rounds.answer(data, self._websocket.scope[TENANT])
            except Refusal as refusal:
                self._proxy.metrics.errors.labels(refusal.proxy_code).inc()
                reply = error_frame(data, refusal)
            except Exception:
                logger.exception("a round failed")
                self._proxy.metrics.errors.labels("internal").inc()
                reply = error_frame(data, internal("(socket)"))
            await self._send(reply)
        finally:
            self._room.release()

    async def _send(self, frame: bytes) -> None:
        """One frame at a time; a peer that has gone is noticed by the reading side."""
        try:
            async with self._sending:
                await self._websocket.send_bytes(frame)
        except (RuntimeError, OSError):
            logger.info("a socket's peer went away before its reply")


def _binary(message: Message) -> bytes | None:
    data = message.get("bytes")
    return data if data is not None and is_frame(data) else None
