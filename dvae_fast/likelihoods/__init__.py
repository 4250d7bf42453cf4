"""Decoder likelihoods p(x|z)."""
