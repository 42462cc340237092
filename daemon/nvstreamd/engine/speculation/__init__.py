"""Which tokens will probably come next, so that one pass can verify several? Guesses without a model of their own."""
