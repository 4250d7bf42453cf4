"""float32 sums of thousands of equal terms, the worst case of rounding: 2e-6 of Σ |terms|."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import DEVICES, assert_accurate
from torch import Tensor

import dvae_fast
from dvae_fast.checking.cases import run_operator, run_reference, upcast
from dvae_fast.checking.terms import absolute_terms

TOLERANCE = 2e-6


def _error(actual: Tensor, expected: Tensor) -> float:
    """Largest relative error; all terms have one sign, so a sum is the sum of their sizes."""
    return ((actual.double().cpu() - expected.cpu()) / expected.cpu()).abs().max().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [3072, 12288, 196608])
@pytest.mark.parametrize("full", [False, True])
def test_gaussian_log_weights_over_many_dimensions(size: int, full: bool, device: str) -> None:
    mean = torch.zeros(1, 3, size, device=device)
    x = torch.full((1, size), 5.3, device=device)
    scale = torch.ones_like(mean) if full else 1.0
    log_ratio = torch.zeros(1, 3, device=device)
    expected = dvae_fast.log_weights(
        (mean.double(), torch.ones_like(mean).double()), x.double(), log_ratio.double(), "gaussian"
    )
    actual = dvae_fast.log_weights((mean, scale), x, log_ratio, "gaussian")
    assert _error(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [500, 10_000, 50_000])
def test_gradient_of_a_bias_over_many_rows(rows: int, device: str) -> None:
    hidden = torch.zeros(1, rows, 3, device=device)
    weight = torch.zeros(7, 3, device=device)
    bias = torch.full((7,), 0.7, device=device, requires_grad=True)
    x, log_ratio = torch.zeros(1, 7, device=device), torch.zeros(1, rows, device=device)
    out = dvae_fast.linear_log_weights(hidden, weight, bias, x, log_ratio)
    (actual,) = torch.autograd.grad(out.sum(), bias)
    assert _error(actual, -rows * torch.sigmoid(bias.detach().double())) <= TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [500, 5000])
def test_gradients_of_latents_over_many_samples(k: int, device: str) -> None:
    mean = torch.zeros(1, 5, device=device, requires_grad=True)
    log_var = torch.zeros(1, 5, device=device, requires_grad=True)
    z, _ = dvae_fast.sample_latent(mean, log_var, k, seed=1)
    (actual,) = torch.autograd.grad(0.3 * z.sum(), mean)
    expected = torch.full((1, 5), k * torch.tensor(0.3).item(), dtype=torch.float64)
    assert _error(actual, expected) <= TOLERANCE

    ratio = dvae_fast.latent_log_ratio(torch.full((1, k, 5), 1.7, device=device), mean, log_var)
    grads = torch.autograd.grad(ratio.sum(), (mean, log_var))
    # ½ (log_var + (z − mean)² / e^log_var) − ½ z²
    d = torch.full((1, 5), 1.7).double()
    assert _error(grads[0], -k * d) <= TOLERANCE
    assert _error(grads[1], 0.5 * k * (1 - d.square())) <= TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("components", "k", "size"), [(700, 3, 5), (3, 5000, 5), (2, 3, 12288)])
def test_mixture_of_equal_components(components: int, k: int, size: int, device: str) -> None:
    """M times the same component: its own ratio, 1/M of its gradient each, and the whole of z's."""
    z = torch.full((1, k, size), 1.7, device=device, requires_grad=True)
    mean = torch.full((components, 1, size), 3.1, device=device, requires_grad=True)
    log_var = torch.full((components, 1, size), -0.8, device=device, requires_grad=True)
    out = dvae_fast.mixture_log_ratio(z, mean, log_var)
    grads = torch.autograd.grad(out.sum(), (z, mean, log_var))
    zz, m, v = (t.detach().double().flatten()[0] for t in (z, mean, log_var))
    diff, precision = zz - m, torch.exp(-v)
    terms = 0.5 * size * (diff.square() * precision + zz.square() + v.abs())
    expected = 0.5 * size * (diff.square() * precision - zz.square() + v)
    scale = k / components
    for actual, value, of in (
        (out, expected, terms),
        (grads[0], diff * precision - zz, diff.abs() * precision + zz),
        (grads[1], -scale * diff * precision, scale * diff.abs() * precision),
        (
            grads[2],
            0.5 * scale * (1 - diff.square() * precision),
            0.5 * scale * (1 + diff.square() * precision),
        ),
    ):
        assert ((actual.double().cpu() - value.cpu()).abs().max() / of.cpu()).item() <= TOLERANCE


def _table_sizes() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Operands as the benchmarks', of fewer examples, values of a trained decoder's."""
    torch.manual_seed(0)
    out: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for k in (1, 5, 50):
        logits = torch.randn(10, k, 784).mul_(2 / 28).add_(2 * torch.randn(10, 1, 784))
        data = ((torch.rand(10, 784) < 0.2).float(), torch.randn(10, k), "bernoulli")
        out[f"iwae K={k}"] = "iwae", (logits, None, *data, -0.1)
        out[f"log_weights K={k}"] = "log_weights", (logits, None, *data)
    posterior = (torch.randn(1, 10, 50), torch.randn(1, 10, 50))
    out["sample_latent"] = "sample_latent", (*posterior, 50, torch.tensor([5]), 0, 0)
    layer = (torch.randn(3, 500, 200), torch.randn(784, 200) / 14, torch.randn(784))
    data = ((torch.rand(3, 784) < 0.2).float(), torch.randn(3, 500), "bernoulli")
    out["linear_log_weights"] = "linear_log_weights", (*layer, None, *data)
    return out


def test_sizes_of_the_benchmarks_are_accurate() -> None:
    for name, (op, args) in _table_sizes().items():
        args64 = upcast(args)
        terms_of = absolute_terms(op, args64)  # first: some operators change their arguments
        results = zip(run_operator(op, args), run_reference(op, args64), terms_of, strict=True)
        for actual, expected, terms in results:
            assert_accurate(name, actual, expected, terms, torch.float32)
