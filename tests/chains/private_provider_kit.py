"""Providers at the local server for tests of LangChain, and a model there that does what its suites ask of one."""

from __future__ import annotations

import re
from typing import Any

from provider_server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    HUGGINGFACE_KEY,
    LLAMA,
    OPENAI_KEY,
    ProviderServer,
    Received,
    Reply,
    ToolCall,
)


def connection(server: ProviderServer, name: str) -> dict[str, Any]:
    """Constructor arguments for one of the providers at the server."""
    model, url, key = {
        "openai": (GPT, server.openai_url, OPENAI_KEY),
        "anthropic": (CLAUDE, server.anthropic_url, ANTHROPIC_KEY),
        "huggingface": (LLAMA, server.huggingface_url, HUGGINGFACE_KEY),
    }[name]
    return {"provider": name, "model": model, "base_url": url, "api_key": key, "max_retries": 0}


_WANTS_A_TOOL = ("magic", "weather", "Create a customer")


def obliging(request: Received) -> Reply:
    """Calls the tool it is asked about with values that fit its schema, and else says hello."""
    body = request.json
    tools, last, choice = body.get("tools") or [], body["messages"][-1], body.get("tool_choice")
    asked = choice not in (None, "none") or any(word in str(last["content"]) for word in _WANTS_A_TOOL)
    if not tools or last["role"] != "user" or not asked:
        return Reply(text="Hello, world: one two three.")
    wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"]
    function = next(made["function"] for made in tools if made["function"]["name"] == wanted)
    properties = function["parameters"].get("properties", {})
    quoted = re.findall("'(.+)'", last["content"]) or ["a cat"]
    return Reply(
        text="",
        tool_calls=(
            ToolCall(wanted, {name: _fitting(schema, quoted[0]) for name, schema in properties.items()}),
        ),
    )


def _fitting(schema: dict[str, Any], text: str) -> Any:
    if "anyOf" in schema:
        return _fitting(schema["anyOf"][0], text)
    if "enum" in schema:
        return schema["enum"][0]
    made: dict[str, Any] = {"integer": 3, "number": 3.5, "boolean": True, "array": [], "object": {}}
    return made.get(schema.get("type", ""), text)
