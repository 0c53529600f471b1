"""What both sides know about a model: files, config, tokenizer, and the client half as a generator.

Start with :func:`fhe_llm.models.resolve.open_model` (files to a model),
:func:`fhe_llm.models.bundle.load_bundle` and :func:`fhe_llm.models.registry.client_half` (what a client
runs). Nothing here knows about keys or ciphertexts.
"""
