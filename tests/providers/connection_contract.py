"""What every adapter does when connections break, stall and come back: the same for all APIs, and tested on two."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest
from adapter_kit import SECRET, STREAMS, WAYS, Adapted, ask, ask_status, asked, refused, refused_as
from forking import forked
from provider_server import Failure, ProviderServer, Raw, Reply, garbage, redirect, web_page

from fhe_llm.errors import ProviderAuthError, ProviderError, ProviderTimeoutError, ProviderUnavailableError
from fhe_llm.providers import HttpProvider, circuit, exchange


class ConnectionContract(Adapted):
    """Inherited once per API."""

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

    def test_a_web_page_with_a_status_is_known_by_it(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(web_page(502))
        assert refused(ProviderUnavailableError, llm, "complete").status == 502

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_no_key_follows_a_redirect(self, server: ProviderServer, llm: HttpProvider, status: int) -> None:
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
        llm = self.open(server, timeout=0.25)
        for slow in (
            Reply(wait=60),
            Reply(text="x" * 400, shred=1, pause=0.02),
            Failure(name=self.passing, shred=1, pause=0.05),
        ):
            server.always(slow)
            error = refused_as(llm, way)
            assert not isinstance(error, ProviderTimeoutError) or "0.25 s" in str(error)
        llm.close()

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
        assert ask_status(llm, "complete") >= 500
        assert ask_status(llm, "acomplete") >= 500  # its own failure, with which it stopped trying
        assert len(server.received) == circuit.FAILURES
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

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("failing", ["cut", "silent", "garbage"])
    def test_whatever_fails_opens_it(self, server: ProviderServer, way: str, failing: str) -> None:
        answers = {"cut": Reply(cut="before_headers"), "silent": Reply(wait=60), "garbage": garbage()}
        llm = self.open(server, max_retries=0, timeout=0.05 if failing == "silent" else 15)
        server.always(answers[failing])
        for _ in range(circuit.FAILURES):
            assert "circuit" not in str(refused_as(llm, way))
        assert "circuit is open" in str(refused_as(llm, way))
        llm.close()

    def test_who_goes_away_does_not_open_it(self, server: ProviderServer, llm: HttpProvider) -> None:
        server.always(Reply(text="one two three", hold=threading.Event(), after=6))
        for _ in range(circuit.FAILURES + 1):
            stream = llm.stream(asked())
            assert next(stream).text
            stream.close()
        assert len(server.received) == circuit.FAILURES + 1

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
