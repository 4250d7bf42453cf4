"""The public drop-in functions."""
