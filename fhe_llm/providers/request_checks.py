"""What is checked before a request leaves: a setting that an API does not have is named, never dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fhe_llm.errors import ProviderRequestError
from fhe_llm.providers.contract import ProviderRequest

TOOL_CHOICES: Final = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one API allows. ``managed`` are the fields of the body that this library writes itself."""

    provider: str
    managed: Collection[str]
    seed: bool = True
    highest_temperature: float = 2.0
    most_stops: int | None = None

    def check(self, request: ProviderRequest) -> None:
        """Raises :class:`ProviderRequestError`."""
        self._numbers(request)
        self._tools(request)
        self._messages(request)
        self._extra(request.extra)

    def refusal(self, what: str, cause: str, advice: str) -> ProviderRequestError:
        """The error of one setting."""
        return ProviderRequestError(
            f"cannot send {what} to {self.provider}: {cause}. {advice}", provider=self.provider
        )

    def _numbers(self, request: ProviderRequest) -> None:
        for name, value, kind in (("max_tokens", request.max_tokens, int), ("seed", request.seed, int)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise self.refusal(name, "it is not a whole number", "Change it.")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise self.refusal("max_tokens", "it is less than 1", "Change it.")
        if request.seed is not None and not self.seed:
            raise self.refusal("seed", "this API has no such setting", "Leave it out.")
        self._between("temperature", request.temperature, self.highest_temperature)
        self._between("top_p", request.top_p, 1.0)
        if any(not isinstance(stop, str) or not stop for stop in request.stop):
            raise self.refusal("stop", "one of the sequences is no text or empty", "Drop it.")
        if self.most_stops is not None and len(request.stop) > self.most_stops:
            raise self.refusal(
                "stop",
                f"there are {len(request.stop)} sequences, and it takes {self.most_stops}",
                "Drop some.",
            )

    def _between(self, name: str, value: float | None, highest: float) -> None:
        if value is None:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 <= value <= highest:
            raise self.refusal(name, f"it is not between 0 and {highest:g}", "Change it.")

    def _tools(self, request: ProviderRequest) -> None:
        names = [function_of(tool).get("name") for tool in request.tools]
        if not all(isinstance(name, str) and name for name in names):
            raise self.refusal(
                "tools",
                "one of them is not {'type': 'function', 'function': {'name': ...}}",
                "Write them in OpenAI's form.",
            )
        if len(set(names)) < len(names):
            raise self.refusal("tools", "two of them have one name", "Rename one.")
        choice = request.tool_choice
        if choice is None:
            return
        if not request.tools:
            raise self.refusal("tool_choice", "there are no tools", "Leave it out, or pass tools.")
        if isinstance(choice, str) and choice in TOOL_CHOICES:
            return
        if function_of(choice).get("name") not in names:
            raise self.refusal(
                "tool_choice",
                f"it is none of {', '.join(TOOL_CHOICES)} and names no tool of this request",
                "Change it.",
            )

    def _messages(self, request: ProviderRequest) -> None:
        for position, message in enumerate(request.messages):
            if message["role"] == "tool" and not message.get("tool_call_id"):
                raise self.refusal(
                    f"message {position}", "it has no tool_call_id", "Name the call it answers."
                )
            if any(not call.get("id") for call in message.get("tool_calls") or ()):
                raise self.refusal(f"message {position}", "one of its tool calls has no id", "Keep the ids.")

    def _extra(self, extra: Mapping[str, Any]) -> None:
        if taken := sorted(set(extra) & set(self.managed)):
            raise self.refusal(
                f"extra[{taken[0]!r}]", "this library writes that field", "Use the argument for it."
            )
        try:
            json.dumps(dict(extra), allow_nan=False)
        except (TypeError, ValueError):
            raise self.refusal("extra", "it cannot be written as JSON", "Change it.") from None


def function_of(tool: object) -> Mapping[str, Any]:
    """The ``function`` of a tool or a choice in OpenAI's form, empty where it has none."""
    found = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    return found if isinstance(found, Mapping) else {}
