"""How events are counted: in integers for the ledger, and as ``dp-accounting``'s events for the accountants."""

from __future__ import annotations

import math
from fractions import Fraction

from fhe_llm.privacy.charge import UNIT_INFO, Unit, to_amount
from fhe_llm.privacy.events import Event, TokensReplaced, ValuesDisclosed, VectorsNoised, WorkDone


def charge_of(event: Event) -> dict[Unit, int]:
    """What an event costs, rounded up. Charges of one unit add up whatever was decided in between: pure ε by basic
    composition, ρ because a filter over zCDP needs no more than the sum (Whitehouse, Ramdas, Rogers and Wu 2023).

    Text: tokens·ε. Embeddings: vectors/(2·noise_multiplier²) (Bun and Steinke 2016, Prop. 1.6).
    """
    match event:
        case TokensReplaced():
            return {event.unit: event.tokens * to_amount(event.epsilon, event.unit)}
        case VectorsNoised():
            rho = Fraction(event.vectors) / (2 * Fraction(event.noise_multiplier) ** 2)
            return {"rho": math.ceil(rho * UNIT_INFO["rho"].scale)}
        case ValuesDisclosed():
            return {"queries": event.queries}
        case WorkDone():
            return {
                "rounds": event.rounds,
                "ciphertexts": event.ciphertexts,
                "bytes": event.bytes,
                "milliseconds": event.milliseconds,
            }
        case _:
            return {}
