"""What spares passes through the layers, guesses and remembered prefixes, changes no token and is on the receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from relay import Relay
from tiny_model import LONG, PROMPT, write_tiny_gguf

from fhe_llm import EncryptedLLM, PrefixCache, SpeculationSettings
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.transport import Endpoint, HttpTransport


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


def test_a_cached_prefix_changes_no_token_and_is_on_the_receipt(
    proxy: ProxyProcess, cache: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "cache_dir": cache,
        "speculation": False,
    }  # guesses would change the bytes compared
    with EncryptedLLM("tiny", proxy.base_url, prefix_cache=False, **settings) as client:
        plain = [client.generate(prompt, max_tokens=8) for prompt in (LONG, LONG + " you", LONG + " you")]
    kept = PrefixCache(tmp_path / "prefixes", passphrase="correct horse")
    for given in ("auto", kept, kept):
        with EncryptedLLM("tiny", proxy.base_url, prefix_cache=given, **settings) as client:
            again = [client.generate(prompt, max_tokens=8) for prompt in (LONG, LONG + " you")]
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


def test_what_came_from_one_proxy_is_not_used_with_another(proxy: ProxyProcess, cache: Path) -> None:
    kept = PrefixCache()
    with Relay(proxy.base_url) as other:  # the same proxy, but who could tell
        for url, cached in ((proxy.base_url, False), (other.url, False), (proxy.base_url + "/", True)):
            with EncryptedLLM("tiny", url, cache_dir=cache, prefix_cache=kept) as client:
                assert bool(client.generate(LONG, max_tokens=1).cached_tokens) == cached
        transport = HttpTransport(Endpoint(other.url))
        with EncryptedLLM("tiny", transport=transport, cache_dir=cache, prefix_cache=kept) as client:
            assert client.generate(LONG, max_tokens=1).cached_tokens
        transport.close()
