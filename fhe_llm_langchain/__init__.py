"""fhe_llm_langchain."""
