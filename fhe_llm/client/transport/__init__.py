"""How frames travel: routines say what to send, transports (sync, async, in-process) carry it."""

from fhe_llm.client.transport.driver import AsyncTransport, Transport
from fhe_llm.client.transport.http import AsyncHttpTransport, Endpoint, HttpTransport
from fhe_llm.client.transport.in_process import AppTransport, AsyncAppTransport, FunctionTransport
from fhe_llm.client.transport.routines import KeyUpload, Patience, exchange, list_models, upload_keys

__all__ = [
    "AppTransport",
    "AsyncAppTransport",
    "AsyncHttpTransport",
    "AsyncTransport",
    "Endpoint",
    "FunctionTransport",
    "HttpTransport",
    "KeyUpload",
    "Patience",
    "Transport",
    "exchange",
    "list_models",
    "upload_keys",
]
