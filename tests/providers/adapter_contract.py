"""What every adapter does with answers, tools and refusals of its API, against a real server of it."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from adapter_kit import SECRET, STREAMS, WAYS, WEATHER, Adapted, ask, asked, refused
from provider_server import Failure, ProviderServer, Raw, Reply, ToolCall, garbage, web_page

from fhe_llm.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderRequestError,
    ProviderUnavailableError,
)
from fhe_llm.providers import HttpProvider, ProviderUsage, circuit

TEXT = "Ünïcode – „quotes“ \N{SNOWMAN} and\nlines"
BERN = ToolCall("weather", {"place": "Bern"}, id="call_1")
ZURICH = ToolCall("weather", {"place": "Zürich"}, id="call_2")


class AdapterContract(Adapted):
    """Inherited once per provider."""

    # --- answers

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("shred", [0, 1, 7])
    def test_an_answer(self, server: ProviderServer, llm: HttpProvider, way: str, shred: int) -> None:
        server.always(Reply(text=TEXT, usage=(11, 7), shred=shred, thinking="hm, so"))
        answer = ask(llm, way)
        assert (answer.text, answer.finish) == (TEXT, "stop")
        assert answer.usage == ProviderUsage(11, 7)
        assert answer.model.startswith(self.model)
        named = self.provider != "openai-compatible"
        assert (answer.request_id is not None) is named

    def test_text_comes_in_pieces(self, server: ProviderServer, llm: HttpProvider) -> None:
        held = threading.Event()
        server.always(Reply(text="one two three", hold=held, after=5))
        stream = llm.stream(asked())
        first = next(stream)
        assert "one two three".startswith(first.text)
        assert first.text
        held.set()
        assert first.text + "".join(chunk.text for chunk in stream) == "one two three"

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("finish", ["length", "content_filter"])
    def test_why_it_ended(self, server: ProviderServer, llm: HttpProvider, way: str, finish: Any) -> None:
        server.always(Reply(finish=finish))
        assert ask(llm, way).finish == finish

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("shred", [0, 3])
    def test_tool_calls(self, server: ProviderServer, llm: HttpProvider, way: str, shred: int) -> None:
        server.always(Reply(text="I look.", tool_calls=(BERN, ZURICH), shred=shred))
        answer = ask(llm, way, asked(tools=(WEATHER,), tool_choice="required"))
        assert (answer.text, answer.finish) == ("I look.", "tool_calls")
        made = [(call.id, call.name, json.loads(call.arguments)) for call in answer.tool_calls]
        assert made == [
            ("call_1", "weather", {"place": "Bern"}),
            ("call_2", "weather", {"place": "Zürich"}),
        ]

    def test_a_call_without_arguments_is_an_empty_object(
        self, server: ProviderServer, llm: HttpProvider
    ) -> None:
        server.always(Reply(text="", tool_calls=(ToolCall("weather"),)))
        for way in WAYS:
            (call,) = ask(llm, way, asked(tools=(WEATHER,))).tool_calls
            assert json.loads(call.arguments) == {}
            assert call.id

    def test_a_conversation_with_tools_is_one_the_api_takes(
        self, server: ProviderServer, llm: HttpProvider
    ) -> None:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in (BERN, ZURICH)
        ]
        request = asked(
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Weather in Bern and Zürich?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "18 degrees", "tool_call_id": "call_1"},
            {"role": "tool", "content": "", "tool_call_id": "call_2"},
            {"role": "user", "content": "And?"},
            tools=(WEATHER,),
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
        assert ask(llm, "complete", request).text
        sent = server.received_text()
        for word in ("Be short.", "Weather in Bern and Zürich?", "18 degrees", "call_2", "And?"):
            assert word in sent

    def test_settings_are_sent_and_only_those(self, server: ProviderServer, llm: HttpProvider) -> None:
        ask(llm, "complete", asked(max_tokens=9, temperature=0.5, stop=("a", "b")))
        body = server.received[0].json
        assert body["temperature"] == 0.5
        assert body.get("stop") == ["a", "b"] or body.get("stop_sequences") == ["a", "b"]
        assert 9 in (body.get("max_tokens"), body.get("max_completion_tokens"))
        assert not {"top_p", "seed", "tools", "tool_choice", "stream"} & set(body)

    def test_a_seed_is_sent_or_refused(self, server: ProviderServer, llm: HttpProvider) -> None:
        if self.has_seed:
            ask(llm, "complete", asked(seed=7))
            assert server.received[0].json["seed"] == 7
        else:
            with pytest.raises(ProviderError, match=r"^cannot send seed to \w+: .* no such setting"):
                llm.complete(asked(seed=7))
            assert server.received == []

    def test_nothing_is_sent_that_fails_the_checks(self, server: ProviderServer, llm: HttpProvider) -> None:
        for bad in (
            asked(temperature=float("nan")),
            asked(extra={"stream": True}),
            asked(tool_choice="auto"),
        ):
            for way in WAYS:
                with pytest.raises(ProviderError, match=r"^cannot send .*: .*\. \w+.*\.$"):
                    ask(llm, way, bad)
            with pytest.raises(ProviderError):
                llm.check(bad)
        assert server.received == []

    # --- refusals

    @pytest.mark.parametrize("way", WAYS)
    def test_every_refusal_has_its_class_and_its_number_of_tries(
        self, server: ProviderServer, llm: HttpProvider, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(circuit.Circuit, "_failed", lambda *_: None)  # they would open it
        for name, (kind, again) in self.failures.items():
            sent = len(server.received)
            echo = f"You sent {SECRET} with {self.key}"
            server.always(Failure(name=name, message=None if name in self.told_by_message else echo))
            error = refused(kind, llm, way)
            assert str(error).startswith(f"cannot get an answer from {self.provider}: "), name
            assert error.provider == self.provider
            assert (error.retryable, len(server.received) - sent) == (again, 3 if again else 1), name

    def test_an_echo_is_not_taken_for_a_code(self, server: ProviderServer, llm: HttpProvider) -> None:
        word = "project_bluebird"
        error = {"type": word, "code": word, "param": word, "message": word}
        server.always(Raw(status=400, body=json.dumps({"type": "error", "error": error}).encode()))
        request = asked({"role": "user", "content": f"What is {word}?"})
        assert word not in str(refused(ProviderRequestError, llm, "complete", request))
        assert word in str(refused(ProviderRequestError, llm, "complete"))

    @pytest.mark.parametrize("way", WAYS)
    def test_a_passing_failure_is_retried_with_the_same_bytes(
        self, server: ProviderServer, llm: HttpProvider, way: str
    ) -> None:
        server.next(
            Failure(name=self.passing, retry_after="0.01"), Failure(name=self.passing), Reply(text="at last")
        )
        assert ask(llm, way).text == "at last"
        bodies = [request.body for request in server.received]
        assert len(bodies) == 3
        assert len(set(bodies)) == 1

    def test_a_wait_beyond_the_deadline_is_not_begun(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(Failure(name=self.passing, retry_after="3600"))
        for way in WAYS:
            before = len(server.received)
            error = refused(self.failures[self.passing][0], llm, way)
            assert (error.retry_after, error.status) == (3600.0, 429)
            assert len(server.received) == before + 1

    def test_without_retries_there_is_one_try(self, server: ProviderServer) -> None:
        server.always(Failure(name=self.passing))
        llm = self.open(server, max_retries=0)
        refused(self.failures[self.passing][0], llm, "complete")
        assert len(server.received) == 1
        llm.close()

    # --- streams and bodies that are spoilt

    @pytest.mark.parametrize("way", STREAMS)
    def test_a_stream_without_its_end_is_no_answer(
        self, server: ProviderServer, llm: HttpProvider, way: str
    ) -> None:
        server.always(Reply(text="one two three", end=False))
        error = refused(ProviderUnavailableError, llm, way)
        assert "ended before the answer did" in str(error)

    @pytest.mark.parametrize("way", STREAMS)
    def test_an_error_in_mid_stream(self, server: ProviderServer, llm: HttpProvider, way: str) -> None:
        message = f"{SECRET} {self.key}"
        server.always(Reply(text="one two", pause=0.01, failing=Failure(name=self.down, message=message)))
        refused(self.failures[self.down][0], llm, way)
        assert len(server.received) == 1

    @pytest.mark.parametrize("way", STREAMS)
    def test_an_error_as_the_first_event_is_retried(
        self, server: ProviderServer, llm: HttpProvider, way: str
    ) -> None:
        server.next(Reply(text="", failing=Failure(name=self.down)), Reply(text="at last"))
        assert ask(llm, way).text == "at last"

    @pytest.mark.parametrize("way", WAYS)
    def test_what_is_no_answer_is_said_to_be_none(
        self, server: ProviderServer, llm: HttpProvider, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(circuit.Circuit, "_failed", lambda *_: None)  # they would open it
        for spoilt in (
            garbage(),
            web_page(),
            Raw(body=b"[1]"),
            Raw(body=b"{}"),
            Raw(body=b"[" * 100_000),
            Raw(body=b"data: \xff\xfe\n\n", content_type="text/event-stream"),
            Raw(body=f"data: {{{SECRET}\n\n".encode(), content_type="text/event-stream"),
            Raw(headers={"content-encoding": "gzip"}),
        ):
            server.always(spoilt)
            before = len(server.received)
            error = refused(ProviderError, llm, way)
            assert "cannot be read" in str(error)
            assert (error.retryable, len(server.received) - before) == (False, 1)

    def test_a_wrong_key_is_said_once(self, server: ProviderServer) -> None:
        llm = self.open(server, api_key="sk-wrong-0123456789")
        if self.key is None:
            assert ask(llm, "complete").text
            assert server.received[0].header("authorization") == "Bearer sk-wrong-0123456789"
        else:
            error = refused(ProviderAuthError, llm, "complete")
            assert "sk-wrong" not in str(error)
        assert len(server.received) == 1
        llm.close()
