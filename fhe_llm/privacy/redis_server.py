"""The connection to a Redis server, and whether a ledger may trust the server with what was spent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fhe_llm.errors import LedgerError, PrivacyParameterError

if TYPE_CHECKING:
    import redis

WAIT_S: Final = 10.0
"""How long a call waits for the server before it is refused; a URL may say ``?socket_timeout=``."""
CONNECTIONS: Final = 1000


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


def place_of(client: redis.Redis) -> str:
    """Where it connects to, without a name or password."""
    given = client.connection_pool.connection_kwargs
    where = given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}"
    return f"{where}/{given.get('db') or 0}"


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
