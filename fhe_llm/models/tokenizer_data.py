"""What a tokenizer is made of, as plain data that travels in the client bundle."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fhe_llm.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's token types."""

_LIMIT = 1 << 22


class TokenizerData(BaseModel):
    """Either a vocabulary with merges (``kind="bpe"``, from GGUF) or the text of a ``tokenizer.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["bpe", "json"]
    pre: str = Field(default="", max_length=64)
    tokens: tuple[str, ...] = Field(default=(), max_length=_LIMIT, strict=False)
    token_types: tuple[int, ...] = Field(default=(), max_length=_LIMIT, strict=False)
    merges: tuple[str, ...] = Field(default=(), max_length=_LIMIT, strict=False)
    json_text: str = Field(default="", max_length=1 << 27)
    bos_id: int | None = None
    add_bos: bool = False
    eos_ids: tuple[int, ...] = Field(default=(), max_length=64, strict=False)
    chat_template: str | None = Field(default=None, max_length=1 << 20)

    @model_validator(mode="after")
    def _complete(self) -> TokenizerData:
        if self.kind == "bpe" and (not self.tokens or len(self.tokens) != len(self.token_types)):
            raise ValueError("a BPE vocabulary needs tokens and one type for each")
        if self.kind == "json" and not self.json_text:
            raise ValueError("the tokenizer.json text is empty")
        return self


def make_tokenizer_data(**fields: Any) -> TokenizerData:
    """Checked data; raises :class:`ModelError` naming the first field that is wrong."""
    try:
        return TokenizerData(**fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "tokenizer"
        raise ModelError(
            f"cannot use tokenizer data: {where}: {first['msg']}. Use a complete model."
        ) from None
