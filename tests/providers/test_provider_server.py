"""The local server is faithful as far as the official SDKs can tell: what they parse, and what they raise."""

from __future__ import annotations

import json
import threading
from typing import Any

import anthropic
import httpx
import openai
import pytest
from huggingface_hub.errors import HfHubHTTPError
from provider_server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    LLAMA,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Raw,
    Reply,
    ToolCall,
    anthropic_api,
    garbage,
    huggingface_api,
    openai_api,
    redirect,
    web_page,
)
from sdk_kit import (
    ANTHROPIC_TOOL,
    ASK,
    OPENAI_TOOL,
    anthropic_client,
    huggingface_client,
    openai_client,
)

TEXT = "Ünïcode – „quotes“ \N{SNOWMAN} and\nlines"
PLACE = ToolCall("weather", {"place": "Zürich"}, id="call_1")
TOWN = ToolCall("weather", {"place": "Ürgüp"}, id="call_2")


@pytest.mark.parametrize("shred", [0, 1, 7])
def test_openai_reads_the_same_text_whole_and_streamed(provider_server: ProviderServer, shred: int) -> None:
    provider_server.always(Reply(text=TEXT, usage=(11, 7), shred=shred))
    with openai_client(provider_server) as client:
        whole = client.chat.completions.create(model=GPT, messages=ASK)
        chunks = list(
            client.chat.completions.create(
                model=GPT, messages=ASK, stream=True, stream_options={"include_usage": True}
            )
        )
    assert whole.choices[0].message.content == TEXT
    assert whole.choices[0].finish_reason == "stop"
    assert whole._request_id is not None
    assert whole._request_id.startswith("req_")
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    for usage in (whole.usage, chunks[-1].usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (11, 7)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_openai_reads_tool_calls_whole_and_streamed(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(text="", tool_calls=(PLACE, TOWN)))
    with openai_client(provider_server) as client:
        whole = client.chat.completions.create(model=GPT, messages=ASK, tools=[OPENAI_TOOL])
        with client.chat.completions.stream(model=GPT, messages=ASK, tools=[OPENAI_TOOL]) as stream:
            streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        calls: Any = answer.choices[0].message.tool_calls
        assert [call.id for call in calls] == ["call_1", "call_2"]
        assert [json.loads(call.function.arguments)["place"] for call in calls] == ["Zürich", "Ürgüp"]


@pytest.mark.parametrize("shred", [0, 1, 7])
def test_anthropic_reads_the_same_whole_and_streamed(provider_server: ProviderServer, shred: int) -> None:
    provider_server.always(
        Reply(text=TEXT, tool_calls=(PLACE, TOWN), thinking="hm, so", usage=(11, 7), shred=shred)
    )
    given: Any = {"model": CLAUDE, "max_tokens": 99, "messages": ASK, "tools": [ANTHROPIC_TOOL]}
    with anthropic_client(provider_server) as client:
        whole = client.messages.create(**given)
        with client.messages.stream(**given) as stream:
            streamed: Any = stream.get_final_message()
    for message in (whole, streamed):
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
        thought, text, *uses = message.content
        assert (thought.thinking, text.text) == ("hm, so", TEXT)
        assert [(use.id, use.input) for use in uses] == [
            ("call_1", {"place": "Zürich"}),
            ("call_2", {"place": "Ürgüp"}),
        ]
        assert message.stop_reason == "tool_use"
        assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 7)
    assert whole._request_id is not None


def test_huggingface_reads_the_same_whole_and_streamed(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(text=TEXT, tool_calls=(PLACE,), usage=(11, 7)))
    client = huggingface_client(provider_server)
    whole = client.chat_completion(ASK, model=LLAMA, tools=[OPENAI_TOOL])
    chunks = list(client.chat_completion(ASK, model=LLAMA, tools=[OPENAI_TOOL], stream=True))
    assert whole.choices[0].message.content == TEXT
    assert whole.usage.completion_tokens == 7
    calls: Any = whole.choices[0].message.tool_calls
    assert calls[0].function.name == "weather"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    parts: list[Any] = [call for chunk in chunks for call in (chunk.choices[0].delta.tool_calls or ())]
    assert json.loads("".join(part.function.arguments for part in parts)) == {"place": "Zürich"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_why_an_answer_ended(provider_server: ProviderServer, finish: Any) -> None:
    provider_server.always(Reply(finish=finish))
    with openai_client(provider_server) as client:
        answer = client.chat.completions.create(model=GPT, messages=ASK)
    assert answer.choices[0].finish_reason == finish
    with anthropic_client(provider_server) as other:
        message = other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
    assert message.stop_reason == {"length": "max_tokens", "content_filter": "refusal"}[finish]


OPENAI_CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    408: openai.APIStatusError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


@pytest.mark.parametrize("name", openai_api.FAILURES)
def test_every_failure_of_openai_is_the_sdk_s_exception(provider_server: ProviderServer, name: str) -> None:
    provider_server.next(Failure(name=name, retry_after="3"))
    status, kind, message, code = openai_api.FAILURES[name]
    with openai_client(provider_server) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=GPT, messages=ASK)
    error = caught.value
    assert type(error) is OPENAI_CLASSES.get(status, openai.InternalServerError)
    assert (error.status_code, error.code, error.type) == (status, code, kind)
    assert message in error.message
    assert error.response.headers["retry-after"] == "3"
    assert error.request_id is not None


ANTHROPIC_CLASSES = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    409: anthropic.ConflictError,
    429: anthropic.RateLimitError,
    529: anthropic.OverloadedError,
}


@pytest.mark.parametrize("name", anthropic_api.FAILURES)
def test_every_failure_of_anthropic_is_the_sdk_s_exception(
    provider_server: ProviderServer, name: str
) -> None:
    provider_server.next(Failure(name=name, retry_after="3"))
    status, kind, message = anthropic_api.FAILURES[name]
    with anthropic_client(provider_server) as client, pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
    error = caught.value
    expected = anthropic.InternalServerError if status >= 500 else anthropic.APIStatusError
    assert isinstance(error, ANTHROPIC_CLASSES.get(status, expected))
    body: Any = error.body
    assert (error.status_code, body["error"]["type"]) == (status, kind)
    assert body["error"]["message"] == message
    assert body["request_id"] == error.request_id
    assert error.response.headers["retry-after"] == "3"


@pytest.mark.parametrize("name", huggingface_api.FAILURES)
def test_every_failure_of_hugging_face_is_the_sdk_s_exception(
    provider_server: ProviderServer, name: str
) -> None:
    provider_server.next(Failure(name=name))
    status, fields = huggingface_api.FAILURES[name]
    with pytest.raises(HfHubHTTPError) as caught:
        huggingface_client(provider_server).chat_completion(ASK, model=LLAMA)
    assert caught.value.response.status_code == status
    assert caught.value.response.json() == fields
    assert fields["error"] in str(caught.value)


def test_an_error_in_mid_stream_is_the_sdk_s_exception(provider_server: ProviderServer) -> None:
    provider_server.next(Reply(failing=Failure(name="server_error")))
    with openai_client(provider_server) as client:
        stream = client.chat.completions.create(model=GPT, messages=ASK, stream=True)
        with pytest.raises(openai.APIError, match="The server had an error"):
            list(stream)
    provider_server.next(Reply(failing=Failure(name="overloaded")))
    with anthropic_client(provider_server) as other:
        events = other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            list(events)
    provider_server.next(Reply(failing=Failure(name="generation")))
    third = huggingface_client(provider_server)
    chunks = third.chat_completion(ASK, model=LLAMA, stream=True)
    with pytest.raises(Exception, match="CUDA error"):
        list(chunks)


@pytest.mark.parametrize("place", ["before_headers", "in_headers", "in_body"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_is_the_sdk_s_connection_error(
    provider_server: ProviderServer, place: Any, stream: bool, reset: bool
) -> None:
    provider_server.always(Reply(cut=place, after=2, reset=reset))
    raised = []
    with openai_client(provider_server) as client, pytest.raises(Exception) as caught:  # noqa: PT011
        _read(client.chat.completions.create(model=GPT, messages=ASK, stream=stream))
    raised.append(type(caught.value))
    with anthropic_client(provider_server) as other, pytest.raises(Exception) as caught:  # noqa: PT011
        _read(other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK, stream=stream))
    raised.append(type(caught.value))
    # where a stream breaks, some versions hand on what their HTTP client raises
    in_stream = {"RemoteProtocolError", "ReadError"} if stream and place == "in_body" else set()
    assert {kind.__name__ for kind in raised} <= {"APIConnectionError", *in_stream}


def _read(answer: Any) -> None:
    list(answer)


def test_a_silent_server_is_the_sdk_s_timeout(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(wait=60))
    with openai_client(provider_server, timeout=0.05) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=GPT, messages=ASK)
    with anthropic_client(provider_server, timeout=0.05) as other, pytest.raises(anthropic.APITimeoutError):
        other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
    assert all(request.hung_up.wait(20) for request in provider_server.received)


def test_the_sdks_retry_what_says_so(provider_server: ProviderServer) -> None:
    provider_server.next(Failure(name="rate_limit", retry_after="0.01"), Reply(text="then"))
    with openai_client(provider_server, max_retries=2) as client:
        assert client.chat.completions.create(model=GPT, messages=ASK).choices[0].message.content == "then"
    provider_server.next(Failure(name="overloaded", retry_after="0.01"), Reply(text="then"))
    with anthropic_client(provider_server, max_retries=2) as other:
        message: Any = other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
    assert message.content[0].text == "then"
    bodies = [request.body for request in provider_server.received]
    assert bodies[0] == bodies[1]
    assert bodies[2] == bodies[3]


def test_a_client_that_hangs_up_in_mid_stream_is_noticed(provider_server: ProviderServer) -> None:
    never = threading.Event()
    provider_server.next(Reply(hold=never, after=2))
    with openai_client(provider_server) as client:
        stream = client.chat.completions.create(model=GPT, messages=ASK, stream=True)
        next(stream)
        (request,) = provider_server.received
        assert not request.hung_up.is_set()
        stream.close()
        assert request.hung_up.wait(20)
        # an answer that was read to its end is no hang-up
        client.chat.completions.create(model=GPT, messages=ASK)
    last = provider_server.received[-1]
    assert last.done.wait(20)
    assert not last.hung_up.is_set()


def test_what_is_no_answer_at_all(provider_server: ProviderServer) -> None:
    provider_server.next(garbage(), web_page(), web_page(502), redirect("/v1/elsewhere"), Raw(body=b""))
    with httpx.Client(headers={"Authorization": f"Bearer {OPENAI_KEY}"}) as client:
        url, body = f"{provider_server.openai_url}/chat/completions", {"model": GPT, "messages": ASK}
        answers = [client.post(url, json=body) for _ in range(5)]
    with pytest.raises(json.JSONDecodeError):
        answers[0].json()
    assert [answer.status_code for answer in answers] == [200, 200, 502, 307, 200]
    assert answers[1].headers["content-type"].startswith("text/html")
    assert answers[3].headers["location"] == "/v1/elsewhere"
    assert answers[4].content == b""


def test_a_stream_may_lack_its_end(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(end=False))
    with openai_client(provider_server) as client:
        chunks = list(client.chat.completions.create(model=GPT, messages=ASK, stream=True))
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    with anthropic_client(provider_server) as other:
        events = list(other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK, stream=True))
    assert events[-1].type == "content_block_stop"


def test_an_answer_may_be_huge(provider_server: ProviderServer) -> None:
    provider_server.next(Reply(text="x" * 3_000_000))
    with openai_client(provider_server) as client:
        answer = client.chat.completions.create(model=GPT, messages=ASK)
    assert answer.choices[0].message.content == "x" * 3_000_000


def test_everything_that_arrives_is_kept(provider_server: ProviderServer) -> None:
    ask: Any = [{"role": "user", "content": "Grüße an \N{SNOWMAN}"}]
    with openai_client(provider_server) as client:
        client.chat.completions.create(model=GPT, messages=ask, extra_headers={"x-note": "header-word"})
        client.chat.completions.create(model=GPT, messages=ASK)
    assert [request.number for request in provider_server.received] == [0, 1]
    assert provider_server.received[0].header("x-note") == "header-word"
    assert provider_server.received[0].json["messages"] == ask
    assert b"header-word" in provider_server.received_bytes()
    assert OPENAI_KEY.encode() in provider_server.received_bytes()
    assert "Grüße an \N{SNOWMAN}" in provider_server.received_text()


def test_a_reply_may_depend_on_the_request(provider_server: ProviderServer) -> None:
    provider_server.always(lambda request: Reply(text=request.json["messages"][0]["content"].upper()))
    with openai_client(provider_server) as client:
        answer = client.chat.completions.create(model=GPT, messages=ASK)
    assert answer.choices[0].message.content == "SAY SOMETHING."


def test_keys_are_checked(provider_server: ProviderServer) -> None:
    with (
        openai_client(provider_server, api_key="sk-wrong-0123456789") as client,
        pytest.raises(openai.AuthenticationError, match=r"sk-wrong\*\*\*6789"),
    ):
        client.chat.completions.create(model=GPT, messages=ASK)
    with (
        anthropic_client(provider_server, api_key="wrong") as other,
        pytest.raises(anthropic.AuthenticationError),
    ):
        other.messages.create(model=CLAUDE, max_tokens=9, messages=ASK)
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        huggingface_client(provider_server, token="hf_wrong").chat_completion(ASK, model=LLAMA)
    url = f"{provider_server.anthropic_url}/v1/messages"
    body = {"model": CLAUDE, "max_tokens": 9, "messages": ASK}
    version = {"anthropic-version": "2023-06-01"}
    assert httpx.post(url, json=body, headers=version).status_code == 401
    assert httpx.post(url, json=body, headers=version | {"x-api-key": ANTHROPIC_KEY}).status_code == 200
    assert httpx.post(url, json=body, headers={"x-api-key": ANTHROPIC_KEY}).status_code == 400


CALL: Any = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLING: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: Any = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
OPENAI_REFUSES: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({"messages": []}, "messages", "empty_array"),
    ({"colour": "red"}, "colour", "unknown_parameter"),
    ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 9, "max_completion_tokens": 9}, "max_tokens", "invalid_parameter_combination"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
    ({"stop": []}, "stop", "empty_array"),
    ({"tool_choice": "auto"}, "tool_choice", None),
    ({"tools": []}, "tools", "empty_array"),
    (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    ({"messages": [{"role": "nobody", "content": "hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.[0].content", None),
    ({"messages": [{"role": "user", "content": "a", "note": "b"}]}, "messages[0].note", "unknown_parameter"),
    ({"messages": [*ASK, RESULT]}, "messages.[1].role", None),
    ({"messages": [*ASK, CALLING]}, "messages.[1].role", None),
    ({"messages": [*ASK, CALLING, *ASK]}, "messages.[2].role", None),
    ({"messages": [*ASK, {"role": "assistant", "tool_calls": []}]}, "messages.[1].content", None),
    ({"messages": [{"role": "user", "content": "x" * 900_000}]}, "messages", "context_length_exceeded"),
    ({"model": "gpt-5-mini", "max_tokens": 9}, "max_tokens", "unsupported_parameter"),
    ({"model": "gpt-5-mini", "temperature": 0.5}, "temperature", "unsupported_value"),
]


@pytest.mark.parametrize(("change", "param", "code"), OPENAI_REFUSES)
def test_openai_refuses(
    provider_server: ProviderServer, change: dict[str, Any], param: str | None, code: str | None
) -> None:
    provider_server.next(Reply())
    given: Any = {"model": GPT, "messages": ASK, **change}
    with openai_client(provider_server) as client, pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=given, cast_to=object)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert provider_server.waiting == 1, "a refused request uses up nothing"


def test_openai_takes_a_conversation_with_tools(provider_server: ProviderServer) -> None:
    with openai_client(provider_server) as client:
        client.chat.completions.create(
            model="gpt-5-mini",
            messages=[{"role": "system", "content": "Be kind."}, *ASK, CALLING, RESULT, *ASK],
            tools=[OPENAI_TOOL],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            max_completion_tokens=20,
        )
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt-99", messages=ASK)


USE: Any = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
}
USED: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]}
ANTHROPIC_REFUSES: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ({"temperature": 0.5}, "temperature: Extra inputs are not permitted"),
    ({"messages": []}, "at least one message is required"),
    ({"messages": [{"role": "system", "content": "hi"}, *ASK]}, "top-level `system`"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": ""}]}, "non-empty content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "must be non-empty"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "non-whitespace"),
    ({"messages": [*ASK, USE]}, "without `tool_result` blocks immediately after: t1"),
    ({"messages": [*ASK, USE, *ASK]}, "messages.1: `tool_use` ids were found"),
    ({"messages": [*ASK, USED]}, "unexpected `tool_use_id`"),
    ({"messages": [*ASK, {"role": "assistant", "content": "Well,"}]}, "prefill"),
    ({"tools": [OPENAI_TOOL]}, "tools.0.custom.function"),
    ({"tools": [{"name": "weather"}]}, "input_schema: Field required"),
    ({"tool_choice": {"type": "auto"}}, "while providing tools"),
    ({"tools": [ANTHROPIC_TOOL], "tool_choice": "auto"}, "tool_choice"),
    ({"stop_sequences": [" "]}, "non-whitespace"),
    ({"system": [{"type": "text", "text": ""}]}, "must be non-empty"),
    ({"messages": [{"role": "user", "content": "x" * 900_000}]}, "prompt is too long"),
]


@pytest.mark.parametrize(("change", "message"), ANTHROPIC_REFUSES)
def test_anthropic_refuses(provider_server: ProviderServer, change: dict[str, Any], message: str) -> None:
    given = {"model": CLAUDE, "max_tokens": 9, "messages": ASK, **change}
    with anthropic_client(provider_server) as client, pytest.raises(anthropic.BadRequestError) as caught:
        client.post("/v1/messages", body=given, cast_to=object)
    assert message in str(caught.value)


def test_anthropic_takes_a_conversation_with_tools(provider_server: ProviderServer) -> None:
    with anthropic_client(provider_server) as client:
        client.messages.create(
            model="claude-haiku-5-5",
            max_tokens=9,
            system="Be kind.",
            messages=[*ASK, USE, USED, *ASK],
            tools=[ANTHROPIC_TOOL],
            tool_choice={"type": "tool", "name": "weather"},
        )
        with pytest.raises(anthropic.NotFoundError, match="claude-gone"):
            client.messages.create(model="claude-gone", max_tokens=9, messages=ASK)


@pytest.mark.parametrize(
    ("model", "settings", "refusal"),
    [
        ("claude-haiku-4-5", {"temperature": 0.5}, None),
        ("claude-haiku-4-5", {"temperature": 0.5, "top_p": 0.5}, "cannot both be specified"),
        ("claude-haiku-4-5", {"temperature": 1.5}, "range: 0..1"),
        ("claude-opus-5", {"temperature": 0.5}, "deprecated for this model"),
    ],
)
def test_the_older_version_of_anthropic_has_sampling_settings(
    provider_server: ProviderServer, model: str, settings: dict[str, Any], refusal: str | None
) -> None:
    body = {"model": model, "max_tokens": 9, "messages": ASK, **settings}
    headers = {"anthropic-version": "2023-06-01", "x-api-key": ANTHROPIC_KEY}
    answer = httpx.post(f"{provider_server.anthropic_url}/v1/messages", json=body, headers=headers)
    assert answer.status_code == (200 if refusal is None else 400)
    assert (refusal or "") in answer.text


HUGGINGFACE_REFUSES: list[tuple[dict[str, Any], int, str]] = [
    ({"top_p": 1.0}, 422, "`top_p` must be > 0.0 and < 1.0"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 422, "`stop` supports up to 4"),
    ({"max_tokens": 0}, 422, "strictly positive"),
    ({"model": "unknown"}, 400, "does not exist"),
]


@pytest.mark.parametrize(("change", "status", "message"), HUGGINGFACE_REFUSES)
def test_hugging_face_refuses(
    provider_server: ProviderServer, change: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        huggingface_client(provider_server).chat_completion(ASK, **{"model": LLAMA, **change})
    assert caught.value.response.status_code == status
    assert message in caught.value.response.text


async def test_the_async_sdks_read_it_too(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(text=TEXT))
    async with openai.AsyncOpenAI(
        api_key=OPENAI_KEY, base_url=provider_server.openai_url, max_retries=0
    ) as client:
        stream = await client.chat.completions.create(model=GPT, messages=ASK, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == TEXT
    async with (
        anthropic.AsyncAnthropic(
            api_key=ANTHROPIC_KEY, base_url=provider_server.anthropic_url, max_retries=0
        ) as other,
        other.messages.stream(model=CLAUDE, max_tokens=9, messages=ASK) as events,
    ):
        assert await events.get_final_text() == TEXT


def test_a_compatible_server_takes_liberties(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(text=TEXT, thinking="hm"))
    with openai_client(
        provider_server, base_url=provider_server.compatible_url, api_key="anything"
    ) as client:
        chunks = list(client.chat.completions.create(model="local", messages=ASK, stream=True))
        whole = client.chat.completions.create(model="local", messages=ASK, extra_body={"min_p": 0.1})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert whole.choices[0].message.content == TEXT
    assert whole._request_id is None
