"""Seeds as the operators take them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["First", "derived_key", "generator_seed", "seed_tensor", "torch_seeded"]

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_INTEGERS = frozenset((*_SIGNED, *_UNSIGNED))


class First(TypedDict, total=False):
    """Indices of the first example and sample in the noise, 0 where they are not given, so that any
    split of the work draws the same numbers."""

    first_example: int
    first_sample: int


def seed_tensor(seed: int | np.integer[Any] | Tensor | None, device: torch.device) -> Tensor:
    """One int64 on `device`; None draws it there, so that `torch.manual_seed` governs."""
    if seed is None:
        return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.is_nested or seed.dtype not in _INTEGERS or seed.numel() != 1:
            got = "a nested one" if seed.is_nested else f"{seed.dtype} of shape {tuple(seed.shape)}"
            raise TypeError(f"seed must be an int or an integer tensor of one element, got {got}")
        if seed.dtype != torch.int64:
            seed = seed.view(torch.int64) if seed.dtype == torch.uint64 else seed.long()
        return seed if seed.device == device else seed.to(device)
    if isinstance(seed, np.integer):
        seed = int(seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(
            "seed must be an int, an integer tensor of one element or None, "
            f"got {type(seed).__name__}"
        )
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits, from -2**63 to 2**64 - 1, got {seed}")
    if seed >= 2**63:  # the same 64 bits
        seed -= 2**64
    # Filled on the device: a copy from the host would wait for it, and break a CUDA graph.
    return torch.full((1,), seed, dtype=torch.int64, device=device)


# The golden ratio's digits: an odd number of no pattern.
_GOLDEN = 0x9E3779B97F4A7C15


def derived_key(key: Tensor, index: int) -> Tensor:
    """The index-th of the keys that belong to a seed, the 0th being the seed itself.

    For draws of one (stream, example, copy) more than one; nothing is read on the host.
    """
    return key ^ ((index * _GOLDEN + 2**63) % 2**64 - 2**63)


def generator_seed(key: Tensor, example: int, copy: int) -> int:
    """A seed for torch's generators, read on the host: of (seed, first example, copy).

    A CPU's generator looks at the low 32 bits only, so all bits of the seed are folded into them;
    there, the copies of one batch have different seeds.
    """
    seed = int(key) % 2**64
    seed = (seed ^ seed >> 32) * _GOLDEN % 2**64
    seed ^= seed >> 32
    return (seed + example * 0x9E3779B9 + copy * 0x85EBCA77C2B2AE63) % 2**63


@contextmanager
def torch_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators start at the seed, and go on afterwards where they were, those of the
    CPU and of `device`."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # torch.manual_seed would keep three stacks of who asked, for devices yet to come
            torch.default_generator.manual_seed(seed)
        yield
