"""The server: a thread with an event loop and a listening socket; tests script it and look at what it received."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType
from typing import Final, Self

from provider_server.anthropic_api import AnthropicApi
from provider_server.behaviours import Behaviour, Delivery, Failure, Raw, Reply, Script
from provider_server.compatible_api import CompatibleApi
from provider_server.connection import Connection
from provider_server.dialect import Dialect, Refused, Response
from provider_server.huggingface_api import HuggingFaceApi
from provider_server.openai_api import OpenAiApi
from provider_server.recording import Received, Recorder

OPENAI_KEY: Final = "sk-proj-0123456789abcdefghijklmnop"
ANTHROPIC_KEY: Final = "sk-ant-api03-0123456789abcdefghijklmnop"
HUGGINGFACE_KEY: Final = "hf_0123456789abcdefghijklmnopqrstuvwx"
GPT: Final = "gpt-4o-mini"
CLAUDE: Final = "claude-sonnet-4-6"
LLAMA: Final = "meta-llama/Llama-3.1-8B-Instruct"


class ProviderServer:
    """Four APIs on one port; ``with`` starts and stops it.

    - ``openai_url`` (``…/v1``) and ``anthropic_url`` (``…``) as the providers have them,
    - ``huggingface_url`` (``…/hf/v1``), the router, and ``tgi_url`` (``…/tgi/v1``), an endpoint,
    - ``compatible_url`` (``…/any/v1``), no key.

    A request that the API would refuse is refused and uses up nothing of the script.
    """

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._script: deque[Script] = deque()
        self._default: Script = Reply()
        self._lock = threading.Lock()
        self._faults: list[BaseException] = []
        self._dialects: dict[str, Dialect] = {
            "/v1/messages": AnthropicApi(ANTHROPIC_KEY),
            "/hf/": HuggingFaceApi(HUGGINGFACE_KEY, "/hf/v1"),
            "/tgi/": HuggingFaceApi(HUGGINGFACE_KEY, "/tgi/v1"),
            "/any/": CompatibleApi(),
            "/": OpenAiApi(OPENAI_KEY),
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def next(self, *behaviours: Script) -> None:
        """Behaviours for the next requests, one each, after those that wait already."""
        with self._lock:
            self._script.extend(behaviours)

    def always(self, behaviour: Script) -> None:
        """The behaviour for requests when nothing waits."""
        with self._lock:
            self._default = behaviour

    @property
    def waiting(self) -> int:
        """Behaviours not used yet."""
        with self._lock:
            return len(self._script)

    @property
    def received(self) -> list[Received]:
        """The requests so far."""
        return self.recorder.requests

    def received_bytes(self) -> bytes:
        """Every byte that arrived on any connection."""
        return self.recorder.all_bytes()

    def received_text(self) -> str:
        """Those bytes, and every string of every JSON body without escapes."""
        return self.recorder.all_text()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.openai_url, self.anthropic_url = f"{self.url}/v1", self.url
        self.huggingface_url, self.tgi_url = f"{self.url}/hf/v1", f"{self.url}/tgi/v1"
        self.compatible_url = f"{self.url}/any/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
        if self._faults:
            raise self._faults[0]  # what went wrong in the server itself is never the client's business

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await Connection(reader, writer, self.recorder, self._answer).serve()
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._faults.append(error)
        finally:
            self._tasks.discard(task)

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.sleep(0.001)

    def _answer(self, request: Received) -> tuple[Response, Delivery]:
        dialect = next(
            dialect for prefix, dialect in self._dialects.items() if request.path.startswith(prefix)
        )
        try:
            body = dialect.check(request)
        except Refused as refused:
            return refused.response, Delivery()
        behaviour = self._next_behaviour()
        if callable(behaviour):
            behaviour = behaviour(request)
        return _response(dialect, body, behaviour), behaviour

    def _next_behaviour(self) -> Script:
        with self._lock:
            return self._script.popleft() if self._script else self._default


def _response(dialect: Dialect, body: dict[str, object], behaviour: Behaviour) -> Response:
    if isinstance(behaviour, Raw):
        return Response(behaviour.status, {"content-type": behaviour.content_type}, (behaviour.body,))
    if isinstance(behaviour, Failure):
        return dialect.failure(body, behaviour)
    return dialect.reply(body, behaviour)
