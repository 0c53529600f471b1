"""The routes. None of them encrypts, decrypts or makes a key; a test asserts it over the list."""
