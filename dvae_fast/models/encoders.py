"""Encoders: perceptrons, or networks that see an image as one, by its rows or by convolutions.

Each maps (..., D) to the mean and log-variance of q(z|x), (..., Z) each, or its full spread; an
image is D = H · W pixels, row by row. Source of the recurrent ones: Im, Ahn, Memisevic, Bengio
(arXiv 1511.06406), whose experiments compare gated recurrent units with perceptrons.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dvae_fast._checks import check_sizes
from dvae_fast.models.layers import MLP
from dvae_fast.models.posterior import posterior_layer, split_posterior

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "INFERENCES",
    "POOLINGS",
    "ConvEncoder",
    "GRUEncoder",
    "GaussianEncoder",
    "check_inference",
    "make_encoder",
]

#: "mlp": a multilayer perceptron. "gru": a GRU over the rows. "gru-2d": one over the rows and one
#: over the columns. "conv": convolutions of stride 2.
INFERENCES = ("mlp", "gru", "gru-2d", "conv")
POOLINGS = ("last", "mean")


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


def _check_image_shape(image_shape: Any) -> tuple[int, int]:
    shape = check_sizes("image_shape", image_shape)
    if len(shape) != 2:
        raise ValueError(f"image_shape must be (H, W), got {shape}")
    return shape[0], shape[1]


def check_inference(
    inference: str, data_size: int, image_shape: Sequence[int] | None
) -> tuple[int, int] | None:
    """`image_shape` as a tuple, if it and `inference` fit a model of D = `data_size`.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    if inference not in INFERENCES:
        raise ValueError(f"inference must be one of {', '.join(INFERENCES)}; got {inference!r}")
    if image_shape is None:
        if inference != "mlp":
            raise ValueError(
                f"image_shape must be (H, W) for inference {inference!r}, which reads images; "
                "got None"
            )
        return None
    height, width = _check_image_shape(image_shape)
    if height * width != data_size:
        raise ValueError(
            f"image_shape must be (H, W) with H · W = D = {data_size}, got {(height, width)}"
        )
    return height, width


class _ImageEncoder(nn.Module):
    """Features of each image, layers of a perceptron, and one last linear layer."""

    def __init__(
        self,
        image_shape: Sequence[int],
        features: int,
        hidden: Sequence[int],
        latent: int,
        activation: str,
        posterior: str,
    ) -> None:
        super().__init__()
        self.image_shape = _check_image_shape(image_shape)
        self.trunk = MLP((features, *hidden), activation)
        self.output = posterior_layer((features, *hidden)[-1], latent, posterior)
        self.latent, self.posterior = latent, posterior

    def features(self, images: Tensor) -> Tensor:
        """(N, H, W) → (N, features)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) → mean (..., Z), and log_var (..., Z) or, if full, L (..., Z, Z).

        Raises:
            ValueError: if D is not H · W.
        """
        height, width = self.image_shape
        leading = x.shape[:-1]
        if x.dim() == 0 or x.shape[-1] != height * width:
            raise ValueError(
                f"x must have shape (..., D) with D = {height} · {width} = {height * width}, "
                f"got {tuple(x.shape)}"
            )
        features = self.features(x.reshape(math.prod(leading), height, width))
        output: Tensor = self.output(self.trunk(features))
        rows = output.view(*leading, output.shape[-1])
        return split_posterior(rows, self.latent, self.posterior)


class GRUEncoder(_ImageEncoder):
    """q(z|x) from gated recurrent units that read an image row by row.

    Args:
        image_shape: (H, W).
        hidden: the units of the recurrent layer, then the sizes of layers between its state and
            the output; at least one.
        latent: Z.
        activation: of the layers after the recurrent one, one of `ACTIVATIONS`.
        posterior: one of `dvae_fast.models.POSTERIORS`.
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
        posterior: str = "diagonal",
        *,
        columns: bool = False,
        pooling: str = "last",
    ) -> None:
        height, width = _check_image_shape(image_shape)
        units, *rest = check_sizes("hidden", hidden) or (0,)
        if units == 0:
            raise ValueError("hidden must hold the size of the recurrent layer at least, got none")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        super().__init__(image_shape, units * (1 + columns), rest, latent, activation, posterior)
        self.pooling = pooling
        self.rows = nn.GRU(width, units, batch_first=True)
        self.columns = nn.GRU(height, units, batch_first=True) if columns else None

    def features(self, images: Tensor) -> Tensor:
        """(N, H, W) → (N, units), or (N, 2 · units) with columns."""
        read = self._pool(self.rows(images))
        if self.columns is None:
            return read
        return torch.cat((read, self._pool(self.columns(images.transpose(1, 2)))), -1)

    def _pool(self, result: tuple[Tensor, Tensor]) -> Tensor:
        states, last = result
        return last[-1] if self.pooling == "last" else states.mean(1)


class ConvEncoder(_ImageEncoder):
    """q(z|x) from 3 × 3 convolutions of stride 2, each of which halves the image.

    Args:
        image_shape: (H, W).
        hidden: sizes of the layers between the last convolution and the output; may be empty.
        latent: Z.
        activation: of those layers, one of `ACTIVATIONS`; that of the convolutions is ReLU.
        posterior: one of `dvae_fast.models.POSTERIORS`.
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
        posterior: str = "diagonal",
        *,
        channels: Sequence[int] = (32, 64),
    ) -> None:
        height, width = _check_image_shape(image_shape)
        channels = check_sizes("channels", channels)
        if not channels:
            raise ValueError("channels must hold at least one size, got none")
        for _ in channels:
            height, width = (height + 1) // 2, (width + 1) // 2
        features = channels[-1] * height * width
        super().__init__(image_shape, features, hidden, latent, activation, posterior)
        layers: list[nn.Module] = []
        for i, o in zip((1, *channels[:-1]), channels, strict=True):
            layer = nn.Conv2d(i, o, 3, stride=2, padding=1)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            # Not softplus, say, whose 0.69 at nothing, summed over all of a small image, drowns
            # what differs: digits then stay at the bound without latents for hundreds of steps.
            layers += [layer, nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)

    def features(self, images: Tensor) -> Tensor:
        """(N, H, W) → (N, channels · height · width of the last convolution's output)."""
        features: Tensor = self.convolutions(images.unsqueeze(1)).flatten(1)
        return features


def make_encoder(
    inference: str,
    data_size: int,
    image_shape: tuple[int, int] | None,
    hidden: Sequence[int],
    latent: int,
    activation: str,
    posterior: str = "diagonal",
) -> nn.Module:
    """The encoder called `inference`, one of `INFERENCES`; raises as `check_inference`."""
    shape = check_inference(inference, data_size, image_shape)
    if shape is None or inference == "mlp":
        return GaussianEncoder(data_size, hidden, latent, activation, posterior)
    if inference == "conv":
        return ConvEncoder(shape, hidden, latent, activation, posterior)
    return GRUEncoder(shape, hidden, latent, activation, posterior, columns=inference == "gru-2d")
