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
    ├── MissingRotationKeyError    missing_rotation_key  keys lack a rotation (evaluator/contract.py)
    ├── DeviceUnavailableError     device_unavailable    no CUDA device to compute with (evaluator/device.py)
    ├── DeviceMemoryError          device_memory         the device's memory is full (evaluator/device.py)
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
