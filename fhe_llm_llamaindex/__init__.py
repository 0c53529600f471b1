"""fhe_llm_llamaindex."""
