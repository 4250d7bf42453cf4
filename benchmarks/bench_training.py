"""A training step of a DIWAE on 784-dimensional data: corruption, loss, gradient and Adam."""

from __future__ import annotations

import copy
import functools
import math
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from conftest import Case, Measure, Rival
from torch import Tensor, nn

import dvae_fast
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import DIWAE, Autoencoder, BernoulliLatentModel
from dvae_fast.noise import latent_noise

if TYPE_CHECKING:
    from collections.abc import Callable

B, D, Z, HIDDEN = 100, 784, 50, (200, 200)
RATE, SALT = 0.1, 0.5


def make_model(k: int, d: int = D, z: int = Z, m: int = 1) -> DIWAE:
    """784-200-200-50-200-200-784 with the package's default activation, softplus."""
    return DIWAE(d, z, HIDDEN, corruption=SaltAndPepper(RATE, SALT), samples=k, copies=m)


def make_rival(model: DIWAE) -> rivals.DIWAE:
    """The same network in plain PyTorch, with the same parameters."""
    sizes = (model.data_size, model.latent_size, HIDDEN)
    rival = rivals.DIWAE(*sizes, nn.Softplus, model.samples, RATE, SALT, model.copies)
    rival.copy_parameters(model)
    return rival


def make_data(b: int, d: int = D) -> Tensor:
    """Binary images of which a fifth is white."""
    return (torch.rand(b, d) < 0.2).float()


class TrainingCase(Case):
    """One step, fused Adam for every rival, the data in memory.

    The flops are those of the linear layers, forward and backward: the encoder runs over M B rows,
    the decoder over M B K.
    """

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
        return self._statistics(self.plain, self.plain.loss)

    def build(self, rival: str) -> Rival:
        if rival.startswith("ours"):
            model = copy.deepcopy(self.model)
            loss = torch.compile(model.loss, dynamic=False) if "compile" in rival else model.loss
            return self._rival(model, loss)
        calls = {}
        if rival == "eager":
            for name, density in rivals.EAGER_DENSITIES.items():
                for sample, formula in rivals.REPARAMETERISATIONS.items():
                    model = self._plain(density, formula)
                    label = f"{name}, {sample}"
                    calls[label] = self._rival(model, model.loss, label)
        else:
            for name, density in rivals.COMPILED_DENSITIES.items():
                model = self._plain(density, rivals.reparameterise)
                calls[name] = self._rival(model, rivals.compiled(model.loss), name)
        return calls[rivals.fastest({name: c.call for name, c in calls.items()}, times_longer=2)]

    def _plain(self, density: rivals.Density, formula: Callable[..., Any]) -> rivals.DIWAE:
        model = make_rival(self.model)
        model.density, model.reparameterise = density, formula
        return model

    def _rival(
        self, model: nn.Module, loss: Callable[[Tensor], Tensor], variant: str = ""
    ) -> Rival:
        # A rate of zero costs what any other does, and leaves the model where it started: every
        # rival does the same work on the same numbers, however often it is called.
        optimiser = rivals.adam(model, rate=0.0)
        step = rivals.training_step(loss, optimiser, self.x)
        return Rival(step, functools.partial(self._statistics, model, loss), variant=variant)

    def _statistics(
        self, model: nn.Module, loss: Callable[[Tensor], Tensor], draws: int = 20
    ) -> tuple[float, float, Tensor]:
        """Mean loss over draws of the noise, its standard error, and the mean gradient."""
        values = []
        model.zero_grad()
        for _ in range(draws):
            value = loss(self.x)
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
            scale = b.abs().max().item()
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * scale)

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
def bench_training_step(benchmark: Any, measure: Measure, k: int, rival: str, turn: int) -> None:
    measure(benchmark, lambda: TrainingCase(k), ("training", k), rival)


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

    def build(self, rival: str) -> Rival:
        model = self._model(rival)
        optimiser = rivals.adam(model, rate=0.0)
        step = rivals.training_step(model.loss, optimiser, self.x)
        return Rival(step, functools.partial(self._result, model))

    def _model(self, rival: str) -> Autoencoder:
        corruption = SaltAndPepper(RATE, SALT)
        if rival == self.BERNOULLI:
            return BernoulliLatentModel(D, Z, HIDDEN, corruption=corruption, samples=self.k)
        estimator = "standard" if rival == "ours" else rival
        model = DIWAE(D, Z, HIDDEN, corruption=corruption, samples=self.k, estimator=estimator)
        model.load_state_dict(self.model.state_dict())
        return model

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
            scale = self.expected[2].abs().max().item()
            torch.testing.assert_close(gradient, self.expected[2], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("rival", ["ours", "stl", "dreg", "vimco", EstimatorCase.BERNOULLI])
@pytest.mark.parametrize("k", [50, 5])
def bench_estimators(benchmark: Any, measure: Measure, k: int, rival: str, turn: int) -> None:
    measure(benchmark, lambda: EstimatorCase(k), ("estimators", k), rival)
