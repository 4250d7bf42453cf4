"""Noise from a counter: Philox, and which word of it belongs to which element.

The same mapping as in ``csrc/core``, in plain PyTorch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "LANES",
    "STREAM_COMPONENT",
    "STREAM_CORRUPTION",
    "STREAM_LATENT",
    "corruption_index",
    "latent_noise",
    "philox",
    "standard_normal",
    "threshold",
    "uniform_bits",
]

# Streams: the last word of the Philox counter, so that no two uses of a seed share numbers.
STREAM_CORRUPTION = 0
STREAM_LATENT = 1
STREAM_COMPONENT = 2  # which component of a mixture; drawn here alone

# Elements of one noise block: 16 counters of 4 words; word w of counter c is element 16 w + c.
BLOCK = 64
LANES = 16

_MASK32 = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011). Words are int64 tensors holding 32-bit values."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        hi0, lo0 = (p0 >> 32) & _MASK32, p0 & _MASK32
        hi1, lo1 = (p1 >> 32) & _MASK32, p1 & _MASK32
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def _blocks(stream: Tensor, example: Tensor, sample: Tensor, size: int, seed: Tensor) -> Tensor:
    """Raw words for elements 0..size, rounded up to blocks: (..., blocks, 4 words, 16 lanes)."""
    blocks = (size + BLOCK - 1) // BLOCK
    c0 = torch.arange(blocks * LANES, device=seed.device, dtype=torch.int64)
    words = philox((c0, sample[..., None], example[..., None], stream[..., None]), seed.reshape(()))
    stacked = torch.stack(words, -1)
    return stacked.view(*stacked.shape[:-2], blocks, LANES, 4).transpose(-1, -2)


def uniform_bits(
    stream: Tensor, example: Tensor, sample: Tensor, size: int, seed: Tensor
) -> Tensor:
    """32-bit words as int64, one an element: (..., size)."""
    return _blocks(stream, example, sample, size, seed).flatten(-3)[..., :size]


def standard_normal(
    stream: Tensor, example: Tensor, sample: Tensor, size: int, seed: Tensor, dtype: torch.dtype
) -> Tensor:
    """Box–Muller on words (0, 1) and (2, 3) of each counter: (..., size) of N(0, 1)."""
    words = _blocks(stream, example, sample, size, seed)
    u = (words[..., 0::2, :].to(dtype) + 0.5) * 2.0**-32
    # θ = 2π w / 2³², the angle wrapped to [−π, π) as the kernels do.
    v = words[..., 1::2, :]
    theta = torch.where(v >= 2**31, v - 2**32, v).to(dtype) * (2.0 * math.pi * 2.0**-32)
    radius = torch.sqrt(-2.0 * torch.log(u))
    pair = torch.stack((radius * torch.cos(theta), radius * torch.sin(theta)), -2)
    return pair.flatten(-4)[..., :size]


def _indices(
    stream: int,
    copies: int,
    examples: int,
    samples: int,
    first_example: int,
    first_sample: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """(stream | copy << 8, example, sample), each broadcastable to (copies, examples, samples)."""
    copy = torch.arange(copies, device=device).view(-1, 1, 1)
    example = torch.arange(first_example, first_example + examples, device=device).view(1, -1, 1)
    sample = torch.arange(first_sample, first_sample + samples, device=device).view(1, 1, -1)
    return torch.broadcast_tensors(copy * 256 + stream, example, sample)  # type: ignore[no-any-return]


def latent_noise(
    copies: int,
    examples: int,
    samples: int,
    size: int,
    seed: Tensor,
    first_example: int,
    first_sample: int,
    dtype: torch.dtype,
) -> Tensor:
    """ε of `sample_latent`: (copies, examples, samples, size)."""
    index = _indices(
        STREAM_LATENT, copies, examples, samples, first_example, first_sample, seed.device
    )
    return standard_normal(*index, size, seed, dtype)


def corruption_index(
    copies: int, examples: int, seed: Tensor, first_example: int, first_copy: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Copy m of a corruption is counter sample m: indices of shape (copies, examples)."""
    index = _indices(STREAM_CORRUPTION, 1, examples, copies, first_example, first_copy, seed.device)
    stream, example, sample = (i[0].transpose(0, 1) for i in index)
    return stream, example, sample


def threshold(probability: Tensor) -> Tensor:
    """round(p · 2²⁴): an element is hit when the top 24 bits of its word lie below."""
    return torch.round(probability.to(torch.float32) * 2.0**24).to(torch.int64)
