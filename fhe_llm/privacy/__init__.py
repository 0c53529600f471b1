"""What leaves in the clear, and what pays for it: mechanisms, events, accountants and the ledger.

No epsilon without a mechanism: a mechanism returns a value and the event that describes what was done to it; only
events enter the ledger; ``dp-accounting`` does the mathematics. Start with :class:`Account` and
:class:`TokenMechanism`. Names load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fhe_llm.privacy.account import Account, default_ledger
    from fhe_llm.privacy.accountant import PldAccountant, PureAccountant, RdpAccountant, ZcdpAccountant
    from fhe_llm.privacy.disclosure import NoiseFlooding
    from fhe_llm.privacy.embedding_noise import GaussianEmbedding
    from fhe_llm.privacy.identifiers import Pseudonymiser
    from fhe_llm.privacy.infer_dpt import InferDpt
    from fhe_llm.privacy.ledger import Balance, Budget, Ledger
    from fhe_llm.privacy.ledger_place import open_ledger
    from fhe_llm.privacy.mechanism import Protected, TextMechanism
    from fhe_llm.privacy.privacy_filter import PureFilter, RenyiFilter, ZcdpFilter
    from fhe_llm.privacy.redis_ledger import RedisLedger
    from fhe_llm.privacy.sqlite_ledger import SqliteLedger
    from fhe_llm.privacy.token_mechanism import TokenMechanism

_HOMES = {
    "Account": "account",
    "Balance": "ledger",
    "Budget": "ledger",
    "GaussianEmbedding": "embedding_noise",
    "InferDpt": "infer_dpt",
    "Ledger": "ledger",
    "NoiseFlooding": "disclosure",
    "PldAccountant": "accountant",
    "Protected": "mechanism",
    "Pseudonymiser": "identifiers",
    "PureAccountant": "accountant",
    "PureFilter": "privacy_filter",
    "RdpAccountant": "accountant",
    "RedisLedger": "redis_ledger",
    "RenyiFilter": "privacy_filter",
    "SqliteLedger": "sqlite_ledger",
    "TextMechanism": "mechanism",
    "TokenMechanism": "token_mechanism",
    "ZcdpAccountant": "accountant",
    "ZcdpFilter": "privacy_filter",
    "default_ledger": "account",
    "open_ledger": "ledger_place",
}

__all__ = [
    "Account",
    "Balance",
    "Budget",
    "GaussianEmbedding",
    "InferDpt",
    "Ledger",
    "NoiseFlooding",
    "PldAccountant",
    "Protected",
    "Pseudonymiser",
    "PureAccountant",
    "PureFilter",
    "RdpAccountant",
    "RedisLedger",
    "RenyiFilter",
    "SqliteLedger",
    "TextMechanism",
    "TokenMechanism",
    "ZcdpAccountant",
    "ZcdpFilter",
    "default_ledger",
    "open_ledger",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
