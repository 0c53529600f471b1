"""One ledger at a Redis server: its keys, the script that alone touches them, and what the server must be like."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fhe_llm.errors import LedgerError, PrivacyParameterError
from fhe_llm.privacy.ledger import WINDOW_MS
from fhe_llm.privacy.recording import plain
from fhe_llm.privacy.redis_server import Clients, check_durable

if TYPE_CHECKING:
    import redis

FORMAT: Final = "1"
MAX_PREFIX: Final = 64
KEYS: Final = ("meta", "history", "principals", "budgets:", "counters:", "charges:", "entries:")
"""The last four are one principal's. ``meta`` has format, identity and number of entries; ``history`` is a stream, of
which ``entries:`` lists the principal's; ``principals`` has the size of each one's four keys."""


class RedisStore:
    """Calls the script, and says in a :class:`LedgerError` what went wrong; a password is never part of it.

    All keys carry the hash tag ``{prefix}``, so that a cluster keeps them on one node.
    """

    def __init__(self, url: str, prefix: str) -> None:
        if not 0 < len(prefix) <= MAX_PREFIX or not prefix.isprintable() or set("{}") & set(prefix):
            raise PrivacyParameterError(
                f"cannot use this prefix: it must be 1 to {MAX_PREFIX} printable characters without braces. Change it."
            )
        self._prefix = prefix
        self._clients = Clients(url)
        self._closed = False
        self._place = f"{prefix} at {self._clients}"
        self._script = importlib.resources.files("fhe_llm.privacy").joinpath("ledger.lua").read_text("utf-8")
        self._digest = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._seen = 0
        self._identity = secrets.token_hex(16)
        with self._told():
            self._clients.sent(lambda client: client.exists(f"{{{prefix}}}:meta"))  # finds the node in a cluster
            self._clients.sent(lambda client: check_durable(client, self._place))
        _, self._identity = self.call("open", "")

    def __str__(self) -> str:
        return self._place

    def call(self, step: str, principal: str, **fields: Any) -> list[Any]:
        """One step of the script for one principal, or for none (``""``)."""
        keys = [f"{{{self._prefix}}}:{key}{principal if key.endswith(':') else ''}" for key in KEYS]
        asked = {
            "step": step,
            "principal": principal,
            "identity": self._identity,
            "format": FORMAT,
            "seen": self._seen,
            "windows": list(WINDOW_MS.items()),
            **fields,
        }
        if self._closed:
            raise LedgerError(f"cannot use the ledger {self}: it was closed. Open it anew.")
        with self._told():
            answer: list[Any] = text_of(self._clients.sent(lambda client: self._run(client, *keys, plain(asked))))
            self._seen = max(self._seen, int(answer.pop()))
        self._check(answer)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._clients.close()

    def _run(self, client: redis.Redis, *arguments: str) -> Any:
        import redis

        try:
            return client.evalsha(self._digest, len(KEYS), *arguments)
        except redis.exceptions.NoScriptError:
            return client.eval(self._script, len(KEYS), *arguments)

    def _check(self, answer: list[Any]) -> None:
        said, what = answer[0], answer[1] if len(answer) > 1 else ""
        if said == "damaged":
            raise self.damaged(what)
        if said == "replaced":
            raise LedgerError(
                f"cannot use the ledger {self}: it was deleted, or another one was put in its place. Open it anew."
            )
        if said == "lost":
            raise LedgerError(
                f"cannot use the ledger {self}: the server lost {what} entries that it had confirmed. Restore them; "
                "to go on without them, open it anew."
            )
        if said == "format":
            raise LedgerError(
                f"cannot use the ledger {self}: another version wrote it ({what}, this one knows {FORMAT}). "
                "Update fhe-llm."
            )

    def damaged(self, what: str) -> LedgerError:
        """The error for keys that do not fit each other, or hold what this library never wrote."""
        return LedgerError(
            f"cannot use the ledger {self}: it is damaged or incomplete ({what}). Restore a backup, see "
            "docs/privacy-ledger.md."
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        import redis

        try:
            yield
        except UnicodeDecodeError as error:
            raise self.damaged("bytes that are no text") from error
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            cause, _, _ = str(error).partition(" script: ")  # where in the script it was is no news
            raise LedgerError(
                f"cannot use the ledger {self}: {cause.rstrip('.')}. Nothing was released; see docs/privacy-ledger.md."
            ) from error


def text_of(answer: Any) -> Any:
    """Replies as text; raises :class:`ValueError` for bytes that are none."""
    if isinstance(answer, list):
        return [text_of(part) for part in answer]
    return answer.decode() if isinstance(answer, bytes) else answer
