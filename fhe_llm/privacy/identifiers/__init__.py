"""Identifiers: found by recognisers, replaced by placeholders for one conversation, put back in the answer.

:class:`Pseudonymiser` starts a conversation's :class:`Pseudonyms`. This earns no epsilon: an identifier that is not
found leaves in clear, and so does everything else in the text.
"""

from fhe_llm.privacy.identifiers.contract import Identifier, Recogniser
from fhe_llm.privacy.identifiers.defaults import default_recognisers
from fhe_llm.privacy.identifiers.listed import ListedRecogniser
from fhe_llm.privacy.identifiers.pseudonyms import Pseudonymiser, Pseudonyms

__all__ = [
    "Identifier",
    "ListedRecogniser",
    "Pseudonymiser",
    "Pseudonyms",
    "Recogniser",
    "default_recognisers",
]
