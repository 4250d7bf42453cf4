"""Pyro's ELBO and importance-weighted bound on the same networks, if Pyro is installed.

No corruption: a step of an IWAE, whose bound is Pyro's `Trace_ELBO` for one sample and its
`RenyiELBO(alpha=0)`, particles vectorised, for more.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import rivals
import torch
from bench_training import HIDDEN, B, D, Z, make_data
from conftest import Case, Measure, Rival
from torch import Tensor

import dvae_fast
from dvae_fast.models import IWAE

SEED = 5


class PyroCase(Case):
    """Loss, gradient and Adam. Pyro's loss is a sum over examples, ours their mean."""

    def __init__(self, k: int) -> None:
        pytest.importorskip("pyro", reason="Pyro is not installed")
        self.group = f"IWAE step against Pyro, 784-200-200-50-200-200-784, B={B} K={k}"
        self.k, self.x = k, make_data(B)
        self.model = IWAE(D, Z, HIDDEN, samples=k)
        self.elements = B * k * D

    def build(self, rival: str) -> Rival:
        model = copy.deepcopy(self.model)
        optimiser = rivals.adam(model, rate=0.0)
        if rival == "ours":
            step = rivals.training_step(model.loss, optimiser, self.x)
            return Rival(step, self._ours)
        elbo, density, guide = self._pyro(model)

        def theirs() -> None:
            optimiser.zero_grad(set_to_none=True)
            elbo.loss_and_grads(density, guide, self.x)
            optimiser.step()

        def result() -> tuple[float, Tensor]:
            model.zero_grad()
            torch.manual_seed(SEED)
            value = elbo.loss_and_grads(density, guide, self.x)
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            return value / B, gradient / B

        return Rival(theirs, result, variant=type(elbo).__name__)

    def _pyro(self, model: IWAE) -> tuple[Any, Any, Any]:
        """The bound, p(x, z) and q(z|x), over a plate of examples."""
        import pyro.distributions as dist
        from pyro import infer, module, plate, sample

        def density(x: Tensor) -> None:
            module("decoder", model.decoder)
            with plate("examples", len(x)):
                prior = dist.Normal(x.new_zeros(Z), 1.0, validate_args=False).to_event(1)
                logits = model.decode(sample("z", prior))
                likelihood = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
                sample("x", likelihood, obs=x)

        def guide(x: Tensor) -> None:
            module("encoder", model.encoder)
            mean, log_var = model.encode(x)
            scale = torch.exp(0.5 * log_var)
            with plate("examples", len(x)):
                sample("z", dist.Normal(mean, scale, validate_args=False).to_event(1))

        if self.k == 1:
            return infer.Trace_ELBO(max_plate_nesting=1), density, guide
        # One plate, said rather than guessed: guessing runs both and draws numbers of its own.
        particles = {"num_particles": self.k, "vectorize_particles": True, "max_plate_nesting": 1}
        return infer.RenyiELBO(alpha=0, **particles), density, guide

    def _ours(self) -> tuple[float, Tensor]:
        """Value and gradient at the numbers that Pyro draws, ε of (K, B, Z), or (B, Z)."""
        torch.manual_seed(SEED)
        shape = (B, Z) if self.k == 1 else (self.k, B, Z)
        noise = torch.normal(torch.zeros(shape), torch.ones(shape))
        mean, log_var = self.model.encode(self.x)
        noise = noise.view(self.k, B, Z).transpose(0, 1)
        z = mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * noise
        ratio = dvae_fast.latent_log_ratio(z, mean, log_var)
        loss = dvae_fast.iwae_loss(self.model.decode(z), self.x, ratio)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        return loss.item(), torch.cat([g.flatten() for g in gradients])

    def check(self, rival: str, result: tuple[float, Tensor]) -> None:
        """The same value and gradient from the same numbers."""
        value, gradient = result
        expected, expected_gradient = self._ours()
        assert abs(value - expected) <= 1e-5 * abs(expected), (rival, value, expected)
        scale = expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("rival", ["ours", "pyro"])
@pytest.mark.parametrize("k", [50, 1])
def bench_pyro(benchmark: Any, measure: Measure, k: int, rival: str, turn: int) -> None:
    measure(benchmark, lambda: PyroCase(k), ("pyro", k), rival)
