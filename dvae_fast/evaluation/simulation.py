"""Noise of chains, and data that a model makes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import torch_seeded

if TYPE_CHECKING:
    from dvae_fast.evaluation.target import Evaluated

__all__ = ["normal", "simulate"]

# Index of the latents that data is simulated from, in the noise of chain 0.
_SIMULATED = 2**32 - 1


def normal(like: Tensor, shape: tuple[int, int, int], key: Tensor, first: int, i: int) -> Tensor:
    """(B, C, Z) of N(0, 1) in float64: a function of the example, the chain (which is the noise's
    copy) and i alone."""
    examples, chains, size = shape
    dtype = accumulation_dtype(like.dtype)
    zeros = torch.zeros(chains, examples, size, dtype=dtype, device=like.device)
    normal, _ = functional.sample_latent(zeros, zeros, 1, key, first_example=first, first_sample=i)
    return (
        normal.squeeze(2).transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format)
    )


def simulate(
    evaluated: Evaluated,
    n: int,
    size: int,
    device: torch.device,
    key: Tensor,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x (N, *shape), the shape being that of what decode returns, and z (N, Z) of p(x, z), given a
    context (N, *shape) if there is one."""
    # Plain functions do not tell what they take; one of these serves those that compute in it.
    dtypes = [torch.get_default_dtype(), torch.float64, torch.bfloat16, torch.float16]
    if evaluated.dtype is not None:
        dtypes = [evaluated.dtype]
    failed: list[RuntimeError] = []
    for dtype in dtypes:
        like = torch.empty(0, dtype=dtype, device=device)
        z = _latents(evaluated, n, size, like, key, context)
        try:
            x = _draw(evaluated, z, key, context)
            if len(dtypes) > 1:
                evaluated.posterior(x[:1], None if context is None else context[:1])
            return x, z.squeeze(1)
        except RuntimeError as error:
            failed.append(error)
    raise failed[0]


def _latents(
    evaluated: Evaluated, n: int, size: int, like: Tensor, key: Tensor, context: Tensor | None
) -> Tensor:
    """z ~ p(z), (N, 1, Z)."""
    if evaluated.own is not None and evaluated.log_ratio_above is not None:
        return evaluated.own.draw_prior(n, size, key, like, context).unsqueeze(1)
    return normal(like, (n, 1, size), key, 0, _SIMULATED).to(like.dtype)


def _draw(evaluated: Evaluated, z: Tensor, key: Tensor, context: Tensor | None) -> Tensor:
    """x ~ p(x|z): z (N, 1, Z) → (N, *shape)."""
    params = evaluated.params(z, context=context)
    tensors = [p for p in params if isinstance(p, Tensor)]
    whole = torch.broadcast_shapes(*(p.shape for p in tensors))
    like = tensors[0]
    full = tuple(
        p.expand(whole) if isinstance(p, Tensor) else like.new_full(whole, p) for p in params
    )
    with torch_seeded(int(key), z.device):
        x = evaluated.likelihood.sample(full).squeeze(1)
    shape = evaluated.shape
    return x.reshape(len(x), *shape) if math.prod(shape) == x[0].numel() else x
