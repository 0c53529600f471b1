"""Microsoft Presidio's recognisers behind our interface: its patterns without any model, spaCy's names on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers.contract import Identifier

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

PRESIDIO_TYPES: Final = {
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "IP_ADDRESS": "IP",
    "URL": "URL",
    "CRYPTO": "CRYPTO",
    "US_SSN": "NATIONALID",
    "US_ITIN": "NATIONALID",
    "UK_NHS": "NATIONALID",
    "UK_NINO": "NATIONALID",
    "ES_NIF": "NATIONALID",
    "ES_NIE": "NATIONALID",
    "IT_FISCAL_CODE": "NATIONALID",
    "PL_PESEL": "NATIONALID",
}
SPACY_TYPES: Final = {
    "PERSON": "PERSON",
    "PER": "PERSON",
    "LOC": "LOCATION",
    "GPE": "LOCATION",
    "FAC": "LOCATION",
}
_ORDER: Final = (
    "CreditCard",
    "Iban",
    "Phone",
    "Ip",
    "Url",
    "Crypto",
    "UsSsn",
    "UsItin",
    "Nhs",
    "UkNino",
    "EsNif",
    "EsNie",
    "ItFiscalCode",
    "PlPesel",
)


class PresidioRecogniser:
    """Presidio's pattern recognisers, those whose forms are exact enough to stand without the words around them.

    ``spacy_model`` names an installed spaCy pipeline, or the folder of one, whose people and places are added; nothing
    is ever downloaded. ``min_score`` drops Presidio's finds below it. Raises :class:`PrivacyParameterError` where
    Presidio or the model is not installed.
    """

    def __init__(self, spacy_model: str | None = None, min_score: float = 0.3) -> None:
        if not 0 < min_score <= 1:
            raise PrivacyParameterError(
                f"cannot use min_score={min_score!r}: it lies outside (0, 1]. Change it."
            )
        self._recognisers = _pattern_recognisers()
        self._min_score = min_score
        self._pipeline = _pipeline(spacy_model) if spacy_model else None
        self._types = frozenset(PRESIDIO_TYPES.values())
        if self._pipeline:
            self._types |= frozenset(SPACY_TYPES.values())

    @property
    def entity_types(self) -> frozenset[str]:
        """See :attr:`Recogniser.entity_types`."""
        return self._types

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        no_artifacts: Any = None  # patterns do without; Presidio's signature does not say so
        found = [
            Identifier(one.start, one.end, PRESIDIO_TYPES[one.entity_type], min(one.score, 1.0))
            for recogniser in self._recognisers
            for one in recogniser.analyze(text, recogniser.supported_entities, no_artifacts) or ()
            if one.score >= self._min_score and one.end > one.start
        ]
        if self._pipeline:
            found += [
                Identifier(one.start_char, one.end_char, SPACY_TYPES[one.label_], 0.5)
                for one in self._pipeline(text).ents
                if one.label_ in SPACY_TYPES
            ]
        return found


def _pattern_recognisers() -> list[EntityRecognizer]:
    try:
        import tldextract
        from presidio_analyzer import predefined_recognizers as presidio
    except ImportError:
        raise PrivacyParameterError(
            "cannot use Presidio: it is not installed. Run: pip install 'fhe-llm[presidio]'."
        ) from None
    # Presidio checks an address's domain with an extractor that fetches the list of suffixes; this one has its own copy
    suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class OfflineEmailRecognizer(presidio.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).fqdn)

    return [OfflineEmailRecognizer(), *(getattr(presidio, f"{name}Recognizer")() for name in _ORDER)]


def _pipeline(name: str) -> Any:
    import spacy

    try:
        return spacy.load(name)
    except (OSError, ValueError):
        raise PrivacyParameterError(
            f"cannot use the spaCy model {name!r}: it is not installed, or damaged. Install it, or name another."
        ) from None
