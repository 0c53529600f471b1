"""What templates are filled with: the people of a document and their data, and decoys that look like such data."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable
from datetime import date
from typing import Any, Final

from faker import Faker

KINDS: Final = {
    "name": "PERSON",
    "first": "PERSON",
    "last": "PERSON",
    "email": "EMAIL",
    "team": "EMAIL",
    "phone": "PHONE",
    "card": "CARD",
    "iban": "IBAN",
    "address": "ADDRESS",
    "birthdate": "BIRTHDATE",
    "id": "NATIONALID",
    "ip": "IP",
    "url": "URL",
}
"""Type of the identifier that each slot plants."""

_MONTHS: Final = {
    "en": "January February March April May June July August September October November December",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "nl": "januari februari maart april mei juni juli augustus september oktober november december",
}
_LONG_DATE: Final = {"de": "{day}. {month} {year}", "es": "{day} de {month} de {year}"}
_PRODUCTS: Final = (
    "Madison Desk",
    "Jordan Trainers",
    "Jasmine Rice",
    "Victoria Sponge",
    "Oliver Chair",
    "Galaxy S24",
    "Windows Server",
    "Alexa Speaker",
    "Mercedes C 180",
    "Max Mara Coat",
    "Paris Lamp",
    "Siemens EQ 6",
    "Office Suite Pro",
    "Grace Hopper Poster",
    "Premium Plan",
)
_COMPANIES: Final = (
    "Baker & Sons Ltd",
    "Wagner Logistik GmbH",
    "Martin et Fils SARL",
    "Hotel Victoria",
    "Jordan Consulting Group",
    "Rossi S.p.A.",
    "Charlotte Insurance Inc",
    "Hill Street Dental",
    "Banco de San Juan",
    "De Jong Transport B.V.",
    "Northwind Energy",
    "Banque Saint Martin",
    "Hopkins University",
    "Garcia Hermanos S.L.",
    "Stadtwerke Neustadt",
)


def ascii_only(text: str) -> str:
    """Small letters without accents, for the names in e-mail addresses."""
    apart = unicodedata.normalize("NFKD", text.lower().replace("ß", "ss").replace("ı", "i"))
    return re.sub("[^a-z]", "", apart)


def grouped(number: str, draw: random.Random) -> str:
    """In one row, or in fours with spaces or hyphens."""
    separator = draw.choice(("", " ", " ", "-"))
    return separator.join(re.findall(".{1,4}", number))


def with_a_wrong_digit(number: str, draw: random.Random) -> str:
    """The number with its last digit changed, so that the check digits are wrong."""
    return f"{number[:-1]}{(int(number[-1]) + draw.randint(1, 9)) % 10}"


class Cast:
    """The people of one document, by number; each slot of one person gives the same value every time."""

    def __init__(self, fake: Any, locale: str, draw: random.Random) -> None:
        self._fake = fake
        self._locale = locale
        self._draw = draw
        self._british = Faker("en_GB")
        self._british.seed_instance(draw.getrandbits(64))
        self._given: dict[tuple[str, str], str] = {}

    def maker(self, slot: str, number: str) -> Callable[[], str]:
        """Makes what a slot says; ``NAME`` is ``name`` in capitals."""
        if slot == "NAME":
            return lambda: self._value("name", number).upper()
        return lambda: self._value(slot, number)

    def _value(self, slot: str, number: str) -> str:
        key = slot, number
        if key not in self._given:
            self._given[key] = getattr(self, f"_{slot}")(number)
        return self._given[key]

    def _first(self, _: str) -> str:
        return str(self._fake.first_name())

    def _last(self, _: str) -> str:
        return str(self._fake.last_name())

    def _name(self, number: str) -> str:
        first, last = self._value("first", number), self._value("last", number)
        middle = f" {self._draw.choice('ABCDEFGHJKLMRSTW')}." if self._locale == "en_US" else ""
        if self._draw.random() < 0.2:
            return f"{first}{middle} {last}"
        if self._locale == "es_ES" and self._draw.random() < 0.5:
            return f"{first} {last} {self._fake.last_name()}"
        return f"{first} {last}"

    def _email(self, number: str) -> str:
        first, last = ascii_only(self._value("first", number)), ascii_only(self._value("last", number))
        number = self._draw.randint(1, 99)
        local = self._draw.choice((f"{first}.{last}", f"{first[:1]}{last}", f"{last}_{number}"))
        return f"{local}@{self._draw.choice((self._fake.free_email_domain(), self._fake.domain_name()))}"

    def _team(self, _: str) -> str:
        return f"team@{self._fake.domain_name()}"

    def _phone(self, _: str) -> str:
        return str(self._fake.phone_number())

    def _card(self, _: str) -> str:
        return grouped(self._fake.credit_card_number(), self._draw)

    def _iban(self, _: str) -> str:
        fake = self._british if self._locale == "en_IN" else self._fake  # India has none
        return grouped(fake.iban(), self._draw)

    def _address(self, _: str) -> str:
        return "\n".join(line.strip() for line in self._fake.address().split("\n"))

    def _birthdate(self, _: str) -> str:
        return written_date(
            self._fake.date_between_dates(date(1935, 1, 1), date(2006, 12, 31)), self._locale, self._draw
        )

    def _id(self, _: str) -> str:
        match self._locale[:2]:
            case "es":
                return str(self._fake.nif())
            case "de":
                return tax_number(self._draw)
        if self._locale == "en_GB":
            pairs = [f"{self._draw.randint(0, 99):02d}" for _ in range(3)]
            return self._draw.choice((" ", "")).join((self._draw.choice(("AB", "JK", "SC")), *pairs, "C"))
        return str(self._fake.ssn())

    def _ip(self, _: str) -> str:
        return str(self._fake.ipv4_public() if self._draw.random() < 0.7 else self._fake.ipv6())

    def _url(self, _: str) -> str:
        domain, user = self._fake.domain_name(), self._fake.user_name()
        paths = (f"users/{user}", f"~{user}/notes", f"account?customer={self._draw.randint(1000, 99999)}")
        return f"https://{domain}/{self._draw.choice(paths)}"


class Decoys:
    """Numbers, dates and names that identify nobody."""

    def __init__(self, fake: Any, locale: str, draw: random.Random) -> None:
        self._fake = fake
        self._locale = locale
        self._draw = draw

    def order(self) -> str:
        """Order and serial numbers, some as long as telephone numbers."""
        forms = (
            "###-#######-####",
            "########",
            "ORD-2024-#####",
            "#### #### ###",
            "##########",
            "##-####-##",
        )
        return str(self._fake.numerify(self._draw.choice(forms)))

    def invoice(self) -> str:
        """Invoice numbers."""
        return str(self._fake.numerify(self._draw.choice(("2024-#####", "RE-#####", "INV######"))))

    def tracking(self) -> str:
        """Numbers of parcels."""
        return str(
            self._fake.numerify(
                self._draw.choice(("1Z9%#AA101########", "RR#########DE", "JD0146###########"))
            )
        )

    def badcard(self) -> str:
        """A card number with a wrong check digit."""
        return grouped(with_a_wrong_digit(self._fake.credit_card_number(), self._draw), self._draw)

    def badiban(self) -> str:
        """An IBAN with a wrong digit."""
        number = self._fake.iban()
        return grouped(f"{number[:2]}{with_a_wrong_digit(number[2:4], self._draw)}{number[4:]}", self._draw)

    def isbn(self) -> str:
        """Numbers of books."""
        return str(self._fake.isbn13())

    def version(self) -> str:
        """Versions, some of four numbers."""
        return self._fake.numerify(self._draw.choice(("%.#.#", "%.%.#.#", "2024.%.#.#")))

    def date(self) -> str:
        """Dates of letters and visits."""
        day = self._fake.date_between_dates(date(2024, 1, 1), date(2025, 12, 31))
        return written_date(day, self._locale, self._draw)

    def time(self) -> str:
        """Times of day."""
        return str(self._fake.time("%H:%M"))

    def amount(self) -> str:
        """Sums of money."""
        return f"{self._draw.randint(1, 9)},{self._draw.randint(100, 999)}.{self._draw.randint(10, 99)} EUR"

    def domain(self) -> str:
        """Domains."""
        return str(self._fake.domain_name())

    def product(self) -> str:
        """Products, many with a word that is a name too."""
        return self._draw.choice(_PRODUCTS)

    def company(self) -> str:
        """Companies, many with a word that is a name too."""
        return self._draw.choice(_COMPANIES)


def written_date(day: date, locale: str, draw: random.Random) -> str:
    """In numbers as the country orders them, by ISO 8601, or with the month in letters."""
    language = locale[:2] if locale[:2] in _MONTHS else "en"
    month = _MONTHS[language].split()[day.month - 1]
    long = _LONG_DATE.get(language, "{day} {month} {year}").format(day=day.day, month=month, year=day.year)
    numbers = "%m/%d/%Y" if locale == "en_US" else "%d.%m.%Y" if language == "de" else "%d/%m/%Y"
    return draw.choice((day.isoformat(), day.strftime(numbers), long))


def tax_number(draw: random.Random) -> str:
    """A German tax identification number: ten digits and one by ISO 7064 MOD 11,10."""
    digits = [draw.randint(1, 9), *(draw.randint(0, 9) for _ in range(9))]
    product = 10
    for digit in digits:
        rest = (digit + product) % 10 or 10
        product = rest * 2 % 11
    number = "".join(map(str, [*digits, (11 - product) % 10]))
    return number if draw.random() < 0.5 else f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"
