"""A perturbed prompt goes out; a model that may read the original turns the answer into one to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.events import Event
from fhe_llm.privacy.mechanism import Protected, TextMechanism

REWRITE: Final = (
    "Below are a request, and an answer that was written to a garbled copy of it. Write an answer to the request, "
    "using what is useful of that answer.\n\nRequest:\n{original}\n\nAnswer to the garbled copy:\n{answer}\n\nAnswer:\n"
)


class Generates(Protocol):
    """What has ``generate(prompt).text``, such as an encrypted or local model; ``agenerate`` is used where there is
    one."""

    def generate(self, prompt: str, /, **options: Any) -> Any:
        """An answer with the attribute ``text``."""
        ...


Rewriter: TypeAlias = Generates | Callable[[str], str]


class InferDpt:
    """The pattern of InferDPT (Tong et al., 2023, "InferDPT: Privacy-Preserving Inference for Black-box Large Language
    Models"). It is a :class:`TextMechanism`: what leaves is what ``mechanism`` lets leave, at its price.

    Rewriting costs nothing as long as its result stays here: no one outside sees more than the perturbed prompt, and
    what they do with it is post-processing of a value that is paid for. A result that is sent on is the original's
    text, not a protected one. ``rewriter`` must run where the original may be read: on this machine, or encrypted.
    """

    def __init__(
        self, mechanism: TextMechanism, rewriter: Rewriter, *, template: str = REWRITE, **options: Any
    ) -> None:
        """``template`` has ``{original}`` and ``{answer}``; ``options`` go to ``generate``.

        Raises :class:`PrivacyParameterError` for a template without them or a rewriter that cannot be called.
        """
        if "{original}" not in template or "{answer}" not in template:
            raise PrivacyParameterError(
                "cannot use this template: it lacks {original} or {answer}. Put both in."
            )
        if not callable(getattr(rewriter, "generate", rewriter)):
            raise PrivacyParameterError(
                "cannot use this rewriter: it has no `generate` and is no function. Change it."
            )
        self._mechanism = mechanism
        self._rewriter = rewriter
        self._template = template
        self._options = options

    @property
    def name(self) -> str:
        """See :attr:`TextMechanism.name`."""
        return f"{self._mechanism.name}, answers rewritten"

    def quote(self, texts: Sequence[str]) -> Event:
        """See :meth:`TextMechanism.quote`."""
        return self._mechanism.quote(texts)

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        """See :meth:`TextMechanism.protect`."""
        return self._mechanism.protect(texts)

    def rewrite(self, original: str, remote_answer: str) -> str:
        """An answer to ``original`` made from the one to its perturbed form. Raises what the rewriter raises."""
        prompt = self._prompt(original, remote_answer)
        generate = getattr(self._rewriter, "generate", None)
        return str(generate(prompt, **self._options).text if generate else self._call(prompt))

    async def arewrite(self, original: str, remote_answer: str) -> str:
        """:meth:`rewrite` on an event loop: by ``agenerate`` where there is one, else in a thread."""
        agenerate: Callable[..., Awaitable[Any]] | None = getattr(self._rewriter, "agenerate", None)
        if agenerate is None:
            return await asyncio.to_thread(self.rewrite, original, remote_answer)
        return str((await agenerate(self._prompt(original, remote_answer), **self._options)).text)

    def _prompt(self, original: str, remote_answer: str) -> str:
        # the template is taken apart first, so that braces within either text are left alone
        parts = [part.replace("{answer}", remote_answer) for part in self._template.split("{original}")]
        return original.join(parts)

    def _call(self, prompt: str) -> str:
        if not callable(self._rewriter):
            raise PrivacyParameterError("cannot rewrite: the rewriter is no function. Change it.")
        return self._rewriter(prompt)
