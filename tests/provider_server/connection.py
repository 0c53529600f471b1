"""One HTTP/1.1 connection: requests in, responses out part by part, cut where the script says so."""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
import struct
from collections.abc import Callable, Iterator

import h11

from provider_server.behaviours import Delivery
from provider_server.dialect import Response
from provider_server.recording import Received, Recorder

_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}
Answer = Callable[[Received], tuple[Response, Delivery]]


class Connection:
    """Serves until the client or the script ends it. ``answer`` decides what a request gets."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        recorder: Recorder,
        answer: Answer,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._recorder, self._answer = recorder, answer
        self._number, self._bytes = recorder.connected()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)

    async def serve(self) -> None:
        """Request after request."""
        try:
            while (request := await self._request()) is not None:
                try:
                    if not await self._respond(request):
                        return
                finally:
                    request.done.set()
                if self._http.our_state is h11.MUST_CLOSE:
                    return
                self._http.start_next_cycle()
        except (OSError, h11.RemoteProtocolError):
            return  # the client has gone
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _request(self) -> Received | None:
        """The next whole request; None where the client closed the connection."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._receive()
            elif isinstance(event, h11.Request):
                head = event
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._send(self._http.send(go_on) or b"")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
                method, target = head.method.decode(), head.target.decode()
                return self._recorder.add(self._number, method, target, headers, bytes(body))
            else:
                return None

    async def _receive(self) -> bool:
        """More bytes for h11; False at the end of the stream."""
        data = await self._reader.read(1 << 16)
        self._bytes.extend(data)
        self._http.receive_data(data)
        return bool(data)

    async def _respond(self, request: Received) -> bool:
        """False where the connection is over."""
        response, delivery = self._answer(request)
        leaving = asyncio.ensure_future(self._client_leaves())
        sending = asyncio.ensure_future(self._deliver(response, delivery))
        await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
        for task in (leaving, sending):
            if not task.done():
                task.cancel()
        left, sent = await asyncio.gather(leaving, sending, return_exceptions=True)
        if left is True or isinstance(left, OSError) or isinstance(sent, OSError):
            request.hung_up.set()
            return False
        if isinstance(sent, BaseException):
            raise sent
        return sent

    async def _client_leaves(self) -> bool:
        while await self._receive():
            pass
        return True

    async def _deliver(self, response: Response, delivery: Delivery) -> bool:
        """False where the script cut the connection."""
        await asyncio.sleep(delivery.wait)
        if delivery.cut == "before_headers":
            return self._cut(delivery)
        head = self._http.send(self._head(response, delivery)) or b""
        if delivery.cut == "in_headers":
            await self._send(head[: len(head) // 2])
            return self._cut(delivery)
        await self._send(head)
        after = delivery.after if response.stream or delivery.shred else min(delivery.after, 1)
        for n, part in enumerate(_parts(response, delivery)):
            if n:
                await asyncio.sleep(delivery.pause)
            if n == after:
                await _held(delivery)
                if delivery.cut == "in_body":
                    return self._cut(delivery)
            await self._send(self._http.send(h11.Data(data=part)) or b"")
        if delivery.cut == "in_body":
            return self._cut(delivery)
        await self._send(self._http.send(h11.EndOfMessage()) or b"")
        return True

    def _head(self, response: Response, delivery: Delivery) -> h11.Response:
        headers = {**response.headers, **delivery.headers}
        if not response.stream:
            headers["content-length"] = str(sum(map(len, response.parts)))
        return h11.Response(
            status_code=response.status,
            headers=list(headers.items()),
            reason=_REASONS.get(response.status, b""),
        )

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def _cut(self, delivery: Delivery) -> bool:
        sock = self._writer.get_extra_info("socket")
        if delivery.reset and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        return False


def _parts(response: Response, delivery: Delivery) -> Iterator[bytes]:
    """What is written at once. A body that is cut is written in two halves."""
    parts = response.parts
    if delivery.shred:
        whole = b"".join(parts)
        parts = tuple(whole[at : at + delivery.shred] for at in range(0, len(whole), delivery.shred))
    elif delivery.cut == "in_body" and len(parts) == 1:
        half = len(parts[0]) // 2
        parts = (parts[0][:half], parts[0][half:])
    yield from (part for part in parts if part)


async def _held(delivery: Delivery) -> None:
    while delivery.hold is not None and not delivery.hold.is_set():
        await asyncio.sleep(0.002)
