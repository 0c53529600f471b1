"""The connections to a Redis server, and whether a ledger may trust the server with what was spent."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fhe_llm.errors import LedgerError, PrivacyParameterError

if TYPE_CHECKING:
    import redis

T = TypeVar("T")

WAIT_S: Final = 10.0
"""How long a call waits for the server before it is refused; a URL may say ``?socket_timeout=``."""
CONNECTIONS: Final = 1000
MOVED: Final = re.compile(r"(?:MOVED )?\d+ (?P<host>\S*):(?P<port>\d+)")


class Clients:
    """A client for each process: a forked child may find the locks of its parent's pool taken for ever.

    In a cluster, all keys of a ledger lie at one node; which one that is, any node says.
    """

    def __init__(self, url: str) -> None:
        self._connect: Callable[[], redis.Redis] = lambda: connected(url)
        self._clients: dict[int, redis.Redis] = {}
        given = self.own().connection_pool.connection_kwargs
        where = given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}"
        self._place = f"{where}/{given.get('db') or 0}"

    def __str__(self) -> str:
        return self._place

    def own(self) -> redis.Redis:
        """This process' client."""
        return self._clients.get(os.getpid()) or self._clients.setdefault(os.getpid(), self._connect())

    def sent(self, ask: Callable[[redis.Redis], T]) -> T:
        """``ask`` it; where the connection breaks, once more: whether it was carried out the first time is not known.

        So nothing may be asked that must not be done twice. Raises :class:`redis.RedisError`.
        """
        import redis

        try:
            return self._followed(ask)
        except (redis.ConnectionError, redis.TimeoutError):
            self._clients.pop(os.getpid(), None)  # in a cluster, back to the node that the URL names
            return self._followed(ask)

    def _followed(self, ask: Callable[[redis.Redis], T]) -> T:
        import redis

        try:
            return ask(self.own())
        except redis.ResponseError as error:
            moved = MOVED.fullmatch(str(error))
            if moved is None:
                raise
            self._clients[os.getpid()] = elsewhere(self.own(), moved["host"], int(moved["port"]))
            return ask(self.own())

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.own().connection_pool.disconnect(inuse_connections=False)


def connected(url: str) -> redis.Redis:
    """A client for ``url``, which sends each command once.

    Raises :class:`LedgerError` where redis is not installed, :class:`PrivacyParameterError` for a URL that is none.
    """
    try:
        import redis
        from redis import UsernamePasswordCredentialProvider
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise LedgerError(
            "cannot open a ledger on Redis: redis is not installed. Run: pip install 'fhe-llm[redis]'."
        ) from None
    try:
        pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=WAIT_S,
            socket_connect_timeout=WAIT_S,
            max_connections=CONNECTIONS,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )
        options = pool.connection_kwargs
        name, password = options.pop("username", None), options.pop("password", None)
        if name or password:  # some versions of redis show the options of a client, and with them a password
            options["credential_provider"] = UsernamePasswordCredentialProvider(name, password)
        pool.connection_class(**options)  # refuses options that it does not know
    except (ValueError, TypeError, AttributeError, redis.RedisError):
        raise PrivacyParameterError(  # the cause may quote the password
            "cannot read the URL of a ledger: it is malformed, or an option in it is unknown. "
            "Write redis://user:password@host:port/number, with special characters as %40 and the like."
        ) from None
    return redis.Redis(connection_pool=pool)


def elsewhere(client: redis.Redis, host: str, port: int) -> redis.Redis:
    """A client like this one, for another node of the cluster; ``""`` is the same host."""
    import redis

    pool = client.connection_pool
    options = {**pool.connection_kwargs, "port": port, **({"host": host} if host else {})}
    again = redis.ConnectionPool(pool.connection_class, max_connections=CONNECTIONS, **options)
    return redis.Redis(connection_pool=again)


def check_durable(client: redis.Redis, place: str) -> None:
    """Raises :class:`LedgerError` where the server drops keys when memory is short, or writes nothing to disk.

    What a server does not let us read is not checked.
    """
    memory, persistence = _info(client, "memory"), _info(client, "persistence")
    policy = _text(memory.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):  # keys of a ledger have no expiry, so that volatile-* never takes one
        raise LedgerError(
            f"cannot use the ledger {place}: its server drops keys when memory is short ({policy}). "
            "Set maxmemory-policy noeviction."
        )
    if persistence.get("aof_enabled") == 0 and _setting(client, "save") == "":
        raise LedgerError(
            f"cannot use the ledger {place}: its server writes nothing to disk, so that a restart would forget what "
            "was spent. Set appendonly yes and appendfsync always."
        )


def _info(client: redis.Redis, section: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with _allowed():
        found = client.info(section)
    return found


def _setting(client: redis.Redis, name: str) -> str | None:
    found: dict[Any, Any] = {}
    with _allowed():
        found = client.config_get(name)
    return next((_text(value) for value in found.values()), None)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """Go on where the server refuses a command: it is renamed, or this user may not use it."""
    import redis

    with contextlib.suppress(redis.ResponseError):
        yield
