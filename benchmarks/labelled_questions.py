"""216 short questions in six topics, of our own writing: what a person might ask and not want to be known for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

FIRST: Final = 3
"""So many of each topic's subjects are for training; questions about the others are tested."""


@dataclass(frozen=True, slots=True)
class Question:
    """``trains``: the classifier has seen it in clear."""

    text: str
    topic: str
    trains: bool


TOPICS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "medicine": (
        (
            "what are the early symptoms of {}?",
            "which doctor should i see about {}?",
            "can i take painkillers while treated for {}?",
            "my mother was told that she has {}, what now?",
            "is there a new medicine against {}?",
            "how long does it take to recover from {}?",
        ),
        ("diabetes", "asthma", "pneumonia", "depression", "arthritis", "hepatitis"),
    ),
    "law": (
        (
            "do i need a lawyer in a case of {}?",
            "what sentence does a court give for {}?",
            "how do i defend myself against a charge of {}?",
            "can the police arrest me for {}?",
            "my brother is accused of {}, who can help?",
            "which documents does a judge want to see about {}?",
        ),
        ("theft", "fraud", "divorce", "perjury", "trespassing", "bribery"),
    ),
    "money": (
        (
            "how much tax will i pay on my {}?",
            "should i tell the bank about my {}?",
            "is it wise to invest in {} this year?",
            "how do i save enough money for {}?",
            "what interest do they charge on {}?",
            "can i lose everything with {}?",
        ),
        ("salary", "mortgage", "pension", "inheritance", "shares", "insurance"),
    ),
    "travel": (
        (
            "when is the best season to visit {}?",
            "do i need a visa for {}?",
            "is there a direct flight to {}?",
            "which hotel in {} is close to the station?",
            "how many days should we spend in {}?",
            "is it safe to travel alone in {}?",
        ),
        ("japan", "morocco", "portugal", "iceland", "vietnam", "argentina"),
    ),
    "cooking": (
        (
            "how long do i boil {} for a salad?",
            "which spices go well with {}?",
            "can i fry {} without oil?",
            "what sauce do you serve with {}?",
            "how do i bake {} with cheese?",
            "does fresh {} keep in the fridge overnight?",
        ),
        ("potatoes", "salmon", "mushrooms", "beans", "chicken", "spinach"),
    ),
    "computing": (
        (
            "why does my {} crash after the update?",
            "how do i back up the files of my {}?",
            "which password should i set on my {}?",
            "can a virus get into my {}?",
            "how do i connect the {} to a wireless network?",
            "is there free software to repair my {}?",
        ),
        ("laptop", "printer", "server", "browser", "router", "database"),
    ),
}


def questions() -> list[Question]:
    """All of them, in one order."""
    return [
        Question(template.format(subject), topic, number < FIRST)
        for topic, (templates, subjects) in TOPICS.items()
        for template, (number, subject) in product(templates, enumerate(subjects))
    ]
