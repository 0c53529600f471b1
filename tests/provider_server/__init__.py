"""A local server that speaks the APIs of closed providers as they do, and misbehaves when told to.

:class:`ProviderServer` listens on a real socket, checks requests as the provider would, records every byte it receives
and answers what the test scripted with ``server.next(Reply(text="…"), Failure(name="rate_limit"), …)``.
"""

from provider_server.behaviours import (
    Behaviour,
    Delivery,
    Failure,
    Raw,
    Reply,
    Script,
    ToolCall,
    garbage,
    redirect,
    web_page,
)
from provider_server.recording import Received
from provider_server.server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    HUGGINGFACE_KEY,
    LLAMA,
    OPENAI_KEY,
    ProviderServer,
)

__all__ = [
    "ANTHROPIC_KEY",
    "CLAUDE",
    "GPT",
    "HUGGINGFACE_KEY",
    "LLAMA",
    "OPENAI_KEY",
    "Behaviour",
    "Delivery",
    "Failure",
    "ProviderServer",
    "Raw",
    "Received",
    "Reply",
    "Script",
    "ToolCall",
    "garbage",
    "redirect",
    "web_page",
]
