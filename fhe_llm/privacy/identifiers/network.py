"""Addresses on the network: e-mail, URLs that carry something about a person, IP addresses."""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar, Final
from urllib.parse import urlsplit

from fhe_llm.privacy.identifiers.contract import PATTERN, Identifier

_EMAIL: Final = re.compile(
    r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_](?:[\w-]{0,61}[^\W_])"
)
_EMAIL_EDGE: Final = "'`*{|.("
_URL: Final = re.compile(
    r"\b(?:https?|ftps?|sftp|ssh|wss?|postgres(?:ql)?|mysql|redis|mongodb)://[^\s<>\"'`{}|\\^]+", re.I
)
_URL_EDGE: Final = ".,;:!?)]}*_"
_PROFILE: Final = re.compile(
    r"/(?:~|@)[^/]|/(?:u|users?|profiles?|people|in|members?|accounts?|customers?|patients?|authors?)/[^/]",
    re.I,
)
_V4: Final = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_V6: Final = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f:]{2,30}(?<=:)(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f:]{3,39})(?![\w:])"
)
_VERSION_CUE: Final = re.compile(
    r"\b(?:version|versione|versión|versie|release|firmware|build|ver|v|rev|patch|update(?: auf| to)?)\W{0,3}$",
    re.I,
)


class EmailRecogniser:
    """E-mail addresses, letters of any script included."""

    entity_types: ClassVar = frozenset({"EMAIL"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        found = []
        for match in _EMAIL.finditer(text):
            name = match[0].partition("@")[0]
            start = match.start() + len(name) - len(name.lstrip(_EMAIL_EDGE))
            if text[start] != "@":
                found.append(Identifier(start, match.end(), "EMAIL", PATTERN))
        return found


class UrlRecogniser:
    """URLs with a user name or password, a query or fragment with a value, or a path to somebody's profile.

    Other URLs say nothing about a person and stay.
    """

    entity_types: ClassVar = frozenset({"URL"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        found = []
        for match in _URL.finditer(text):
            url = match[0].rstrip(_URL_EDGE)
            if _about_somebody(url):
                found.append(Identifier(match.start(), match.start() + len(url), "URL", PATTERN))
        return found


def _about_somebody(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "@" in url
    return "@" in parts.netloc or "=" in parts.query + parts.fragment or bool(_PROFILE.search(parts.path))


class IpRecogniser:
    """IPv4 and IPv6 addresses but for loopback and unspecified ones.

    Four numbers behind ``version``, or of one digit each, are a version.
    """

    entity_types: ClassVar = frozenset({"IP"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        spans = [
            (m.start(), m.end())
            for m in _V4.finditer(text)
            if not _VERSION_CUE.search(text, max(0, m.start() - 16), m.start()) and len(m[0]) > 7
        ]
        spans += [
            (m.start(), m.start() + len(m[0].rstrip(":") if not m[0].endswith("::") else m[0]))
            for m in _V6.finditer(text)
            if m[0].count(":") >= 2
        ]
        return [
            Identifier(start, end, "IP", PATTERN) for start, end in spans if _names_a_host(text[start:end])
        ]


def _names_a_host(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_unspecified)
