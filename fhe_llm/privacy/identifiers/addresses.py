"""Postal addresses: a street with a number in the order of several countries, and the town or postcode behind it."""

from __future__ import annotations

from typing import ClassVar, Final

from fhe_llm.privacy.identifiers.address_patterns import address_patterns
from fhe_llm.privacy.identifiers.contract import HEURISTIC, Identifier

_BEFORE_CODE: Final = 110


class AddressRecogniser:
    """Postal addresses as they are written in the US, the UK, France, Germany, Austria, Switzerland, the Netherlands,
    Spain, Portugal and Italy. A street needs a number, or a field-post or British postcode behind it."""

    entity_types: ClassVar = frozenset({"ADDRESS"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        patterns = address_patterns()
        spans = []
        for street in patterns.streets:
            for match in street.finditer(text):
                rest = patterns.rest.match(text, match.end())
                spans.append((match.start(), rest.end() if rest else match.end()))
        for code in patterns.british_code.finditer(text):
            earliest = max(0, code.start() - _BEFORE_CODE)
            before = patterns.before_british_code.search(text, earliest, code.start())
            spans.append((before.start() if before else code.start(), code.end()))
        return [Identifier(start, end, "ADDRESS", HEURISTIC) for start, end in spans]
