"""Every way to ask for derivatives, against plain PyTorch in float64 under the same transforms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import NegativeBinomial, Normal
from torch.nn import functional as F

import dvae_fast
from dvae_fast.corruptions import AdditiveGaussian, BitFlip, Masking, SaltAndPepper
from dvae_fast.likelihoods import Likelihood, identity, positive

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's own doing, at the first jvp.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

M, B, K, D, Z, H = 2, 3, 4, 5, 2, 6
SEED = 11


class Laplace(Likelihood):
    params = {"mean": identity, "scale": positive}  # noqa: RUF012

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        mean, scale = params
        return -((x - mean).square() + 1).sqrt() / scale - torch.log(scale)


class Case(NamedTuple):
    fused: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _bound(log_w: Tensor) -> Tensor:
    # Not torch.logsumexp, whose forward mode cannot be gone back through.
    return log_w.exp().sum(-1).log() - math.log(log_w.shape[-1])


def _bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)


def _logistic(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    upper = torch.where(x > 0.999, 1.0, torch.sigmoid((x + 0.5 / 255 - mean) / scale))
    lower = torch.where(x < 0.001, 0.0, torch.sigmoid((x - 0.5 / 255 - mean) / scale))
    return torch.log(upper - lower)


def _counts(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    logits = (mean / scale).log()
    return NegativeBinomial(scale, logits=logits, validate_args=False).log_prob(x)


def _gaussian(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return Normal(mean, scale, validate_args=False).log_prob(x)


def _own(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return Laplace().log_prob((mean, scale), x)


def _log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """z (*L, B, K, Z)."""
    q = Normal(mean.unsqueeze(-2), (0.5 * log_var).exp().unsqueeze(-2), validate_args=False)
    return (Normal(0.0, 1.0, validate_args=False).log_prob(z) - q.log_prob(z)).sum(-1)


def _sampled(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(M, B, Z, dtype=torch.float64)
    noise, _ = dvae_fast.sample_latent(zero, zero, K, SEED)
    z = mean.unsqueeze(-2) + (0.5 * log_var).exp().unsqueeze(-2) * noise
    return z, _log_ratio(z, mean, log_var)


def _mixture(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    ratios = torch.stack([-_log_ratio(z, m, v) for m, v in zip(mean, log_var, strict=True)], -1)
    return -_bound(ratios)


def _of(
    name: str, density: Callable[..., Tensor], x: Tensor, *params: Tensor, own: Any = None
) -> Case:
    likelihood = name if own is None else own

    def fused(r: Tensor, *p: Tensor) -> Tensor:
        return dvae_fast.log_weights(p if len(p) > 1 else p[0], x, r, likelihood)

    def plain(r: Tensor, *p: Tensor) -> Tensor:
        return density(*p, x.unsqueeze(-2)).sum(-1) + r

    return Case(fused, plain, (normal(M, B, K), *params))


def _cases() -> dict[str, Case]:
    torch.manual_seed(3)
    grey, bits = torch.rand(B, D, dtype=torch.float64), (normal(B, D) > 0).double()
    levels, counts = torch.randint(0, 256, (B, D)) / 255.0, torch.randint(0, 9, (B, D)).double()
    levels = levels.double()
    logits, mean = normal(M, B, K, D), torch.rand(M, B, K, D, dtype=torch.float64)
    logits.view(-1)[::5] = 0.0  # where |l| has no derivative of its own
    ratio, one = normal(M, B, K), torch.rand((), dtype=torch.float64) + 0.5
    each, every = torch.rand(D, dtype=torch.float64) + 0.5, mean.flip(0) + 0.5
    weight, bias, hidden = normal(D, H), normal(D), normal(M, B, K, H)
    first, z = normal(H, Z), normal(M, B, K, Z)
    q_mean, q_var = normal(M, B, Z), 0.5 * normal(M, B, Z)
    std = torch.rand(D, dtype=torch.float64) + 0.1

    def drawn(corruption: Any) -> Case:
        def plain(x: Tensor) -> Tensor:
            # Linear in x: the value at 0, and the slope.
            with torch.no_grad():
                none, all_ = (
                    dvae_fast.corrupt(torch.full_like(grey, v), corruption, M, SEED)
                    for v in (0.0, 1.0)
                )
            return none + (all_ - none) * x

        return Case(lambda x: dvae_fast.corrupt(x, corruption, M, SEED), plain, (grey,))

    def noisy(x: Tensor, std: Tensor) -> Tensor:
        noise = dvae_fast.corrupt(torch.zeros_like(grey), AdditiveGaussian(1.0), M, SEED)
        return x + std * noise

    def layers(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(z, w)), weight, b)

    return {
        "masking": drawn(Masking(0.4)),
        "bit_flip": drawn(BitFlip(0.4)),
        "salt_and_pepper": drawn(SaltAndPepper(0.4)),
        "gaussian noise": Case(
            lambda x, s: dvae_fast.corrupt(x, AdditiveGaussian.at(s), M, SEED), noisy, (grey, std)
        ),
        "sample_latent": Case(
            lambda m, v: dvae_fast.sample_latent(m, v, K, SEED), _sampled, (q_mean, q_var)
        ),
        "latent_log_ratio": Case(
            dvae_fast.functional.latent_log_ratio, _log_ratio, (z, q_mean, q_var)
        ),
        "mixture_log_ratio": Case(
            dvae_fast.functional.mixture_log_ratio, _mixture, (z, q_mean, q_var)
        ),
        "log_weights bernoulli": _of("bernoulli", _bernoulli, grey, logits),
        "log_weights gaussian, one scale": _of("gaussian", _gaussian, grey, mean, one),
        "log_weights gaussian, D scales": _of("gaussian", _gaussian, grey, mean, each),
        "log_weights gaussian": _of("gaussian", _gaussian, grey, mean, every),
        "log_weights logistic": _of("discretised_logistic", _logistic, levels, mean, each),
        "log_weights counts": _of("negative_binomial", _counts, counts, 3 * every, 2 * each),
        "log_weights own": _of("", _own, grey, mean, each, own=Laplace()),
        "log_weights in x, bernoulli": Case(
            lambda x: dvae_fast.log_weights(logits, x, ratio),
            lambda x: _bernoulli(logits, x.unsqueeze(-2)).sum(-1) + ratio,
            (grey,),
        ),
        "log_weights in x, gaussian": Case(
            lambda x, m: dvae_fast.log_weights((m, each), x, ratio, "gaussian"),
            lambda x, m: _gaussian(m, each, x.unsqueeze(-2)).sum(-1) + ratio,
            (grey, mean),
        ),
        "linear_log_weights": Case(
            lambda h, w, b, r: dvae_fast.linear_log_weights(h, w, b, bits, r),
            lambda h, w, b, r: _bernoulli(F.linear(h, w, b), bits.unsqueeze(-2)).sum(-1) + r,
            (hidden, weight, bias, ratio),
        ),
        "linear_log_weights, a scale": Case(
            lambda h, w, s: dvae_fast.linear_log_weights(
                h, w, None, grey, ratio, "gaussian", scale=s
            ),
            lambda h, w, s: _gaussian(F.linear(h, w), s, grey.unsqueeze(-2)).sum(-1) + ratio,
            (hidden, weight, each),
        ),
        "mlp_log_weights": Case(
            lambda z, w, b: dvae_fast.functional.mlp_log_weights(
                z, [(w, None), (weight, b)], bits, ratio, activation="tanh"
            ),
            lambda z, w, b: _bernoulli(layers(z, w, b), bits.unsqueeze(-2)).sum(-1) + ratio,
            (z, first, bias),
        ),
        "logmeanexp": Case(dvae_fast.logmeanexp, _bound, (ratio,)),
        "logmeanexp of dim 1": Case(
            lambda w: dvae_fast.logmeanexp(w, 1), lambda w: _bound(w.movedim(1, -1)), (ratio,)
        ),
        **{
            f"iwae_loss {reduction}": Case(
                lambda p, r, how=reduction: dvae_fast.iwae_loss(p, grey, r, reduction=how),
                lambda p, r, how=reduction: {
                    "mean": torch.mean, "sum": torch.sum, "none": lambda t: t * 1
                }[how](-_bound(_bernoulli(p, grey.unsqueeze(-2)).sum(-1) + r)),
                (logits, ratio),
            )
            for reduction in ("mean", "sum", "none")
        },
        "iwae_loss, a scale": Case(
            lambda m, s, r: dvae_fast.iwae_loss((m, s), grey, r, "gaussian"),
            lambda m, s, r: -_bound(_gaussian(m, s, grey.unsqueeze(-2)).sum(-1) + r).mean(),
            (mean, every, ratio),
        ),
        "softplus": Case(
            dvae_fast.functional.softplus, lambda x: -F.logsigmoid(-x), (logits,)
        ),
    }  # fmt: skip


CASES = _cases()
every_case = pytest.mark.parametrize("name", CASES)


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def tangents(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    return tuple(torch.randn_like(t) for t in inputs)


def _total(f: Callable[..., Any]) -> Callable[..., Tensor]:
    """A scalar that is not linear in f's results."""

    def total(*inputs: Tensor) -> Tensor:
        out = f(*inputs)
        parts = out if isinstance(out, tuple) else (out,)
        return sum((torch.sin(p).sum() for p in parts), start=torch.zeros((), dtype=torch.float64))

    return total


def _all(case: Case) -> tuple[int, ...]:
    return tuple(range(len(case.inputs)))


@every_case
def test_forward_mode(name: str) -> None:
    case = CASES[name]
    t = tangents(case.inputs)
    same(
        torch.func.jvp(case.fused, case.inputs, t),
        torch.func.jvp(case.plain, case.inputs, t),
    )
    for i, at in enumerate(case.inputs):  # one alone
        f, g = (
            (lambda a, h=h, i=i: h(*case.inputs[:i], a, *case.inputs[i + 1 :])) for h in case[:2]
        )
        same(torch.func.jvp(f, (at,), (t[i],)), torch.func.jvp(g, (at,), (t[i],)))


@every_case
def test_dual_numbers(name: str) -> None:
    """Without `torch.func`, and back through the tangent."""
    case = CASES[name]

    def pushed(f: Callable[..., Any]) -> tuple[Any, Any]:
        leaves = [t.clone().requires_grad_() for t in case.inputs]
        with torch.autograd.forward_ad.dual_level():
            pairs = zip(leaves, tangents(case.inputs), strict=True)
            duals = [torch.autograd.forward_ad.make_dual(a, t) for a, t in pairs]
            tangent = torch.autograd.forward_ad.unpack_dual(_total(f)(*duals)).tangent
            back = torch.autograd.grad(tangent, leaves, allow_unused=True, materialize_grads=True)
        return tangent.detach(), back

    same(pushed(case.fused), pushed(case.plain))


@every_case
def test_jacobians_and_hessians(name: str) -> None:
    case = CASES[name]
    for f in (torch.func.jacrev, torch.func.jacfwd):
        same(f(case.fused, _all(case))(*case.inputs), f(case.plain, _all(case))(*case.inputs))
    fused, plain = _total(case.fused), _total(case.plain)
    # Of the smallest input: that of all is large.
    i = min(_all(case), key=lambda i: case.inputs[i].numel())
    f, g = (lambda a, h=h: h(*case.inputs[:i], a, *case.inputs[i + 1 :]) for h in (fused, plain))
    expected = torch.autograd.functional.hessian(g, case.inputs[i])
    same(torch.autograd.functional.hessian(f, case.inputs[i]), expected)
    same(torch.func.hessian(f)(case.inputs[i]), expected)


@every_case
@pytest.mark.parametrize(
    "outer, inner",
    [
        (torch.func.jacfwd, torch.func.jacfwd),
        (torch.func.jacrev, torch.func.jacfwd),
        (torch.func.jacrev, torch.func.jacrev),
    ],
    ids=["forward over forward", "reverse over forward", "reverse over reverse"],
)
def test_second_derivatives_in_any_order(name: str, outer: Any, inner: Any) -> None:
    case = CASES[name]
    t = tangents(case.inputs)

    def along(f: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda s: _total(f)(*(a + s * b for a, b in zip(case.inputs, t, strict=True)))

    zero = torch.zeros((), dtype=torch.float64)
    same(outer(inner(along(case.fused)))(zero), outer(inner(along(case.plain)))(zero))


@every_case
def test_gradients_of_gradients(name: str) -> None:
    """``create_graph=True``, the upstream gradients constants or not."""
    case = CASES[name]

    def penalised(f: Callable[..., Any], constant: bool) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in case.inputs]
        out = f(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        total = sum(o.sum() for o in outs) if constant else _total(lambda: out)()
        grads = torch.autograd.grad(total, leaves, create_graph=True)
        penalty = sum(torch.cos(g).sum() for g in grads)
        if not penalty.requires_grad:  # a function that is linear
            return tuple(map(torch.zeros_like, leaves))
        return torch.autograd.grad(penalty, leaves, allow_unused=True, materialize_grads=True)

    for constant in (True, False):
        same(penalised(case.fused, constant), penalised(case.plain, constant))


@every_case
def test_the_double_backward_trick(name: str) -> None:
    """Forward mode by reverse mode twice, at upstream gradients of 0."""
    case = CASES[name]
    t = tangents(case.inputs)
    same(
        torch.autograd.functional.jvp(case.fused, case.inputs, t),
        torch.autograd.functional.jvp(case.plain, case.inputs, t),
    )


@every_case
def test_vmap_is_a_loop(name: str) -> None:
    case = CASES[name]
    many = [torch.stack([t, 0.9 * t, 0.5 * t]) for t in case.inputs]
    alone = [case.plain(*(t[i] for t in many)) for i in range(3)]
    same(torch.vmap(case.fused)(*many), _stacked(alone))
    for i in _all(case):  # one alone, another dimension
        dims = [None] * len(case.inputs)
        dims[i] = 0
        mixed = [t if j == i else case.inputs[j] for j, t in enumerate(many)]
        loop = [case.plain(*(t[n] if j == i else t for j, t in enumerate(mixed))) for n in range(3)]
        same(torch.vmap(case.fused, tuple(dims))(*mixed), _stacked(loop))


def _stacked(results: list[Any]) -> Any:
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True)))
    return torch.stack(results)


@every_case
def test_a_gradient_for_each_of_a_batch(name: str) -> None:
    case = CASES[name]
    many = [torch.stack([t, 0.9 * t, 0.5 * t]) for t in case.inputs]
    expected = torch.vmap(torch.func.grad(_total(case.plain), _all(case)))(*many)
    found = torch.vmap(torch.func.grad(_total(case.fused), _all(case)))(*many)
    same(found, expected)
    loop = [
        torch.func.grad(_total(case.fused), _all(case))(*(t[i] for t in many)) for i in range(3)
    ]
    same(found, _stacked(loop))


@every_case
def test_many_upstream_gradients_of_one_graph(name: str) -> None:
    case = CASES[name]

    def rows(f: Callable[..., Any]) -> Any:
        leaves = tuple(t.clone().requires_grad_() for t in case.inputs)
        out = f(*leaves)
        out = out[0] if isinstance(out, tuple) else out
        torch.manual_seed(7)
        upstream = torch.randn(3, *out.shape, dtype=out.dtype)
        return torch.autograd.grad(out, leaves, upstream, is_grads_batched=True)

    same(rows(case.fused), rows(case.plain))
