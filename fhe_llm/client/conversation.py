"""From a prompt to an answer: connect, generate, account for it. No I/O, so that one story serves every driver.

A *conversation* yields routines (run them on a transport, send back the result) and chunks (show them).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, Unpack

from fhe_llm.answer import Answer, AnswerTimings, Chunk, Decoding, Phases
from fhe_llm.client.ask import Ask, AskOptions, Prompt
from fhe_llm.client.bundles import FetchedBundle, fetch_bundle
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.draft_model import DraftModel
from fhe_llm.client.generation import Outcome, Piece, Task, generate
from fhe_llm.client.grammar import GrammarTokens
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.listing import ModelListing, ProxyLimits
from fhe_llm.client.prefix_cache import PrefixCache, PrefixScope
from fhe_llm.client.sampling import SamplingParams
from fhe_llm.client.session import Session, SessionOptions, SessionStats
from fhe_llm.client.speculation import Drafter, PassCosts, PromptLookup, SpeculationSettings, Speculator
from fhe_llm.client.transport import Patience, list_models
from fhe_llm.client.transport.operations import Routine
from fhe_llm.errors import ModelError, ReplyError, RetiredKeyError
from fhe_llm.models.chat_template import ChatTemplate
from fhe_llm.models.registry import ClientHalf, client_half
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer
from fhe_llm.models.tools import ToolCall, ToolCallReader
from fhe_llm.progress import Progress, silent
from fhe_llm.receipt import PrivacyReceipt

R = TypeVar("R")

Conversation: TypeAlias = Generator[Routine[Any] | Chunk, Any, None]


@dataclass(frozen=True)
class Connected:
    """A model as one proxy serves it, with everything the client needs to use it, and what its passes cost."""

    model: ModelListing
    limits: ProxyLimits
    fetched: FetchedBundle
    half: ClientHalf
    tokenizer: TextTokenizer
    template: ChatTemplate | None
    draft_model: DraftModel | None = None
    costs: PassCosts = field(default_factory=PassCosts)

    @cached_property
    def grammar_tokens(self) -> GrammarTokens:
        """The vocabulary as grammars need it, made when first used. Raises :class:`RequestError`."""
        return GrammarTokens(self.tokenizer, self.half.config.vocab_size)

    def prompt_ids(self, ask: Ask) -> tuple[int, ...]:
        """Token ids; raises :class:`ModelError` for a chat where the model has no template."""
        if isinstance(ask.prompt, str):
            return tuple(self.tokenizer.encode(ask.prompt, add_special=True, parse_special=False))
        if self.template is None:
            raise ModelError(
                f"cannot chat with {self.model.name}: it has no chat template. Use generate, or a chat model."
            )
        messages, tools = ask.chat(template_takes_tools=self.template.takes_tools)
        return tuple(self.template.encode(self.tokenizer, messages, tools=tools))


class ModelInfo:
    """What a client knows of the model it talks to, with its tokenizer."""

    def __init__(self, connected: Connected) -> None:
        self._connected = connected
        self.name = connected.model.name
        self.model_digest = connected.model.model_digest
        self.context_length = connected.half.config.context_length
        self.chat = connected.template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it taken as plain text."""
        return self._connected.tokenizer.encode(text, parse_special=False)

    def prompt_tokens(self, prompt: Prompt, **options: Unpack[AskOptions]) -> int:
        """Tokens that the prompt takes, chat template and tools included. Raises :class:`RequestError`,
        :class:`ModelError`."""
        return len(self._connected.prompt_ids(Ask.of(prompt, options)))

    def __repr__(self) -> str:
        return f"ModelInfo(name={self.name!r}, context_length={self.context_length})"


@dataclass(frozen=True, slots=True)
class Settings:
    """What stays the same over all conversations of one client. ``proxy`` is the address it talks to."""

    model: str
    cache: Path
    proxy: str = ""
    patience: Patience = field(default_factory=Patience)
    progress: Progress = silent
    prefix_cache: PrefixCache | None = None
    speculation: SpeculationSettings | None = None
    draft_model: str | Path | None = None


def connect(settings: Settings) -> Routine[Connected]:
    """Find the model at the proxy and load its client bundle.

    Raises :class:`TransportError`, :class:`ProxyError`, :class:`ModelError`, :class:`DownloadError`.
    """
    listing = yield from list_models(patience=settings.patience)
    model = listing.model(settings.model)
    fetched = yield from fetch_bundle(
        model, settings.cache, progress=settings.progress, patience=settings.patience
    )
    bundle = fetched.bundle
    tokenizer = TextTokenizer(bundle.tokenizer)
    source = bundle.tokenizer.chat_template
    template = ChatTemplate(source, **_special_texts(bundle, tokenizer)) if source else None
    return Connected(model, listing.limits, fetched, client_half(bundle), tokenizer, template)


def with_draft_model(connected: Connected, settings: Settings) -> Connected:
    """The same with the small model that the settings name, if any. Raises what :meth:`DraftModel.load` raises."""
    if settings.draft_model is None:
        return connected
    model = DraftModel.load(
        settings.draft_model, connected.tokenizer, cache=settings.cache, progress=settings.progress
    )
    return replace(connected, draft_model=model)


def make_task(connected: Connected, ask: Ask, settings: Settings, prefix: PrefixScope | None = None) -> Task:
    """The generation that answers ``ask``; raises :class:`ContextOverflowError`, :class:`RequestError`."""
    constraint = connected.grammar_tokens.matcher(ask.grammar) if ask.grammar else None
    prompt_ids, context_length = connected.prompt_ids(ask), connected.half.config.context_length
    room = min(ask.params.max_tokens, context_length - len(prompt_ids)) - 1
    return Task(
        half=connected.half,
        decoder=IncrementalDecoder(connected.tokenizer),
        prompt_ids=prompt_ids,
        params=_without_stops(ask),
        constraint=constraint,
        opening=constraint.forced()[: max(0, room)] if constraint else (),
        end_ids=connected.tokenizer.eos_ids,
        context_length=context_length,
        layers=len(connected.model.layers),
        pad_to=ask.pad_to,
        prefix=prefix,
        speculator=make_speculator(connected, settings),
        progress=settings.progress,
    )


def _without_stops(ask: Ask) -> SamplingParams:
    """Where the answer is a call, a stop string could only break it."""
    forced = ask.tools is not None and ask.tools.choice != "auto"
    return replace(ask.params, stop=()) if forced else ask.params


def make_speculator(connected: Connected, settings: Settings) -> Speculator | None:
    """Prompt look-up, and the small model where there is one."""
    if settings.speculation is None:
        return None
    model = connected.draft_model
    drafters: list[Drafter] = [PromptLookup(), *([model.drafter()] if model else [])]
    return Speculator(settings.speculation, drafters, connected.costs)


def converse(connected: Connected, cipher: Cipher, ask: Ask, settings: Settings) -> Conversation:
    """Answer ``ask``; the last chunk carries the answer.

    Raises :class:`ContextOverflowError` before anything is sent, then what :meth:`Session.linear` raises.
    """
    prefix = prefix_scope(connected, cipher, settings)
    task = make_task(connected, ask, settings, prefix)
    options = SessionOptions(patience=settings.patience, progress=settings.progress)
    session = Session(cipher, connected.model, connected.limits, options)
    yield _watched(session.open(), prefix)
    steps, reply, first, prompt_rounds = generate(task), None, None, 0
    reader = _Reader(ask)
    try:
        while True:
            step = steps.send(reply)
            if isinstance(step, Piece):
                if first is None:
                    first, prompt_rounds = phases(session.stats), session.stats.rounds
                yield reader.chunk(step)
            reply = None if isinstance(step, Piece) else (yield _watched(session.linear(step), prefix))
    except StopIteration as stop:
        outcome: Outcome = stop.value
    finally:
        steps.close()
        session.close()
    last = reader.chunk(outcome.last, final=True)
    answer = Answer(
        text=reader.text,
        token_ids=outcome.token_ids,
        tool_calls=tuple(reader.calls),
        unfinished_tool_call=reader.unfinished,
        finish_reason="tool_calls"
        if reader.calls and outcome.finish_reason == "stop"
        else outcome.finish_reason,
        prompt_tokens=len(task.prompt_ids),
        cached_tokens=outcome.cached_tokens,
        decoding=decoding(task, outcome, session.stats.rounds - prompt_rounds),
        timings=answer_timings(outcome, first, phases(session.stats)),
        receipt=make_receipt(connected, cipher.ring, task, outcome, session.stats),
    )
    yield replace(last, answer=answer)


class _Reader:
    """The text and the tool calls of one answer, as its pieces come."""

    def __init__(self, ask: Ask) -> None:
        self._calls = ToolCallReader() if ask.tools else None
        self.text, self.unfinished = "", ""
        self.calls: list[ToolCall] = []

    def chunk(self, piece: Piece, *, final: bool = False) -> Chunk:
        """What a caller sees of ``piece``; the ``final`` one brings what was held back."""
        text, calls = self._calls.push(piece.text) if self._calls else (piece.text, ())
        if self._calls and final:
            rest, self.unfinished = self._calls.finish()
            text += rest
        self.text += text
        self.calls += calls
        return Chunk(text, piece.token_ids, tool_calls=calls)


def _watched(routine: Routine[R], prefix: PrefixScope | None) -> Routine[R]:
    """The same routine; its driver, not the conversation, sees it fail.

    A key that is retired was retired by a reply that failed its checks, in this conversation or in another.
    """
    try:
        return (yield from routine)
    except (ReplyError, RetiredKeyError):
        if prefix:
            prefix.distrust()
        raise


def prefix_scope(connected: Connected, cipher: Cipher, settings: Settings) -> PrefixScope | None:
    """The cached prefixes that fit: of this model, bundle and precision, and from this proxy."""
    if settings.prefix_cache is None:
        return None
    config = connected.half.config
    return settings.prefix_cache.scope(
        (config.n_layers, config.n_kv_heads, config.head_dim),
        model=connected.model.model_digest,
        bundle=connected.fetched.bundle.digest,
        preset=cipher.preset.name,
        proxy=settings.proxy,
    )


def decoding(task: Task, outcome: Outcome, rounds: int) -> Decoding:
    """What the passes after the prompt's came to."""
    passes, after = outcome.passes, len(outcome.token_ids) - 1
    return Decoding(
        tokens=after,
        layers=task.layers,
        rounds=rounds if after else 0,
        passes=passes.count,
        drafted=passes.drafted,
        accepted=passes.accepted,
    )


def phases(stats: SessionStats) -> Phases:
    """The phases a session has measured so far; ``model`` is what the generation's clock adds."""
    return Phases(**{f.name: getattr(stats, f.name) for f in fields(Phases) if f.name != "model"})


def answer_timings(outcome: Outcome, first: Phases | None, total: Phases) -> AnswerTimings:
    """Split the wall clock at the first token."""
    after = len(outcome.token_ids) - 1
    prefill = first or total
    decode_seconds = outcome.seconds - outcome.seconds_to_first_token
    decode = (total - prefill).with_model(decode_seconds)
    return AnswerTimings(
        seconds=outcome.seconds,
        seconds_to_first_token=outcome.seconds_to_first_token,
        seconds_per_token=decode_seconds / after if after else None,
        prefill=prefill.with_model(outcome.seconds_to_first_token),
        decode=decode / after if after else Phases(),
    )


def make_receipt(
    connected: Connected, ring: KeyRing, task: Task, outcome: Outcome, stats: SessionStats
) -> PrivacyReceipt:
    """The receipt of one finished generation."""
    preset = ring.preset
    return PrivacyReceipt(
        guarantee="ciphertext",
        preset=preset.name,
        ring_degree=preset.ring_degree,
        log_qp=preset.log_qp,
        security_bits=preset.security_bits,
        security_row=preset.table_row,
        key_id=ring.key_id.hex() if ring.key_id else "",
        model=connected.model.name,
        model_digest=connected.model.model_digest,
        model_trust=connected.fetched.trust,
        rounds=stats.rounds,
        bytes_up=stats.bytes_up,
        bytes_down=stats.bytes_down,
        seconds=outcome.seconds,
        prompt_tokens_seen=task.padded_length(outcome.cached_tokens),
        prompt_tokens_cached=outcome.cached_tokens,
        generated_tokens_seen=len(outcome.token_ids),
        decode_passes_seen=outcome.passes.count,
        drafted_tokens_seen=outcome.passes.drafted,
        drafts_fixed=bool(task.speculator and task.speculator.settings.fixed),
        layers_seen=len(stats.layers_seen),
        precision_log2=stats.precision_log2,
        pad_to=task.pad_to,
    )


def _special_texts(bundle: Any, tokenizer: TextTokenizer) -> dict[str, str]:
    """The special tokens a chat template may name."""
    ids = {"bos_token": bundle.tokenizer.bos_id, "eos_token": next(iter(bundle.tokenizer.eos_ids), None)}
    return {name: tokenizer.decode([i], skip_special=False) for name, i in ids.items() if i is not None}
