"""Bad input, tracing, secrets and caches: what is refused says why, and what is private stays so."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import langchain_core.exceptions as theirs
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tracers.context import tracing_v2_callback_var
from langchain_core.tracers.langchain import LangChainTracer
from langsmith.utils import get_env_var

import fhe_llm
import fhe_llm.errors as ours
from fhe_llm import KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm_langchain import ChatEncrypted, EncryptedCache, EncryptedLLM
from fhe_llm_langchain.errors import as_langchain
from fhe_llm_langchain.messages import to_dicts

SECRET_TEXT = "swordfish"


@pytest.fixture
def model(tiny_client: fhe_llm.EncryptedLLM) -> ChatEncrypted:
    return ChatEncrypted(model="tiny", client=tiny_client, max_tokens=4)


@pytest.mark.parametrize("kind", [ChatEncrypted, EncryptedLLM])
def test_no_proxy(kind: Any) -> None:
    model = kind(base_url="http://127.0.0.1:9", max_retries=0)
    with pytest.raises(theirs.ModelConnectionError, match="cannot reach the proxy") as caught:
        model.invoke(SECRET_TEXT)
    assert isinstance(caught.value, ours.TransportError)
    assert caught.value.is_retryable
    assert SECRET_TEXT not in str(caught.value)


@pytest.mark.parametrize("url", ["gpu-box:8080", "ftp://x", "", "http://"])
def test_a_wrong_url_is_refused_when_the_model_is_made(url: str) -> None:
    with pytest.raises(ours.TransportError, match="URL"):
        ChatEncrypted(base_url=url)


def test_an_address_that_is_no_proxy(tiny_proxy: ProxyProcess) -> None:
    model = ChatEncrypted(base_url=tiny_proxy.base_url + "/elsewhere", max_retries=0)
    with pytest.raises((theirs.ModelConnectionError, theirs.ModelNotFoundError)):
        model.invoke("you?")


def test_an_unknown_model_lists_those_served(tiny_proxy: ProxyProcess, tmp_path: Path) -> None:
    model = ChatEncrypted(model="gpt", base_url=tiny_proxy.base_url, cache_dir=str(tmp_path))
    with pytest.raises(theirs.ModelNotFoundError, match=r"'gpt'.*It serves: tiny"):
        model.invoke("you?")


async def test_a_long_prompt_overflows_as_middleware_expects(model: ChatEncrypted) -> None:
    prompt = "x" * 3000
    for error in (theirs.ContextOverflowError, ours.ContextOverflowError):
        with pytest.raises(error, match=r"prompt of \d{4} tokens: the context window holds 2048"):
            model.invoke(prompt)
    with pytest.raises(theirs.ContextOverflowError):
        await model.ainvoke(prompt)
    with pytest.raises(theirs.ContextOverflowError):
        list(model.stream(prompt))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}], "image_url"),
        (
            [{"type": "text", "text": "a"}, {"type": "image", "base64": "AA==", "mime_type": "image/png"}],
            "image",
        ),
        ([{"type": "audio", "base64": "AA==", "mime_type": "audio/wav"}], "audio"),
    ],
)
def test_what_the_model_cannot_read_is_named(model: ChatEncrypted, content: Any, named: str) -> None:
    with pytest.raises(theirs.ModelInvalidRequestError, match=named):
        model.invoke([HumanMessage(content=content)])


@pytest.mark.parametrize("name", ["presence_penalty", "logit_bias", "n", "functions"])
def test_a_parameter_that_would_be_ignored_is_refused(model: ChatEncrypted, name: str) -> None:
    with pytest.raises(theirs.ModelInvalidRequestError, match=name):
        model.invoke("you?", **{name: 1})
    with pytest.raises(theirs.ModelInvalidRequestError, match=name):
        ChatEncrypted(**{name: 1})
    with pytest.raises(theirs.ModelInvalidRequestError, match=name):
        list(model.stream("you?", **{name: 1}))
    with pytest.raises(theirs.ModelInvalidRequestError, match=name):
        model.with_structured_output({"title": "a", "type": "object", "properties": {}}, **{name: 1})


NONSENSE: list[dict[str, Any]] = [{"temperature": -1}, {"max_tokens": 0}, {"top_p": 0.0}, {"timeout": -1.0},
                                  {"max_retries": -1}, {"preset": "none"}, {"pad_to": 0}, {"seed": -1}]  # fmt: skip


@pytest.mark.parametrize("settings", NONSENSE)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], tiny_proxy: ProxyProcess) -> None:
    with pytest.raises(theirs.ModelInvalidRequestError):
        ChatEncrypted(base_url=tiny_proxy.base_url, model="tiny", **settings)


def test_a_client_is_for_its_model(model: ChatEncrypted, tiny_client: fhe_llm.EncryptedLLM) -> None:
    with pytest.raises(theirs.ModelInvalidRequestError, match="the client is for 'tiny'"):
        model.invoke("you?", model="other")
    with pytest.raises(theirs.ModelInvalidRequestError, match="beside client"):
        ChatEncrypted(client=tiny_client, passphrase="x")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, theirs.ModelInvalidRequestError),
        (401, theirs.ModelAuthenticationError),
        (403, theirs.ModelPermissionDeniedError),
        (404, theirs.ModelNotFoundError),
        (429, theirs.ModelRateLimitError),
        (500, theirs.ModelAPIError),
        (503, theirs.ModelRateLimitError),
    ],
)
def test_the_proxys_refusals_have_langchains_names(status: int, kind: type[Exception]) -> None:
    error = as_langchain(ours.ProxyError("no", proxy_code="x", status=status))
    assert isinstance(error, kind)
    assert isinstance(error, ours.ProxyError)
    assert (error.status, error.proxy_code, str(error)) == (status, "x", "no")


@pytest.mark.parametrize("error", [ours.ReplyError("a"), ours.RetiredKeyError("a"), ours.KeyRingError("a")])
def test_a_spoilt_reply_is_not_tried_again(error: ours.FheLlmError) -> None:
    mapped = as_langchain(error)
    assert isinstance(mapped, theirs.ModelError)
    assert isinstance(mapped, type(error))
    assert not mapped.is_retryable


def test_a_proxy_that_wants_a_key_is_an_authentication_error(tiny_model_path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right-key-0123456789\n")
    arguments = ["--api-key-file", str(keys)]
    with ProxyProcess(str(tiny_model_path), data_dir=tmp_path / "data", arguments=arguments) as proxy:
        with pytest.raises(theirs.ModelAuthenticationError):
            ChatEncrypted(model="tiny", base_url=proxy.base_url, api_key="wrong-key-0123456789").invoke(
                "you?"
            )
        with ChatEncrypted(model="tiny", base_url=proxy.base_url, api_key="right-key-0123456789") as model:
            assert model.invoke("you?", max_tokens=1).usage_metadata is not None


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    get_env_var.cache_clear()
    yield
    monkeypatch.undo()
    get_env_var.cache_clear()


def test_tracing_is_refused_when_the_model_is_made(tracing: None) -> None:
    with pytest.raises(theirs.ModelInvalidRequestError, match="allow_tracing=True"):
        ChatEncrypted()
    ChatEncrypted(allow_tracing=True).close()


async def test_tracing_is_refused_before_a_prompt_leaves(
    model: ChatEncrypted, tracing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a tracer was told")

    monkeypatch.setattr(LangChainTracer, "on_chat_model_start", started)
    with pytest.raises(ours.RequestError, match="sends prompts and answers in clear"):
        model.invoke(SECRET_TEXT)
    with pytest.raises(ours.RequestError, match="in clear"):
        list(model.stream(SECRET_TEXT))
    with pytest.raises(ours.RequestError, match="in clear"):
        await model.ainvoke(SECRET_TEXT)
    with pytest.raises(ours.RequestError, match="in clear"):
        async for _ in model.astream(SECRET_TEXT):
            pass
    with pytest.raises(ours.RequestError, match="in clear"):
        model.batch([SECRET_TEXT])
    with pytest.raises(ours.RequestError, match="in clear"):
        async for _ in model.astream_events(SECRET_TEXT, version="v2"):
            pass


def test_a_tracer_among_the_callbacks_is_refused(
    model: ChatEncrypted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = LangChainTracer.__new__(LangChainTracer)  # one that has no client and no thread
    with pytest.raises(ours.RequestError, match="in clear"):
        model.invoke(SECRET_TEXT, {"callbacks": [tracer]})
    with pytest.raises(ours.RequestError, match="in clear"):
        list(model.stream(SECRET_TEXT, {"callbacks": [tracer]}))


def test_tracers_are_found_in_batches_and_contexts(
    model: ChatEncrypted, tiny_client: fhe_llm.EncryptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = LangChainTracer.__new__(LangChainTracer)
    text_model = EncryptedLLM(model="tiny", client=tiny_client, max_tokens=2)
    with pytest.raises(ours.RequestError, match="in clear"):
        text_model.batch([SECRET_TEXT, SECRET_TEXT], {"callbacks": [tracer]})
    token = tracing_v2_callback_var.set(tracer)
    try:
        for one in (model, text_model):
            with pytest.raises(ours.RequestError, match="in clear"):
                one.invoke(SECRET_TEXT)
    finally:
        tracing_v2_callback_var.reset(token)


def test_a_model_keeps_the_proxy_it_was_made_for(tiny_proxy: ProxyProcess, tmp_path: Path) -> None:
    with ChatEncrypted(model="tiny", base_url=tiny_proxy.base_url, cache_dir=str(tmp_path)) as model:
        assert model.model_copy(deep=True).invoke("you?", max_tokens=1).usage_metadata is not None
        with pytest.raises(theirs.ModelInvalidRequestError, match="cannot change base_url"):
            model.model_copy(update={"base_url": "http://127.0.0.1:9"}).invoke("you?")


def test_no_repr_and_no_dump_shows_a_secret(tiny_proxy: ProxyProcess, tmp_path: Path) -> None:
    ring = KeyRing.generate()
    settings: Any = {"model": "tiny", "base_url": tiny_proxy.base_url, "cache_dir": str(tmp_path)}
    with ChatEncrypted(keys=ring, api_key="hidden", **settings) as model:
        model.invoke("you?", max_tokens=1)
        shown = [repr(model), str(model), model.model_dump_json(), dumps(model), repr(model.asdict()),
                 repr(model.bind_tools([])), repr(model._get_invocation_params()), repr(vars(model))]  # fmt: skip
    for text in shown:
        assert "hidden" not in text
        assert ring.key_id is not None
        assert ring.key_id.hex() not in text
        assert "KeyRing" not in text


def test_logs_hold_no_text(model: ChatEncrypted, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = model.invoke(SECRET_TEXT)
    assert SECRET_TEXT not in caplog.text
    assert not answer.content or str(answer.content) not in caplog.text


def test_langchains_global_cache_is_used_only_if_asked_for(
    model: ChatEncrypted, tiny_client: fhe_llm.EncryptedLLM
) -> None:
    before, cache = get_llm_cache(), InMemoryCache()
    set_llm_cache(cache)
    try:
        model.invoke("you?")
        assert not cache._cache
        ChatEncrypted(model="tiny", client=tiny_client, max_tokens=1, cache=True).invoke("you?")
        assert len(cache._cache) == 1
    finally:
        set_llm_cache(before)


def test_an_encrypted_cache_answers_the_second_time_and_tells_a_thief_nothing(
    tiny_client: fhe_llm.EncryptedLLM, tmp_path: Path
) -> None:
    cache = EncryptedCache(tmp_path, passphrase="correct horse")
    model = ChatEncrypted(model="tiny", client=tiny_client, max_tokens=4, cache=cache)
    first = model.invoke(SECRET_TEXT)
    second = model.invoke(SECRET_TEXT)
    assert second.content == first.content
    assert second.response_metadata["privacy_receipt"] == first.response_metadata["privacy_receipt"]
    assert model.invoke(SECRET_TEXT, max_tokens=2).usage_metadata != first.usage_metadata
    cache.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET_TEXT.encode() not in path.read_bytes()
    with pytest.raises(ours.WrongPassphraseError):
        EncryptedCache(tmp_path, passphrase="wrong horse")
    assert "correct" not in repr(cache)


def test_a_cached_call_keeps_its_tools(tmp_path: Path) -> None:
    from langchain_core.outputs import ChatGeneration

    cache = EncryptedCache(tmp_path)
    call: Any = {"name": "f", "args": {"x": 1}, "id": "1", "type": "tool_call"}
    kept = ChatGeneration(
        message=AIMessage("a", tool_calls=[call]), generation_info={"finish_reason": "stop"}
    )
    cache.update("p", "m", [kept])
    assert cache.lookup("p", "m") == [kept]
    cache.close()


def test_messages_become_the_dicts_of_a_chat() -> None:
    call: Any = {"name": "f", "args": {"x": 1}, "id": "1", "type": "tool_call"}
    dicts = to_dicts([
        SystemMessage("s"),
        HumanMessage([{"type": "text", "text": "h"}], name="ann"),
        AIMessage([{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}], tool_calls=[call]),
        ToolMessage("boom", tool_call_id="1", status="error"),
    ])  # fmt: skip
    assert [d["role"] for d in dicts] == ["system", "user", "assistant", "tool"]
    assert dicts[2]["content"] == []
    assert dicts[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert dicts[3]["content"] == "Error: boom"
    assert dicts[3]["tool_call_id"] == "1"


def test_a_broken_call_in_the_history_is_refused() -> None:
    call: Any = {"type": "invalid_tool_call", "name": "f", "args": "{", "id": "1", "error": None}
    broken = AIMessage("", invalid_tool_calls=[call])
    with pytest.raises(ours.RequestError, match="no JSON"):
        to_dicts([broken])


def test_nobody_but_the_proxy_is_connected_to(
    tiny_proxy: ProxyProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = set[str]()
    connect = socket.create_connection

    def watched(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        hosts.add(f"http://{address[0]}:{address[1]}")
        return connect(address, *arguments, **options)

    monkeypatch.setattr(socket, "create_connection", watched)
    with ChatEncrypted(model="tiny", base_url=tiny_proxy.base_url, cache_dir=str(tmp_path)) as model:
        model.invoke("you?", max_tokens=1)
    assert hosts == {tiny_proxy.base_url}
