"""Corruptions as configurations hold them, JSON-able, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dvae_fast.corruptions.base import Corruption
from dvae_fast.corruptions.basic import FusedCorruption, SaltAndPepper, make_corruption
from dvae_fast.corruptions.compose import Compose
from dvae_fast.corruptions.learnable import Learnable

__all__ = ["corruption_from", "describe_corruption"]


def _plain(t: Tensor) -> float | list[float]:
    """One number or a list; float32 values in the shortest decimals that give them back."""
    t = t.detach().cpu().reshape(-1)
    values = [float(str(v)) for v in (t if t.dtype == torch.float64 else t.float()).numpy()]
    return values[0] if len(values) == 1 else values


def describe_corruption(corruption: Corruption) -> dict[str, Any]:
    """{"name", "level"} as `make_corruption` takes them, with "salt" where that is not enough.

    A `Learnable` is what it starts from, with "learnable" beside; a `Compose` {"name", "parts"}.

    Raises:
        ValueError: if the corruption is a function, which no configuration can hold.
    """
    if isinstance(corruption, Compose):
        return {"name": "compose", "parts": [describe_corruption(c) for c in corruption.parts]}
    if isinstance(corruption, Learnable):
        how = {"estimator": corruption.estimator, "temperature": corruption.temperature}
        return describe_corruption(corruption.start) | {"learnable": how}
    if not isinstance(corruption, FusedCorruption):
        raise ValueError(
            "corruption must be one of dvae_fast's own for a configuration to hold it, "
            f"got {corruption}"
        )
    config: dict[str, Any] = {
        "name": corruption.kind,
        "level": _plain(corruption.parameter),
    }
    if corruption.salt is not None and not bool((corruption.salt == 0.5).all()):
        salt = _plain(corruption.salt)
        if salt == config["level"]:
            config["name"] = "salt_and_pepper_released"
        else:
            config["salt"] = salt
    return config


def corruption_from(config: Any) -> Corruption:
    """What `describe_corruption` described; a corruption itself is returned as it is.

    Raises:
        ValueError: if a key is missing, or a value wrong.
    """
    if isinstance(config, Corruption):
        return config
    try:
        if config["name"] == "compose":
            return Compose(*map(corruption_from, config["parts"]))
        name, level = config["name"], config["level"]
    except (TypeError, KeyError):
        raise ValueError(
            f"config's corruption must have the keys name and level, got {config!r}"
        ) from None
    level, salt = (
        torch.tensor(value, device="cpu") if isinstance(value, list) else value
        for value in (level, config.get("salt"))
    )
    made = make_corruption(name, level) if salt is None else SaltAndPepper(level, salt)
    return Learnable(made, **config["learnable"]) if "learnable" in config else made
