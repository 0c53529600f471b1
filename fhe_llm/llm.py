"""``EncryptedLLM``: ask a model that runs on somebody else's machine, without that machine reading along.

Everything a generation does is in ``client.conversation``; here are the settings and the two drivers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack, cast

from fhe_llm import progress as progress_bars
from fhe_llm.answer import Answer, Chunk
from fhe_llm.client.ask import Ask, AskOptions, Prompt
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.conversation import (
    Connected,
    Conversation,
    ModelInfo,
    Settings,
    connect,
    converse,
    with_draft_model,
)
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.prefix_cache import PrefixCache
from fhe_llm.client.speculation import SpeculationSettings
from fhe_llm.client.transport import (
    AsyncHttpTransport,
    AsyncTransport,
    Endpoint,
    HttpTransport,
    Patience,
    Transport,
)
from fhe_llm.errors import KeyRingError, ParameterError, ProxyError, RequestError
from fhe_llm.loops import LoopTransports
from fhe_llm.models.resolve import cache_root
from fhe_llm.params import preset as find_preset
from fhe_llm.privacy.events import encrypted_call
from fhe_llm.progress import Progress

if TYPE_CHECKING:
    from fhe_llm.privacy.account import Account

T = TypeVar("T")
DEFAULT_URL: Final = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class _Key:
    """A key ring and the cipher that keeps encryptions of zero ready under it."""

    ring: KeyRing
    cipher: Cipher


class EncryptedLLM:
    """A model behind an untrusted proxy. The first use connects, makes or loads the key and uploads evaluation keys.

    ``keys`` is a :class:`KeyRing`, the path of a saved one, or None for a fresh key that lives as long as this
    object. ``transport`` "auto" prefers a WebSocket, "http" uses POST only; an object serves sync or async calls, as
    its kind is. Threads and tasks may share one object: each generation has a session of its own. Closing or
    cancelling a stream stops its work and leaves the object usable.

    ``prefix_cache`` "auto" keeps the KV entries of prompts and answers in memory, at most 256 MiB, as long as this
    object is open: a system prompt or an earlier turn of a chat is run once, and the proxy sees the length of what is
    new. Users who must not learn of each other need objects of their own. :class:`PrefixCache` keeps them on disk. What
    came from one proxy is never used with another: entries are bound to ``base_url``, or to a transport's ``address``.

    ``speculation`` "auto" guesses tokens that earlier text suggests and checks them in one pass where passes so far
    show that this pays; it changes no token, but the proxy sees how many were guessed. ``draft_model`` names a small
    model of the same family that runs here and guesses too.

    ``account`` is a :class:`fhe_llm.privacy.Account` whose ledger notes every finished answer as an event of cost zero,
    with the assumption that makes it so: one report then shows all that left for its principal.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        base_url: str = DEFAULT_URL,
        *,
        keys: KeyRing | str | Path | None = None,
        passphrase: str | None = None,
        api_key: str | None = None,
        preset: str = "default",
        timeout: float = 300.0,
        max_retries: int = 5,
        transport: Literal["auto", "http"] | Transport | AsyncTransport = "auto",
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
        prefix_cache: Literal["auto", False] | PrefixCache = "auto",
        speculation: Literal["auto", False] | SpeculationSettings = "auto",
        draft_model: str | Path | None = None,
        account: Account | None = None,
    ) -> None:
        """Checks what can be checked without network. Raises :class:`TransportError` (URL, API key),
        :class:`ParameterError` (preset), :class:`RequestError`, and what :meth:`KeyRing.load` raises."""
        _check_patience(timeout, max_retries)
        self._endpoint = Endpoint(base_url, api_key, read_seconds=timeout, websocket=transport != "http")
        self._given = _given(transport)
        self._settings = Settings(
            model=model,
            proxy=getattr(transport, "address", self._endpoint.address),
            cache=cache_root(Path(cache_dir) if cache_dir is not None else None),
            patience=Patience(attempts=max_retries + 1),
            progress=progress or progress_bars.bar(),
            prefix_cache=_prefix_cache(prefix_cache),
            speculation=_speculation(speculation, draft_model),
            draft_model=draft_model,
        )
        self._own_prefix_cache = prefix_cache == "auto"
        self._account = account
        self._preset = find_preset(preset).name
        self._own_key = keys is None
        self._key = None if keys is None else _usable(_ring(keys, passphrase), self._preset)
        self._lock = threading.Lock()
        self._connected: Connected | None = None
        self._async = LoopTransports(
            lambda: AsyncHttpTransport(self._endpoint), AsyncHttpTransport.abandon
        )
        awaited = hasattr(transport, "aclose")
        self._given_async = cast(AsyncTransport, transport) if awaited else None
        self._sync = cast(Transport, transport) if self._given and not awaited else None

    @property
    def model(self) -> str:
        """The model's name at the proxy."""
        return self._settings.model

    @property
    def key_ring(self) -> KeyRing:
        """The key in use; a fresh one where this object makes its own and has none, or has retired it."""
        return self._current_key().ring

    def connect(self) -> ModelInfo:
        """Look the model up at the proxy and load what the client needs of it, if that was not done yet.

        Raises :class:`TransportError`, :class:`ProxyError`, :class:`ModelError`.
        """
        connected = self._connected
        if connected is None:
            found = self._sync_transport().run(connect(self._settings))
            connected = self._connected = with_draft_model(found, self._settings)
        return ModelInfo(connected)

    async def aconnect(self) -> ModelInfo:
        """:meth:`connect` on an event loop."""
        connected = self._connected
        if connected is None:
            found = await (await self._async_transport()).run(connect(self._settings))
            connected = self._connected = await _in_thread(with_draft_model, found, self._settings)
        return ModelInfo(connected)

    def generate(self, prompt: str, **options: Unpack[AskOptions]) -> Answer:
        """Continue a text. ``options`` are those of :class:`AskOptions`. Raises :class:`FheLlmError` subclasses; for a
        bad option before anything is sent."""
        return _answer_of(list(self.stream(prompt, **options)))

    def chat(self, messages: Prompt, **options: Unpack[AskOptions]) -> Answer:
        """The model's turn in a chat: dicts with ``role`` and ``content``, or a string for a single question.

        The dicts are OpenAI's, with ``tool_calls`` and the role "tool" where tools were used.
        """
        return self.generate(_as_messages(messages), **options)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, **options: Unpack[AskOptions]) -> Generator[Chunk, None, None]:
        """:meth:`generate` for a string, :meth:`chat` for messages, chunk by chunk as tokens decrypt."""
        return self._drive(self._conversation(Ask.of(prompt, options)))

    async def agenerate(self, prompt: str, **options: Unpack[AskOptions]) -> Answer:
        """:meth:`generate` on an event loop."""
        return _answer_of([chunk async for chunk in self.astream(prompt, **options)])

    async def achat(self, messages: Prompt, **options: Unpack[AskOptions]) -> Answer:
        """:meth:`chat` on an event loop."""
        return await self.agenerate(_as_messages(messages), **options)  # type: ignore[arg-type]

    def astream(self, prompt: Prompt, **options: Unpack[AskOptions]) -> AsyncGenerator[Chunk, None]:
        """:meth:`stream` on an event loop."""
        return self._adrive(self._conversation(Ask.of(prompt, options)))

    def close(self) -> None:
        """Close connections of sync calls and wipe a key of our own. Async users call :meth:`aclose`."""
        if self._sync is not None and not self._given:
            self._sync.close()
            self._sync = None
        if self._own_prefix_cache and self._settings.prefix_cache:
            self._settings.prefix_cache.clear()
        self._forget_key()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._async.aclose()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"EncryptedLLM(model={self._settings.model!r}, base_url={self._endpoint.base_url!r})"

    def _drive(self, conversation: Conversation) -> Generator[Chunk, None, None]:
        transport = self._sync_transport()
        with closing(conversation):
            step = next(conversation, None)
            while step is not None:
                if isinstance(step, Chunk):
                    self._note(step.answer)
                    yield step
                step = _advance(conversation, None if isinstance(step, Chunk) else transport.run(step))

    async def _adrive(self, conversation: Conversation) -> AsyncGenerator[Chunk, None]:
        transport = await self._async_transport()
        with closing(conversation):
            step = await _in_thread(lambda: next(conversation, None))
            while step is not None:
                if isinstance(step, Chunk):
                    await _in_thread(self._note, step.answer)
                    yield step
                result = None if isinstance(step, Chunk) else await transport.run(step)
                step = await _in_thread(_advance, conversation, result)

    def _note(self, answer: Answer | None) -> None:
        if answer is not None and self._account is not None:
            self._account.record(encrypted_call(answer.receipt))

    def _conversation(self, ask: Ask) -> Conversation:
        connected = self._connected  # another thread may drop it meanwhile
        if connected is None:
            found: Connected = yield connect(self._settings)
            connected = self._connected = with_draft_model(found, self._settings)
        try:
            yield from converse(connected, self._current_key().cipher, ask, self._settings)
        except ProxyError:
            self._connected = None  # the proxy may serve something else by now: look again next time
            raise

    def _current_key(self) -> _Key:
        with self._lock:
            if self._own_key and (self._key is None or self._key.ring.retired):
                self._key = _usable(KeyRing.generate(self._preset), self._preset)
            if self._key is None:
                raise KeyRingError("cannot use the key: this object was closed. Make a new one.")
            return self._key

    def _forget_key(self) -> None:
        with self._lock:
            key, self._key = self._key, None
        if key is not None and self._own_key:
            key.ring.wipe()

    def _sync_transport(self) -> Transport:
        with self._lock:
            if self._sync is None:
                self._refuse_given("async")
                self._sync = HttpTransport(self._endpoint)
            return self._sync

    async def _async_transport(self) -> AsyncTransport:
        if self._given_async is not None:
            return self._given_async
        self._refuse_given("blocking")
        return await self._async.get()

    def _refuse_given(self, kind: str) -> None:
        if self._given:
            other = "async" if kind == "async" else "blocking"
            raise RequestError(f"cannot make this call: the transport is {kind}. Use the {other} methods.")


def _advance(conversation: Conversation, result: Any) -> Any:
    """The next routine or chunk; None at the end."""
    try:
        return conversation.send(result)
    except StopIteration:
        return None


async def _in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Run a step of the client half off the event loop; a cancelled task still waits for the step to end, because
    a generator cannot be closed while it runs."""
    step = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        raise


def _answer_of(chunks: list[Chunk]) -> Answer:
    """The answer the last chunk carries."""
    answer = chunks[-1].answer
    assert answer is not None  # noqa: S101  a conversation that ends without raising ends with its answer
    return answer


def _as_messages(messages: Prompt) -> Prompt:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def _ring(keys: KeyRing | str | Path, passphrase: str | None) -> KeyRing:
    return keys if isinstance(keys, KeyRing) else KeyRing.load(keys, passphrase=passphrase)


def _check_patience(timeout: float, max_retries: int) -> None:
    if not (timeout > 0 and max_retries >= 0):
        raise RequestError("cannot use the timeout or max_retries: they must not be negative. Change them.")


def _given(transport: object) -> bool:
    """Whether it is one of the caller's, not a name of ours."""
    if isinstance(transport, str) and transport not in ("auto", "http"):
        raise RequestError(f"cannot use transport {transport!r}: it is not known. Use 'auto' or 'http'.")
    return not isinstance(transport, str)


def _prefix_cache(given: object) -> PrefixCache | None:
    if given == "auto":
        return PrefixCache()
    if given is False or given is None:
        return None
    if isinstance(given, PrefixCache):
        return given
    raise RequestError(
        f"cannot use prefix_cache={given!r}: it is none. Use 'auto', False or a PrefixCache(directory)."
    )


def _speculation(given: object, draft_model: object) -> SpeculationSettings | None:
    if given == "auto":
        return SpeculationSettings()
    if isinstance(given, SpeculationSettings):
        return given
    if given is not False and given is not None:
        raise RequestError(
            f"cannot use speculation={given!r}: it is none. Use 'auto', False or SpeculationSettings(...)."
        )
    if draft_model is not None:
        raise RequestError(
            "cannot use draft_model: speculation is off. Leave speculation at 'auto', or drop the model."
        )
    return None


def _usable(ring: KeyRing, preset: str) -> _Key:
    if ring.preset.name != preset:
        raise ParameterError(
            f"cannot use a key for preset {ring.preset.name!r} with preset {preset!r}: they differ. "
            f"Pass preset={ring.preset.name!r}, or make another key."
        )
    return _Key(ring, Cipher(ring))
