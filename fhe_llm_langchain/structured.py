"""``with_structured_output``: the grammar makes the answer fit, so parsing fails only where an answer was cut off or
breaks a rule that no grammar knows. Such an error says so and does not repeat the answer."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ValidationError

from fhe_llm.errors import RequestError

if TYPE_CHECKING:
    from typing import TypeAlias

    from fhe_llm_langchain.chat_models import ChatEncrypted
    from fhe_llm_langchain.private_provider import ChatPrivateProvider

    Model: TypeAlias = ChatEncrypted | ChatPrivateProvider

METHODS: Final = ("json_schema", "function_calling", "json_mode")


def structured(
    model: Model,
    schema: dict[str, Any] | type | None,
    method: str,
    include_raw: bool,
    strict: bool | None,
    kwargs: dict[str, Any],
) -> Runnable[Any, Any]:
    """See ``with_structured_output`` of the model. Raises :class:`fhe_llm.errors.RequestError`."""
    if method not in METHODS:
        raise RequestError(
            f"cannot use method={method!r}: it must be one of {', '.join(METHODS)}. Change it."
        )
    if schema is None and method != "json_mode":
        raise RequestError(
            f"cannot use method={method!r} without a schema. Pass one, or use method='json_mode'."
        )
    if kwargs:
        raise RequestError(f"cannot use parameter {min(kwargs)!r}: there is no such parameter here. Drop it.")
    bound, parser = (_by_tool if method == "function_calling" else _by_format)(model, schema, method, strict)
    return _with_raw(bound, parser) if include_raw else bound | parser


def _by_tool(model: Model, schema: Any, method: str, strict: bool | None) -> tuple[Any, Any]:
    tool = convert_to_openai_tool(schema, strict=strict)
    name = tool["function"]["name"]
    bound = model.bind_tools(
        [schema], tool_choice=name, strict=strict, ls_structured_output_format=_for_traces(method, tool)
    )
    if is_basemodel_subclass(schema):
        return bound, _ToolModel(tools=[schema], first_tool_only=True)
    return bound, _ToolArguments(key_name=name, first_tool_only=True)


def _by_format(model: Model, schema: Any, method: str, strict: bool | None) -> tuple[Any, Any]:
    wanted: dict[str, Any] = {"type": "json_object"}
    if schema is not None:
        plain = convert_to_json_schema(schema, strict=strict)
        inner = {"name": plain.get("title", "answer"), "schema": plain, "strict": bool(strict)}
        wanted = {"type": "json_schema", "json_schema": inner}
    bound = model.bind(response_format=wanted, ls_structured_output_format=_for_traces(method, schema))
    if schema is not None and is_basemodel_subclass(schema):
        return bound, _JsonModel(pydantic_object=schema)
    return bound, _Json()


def _for_traces(method: str, schema: Any) -> dict[str, Any]:
    return {"kwargs": {"method": method}, "schema": convert_to_openai_tool(schema) if schema else None}


def _with_raw(bound: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")


class _Discreet(BaseOutputParser[Any]):
    """Parsing errors without the text that did not parse."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        parsed, rules = None, False
        try:
            parsed = super().parse_result(result, partial=partial)
        except (OutputParserException, ValueError) as error:
            rules = isinstance(error, ValidationError) or isinstance(error.__cause__, ValidationError)
        if parsed is None and not partial:
            raise _failure(
                result, rules
            )  # outside the handler: the error chained to it would hold the answer
        return parsed


class _Json(_Discreet, JsonOutputParser):
    pass


class _JsonModel(_Discreet, PydanticOutputParser[Any]):
    pass


class _ToolModel(_Discreet, PydanticToolsParser):
    pass


class _ToolArguments(_Discreet, JsonOutputKeyToolsParser):
    pass


def _failure(result: list[Generation], rules: bool) -> OutputParserException:
    message = getattr(result[0], "message", None)
    metadata = message.response_metadata if isinstance(message, AIMessage) else {}
    if metadata.get("finish_reason") == "length":
        return OutputParserException("cannot parse the answer: it was cut off. Raise max_tokens.")
    cause = (
        "it breaks a rule of the schema's class that is not in its JSON Schema"
        if rules
        else "it does not fit"
    )
    return OutputParserException(f"cannot parse the answer: {cause}. Use include_raw=True to see it.")
