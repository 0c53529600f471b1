"""A reply that fails its checks: the key is retired, and nothing that came the same way is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import LONG, PROMPT

from fhe_llm import EncryptedLLM, KeyRing, PrefixCache
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.client.transport.operations import Round
from fhe_llm.errors import ReplyError, RetiredKeyError


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


def test_a_spoilt_reply_empties_the_prefix_cache(proxy: ProxyProcess, cache: Path) -> None:
    inner, kept = HttpTransport(Endpoint(proxy.base_url)), PrefixCache()
    with EncryptedLLM("tiny", transport=inner, cache_dir=cache, prefix_cache=kept) as client:
        client.generate(LONG, max_tokens=2)
    with EncryptedLLM("tiny", transport=Corrupting(inner), cache_dir=cache, prefix_cache=kept) as client:
        with pytest.raises(ReplyError, match="cannot use the proxy's reply"):
            client.generate(LONG, max_tokens=8)
        assert client.generate(LONG, max_tokens=1).cached_tokens == 0
    inner.close()


def test_a_running_answer_does_not_refill_the_prefix_cache(proxy: ProxyProcess, cache: Path) -> None:
    inner, kept = HttpTransport(Endpoint(proxy.base_url)), PrefixCache()
    with (
        EncryptedLLM("tiny", transport=inner, cache_dir=cache, prefix_cache=kept) as running,
        EncryptedLLM("tiny", transport=Corrupting(inner), cache_dir=cache, prefix_cache=kept) as other,
    ):
        stream = running.stream(LONG, max_tokens=8)
        next(stream)
        with pytest.raises(ReplyError):
            other.generate(LONG, max_tokens=8)
        assert list(stream)[-1].answer
        assert running.generate(LONG, max_tokens=1).cached_tokens == 0
    inner.close()


def test_a_key_retired_elsewhere_empties_the_prefix_cache(proxy: ProxyProcess, cache: Path) -> None:
    inner, ring = HttpTransport(Endpoint(proxy.base_url)), KeyRing.generate()
    kept = PrefixCache()
    with (
        EncryptedLLM("tiny", transport=inner, keys=ring, cache_dir=cache, prefix_cache=kept) as running,
        EncryptedLLM("tiny", transport=Corrupting(inner), keys=ring, cache_dir=cache) as other,
    ):
        running.generate(LONG, max_tokens=1)
        stream = running.stream(PROMPT, max_tokens=8)
        next(stream)
        with pytest.raises(ReplyError):
            other.generate(PROMPT, max_tokens=8)
        with pytest.raises(RetiredKeyError):
            list(stream)
    with EncryptedLLM("tiny", transport=inner, cache_dir=cache, prefix_cache=kept) as anew:
        assert anew.generate(LONG, max_tokens=1).cached_tokens == 0
    inner.close()
