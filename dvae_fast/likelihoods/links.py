"""What a decoder's head makes of its outputs, so that they are parameters of a likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dvae_fast._dtypes import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MIN_SCALE", "Link", "exponential", "identity", "positive", "sigmoid"]

#: The least that `positive` gives (arXiv 1511.06406).
MIN_SCALE = 1e-4

# Where a pixel is constant over the data its logit would be infinite (and the logarithm of a gene
# never seen); the start of the bias alone keeps away from that, never the likelihood.
_MARGIN = 1e-3
# Counts to this one have a derivative in their rate, wherever that lies.
_COUNT = 1e9


@dataclass(frozen=True)
class Link:
    """A map from any number to a parameter, with the way back.

    A plain function will do for a likelihood of one's own; only a link says where the bias of a
    decoder starts.
    """

    forward: Callable[[Tensor], Tensor]
    #: what `forward` makes a parameter of; kept finite where that is infinite
    inverse: Callable[[Tensor], Tensor]
    #: closed interval of what there is a way back from
    interval: tuple[float, float] = (-math.inf, math.inf)

    def __call__(self, output: Tensor) -> Tensor:
        return self.forward(output)


# Functions of the module, so that what holds a link can be pickled, and read back by torch.load
# with weights_only, which does not know how torch's own are pickled.


def _unchanged(t: Tensor) -> Tensor:
    return t


def _sigmoid(output: Tensor) -> Tensor:
    return torch.sigmoid(output)


def _exp(output: Tensor) -> Tensor:
    # Neither inf, whose sample has no weight, but 0 · inf for a derivative, nor so near to 0 that a
    # count over it is inf.
    sums = torch.finfo(accumulation_dtype(output.dtype))
    least, most = math.log(_COUNT / sums.max), math.log(torch.finfo(output.dtype).max) - 0.05
    return torch.exp(output.clamp(least, most))


def _softplus(output: Tensor) -> Tensor:
    return F.softplus(output) + MIN_SCALE


def _softplus_inverse(scale: Tensor) -> Tensor:
    return torch.log(torch.expm1((scale - MIN_SCALE).clamp(min=_MARGIN)))


def _logit(probability: Tensor) -> Tensor:
    return torch.logit(probability.clamp(_MARGIN, 1 - _MARGIN))


def _log(mean: Tensor) -> Tensor:
    return torch.log(mean.clamp(min=_MARGIN))


identity = Link(_unchanged, _unchanged)
positive = Link(_softplus, _softplus_inverse, (0.0, math.inf))
sigmoid = Link(_sigmoid, _logit, (0.0, 1.0))
exponential = Link(_exp, _log, (0.0, math.inf))
