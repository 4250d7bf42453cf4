"""Decoders: a multilayer perceptron that ends in one linear layer for each parameter of p(x|z).

The bias of the first starts where it gives the mean of the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dvae_fast._checks import check_size, check_sizes
from dvae_fast.likelihoods import get_likelihood, identity
from dvae_fast.models.layers import MLP, hooked, linear, of_context, through

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

    from dvae_fast.likelihoods import Likelihood

__all__ = ["Decoder", "check_data_mean", "splits"]


class Decoder(nn.Module):
    """The parameters of a likelihood: a trunk, then a linear layer and the likelihood's link each.

    They are apart because the likelihood can be taken from tiles of the last layer
    (`dvae_fast.linear_log_weights`), and because of an output without a link nothing but the loss
    reads what it returns. The layer is ``output`` where it is the only one, else it has the
    parameter's name.

    Args:
        latent: Z.
        hidden: sizes of the hidden layers, from the latents on; may be empty.
        data_size: D.
        likelihood: p(x|z), by its name or an object.
        activation: one of `ACTIVATIONS`.
        data_mean: (D,), where the bias of the first layer starts, for a likelihood that says how
            (a Bernoulli, or one whose first parameter is the mean by a `Link`); None for 0.
        context: C, of what it is told besides z, which the first layer reads; 0 for nothing.
    """

    output: nn.Linear

    def __init__(
        self,
        latent: int,
        hidden: Sequence[int],
        data_size: int,
        likelihood: str | Likelihood = "bernoulli",
        activation: str = "softplus",
        data_mean: Tensor | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        likelihood = get_likelihood(likelihood)
        check_size("latent", latent)
        check_size("context", context, 0)
        hidden = check_sizes("hidden", hidden)
        self.trunk = MLP((latent, *hidden), activation)
        # Without hidden layers the last one reads both, side by side.
        last = (latent + context, *hidden)[-1]
        self.context = of_context(context, hidden[0]) if hidden else None
        self.links = tuple(likelihood.params.values())
        single = len(likelihood.params) == 1
        names = ["output"] if single else [_free_name(self, name) for name in likelihood.params]
        self._names = tuple(names)
        # Layers of their own rather than parts of one: each output is contiguous, and so is its
        # gradient.
        for name in names:
            self.add_module(name, linear(last, check_size("data_size", data_size)))
        _start_at_mean(getattr(self, names[0]), data_mean, likelihood)

    def first(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first of its layers is given, and what is added to its outputs, if anything."""
        if self.context is None:
            return torch.cat((z, context.expand(*z.shape[:-1], context.shape[-1])), -1), None
        return z, self.context(context)

    def hidden(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., Z) → what the last layers read; a context (..., C) broadcasts to z."""
        if context is None:
            return cast("Tensor", self.trunk(z))
        z, more = self.first(z, context)
        return z if more is None else through(self.trunk, z, more)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """(..., Z) → the parameter, (..., D), or a tuple of them."""
        hidden = self.hidden(z, context)
        params = tuple(
            link(getattr(self, name)(hidden))
            for name, link in zip(self._names, self.links, strict=True)
        )
        return params[0] if len(params) == 1 else params


def _free_name(module: nn.Module, name: str) -> str:
    """For a submodule: a parameter may be called what every module has, such as `type`."""
    return f"{name}_" if hasattr(module, name) else name


def check_data_mean(data_mean: Any, size: int) -> None:
    """Raise TypeError or ValueError unless it is of `size` floating-point numbers."""
    if not isinstance(data_mean, Tensor) or not data_mean.is_floating_point():
        got = data_mean.dtype if isinstance(data_mean, Tensor) else type(data_mean).__name__
        raise TypeError(f"data_mean must be a floating-point tensor or None, got {got}")
    if data_mean.shape != (size,):
        raise ValueError(
            f"data_mean must have shape (D,) = ({size},), got {tuple(data_mean.shape)}"
        )


def _start_at_mean(layer: nn.Linear, data_mean: Tensor | None, likelihood: Likelihood) -> None:
    if data_mean is None:
        return
    check_data_mean(data_mean, len(layer.bias))
    start = likelihood.start(data_mean.detach())
    if start is not None:
        with torch.no_grad():
            layer.bias.copy_(start)


def splits(decoder: nn.Module) -> TypeGuard[Decoder]:
    """Whether trunk and then a linear output is all that calling `decoder` does.

    Not so for a subclass, several outputs, one with a link, another layer in the place of
    `output`, another `hidden`, or with hooks on either.
    """
    if type(decoder) is not Decoder or decoder.links != (identity,):
        return False
    if "hidden" in decoder.__dict__:
        return False
    if type(decoder.output) is not nn.Linear:
        return False
    return not hooked(decoder) and not hooked(decoder.output)
