"""fhe_llm_server."""
