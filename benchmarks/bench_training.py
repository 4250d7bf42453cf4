"""A training step of a DIWAE on 784-dimensional data: corruption, loss, gradient and Adam."""

from __future__ import annotations

import copy
import functools
import math
from typing import TYPE_CHECKING

import pytest
import rivals
import torch
from cases import (
    HIDDEN,
    RATE,
    SALT,
    B,
    Case,
    D,
    Rival,
    Step,
    Z,
    close,
    make_data,
    make_model,
    make_rival,
)
from torch import Tensor

import dvae_fast
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import Autoencoder, BernoulliLatentModel
from dvae_fast.noise import latent_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Measure


class TrainingCase(Case):
    """One step, fused Adam for every rival, the data in memory.

    The flops are those of the linear layers, forward and backward: the encoder runs over M B rows,
    the decoder over M B K.
    """

    patience = 2.0

    def __init__(self, k: int, b: int = B, d: int = D, z: int = Z, m: int = 1) -> None:
        copies = f" M={m}" if m > 1 else ""
        self.group = f"training step, {d}-200-200-{z}-200-200-{d}, B={b} K={k}{copies}"
        self.model = make_model(k, d, z, m)
        self.x = make_data(b, d)
        self.elements = m * b * k * d
        encoder = d * 200 + 200 * 200 + 200 * 2 * z
        decoder = z * 200 + 200 * 200 + 200 * d
        # Twice forward's again for both gradients; the first layer needs none for its input.
        self.flops = 2 * m * b * (3 * (encoder + k * decoder) - d * 200)
        self.plain = make_rival(self.model)
        self._check_formula()

    @functools.cached_property
    def expected(self) -> tuple[float, float, Tensor]:
        return self._statistics(Step(self.plain, self.x))

    def ways(self, rival: str) -> dict[str, Callable[[], None]]:
        if rival.startswith("ours"):
            model = copy.deepcopy(self.model)
            loss = torch.compile(model.loss, dynamic=False) if "compile" in rival else model.loss
            return {"": Step(model, self.x, loss)}
        if rival == "compile":
            names = {
                name: (d, rivals.reparameterise) for name, d in rivals.densities(rival).items()
            }
        else:
            names = {
                f"{name}, {sample}": (density, formula)
                for name, density in rivals.densities(rival).items()
                for sample, formula in rivals.REPARAMETERISATIONS.items()
            }
        steps: dict[str, Callable[[], None]] = {}
        for name, (density, formula) in names.items():
            plain = make_rival(self.model)
            plain.density, plain.reparameterise = density, formula
            loss = rivals.compiled(plain.loss) if rival == "compile" else plain.loss
            steps[name] = Step(plain, self.x, loss)
        return steps

    def verify(self, rival: str, built: Rival) -> None:
        self.check(rival, self._statistics(built.call))

    def _statistics(self, step: Step, draws: int = 20) -> tuple[float, float, Tensor]:
        """Mean loss over draws of the noise, its standard error, and the mean gradient."""
        values, model = [], step.model
        model.zero_grad()
        for _ in range(draws):
            value = step.loss(self.x)
            (value / draws).backward()
            values.append(value.item())
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        t = torch.tensor(values, dtype=torch.float64)
        return t.mean().item(), t.std().item() / math.sqrt(draws), gradient

    def _check_formula(self) -> None:
        """The plain model is ours: the same loss and gradient from the same noise."""
        seed = torch.tensor([7])
        m, k, z = self.model.copies, self.model.samples, self.model.latent_size
        copies = m if m > 1 else None
        corrupted = dvae_fast.corrupt(self.x, SaltAndPepper(RATE, SALT), copies, seed)
        corrupted = corrupted.view(-1, self.x.shape[1])
        noise = latent_noise(m, len(self.x), k, z, seed, 0, 0, torch.float32)
        noise = noise.flatten(0, 1)
        losses = (self.model.loss(self.x, seed), self.plain.loss_from(self.x, corrupted, noise))
        gradients = [
            torch.autograd.grad(loss, list(model.parameters()))
            for loss, model in zip(losses, (self.model, self.plain), strict=True)
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-3)
        for a, b in zip(*gradients, strict=True):
            close("gradient", a, b, 1e-3)

    def check(self, rival: str, result: tuple[float, float, Tensor]) -> None:
        value, error, gradient = result
        expected, expected_error, expected_gradient = self.expected
        bar = 5 * math.hypot(error, expected_error) + 1e-4 * abs(expected)
        assert abs(value - expected) <= bar, (rival, value, expected, bar)
        assert gradient.shape == expected_gradient.shape, rival
        cosine = torch.cosine_similarity(gradient, expected_gradient, 0).item()
        assert cosine > 0.95, (rival, cosine)
        ratio = (gradient.norm() / expected_gradient.norm()).item()
        assert 0.8 < ratio < 1.25, (rival, ratio)


@pytest.mark.parametrize("rival", ["ours", "ours + torch.compile", "eager", "compile"])
@pytest.mark.parametrize("k", [50, 5, 1])
def bench_training_step(measure: Measure, k: int) -> None:
    measure(lambda: TrainingCase(k))


class EstimatorCase(Case):
    """The same step with each estimator of the encoder's gradient; "ours" is the standard one."""

    BERNOULLI = "vimco, Bernoulli latents"

    def __init__(self, k: int) -> None:
        self.group = f"estimators of a training step, B={B} K={k}"
        self.k = k
        self.model = make_model(k)
        self.x = make_data(B)
        self.elements = B * k * D
        self.expected = self._result(self.model)

    def ways(self, rival: str) -> dict[str, Callable[[], None]]:
        if rival == self.BERNOULLI:
            corruption = SaltAndPepper(RATE, SALT)
            discrete = BernoulliLatentModel(D, Z, HIDDEN, corruption=corruption, samples=self.k)
            return {"": Step(discrete, self.x)}
        model = make_model(self.k, estimator="standard" if rival == "ours" else rival)
        model.load_state_dict(self.model.state_dict())
        return {"": Step(model, self.x)}

    def verify(self, rival: str, built: Rival) -> None:
        self.check(rival, self._result(built.call.model))

    def _result(self, model: Autoencoder) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, minus the mean bound, and the decoder's gradient, of one seed."""
        loss = model.loss(self.x, 7)
        grads = torch.autograd.grad(loss, list(model.decoder.parameters()))
        flat = torch.cat([g.flatten() for g in grads])
        return loss.detach(), -model.bound(self.x, 7).mean(), flat

    def check(self, rival: str, result: tuple[Tensor, Tensor, Tensor]) -> None:
        """The same samples have the same bound and the same gradient of the decoder."""
        loss, bound, gradient = result
        torch.testing.assert_close(loss, bound, rtol=1e-5, atol=1e-3)
        if rival != self.BERNOULLI:
            torch.testing.assert_close(loss, self.expected[0], rtol=1e-5, atol=1e-3)
            close(rival, gradient, self.expected[2], 1e-3)


@pytest.mark.parametrize("rival", ["ours", "stl", "dreg", "vimco", EstimatorCase.BERNOULLI])
@pytest.mark.parametrize("k", [50, 5])
def bench_estimators(measure: Measure, k: int) -> None:
    measure(lambda: EstimatorCase(k))
