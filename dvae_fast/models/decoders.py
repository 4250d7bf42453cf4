"""Encoders and decoders: multilayer perceptrons ending in one linear layer.

Weights start as Glorot-uniform and biases as zero, as in the importance-weighted autoencoder's
first code (Burda et al., arXiv 1509.00519); the bias of a decoder's output starts where it gives
the mean of the data.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvae_fast.functional import log_weights as functional
from dvae_fast.reference import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeGuard

__all__ = [
    "ACTIVATIONS",
    "DECODERS",
    "MLP",
    "POSTERIORS",
    "BernoulliDecoder",
    "DiscretisedLogisticDecoder",
    "GaussianDecoder",
    "GaussianEncoder",
    "NegativeBinomialDecoder",
    "Softplus",
]


class Softplus(nn.Module):
    """log(1 + e^x), fused: see `dvae_fast.functional.softplus`."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        return functional.softplus(x)


#: Constructors of the non-linearities by the name used in configurations.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}

# Where a pixel is constant over the data its logit would be infinite (and the logarithm of a gene
# never seen); the start of the bias alone keeps away from that, never the likelihood.
_MEAN_MARGIN = 1e-3

#: The least scale a decoder gives (arXiv 1511.06406).
MIN_SCALE = 1e-4


def check_size(name: str, value: Any) -> int:
    """`value` if it is an int >= 1, else TypeError or ValueError naming the argument."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple if it is a sequence of ints >= 1, else an error naming the argument."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of ints, got {values!r}")
    return tuple(check_size(f"{name}[{i}]", value) for i, value in enumerate(values))


#: q(z|x)'s covariance: diagonal, or any, as a triangular factor L of L Lᵀ
POSTERIORS = ("diagonal", "full")


def check_posterior(posterior: str) -> str:
    """`posterior` if it is one of `POSTERIORS`, else ValueError."""
    if posterior not in POSTERIORS:
        raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}; got {posterior!r}")
    return posterior


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each submodule's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _activation(name: str) -> Callable[[], nn.Module]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer as all here start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def posterior_layer(inputs: int, latent: int, posterior: str) -> nn.Linear:
    """An encoder's last layer, of 2 Z outputs, and Z (Z − 1)/2 below a full factor's diagonal.

    Those start at zero: a full covariance starts as the diagonal one would.
    """
    layer = linear(inputs, 2 * check_size("latent", latent))
    if check_posterior(posterior) == "diagonal":
        return layer
    wide: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, 2 * latent + latent * (latent - 1) // 2)
    with torch.no_grad():
        for parameter, start in zip(wide.parameters(), layer.parameters(), strict=True):
            parameter.zero_()
            parameter[: 2 * latent] = start
    return wide


def split_posterior(output: Tensor, latent: int, posterior: str) -> tuple[Tensor, Tensor]:
    """mean (..., Z), and log_var (..., Z) or L (..., Z, Z) with L_ii = exp(½ log_var_i)."""
    if posterior == "diagonal":
        mean, log_var = output.chunk(2, -1)
        return mean, log_var
    mean, log_var, below = output.split((latent, latent, output.shape[-1] - 2 * latent), -1)
    dtype = accumulation_dtype(output.dtype)
    factor = torch.diag_embed(torch.exp(0.5 * log_var.to(dtype)))
    row, column = torch.tril_indices(latent, latent, -1, device=output.device)
    factor[..., row, column] = below.to(dtype)
    return mean, factor


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


class MLP(nn.Sequential):
    """Linear layers, each followed by the activation: (..., sizes[0]) → (..., sizes[-1]).

    One size alone makes no layer: the identity.

    Raises:
        TypeError, ValueError: if a size is not an int >= 1, or the activation is unknown.
    """

    def __init__(self, sizes: Sequence[int], activation: str = "softplus") -> None:
        make = _activation(activation)
        sizes = check_sizes("sizes", sizes)
        if not sizes:
            raise ValueError("sizes must hold at least one size, got none")
        layers = [f for i, o in pairwise(sizes) for f in (linear(i, o), make())]
        super().__init__(*layers)


class GaussianEncoder(nn.Module):
    """q(z|x), a Gaussian, from one last linear layer.

    Args:
        data_size: D.
        hidden: sizes of the hidden layers, from the data on; may be empty.
        latent: Z.
        activation: one of `ACTIVATIONS`.
        posterior: one of `POSTERIORS`.
    """

    def __init__(
        self,
        data_size: int,
        hidden: Sequence[int],
        latent: int,
        activation: str = "softplus",
        posterior: str = "diagonal",
    ) -> None:
        super().__init__()
        self.trunk = MLP((data_size, *hidden), activation)
        self.output = posterior_layer((data_size, *hidden)[-1], latent, posterior)
        self.latent, self.posterior = latent, posterior

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) → mean (..., Z), and log_var (..., Z) or, if full, L (..., Z, Z)."""
        return split_posterior(self.output(self.trunk(x)), self.latent, self.posterior)


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


def hooked(module: nn.Module) -> bool:
    """Whether calling `module` does more, or something else, than its class's forward."""
    every = nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
        or "forward" in module.__dict__
    )


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
