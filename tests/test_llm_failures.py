"""Whatever goes wrong, on the way or in the call, is said in one error, and a cut connection changes no token."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from relay import Relay
from tiny_model import PROMPT

from fhe_llm import EncryptedLLM, KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.sampling import RequestError
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.errors import ModelError, ParameterError, ProxyError, ProxyTimeoutError, TransportError


@pytest.mark.parametrize("after", [1, 40_000, 400_000, 800_000])
@pytest.mark.parametrize("transport", ["auto", "http"])
def test_a_cut_connection_changes_no_token(
    proxy: ProxyProcess, cache: Path, expected: tuple[int, ...], transport: Any, after: int
) -> None:
    with (
        Relay(proxy.base_url) as relay,
        EncryptedLLM("tiny", relay.url, cache_dir=cache, transport=transport, speculation=False) as client,
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


def test_a_key_of_another_preset_is_refused() -> None:
    with pytest.raises(ParameterError, match="preset='default'"):
        EncryptedLLM(keys=KeyRing.generate("default"), preset="wide")


def test_a_proxy_that_never_answers_is_a_timeout(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = EncryptedLLM("tiny", url, cache_dir=cache, timeout=0.2, max_retries=0)
        with pytest.raises(ProxyTimeoutError, match="did not answer in time"):
            client.generate(PROMPT)
        client.close()


def test_loops_that_end_close_their_connections(proxy: ProxyProcess, cache: Path) -> None:
    unraised = list[object]()
    hook, sys.unraisablehook = sys.unraisablehook, lambda found: unraised.append(found.exc_value)
    try:
        gc.collect()  # what earlier tests left behind is not this client's
        unraised.clear()
        two_loops(proxy, cache)
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert unraised == []


def two_loops(proxy: ProxyProcess, cache: Path) -> None:
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache) as client, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        first, second = (asyncio.run(client.agenerate(PROMPT, max_tokens=2)) for _ in range(2))
        assert first.token_ids == second.token_ids
        gc.collect()
