"""Decoders: multilayer perceptrons ending in one linear layer.

The bias of a decoder's output starts where it gives the mean of the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvae_fast._checks import check_size
from dvae_fast.models.layers import MLP, hooked, linear

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

__all__ = [
    "DECODERS",
    "BernoulliDecoder",
    "DiscretisedLogisticDecoder",
    "GaussianDecoder",
    "NegativeBinomialDecoder",
    "splits",
]

# Where a pixel is constant over the data its logit would be infinite (and the logarithm of a gene
# never seen); the start of the bias alone keeps away from that, never the likelihood.
_MEAN_MARGIN = 1e-3

#: The least scale a decoder gives (arXiv 1511.06406).
MIN_SCALE = 1e-4


def _start_at_mean(layer: nn.Linear, data_mean: Tensor | None, *, counts: bool = False) -> None:
    """layer.bias = logit(data_mean), so that sigmoid(0 + bias) is the mean of the data.

    Of counts, log(data_mean) and exp.
    """
    if data_mean is None:
        return
    if not isinstance(data_mean, Tensor) or not data_mean.is_floating_point():
        got = data_mean.dtype if isinstance(data_mean, Tensor) else type(data_mean).__name__
        raise TypeError(f"data_mean must be a floating-point tensor or None, got {got}")
    if data_mean.shape != layer.bias.shape:
        raise ValueError(
            f"data_mean must have shape (D,) = {tuple(layer.bias.shape)}, "
            f"got {tuple(data_mean.shape)}"
        )
    mean = data_mean.detach()
    highest = torch.finfo(mean.dtype).max if counts else 1
    if not bool(((mean >= 0) & (mean <= highest)).all()):
        raise ValueError(
            f"data_mean must {'be finite and >= 0' if counts else 'lie in [0, 1]'}, "
            f"got values from {mean.min().item():g} to {mean.max().item():g}"
        )
    with torch.no_grad():
        if counts:
            layer.bias.copy_(torch.log(mean.clamp(min=_MEAN_MARGIN)))
        else:
            layer.bias.copy_(torch.logit(mean.clamp(_MEAN_MARGIN, 1 - _MEAN_MARGIN)))


class BernoulliDecoder(nn.Module):
    """p(x|z) = Π Bernoulli(σ(logits)): a trunk, then one linear layer.

    The two are apart because the likelihood can be taken from tiles of the last layer
    (`dvae_fast.linear_log_weights`), and because nothing but the loss reads what it returns.

    Args:
        latent: Z.
        hidden: sizes of the hidden layers, from the latents on; may be empty.
        data_size: D.
        activation: one of `ACTIVATIONS`.
        data_mean: (D,) in [0, 1], where the output's bias starts; None for 0.5 everywhere.
    """

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        data_size: int,
        activation: str = "softplus",
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.trunk = MLP((latent, *hidden), activation)
        self.output = linear((latent, *hidden)[-1], check_size("data_size", data_size))
        _start_at_mean(self.output, data_mean)

    def forward(self, z: Tensor) -> Tensor:
        """(..., Z) → logits (..., D)."""
        logits: Tensor = self.output(self.trunk(z))
        return logits


def splits(decoder: nn.Module) -> TypeGuard[BernoulliDecoder]:
    """Whether trunk and then a linear output is all that calling `decoder` does.

    Not so for a subclass, another layer in the place of `output`, or with hooks on either.
    """
    if type(decoder) is not BernoulliDecoder or type(decoder.output) is not nn.Linear:
        return False
    return not hooked(decoder) and not hooked(decoder.output)


class _PairDecoder(nn.Module):
    """A trunk, then one linear layer for the mean and one for the scale = softplus(b) + 1e-4.

    Arguments as for `BernoulliDecoder`; `data_mean` is where the mean starts.
    """

    #: whether the mean is of counts, e^a, or in [0, 1], σ(a)
    counts: ClassVar[bool] = False

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        data_size: int,
        activation: str = "softplus",
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.trunk = MLP((latent, *hidden), activation)
        last = (latent, *hidden)[-1]
        # Two layers rather than halves of one: each output is contiguous, and so is its gradient.
        self.mean = linear(last, check_size("data_size", data_size))
        self.scale = linear(last, data_size)
        _start_at_mean(self.mean, data_mean, counts=self.counts)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Z) → (mean, scale), each (..., D)."""
        hidden = self.trunk(z)
        raw = self.mean(hidden)
        mean = torch.exp(raw) if self.counts else torch.sigmoid(raw)
        return mean, F.softplus(self.scale(hidden)) + MIN_SCALE


class GaussianDecoder(_PairDecoder):
    """p(x|z) = Π N(mean, scale²), mean = σ(a), scale = softplus(b) + 1e-4 (arXiv 1511.06406).

    Arguments as for `BernoulliDecoder`; `data_mean` is where the mean starts.
    """


class DiscretisedLogisticDecoder(_PairDecoder):
    """Grey levels: the mean σ(a) and scale softplus(b) + 1e-4 of a discretised logistic.

    Arguments as for `BernoulliDecoder`; `data_mean` is where the logistic's mean starts.
    """


class NegativeBinomialDecoder(_PairDecoder):
    """Counts: mean e^a, inverse dispersion softplus(b) + 1e-4.

    Arguments as for `BernoulliDecoder`, but `data_mean` is any finite mean >= 0.
    """

    counts = True


#: Decoders by the kind of their likelihood.
DECODERS: dict[str, type[BernoulliDecoder] | type[_PairDecoder]] = {
    "bernoulli": BernoulliDecoder,
    "gaussian": GaussianDecoder,
    "discretised_logistic": DiscretisedLogisticDecoder,
    "negative_binomial": NegativeBinomialDecoder,
}
