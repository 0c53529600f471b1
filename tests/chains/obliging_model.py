"""A model at the local provider that does what LangChain's suites ask of one."""

from __future__ import annotations

from typing import Any

from provider_server import Received, Reply, ToolCall


def obliging(request: Received) -> Reply:
    """A model that calls the tool it is asked about with values that fit its schema, and else says hello."""
    body = request.json
    tools, last = body.get("tools") or [], body["messages"][-1]
    asked = last["role"] == "user" and (body.get("tool_choice") not in (None, "none") or "magic" in str(last))
    if not tools or not asked:
        return Reply(text="Hello, world: one two three.")
    choice = body.get("tool_choice")
    wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"]
    function = next(made["function"] for made in tools if made["function"]["name"] == wanted)
    properties = function["parameters"].get("properties", {})
    values = {name: _fitting(schema) for name, schema in properties.items()}
    return Reply(text="", tool_calls=(ToolCall(wanted, values),))


def _fitting(schema: dict[str, Any]) -> Any:
    if "anyOf" in schema:
        return _fitting(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    return {"integer": 3, "number": 3.5, "boolean": True, "array": [], "object": {}}.get(schema.get("type"), "a cat")
