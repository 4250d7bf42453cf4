"""Rates that follow the mean image, corruptions of corruptions, and of anybody's function."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from model_checks import rebuilt
from refusals import refusals
from torch import Tensor, nn

from dvae_fast import corruptions
from dvae_fast.corruptions import (
    AdditiveGaussian,
    BitFlip,
    Compose,
    Corruption,
    FunctionCorruption,
    Identity,
    Learnable,
    Masking,
    SaltAndPepper,
    as_corruption,
    describe_corruption,
    rates_from_mean,
)
from dvae_fast.data import load_dataset
from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.models import DIWAE, DVAE

M, B, K, Z, D = 3, 5, 2, 4, 11
SEED = 123


# --- the mean image ---------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.3, 0.6, 0.9, 58 / 64])
def test_rates_follow_the_mean_image(rate: float) -> None:
    mean = load_dataset("digits", binarise="none").mean
    mean[(mean > 0).nonzero().flatten()[58:]] = 0  # of 60 of 64
    rates = rates_from_mean(mean, rate)
    assert rates.shape == mean.shape
    assert rates.dtype == torch.float32
    assert float(rates.min()) >= 0
    assert float(rates.max()) <= 1
    assert float(rates.double().mean()) == pytest.approx(rate, abs=1e-7)
    below = (rates < 1) & (mean > 0)
    if rate > 0 and bool(below.any()):
        ratio = rates[below] / mean[below]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        # Where the rate is 1, the same multiple of the mean is no less.
        assert bool((mean[rates == 1] * ratio[0] >= 1 - 1e-5).all())
    assert bool((rates[mean == 0] == 0).all())


def test_rates_by_hand() -> None:
    """Shares 1 : 1 : 2 : 4 of a total of 2 would be ¼, ¼, ½, 1; of 2.6, the last is cut off at 1
    and the first three share 1.6."""
    mean = torch.tensor([0.1, 0.1, 0.2, 0.4])
    torch.testing.assert_close(rates_from_mean(mean, 0.5), torch.tensor([0.25, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(rates_from_mean(mean, 0.65), torch.tensor([0.4, 0.4, 0.8, 1.0]))
    assert torch.equal(rates_from_mean(mean, 1.0), torch.ones(4))
    assert torch.equal(rates_from_mean(torch.full((D,), 3.0), 0.25), torch.full((D,), 0.25))


@pytest.mark.parametrize("kind", [Masking, BitFlip, SaltAndPepper])
def test_corruption_from_a_mean_image(kind: Any) -> None:
    mean = torch.linspace(0, 1, D)
    corruption = kind.from_mean(mean, 0.2)
    assert type(corruption) is kind
    assert torch.equal(corruption.parameter, rates_from_mean(mean, 0.2))
    salted = SaltAndPepper.from_mean(mean, 0.2, salt=0.75)
    assert salted.salt is not None
    assert float(salted.salt) == 0.75


test_wrong_mean_image = refusals(
    [
        (
            lambda: rates_from_mean([0.5], 0.1),  # type: ignore[arg-type]
            TypeError,
            "mean_image must be a floating-point tensor, got list",
        ),
        (
            lambda: rates_from_mean(torch.tensor([1, 0]), 0.1),
            TypeError,
            "mean_image must be a float or a floating-point tensor, got torch.int64",
        ),
        (
            lambda: rates_from_mean(torch.tensor([0.5, -0.1]), 0.1),
            ValueError,
            "mean_image must be finite and >= 0, got values from -0.1 to 0.5",
        ),
        (
            lambda: rates_from_mean(torch.rand(2, 3), 0.1),
            ValueError,
            r"mean_image must have shape \(D,\), got \(2, 3\)",
        ),
        (lambda: rates_from_mean(torch.rand(D), 1.5), ValueError, r"rate must be in \[0, 1\]"),
        (
            lambda: rates_from_mean(torch.tensor([0.5, 0.0, 0.1, 0.0]), 0.6),
            ValueError,
            "rate must be at most 0.5, the share of pixels whose mean is above 0, .*; got 0.6",
        ),
    ]
)


# --- composition ------------------------------------------------------------------------------


def _mixed() -> Compose:
    return Compose(SaltAndPepper(0.4, 0.3), AdditiveGaussian(0.5), Masking(torch.rand(D)))


def test_composition_with_the_identity_is_the_corruption() -> None:
    x, corruption = torch.rand(B, D), SaltAndPepper(0.4, 0.3)
    expected = corruptions.corrupt(x, corruption, M, SEED)
    assert torch.equal(corruptions.corrupt(x, Compose(corruption, Identity()), M, SEED), expected)
    assert torch.equal(
        corruptions.corrupt(x, Compose(corruption, Identity()), None, SEED), expected[0]
    )
    second = corruptions.corrupt(x, Compose(Identity(), corruption), M, SEED)
    assert not torch.equal(second, expected)  # a key of its own


def test_parts_are_applied_in_order_with_independent_noise() -> None:
    """Two maskings of rate ½ keep a quarter, copies and pixels apart: 5 standard errors of 34
    shares, a false alarm in 50,000."""
    n = 4000
    x = torch.ones(n, D)
    kept = corruptions.corrupt(x, Compose(Masking(0.5), Masking(0.5)), M, SEED)
    error = math.sqrt(0.25 * 0.75 / n)
    assert bool(((kept.mean(1) - 0.25).abs() < 5 * error).all())
    agree = (kept[0] == kept[1]).float().mean()  # ¼² + ¾² where copies are independent
    assert float(agree) == pytest.approx(0.625, abs=5 * math.sqrt(0.625 * 0.375 / (n * D)))
    assert bool((corruptions.corrupt(x, Compose(Masking(1.0), BitFlip(1.0)), M) == 1).all())
    assert bool((corruptions.corrupt(x, Compose(BitFlip(1.0), Masking(1.0)), M) == 0).all())


def test_composition_in_any_split() -> None:
    x, corruption = torch.rand(B, D), _mixed()
    before = x.clone()
    whole = corruptions.corrupt(x, corruption, M, SEED)
    assert whole.shape == (M, B, D)
    part = corruptions.corrupt(x[2:], corruption, 2, SEED, first_example=2, first_copy=1)
    torch.testing.assert_close(part, whole[1:3, 2:])
    images = corruptions.corrupt(x[:, :10].view(B, 2, 5), Compose(Masking(0.2), Masking(0.3)), M)
    assert images.shape == (M, B, 2, 5)
    assert torch.equal(x, before)


def test_nested_compositions_are_taken_apart() -> None:
    a, b, c = SaltAndPepper(0.4), AdditiveGaussian(0.5), Masking(0.3)
    x = torch.rand(B, D)
    flat = corruptions.corrupt(x, Compose(a, b, c), M, SEED)
    for nested in (Compose(Compose(a, b), c), Compose(a, Compose(b, c))):
        assert nested.parts == [a, b, c]
        assert torch.equal(corruptions.corrupt(x, nested, M, SEED), flat)
    assert repr(Compose(c, b)) == "Compose(Masking(0.3), AdditiveGaussian(0.5))"


def test_learnt_parts_are_the_models_and_have_gradients() -> None:
    corruption = Compose(
        Learnable(AdditiveGaussian(0.3)), Learnable(SaltAndPepper(0.2), "relaxed"), Masking(0.1)
    ).double()
    model = DIWAE(D, Z, (6,), corruption=corruption, copies=M, samples=K).double()
    names = [name for name, _ in model.named_parameters() if name.startswith("corruption")]
    assert names == ["corruption.part0.unconstrained", "corruption.part1.unconstrained"]
    x = torch.rand(B, D, dtype=torch.float64)
    model.loss(x, SEED).backward()
    found = [p.grad.clone() for p in map(model.get_parameter, names)]
    for name, grad in zip(names, found, strict=True):
        losses = []
        for step in (1e-5, -1e-5):
            twin = copy.deepcopy(model)
            with torch.no_grad():
                twin.get_parameter(name).add_(step)
            losses.append(twin.loss(x, SEED).detach())
        torch.testing.assert_close(grad, (losses[0] - losses[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_composed_configuration_round_trip() -> None:
    corruption = Compose(_mixed(), Learnable(Masking(0.25), "relaxed", temperature=0.1))
    model = DVAE(D, Z, (6,), corruption=corruption, copies=M, samples=K)
    rebuilt(model, torch.rand(B, D), SEED)


# --- functions --------------------------------------------------------------------------------


def fog(x: Tensor, generator: torch.Generator) -> Tensor:
    """Writes to what it is given, as one may."""
    return x.mul_(torch.rand(x.shape, generator=generator, dtype=x.dtype))


@pytest.mark.parametrize("m", [1, M])
def test_a_function_corrupts(m: int) -> None:
    model = DIWAE(D, Z, (6,), corruption=fog, copies=m, samples=K).double()
    assert repr(model.corruption) == "FunctionCorruption(fog)"
    x = torch.rand(B, D, dtype=torch.float64)
    before = x.clone()
    loss = model.loss(x, SEED)
    loss.backward()
    torch.testing.assert_close(-model.bound(x, SEED).mean(), loss.detach())
    assert not torch.equal(model.loss(x, SEED + 1), loss)
    assert torch.equal(x, before)
    assert torch.equal(model.loss(x, SEED), loss)
    noisy = corruptions.corrupt(x, as_corruption(fog), M, SEED)
    assert noisy.shape == (M, B, D)
    assert not torch.equal(noisy[0], noisy[1])
    assert bool(((noisy > 0) & (noisy < x)).all())
    other = corruptions.corrupt(x, as_corruption(fog), M, SEED, first_example=B)
    assert not torch.equal(other, noisy)  # another process's part, say


def test_a_functions_own_parameters_are_the_models() -> None:
    class Fog(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.density = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
            return x * (1 - self.density * torch.rand(x.shape, generator=generator))

    model = DVAE(D, Z, (6,), corruption=Fog(), copies=M)
    model.loss(torch.rand(B, D), SEED).backward()
    density = dict(model.named_parameters())["corruption.function.density"]
    assert density.grad is not None
    assert float(density.grad.abs()) > 0
    model = DVAE(D, Z, (6,), corruption=Compose(Masking(0.2), Fog()), copies=M)
    assert "corruption.part1.function.density" in dict(model.named_parameters())
    model.loss(torch.rand(B, D), SEED).backward()


def test_a_function_in_the_evaluator() -> None:
    model = DVAE(D, Z, (6,), corruption=fog)
    x = torch.rand(B, D)
    estimate = estimate_log_likelihood(model, x, k=20, proposal="corrupted", seed=SEED)
    again = estimate_log_likelihood(
        model, x, k=20, proposal="corrupted", corruption=fog, seed=SEED  # type: ignore[arg-type]
    )  # fmt: skip
    assert bool(estimate.log_likelihood.isfinite().all())
    assert torch.equal(estimate.log_likelihood, again.log_likelihood)


test_wrong_arguments = refusals(
    [
        (lambda: Compose(Masking(0.1)), ValueError, "parts must be two corruptions or more, got 1"),
        (
            lambda: Compose(Masking(0.1), 0.2),  # type: ignore[arg-type]
            TypeError,
            r"corruption must be an object of dvae_fast.corruptions, .*, got float",
        ),
        (
            lambda: DVAE(D, corruption=Masking),
            TypeError,
            r"corruption must be an object of .*, or a function of .* \(x, generator\), got type",
        ),
        (
            lambda: Compose(Learnable(Masking(0.1)), Masking(0.1)),
            ValueError,
            "parts must not learn by the score function, .*; got Learnable.*'relaxed' can",
        ),
        (
            lambda: FunctionCorruption(0.1),  # type: ignore[arg-type]
            TypeError,
            "function must be callable, got float",
        ),
        (
            lambda: describe_corruption(as_corruption(fog)),
            ValueError,
            r"corruption must be one of dvae_fast's own for a configuration to hold it, "
            r"got FunctionCorruption\(fog\)",
        ),
        (
            lambda: describe_corruption(Compose(Masking(0.1), fog)),
            ValueError,
            r"corruption must be one of dvae_fast's own .*, got FunctionCorruption\(fog\)",
        ),
        (
            lambda: corruptions.corrupt(torch.ones(B, D), as_corruption(lambda x, g: 3)),
            TypeError,
            "corruption <lambda> must return a tensor, got int",
        ),
        (
            lambda: corruptions.corrupt(torch.ones(B, D), as_corruption(lambda x, g: x[:2]), M),
            ValueError,
            rf"corruption <lambda> must return the shape it is given, \({B}, {D}\), got \(2, {D}\)",
        ),
        (
            lambda: corruptions.corrupt(torch.ones(B, D), as_corruption(lambda x, g: x.double())),
            TypeError,
            "corruption <lambda> must return torch.float32 on cpu, got torch.float64 on cpu",
        ),
    ]
)


def test_the_base_is_no_corruption() -> None:
    with pytest.raises(TypeError, match=r"corruption must be an object of dvae_fast\.corruptions"):
        corruptions.corrupt(torch.ones(B, D), Corruption())
