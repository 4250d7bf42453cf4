"""Bounds, and the losses that estimate their gradients."""
