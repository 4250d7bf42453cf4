"""Discretised logistic: grey levels, by mean and scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import Likelihood, check_positive, in_wide, not_negative
from dvae_fast.likelihoods.links import positive, sigmoid

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["DiscretisedLogistic", "logistic_bin"]


class DiscretisedLogistic(Likelihood):
    """256 grey levels x in {0, 1/255, …, 1}: a logistic's mass in the bin x ± ½/255.

    p(x|z) = Π σ((x + ½/255 − mean)/scale) − σ((x − ½/255 − mean)/scale), the first bin open below
    and the last above, so that the levels' probabilities sum to 1; scale > 0: scalar, one per
    dimension, or full. log p is of a discrete x, in nats: no density to correct for.

    Source: Salimans, Karpathy, Chen, Kingma (arXiv 1701.05517), equation 2; Kingma et al.
    (arXiv 1606.04934), equation 19.
    """

    kernel = "discretised_logistic"
    params: ClassVar[Links] = {"mean": sigmoid, "scale": positive}
    discrete = True
    interval = (0.0, 1.0)
    step = 1 / 255

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """log (σ(far) − σ(near)) = log σ(−near) + log σ(far) + log (1 − e^−(far − near))."""
        _, near, far, width = logistic_bin(*params, x)
        inside = torch.nn.functional.logsigmoid(-near) + torch.nn.functional.logsigmoid(far)
        return inside + torch.log(-torch.expm1(-width))

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """sign (σ(near) − σ(−far))/s and (near σ(near) − far σ(−far) − w/(e^w − 1))/s."""
        mean, scale = params
        sign, near, far, width = logistic_bin(mean, scale, x)
        at_near, at_far = torch.sigmoid(near), torch.sigmoid(-far)
        # e^−u has gone to 0 before u goes to inf; w/(e^w − 1) goes to 1 with w.
        near_term = torch.where(at_near == 0, 0.0, near * at_near)
        far_term = torch.where(at_far == 0, 0.0, far * at_far)
        width_term = torch.where(width == 0, 1.0, width / torch.expm1(width))
        width_term = torch.where(width == math.inf, 0.0, width_term)
        return sign * (at_near - at_far) / scale, (near_term - far_term - width_term) / scale

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        check_positive("scale", params[1])

    @in_wide
    def mean(self, params: tuple[Tensor, Tensor]) -> Tensor:
        """E[x|z], which near 0 and 1, where bins are open, is not the logistic's own mean."""
        mean, scale = params
        # x is the number of bins' edges below a logistic draw, over 255.
        total = torch.zeros_like(mean)
        for edge in range(255):
            total += torch.sigmoid((mean - (edge + 0.5) / 255) / scale)
        return total / 255

    @in_wide
    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        mean, scale = params
        uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        draw = mean + scale * torch.logit(uniform)
        return (draw * 255).round().clamp(0, 255) / 255


def logistic_bin(mean: Tensor, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(sign, near, far, width) of the bin x ± ½/255, counted from the mean in units of the scale.

    The first and the last bin are open: their far end and their width are infinite. The scale
    divides last, so that of an infinite mean or a tiny scale nothing becomes inf − inf.
    """
    half, scale = 0.5 / 255, not_negative(scale)
    is_open = (x - 0.5).abs() > 0.5 - half
    sign = torch.where(torch.where(is_open, x - 0.5, x - mean) < 0, -1.0, 1.0).to(mean.dtype)
    distance = sign * (x - mean)
    far = torch.where(is_open, math.inf, (distance + half) / scale)
    width = torch.where(is_open, math.inf, 2 * half / scale)
    return sign, (distance - half) / scale, far, width
