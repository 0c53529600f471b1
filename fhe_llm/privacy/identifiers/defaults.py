"""The recognisers that are used unless others are named: patterns, check digits and word lists, all offline."""

from __future__ import annotations

from fhe_llm.privacy.identifiers.addresses import AddressRecogniser
from fhe_llm.privacy.identifiers.contract import Recogniser
from fhe_llm.privacy.identifiers.dates import BirthDateRecogniser
from fhe_llm.privacy.identifiers.network import EmailRecogniser, IpRecogniser, UrlRecogniser
from fhe_llm.privacy.identifiers.numbers import CardRecogniser, IbanRecogniser, NationalIdRecogniser
from fhe_llm.privacy.identifiers.person_names import PersonNameRecogniser
from fhe_llm.privacy.identifiers.phones import PhoneRecogniser


def default_recognisers() -> tuple[Recogniser, ...]:
    """A new set. Raises :class:`fhe_llm.errors.PrivacyParameterError` where the extra ``privacy`` is not installed."""
    return (
        CardRecogniser(),
        IbanRecogniser(),
        NationalIdRecogniser(),
        EmailRecogniser(),
        UrlRecogniser(),
        IpRecogniser(),
        PhoneRecogniser(),
        BirthDateRecogniser(),
        AddressRecogniser(),
        PersonNameRecogniser(),
    )
