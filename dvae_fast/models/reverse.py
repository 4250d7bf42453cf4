"""τ(x̃|z, x): which corruptions of x are likely to have made z.

A reverse proposal is p(x̃|x) moved, element by element, by what a network makes of z and x:

- of rates, the logit of P(x̃ ≠ x), and of salt and pepper that of 1 among what differs;
- of Gaussian noise n = (x̃ − x)/std, mean and log-deviation of N(0, 1).

The network starts where it moves nothing. Source: Sobolev and Vetrov, arXiv 1905.03290.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import derived_key
from dvae_fast.corruptions import AdditiveGaussian, Corruption, Learnable
from dvae_fast.corruptions.basic import FusedCorruption, RateCorruption
from dvae_fast.functional._autograd import without_autocast
from dvae_fast.models.distributions import draw_bernoulli
from dvae_fast.models.layers import MLP, of_context, through

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["REVERSES", "ReverseNetwork", "draw_reversed", "outputs_of"]

#: what may move the proposal, by name
REVERSES = ("mlp",)

# Their keys among a seed's: what is drawn, and which of what differs is 1.
_REVERSE_KEY, _SALT_KEY = 5, 6


class ReverseNetwork(nn.Module):
    """(z, x) → what moves p(x̃|x), zeros at first.

    Args:
        latent: Z.
        given: of x, and of a context beside it: D + C.
        hidden: sizes of the hidden layers; may be empty.
        outputs: numbers, of all elements together.
        activation: one of `ACTIVATIONS`.
    """

    def __init__(
        self, latent: int, given: int, hidden: Sequence[int], outputs: int, activation: str
    ) -> None:
        super().__init__()
        self.trunk = MLP((latent, *hidden), activation)
        self.output = nn.Linear((latent, *hidden)[-1], outputs)
        self.data = cast("nn.Linear", of_context(given, (*hidden, outputs)[0]))
        with torch.no_grad():
            for parameter in self.output.parameters():
                parameter.zero_()
            if not hidden:
                self.data.weight.zero_()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(..., Z) and (..., D + C), which broadcasts → (..., outputs)."""
        return through((*self.trunk, self.output), z, self.data(x))


def outputs_of(corruption: Corruption) -> int:
    """How many numbers for each element of x move the proposal.

    Raises:
        ValueError: if there is none for such a corruption.
    """
    plain = _plain(corruption)
    return 2 if isinstance(plain, AdditiveGaussian) or plain.salted else 1


def _plain(corruption: Corruption) -> RateCorruption | AdditiveGaussian:
    """The corruption at its present level."""
    plain: Any = corruption
    if isinstance(corruption, Learnable) and isinstance(corruption.start, AdditiveGaussian):
        plain = AdditiveGaussian.at(corruption.level)
    elif "draw" in corruption.__dict__ or type(corruption).draw is not FusedCorruption.draw:
        plain = None
    if not isinstance(plain, (RateCorruption, AdditiveGaussian)):
        raise ValueError(
            "corruption must be a Masking, SaltAndPepper, BitFlip or AdditiveGaussian, or a "
            "Learnable of the last, for a reverse proposal, which needs the probability of x̃; "
            f"got {corruption}"
        )
    return plain


def draw_reversed(
    corruption: Corruption,
    moves: Tensor,
    x: Tensor,
    own: Tensor,
    count: int,
    key: Tensor,
    first_example: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """J draws of τ(x̃|z, x) for each of S samples z.

    Args:
        corruption: p(x̃|x).
        moves: (S, B, outputs_of(corruption) · D), of the network.
        x: (B, D).
        own: x̃ (M, B, D) that made the samples, S/M of them in a row each.
        count: J >= 0.
        key, first_example: as `own` was drawn with.
        mask: bool (B, D), of what was observed.

    Returns:
        x̃ (S, B, J, D) in x's dtype; log p(x̃|x) − log τ(x̃|z, x), (S, B, 1 + J), that of `own`
        first; and whether x̃ is without a derivative.

    Raises:
        ValueError: if `moves` has another size, or there is no proposal for the corruption.
    """
    plain, dtype = _plain(corruption), accumulation_dtype(x.dtype)
    size = outputs_of(corruption)
    if moves.shape[-1] != size * x.shape[-1]:
        raise ValueError(
            f"reverse must give {size} · D = {size * x.shape[-1]} numbers for {plain}, "
            f"got {moves.shape[-1]}"
        )
    each = len(moves) // len(own)
    with without_autocast(x):
        parts = [part.to(dtype) for part in moves.chunk(size, -1)]
        if mask is not None:  # nothing moves, and so counts, what was not observed
            parts = [part.masked_fill(~mask, 0) for part in parts]
        asked = _Asked(x, own, each, count, key, first_example)
        if isinstance(plain, AdditiveGaussian):
            return *_noise(plain, parts, asked), False
        changes = plain.change_probability(x)
        if mask is not None:
            changes = changes.masked_fill(~mask, 0)
        return *_hits(plain, changes, parts, asked), True


class _Asked(NamedTuple):
    """What is to be drawn, see `draw_reversed`; `each`: how many samples in a row one x̃ made."""

    x: Tensor
    own: Tensor
    each: int
    draws: int
    key: Tensor
    first_example: int

    def bernoulli(self, logits: Tensor, index: int) -> Tensor:
        """`draws` of them, by another key."""
        first = self.first_example
        return draw_bernoulli(logits, self.draws, derived_key(self.key, index), first_example=first)


def _noise(plain: AdditiveGaussian, parts: list[Tensor], asked: _Asked) -> tuple[Tensor, Tensor]:
    x, own, each, count, key, first_example = asked
    mean, log_deviation = parts
    log_var = 2 * log_deviation
    # x̃ of the seed is x + std · n with this n, whatever the deviation, 0 too.
    zero = torch.zeros(x.shape, dtype=mean.dtype, device=x.device)
    unit = AdditiveGaussian.at(zero.new_ones(()))
    n = unit.draw(zero, len(own), key, first_example, 0)
    n = n.repeat_interleave(each, 0).unsqueeze(-2)
    log_weight = functional.latent_log_ratio(n, mean, log_var)
    if count == 0:
        return x.new_empty(*mean.shape[:-1], 0, x.shape[-1]), log_weight
    noise, others = functional.sample_latent(
        mean, log_var, count, derived_key(key, _REVERSE_KEY), first_example=first_example
    )
    std = plain.std.to(x.device).to(noise.dtype).reshape(-1)
    noisy = (x.unsqueeze(1) + std * noise).to(x.dtype)
    return noisy, torch.cat((log_weight, others), -1)


def _hits(
    plain: RateCorruption, changes: Tensor, parts: list[Tensor], asked: _Asked
) -> tuple[Tensor, Tensor]:
    x, count = asked.x, asked.draws
    own = asked.own.repeat_interleave(asked.each, 0).unsqueeze(-2)  # (S, B, 1, D)
    x_rows = x.unsqueeze(1)
    dtype = changes.dtype
    logits, move = torch.logit(changes), parts[0]
    hits = (own != x_rows).to(dtype)
    if count > 0:
        hits = torch.cat((hits, asked.bernoulli(logits + move, _REVERSE_KEY)), -2)
    log_weight = _log_ratio(hits, None, logits, move)
    if plain.salted:
        logits = torch.logit(plain.salt_probability(x))
        ones = (own == 1).to(dtype)
        if count > 0:
            ones = torch.cat((ones, asked.bernoulli(logits + parts[1], _SALT_KEY)), -2)
        log_weight = log_weight + _log_ratio(ones, hits, logits, parts[1])
        changed = ones
    else:
        changed = plain.changed(x).to(dtype).unsqueeze(1)
    noisy = torch.where(hits > 0, changed.to(x.dtype), x_rows)
    return noisy[..., 1:, :], log_weight


def _log_ratio(drawn: Tensor, counts: Tensor | None, logits: Tensor, move: Tensor) -> Tensor:
    """Σ_d of log Bernoulli(drawn; σ(logits)) − log Bernoulli(drawn; σ(logits + move)), of those
    elements that count: drawn, counts (S, B, J, D), logits (B, D), move (S, B, D) → (S, B, J).

    What has no choice, at logits of ±inf, has a ratio of 0.
    """
    free = logits.isfinite()
    move = torch.where(free, move, 0.0)
    logits = torch.where(free, logits, 0.0)
    grown = functional.softplus(logits + move) - functional.softplus(logits)
    if counts is None:
        total = grown.sum(-1, keepdim=True)
    else:
        drawn = drawn * counts
        total = torch.matmul(counts, grown.unsqueeze(-1)).squeeze(-1)
    return total - torch.matmul(drawn, move.unsqueeze(-1)).squeeze(-1)
