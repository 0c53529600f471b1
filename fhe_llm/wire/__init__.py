"""Bytes that cross the trust boundary; start at ``frame.encode`` and ``frame.decode``.

Nothing here holds a key that decrypts, and nothing here imports TenSEAL, the client or an evaluator.
"""
