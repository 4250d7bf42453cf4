"""Gradients of the public functions: against finite differences, the reference, and autograd's
own rules (used twice, kept, scaled, accumulated).
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from operator_cases import DEVICES, assert_accurate, naming
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import dvae_fast
from dvae_fast import corruptions, functional, reference
from dvae_fast.checking.operands import arrange
from dvae_fast.checking.terms import absolute_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

M, B, K, Z, H = 2, 3, 4, 5, 6
SIZES = [1, 7]  # of D, for finite differences
LIKELIHOODS = ["bernoulli", "gaussian"]


class Inputs:
    """Float64 tensors of one test, the same each time."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.dtype = device, dtype

    def normal(self, *shape: int, grad: bool = True) -> Tensor:
        t = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return t.to(self.dtype).to(self.device).requires_grad_(grad)

    def positive(self, *shape: int, grad: bool = True) -> Tensor:
        t = torch.rand(shape, generator=self.generator, dtype=torch.float64) + 0.5
        return t.to(self.dtype).to(self.device).requires_grad_(grad)

    def data(self, *shape: int, grad: bool = False) -> Tensor:
        t = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return t.to(self.dtype).to(self.device).requires_grad_(grad)


# --- finite differences -----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("copies", [None, 1, M])
@pytest.mark.parametrize(
    "corruption",
    [
        corruptions.Identity(),
        corruptions.Masking(0.4),
        corruptions.SaltAndPepper(0.4, 0.3),
        corruptions.BitFlip(0.4),
        corruptions.AdditiveGaussian(0.4),
    ],
    ids=repr,
)
def test_corrupt_x(corruption: corruptions.Corruption, copies: int | None, device: str) -> None:
    x = Inputs(device).data(B, 65, grad=True)
    draw = lambda x: dvae_fast.corrupt(x, corruption, copies, seed=2)
    assert gradcheck(draw, (x,), fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (1,), (39,), (3, 13)])
@pytest.mark.parametrize("copies", [None, M])
def test_corrupt_gaussian_std(shape: tuple[int, ...], copies: int | None, device: str) -> None:
    inputs = Inputs(device)
    x, std = inputs.data(B, 3, 13, grad=True), inputs.positive(*shape)

    def draw(x: Tensor, std: Tensor) -> Tensor:
        return dvae_fast.corrupt(x, corruptions.AdditiveGaussian(std), copies, seed=2)

    assert gradcheck(draw, (x, std), fast_mode=True)
    assert gradcheck(lambda std: draw(x.detach(), std), (std,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("z", [1, 5, 65])
def test_sample_latent(z: int, device: str) -> None:
    inputs = Inputs(device)
    m, b = (M, B) if z < 10 else (1, 2)
    mean, log_var = inputs.normal(m, b, z), inputs.normal(m, b, z)

    def draw(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        return dvae_fast.sample_latent(mean, log_var, 2, seed=3)

    assert gradcheck(draw, (mean, log_var), fast_mode=z > 10)
    # Either output alone: autograd then hands over None for the other.
    fast: Any = {"fast_mode": True}
    assert gradcheck(lambda *p: draw(*p)[0], (mean, log_var), **fast)
    assert gradcheck(lambda *p: draw(*p)[1], (mean, log_var), **fast)
    # Only one of the inputs wants a gradient.
    assert gradcheck(lambda mean: draw(mean, log_var.detach()), (mean,), **fast)
    assert gradcheck(lambda log_var: draw(mean.detach(), log_var), (log_var,), **fast)


@pytest.mark.parametrize("device", DEVICES)
def test_latent_log_ratio(device: str) -> None:
    inputs = Inputs(device)
    z = inputs.normal(M, B, K, Z)
    mean, log_var = inputs.normal(M, B, Z), inputs.normal(M, B, Z)
    assert gradcheck(dvae_fast.latent_log_ratio, (z, mean, log_var))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("leading", [(), (M, 4)])
@pytest.mark.parametrize("m", [1, 7])
def test_mixture_log_ratio(m: int, leading: tuple[int, ...], device: str) -> None:
    inputs = Inputs(device)
    z = inputs.normal(*leading, B, 2, Z)
    mean, log_var = inputs.normal(m, B, Z), inputs.normal(m, B, Z)
    f = dvae_fast.mixture_log_ratio
    assert gradcheck(f, (z, mean, log_var))
    if not leading:
        fast: Any = {"fast_mode": True}
        assert gradcheck(lambda z: f(z, mean.detach(), log_var.detach()), (z,), **fast)
        assert gradcheck(lambda mean: f(z.detach(), mean, log_var.detach()), (mean,), **fast)
        assert gradcheck(lambda log_var: f(z.detach(), mean.detach(), log_var), (log_var,), **fast)


@pytest.mark.parametrize("device", DEVICES)
def test_sample_latent_and_latent_log_ratio_agree(device: str) -> None:
    """log p(z) − log q(z) of a reparameterised z has the same value and gradient either way."""
    inputs = Inputs(device)
    mean, log_var = inputs.normal(M, B, Z), inputs.normal(M, B, Z)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=1)
    again = dvae_fast.latent_log_ratio(z, mean, log_var)
    torch.testing.assert_close(again, ratio)
    upstream = inputs.normal(M, B, K, grad=False)
    first = torch.autograd.grad(ratio, (mean, log_var), upstream, retain_graph=True)
    second = torch.autograd.grad(again, (mean, log_var), upstream)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("leading", [(), (M,)])
def test_log_weights_bernoulli(d: int, leading: tuple[int, ...], device: str) -> None:
    inputs = Inputs(device)
    logits, x = inputs.normal(*leading, B, K, d), inputs.data(B, d, grad=True)
    log_ratio = inputs.normal(*leading, B, K)
    assert gradcheck(dvae_fast.log_weights, (logits, x, log_ratio))
    if leading:
        every = inputs.data(*leading, B, d, grad=True)
        assert gradcheck(dvae_fast.log_weights, (logits, every, log_ratio))


def _scale_shapes(d: int) -> list[tuple[int, ...]]:
    return [(), (1,), (d,), (M, B, K, d), (K, 1), (B, 1, d), (1, 1, 1)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("shape", range(7))
def test_log_weights_gaussian(shape: int, d: int, device: str) -> None:
    inputs = Inputs(device)
    mean, x = inputs.normal(M, B, K, d), inputs.data(B, d, grad=True)
    scale, log_ratio = inputs.positive(*_scale_shapes(d)[shape]), inputs.normal(M, B, K)

    def call(mean: Tensor, scale: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
        return dvae_fast.log_weights((mean, scale), x, log_ratio, "gaussian")

    assert gradcheck(call, (mean, scale, x, log_ratio))


@pytest.mark.parametrize("device", DEVICES)
def test_softplus(device: str) -> None:
    x = Inputs(device).normal(M, B, 7)
    assert gradcheck(lambda x: functional.softplus(3 * x), (x,))
    plain = torch.nn.functional.softplus(x, threshold=700)
    torch.testing.assert_close(functional.softplus(x), plain, rtol=1e-14, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_logmeanexp(dim: int, device: str) -> None:
    log_w = Inputs(device).normal(M, B, K)
    assert gradcheck(lambda w: dvae_fast.logmeanexp(w, dim), (log_w,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("d", "reduction", "overwrite"),
    [
        *((7, reduction, way) for reduction in ("mean", "sum", "none") for way in (False, True)),
        (1, "mean", True),
        (1, "none", False),
    ],
)
def test_iwae_loss_bernoulli(d: int, reduction: str, overwrite: bool, device: str) -> None:
    inputs = Inputs(device)
    logits, log_ratio = inputs.normal(M, B, K, d), inputs.normal(M, B, K)
    x = inputs.data(B, d)

    def call(logits: Tensor, log_ratio: Tensor) -> Tensor:
        # Times 1.5: overwriting needs a tensor that is nobody's leaf.
        return dvae_fast.iwae_loss(
            logits * 1.5, x, log_ratio, reduction=reduction, overwrite_params=overwrite
        )

    assert gradcheck(call, (logits, log_ratio))
    # Only one of the inputs wants a gradient.
    fast: Any = {"fast_mode": True}
    assert gradcheck(lambda logits: call(logits, log_ratio.detach()), (logits,), **fast)
    assert gradcheck(lambda log_ratio: call(logits.detach(), log_ratio), (log_ratio,), **fast)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("shape", "reduction", "overwrite"),
    [
        *((shape, ("mean", "sum", "none")[shape % 3], shape % 2 == 0) for shape in range(7)),
        *(
            (3, reduction, overwrite)
            for reduction in ("sum", "none")
            for overwrite in (True, False)
        ),
    ],
)
def test_iwae_loss_gaussian(shape: int, reduction: str, overwrite: bool, device: str) -> None:
    d = 7
    inputs = Inputs(device)
    mean, log_ratio = inputs.normal(M, B, K, d), inputs.normal(M, B, K)
    scale, x = inputs.positive(*_scale_shapes(d)[shape]), inputs.data(B, d)

    def call(mean: Tensor, scale: Tensor, log_ratio: Tensor) -> Tensor:
        return dvae_fast.iwae_loss(
            (mean * 1.5, scale),
            x,
            log_ratio,
            "gaussian",
            reduction=reduction,
            overwrite_params=overwrite,
        )

    assert gradcheck(call, (mean, scale, log_ratio), fast_mode=shape > 3)
    assert gradcheck(
        lambda scale: call(mean.detach(), scale, log_ratio.detach()), (scale,), fast_mode=True
    )
    number = 0.7
    assert gradcheck(
        lambda mean: dvae_fast.iwae_loss(
            (mean, number), x, log_ratio, "gaussian", reduction=reduction
        ),
        (mean,),
        fast_mode=True,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_iwae_loss_x(likelihood: str, device: str) -> None:
    inputs = Inputs(device)
    params, log_ratio = inputs.normal(M, B, K, 7), inputs.normal(M, B, K)
    scale, x = inputs.positive(7), inputs.data(B, 7, grad=True)

    def call(params: Tensor, x: Tensor) -> Tensor:
        operand = (params, scale) if likelihood == "gaussian" else params
        return dvae_fast.iwae_loss(operand, x, log_ratio, likelihood)

    assert gradcheck(call, (params, x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [None, (), (1,), (7,)])
def test_linear_log_weights(scale: tuple[int, ...] | None, bias: bool, device: str) -> None:
    d = 7
    inputs = Inputs(device)
    tensors: dict[str, Tensor] = {
        "hidden": inputs.normal(M, B, K, H),
        "weight": inputs.normal(d, H),
        "log_ratio": inputs.normal(M, B, K),
    }
    if bias:
        tensors["bias"] = inputs.normal(d)
    if scale is not None:
        tensors["scale"] = inputs.positive(*scale)
    x, names = inputs.data(B, d), list(tensors)
    likelihood = "bernoulli" if scale is None else "gaussian"

    def call(*args: Tensor) -> Tensor:
        a: dict[str, Tensor | None] = {
            "bias": None,
            "scale": None,
            **dict(zip(names, args, strict=True)),
        }
        hidden, weight, log_ratio = a["hidden"], a["weight"], a["log_ratio"]
        assert hidden is not None
        assert weight is not None
        assert log_ratio is not None
        return dvae_fast.linear_log_weights(
            hidden, weight, a["bias"], x, log_ratio, likelihood, scale=a["scale"]
        )

    assert gradcheck(call, tuple(tensors.values()))


# --- one function in terms of others ----------------------------------------------------------


def _loss_inputs(
    device: str, likelihood: str, dtype: torch.dtype = torch.float64, d: int = 65
) -> tuple[Any, Tensor, Tensor, list[Tensor]]:
    """(params, x, log_ratio, what takes gradients)."""
    inputs = Inputs(device, dtype)
    params, log_ratio = inputs.normal(M, B, K, d), inputs.normal(M, B, K)
    x = inputs.data(B, d)
    if likelihood == "bernoulli":
        return params, x, log_ratio, [params, log_ratio]
    scale = inputs.positive(M, B, K, d)
    return (params, scale), x, log_ratio, [params, log_ratio, scale]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_iwae_loss_is_minus_logmeanexp_of_log_weights(
    likelihood: str, reduction: str, device: str
) -> None:
    params, x, log_ratio, leaves = _loss_inputs(device, likelihood)
    loss = dvae_fast.iwae_loss(params, x, log_ratio, likelihood, reduction=reduction)
    bound = -dvae_fast.logmeanexp(dvae_fast.log_weights(params, x, log_ratio, likelihood))
    same = bound if reduction == "none" else getattr(bound, reduction)()
    torch.testing.assert_close(loss, same)
    upstream = torch.rand(loss.shape, dtype=loss.dtype, device=device)
    first = torch.autograd.grad(loss, leaves, upstream)
    second = torch.autograd.grad(same, leaves, upstream)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_linear_log_weights_is_log_weights_of_the_layer(likelihood: str, device: str) -> None:
    inputs = Inputs(device)
    hidden, weight, bias = inputs.normal(M, B, K, H), inputs.normal(65, H), inputs.normal(65)
    x, log_ratio = inputs.data(B, 65), inputs.normal(M, B, K)
    scale = inputs.positive(65) if likelihood == "gaussian" else None
    fused = dvae_fast.linear_log_weights(
        hidden, weight, bias, x, log_ratio, likelihood, scale=scale
    )
    layer = torch.nn.functional.linear(hidden, weight, bias)
    plain = dvae_fast.log_weights(
        layer if scale is None else (layer, scale), x, log_ratio, likelihood
    )
    torch.testing.assert_close(fused, plain)
    leaves = [hidden, weight, bias, log_ratio, *([] if scale is None else [scale])]
    upstream = torch.rand(plain.shape, dtype=plain.dtype, device=device)
    for a, b in zip(
        torch.autograd.grad(fused, leaves, upstream),
        torch.autograd.grad(plain, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_bernoulli_gradient_is_that_of_binary_cross_entropy(device: str) -> None:
    """An oracle that shares nothing with this package."""
    inputs = Inputs(device)
    logits, x, log_ratio = inputs.normal(M, B, K, 65), inputs.data(B, 65), inputs.normal(M, B, K)
    log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x.unsqueeze(1).expand(M, B, K, 65), reduction="none"
    )
    plain = math.log(K) - torch.logsumexp(log_p.sum(-1) + log_ratio, -1)
    loss = dvae_fast.iwae_loss(logits, x, log_ratio, reduction="none")
    torch.testing.assert_close(loss, plain)
    for a, b in zip(
        torch.autograd.grad(loss.sum(), (logits, log_ratio)),
        torch.autograd.grad(plain.sum(), (logits, log_ratio)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_gradient_is_that_of_torch_distributions(device: str) -> None:
    inputs = Inputs(device)
    mean, scale = inputs.normal(M, B, K, 65), inputs.positive(65)
    x, log_ratio = inputs.data(B, 65), inputs.normal(M, B, K)
    density = torch.distributions.Normal(mean, scale).log_prob(x.unsqueeze(1))
    plain = math.log(K) - torch.logsumexp(density.sum(-1) + log_ratio, -1)
    loss = dvae_fast.iwae_loss((mean, scale), x, log_ratio, "gaussian", reduction="none")
    torch.testing.assert_close(loss, plain)
    leaves = (mean, scale, log_ratio)
    for a, b in zip(
        torch.autograd.grad(loss.sum(), leaves),
        torch.autograd.grad(plain.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_latent_ratio_is_that_of_torch_distributions(device: str) -> None:
    inputs = Inputs(device)
    mean, log_var = inputs.normal(M, B, Z), inputs.normal(M, B, Z)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=1)
    q = torch.distributions.Normal(mean.unsqueeze(2), torch.exp(0.5 * log_var).unsqueeze(2))
    plain = (torch.distributions.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
    torch.testing.assert_close(ratio, plain)
    upstream = torch.rand(plain.shape, dtype=plain.dtype, device=device)
    first = torch.autograd.grad(ratio, (mean, log_var), upstream, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(plain, (mean, log_var), upstream), strict=True):
        torch.testing.assert_close(a, b)


# --- float32 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("k", [1, 7])
def test_float32_gradient_of_iwae_loss(
    k: int, likelihood: str, reduction: str, device: str
) -> None:
    d = 785
    inputs = Inputs(device, torch.float32)
    base, small = inputs.normal(M, B, 1, d, grad=False), inputs.normal(M, B, k, d, grad=False)
    params = (2 * base + 2 * small / math.sqrt(d)).requires_grad_()
    scale = inputs.positive(M, B, k, d) if likelihood == "gaussian" else None
    x, log_ratio = inputs.data(B, d), inputs.normal(M, B, k)
    operand = params if scale is None else (params, scale)
    loss = dvae_fast.iwae_loss(operand, x, log_ratio, likelihood, reduction=reduction)
    leaves = [params, *([] if scale is None else [scale])]
    grads = torch.autograd.grad(loss.sum(), leaves)
    (weights,) = torch.autograd.grad(
        dvae_fast.iwae_loss(operand, x, log_ratio, likelihood, reduction=reduction).sum(), log_ratio
    )
    multiplier = -1.0 / (M * B) if reduction == "mean" else -1.0
    flat = [t.detach().double().flatten(0, 1) for t in leaves]
    args = (flat[0], None if scale is None else flat[1], x.double(),
            log_ratio.detach().double().flatten(0, 1), likelihood, multiplier)  # fmt: skip
    _, w, *expected = reference.iwae(*args)
    _, w_terms, *terms = absolute_terms("iwae", args)
    for name, g, e, t in zip(("params", "scale"), grads, expected, terms, strict=False):
        assert_accurate(name, g.flatten(0, 1), e, t, torch.float32)
    factor = abs(multiplier)
    assert_accurate(
        "log_ratio", weights.flatten(0, 1), multiplier * w, factor * w_terms, torch.float32
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0.0, -100.0, -3000.0])
def test_float32_gradient_of_logmeanexp(offset: float, device: str) -> None:
    """The normalised weights depend on differences of log-weights, however large those are."""
    log_w = Inputs(device, torch.float32).normal(B, 50, grad=False) * 3 + offset
    log_w.requires_grad_()
    (grad,) = torch.autograd.grad(dvae_fast.logmeanexp(log_w).sum(), log_w)
    w = log_w.detach().double()
    expected = torch.softmax(w, -1)
    terms = expected * (1 + (w - w.amax(-1, keepdim=True)).abs())
    assert_accurate("log_w", grad, expected, terms, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_float32_weights_of_iwae_loss_sum_to_one(reduction: str, device: str) -> None:
    inputs = Inputs(device, torch.float32)
    logits, log_ratio = inputs.normal(M, B, 50, 785), inputs.normal(M, B, 50, grad=False) - 3000
    log_ratio.requires_grad_()
    loss = dvae_fast.iwae_loss(logits, inputs.data(B, 785), log_ratio, reduction=reduction)
    (grad,) = torch.autograd.grad(loss, log_ratio)
    total = -1.0 / (M * B) if reduction == "mean" else -1.0
    torch.testing.assert_close(
        grad.double().sum(-1), torch.full((M, B), total, device=device).double(), rtol=2e-6, atol=0
    )


# --- autograd's rules -------------------------------------------------------------------------


def _functions(device: str) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """One call of every differentiable function with its leaves: fresh, but always the same."""
    d = 65
    inputs = Inputs(device)
    x, std = inputs.data(B, d, grad=True), inputs.positive(d)
    mean, log_var, z = inputs.normal(M, B, Z), inputs.normal(M, B, Z), inputs.normal(M, B, K, Z)
    logits, scale = inputs.normal(M, B, K, d), inputs.positive(M, B, K, d)
    per_pixel, log_ratio = inputs.positive(d), inputs.normal(M, B, K)
    target = inputs.data(B, d)
    hidden, weight, bias = inputs.normal(M, B, K, H), inputs.normal(d, H), inputs.normal(d)
    gaussian, masking = corruptions.AdditiveGaussian(std), corruptions.Masking(0.5)
    f = dvae_fast
    return {
        "corrupt": (lambda: f.corrupt(x, masking, M, seed=1), [x]),
        "corrupt-gaussian": (lambda: f.corrupt(x, gaussian, M, seed=1), [x, std]),
        "sample_latent-z": (
            lambda: f.sample_latent(mean, log_var, K, seed=1)[0], [mean, log_var]),
        "sample_latent-ratio": (
            lambda: f.sample_latent(mean, log_var, K, seed=1)[1], [mean, log_var]),
        "latent_log_ratio": (
            lambda: f.latent_log_ratio(z, mean, log_var), [z, mean, log_var]),
        "mixture_log_ratio": (
            lambda: f.mixture_log_ratio(z, mean, log_var), [z, mean, log_var]),
        "log_weights": (
            lambda: f.log_weights(logits, target, log_ratio), [logits, log_ratio]),
        "log_weights-gaussian": (
            lambda: f.log_weights((logits, scale), target, log_ratio, "gaussian"),
            [logits, scale, log_ratio]),
        "logmeanexp": (lambda: f.logmeanexp(log_ratio), [log_ratio]),
        "iwae_loss-mean": (
            lambda: f.iwae_loss(logits, target, log_ratio), [logits, log_ratio]),
        "iwae_loss-none": (
            lambda: f.iwae_loss(logits, target, log_ratio, reduction="none"),
            [logits, log_ratio]),
        "iwae_loss-overwrite": (
            lambda: f.iwae_loss(logits * 2, target, log_ratio, overwrite_params=True),
            [logits, log_ratio]),
        "iwae_loss-gaussian": (
            lambda: f.iwae_loss((logits, scale), target, log_ratio, "gaussian"),
            [logits, scale, log_ratio]),
        "iwae_loss-gaussian-per-pixel": (
            lambda: f.iwae_loss((logits, per_pixel), target, log_ratio, "gaussian",
                                reduction="sum"),
            [logits, per_pixel, log_ratio]),
        "iwae_loss-gaussian-overwrite": (
            lambda: f.iwae_loss(
                (logits * 2, scale), target, log_ratio, "gaussian", reduction="none",
                overwrite_params=True),
            [logits, scale, log_ratio]),
        "linear_log_weights": (
            lambda: f.linear_log_weights(hidden, weight, bias, target, log_ratio),
            [hidden, weight, bias, log_ratio]),
    }  # fmt: skip


FUNCTIONS = list(_functions("cpu"))
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_kept_graph_gives_each_upstream_its_gradient(name: str, device: str) -> None:
    call, leaves = _functions(device)[name]
    out = call()
    ups = [torch.full_like(out, 1.0), torch.full_like(out, 3.0), torch.rand_like(out)]
    kept = [
        [g.clone() for g in torch.autograd.grad(out, leaves, up, retain_graph=True)] for up in ups
    ]
    kept.append(list(torch.autograd.grad(out, leaves, ups[0], retain_graph=True)))
    for i, (up, grads) in enumerate(zip([*ups, ups[0]], kept, strict=True)):
        fresh = torch.autograd.grad(call(), leaves, up)
        for leaf, (a, b) in enumerate(zip(grads, fresh, strict=True)):
            torch.testing.assert_close(a, b, msg=naming(f"pass {i}, leaf {leaf}"))


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_graph_that_was_not_kept_refuses_a_second_pass(name: str, device: str) -> None:
    call, leaves = _functions(device)[name]
    out = call()
    up = torch.full_like(out, 3.0)
    torch.autograd.grad(out, leaves, up)
    with pytest.raises(RuntimeError, match=r"second time|freed"):
        torch.autograd.grad(out, leaves, up)


def _without_gradients(name: str, device: str) -> Any:
    """A function, its leaves without .grad, and what that is to be of the function's sum."""
    call, leaves = _functions(device)[name]
    expected = torch.autograd.grad(call().sum(), leaves)
    for leaf in leaves:
        leaf.grad = None
    return call, leaves, expected


def _assert_accumulated(leaves: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for i, (leaf, e) in enumerate(zip(leaves, expected, strict=True)):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, e, msg=naming(f"leaf {i}"))


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_gradient_accumulates(name: str, device: str) -> None:
    """Two micro-batches at loss / 2 leave in .grad the gradient of one at loss."""
    call, leaves, expected = _without_gradients(name, device)
    for _ in range(2):
        (call().sum() / 2).backward()
    _assert_accumulated(leaves, expected)


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_kept_graph_accumulates_in_grad(name: str, device: str) -> None:
    """.grad must not be memory that a later pass scales."""
    call, leaves, expected = _without_gradients(name, device)
    loss = call().sum()
    (loss * 3).backward(retain_graph=True)
    (loss * 5).backward()
    _assert_accumulated(leaves, [8 * e for e in expected])


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_used_twice_in_one_graph(name: str, device: str) -> None:
    call, leaves = _functions(device)[name]
    expected = torch.autograd.grad(call().sum(), leaves)
    out = call()
    both = torch.autograd.grad((2 * out).sum() + (out * 3).sum(), leaves)
    twice = torch.autograd.grad(call().sum() * 4 + call().sum(), leaves)
    other = torch.stack([leaf.sum() for leaf in leaves]).sum()
    beside = torch.autograd.grad(call().sum() * 5 + other, leaves)
    for e, a, b, c in zip(expected, both, twice, beside, strict=True):
        torch.testing.assert_close(a, 5 * e)
        torch.testing.assert_close(b, 5 * e)
        torch.testing.assert_close(c, 5 * e + 1)


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_gradient_reaches_through_later_operations(name: str, device: str) -> None:
    """What autograd hands over need not be contiguous: expanded, transposed."""
    call, leaves = _functions(device)[name]
    upstream = torch.rand(call().shape, dtype=torch.float64, device=device)
    expected = torch.autograd.grad(call(), leaves, upstream)
    for layout in ("transposed", "strided", "offset"):
        got = torch.autograd.grad(call(), leaves, arrange(upstream, layout))
        for a, e in zip(got, expected, strict=True):
            torch.testing.assert_close(a, e)
    out = call()
    if out.dim():
        rows = torch.autograd.grad(out.select(0, 0).sum(), leaves)
        mask = torch.zeros_like(upstream)
        mask[0] = 1
        for a, e in zip(rows, torch.autograd.grad(call(), leaves, mask), strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_non_contiguous_leaves(name: str, device: str) -> None:
    """A transposed leaf has the values and gradient of its contiguous twin."""
    call, leaves = _functions(device)[name]
    expected = torch.autograd.grad(call().sum(), leaves)
    value = call().detach()
    for leaf in leaves:
        leaf.data = arrange(leaf.data, "transposed")
    torch.testing.assert_close(call().detach(), value)
    for a, e in zip(torch.autograd.grad(call().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_second_derivatives(name: str, device: str) -> None:
    call, leaves = _functions(device)[name]
    if "overwrite" in name:
        grads = lambda: torch.autograd.grad(call().sum(), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives with overwrite_params"):
            grads()
        return
    assert gradgradcheck(lambda *_: call(), leaves, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@each_function
def test_without_grad_the_values_are_the_same(name: str, device: str) -> None:
    call, _ = _functions(device)[name]
    expected = call()
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = call()
        assert not out.requires_grad
        torch.testing.assert_close(out, expected.detach())


@pytest.mark.parametrize("device", DEVICES)
def test_inference_tensors_are_taken(device: str) -> None:
    """Everything made inside inference mode, seeds included."""
    with torch.inference_mode():
        x = torch.rand(B, 65, device=device)
        noisy = dvae_fast.corrupt(x, corruptions.SaltAndPepper(0.3), M)
        z, ratio = dvae_fast.sample_latent(noisy[..., :Z], noisy[..., Z : 2 * Z], K)
        log_w = dvae_fast.log_weights(noisy.unsqueeze(2).expand(M, B, K, 65), x, ratio)
        bound = dvae_fast.logmeanexp(log_w)
        again = dvae_fast.latent_log_ratio(z, noisy[..., :Z], noisy[..., Z : 2 * Z])
        mixed = dvae_fast.mixture_log_ratio(z, noisy[..., :Z], noisy[..., Z : 2 * Z])
    torch.testing.assert_close(again, ratio, rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(bound).all())
    assert bool(torch.isfinite(mixed).all())


# --- empty batch ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch_has_empty_gradients(device: str) -> None:
    d = 65
    inputs = Inputs(device, torch.float32)
    x = inputs.data(0, d, grad=True)
    std = inputs.positive(d)
    noisy = dvae_fast.corrupt(x, corruptions.AdditiveGaussian(std), M, seed=1)
    mean, log_var = inputs.normal(M, 0, Z), inputs.normal(M, 0, Z)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=1)
    logits, scale = inputs.normal(M, 0, K, d), inputs.positive(d)
    hidden, weight, bias = inputs.normal(M, 0, K, H), inputs.normal(d, H), inputs.normal(d)
    target = inputs.data(0, d)
    outs = [
        noisy,
        z,
        dvae_fast.latent_log_ratio(z, mean, log_var),
        dvae_fast.mixture_log_ratio(z, mean, log_var),
        dvae_fast.log_weights(logits, x, ratio),
        dvae_fast.log_weights((logits, scale), x, ratio, "gaussian"),
        dvae_fast.logmeanexp(ratio),
        dvae_fast.iwae_loss(logits, target, ratio, reduction="sum"),
        dvae_fast.iwae_loss(logits, target, ratio, reduction="none"),
        dvae_fast.iwae_loss((logits, scale), target, ratio, "gaussian", reduction="sum"),
        dvae_fast.linear_log_weights(hidden, weight, bias, target, ratio),
    ]
    torch.stack([out.sum() for out in outs]).sum().backward()
    for leaf in (x, mean, log_var, logits, hidden):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
    for leaf in (std, scale, weight, bias):
        assert leaf.grad is not None
        assert bool((leaf.grad == 0).all())


# --- infinite values that carry no weight -----------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fused", [False, True])
def test_dead_sample_does_not_spoil_the_gradients_of_others(fused: bool, device: str) -> None:
    """A Gaussian sample infinitely far away has weight 0, so it must not reach a shared scale."""
    inputs = Inputs(device)
    mean, scale = inputs.normal(B, K, 7, grad=False), inputs.positive(7)
    mean[1, 2, 3] = math.inf
    mean.requires_grad_()
    x, log_ratio = inputs.data(B, 7), inputs.normal(B, K)
    if fused:
        loss = dvae_fast.iwae_loss((mean, scale), x, log_ratio, "gaussian", reduction="sum")
    else:
        log_w = dvae_fast.log_weights((mean, scale), x, log_ratio, "gaussian")
        loss = -dvae_fast.logmeanexp(log_w).sum()
    grads = torch.autograd.grad(loss, (mean, scale, log_ratio))
    for name, g in zip(("mean", "scale", "log_ratio"), grads, strict=True):
        assert bool(torch.isfinite(g).all()), f"gradient of {name}: {g}"
    assert bool((grads[0][1, 2] == 0).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_dead_sample_does_not_spoil_the_gradient_of_x(likelihood: str, device: str) -> None:
    inputs = Inputs(device)
    params, log_ratio = inputs.normal(B, K, 7, grad=False), inputs.normal(B, K)
    x = inputs.data(B, 7, grad=True)
    params[1, 2, 3] = -math.inf
    operand = (params, 1.0) if likelihood == "gaussian" else params
    log_w = dvae_fast.log_weights(operand, x, log_ratio, likelihood)
    assert float(log_w[1, 2].detach()) == -math.inf
    (grad,) = torch.autograd.grad(dvae_fast.logmeanexp(log_w).sum(), x)
    assert bool(torch.isfinite(grad).all()), f"gradient of x: {grad}"


# --- overwriting the decoder output -----------------------------------------------------------


def _decoder(device: str) -> tuple[torch.nn.Linear, Tensor, Tensor, Tensor]:
    inputs = Inputs(device, torch.float32)
    torch.manual_seed(0)
    layer = torch.nn.Linear(H, 65, device=device)
    return layer, inputs.normal(B, K, H), inputs.data(B, 65), inputs.normal(B, K)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_overwriting_gives_the_same_gradients(reduction: str, device: str) -> None:
    grads = []
    for overwrite in (False, True):
        layer, hidden, x, log_ratio = _decoder(device)
        loss = dvae_fast.iwae_loss(
            layer(hidden), x, log_ratio, reduction=reduction, overwrite_params=overwrite
        )
        (loss * 3).sum().backward()
        grads.append([hidden.grad, layer.weight.grad, layer.bias.grad, log_ratio.grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_overwriting_does_happen(device: str) -> None:
    """What the memory and speed of the option rest on: no second (B, K, D) tensor."""
    layer, hidden, x, log_ratio = _decoder(device)
    logits = layer(hidden)
    before = logits.detach().clone()
    dvae_fast.iwae_loss(logits, x, log_ratio, overwrite_params=True)
    assert not torch.equal(before, logits.detach())


@pytest.mark.parametrize("device", DEVICES)
def test_overwriting_leaves_leaves_alone(device: str) -> None:
    inputs = Inputs(device, torch.float32)
    logits, x, log_ratio = inputs.normal(B, K, 65), inputs.data(B, 65), inputs.normal(B, K)
    before = logits.detach().clone()
    loss = dvae_fast.iwae_loss(logits, x, log_ratio, overwrite_params=True)
    assert torch.equal(logits.detach(), before)
    loss.backward()
    assert torch.equal(logits.detach(), before)
    plain = inputs.normal(B, K, 65, grad=False)
    before = plain.clone()
    dvae_fast.iwae_loss(plain, x, log_ratio, overwrite_params=True).backward()
    assert torch.equal(plain, before), "a tensor without gradient was overwritten"
    with torch.no_grad():
        dvae_fast.iwae_loss(logits * 1, x, log_ratio, overwrite_params=True)
        dvae_fast.iwae_loss(logits, x, log_ratio, overwrite_params=True)
    assert torch.equal(logits.detach(), plain.copy_(logits.detach()))


@pytest.mark.parametrize("device", DEVICES)
def test_overwriting_leaves_a_view_of_a_leaf_alone(device: str) -> None:
    """logits.view(...) is no leaf, but its memory is the caller's parameter."""
    inputs = Inputs(device, torch.float32)
    flat, x, log_ratio = inputs.normal(B, K * 65), inputs.data(B, 65), inputs.normal(B, K)
    before = flat.detach().clone()
    for view in (lambda: flat.view(B, K, 65), lambda: flat.unsqueeze(0)[0].view(B, K, 65)):
        # Either it is left alone or torch refuses, as it does for other operations in place.
        with contextlib.suppress(RuntimeError):
            dvae_fast.iwae_loss(view(), x, log_ratio, overwrite_params=True).backward()
        assert torch.equal(flat.detach(), before), "a parameter was overwritten through its view"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_overwriting_leaves_non_contiguous_tensors_alone(layout: str, device: str) -> None:
    inputs = Inputs(device, torch.float32)
    leaf, x, log_ratio = inputs.normal(B, K, 65), inputs.data(B, 65), inputs.normal(B, K)

    def params() -> Tensor:
        t = leaf * 2
        if layout == "transposed":
            return t.transpose(0, 2).contiguous().transpose(0, 2)
        if layout == "strided":
            return torch.stack((t, t), -1)[..., 0]
        return t[:1].expand(B, K, 65)

    expected = torch.autograd.grad(dvae_fast.iwae_loss(params(), x, log_ratio), leaf)
    p = params()
    before = p.detach().clone()
    loss = dvae_fast.iwae_loss(p, x, log_ratio, overwrite_params=True)
    assert torch.equal(p.detach(), before)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf), expected)


@pytest.mark.filterwarnings("ignore:The decoder's outputs, taken for logits")  # a sigmoid's are
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "activation", [torch.sigmoid, torch.exp, torch.tanh], ids=lambda f: f.__name__
)
def test_overwriting_what_another_operation_saved_raises(
    activation: Callable[[Tensor], Tensor], device: str
) -> None:
    """tanh's backward needs its output: overwritten, torch must say so and not use it."""
    inputs = Inputs(device, torch.float32)
    leaf, x, log_ratio = inputs.normal(B, K, 65), inputs.data(B, 65), inputs.normal(B, K)
    loss = dvae_fast.iwae_loss(activation(leaf), x, log_ratio, overwrite_params=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_of_an_overwritten_output_has_none_of_its_own(device: str) -> None:
    """But with what makes the output again."""
    layer, hidden, x, log_ratio = _decoder(device)

    def second(overwrite: Any) -> Any:
        loss = dvae_fast.iwae_loss(layer(hidden), x, log_ratio, overwrite_params=overwrite)
        (grad,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), layer.weight)

    with pytest.raises(RuntimeError, match="no second derivatives with overwrite_params=True"):
        second(True)
    torch.testing.assert_close(second(lambda: layer(hidden)), second(False))


@pytest.mark.parametrize("device", DEVICES)
def test_overwriting_after_another_reader_raises(device: str) -> None:
    """So does an operation that reads the decoder output beside the loss and saved it."""
    layer, hidden, x, log_ratio = _decoder(device)
    logits = layer(hidden)
    penalty = logits.square().mean()
    loss = dvae_fast.iwae_loss(logits, x, log_ratio, overwrite_params=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + penalty).backward()


@pytest.mark.parametrize("device", DEVICES)
def test_changing_what_backward_needs_raises(device: str) -> None:
    """Inputs saved for the backward pass and changed before it are noticed."""
    inputs = Inputs(device, torch.float32)
    leaf, x, log_ratio = inputs.normal(B, K, 65), inputs.data(B, 65), inputs.normal(B, K)
    logits = leaf * 1
    out = dvae_fast.log_weights(logits, x, log_ratio).sum()
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("device", DEVICES)
def test_a_full_scale_keeps_its_precision_beside_a_low_precision_mean(device: str) -> None:
    """As autocast may hand them over: bfloat16 would move a scale of 0.02 by 16 nats."""
    inputs = Inputs(device, torch.float32)
    mean = (0.5 * torch.sigmoid(inputs.normal(B, K, 65).detach())).bfloat16()
    scale = 0.02 + 0.01 * torch.rand(B, K, 65, device=device)
    x, log_ratio = mean[:, 0].float() + 0.01, inputs.normal(B, K).detach()
    actual = dvae_fast.log_weights((mean, scale), x, log_ratio, "gaussian")
    expected = dvae_fast.log_weights(
        (mean.double(), scale.double()), x.double(), log_ratio.double(), "gaussian"
    )
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_float16_gradients_survive_under_a_loss_scale(device: str) -> None:
    """w̃ (x − σ) / B lies below float16 here; times 65536 it does not."""
    x, log_ratio = torch.zeros(100, 65, device=device), torch.zeros(100, K, device=device)
    leaf = torch.full((100, K, 65), -9.0, device=device, dtype=torch.float16).requires_grad_()
    (grad,) = torch.autograd.grad(dvae_fast.iwae_loss(leaf, x, log_ratio) * 65536, leaf)
    expected = 65536 / (100 * K) * torch.sigmoid(torch.tensor(-9.0)).item()
    torch.testing.assert_close(
        grad.float(), torch.full_like(grad, expected).float(), rtol=2e-3, atol=0
    )
