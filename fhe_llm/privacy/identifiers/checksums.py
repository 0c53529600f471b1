"""Check digits of numbers that name people and their accounts. All take characters without separators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_CODICE_ODD: Final = (
    1,
    0,
    5,
    7,
    9,
    13,
    15,
    17,
    19,
    21,
    2,
    4,
    18,
    20,
    11,
    3,
    6,
    8,
    12,
    14,
    16,
    10,
    22,
    25,
    24,
    23,
)
_DNI_LETTERS: Final = "TRWAGMYFPDXBNJZSQVHLCKE"


def luhn(digits: str) -> bool:
    """Payment cards (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod97(iban: str) -> bool:
    """IBAN in capitals: moved by four characters and read with A = 10 … Z = 35, it leaves 1 (ISO 13616, ISO 7064)."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def ssn(digits: str) -> bool:
    """US social security number: no check digit, but areas 000, 666, 900 and up and groups of zeros are never given."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def dni(number: str) -> bool:
    """Spanish DNI (8 digits and a letter) and NIE (X, Y or Z for the first digit): the letter is the rest modulo 23."""
    return _DNI_LETTERS[int(number[:-1].translate(str.maketrans("XYZ", "012"))) % 23] == number[-1]


def codice_fiscale(code: str) -> bool:
    """Italian tax code, 16 characters: odd places weigh by a table, even ones by value, modulo 26."""
    values = [int(c, 36) - 10 if c.isalpha() else int(c) for c in code[:-1]]
    total = sum(_CODICE_ODD[v] if place % 2 == 0 else v for place, v in enumerate(values))
    return chr(ord("A") + total % 26) == code[-1]


def nir(number: str) -> bool:
    """French social security number, 15 characters with Corsica's 2A and 2B: 97 less the rest modulo 97."""
    body = number[:-2].replace("2A", "19").replace("2B", "18")
    return 97 - int(body) % 97 == int(number[-2:])


def weighted(digits: str, weights: Sequence[int], modulus: int) -> bool:
    """The weighted sum of all digits is a multiple of ``modulus`` (Polish PESEL, Swiss AHV number, Dutch BSN)."""
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True)) % modulus == 0


def cpf(digits: str) -> bool:
    """Brazilian CPF, 11 digits: two check digits modulo 11; eleven equal digits pass the sum and are never given."""
    for length in (9, 10):
        rest = sum(int(d) * (length + 1 - i) for i, d in enumerate(digits[:length])) * 10 % 11 % 10
        if rest != int(digits[length]):
            return False
    return len(set(digits)) > 1


def steuer_id(digits: str) -> bool:
    """German tax identification number, 11 digits: ISO 7064 MOD 11,10; no leading zero."""
    product = 10
    for digit in digits[:-1]:
        rest = (int(digit) + product) % 10 or 10
        product = rest * 2 % 11
    return digits[0] != "0" and (11 - product) % 10 == int(digits[-1])
