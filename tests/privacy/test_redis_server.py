"""Which servers are trusted with a ledger, what a URL may say, and that nobody reads a password."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_kit import spent, work
from redis_process import RedisProcess, free_port, redis_server

from fhe_llm.errors import LedgerError, PrivacyParameterError
from fhe_llm.privacy.ledger import Budget
from fhe_llm.privacy.ledger_place import open_ledger
from fhe_llm.privacy.redis_ledger import RedisLedger

SECRET = "s3cret/p@ss word"
QUOTED = "s3cret%2Fp%40ss%20word"
PAGE = Path(__file__).parents[2] / "docs" / "privacy-ledger.md"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[RedisProcess]:
    with redis_server("--requirepass", SECRET) as server:
        yield server


@contextlib.contextmanager
def configured(server: RedisProcess, **settings: str) -> Iterator[None]:
    """The server with other settings for a while."""
    before = {name.replace("_", "-"): value for name, value in settings.items()}
    with server.client() as client:
        for name, value in before.items():
            before[name] = client.config_get(name)[name]
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


class TestServersThatAreNotTrusted:
    """Refused at the open, or at the first write."""

    @pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
    def test_one_that_may_drop_any_key(self, server: RedisProcess, policy: str) -> None:
        with (
            configured(server, maxmemory_policy=policy),
            pytest.raises(LedgerError, match=rf"drops keys .*\({policy}\)\. Set maxmemory-policy noeviction"),
        ):
            RedisLedger(server.url)

    @pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl"])
    def test_one_that_drops_only_keys_that_expire_is_fine(self, server: RedisProcess, policy: str) -> None:
        with configured(server, maxmemory_policy=policy), RedisLedger(server.url) as ledger:
            ledger.charge("ann", work(1), key=policy)
            with server.client() as client:
                assert {client.ttl(key) for key in client.keys()} == {-1}  # noqa: SIM118

    def test_one_that_writes_nothing_to_disk(self, server: RedisProcess) -> None:
        with (
            configured(server, appendonly="no"),
            pytest.raises(LedgerError, match=r"writes nothing to disk.*Set appendonly yes and appendfsync always"),
        ):
            RedisLedger(server.url)

    def test_one_that_only_takes_snapshots_is_used(self, server: RedisProcess) -> None:
        with configured(server, appendonly="no", save="3600 1"), RedisLedger(server.url) as ledger:
            assert ledger.principals() in ((), ("ann",))

    def test_one_that_does_not_let_us_ask_is_used(self, server: RedisProcess) -> None:
        self.as_user(server, "~* +@all -info -config")

    def test_the_user_on_the_page_may_do_all_that_a_ledger_needs(self, server: RedisProcess) -> None:
        (rights,) = re.findall(r"^ACL SETUSER ledger on >PASSWORD (.*)$", PAGE.read_text(), re.MULTILINE)
        self.as_user(server, rights)

    def as_user(self, server: RedisProcess, rights: str) -> None:
        """All a ledger can do, by a user with these rights."""
        with server.client() as client:
            client.flushall()
            client.execute_command("ACL", "SETUSER", "ledger", "reset", "on", f">{SECRET}", *rights.split())
            client.script_flush()
        with RedisLedger(f"redis://ledger:{QUOTED}@127.0.0.1:{server.port}/0") as ledger:
            ledger.set_budget("ann", Budget("rounds", 5))
            ledger.commit(ledger.reserve("ann", work(2), key="k"), work(1))
            ledger.release(ledger.reserve("ann", work(2), key="l"))
            assert ledger.budgets("ann") == (Budget("rounds", 5),)
            assert spent(ledger) == {("rounds", "lifetime"): 1}
            assert len(list(ledger.history())) == len(list(ledger.history("ann"))) == 5
            assert ledger.principals() == ("ann",)

    def test_one_without_memory(self, server: RedisProcess) -> None:
        with RedisLedger(server.url) as ledger:
            ledger.set_budget("oom", Budget("rounds", 5))
            made = ledger.reserve("oom", work(1), key="k")
            with configured(server, maxmemory="1"):
                for call in (
                    lambda: ledger.charge("oom", work(1), key="l"),
                    lambda: ledger.commit(made),
                    lambda: ledger.release(made),
                    lambda: ledger.set_budget("oom", Budget("rounds", 9)),
                ):
                    with pytest.raises(LedgerError, match=r"OOM command not allowed.*Nothing was released"):
                        call()
                assert spent(ledger, "oom") == {("rounds", "lifetime"): 1}
            ledger.commit(made)
            assert [entry.action for entry in ledger.history("oom")] == ["budget", "reserve", "commit"]

    def test_a_replica_may_be_read_and_not_written(self, server: RedisProcess) -> None:
        with RedisLedger(server.url) as ledger, server.client() as client:
            ledger.charge("rep", work(1), key="k")
            client.replicaof("127.0.0.1", str(free_port()))
            try:
                with pytest.raises(LedgerError, match="READONLY"):
                    ledger.charge("rep", work(1), key="l")
                with RedisLedger(server.url) as reader:
                    assert spent(reader, "rep") == {("rounds", "lifetime"): 1}
                with pytest.raises(LedgerError, match="READONLY"):
                    RedisLedger(server.url, prefix="begins here")
            finally:
                client.replicaof("NO", "ONE")

    def test_one_with_too_few_replicas(self, server: RedisProcess) -> None:
        with RedisLedger(server.url) as ledger, configured(server, min_replicas_to_write="1"):
            with pytest.raises(LedgerError, match="NOREPLICAS"):
                ledger.charge("few", work(1), key="k")
            assert "few" not in ledger.principals()

    def test_one_that_is_busy_for_too_long(self, server: RedisProcess) -> None:
        with RedisLedger(f"{server.url}&socket_timeout=0.2") as ledger, server.client() as client:
            client.execute_command("CLIENT", "PAUSE", "700", "ALL")
            with pytest.raises(LedgerError, match="Timeout"):
                ledger.charge("slow", work(1), key="k")
            client.execute_command("PING")  # answered when the pause is over
            ledger.charge("slow", work(1), key="k")
            assert spent(ledger, "slow") == {("rounds", "lifetime"): 1}

    def test_one_that_is_no_redis(self, tmp_path: object) -> None:
        import socket
        import threading

        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        with connection:
                            connection.recv(1000)
                            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            with pytest.raises(LedgerError, match="cannot use the ledger"):
                RedisLedger(f"redis://127.0.0.1:{listener.getsockname()[1]}")
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


class TestPasswords:
    """They open the ledger, and are nowhere to be read."""

    def urls(self, locked: RedisProcess, word: str) -> list[str]:
        return [
            f"redis://:{word}@127.0.0.1:{locked.port}/1",
            f"redis://default:{word}@127.0.0.1:{locked.port}/1",
            f"redis://127.0.0.1:{locked.port}/1?password={word}",
            f"unix://{locked.socket}?db=1&password={word}",
        ]

    def test_the_right_one_opens(self, locked: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        for url in self.urls(locked, QUOTED):
            with open_ledger(url) as ledger:
                ledger.charge("ann", work(1), key="k")
                assert "s3cret" not in repr(ledger) + str(ledger) + repr(vars(ledger))
                assert "s3cret" not in repr(vars(ledger._store))  # type: ignore[attr-defined]
        assert "s3cret" not in caplog.text

    def test_a_wrong_one_and_none_are_refused_and_not_told(
        self, locked: RedisProcess, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with pytest.raises(LedgerError, match=r"[Aa]uthentication required"):
            RedisLedger(f"redis://127.0.0.1:{locked.port}")
        for url in self.urls(locked, f"wrong-{QUOTED}"):
            with pytest.raises(LedgerError, match="invalid username-password pair") as refused:
                RedisLedger(url)
            assert "s3cret" not in "".join(traceback.format_exception(refused.value))
        assert "s3cret" not in caplog.text

    def test_it_is_not_told_where_nobody_listens(self) -> None:
        with pytest.raises(LedgerError) as refused:
            RedisLedger(f"redis://me:{QUOTED}@127.0.0.1:{free_port()}/3")
        told = "".join(traceback.format_exception(refused.value))
        assert "s3cret" not in told
        assert "me:" not in str(refused.value)

    @pytest.mark.parametrize(
        "url",
        [
            "redis://me:s3cret/pass@127.0.0.1:6379/0",  # the host ends at the slash
            "redis://me:s3cret#pass@127.0.0.1:6379/0",
            "redis://me:[s3cret@127.0.0.1:6379/0",
            "redis://me:s3cret@127.0.0.1:port/0",
            "redis://me:s3cret@127.0.0.1:99999/0",
            "redis://me:s3cret@127.0.0.1:6379/0?socket_timeout=soon",
            "redis://me@127.0.0.1:6379/0?pasword=s3cret",
            "rediss://me:s3cret@127.0.0.1:6379/0?ssl_certs_reqs=s3cret",
        ],
    )
    def test_a_malformed_url_is_not_quoted(self, url: str) -> None:
        with pytest.raises((PrivacyParameterError, LedgerError)) as refused:
            RedisLedger(url)
        told = "".join(traceback.format_exception(refused.value))
        assert "s3cret" not in told.replace(url, "")


def test_without_the_package_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from fhe_llm.errors import LedgerError\n"
        "from fhe_llm.privacy.ledger_place import open_ledger\n"
        "from fhe_llm.privacy.redis_ledger import RedisLedger\n"
        "for make in (RedisLedger, open_ledger):\n"
        "    try: make('redis://me:s3cret@localhost')\n"
        "    except LedgerError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("Run: pip install 'fhe-llm[redis]'.\n") == 2
    assert "s3cret" not in done.stdout + done.stderr


def test_redis_loads_only_when_a_ledger_is_opened_there() -> None:
    code = "import sys, fhe_llm.privacy.redis_ledger; assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
