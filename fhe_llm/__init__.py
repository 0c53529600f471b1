"""fhe_llm."""
