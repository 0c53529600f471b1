"""Closed models behind HTTP. They read what they are sent: :mod:`fhe_llm.privacy` decides what that is."""
