"""``EncryptedCache``: LangChain's cache of answers, sealed on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import run_in_executor

from fhe_llm import AnswerCache


class EncryptedCache(BaseCache):
    """Answers by prompt and model, encrypted and authenticated with a key that lies beside them.

    ``ChatEncrypted(cache=EncryptedCache(directory, passphrase=...))``. Without a passphrase the key has mode 0600 only.
    Entries hold no pickle, and nothing but answers is ever built from one. Whoever can use the cache learns from the
    speed of an answer that the same question was asked before: one directory per user.
    """

    def __init__(self, directory: str | Path, *, passphrase: str | None = None, **limits: Any) -> None:
        """``limits`` are ``max_bytes`` and ``ttl`` (seconds). Raises what :class:`fhe_llm.AnswerCache` raises."""
        self._answers = AnswerCache(directory, passphrase=passphrase, **limits)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The answers to ``prompt``, or None."""
        found = self._answers.get(prompt, llm_string)
        if found is None:
            return None
        try:
            return [_revived(entry) for entry in json.loads(found)]
        except (ValueError, TypeError, KeyError):  # an entry of another version
            return None

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep the answers to ``prompt``."""
        self._answers.put(json.dumps([_plain(generation) for generation in return_val]), prompt, llm_string)

    def clear(self, **kwargs: Any) -> None:  # noqa: ARG002  LangChain's signature
        """Forget everything in the directory."""
        self._answers.clear()

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """:meth:`lookup` off the event loop."""
        return await run_in_executor(None, self.lookup, prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """:meth:`update` off the event loop."""
        await run_in_executor(None, self.update, prompt, llm_string, return_val)

    async def aclear(self, **kwargs: Any) -> None:
        """:meth:`clear` off the event loop."""
        await run_in_executor(None, self.clear, **kwargs)

    def close(self) -> None:
        """Let go of the files; entries stay."""
        self._answers.close()

    def __repr__(self) -> str:
        return f"EncryptedCache({str(self._answers.directory)!r})"


def _plain(generation: Generation) -> dict[str, Any]:
    entry: dict[str, Any] = {"text": generation.text, "info": generation.generation_info}
    if isinstance(generation, ChatGeneration):
        entry["message"] = message_to_dict(generation.message)
    return entry


def _revived(entry: dict[str, Any]) -> Generation:
    if "message" not in entry:
        return Generation(text=entry["text"], generation_info=entry["info"])
    (message,) = messages_from_dict([entry["message"]])
    message.id = None  # a name of the run that asked first: histories would take the answer for that one
    return ChatGeneration(message=message, generation_info=entry["info"])
