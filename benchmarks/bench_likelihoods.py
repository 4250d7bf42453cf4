"""Other likelihoods than a Bernoulli's: ours, eager PyTorch, torch.compile; and with a mask.

Where ours is plain PyTorch too, which a compiler's beats, it is compiled as well, by its caller.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import cases
import rivals
import torch
from bench_operators import FormulaCase, GradientCase, leaves
from cases import Calls, D, close, no_grad

import dvae_fast
from dvae_fast.likelihoods import LIKELIHOODS, Categorical

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape) + 0.5


def probability(*shape: int) -> Tensor:
    return 0.1 + 0.6 * torch.rand(*shape)


def counts(b: int, d: int) -> Tensor:
    """Many of which are 0, as of genes in a cell."""
    return torch.poisson(3 * torch.rand(b, d).square())


def one_hot(b: int, d: int) -> Tensor:
    return Categorical(rivals.CLASSES).one_hot(
        torch.randint(rivals.CLASSES, (b, d // rivals.CLASSES))
    )


#: by name, what makes each parameter, and x
MADE: dict[str, tuple[tuple[Callable[..., Tensor], ...], Callable[[int, int], Tensor]]] = {
    "poisson": ((positive,), counts),
    "zero_inflated_negative_binomial": ((positive, positive, torch.randn), counts),
    "laplace": ((torch.randn, positive), torch.randn),
    "continuous_bernoulli": ((torch.randn,), torch.rand),
    "bernoulli_probabilities": ((probability,), torch.rand),
    "categorical": ((torch.randn,), one_hot),
}


class LikelihoodLossCase(GradientCase):
    """−bound of a batch, and back to the decoder's outputs (B, K, D), each with a parameter of its
    own an element, and to log_ratio. Samples of one example differ by a few nats."""

    def __init__(self, name: str, k: int, d: int = D) -> None:
        b = 100 if k < 50 else 20
        self.group = f"iwae_loss forward+backward, {name}, B={b} K={k} D={d}"
        of_params, of_x = MADE[name]
        params = [make(b, 1, d).repeat(1, k, 1) for make in of_params]
        for t in params:
            t.mul_(1 + 0.05 * torch.randn(b, k, d))
        self.inputs = leaves(*params, torch.randn(b, k))
        self.upstream = (torch.ones(()),)
        self.elements = b * k * d
        self.bytes = 8 * len(params) * self.elements  # each read, its gradient written
        x = of_x(b, d)
        likelihood = LIKELIHOODS.get(name) or Categorical(rivals.CLASSES)

        def ours(*operands: Tensor) -> Tensor:
            *given, log_ratio = operands
            return dvae_fast.iwae_loss(tuple(given), x, log_ratio, likelihood)

        self.ours = ours
        self.plain = {
            formula: partial(rivals.likelihood_loss, x=x, density=density)
            for formula, density in rivals.LIKELIHOODS[name].items()
        }


class MaskedGaussianCase(FormulaCase):
    """Log-weights of a scale that rows share, forward: of all that a mask may be given to the least
    work an element. "ours, no mask" is of all dimensions."""

    def __init__(self, k: int, share: float, d: int = D) -> None:
        b = 100 if k < 50 else 20
        self.group = f"log_weights forward, gaussian, B={b} K={k} D={d}, {share:.0%} observed"
        self.inputs = (torch.randn(b, k, d), positive(d), torch.randn(b, d), torch.randn(b, k))
        self.mask = torch.rand(b, d) < share
        self.elements, self.bytes = b * k * d, 4 * b * k * d

    def ways(self, rival: str) -> Calls:
        mask = None if "no mask" in rival else self.mask
        mean, scale, x, log_ratio = self.inputs
        if rival.startswith("ours"):
            params = (mean, scale)
            return {"": no_grad(dvae_fast.log_weights, params, x, log_ratio, "gaussian", mask)}
        return {"": no_grad(rivals.masked_gaussian, *self.inputs, mask)}

    def check(self, rival: str, result: Tensor) -> None:
        mask = None if "no mask" in rival else self.mask
        close(rival, result, rivals.masked_gaussian(*(t.double() for t in self.inputs), mask))


LOSSES = {f"{name} {k}": partial(LikelihoodLossCase, name, k) for name in MADE for k in (50, 5, 1)}


MASKED = {
    f"mask {share} {k}": partial(MaskedGaussianCase, k, share)
    for k in (50, 5, 1)
    for share in (0.1, 0.9)
}


@cases.rivals_of(dict.fromkeys(LOSSES, cases.PLAIN))
def bench_likelihood(measure: cases.Measure, case: str) -> None:
    measure(LOSSES, case)


@cases.rivals_of(dict.fromkeys(MASKED, ("ours", "ours, no mask", "eager")))
def bench_masked(measure: cases.Measure, case: str) -> None:
    measure(MASKED, case)
