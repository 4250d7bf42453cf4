"""Encoders: perceptrons, or networks that see an image as one, by its rows or by convolutions.

Each maps (..., D) to the mean and log-variance of q(z|x), (..., Z) each, or its full spread; an
image is D = H · W pixels, row by row, or C · H · W, channel by channel. Source of the recurrent
ones: Im, Ahn, Memisevic, Bengio (arXiv 1511.06406), whose experiments compare gated recurrent units
with perceptrons.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from dvae_fast._checks import check_bool, check_choice, check_size, check_sizes
from dvae_fast.models.layers import MLP, of_context, through
from dvae_fast.models.posterior import posterior_layer, split_posterior
from dvae_fast.models.shapes import check_image_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ENCODERS",
    "POOLINGS",
    "ConvEncoder",
    "GRUEncoder",
    "GaussianEncoder",
    "check_encoder",
    "make_encoder",
]

POOLINGS = ("last", "mean")


class GaussianEncoder(nn.Module):
    """q(z|x), a Gaussian, from one last linear layer.

    Args:
        data_size: D.
        hidden: sizes of the hidden layers, from the data on; may be empty.
        latent: Z.
        activation: one of `ACTIVATIONS`.
        covariance: of q(z|x), one of `COVARIANCES`; None for the logits of binary latents.
        context: C, of what it is told besides x, which the first layer reads; 0 for nothing.
        log1p: see sign(x) log(1 + |x|) in the place of x: of counts, which are large (Lopez et al.,
            Nature Methods 15 (2018)).
    """

    def __init__(
        self,
        data_size: int,
        hidden: Sequence[int],
        latent: int,
        activation: str = "softplus",
        covariance: str | None = "diagonal",
        context: int = 0,
        *,
        log1p: bool = False,
    ) -> None:
        super().__init__()
        self.log1p = check_bool("log1p", log1p)
        check_size("data_size", data_size)
        check_size("context", context, 0)
        hidden = check_sizes("hidden", hidden)
        self.trunk = MLP((data_size, *hidden), activation)
        self.output = posterior_layer((data_size, *hidden)[-1], latent, covariance)
        self.latent, self.covariance = latent, covariance
        self.context = of_context(context, (*hidden, self.output.out_features)[0])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(..., D) → mean (..., Z), and log_var (..., Z) or, if full, L (..., Z, Z); a context is
        (..., C) and broadcasts to x."""
        if self.log1p:
            x = x.sign() * x.abs().log1p()
        return split_posterior(_output(self, x, context), self.latent, self.covariance)


def _output(encoder: GaussianEncoder | _ImageEncoder, t: Tensor, context: Tensor | None) -> Tensor:
    """What the layers of a perceptron, and the last one, make of t and a context."""
    if encoder.context is None or context is None:
        return cast("Tensor", encoder.output(encoder.trunk(t)))
    return through((*encoder.trunk, encoder.output), t, encoder.context(context))


class _ImageEncoder(nn.Module):
    """Features of each image, layers of a perceptron, and one last linear layer."""

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int,
        hidden: Sequence[int],
        latent: int,
        activation: str,
        covariance: str | None,
        context: int,
    ) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape)
        check_size("context", context, 0)
        hidden = check_sizes("hidden", hidden)
        self.trunk = MLP((features, *hidden), activation)
        self.output = posterior_layer((features, *hidden)[-1], latent, covariance)
        self.latent, self.covariance = latent, covariance
        self.context = of_context(context, (*hidden, self.output.out_features)[0])

    def features(self, images: Tensor) -> Tensor:
        """(N, *image_shape) → (N, features)."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(..., D) → mean (..., Z), and log_var (..., Z) or, if full, L (..., Z, Z); the context,
        which broadcasts to x, joins in where the images' features do.

        Raises:
            ValueError: if D is not that of the images.
        """
        leading, size = x.shape[:-1], math.prod(self.image_shape)
        if x.dim() == 0 or x.shape[-1] != size:
            raise ValueError(
                f"x must have shape (..., D) with D = {' · '.join(map(str, self.image_shape))} = "
                f"{size}, got {tuple(x.shape)}"
            )
        features = self.features(x.reshape(math.prod(leading), *self.image_shape))
        rows = _output(self, features.view(*leading, features.shape[-1]), context)
        return split_posterior(rows, self.latent, self.covariance)


def _with_channels(images: Tensor) -> Tensor:
    """(N, H, W) or (N, C, H, W) → (N, C, H, W)."""
    return images.unsqueeze(1) if images.dim() == 3 else images


class GRUEncoder(_ImageEncoder):
    """q(z|x) from gated recurrent units that read an image row by row.

    Args:
        image_shape: (H, W), or (C, H, W), of which a row is that of all channels.
        hidden: the units of the recurrent layer, then the sizes of layers between its state and
            the output; at least one.
        latent: Z.
        activation: of the layers after the recurrent one, one of `ACTIVATIONS`.
        covariance, context: as for `GaussianEncoder`.
        columns: read the image column by column too, with units of their own; both states go on.
        pooling: "last", the state after the last row; "mean", the mean of the states.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden: Sequence[int],
        latent: int,
        activation: str = "softplus",
        covariance: str | None = "diagonal",
        context: int = 0,
        *,
        columns: bool = False,
        pooling: str = "last",
    ) -> None:
        *channels, height, width = check_image_shape(image_shape)
        units, *rest = check_sizes("hidden", hidden) or (0,)
        if units == 0:
            raise ValueError("hidden must hold the size of the recurrent layer at least, got none")
        check_choice("pooling", pooling, POOLINGS)
        columns = check_bool("columns", columns)
        super().__init__(
            image_shape, units * (1 + columns), rest, latent, activation, covariance, context
        )
        self.pooling = pooling
        depth = math.prod(channels)
        self.rows = nn.GRU(depth * width, units, batch_first=True)
        self.columns = nn.GRU(depth * height, units, batch_first=True) if columns else None

    def features(self, images: Tensor) -> Tensor:
        """(N, *image_shape) → (N, units), or (N, 2 · units) with columns."""
        images = _with_channels(images)
        read = self._pool(self.rows(images.transpose(1, 2).flatten(2)))
        if self.columns is None:
            return read
        columns = images.permute(0, 3, 1, 2).flatten(2)
        return torch.cat((read, self._pool(self.columns(columns))), -1)

    def _pool(self, result: tuple[Tensor, Tensor]) -> Tensor:
        states, last = result
        return last[-1] if self.pooling == "last" else states.mean(1)


class ConvEncoder(_ImageEncoder):
    """q(z|x) from 3 × 3 convolutions of stride 2, each of which halves the image.

    Args:
        image_shape: (H, W) or (C, H, W).
        hidden: sizes of the layers between the last convolution and the output; may be empty.
        latent: Z.
        activation: of those layers, one of `ACTIVATIONS`; that of the convolutions is ReLU.
        covariance, context: as for `GaussianEncoder`.
        channels: of the convolutions, from the data on; at least one.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden: Sequence[int],
        latent: int,
        activation: str = "softplus",
        covariance: str | None = "diagonal",
        context: int = 0,
        *,
        channels: Sequence[int] = (32, 64),
    ) -> None:
        *depth, height, width = check_image_shape(image_shape)
        channels = check_sizes("channels", channels)
        if not channels:
            raise ValueError("channels must hold at least one size, got none")
        for _ in channels:
            height, width = (height + 1) // 2, (width + 1) // 2
        features = channels[-1] * height * width
        super().__init__(image_shape, features, hidden, latent, activation, covariance, context)
        layers: list[nn.Module] = []
        for i, o in zip((math.prod(depth), *channels[:-1]), channels, strict=True):
            layer = nn.Conv2d(i, o, 3, stride=2, padding=1)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            # Not softplus, say, whose 0.69 at nothing, summed over all of a small image, drowns
            # what differs: digits then stay at the bound without latents for hundreds of steps.
            layers += [layer, nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)

    def features(self, images: Tensor) -> Tensor:
        """(N, *image_shape) → (N, channels · height · width of the last convolution's output)."""
        images = _with_channels(images)
        features: Tensor = self.convolutions(images).flatten(1)
        return features


class Ready(NamedTuple):
    """How an encoder is made by name: of D, or of the images' shape if it reads those."""

    make: Callable[..., nn.Module]
    reads_images: bool = True
    recurrent: bool = False


#: "mlp": a multilayer perceptron. "gru": a GRU over the rows. "gru_2d": one over the rows and one
#: over the columns. "conv": convolutions of stride 2. "mlp_log1p": a perceptron that sees
#: logarithms, of counts.
ENCODERS = {
    "mlp": Ready(GaussianEncoder, reads_images=False),
    "gru": Ready(GRUEncoder, recurrent=True),
    "gru_2d": Ready(partial(GRUEncoder, columns=True), recurrent=True),
    "conv": Ready(ConvEncoder),
    "mlp_log1p": Ready(partial(GaussianEncoder, log1p=True), reads_images=False),
}


def check_encoder(encoder: str, hidden_sizes: Sequence[int]) -> None:
    """Raise ValueError unless `encoder` is one of `ENCODERS` and has the layers it needs."""
    check_choice("encoder", encoder, ENCODERS)
    if ENCODERS[encoder].recurrent and not hidden_sizes:
        raise ValueError(
            f"hidden_sizes must hold the size of the recurrent layer for {encoder}, got none"
        )


def make_encoder(
    encoder: str,
    data_size: int,
    image_shape: Sequence[int] | None,
    hidden: Sequence[int],
    latent: int,
    activation: str,
    covariance: str | None = "diagonal",
    context: int = 0,
) -> nn.Module:
    """The encoder called `encoder`, one of `ENCODERS`.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    check_encoder(encoder, hidden)
    shape = None if image_shape is None else check_image_shape(image_shape, data_size)
    ready = ENCODERS[encoder]
    if ready.reads_images and shape is None:
        raise ValueError(
            f"image_shape must be (H, W) or (C, H, W) for the encoder {encoder!r}, which reads "
            "images; got None"
        )
    size = shape if ready.reads_images else data_size
    return ready.make(size, hidden, latent, activation, covariance, context)
