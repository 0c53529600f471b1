"""E-mail, URLs and IP addresses, and what looks like them."""

from __future__ import annotations

import ipaddress

import pytest
from finds import found
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.privacy.identifiers.network import EmailRecogniser, IpRecogniser, UrlRecogniser

EMAILS, URLS, IPS = EmailRecogniser(), UrlRecogniser(), IpRecogniser()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("write to jane.doe+tag@mail.example.co.uk.", "jane.doe+tag@mail.example.co.uk"),
        ("<o'hara@example.com>", "o'hara@example.com"),
        ("(müller@bücher.example)", "müller@bücher.example"),
        ("mailto:a@b.example?subject=x", "a@b.example"),
        ("'x_y@example.org'", "x_y@example.org"),
        ("JANE@EXAMPLE.COM,", "JANE@EXAMPLE.COM"),
        ("иван@почта.рф", "иван@почта.рф"),
    ],
)
def test_addresses_are_found_without_what_stands_around_them(text: str, address: str) -> None:
    assert found(EMAILS, text) == [address]


@pytest.mark.parametrize(
    "text", ["@user", "a@b", "5 @ 3.50", "git@", "@example.com", "x@127.0.0.1", "a@-b.com"]
)
def test_other_uses_of_the_at_sign_are_none(text: str) -> None:
    assert found(EMAILS, text) == []


@given(st.emails(domains=st.just("example.com")))
def test_addresses_of_any_form_do_not_leave_their_name(address: str) -> None:
    name = address.partition("@")[0].lstrip("'`*{|.(")
    assert found(EMAILS, f"from {address} today") == ([f"{name}@example.com"] if name else [])


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://jane:secret@example.com/x", "https://jane:secret@example.com/x"),
        ("(see https://example.com/?user=5).", "https://example.com/?user=5"),
        ("https://example.com/users/jane", "https://example.com/users/jane"),
        ("https://example.com/@jane", "https://example.com/@jane"),
        ("postgres://u:p@db/x", "postgres://u:p@db/x"),
        ("https://example.com/#token=abc", "https://example.com/#token=abc"),
    ],
)
def test_urls_about_somebody_are_found(text: str, url: str) -> None:
    assert found(URLS, text) == [url]


@pytest.mark.parametrize("text", ["https://example.com/docs/page", "example.com/users/jane", "https://[x/"])
def test_other_urls_stay(text: str) -> None:
    assert found(URLS, text) == []


def test_a_url_that_does_not_parse_is_judged_by_its_at_sign() -> None:
    assert found(URLS, "https://a@[x/") == ["https://a@[x/"]


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_addresses_of_hosts_are_found(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    ones = found(IPS, f"from {address}, port 80")
    version = len(str(address)) == len("1.2.3.4") and address.version == 4
    assert ones == ([] if address.is_loopback or address.is_unspecified or version else [str(address)])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host 10.0.0.7.", "10.0.0.7"),
        ("10.0.0.7:8080", "10.0.0.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1 up", "fe80::1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ],
)
def test_addresses_are_found_beside_ports_and_brackets(text: str, address: str) -> None:
    assert address in found(IPS, text)


@pytest.mark.parametrize(
    "text",
    ["version 1.2.3.4", "v1.2.3.4", "300.1.1.1", "1.2.3.4.5", "127.0.0.1", "::", "12:30:45", "std::vector"],
)
def test_versions_times_and_names_in_code_are_none(text: str) -> None:
    assert found(IPS, text) == []
