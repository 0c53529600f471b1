"""Tools and schemas through a proxy process: a random model, real ciphertexts, answers that fit all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import TinyShape, write_tiny_gguf

from fhe_llm import EncryptedLLM, SpeculationSettings
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.errors import RequestError

SWITCH = {
    "name": "switch",
    "description": "Switch a lamp.",
    "parameters": {
        "type": "object",
        "properties": {"lamp": {"enum": ["hall", "porch"]}, "on": {"type": "boolean"}},
        "required": ["lamp", "on"],
    },
}
HELLO = [{"role": "user", "content": "you"}]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    roomy = TinyShape(context_length=1024)  # a token a byte: tools take hundreds
    model = write_tiny_gguf(tmp_path_factory.mktemp("roomy") / "tiny.gguf", roomy)
    with ProxyProcess(str(model), data_dir=tmp_path_factory.mktemp("proxy")) as process:
        yield process


def test_a_call_streams_once_and_is_in_the_answer(llm: EncryptedLLM) -> None:
    chunks = list(llm.stream(HELLO, tools=[SWITCH], tool_choice="required", max_tokens=150))
    answer = chunks[-1].answer
    assert answer is not None
    assert answer.finish_reason == "tool_calls"
    assert answer.text == "".join(chunk.text for chunk in chunks) == ""
    assert answer.tool_calls == tuple(call for chunk in chunks for call in chunk.tool_calls)
    (call,) = answer.tool_calls
    assert call.name == "switch"
    assert call.arguments["lamp"] in ("hall", "porch")
    assert isinstance(call.arguments["on"], bool)
    assert answer.token_ids == tuple(token for chunk in chunks for token in chunk.token_ids)
    assert json.loads(json.dumps(answer.to_dict()))["tool_calls"][0]["function"]["name"] == "switch"
    assert "switch" in answer._repr_html_()


async def test_on_an_event_loop_too(llm: EncryptedLLM) -> None:
    answer = await llm.achat(HELLO, tools=[SWITCH], tool_choice="switch", max_tokens=150)
    assert [call.name for call in answer.tool_calls] == ["switch"]
    await llm.aclose()


@pytest.mark.parametrize("speculation", [False, "auto", SpeculationSettings(max_draft=2, fixed=True)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_tokens_change_the_passes_and_not_the_answer(
    proxy: ProxyProcess, cache: Path, speculation: object, temperature: float
) -> None:
    def ask(speculation: object) -> tuple[int, ...]:
        with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache, speculation=speculation) as client:  # type: ignore[arg-type]
            answer = client.chat(
                HELLO, tools=[SWITCH], tool_choice="required", max_tokens=150, temperature=temperature, seed=4
            )
        passes.append(answer.decoding.passes)
        return answer.token_ids

    passes = list[int]()
    assert ask(speculation) == ask(False)
    if speculation:
        assert passes[0] < passes[1]


def test_what_the_grammar_forces_at_the_start_is_run_with_the_prompt(llm: EncryptedLLM) -> None:
    stop = {"name": "stop"}
    answer = llm.chat(HELLO, tools=[stop], tool_choice="stop", max_tokens=150)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("stop", {})]
    assert answer.decoding.passes == 0
    seen = answer.receipt.prompt_tokens_seen + answer.cached_tokens
    assert seen == answer.prompt_tokens + answer.completion_tokens - 1


def test_a_call_that_runs_out_of_tokens_is_said_to(llm: EncryptedLLM) -> None:
    answer = llm.chat(HELLO, tools=[SWITCH], tool_choice="required", max_tokens=20)
    assert answer.finish_reason == "length"
    assert answer.completion_tokens == 20
    assert not answer.tool_calls
    assert not answer.text
    assert answer.unfinished_tool_call.startswith("<tool_call>\n{")


def test_a_schema_shapes_the_answer(llm: EncryptedLLM) -> None:
    schema = SWITCH["parameters"]
    answer = llm.chat(HELLO, response_format={"type": "json_schema", "schema": schema}, max_tokens=100)  # type: ignore[typeddict-item]
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text).keys() == {"lamp", "on"}


def test_a_text_to_continue_takes_a_pattern_too(llm: EncryptedLLM) -> None:
    answer = llm.generate("you", response_format={"type": "regex", "pattern": " (yes|no)"})
    assert answer.text in (" yes", " no")


def test_tool_results_go_back(llm: EncryptedLLM) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "switch", "arguments": '{"lamp": "hall"}'}}
    chat = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "done"}]  # fmt: skip
    assert llm.chat(chat, max_tokens=2).completion_tokens <= 2


def test_a_bad_schema_is_refused_before_a_round(llm: EncryptedLLM) -> None:
    with pytest.raises(RequestError, match="cannot use the schema"):
        llm.chat(HELLO, response_format={"type": "json_schema", "schema": {"type": "nonsense"}})
    assert llm.chat(HELLO, max_tokens=1).completion_tokens == 1


def test_the_model_is_known_after_connecting(llm: EncryptedLLM) -> None:
    model = llm.connect()
    assert (model.name, model.context_length, model.chat) == ("tiny", 1024, True)
    assert model.prompt_tokens(HELLO) == llm.chat(HELLO, max_tokens=1).prompt_tokens
    assert len(model.encode("<|im_end|>")) > 1  # text, not a control token
