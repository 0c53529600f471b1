"""What leaves is the perturbed prompt at the mechanism's price, and only the rewriter reads the original."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_tables import WORDS, scattered

from fhe_llm.errors import BudgetExhaustedError, PrivacyParameterError, UnknownTextError
from fhe_llm.privacy.account import Account
from fhe_llm.privacy.infer_dpt import REWRITE, InferDpt
from fhe_llm.privacy.ledger import Budget
from fhe_llm.privacy.token_mechanism import TokenMechanism


@dataclass
class Local:
    """A model on this machine."""

    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def generate(self, prompt: str, /, **options: Any) -> Any:
        self.asked.append((prompt, options))
        return SimpleNamespace(text="rewritten")


class Awaited(Local):
    """One that can be awaited too."""

    async def agenerate(self, prompt: str, /, **options: Any) -> Any:
        self.asked.append((prompt, options | {"awaited": True}))
        return SimpleNamespace(text="awaited")


def mechanism(epsilon: float = 1.0) -> TokenMechanism:
    return TokenMechanism(epsilon, table=scattered())


def test_it_costs_what_its_mechanism_costs() -> None:
    inner = mechanism()
    made = InferDpt(inner, Local())
    texts = ["ant bee", "cat"]
    assert made.quote(texts) == inner.quote(texts) == made.protect(texts).event
    assert [len(text.split()) for text in made.protect(texts).value] == [2, 1]
    assert set(" ".join(made.protect(texts).value).split()) <= set(WORDS)
    assert made.name == f"{inner.name}, answers rewritten"
    with pytest.raises(UnknownTextError):
        made.protect(["secret"])


def test_it_is_paid_like_any_mechanism_and_rewriting_is_free(tmp_path: Path) -> None:
    local = Local()
    made = InferDpt(mechanism(), local)
    account = Account.open("ann", tmp_path / "ledger.db", Budget.of(3, "epsilon"))
    with account.ledger:
        account.pay(made.quote(["ant bee"]), lambda: made.protect(["ant bee"]))
        for _ in range(5):
            assert made.rewrite("ant bee", "an answer") == "rewritten"
        (balance,) = account.balances()
        assert balance.spent == 2 * 10**6
        with pytest.raises(BudgetExhaustedError):
            account.pay(made.quote(["ant bee"]), lambda: pytest.fail("drawn"))


def test_the_rewriter_gets_the_original_and_the_answer_and_its_options() -> None:
    local = Local()
    made = InferDpt(mechanism(), local, max_tokens=20, temperature=0.0)
    assert made.rewrite("my secret", "an answer") == "rewritten"
    ((prompt, options),) = local.asked
    assert prompt == REWRITE.replace("{original}", "my secret").replace("{answer}", "an answer")
    assert options == {"max_tokens": 20, "temperature": 0.0}


def test_a_function_will_do() -> None:
    assert InferDpt(mechanism(), str.upper, template="{original}|{answer}").rewrite("a", "b") == "A|B"


@pytest.mark.parametrize(
    ("original", "answer"),
    [("{answer}", "x"), ("x", "{original}"), ("{original}{answer}", "{answer}{original}"), ("{0} {}", "%s")],
)
def test_braces_within_the_texts_are_left_alone(original: str, answer: str) -> None:
    made = InferDpt(mechanism(), lambda prompt: prompt, template="<{original}|{answer}|{original}>")
    assert made.rewrite(original, answer) == f"<{original}|{answer}|{original}>"


async def test_awaited_rewriting_uses_what_there_is() -> None:
    awaited = Awaited()
    assert await InferDpt(mechanism(), awaited, top_k=3).arewrite("a", "b") == "awaited"
    assert awaited.asked[0][1] == {"top_k": 3, "awaited": True}
    threads: list[int] = []

    def slow(prompt: str) -> str:
        threads.append(threading.get_ident())
        return prompt

    found = await asyncio.gather(
        InferDpt(mechanism(), Local()).arewrite("a", "b"),
        InferDpt(mechanism(), slow, template="{original}{answer}").arewrite("a", "b"),
    )
    assert found == ["rewritten", "ab"]
    assert threads != [threading.get_ident()], "a function must not hold up the loop"


def test_what_the_rewriter_raises_comes_through() -> None:
    def broken(_: str) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        InferDpt(mechanism(), broken).rewrite("a", "b")


@pytest.mark.parametrize("template", ["", "{original}", "{answer}", "{original} {Answer}"])
def test_a_template_without_both_is_refused(template: str) -> None:
    with pytest.raises(PrivacyParameterError, match="lacks"):
        InferDpt(mechanism(), Local(), template=template)


@pytest.mark.parametrize("rewriter", [None, 7, "a model", SimpleNamespace(generate="text")])
def test_a_rewriter_that_cannot_be_called_is_refused(rewriter: Any) -> None:
    with pytest.raises(PrivacyParameterError, match="cannot use this rewriter"):
        InferDpt(mechanism(), rewriter)
