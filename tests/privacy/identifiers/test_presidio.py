"""Presidio's recognisers work without any model and without the network."""

from __future__ import annotations

import socket
import sys

import pytest
from finds import found

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy import Pseudonymiser
from fhe_llm.privacy.identifiers.defaults import default_recognisers
from fhe_llm.privacy.identifiers.presidio import PresidioRecogniser

pytest.importorskip("presidio_analyzer", reason="the extra presidio is not installed")
TEXT = (
    "mail jane@example.com, card 4111 1111 1111 1111, IBAN DE89370400440532013000, ip 10.1.2.3, "
    "tel +1 202 555 0143, SSN 078-05-1121, PESEL 44051401359, btc 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a recogniser asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def presidio() -> PresidioRecogniser:
    return PresidioRecogniser()


def test_its_patterns_find_what_they_promise(presidio: PresidioRecogniser) -> None:
    kinds = {one.entity_type for one in presidio.find(TEXT)}
    assert {"EMAIL", "CARD", "IBAN", "IP", "PHONE", "NATIONALID", "CRYPTO"} <= kinds <= presidio.entity_types
    assert "jane@example.com" in found(presidio, TEXT)


def test_it_stands_beside_our_own_recognisers(presidio: PresidioRecogniser) -> None:
    both = Pseudonymiser([*default_recognisers(), presidio]).start()
    sent = both.replace([f"{TEXT}, my name is Jane Doe"]).value[0]
    assert "[CRYPTO_1]" in sent
    assert "[PERSON_1]" in sent
    assert both.restore(sent) == f"{TEXT}, my name is Jane Doe"


def test_a_high_threshold_drops_weak_finds(presidio: PresidioRecogniser) -> None:
    assert len(PresidioRecogniser(min_score=1.0).find(TEXT)) < len(presidio.find(TEXT))


@pytest.mark.parametrize("score", [0, -1, 1.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(score: float) -> None:
    with pytest.raises(PrivacyParameterError, match="min_score"):
        PresidioRecogniser(min_score=score)


def test_a_model_that_is_not_there_is_refused_and_not_downloaded() -> None:
    with pytest.raises(PrivacyParameterError, match="'no_such_model'"):
        PresidioRecogniser(spacy_model="no_such_model")


def test_a_model_from_a_folder_adds_people_and_places(tmp_path_factory: pytest.TempPathFactory) -> None:
    import spacy

    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Xylan"}, {"label": "GPE", "pattern": "Quorbia"}])
    folder = tmp_path_factory.mktemp("spacy") / "model"
    pipeline.to_disk(folder)
    model = PresidioRecogniser(spacy_model=str(folder))
    assert found(model, "Xylan lives in Quorbia") == ["Xylan", "Quorbia"]
    assert {"PERSON", "LOCATION"} <= model.entity_types


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(PrivacyParameterError, match=r"fhe-llm\[presidio\]"):
        PresidioRecogniser()
