"""Which ledger a name means: a file or a Redis URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.ledger import Ledger

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")


def open_ledger(where: str | os.PathLike[str]) -> Ledger:
    """The ledger in a file (made where there is none), or at a ``redis://``, ``rediss://`` or ``unix://`` URL.

    Raises :class:`PrivacyParameterError` for any other URL, :class:`LedgerError` where the store cannot be used.
    """
    place = os.fspath(where)
    if "://" not in place:
        from fhe_llm.privacy.sqlite_ledger import SqliteLedger

        return SqliteLedger(Path(place).expanduser())
    if urlsplit(place).scheme not in REDIS_SCHEMES:
        raise PrivacyParameterError(
            f"cannot open a ledger at a {urlsplit(place).scheme}:// URL: it must be one of "
            f"{', '.join(f'{scheme}://' for scheme in REDIS_SCHEMES)}, or a file. Change it."
        )
    from fhe_llm.privacy.redis_ledger import RedisLedger

    return RedisLedger(place)
