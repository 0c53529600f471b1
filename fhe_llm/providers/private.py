"""``PrivateProviderLLM``: a closed model that reads only what a mechanism has changed and a budget has paid for."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, TypedDict, Unpack, runtime_checkable

from fhe_llm.errors import IdempotencyError, PrivacyParameterError, RequestError
from fhe_llm.models.messages import plain_messages
from fhe_llm.privacy.account import Account
from fhe_llm.privacy.events import Event
from fhe_llm.privacy.identifiers import Pseudonymiser
from fhe_llm.privacy.mechanism import Protected, TextMechanism
from fhe_llm.providers.contract import Provider, ProviderAnswer, ProviderRequest, ProviderToolCall
from fhe_llm.providers.guards import (
    AsItIs,
    ClearGuard,
    Guard,
    MechanismGuard,
    Messages,
    Outgoing,
    PseudonymGuard,
)
from fhe_llm.providers.release import PrivateAnswer, PrivateChunk, ReleaseReceipt, message_of

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
REMEMBERED_KEYS: Final = 256


class ProviderOptions(TypedDict, total=False):
    """Keyword arguments of every call. They are sent as they are: nothing private belongs into them.

    ``tools`` are OpenAI's dicts; ``extra`` goes into the request's body. ``idempotency_key`` names the call: repeated
    with the same messages it sends the same text again and pays nothing.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any] | None
    extra: Mapping[str, Any]
    idempotency_key: str


@runtime_checkable
class Rewriting(Protocol):
    """A mechanism that re-writes the remote answer here (:class:`fhe_llm.privacy.InferDpt`)."""

    def rewrite(self, original: str, remote_answer: str) -> str:
        """The answer to ``original``, from what the provider wrote about the perturbed text."""
        ...

    async def arewrite(self, original: str, remote_answer: str) -> str:
        """:meth:`rewrite` on an event loop."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on its way: the history as the host program shows it, what is sent, and the receipt."""

    messages: Messages
    outgoing: Outgoing
    request: ProviderRequest
    receipt: ReleaseReceipt


class PrivateProviderLLM:
    """Chat with a closed model. What leaves is decided by exactly one of

    - ``mechanism`` and ``budget``: text changed under differential privacy, paid before it leaves;
    - ``guarantee="none"``: text as it is, or with ``identifiers`` replaced where they are recognised. This earns no
      epsilon. With a ``budget`` the ledger records it as unprotected.

    ``public_system`` sends system messages as they are: they are the developer's, the same for everybody. Options,
    tools and their schemas are public too. Threads and tasks may share one object.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        mechanism: TextMechanism | None = None,
        budget: Account | None = None,
        guarantee: Literal["none"] | None = None,
        identifiers: Pseudonymiser | None = None,
        public_system: bool = False,
    ) -> None:
        """Raises :class:`PrivacyParameterError` where neither or both are given."""
        self._provider = provider
        self._budget = budget
        self._rewriting = _rewriting(mechanism)
        self._guard = _guard(mechanism, budget, guarantee, identifiers, public_system=public_system)
        self._paid: OrderedDict[str, tuple[Messages, Outgoing]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def provider(self) -> Provider:
        """Who answers."""
        return self._provider

    def quote(self, messages: Prompt) -> ReleaseReceipt:
        """What sending these messages would cost, before anything is drawn or paid."""
        plain = _plain(messages)
        event, before = self._guard.quote(plain)
        return self._receipt(Outgoing((), event, AsItIs(), before), quoted=True)

    def chat(self, messages: Prompt, **options: Unpack[ProviderOptions]) -> PrivateAnswer:
        """The model's answer.

        Raises :class:`PrivacyError` subclasses before anything leaves (:class:`BudgetExhaustedError`,
        :class:`LedgerError`, :class:`UnknownTextError`), :class:`ProviderError` subclasses after it was paid: what
        was sent stays paid, whether or not an answer came.
        """
        call = self._prepare(messages, options)
        answer = self._provider.complete(call.request)
        return self._finished(call, answer, self._shown(call, answer))

    def stream(
        self, messages: Prompt, **options: Unpack[ProviderOptions]
    ) -> Generator[PrivateChunk, None, None]:
        """:meth:`chat` in pieces. An answer that is re-written here comes as one."""
        call = self._prepare(messages, options)
        reading = _Reading(self, call)
        with closing(self._provider.stream(call.request)) as chunks:
            for chunk in chunks:
                yield from reading.piece(chunk.text)
                reading.answer = chunk.answer or reading.answer
        rewritten = self._shown(call, reading.complete()) if self._rewriting else None
        yield reading.last(rewritten)

    async def achat(self, messages: Prompt, **options: Unpack[ProviderOptions]) -> PrivateAnswer:
        """:meth:`chat` on an event loop."""
        call = await asyncio.to_thread(self._prepare, messages, options)
        answer = await self._provider.acomplete(call.request)
        return self._finished(call, answer, await self._ashown(call, answer))

    async def astream(
        self, messages: Prompt, **options: Unpack[ProviderOptions]
    ) -> AsyncGenerator[PrivateChunk, None]:
        """:meth:`stream` on an event loop."""
        call = await asyncio.to_thread(self._prepare, messages, options)
        reading = _Reading(self, call)
        async with aclosing(self._provider.astream(call.request)) as chunks:
            async for chunk in chunks:
                for piece in reading.piece(chunk.text):
                    yield piece
                reading.answer = chunk.answer or reading.answer
        rewritten = await self._ashown(call, reading.complete()) if self._rewriting else None
        yield reading.last(rewritten)

    def close(self) -> None:
        """Close the provider's connections. The ledger belongs to whoever opened it."""
        self._provider.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._provider.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        provider = self._provider
        return f"PrivateProviderLLM({provider.name!r}, model={provider.model!r}, guarantee={self._guard.guarantee!r})"

    def _prepare(self, messages: Prompt, options: ProviderOptions) -> _Call:
        plain = _plain(messages)
        request_of = _request(options)
        self._provider.check(request_of(plain))  # before anything is paid
        outgoing = self._released(plain, options.get("idempotency_key"))
        return _Call(plain, outgoing, request_of(outgoing.messages), self._receipt(outgoing))

    def _released(self, plain: Messages, key: str | None) -> Outgoing:
        if key is None:
            return self._guard.release(plain, lambda event, draw: self._pay(event, draw, None))
        with self._lock:
            kept = self._paid.get(key)
        if kept is not None:
            if kept[0] != plain:
                raise IdempotencyError(
                    "cannot use this idempotency key: it was used for other messages. Use a new one."
                )
            return kept[1]
        outgoing = self._guard.release(plain, lambda event, draw: self._pay(event, draw, f"named-{key}"))
        with self._lock:
            self._paid[key] = plain, outgoing
            while len(self._paid) > REMEMBERED_KEYS:
                self._paid.popitem(last=False)
        return outgoing

    def _pay(
        self, event: Event, draw: Callable[[], Protected[tuple[str, ...]]], key: str | None
    ) -> Protected[tuple[str, ...]]:
        return draw() if self._budget is None else self._budget.pay(event, draw, key=key)

    def _receipt(self, outgoing: Outgoing, *, quoted: bool = False) -> ReleaseReceipt:
        return ReleaseReceipt(
            provider=self._provider.name,
            model=self._provider.model,
            guarantee=self._guard.guarantee,
            event=outgoing.event,
            conversation=outgoing.conversation,
            balances=self._budget.balances() if self._budget else (),
            quoted=quoted,
        )

    def _shown(self, call: _Call, answer: ProviderAnswer) -> str:
        """The answer's text re-written or restored."""
        if self._rewriting is not None:
            return self._rewriting.rewrite(_question(call.messages), answer.text)
        return call.outgoing.restoring.restore(answer.text)

    async def _ashown(self, call: _Call, answer: ProviderAnswer) -> str:
        if self._rewriting is not None:
            return await self._rewriting.arewrite(_question(call.messages), answer.text)
        return call.outgoing.restoring.restore(answer.text)

    def _finished(self, call: _Call, answer: ProviderAnswer, shown: str) -> PrivateAnswer:
        restoring = call.outgoing.restoring
        calls = tuple(
            ProviderToolCall(made.id, made.name, restoring.restore_json(made.arguments))
            for made in answer.tool_calls
        )
        self._remember(call, shown, calls, answer)
        return PrivateAnswer(
            text=shown,
            finish=answer.finish,
            model=answer.model,
            receipt=call.receipt,
            remote_text=answer.text,
            tool_calls=calls,
            usage=answer.usage,
            request_id=answer.request_id,
        )

    def _remember(
        self, call: _Call, shown: str, calls: tuple[ProviderToolCall, ...], answer: ProviderAnswer
    ) -> None:
        try:
            seen, raw = plain_messages([message_of(shown, calls), message_of(answer.text, answer.tool_calls)])
        except RequestError:
            return  # a call whose arguments are no JSON cannot be part of a history
        self._guard.answered(call.messages, call.outgoing, seen, raw)


class _Reading:
    """A streamed answer on its way in."""

    def __init__(self, owner: PrivateProviderLLM, call: _Call) -> None:
        self._owner, self._call = owner, call
        self._rewritten = owner._rewriting is not None
        self._restored = call.outgoing.restoring.stream()
        self._given: list[str] = []
        self.answer: ProviderAnswer | None = None

    def piece(self, text: str) -> Generator[PrivateChunk, None, None]:
        """What may be shown by now."""
        if text and not self._rewritten and (shown := self._restored.feed(text)):
            self._given.append(shown)
            yield PrivateChunk(text=shown)

    def complete(self) -> ProviderAnswer:
        """The whole answer; adapters end with it or raise."""
        if self.answer is None:
            raise RequestError("cannot read the answer: the provider's stream had no end. Report this.")
        return self.answer

    def last(self, rewritten: str | None) -> PrivateChunk:
        """The rest of the text, and the answer."""
        rest = self._restored.finish() if rewritten is None else rewritten
        self._given.append(rest)
        answer = self._owner._finished(self._call, self.complete(), "".join(self._given))
        return PrivateChunk(text=rest, answer=answer)


def _guard(
    mechanism: TextMechanism | None,
    budget: Account | None,
    guarantee: str | None,
    identifiers: Pseudonymiser | None,
    *,
    public_system: bool,
) -> Guard:
    if guarantee not in (None, "none"):
        raise PrivacyParameterError(
            f"cannot use guarantee={guarantee!r}: the only one that is said is 'none'. Give a mechanism and a budget."
        )
    if (mechanism is None) == (guarantee is None):
        raise PrivacyParameterError(
            "cannot send text to a provider: give a mechanism and a budget, or guarantee='none', and not both."
        )
    if mechanism is None:
        return ClearGuard() if identifiers is None else PseudonymGuard(identifiers)
    if isinstance(mechanism, type) or not (hasattr(mechanism, "quote") and hasattr(mechanism, "protect")):
        raise PrivacyParameterError(
            f"cannot use {type(mechanism).__name__} as a mechanism: it has no claim. Use TokenMechanism or InferDpt."
        )
    if not isinstance(budget, Account):
        raise PrivacyParameterError("cannot use a mechanism without a budget: pass budget=Account.open(...).")
    if identifiers is not None:
        raise PrivacyParameterError(
            "cannot use identifiers beside a mechanism: a placeholder that stays in the text tells what stood there, "
            "which the claim does not cover. The mechanism changes identifiers like any other token."
        )
    return MechanismGuard(mechanism, public_system=public_system)


def _rewriting(mechanism: object) -> Rewriting | None:
    return mechanism if isinstance(mechanism, Rewriting) else None


def _plain(messages: Prompt) -> Messages:
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return tuple(plain_messages(given))


def _request(options: ProviderOptions) -> Callable[[Messages], ProviderRequest]:
    """Checks the options before anything is paid."""
    given: dict[str, Any] = {name: value for name, value in options.items() if name != "idempotency_key"}
    unknown = sorted(given.keys() - ProviderOptions.__annotations__.keys())
    if unknown:
        known = ", ".join(ProviderOptions.__annotations__)
        raise RequestError(
            f"cannot use parameter {unknown[0]!r}: there is no such parameter. Use one of {known}."
        )
    stop = given.pop("stop", None) or ()
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    given["tools"] = tuple(given.get("tools") or ())
    given["extra"] = given.get("extra") or {}
    return lambda messages: ProviderRequest(messages=messages, **given)


def _question(messages: Messages) -> str:
    """What an answer is re-written against: the last message of the user."""
    return next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
