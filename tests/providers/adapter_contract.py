"""What every adapter does against a real server of its API: answers, tools, refusals, cut and slow connections."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, ClassVar

import pytest
from adapter_kit import SECRET, STREAMS, WAYS, WEATHER, ask, asked, assert_silent, refused
from forking import forked
from provider_server import Failure, ProviderServer, Raw, Reply, ToolCall, garbage, redirect, web_page

from fhe_llm.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from fhe_llm.providers import HttpProvider, ProviderUsage, circuit, exchange, open_provider, retries

TEXT = "Ünïcode – „quotes“ \N{SNOWMAN} and\nlines"
BERN = ToolCall("weather", {"place": "Bern"}, id="call_1")
ZURICH = ToolCall("weather", {"place": "Zürich"}, id="call_2")


class AdapterContract:
    """Inherited once per provider. ``failures`` are the server's names of errors: the class raised, and whether the
    request is sent again."""

    provider: ClassVar[str]
    model: ClassVar[str]
    key: ClassVar[str | None]
    failures: ClassVar[Mapping[str, tuple[type[ProviderError], bool]]]
    passing: ClassVar[str]
    """A failure that passes, with status 429."""
    down: ClassVar[str]
    """One that counts for the circuit."""
    has_seed: ClassVar[bool] = True

    def url(self, server: ProviderServer) -> str:
        """Where the server speaks this API."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("FIRST_WAIT", "JITTER"):
            monkeypatch.setattr(retries, name, 0.001)

    @pytest.fixture
    def server(self, provider_server: ProviderServer) -> ProviderServer:
        return provider_server

    @pytest.fixture
    def llm(self, server: ProviderServer) -> Iterator[HttpProvider]:
        opened = self.open(server)
        yield opened
        opened.close()

    def open(self, server: ProviderServer, **settings: Any) -> HttpProvider:
        given = {"api_key": self.key, "base_url": self.url(server), "timeout": 15.0, **settings}
        opened = open_provider(self.provider, self.model, **given)
        assert isinstance(opened, HttpProvider)
        return opened

    # --- answers

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("shred", [0, 1, 7])
    def test_an_answer(self, server: ProviderServer, llm: HttpProvider, way: str, shred: int) -> None:
        server.always(Reply(text=TEXT, usage=(11, 7), shred=shred, thinking="hm, so"))
        answer = ask(llm, way)
        assert (answer.text, answer.finish) == (TEXT, "stop")
        assert answer.usage == ProviderUsage(11, 7)
        assert answer.model == self.model
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
            server.always(Failure(name=name, message=None if self._told_by_message(name) else echo))
            error = refused(kind, llm, way)
            assert str(error).startswith(f"cannot get an answer from {self.provider}: "), name
            assert error.provider == self.provider
            assert (error.retryable, len(server.received) - sent) == (again, 3 if again else 1), name

    def _told_by_message(self, name: str) -> bool:
        """Errors that have no code of their own."""
        return False

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

    # --- connections that break

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("cut", ["before_headers", "in_headers", "in_body"])
    @pytest.mark.parametrize("way", WAYS)
    def test_a_cut_before_the_first_piece_is_retried(
        self, server: ProviderServer, llm: HttpProvider, way: str, cut: Any, reset: bool
    ) -> None:
        server.next(Reply(cut=cut, reset=reset, after=1), Reply(text="whole"))
        assert ask(llm, way).text == "whole"
        assert len(server.received) == 2

    @pytest.mark.parametrize("way", STREAMS)
    def test_a_cut_after_it_is_not(self, server: ProviderServer, llm: HttpProvider, way: str) -> None:
        server.always(Reply(text="one two three four", cut="in_body", after=6, pause=0.01))
        error = refused(ProviderUnavailableError, llm, way)
        assert error.retryable
        assert len(server.received) == 1

    @pytest.mark.parametrize("way", WAYS)
    def test_cut_again_and_again(self, server: ProviderServer, llm: HttpProvider, way: str) -> None:
        server.always(Reply(cut="before_headers"))
        refused(ProviderUnavailableError, llm, way)
        assert len(server.received) == 3

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
        self, server: ProviderServer, llm: HttpProvider, way: str
    ) -> None:
        for spoilt in (
            garbage(),
            web_page(),
            Raw(body=b"[1]"),
            Raw(body=b"{}"),
            Raw(body=b"[" * 100_000),
            Raw(body=f'{{"{SECRET}": 1'.encode(), content_type="text/event-stream"),
            Raw(body=b"data: \xff\xfe\n\n", content_type="text/event-stream"),
            Raw(headers={"content-encoding": "gzip"}),
        ):
            server.always(spoilt)
            error = refused(
                ProviderUnavailableError if "stream" in way and spoilt.body[:2] == b'{"' and "event" in spoilt.content_type else ProviderError,
                llm,
                way,
            )
            assert error.retryable is (error.status == 0 and isinstance(error, ProviderUnavailableError))

    def test_a_web_page_with_a_status_is_known_by_it(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(web_page(502))
        assert refused(ProviderUnavailableError, llm, "complete").status == 502

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_no_key_follows_a_redirect(
        self, server: ProviderServer, llm: HttpProvider, status: int
    ) -> None:
        with ProviderServer() as elsewhere:
            server.always(redirect(self.url(elsewhere) + "/chat/completions", status))
            for way in WAYS:
                assert "redirects" in str(refused(ProviderError, llm, way))
            assert elsewhere.recorder.connections == 0
            assert len(server.received) == len(WAYS)

    def test_an_answer_has_a_bound(
        self, server: ProviderServer, llm: HttpProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exchange, "MAX_ANSWER_BYTES", 20_000)
        server.always(Reply(text="x" * 30_000, piece=1000))
        for way in WAYS:
            assert "longer than 20000 bytes" in str(refused(ProviderError, llm, way))
        server.always(Raw(body=b"data: " + b"x" * 30_000, content_type="text/event-stream"))
        for way in STREAMS:
            assert "longer than 20000 bytes" in str(refused(ProviderError, llm, way))

    def test_a_long_error_is_not_read_to_its_end(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(Raw(status=400, body=b'{"error": "' + b"x" * (1 << 20) + b'"}'))
        for way in WAYS:
            assert ask_status(llm, way) == 400

    def test_nobody_there(self, server: ProviderServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        llm = self.open(server, base_url=f"http://127.0.0.1:{port}/v1")
        for way in WAYS:
            error = refused(ProviderUnavailableError, llm, way)
            assert "no connection" in str(error) or "circuit" in str(error)
        llm.close()

    # --- time

    @pytest.mark.parametrize("way", WAYS)
    def test_a_deadline_is_kept_however_slowly_bytes_come(self, server: ProviderServer, way: str) -> None:
        llm = self.open(server, timeout=0.4)
        never = threading.Event()
        for slow in (
            Reply(wait=60),
            Reply(hold=never, after=0),
            Reply(text="x" * 400, shred=1, pause=0.02),
            Failure(name=self.passing, shred=1, pause=0.05),
        ):
            server.always(slow)
            error = self._late(llm, way)
            assert not isinstance(error, ProviderTimeoutError) or "0.4 s" in str(error)
        llm.close()

    def _late(self, llm: HttpProvider, way: str) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            ask(llm, way)
        assert_silent(caught.value)
        return caught.value

    @pytest.mark.parametrize("way", STREAMS)
    def test_a_stream_that_falls_silent(self, server: ProviderServer, way: str) -> None:
        llm = self.open(server, chunk_timeout=0.2)
        server.always(Reply(text="one two three", hold=threading.Event(), after=6))
        error = refused(ProviderTimeoutError, llm, way)
        assert "stopped for 0.2 s" in str(error)
        assert server.received[0].hung_up.wait(20)
        llm.close()

    def test_closing_a_stream_ends_the_request(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(Reply(text="one two three", hold=threading.Event(), after=6))
        stream = llm.stream(asked())
        assert next(stream).text
        stream.close()
        assert server.received[0].hung_up.wait(20)

        async def first_only() -> None:
            async with aclosing(llm.astream(asked())) as pieces:
                assert (await anext(pieces)).text
            assert await asyncio.to_thread(server.received[1].hung_up.wait, 20)

        asyncio.run(first_only())

    def test_cancelling_a_task_ends_the_request(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(Reply(hold=threading.Event(), after=0))

        async def cancelled() -> None:
            task = asyncio.create_task(llm.acomplete(asked()))
            await asyncio.to_thread(server.recorder.wait_for, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.received[0].hung_up.wait, 20)

        asyncio.run(cancelled())
        assert len(server.received) == 1

    # --- the circuit

    def test_a_provider_that_is_down_is_left_alone_and_tried_again(
        self, server: ProviderServer, llm: HttpProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.always(Failure(name=self.down))
        ask_status(llm, "complete")
        ask_status(llm, "acomplete")
        assert len(server.received) == circuit.FAILURES  # the second call stopped trying when it opened
        other = self.open(server)
        for way in WAYS:
            error = refused(ProviderUnavailableError, other, way)
            assert "circuit is open" in str(error)
            assert 0 < error.retry_after <= circuit.REST_SECONDS
        assert len(server.received) == circuit.FAILURES
        shared = circuit.shared_circuit(self.provider, other._address)
        monkeypatch.setattr(shared, "_clock", lambda: shared._opened_at + circuit.REST_SECONDS)
        server.always(Reply(text="back"))
        assert ask(other, "astream").text == "back"
        assert ask(llm, "complete").text == "back"
        other.close()

    def test_refusals_do_not_open_it(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(Failure(name=self.passing))
        for _ in range(circuit.FAILURES):
            ask_status(llm, "complete")
        server.always(Reply(text="fine"))
        assert ask(llm, "complete").text == "fine"

    # --- keys, connections, threads

    def test_the_key_is_in_one_header_and_nowhere_else(
        self, server: ProviderServer, llm: HttpProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        server.next(Failure(name=self.down))
        ask(llm, "complete")
        ask(llm, "astream")
        if self.key is not None:
            assert server.received_bytes().count(self.key.encode()) == 3
            assert self.key not in caplog.text + repr(llm) + repr(vars(llm))
        assert SECRET not in caplog.text

    def test_connections_are_used_again(self, server: ProviderServer, llm: HttpProvider) -> None:
        for way in ("complete", "stream", "stream", "complete"):
            ask(llm, way)
        assert server.recorder.connections == 1

        async def twice() -> None:
            for _ in range(2):
                await llm.acomplete(asked())
                async with aclosing(llm.astream(asked())) as stream:
                    assert [chunk async for chunk in stream]

        asyncio.run(twice())
        assert server.recorder.connections == 2

    def test_threads_and_loops_share_one_object(self, server: ProviderServer, llm: HttpProvider) -> None:
        ways = WAYS * 4
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda way: ask(llm, way).text, ways))
        assert len(set(answers)) == 1
        assert len(server.received) == len(ways)

    def test_a_forked_child_has_connections_of_its_own(
        self, server: ProviderServer, llm: HttpProvider
    ) -> None:
        ask(llm, "complete")
        with forked(lambda: ask(llm, "complete").text.encode()) as child:
            assert ask(llm, "stream").text.encode() == child()
        assert server.recorder.connections == 2

    def test_a_wrong_key_is_said_once(self, server: ProviderServer) -> None:
        if self.key is None:
            pytest.skip("this server takes no key")
        llm = self.open(server, api_key="sk-wrong-0123456789")
        error = refused(ProviderAuthError, llm, "complete")
        assert "sk-wrong" not in str(error)
        assert len(server.received) == 1
        llm.close()

    def test_a_key_may_change_between_requests(self, server: ProviderServer) -> None:
        keys = iter([self.key or "k1", "other", self.key or "k3"])
        llm = self.open(server, api_key=lambda: next(keys))
        ask(llm, "complete")
        if self.key is not None:
            refused(ProviderAuthError, llm, "acomplete")
        else:
            ask(llm, "acomplete")
        ask(llm, "astream")
        llm.close()


def ask_status(llm: HttpProvider, way: str) -> int:
    """The status of the error that comes."""
    with pytest.raises(ProviderError) as caught:
        ask(llm, way)
    assert_silent(caught.value)
    return caught.value.status
