"""Models inside of wrappers: of data parallel processes, compiled ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from dvae_fast.models.base import Autoencoder

__all__ = ["unwrapped"]


def unwrapped(model: Any) -> Any:
    """The model inside a wrapper that has it as `module`, as of data parallel ones, or that is
    compiled."""
    while isinstance(model, nn.Module) and not isinstance(model, Autoencoder):
        inner = model._modules.get("_orig_mod") or (
            None if hasattr(model, "encode") else model._modules.get("module")
        )
        if inner is None:
            break
        model = inner
    return model
