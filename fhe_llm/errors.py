"""The one tree of errors; every message reads ``cannot <verb> <object>: <cause>. <what to do>``.

::

    FheLlmError                    code
    ├── ParameterError             parameter_refused     parameters outside the security table
    ├── KeyRingError               key_unusable          key file missing, damaged, not writable
    │   ├── WrongPassphraseError   wrong_passphrase
    │   └── RetiredKeyError        key_retired           a reply failed validation under this key
    ├── ModelError                 model_unusable        files missing, damaged, unsupported
    │   ├── UnknownModelError      unknown_model         the proxy does not serve a model of that name
    │   ├── DownloadError          download_failed
    │   └── ContextOverflowError   context_overflow      prompt longer than the context window
    ├── FrameError                 bad_frame             bytes that are not one of our frames
    ├── ReplyError                 bad_reply             the proxy's answer fails validation
    ├── TransportError             proxy_unreachable     the proxy is down or went away
    │   └── ProxyTimeoutError      proxy_timeout         the proxy did not answer in time
    ├── ProxyError                 (the proxy's own)     the proxy refused the request and said why
    ├── RequestError               request_refused       settings or messages that make no sense
    ├── PrivacyError               privacy_refused       nothing left, because it must not or was not paid for
    │   ├── PrivacyParameterError  privacy_parameter     an epsilon, delta, unit or budget that makes no sense
    │   ├── BudgetExhaustedError   budget_exhausted      the charge is more than is left
    │   ├── IdempotencyError       key_reused            the key was used for something else
    │   ├── LedgerError            ledger_unusable       the ledger cannot be read or written
    │   └── UnknownTextError       text_unknown          text that the mechanism has no entry for
    ├── ProviderError              provider_failed       a closed provider refused, failed or was cut off
    │   ├── ProviderAuthError      provider_auth         no API key, or one that is not accepted
    │   ├── ProviderRequestError   provider_request      the provider does not take this request
    │   │   └── ProviderContextError  provider_context   too long for its model; a ContextOverflowError too
    │   ├── ProviderLimitError     provider_limit        too many requests, or a quota is used up
    │   ├── ProviderTimeoutError   provider_timeout      it did not answer before the deadline
    │   └── ProviderUnavailableError  provider_down      unreachable, overloaded, or its circuit is open
    ├── MissingRotationKeyError    missing_rotation_key  keys lack a rotation (evaluator/contract.py)
    ├── DeviceUnavailableError     device_unavailable    no CUDA device to compute with (evaluator/device.py)
    ├── DeviceMemoryError          device_memory         the device's memory is full (evaluator/device.py)
    ├── DeviceLostError            device_lost           the device failed for good (evaluator/device.py)
    └── ProxyStartError            proxy_failed          a proxy of our own did not start (cli/proxy_process.py)

``code`` is stable across releases; messages are not.
"""

from __future__ import annotations

from typing import ClassVar


class FheLlmError(Exception):
    """Base of everything this library raises on purpose."""

    code: ClassVar[str] = "fhe_llm_error"


class ParameterError(FheLlmError, ValueError):
    """Encryption parameters that the 128-bit table does not allow, or an unknown preset."""

    code = "parameter_refused"


class KeyRingError(FheLlmError):
    """A key file that cannot be read, written or used."""

    code = "key_unusable"


class WrongPassphraseError(KeyRingError):
    """The key file's authentication failed under this passphrase."""

    code = "wrong_passphrase"


class RetiredKeyError(KeyRingError):
    """The key was retired after a reply failed validation (CKKS is not IND-CPA-D secure)."""

    code = "key_retired"


class ModelError(FheLlmError):
    """Model files that are missing, damaged or of an unsupported architecture."""

    code = "model_unusable"


class UnknownModelError(ModelError):
    """The proxy serves no model of that name; the message lists those it serves."""

    code = "unknown_model"


class DownloadError(ModelError):
    """A model file that could not be fetched, or whose hash is not the pinned one."""

    code = "download_failed"


class ContextOverflowError(ModelError, ValueError):
    """More tokens than the context window holds."""

    code = "context_overflow"


class FrameError(FheLlmError, ValueError):
    """Bytes that are not a well-formed frame. ``reason`` is a stable code, listed in ``docs/wire-format.md``."""

    code = "bad_frame"

    def __init__(self, message: str, *, reason: str = "bad_field") -> None:
        super().__init__(message)
        self.reason = reason


class ReplyError(FheLlmError):
    """A reply from the proxy that fails validation; the session is closed and its key retired."""

    code = "bad_reply"


class TransportError(FheLlmError, ConnectionError):
    """The proxy cannot be reached, or went away and did not come back."""

    code = "proxy_unreachable"


class ProxyTimeoutError(TransportError):
    """The proxy did not answer in time, however often it was asked."""

    code = "proxy_timeout"


class ProxyError(FheLlmError):
    """The proxy refused a request. ``proxy_code`` is the stable code in its error envelope."""

    code = "proxy_refused"

    def __init__(self, message: str, *, proxy_code: str = "internal", status: int = 500) -> None:
        super().__init__(message)
        self.proxy_code = proxy_code
        self.status = status


class RequestError(FheLlmError, ValueError):
    """Settings or messages of a generation that make no sense; refused before anything is sent."""

    code = "request_refused"


class PrivacyError(FheLlmError):
    """Nothing was released, because it must not be or could not be paid for."""

    code = "privacy_refused"


class PrivacyParameterError(PrivacyError, ValueError):
    """An epsilon, delta, unit, budget or mechanism that makes no sense."""

    code = "privacy_parameter"


class BudgetExhaustedError(PrivacyError):
    """The charge is more than is left; the message says what is left and when it refreshes.

    ``unit`` and ``left`` (integer amounts) say it to programs; ``refreshes_at`` is in milliseconds since 1970 UTC,
    None where it does not.
    """

    code = "budget_exhausted"

    def __init__(
        self, message: str, *, unit: str = "", left: int = 0, refreshes_at: int | None = None
    ) -> None:
        super().__init__(message)
        self.unit = unit
        self.left = left
        self.refreshes_at = refreshes_at


class IdempotencyError(PrivacyError):
    """The key was used before for something else, or what it paid for was given back."""

    code = "key_reused"


class LedgerError(PrivacyError):
    """The ledger cannot be read or written; nothing was released."""

    code = "ledger_unusable"


class UnknownTextError(PrivacyError, ValueError):
    """Text that the mechanism's table has no entry for. The message counts it and never quotes it."""

    code = "text_unknown"


class ProviderError(FheLlmError):
    """A closed provider refused a request, failed, or was cut off. ``status`` is its HTTP status, 0 where it had none;
    ``retryable`` says whether the same request may succeed later, and ``retry_after`` after how many seconds."""

    code = "provider_failed"

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int = 0,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after


class ProviderAuthError(ProviderError):
    """No API key, or one that the provider does not accept."""

    code = "provider_auth"


class ProviderRequestError(ProviderError, ValueError):
    """The provider does not take this request: an unknown model, a bad setting, a prompt that its filter refuses."""

    code = "provider_request"


class ProviderContextError(ProviderRequestError, ContextOverflowError):
    """More tokens than the context window of the provider's model holds."""

    code = "provider_context"


class ProviderLimitError(ProviderError):
    """Too many requests, or a quota is used up."""

    code = "provider_limit"


class ProviderTimeoutError(ProviderError):
    """The provider did not answer before the deadline."""

    code = "provider_timeout"


class ProviderUnavailableError(ProviderError, ConnectionError):
    """The provider is unreachable or overloaded, or failed so often that its circuit is open."""

    code = "provider_down"
