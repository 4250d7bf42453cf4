"""Corruption distributions p(x̃|x)."""
