"""Where weights live: as plaintext words on the device, as their coefficients, or at the host.

Words are what the products read. Coefficients are an L-th of that; a transform a plaintext and prime makes words of
them for every evaluation. What fits neither way is copied over for each evaluation, unless it is still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

Form = Literal["words", "compact", "host"]
FORMS: Final[tuple[Form, ...]] = get_args(Form)


@dataclass(frozen=True, slots=True)
class WeightSize:
    """Bytes of one layer's weights; ``compact`` is None where they have no smaller form."""

    name: str
    words: int
    compact: int | None


def plan_residency(sizes: Sequence[WeightSize], room: int) -> dict[str, Form]:
    """The form of every layer within ``room`` bytes; deterministic.

    As many layers as possible stay words. If they do not all fit, the largest become compact first (fewer, longer
    expansions); if that is not enough, the largest stay at the host, and half of the room is left for copies of them.
    """
    forms: dict[str, Form] = {size.name: "words" for size in sizes}
    used = sum(size.words for size in sizes)
    largest = sorted(sizes, key=lambda size: (-size.words, size.name))
    for size in largest:
        if used <= room:
            return forms
        if size.compact is not None:
            forms[size.name] = "compact"
            used += size.compact - size.words
    for size in largest:
        if used <= room // 2:
            break
        used -= size.compact if size.compact is not None and forms[size.name] == "compact" else size.words
        forms[size.name] = "host"
    return forms
