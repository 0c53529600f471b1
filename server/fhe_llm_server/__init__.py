"""The proxy: holds the weights of an open model and answers rounds on ciphertexts.

UNTRUSTED by design. It sees ciphertexts, evaluation keys, sizes and timing; it imports neither TenSEAL nor
``fhe_llm.client``, and no route encrypts, decrypts or makes keys. Start it with ``python -m fhe_llm_server``,
or build the ASGI application with :func:`fhe_llm_server.app.create_app`.
"""
