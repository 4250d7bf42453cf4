"""Pyro's ELBO and importance-weighted bound on the same networks, if Pyro is installed.

No corruption: a step of an IWAE, whose bound is Pyro's `Trace_ELBO` for one sample and its
`RenyiELBO(alpha=0)`, particles vectorised, for more.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from cases import HIDDEN, NETWORK, B, Case, D, Rival, Step, Z, close, make_data
from torch import Tensor

import dvae_fast
from dvae_fast.models import IWAE

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Measure

SEED = 5


class PyroStep:
    """Loss, gradient and Adam by Pyro."""

    def __init__(self, model: IWAE, x: Tensor, k: int) -> None:
        self.model, self.x = model, x
        self.elbo, *self.programs = _pyro(model, k)
        self.optimiser = rivals.adam(model, rate=0.0)

    def __call__(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.elbo.loss_and_grads(*self.programs, self.x)
        self.optimiser.step()

    def result(self) -> tuple[float, Tensor]:
        """Value and gradient, of a mean over examples where Pyro's is a sum."""
        self.model.zero_grad()
        torch.manual_seed(SEED)
        value = self.elbo.loss_and_grads(*self.programs, self.x)
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        return value / B, gradient / B


def _pyro(model: IWAE, k: int) -> tuple[Any, Callable[[Tensor], None], Callable[[Tensor], None]]:
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

    if k == 1:
        return infer.Trace_ELBO(max_plate_nesting=1), density, guide
    # One plate, said rather than guessed: guessing runs both and draws numbers of its own.
    particles = {"num_particles": k, "vectorize_particles": True, "max_plate_nesting": 1}
    return infer.RenyiELBO(alpha=0, **particles), density, guide


class PyroCase(Case):
    """Loss, gradient and Adam."""

    def __init__(self, k: int) -> None:
        pytest.importorskip("pyro", reason="Pyro is not installed")
        self.group = f"IWAE step against Pyro, {NETWORK}, B={B} K={k}"
        self.k, self.x = k, make_data(B)
        self.model = IWAE(D, Z, HIDDEN, samples=k)
        self.elements = B * k * D

    def ways(self, rival: str) -> dict[str, Callable[[], None]]:
        model = copy.deepcopy(self.model)
        if rival == "ours":
            return {"": Step(model, self.x)}
        step = PyroStep(model, self.x, self.k)
        return {type(step.elbo).__name__: step}

    def verify(self, rival: str, built: Rival) -> None:
        if rival == "pyro":
            self.check(rival, built.call.result())

    def check(self, rival: str, result: tuple[float, Tensor]) -> None:
        """The same value and gradient from the same numbers, ε of (K, B, Z), or (B, Z)."""
        torch.manual_seed(SEED)
        shape = (B, Z) if self.k == 1 else (self.k, B, Z)
        noise = torch.normal(torch.zeros(shape), torch.ones(shape))
        mean, log_var = self.model.encode(self.x)
        noise = noise.view(self.k, B, Z).transpose(0, 1)
        z = mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * noise
        ratio = dvae_fast.latent_log_ratio(z, mean, log_var)
        loss = dvae_fast.iwae_loss(self.model.decode(z), self.x, ratio)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        torch.testing.assert_close(result[0], loss.item(), rtol=1e-5, atol=0)
        close(rival, result[1], torch.cat([g.flatten() for g in gradients]), 1e-3)


@pytest.mark.parametrize("rival", ["ours", "pyro"])
@pytest.mark.parametrize("k", [50, 1])
def bench_pyro(measure: Measure, k: int) -> None:
    measure(lambda: PyroCase(k))
