"""What the chat model and the text model have in common: constructor names, one connection per model, checks."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final, Self, TypeVar

from langchain_core.utils.utils import from_env, secret_from_env
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr
from pydantic.fields import FieldInfo

import fhe_llm
from fhe_llm import DEFAULT_URL, AskOptions, ModelInfo, check_options
from fhe_llm.errors import RequestError
from fhe_llm_langchain.errors import langchain_errors
from fhe_llm_langchain.tracing import refuse_tracing
from fhe_llm_langchain.untraced import Untraced

_CLIENT_ONLY: Final = (
    "keys",
    "passphrase",
    "prefix_cache",
    "speculation",
    "transport",
    "progress",
    "account",
    "client",
)
_SAMPLING: Final = ("max_tokens", "temperature", "top_k", "top_p", "seed", "repetition_penalty", "pad_to")
_LANGCHAIN_ONLY: Final = ("stream", "model", "stream_usage")
"""Per-call names that LangChain acts on; the rest goes to :class:`fhe_llm.AskOptions`, which refuses what it lacks."""

M = TypeVar("M", bound="EncryptedModel")


class EncryptedModel(Untraced):
    """Settings of an encrypted model, under the names LangChain's users know.

    Keyword arguments beside the fields go to :class:`fhe_llm.EncryptedLLM` and are never in a repr, a trace or a
    serialised model: ``keys`` (a :class:`fhe_llm.KeyRing` or the path of one; without it a key is made that lives as
    long as this object), ``passphrase``, ``prefix_cache``, ``speculation``, ``transport``, ``progress``,
    ``account``; or ``client``, an :class:`fhe_llm.EncryptedLLM` that is already set up. An unknown
    name is refused, and so is LangSmith tracing.
    """

    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True, arbitrary_types_allowed=True)

    model: str = Field(default="smollm2-135m", validation_alias=AliasChoices("model", "model_name"))
    """Name of a model that the proxy serves."""
    base_url: str = Field(default_factory=from_env("FHE_LLM_BASE_URL", default=DEFAULT_URL))
    """Where the proxy listens; the environment's ``FHE_LLM_BASE_URL`` if not given."""
    api_key: SecretStr | None = Field(default_factory=secret_from_env("FHE_LLM_API_KEY", default=None))
    """The proxy's API key; the environment's ``FHE_LLM_API_KEY`` if not given. It decrypts nothing."""
    temperature: float = 0.0
    max_tokens: int = 256
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    timeout: float | None = None
    """Seconds to wait for the proxy's answer to one round (None: 300)."""
    max_retries: int = 5
    """How often a round that got no answer is sent again, with the same bytes."""
    streaming: bool = False
    pad_to: int | None = None
    """Hide the prompt's length up to a multiple of this many tokens."""
    preset: str = "default"
    cache_dir: str | None = None
    draft_model: str | None = None

    _clients: Clients = PrivateAttr()

    def __init__(self, **settings: Any) -> None:
        """Raises LangChain's ``ModelInvalidRequestError`` for a name or value that makes no sense; no network."""
        with langchain_errors():
            only: dict[str, Any] = {name: settings.pop(name) for name in _CLIENT_ONLY if name in settings}
            _refuse_unknown(type(self), settings)
            super().__init__(**settings)
            refuse_tracing(self.allow_tracing)
            self._clients = Clients(self._client_settings(), only)
            self._clients.of(self.model)  # checks the settings; no network
            check_options(self._ask_options(None, {}))

    def connect(self) -> ModelInfo:
        """The model as the proxy serves it: context length, tokenizer. Connects if that was not done yet."""
        with langchain_errors():
            return self._clients.of(self.model).connect()

    def close(self) -> None:
        """Close connections of blocking calls and wipe a key of our own. Async users call :meth:`aclose`."""
        self._clients.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._clients.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What tells one model from another, without secrets."""
        names = ("model", "base_url", "preset", *_SAMPLING, "stop")
        return {name: getattr(self, name) for name in names}

    def _client_settings(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "api_key": self.api_key.get_secret_value() if self.api_key else None,
            "preset": self.preset,
            "timeout": 300.0 if self.timeout is None else self.timeout,
            "max_retries": self.max_retries,
            "cache_dir": self.cache_dir,
            "draft_model": self.draft_model,
        }

    def _call(
        self, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[fhe_llm.EncryptedLLM, AskOptions]:
        """The client and the options of one call. Settings of the connection are those the model was made with."""
        changed = self._clients.changed(self._client_settings())
        if changed:
            raise RequestError(f"cannot change {changed} of a model that was made. Make another one.")
        return self._clients.of(kwargs.get("model") or self.model), self._ask_options(stop, kwargs)

    def _ask_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> AskOptions:
        options: Any = {name: getattr(self, name) for name in _SAMPLING}
        options["stop"] = self.stop if stop is None else stop
        options |= {name: value for name, value in kwargs.items() if name not in _LANGCHAIN_ONLY}
        for name in ("parallel_tool_calls", "strict", "stop", "tools", "tool_choice", "response_format"):
            if options.get(name) is None:
                options.pop(name, None)  # LangChain's way of leaving something out
        return options  # type: ignore[no-any-return]


class Clients:
    """One :class:`fhe_llm.EncryptedLLM` for each model that was asked for, all under the same settings."""

    def __init__(self, settings: dict[str, Any], only: dict[str, Any]) -> None:
        """``only`` may hold the one ``client`` to use, and nothing else beside it. Raises :class:`RequestError`."""
        self._given: fhe_llm.EncryptedLLM | None = only.pop("client", None)
        if self._given is not None and only:
            raise RequestError(
                f"cannot use {min(only)!r} beside client: the client has its own. Drop one of them."
            )
        self._settings, self._only = settings, only
        self._lock = threading.Lock()
        self._made: dict[str, fhe_llm.EncryptedLLM] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._made)

    def changed(self, settings: dict[str, Any]) -> str | None:
        """The name of a setting that is not what it was; None where all are."""
        return next((name for name, value in settings.items() if value != self._settings[name]), None)

    def __deepcopy__(self, memo: Any) -> Clients:
        """A copy of a model shares its key and its connection."""
        return self

    def of(self, model: str) -> fhe_llm.EncryptedLLM:
        """The client of a model. Raises what :class:`fhe_llm.EncryptedLLM` raises."""
        if self._given is not None:
            if self._given.model != model:
                raise RequestError(
                    f"cannot use model {model!r}: the client is for {self._given.model!r}. "
                    "Pass no client, or name its model."
                )
            return self._given
        with self._lock:
            if model not in self._made:
                self._made[model] = fhe_llm.EncryptedLLM(model, **self._settings, **self._only)
            return self._made[model]

    def close(self) -> None:
        """Close the clients made here; one that was given is its owner's."""
        _close_all(self._made)

    async def aclose(self) -> None:
        """:meth:`close` on an event loop."""
        while self._made:
            await self._made.popitem()[1].aclose()

    def __repr__(self) -> str:
        return "Clients()"


def _close_all(made: dict[str, fhe_llm.EncryptedLLM]) -> None:
    while made:
        made.popitem()[1].close()


def _refuse_unknown(kind: type[BaseModel], settings: dict[str, Any]) -> None:
    known = {name for field in kind.model_fields.items() for name in _names(*field)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        listed = ", ".join(sorted({*EncryptedModel.model_fields, *_CLIENT_ONLY}))
        raise RequestError(
            f"cannot use parameter {unknown[0]!r}: there is no such parameter. Use one of {listed}."
        )


def _names(name: str, field: FieldInfo) -> set[str]:
    aliases = field.validation_alias
    others = aliases.choices if isinstance(aliases, AliasChoices) else [aliases or field.alias]
    return {name, *(str(other) for other in others if other)}


EncryptedModel.model_rebuild()
