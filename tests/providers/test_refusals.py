"""Errors of providers become ours, and repeat nothing that may be private."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import pytest

from fhe_llm import errors
from fhe_llm.providers.anthropic_messages import AnthropicMessages
from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.refusals import Refusal, retry_after, said, wished

OPENAI, ANTHROPIC = ChatCompletions("acme"), AnthropicMessages("acme")


def code(number: int, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": "", "type": None, "param": None, "code": None, **fields}, "n": number}


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (301, errors.ProviderError, False),
        (400, errors.ProviderRequestError, False),
        (401, errors.ProviderAuthError, False),
        (402, errors.ProviderLimitError, False),
        (403, errors.ProviderAuthError, False),
        (404, errors.ProviderRequestError, False),
        (405, errors.ProviderRequestError, False),
        (408, errors.ProviderTimeoutError, True),
        (409, errors.ProviderError, True),
        (413, errors.ProviderRequestError, False),
        (418, errors.ProviderRequestError, False),
        (422, errors.ProviderRequestError, False),
        (424, errors.ProviderError, True),
        (429, errors.ProviderLimitError, True),
        (500, errors.ProviderError, True),
        (502, errors.ProviderUnavailableError, True),
        (503, errors.ProviderUnavailableError, True),
        (504, errors.ProviderTimeoutError, True),
        (529, errors.ProviderUnavailableError, True),
        (599, errors.ProviderError, True),
        (204, errors.ProviderError, True),
    ],
)
def test_the_status_alone_decides_where_there_are_no_words(status: int, kind: type, retryable: bool) -> None:
    for body in (None, [], "x", {}, {"error": None}, {"error": {"code": 7, "type": [], "message": {}}}):
        for dialect in (OPENAI, ANTHROPIC):
            error = dialect.refusal(status, body).error("acme")
            assert type(error) is kind
            assert (error.status, error.retryable, error.provider) == (status, retryable, "acme")
            assert f"(status {status})" in str(error)


@pytest.mark.parametrize(
    ("dialect", "status", "body", "kind"),
    [
        (OPENAI, 400, code(1, code="context_length_exceeded"), errors.ProviderContextError),
        (
            OPENAI,
            400,
            code(1, message="This model's maximum context length is 9 tokens."),
            errors.ProviderContextError,
        ),
        (
            OPENAI,
            400,
            {"object": "error", "message": "maximum context length is 9", "code": 400},
            errors.ProviderContextError,
        ),
        (
            OPENAI,
            413,
            {
                "error": "Input validation error: `inputs` must have less than 9 tokens",
                "error_type": "validation",
            },
            errors.ProviderContextError,
        ),
        (
            OPENAI,
            422,
            {"error": "Input validation error: `top_p` must be > 0.0", "error_type": "validation"},
            errors.ProviderRequestError,
        ),
        (
            OPENAI,
            429,
            code(1, type="insufficient_quota", code="credit_balance_exhausted"),
            errors.ProviderLimitError,
        ),
        (OPENAI, 400, code(1, code="content_filter"), errors.ProviderRequestError),
        (
            OPENAI,
            429,
            {"error": "Model is overloaded", "error_type": "overloaded"},
            errors.ProviderUnavailableError,
        ),
        (
            ANTHROPIC,
            400,
            code(1, type="invalid_request_error", message="prompt is too long: 9 tokens > 8 maximum"),
            errors.ProviderContextError,
        ),
        (
            ANTHROPIC,
            400,
            code(1, type="invalid_request_error", message="Your credit balance is too low"),
            errors.ProviderLimitError,
        ),
        (
            ANTHROPIC,
            400,
            code(
                1, type="invalid_request_error", message="input length and `max_tokens` exceed context limit"
            ),
            errors.ProviderContextError,
        ),
        (ANTHROPIC, 0, code(1, type="overloaded_error"), errors.ProviderUnavailableError),
        (ANTHROPIC, 0, code(1, type="new_error"), errors.ProviderError),
    ],
)
def test_words_refine_it(dialect: Any, status: int, body: Any, kind: type) -> None:
    assert type(dialect.refusal(status, body).error("acme")) is kind


def test_a_context_error_is_both() -> None:
    error = OPENAI.refusal(400, code(1, code="context_length_exceeded")).error("acme")
    assert isinstance(error, errors.ContextOverflowError)
    assert isinstance(error, errors.ProviderRequestError)
    assert error.code == "provider_context"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"code": 502, "message": "x"}}, 502),
        ({"error": {"code": True}}, 500),
        ({"error": {"code": 99}}, 500),
        ({"error": {"type": "rate_limit_exceeded"}}, 429),
        ({"error": "x", "error_type": "overloaded"}, 503),
        ({"error": "x"}, 500),
    ],
)
def test_errors_within_a_stream_have_their_status_in_words(body: Any, status: int) -> None:
    assert OPENAI.refusal_in_stream(body).status == status


def test_only_names_of_errors_are_said() -> None:
    for word in ("invalid_value", "validation", "server_is_overloaded"):
        assert said(word)
    for word in (
        "Who_is_she",
        "secret",
        "sk_abc123",
        "a b",
        "",
        "_x",
        "x" * 30 + "_y",
        "sk-proj-abc",
        "a_b\n",
    ):
        assert not said(word)


def test_no_word_of_the_request_is_said_even_if_it_looks_like_a_code() -> None:
    refusal = Refusal(400, codes=("project_bluebird", "invalid_value"), parameter="messages[0].content")
    assert "'project_bluebird'" in str(refusal.error("acme"))
    error = refusal.error("acme", sent="what is project_bluebird about?")
    assert "bluebird" not in str(error)
    assert "'invalid_value', parameter 'messages[0].content'" in str(error)


def test_messages_and_parameters_are_not_repeated() -> None:
    body = code(1, message="You said: Marguerite", param="Marguerite", type="Marguerite", code="Marguerite!")
    assert "Marguerite" not in str(OPENAI.refusal(400, body).error("acme"))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1e99"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_how_long_a_provider_wants_us_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_to_wait_for() -> None:
    wait = retry_after({"retry-after": email.utils.formatdate(time.time() + 100, usegmt=True)})
    assert wait is not None
    assert 0 < wait <= 100


def test_waits_in_bodies() -> None:
    assert [wished(value) for value in (20.0, 3, "20", None, -1, 1e9, float("nan"))] == [20.0, 3.0] + [
        None
    ] * 5


def test_a_provider_may_ask_not_to_be_asked_again() -> None:
    error = Refusal(503, retry_after=3.0, final=True).error("acme")
    assert (error.retryable, error.retry_after) == (False, None)
