"""The facade against a proxy process with the tiny model: real keys, real ciphertexts, real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from relay import Relay
from tiny_model import write_tiny_gguf

from fhe_llm import Answer, EncryptedLLM, KeyRing, PrefixCache, SpeculationSettings
from fhe_llm.cli.bench.generation import run_in_the_clear
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.cli.tap import Tap
from fhe_llm.client.generation import Task
from fhe_llm.client.sampling import RequestError, SamplingParams
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.client.transport.operations import HttpCall, Operation, Round
from fhe_llm.errors import (
    ContextOverflowError,
    ModelError,
    ParameterError,
    ProxyError,
    ReplyError,
    RetiredKeyError,
    TransportError,
)
from fhe_llm.models.bundle import load_bundle, write_bundle
from fhe_llm.models.registry import client_half
from fhe_llm.models.resolve import open_model
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer

PROMPT = "you and the other"


@pytest.fixture(scope="module")
def proxy(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with ProxyProcess(str(tiny_model_path), data_dir=tmp_path_factory.mktemp("proxy")) as process:
        yield process


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def llm(proxy: ProxyProcess, cache: Path) -> Iterator[EncryptedLLM]:
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache) as client:
        yield client


@pytest.fixture(scope="module")
def expected(tiny_model_path: Path, cache: Path) -> tuple[int, ...]:
    """What the model says in the clear."""
    source = open_model(tiny_model_path)
    bundle = load_bundle(cache / "b", write_bundle(source, cache / "b"))
    tokenizer = TextTokenizer(bundle.tokenizer)
    task = Task(
        half=client_half(bundle),
        decoder=IncrementalDecoder(tokenizer),
        prompt_ids=tuple(tokenizer.encode(PROMPT)),
        params=SamplingParams(max_tokens=8),
        end_ids=tokenizer.eos_ids,
        context_length=bundle.config.context_length,
        layers=8,
    )
    return run_in_the_clear(task, dict(source.linear_weights())).token_ids


def test_sync_async_and_streams_say_what_the_model_says(llm: EncryptedLLM, expected: tuple[int, ...]) -> None:
    whole = llm.generate(PROMPT, max_tokens=8)
    chunks = list(llm.stream(PROMPT, max_tokens=8))

    async def on_a_loop() -> tuple[Answer, list[Any]]:
        answer = await llm.agenerate(PROMPT, max_tokens=8)
        pieces = [chunk async for chunk in llm.astream(PROMPT, max_tokens=8)]
        await llm.aclose()
        return answer, pieces

    later, pieces = asyncio.run(on_a_loop())
    assert whole.token_ids == later.token_ids == expected
    assert whole.text == later.text
    for streamed in (chunks, pieces):
        assert "".join(chunk.text for chunk in streamed) == whole.text
        assert sum((chunk.token_ids for chunk in streamed), ()) == expected
        assert [chunk.answer is None for chunk in streamed] == [True] * 7 + [False]


def test_an_answer_accounts_for_itself(proxy: ProxyProcess, tmp_path: Path) -> None:
    llm = EncryptedLLM("tiny", proxy.base_url, cache_dir=tmp_path, speculation=False)
    answer = llm.generate(PROMPT, max_tokens=4)
    times, receipt = answer.timings, answer.receipt
    assert (answer.completion_tokens, answer.finish_reason) == (4, "length")
    assert receipt.rounds == 8 * 4
    assert receipt.prompt_tokens_seen == answer.prompt_tokens
    assert receipt.precision_log2 is not None
    assert -30 < receipt.precision_log2 < -10
    assert receipt.model_trust == "first_use"
    assert receipt.key_id == (llm.key_ring.key_id or b"").hex()
    assert times.seconds_per_token is not None
    parts = [getattr(times.decode, name) for name in times.decode.__dataclass_fields__]
    assert sum(parts) == pytest.approx(times.seconds_per_token, rel=0.05)
    assert times.seconds == pytest.approx(times.seconds_to_first_token + 3 * times.seconds_per_token)
    assert "receipt" in answer.to_dict()
    assert "<table>" in answer._repr_html_()
    llm.close()


def test_every_long_step_is_followed_to_its_end(proxy: ProxyProcess, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def watch(label: str, done: int, total: int, /) -> None:
        seen[label] = (done, total)

    with EncryptedLLM("tiny", proxy.base_url, cache_dir=tmp_path, progress=watch) as client:
        client.generate(PROMPT, max_tokens=1)
    assert set(seen) == {
        "Downloading tiny",
        "Making evaluation keys",
        "Uploading evaluation keys",
        "Prefill",
    }
    assert all(done == total > 0 for done, total in seen.values())


def test_one_token_has_no_time_per_token(llm: EncryptedLLM) -> None:
    answer = llm.generate(PROMPT, max_tokens=1)
    assert (answer.timings.seconds_per_token, answer.receipt.rounds) == (None, 8)


def test_a_chat_is_its_template(llm: EncryptedLLM) -> None:
    messages = [{"role": "user", "content": "you"}]
    answer = llm.chat("you", max_tokens=3)
    assert answer.token_ids == llm.chat(messages, max_tokens=3).token_ids
    streamed = list(llm.stream(messages, max_tokens=3))[-1].answer
    assert streamed is not None
    assert streamed.prompt_tokens == answer.prompt_tokens > llm.generate("you", max_tokens=1).prompt_tokens


def test_padding_changes_no_token_and_is_on_the_receipt(llm: EncryptedLLM, expected: tuple[int, ...]) -> None:
    answer = llm.generate(PROMPT, max_tokens=8, pad_to=32)
    assert answer.token_ids == expected
    assert (answer.receipt.prompt_tokens_seen, answer.receipt.pad_to) == (32, 32)


def test_a_stop_string_ends_the_answer(llm: EncryptedLLM) -> None:
    text = llm.generate(PROMPT, max_tokens=8).text
    stop = text[3:5]
    answer = llm.generate(PROMPT, max_tokens=8, stop=[stop])
    assert (answer.text, answer.finish_reason) == (text[: text.index(stop)], "stop")


def test_a_closed_stream_stops_and_leaves_the_client_usable(
    llm: EncryptedLLM, expected: tuple[int, ...]
) -> None:
    stream = llm.stream(PROMPT, max_tokens=100)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.generate(PROMPT, max_tokens=8).token_ids == expected


async def test_a_cancelled_task_stops_and_leaves_the_client_usable(
    proxy: ProxyProcess, cache: Path, expected: tuple[int, ...]
) -> None:
    async with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache) as client:
        await client.agenerate(PROMPT, max_tokens=1)
        for seconds in (0.0, 0.01, 0.05, 0.1):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await client.agenerate(PROMPT, max_tokens=200)
        assert (await client.agenerate(PROMPT, max_tokens=8)).token_ids == expected


async def test_the_event_loop_keeps_turning(proxy: ProxyProcess, cache: Path) -> None:
    longest, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    async with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache) as client:
        await client.agenerate(PROMPT, max_tokens=1)
        ticking, last = asyncio.create_task(tick()), time.perf_counter()
        await client.agenerate(PROMPT, max_tokens=8)
        ticking.cancel()
    assert longest < 0.5


def test_threads_may_share_a_client(llm: EncryptedLLM, expected: tuple[int, ...]) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: llm.generate(PROMPT, max_tokens=8).token_ids, range(3)))
    assert answers == [expected] * 3


def test_streams_may_interleave(llm: EncryptedLLM, expected: tuple[int, ...]) -> None:
    pairs = list(zip(llm.stream(PROMPT, max_tokens=8), llm.stream(PROMPT, max_tokens=8), strict=True))
    assert sum((first.token_ids for first, _ in pairs), ()) == expected
    assert sum((second.token_ids for _, second in pairs), ()) == expected


@pytest.mark.parametrize(
    "speculation",
    ["auto", SpeculationSettings(extra_cost=0.0), SpeculationSettings(max_draft=3, fixed=True)],
)
def test_guessing_changes_no_token_and_is_on_the_receipt(
    proxy: ProxyProcess, cache: Path, speculation: Any
) -> None:
    asked: list[dict[str, Any]] = [{}, {"temperature": 1.5, "seed": 7}, {"repetition_penalty": 1.3}]
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, speculation=False) as client:
        plain = [client.generate(LONG, max_tokens=24, **params) for params in asked]
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, speculation=speculation) as client:
        guessed = [client.generate(LONG, max_tokens=24, **params) for params in asked]
    for answer, without in zip(guessed, plain, strict=True):
        assert answer.token_ids == without.token_ids
        assert answer.decoding.rounds >= 8 * answer.decoding.passes > 0
        assert answer.decoding.passes <= without.decoding.passes == 23
        prompts = [a.receipt.rounds - a.decoding.rounds for a in (answer, without)]
        assert prompts[0] == prompts[1] > 0
        leak = [leak.value for leak in answer.receipt.leaked if leak.what == "drafted tokens"]
        assert bool(leak) == (answer.decoding.drafted > 0)
        assert answer.decoding.rounds_per_token == answer.decoding.rounds / 23
        assert without.decoding.rounds_per_token == 8


async def test_a_small_model_guesses_for_a_large_one(
    proxy: ProxyProcess, cache: Path, tiny_model_path: Path, tmp_path: Path, expected: tuple[int, ...]
) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    for draft_model in (tiny_model_path, other):
        async with EncryptedLLM(
            "tiny",
            proxy.base_url,
            cache_dir=cache,
            draft_model=draft_model,
            speculation=SpeculationSettings(extra_cost=0.0),
        ) as client:
            answer = await client.agenerate(PROMPT, max_tokens=8)
            assert answer.token_ids == expected
            assert answer.decoding.passes <= (2 if draft_model == tiny_model_path else 7)


LONG = "you and the other thing in there are all on the stone and then another one in the rest"


def test_a_cached_prefix_changes_no_token_and_is_on_the_receipt(
    proxy: ProxyProcess, cache: Path, tmp_path: Path
) -> None:
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, prefix_cache=False) as client:
        plain = [client.generate(prompt, max_tokens=8) for prompt in (LONG, LONG + " you", LONG + " you")]
    kept = PrefixCache(tmp_path / "prefixes", passphrase="correct horse")
    for given in ("auto", kept, kept):
        with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, prefix_cache=given) as client:
            again = [client.generate(LONG, max_tokens=8), client.generate(LONG + " you", max_tokens=8)]
            padded = client.generate(LONG + " you", max_tokens=8, pad_to=16)
        for answer, without in zip([*again, padded], plain, strict=True):
            assert answer.token_ids == without.token_ids
            assert without.cached_tokens == 0
        assert again[1].cached_tokens >= again[0].prompt_tokens - 4
        seen = again[1].prompt_tokens - again[1].cached_tokens
        assert again[1].receipt.prompt_tokens_seen == seen < plain[1].receipt.prompt_tokens_seen
        assert again[1].receipt.bytes_up < plain[1].receipt.bytes_up
        assert padded.receipt.prompt_tokens_seen == 16
        assert f"{again[1].cached_tokens} prompt tokens not sent" in str(again[1].receipt)


def test_a_chat_runs_earlier_turns_once(proxy: ProxyProcess, cache: Path) -> None:
    turns = [{"role": "system", "content": "you and the other"}, {"role": "user", "content": "the one"}]
    with (
        EncryptedLLM("tiny", proxy.base_url, cache_dir=cache) as client,
        EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, prefix_cache=False) as forgetful,
    ):
        first = client.chat(turns, max_tokens=6)
        later = [*turns, {"role": "assistant", "content": first.text}, {"role": "user", "content": "on"}]
        second = client.chat(later, max_tokens=6)
        assert second.cached_tokens >= first.prompt_tokens - 8
        assert second.token_ids == forgetful.chat(later, max_tokens=6).token_ids
        client.close()
        assert client.chat(later, max_tokens=1).cached_tokens == 0  # closing forgot what was said


def test_a_spoilt_reply_empties_the_prefix_cache(proxy: ProxyProcess, cache: Path) -> None:
    inner, kept = HttpTransport(Endpoint(proxy.base_url)), PrefixCache()
    with EncryptedLLM("tiny", transport=inner, cache_dir=cache, prefix_cache=kept) as client:
        client.generate(LONG, max_tokens=2)
    with EncryptedLLM("tiny", transport=Corrupting(inner), cache_dir=cache, prefix_cache=kept) as client:
        with pytest.raises(ReplyError, match="cannot use the proxy's reply"):
            client.generate(LONG, max_tokens=8)
        assert client.generate(LONG, max_tokens=1).cached_tokens == 0
    inner.close()


class Recorder:
    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def rounds(self) -> list[bytes]:
        return [op.frame for op in self.operations if isinstance(op, Round)]


@pytest.fixture
def recorded(proxy: ProxyProcess, cache: Path) -> Iterator[tuple[EncryptedLLM, Recorder]]:
    recorder, inner = Recorder(), HttpTransport(Endpoint(proxy.base_url))
    with EncryptedLLM("tiny", transport=Tap(inner, recorder.operations.append), cache_dir=cache) as client:
        yield client, recorder
    inner.close()


def test_a_prompt_over_the_context_sends_no_round(recorded: tuple[EncryptedLLM, Recorder]) -> None:
    client, recorder = recorded
    with pytest.raises(ContextOverflowError, match=r"of 300 tokens.*holds 256"):
        client.generate("é" * 150, max_tokens=1)
    assert not [
        op for op in recorder.operations if isinstance(op, Round) or (isinstance(op, HttpCall) and op.body)
    ]


def test_no_two_rounds_are_alike(recorded: tuple[EncryptedLLM, Recorder]) -> None:
    client, recorder = recorded
    for _ in range(2):
        client.generate(PROMPT, max_tokens=2)
    bodies = [frame[256:] for frame in recorder.rounds()]
    assert len(set(bodies)) == len(bodies) == 32


@pytest.mark.parametrize("after", [1, 40_000, 400_000, 800_000])
@pytest.mark.parametrize("transport", ["auto", "http"])
def test_a_cut_connection_changes_no_token(
    proxy: ProxyProcess, cache: Path, expected: tuple[int, ...], transport: Any, after: int
) -> None:
    with (
        Relay(proxy.base_url) as relay,
        EncryptedLLM("tiny", relay.url, cache_dir=cache, transport=transport) as client,
    ):
        client.generate(PROMPT, max_tokens=1)
        relay.cut_after(after)
        assert client.generate(PROMPT, max_tokens=8).token_ids == expected
        assert relay.cuts == 1


def test_a_proxy_killed_and_restarted_changes_no_token(
    tiny_model_path: Path, tmp_path: Path, cache: Path, expected: tuple[int, ...]
) -> None:
    with ProxyProcess(str(tiny_model_path), data_dir=tmp_path) as first:
        port = int(first.base_url.rpartition(":")[2])
        with EncryptedLLM("tiny", first.base_url, cache_dir=cache, max_retries=10) as client:
            stream = client.stream(PROMPT, max_tokens=8)
            ids = list(next(stream).token_ids)
            first.kill()
            with ProxyProcess(str(tiny_model_path), data_dir=tmp_path, port=port):
                for chunk in stream:
                    ids += chunk.token_ids
    assert tuple(ids) == expected


def test_nobody_at_the_address_is_said_in_one_error(cache: Path) -> None:
    client = EncryptedLLM("tiny", "http://127.0.0.1:9", cache_dir=cache, max_retries=1)
    with pytest.raises(TransportError, match="cannot reach the proxy"):
        client.generate(PROMPT)


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:8080", "https://127.0.0.1:{port}"])
def test_a_wrong_address_is_said_in_one_error(cache: Path, proxy: ProxyProcess, url: str) -> None:
    url = url.format(port=proxy.base_url.rpartition(":")[2])
    with (
        EncryptedLLM("tiny", url, cache_dir=cache, max_retries=0) as client,
        pytest.raises(TransportError, match=r"^cannot reach the proxy: .+\. [A-Z]"),
    ):
        client.generate(PROMPT)


def test_another_server_at_the_address_is_said(cache: Path, proxy: ProxyProcess) -> None:
    with (
        EncryptedLLM("tiny", proxy.base_url + "/somewhere", cache_dir=cache, max_retries=0) as client,
        pytest.raises(ProxyError, match="no such route"),
    ):
        client.generate(PROMPT)


def test_a_model_the_proxy_lacks_is_named_with_those_it_has(proxy: ProxyProcess, cache: Path) -> None:
    with (
        EncryptedLLM("gpt-5", proxy.base_url, cache_dir=cache) as client,
        pytest.raises(ModelError, match="It serves: tiny"),
    ):
        client.generate(PROMPT)


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"max_tokens": 0}, {"unknown": 1}, {"stop": [""]}],
)
def test_bad_parameters_fail_before_anything_is_sent(bad: dict[str, Any]) -> None:
    client = EncryptedLLM("tiny", "http://127.0.0.1:9")
    with pytest.raises(RequestError, match="cannot use"):
        client.generate(PROMPT, **bad)
    with pytest.raises(RequestError, match="cannot use"):
        client.astream(PROMPT, **bad)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["hello"], 7])
def test_bad_messages_fail_before_anything_is_sent(messages: Any) -> None:
    with pytest.raises(RequestError, match=r"cannot use (the messages|message 0): "):
        EncryptedLLM("tiny", "http://127.0.0.1:9").chat(messages)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"base_url": "ftp://x"}, TransportError),
        ({"preset": "tiny"}, ParameterError),
        ({"transport": "pigeon"}, RequestError),
        ({"timeout": 0}, RequestError),
        ({"max_retries": -1}, RequestError),
        ({"prefix_cache": "disk"}, RequestError),
        ({"speculation": True}, RequestError),
        ({"speculation": False, "draft_model": "smollm2-135m"}, RequestError),
    ],
)
def test_bad_settings_fail_at_once(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="cannot use"):
        EncryptedLLM(**settings)


def test_a_transport_is_for_one_kind_of_call(cache: Path, proxy: ProxyProcess) -> None:
    client = EncryptedLLM("tiny", transport=HttpTransport(Endpoint(proxy.base_url)), cache_dir=cache)
    with pytest.raises(RequestError, match="Use the blocking methods"):
        asyncio.run(client.agenerate(PROMPT))


def test_a_saved_key_keeps_its_id(proxy: ProxyProcess, cache: Path, tmp_path: Path) -> None:
    ring = KeyRing.generate()
    with EncryptedLLM("tiny", proxy.base_url, keys=ring, cache_dir=cache) as client:
        first = client.generate(PROMPT, max_tokens=1)
    ring.save(tmp_path / "key", passphrase="correct horse")
    with EncryptedLLM(
        "tiny", proxy.base_url, keys=tmp_path / "key", passphrase="correct horse", cache_dir=cache
    ) as client:
        again = client.generate(PROMPT, max_tokens=1)
    assert again.receipt.key_id == first.receipt.key_id
    assert again.receipt.model_trust == "remembered"
    assert again.token_ids == first.token_ids


def test_a_key_of_another_preset_is_refused() -> None:
    with pytest.raises(ParameterError, match="preset='default'"):
        EncryptedLLM(keys=KeyRing.generate("default"), preset="wide")


class Corrupting:
    """Flips one bit in the header of the reply to the fifth round."""

    def __init__(self, inner: HttpTransport) -> None:
        self._inner, self._left = inner, 5

    def run(self, routine: Any) -> Any:
        def changed() -> Any:
            operation = next(routine)
            while True:
                try:
                    answer = yield operation
                    self._left -= isinstance(operation, Round)
                    if isinstance(operation, Round) and self._left == 0:
                        body = bytearray(answer.body)
                        body[20] ^= 1
                        answer = replace(answer, body=bytes(body))
                    operation = routine.send(answer)
                except StopIteration as stop:
                    return stop.value

        return self._inner.run(changed())

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("own_key", [True, False])
def test_a_spoilt_reply_retires_the_key(
    proxy: ProxyProcess, cache: Path, expected: tuple[int, ...], own_key: bool
) -> None:
    inner, ring = HttpTransport(Endpoint(proxy.base_url)), None if own_key else KeyRing.generate()
    with EncryptedLLM("tiny", transport=Corrupting(inner), keys=ring, cache_dir=cache) as client:
        used = client.key_ring
        with pytest.raises(ReplyError, match="cannot use the proxy's reply"):
            client.generate(PROMPT, max_tokens=8)
        assert used.retired
        if own_key:
            assert client.generate(PROMPT, max_tokens=8).token_ids == expected
            assert client.key_ring is not used
        else:
            with pytest.raises(RetiredKeyError):
                client.generate(PROMPT, max_tokens=8)
    inner.close()


def test_the_repr_shows_no_secret() -> None:
    shown = repr(EncryptedLLM("tiny", "http://127.0.0.1:9", api_key="hush"))
    assert shown == "EncryptedLLM(model='tiny', base_url='http://127.0.0.1:9')"
