"""The facade against a proxy process with the tiny model: real keys, real ciphertexts, real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forking import forked
from tiny_model import PROMPT

from fhe_llm import Answer, EncryptedLLM, KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.cli.tap import Tap
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.client.transport.operations import HttpCall, Operation, Round
from fhe_llm.errors import ContextOverflowError


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


@pytest.mark.parametrize("transport", ["auto", "http"])
def test_a_fork_in_the_middle_changes_no_token(
    proxy: ProxyProcess, cache: Path, expected: tuple[int, ...], transport: Any
) -> None:
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, transport=transport) as client:
        stream = client.stream(PROMPT, max_tokens=8)
        first = next(stream).token_ids

        def rest() -> bytes:
            ids = sum((chunk.token_ids for chunk in stream), first)
            again = client.generate(PROMPT, max_tokens=8).token_ids
            return repr((ids, again, client.key_ring.retired)).encode()

        with forked(rest) as theirs:
            mine = rest()
            assert theirs() == mine == repr((expected, expected, None)).encode()


def test_threads_may_share_a_client(llm: EncryptedLLM, expected: tuple[int, ...]) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: llm.generate(PROMPT, max_tokens=8).token_ids, range(3)))
    assert answers == [expected] * 3


def test_streams_may_interleave(llm: EncryptedLLM, expected: tuple[int, ...]) -> None:
    pairs = list(zip(llm.stream(PROMPT, max_tokens=8), llm.stream(PROMPT, max_tokens=8), strict=True))
    assert sum((first.token_ids for first, _ in pairs), ()) == expected
    assert sum((second.token_ids for _, second in pairs), ()) == expected


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


def test_the_repr_shows_no_secret() -> None:
    shown = repr(EncryptedLLM("tiny", "http://127.0.0.1:9", api_key="hush"))
    assert shown == "EncryptedLLM(model='tiny', base_url='http://127.0.0.1:9')"
