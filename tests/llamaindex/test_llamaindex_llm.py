"""The LLM against live proxies with tiny random models: the conformance suite, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, ThinkingBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llamaindex_kit import MakeLLM
from llm_conformance import CHAT, PROMPT, TOOLS, LLMConformance, Visit
from pydantic import ValidationError

from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.errors import ContextOverflowError, FheLlmError, ModelError, RequestError, TransportError
from fhe_llm_llamaindex import EncryptedLLM


class TestRandomModel(LLMConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, make_roomy: MakeLLM) -> MakeLLM:
        return make_roomy


def test_no_proxy() -> None:
    llm = EncryptedLLM(base_url="http://127.0.0.1:9", max_retries=0)
    for call in (lambda: llm.chat(CHAT), lambda: llm.complete(PROMPT), lambda: llm.metadata):
        with pytest.raises(TransportError, match="cannot reach the proxy"):
            call()
    llm.close()


@pytest.mark.parametrize("url", ["nonsense", "ftp://proxy", ""])
def test_a_wrong_url(url: str) -> None:
    with pytest.raises(FheLlmError, match="cannot use"):
        EncryptedLLM(base_url=url)


def test_an_unknown_model_lists_those_served(narrow_proxy: ProxyProcess) -> None:
    llm = EncryptedLLM("llama-9", narrow_proxy.base_url)
    with pytest.raises(ModelError, match=r"'llama-9'.*tiny"):
        llm.chat(CHAT)
    llm.close()


def test_overflow_has_both_numbers(make_narrow: MakeLLM) -> None:
    with pytest.raises(ContextOverflowError, match=r"3\d\d tokens: the context window holds 256"):
        make_narrow().chat([ChatMessage("zebra " * 60)])


@pytest.mark.parametrize(
    ("block", "named"),
    [(ImageBlock(image=b"aGVsbG8="), "image"), (ThinkingBlock(content="zeppelin"), "thinking")],
)
def test_other_blocks_than_text_are_refused_by_name(make_roomy: MakeLLM, block: Any, named: str) -> None:
    with pytest.raises(RequestError, match=f"message 1: a block of type '{named}' is not text") as caught:
        make_roomy().chat([CHAT[0], ChatMessage(blocks=[block])])
    assert "zeppelin" not in str(caught.value)


def test_nothing_a_caller_says_is_ignored(make_roomy: MakeLLM) -> None:
    llm = make_roomy()
    for call in (
        lambda **given: llm.chat(CHAT, **given),
        lambda **given: list(llm.stream_chat(CHAT, **given)),
        lambda **given: llm.complete(PROMPT, **given),
        lambda **given: llm.chat_with_tools(TOOLS, PROMPT, **given),
        lambda **given: llm.structured_predict(Visit, PromptTemplate(PROMPT), given),
    ):
        with pytest.raises(RequestError, match="cannot use parameter 'logit_bias'"):
            call(logit_bias={})
    with pytest.raises(RequestError, match="cannot use argument 'organization'"):
        EncryptedLLM(organization="x")


def test_bad_values_are_refused_at_once(make_roomy: MakeLLM) -> None:
    for given in ({"temperature": -1}, {"max_tokens": 0}, {"stop": [""]}, {"top_p": 0}, {"timeout": 0}):
        with pytest.raises(RequestError, match="cannot use"):
            EncryptedLLM(**given)
    with pytest.raises(RequestError, match="cannot use top_p"):
        make_roomy().chat(CHAT, top_p=7)


def test_what_the_connection_depends_on_stays() -> None:
    llm = EncryptedLLM()
    with pytest.raises(ValidationError, match="frozen"):
        llm.base_url = "http://127.0.0.1:1"
    llm.close()


async def test_errors_reach_async_callers(make_narrow: MakeLLM) -> None:
    llm = make_narrow()
    with pytest.raises(RequestError, match="'logit_bias'"):
        await llm.achat(CHAT, logit_bias={})
    with pytest.raises(ContextOverflowError):
        async for _ in await llm.astream_chat([ChatMessage("zebra " * 60)]):
            pass
    await llm.aclose()
