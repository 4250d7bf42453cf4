"""`mask=`: log p of what was observed, against a sum over those dimensions alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, NegativeBinomial, Normal, Poisson
from torch.nn import functional as F

import dvae_fast
from dvae_fast import functional, reference
from dvae_fast.likelihoods import Likelihood, positive

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's own doing, at the first jvp.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

M, B, K, D, H = 2, 5, 3, 67, 4
NAN, INF = math.nan, math.inf
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class OwnPoisson(Likelihood):
    """torch's, which refuses what no data and no rate can be."""

    params = {"rate": positive}  # noqa: RUF012
    discrete = True
    interval = (0.0, INF)
    step = 1.0

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        return Poisson(params[0], validate_args=True).log_prob(x)


class OwnGamma(Likelihood):
    """Of three parameters, one of which is an attribute."""

    params = {"shape": positive, "rate": positive}  # noqa: RUF012
    interval = (0.0, INF)

    def __init__(self, power: Tensor) -> None:
        self.power = power

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        shape, rate = params
        return self.power * Gamma(shape, rate, validate_args=False).log_prob(x)


def _bernoulli(p: tuple[Tensor, ...], x: Tensor) -> Tensor:
    return x * F.logsigmoid(p[0]) + (1 - x) * F.logsigmoid(-p[0])


def _logistic(p: tuple[Tensor, ...], x: Tensor) -> Tensor:
    mean, scale = p
    upper = torch.where(x > 0.999, 1.0, torch.sigmoid((x + 0.5 / 255 - mean) / scale))
    lower = torch.where(x < 0.001, 0.0, torch.sigmoid((x - 0.5 / 255 - mean) / scale))
    return torch.log(upper - lower)


def _counts(p: tuple[Tensor, ...], x: Tensor) -> Tensor:
    mean, t = p
    return NegativeBinomial(t, logits=(mean / t).log(), validate_args=False).log_prob(x)


def _poisson(p: tuple[Tensor, ...], x: Tensor) -> Tensor:
    return Poisson(p[0], validate_args=False).log_prob(x)


def _inflated(p: tuple[Tensor, ...], x: Tensor) -> Tensor:
    kept = F.logsigmoid(-p[2]) + _counts(p[:2], x)
    return torch.where(x == 0, torch.logaddexp(F.logsigmoid(p[2]), kept), kept)


class Case(NamedTuple):
    likelihood: Any
    density: Callable[[tuple[Tensor, ...], Tensor], Tensor]
    params: tuple[Tensor, ...]
    x: Tensor


def _cases() -> dict[str, Case]:
    g = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64)

    full = (M, B, K, D)
    grey, counts = uniform(B, D), (6 * uniform(B, D)).floor()
    levels = (255 * grey).round() / 255
    gauss = lambda p, x: Normal(*p, validate_args=False).log_prob(x)
    own = OwnGamma(torch.tensor(0.5, dtype=torch.float64))
    return {
        "bernoulli": Case("bernoulli", _bernoulli, (2 * normal(*full),), grey),
        "gaussian": Case("gaussian", gauss, (normal(*full), 0.5 + uniform(*full)), grey),
        "gaussian-D": Case("gaussian", gauss, (normal(*full), 0.5 + uniform(D)), grey),
        "gaussian-1": Case("gaussian", gauss, (normal(*full), 0.5 + uniform()), grey),
        "logistic": Case(
            "discretised_logistic",
            _logistic,
            (0.5 + 0.2 * normal(*full), 0.1 + 0.1 * uniform(D)),
            levels,
        ),
        "counts": Case(
            "negative_binomial", _counts, (normal(*full).exp(), 0.5 + uniform(*full)), counts
        ),
        "counts-D": Case(
            "negative_binomial", _counts, (normal(*full).exp(), 0.5 + uniform(D)), counts
        ),
        "poisson": Case("poisson", _poisson, (normal(*full).exp(),), counts),
        "inflated": Case(
            "zero_inflated_negative_binomial",
            _inflated,
            (normal(*full).exp(), 0.5 + uniform(*full), normal(*full)),
            counts,
        ),
        "inflated-D": Case(
            "zero_inflated_negative_binomial",
            _inflated,
            (normal(*full).exp(), 0.5 + uniform(D), normal(*full)),
            counts,
        ),
        "own-poisson": Case(OwnPoisson(), _poisson, (normal(*full).exp(),), counts),
        "own-gamma": Case(
            own,
            lambda p, x: 0.5 * Gamma(*p, validate_args=False).log_prob(x),
            (normal(*full).exp(), 0.5 + uniform(*full)),
            0.1 + grey,
        ),
    }


CASES = _cases()
KERNELS = [name for name in CASES if not name.startswith("own")]


def _ratio(seed: int = 7) -> Tensor:
    return torch.randn(M, B, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mask(*leading: int, seed: int = 9) -> Tensor:
    """Of one example nothing is observed, of one everything, of the others few or many."""
    g = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.6, -1.0, 0.2, 2.0, 0.9]).unsqueeze(-1)
    return torch.rand((*leading, B, D), generator=g) < share


def _expected(case: Case, mask: Tensor, ratio: Tensor) -> Tensor:
    """Σ over the observed dimensions of the density, of operands that are all in order."""
    each = case.density(case.params, case.x.unsqueeze(-2))
    return torch.where(mask.unsqueeze(-2), each, 0.0).sum(-1) + ratio


def _spoilt(case: Case, mask: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """What is not observed, of all kinds that would show. x is (B, D), or (M, B, D)."""

    def spoil(t: Tensor, unseen: Tensor) -> Tensor:
        bad = torch.tensor([NAN, INF, -INF, -3.0], dtype=t.dtype)
        return torch.where(unseen, bad[torch.arange(t.numel()).view(t.shape) % 4], t)

    params = tuple(
        spoil(p, ~mask.unsqueeze(-2).expand(M, B, K, D)) if p.dim() == 4 else p
        for p in (q.expand(M, B, K, D) if q.dim() == 4 else q for q in case.params)
    )
    x = case.x if mask.dim() == 2 else case.x.expand(M, B, D).clone()
    return params, spoil(x, ~mask)


def _as_params(params: tuple[Tensor, ...]) -> Any:
    return params if len(params) > 1 else params[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("leading", [(), (M,)])
def test_is_the_density_of_what_was_observed(name: str, leading: tuple[int, ...]) -> None:
    """To float64's digits, whatever the rest is; and the loss is that of its bound."""
    case, ratio, mask = CASES[name], _ratio(), _mask(*leading)
    expected = _expected(case, mask, ratio)
    params, x = _spoilt(case, mask)
    got = dvae_fast.log_weights(_as_params(params), x, ratio, case.likelihood, mask)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(got[:, 1], ratio[:, 1])  # nothing was observed
    loss = dvae_fast.iwae_loss(
        _as_params(params), x, ratio, case.likelihood, mask=mask, reduction="none"
    )
    bound = torch.logsumexp(expected, -1) - math.log(K)
    torch.testing.assert_close(-loss, bound, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", [False, True])
def test_gradients_are_those_of_the_sum_and_zero_elsewhere(name: str, loss: bool) -> None:
    case, ratio, mask = CASES[name], _ratio(), _mask(M)
    upstream = _ratio(13)

    def gradients(params: tuple[Tensor, ...], value: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [p.clone().requires_grad_() for p in params]
        r = ratio.clone().requires_grad_()
        log_w = value(tuple(leaves), r)
        if not loss:
            log_w = (log_w * upstream).sum()
        elif log_w.dim() > 0:
            log_w = -(torch.logsumexp(log_w, -1) - math.log(K)).mean()
        return list(torch.autograd.grad(log_w, [*leaves, r]))

    expected = gradients(case.params, lambda p, r: _expected(case._replace(params=p), mask, r))
    spoilt, x = _spoilt(case, mask)
    run = dvae_fast.iwae_loss if loss else dvae_fast.log_weights
    got = gradients(spoilt, lambda p, r: run(_as_params(p), x, r, case.likelihood, mask))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-12)
    unseen = ~mask.unsqueeze(-2).expand(M, B, K, D)
    for g in got[:-1]:
        if g.dim() == 4:
            assert (g[unseen] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_dtype_is_what_its_own_dimensions_alone_give(name: str, dtype: torch.dtype) -> None:
    """As a call of the rows of one example without the dimensions not observed, to rounding."""
    case, mask = CASES[name], _mask()
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    each = [p.to(dtype if p.dim() == 4 else sums) for p in case.params]
    ratio, x = _ratio().to(sums), case.x.to(sums)
    got = dvae_fast.log_weights(_as_params(tuple(each)), x, ratio, case.likelihood, mask)
    for b in range(B):
        seen = mask[b]
        own = tuple(p[:, b : b + 1][..., seen] if p.dim() == 4 else _of(p, seen) for p in each)
        expected = dvae_fast.log_weights(
            _as_params(own), x[b : b + 1, seen], ratio[:, b : b + 1], case.likelihood
        )
        torch.testing.assert_close(got[:, b : b + 1], expected, rtol=3e-7, atol=3e-6)


def _of(p: Tensor, seen: Tensor) -> Tensor:
    return p[seen] if p.dim() == 1 else p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_all_ones_are_the_bits_of_no_mask(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    ones = torch.ones(B, D, dtype=torch.bool)
    each = [p.to(dtype) for p in case.params]
    results = []
    for mask in (None, ones, ones.expand(M, B, D)):
        leaves = [p.clone().requires_grad_() for p in each]
        log_w = dvae_fast.log_weights(
            _as_params(tuple(leaves)), case.x, _ratio(), case.likelihood, mask
        )
        loss = dvae_fast.iwae_loss(
            _as_params(tuple(leaves)), case.x, _ratio(), case.likelihood, mask
        )
        grads = torch.autograd.grad(log_w.sum() + 3 * loss, leaves)
        results.append([log_w, loss, *grads])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_nan_that_was_observed_is_nan_for_its_example_alone(name: str) -> None:
    case, mask, ratio = CASES[name], _mask(), _ratio()
    if name == "own-poisson":
        pytest.skip("it refuses NaN itself")
    clean = dvae_fast.log_weights(_as_params(case.params), case.x, ratio, case.likelihood, mask)
    first = case.params[0].clone()
    at = int(mask[2].nonzero()[0])
    first[:, 2, :, at] = NAN
    leaves = [first.requires_grad_(), *(p.clone().requires_grad_() for p in case.params[1:])]
    got = dvae_fast.log_weights(_as_params(tuple(leaves)), case.x, ratio, case.likelihood, mask)
    others = [0, 1, 3, 4]
    assert got[:, 2].isnan().all()
    assert torch.equal(got[:, others], clean[:, others])
    loss = dvae_fast.iwae_loss(_as_params(tuple(leaves)), case.x, ratio, case.likelihood, mask)
    (grad,) = torch.autograd.grad(loss, leaves[:1])
    assert (grad[:, 2][~mask[2].expand(M, K, D)] == 0).all()
    assert grad[:, others].isfinite().all()
    x = case.x.clone()
    x[2, at] = NAN
    got = dvae_fast.log_weights(_as_params(case.params), x, ratio, case.likelihood, mask)
    assert got[:, 2].isnan().all()
    assert torch.equal(got[:, others], clean[:, others])


@pytest.mark.parametrize("name", ["bernoulli", "gaussian-D", "own-gamma"])
def test_second_derivatives_forward_mode_and_vmap(name: str) -> None:
    """Of a few dimensions, by finite differences."""
    case, mask, ratio = CASES[name], _mask()[:2, 63:], _ratio()
    small = tuple(p[:1, :2, :2, 63:] if p.dim() == 4 else _cut(p) for p in case.params)
    case = case._replace(params=small, x=case.x[:2, 63:])
    tensors = [p.clone().requires_grad_() for p in small]
    ratio = ratio[:1, :2, :2].clone().requires_grad_()

    def log_w(r: Tensor, *p: Tensor) -> Tensor:
        return dvae_fast.log_weights(_as_params(p), case.x, r, case.likelihood, mask)

    def loss(r: Tensor, *p: Tensor) -> Tensor:
        return dvae_fast.iwae_loss(_as_params(p), case.x, r, case.likelihood, mask)

    forward = not name.startswith("own")
    assert torch.autograd.gradcheck(log_w, (ratio, *tensors), check_forward_ad=forward)
    assert torch.autograd.gradcheck(loss, (ratio, *tensors))
    assert torch.autograd.gradgradcheck(loss, (ratio, *tensors), atol=1e-4)
    masks = torch.stack([mask, ~mask, torch.ones_like(mask)])

    def of_mask(some: Tensor) -> Tensor:
        return dvae_fast.log_weights(
            _as_params(small), case.x, ratio.detach(), case.likelihood, some
        )

    mapped = torch.vmap(of_mask)(masks)
    torch.testing.assert_close(mapped, torch.stack([of_mask(m) for m in masks]))


def _cut(p: Tensor) -> Tensor:
    return p[63:] if p.dim() == 1 else p


def test_gradient_in_x_is_zero_where_it_was_not_observed() -> None:
    case, mask, ratio = CASES["gaussian"], _mask(), _ratio()
    params, x = _spoilt(case, mask)
    x.requires_grad_()
    (got,) = torch.autograd.grad(dvae_fast.log_weights(params, x, ratio, "gaussian", mask).sum(), x)
    mean, scale = case.params
    derivative = ((mean - case.x.unsqueeze(-2)) / scale.square()).sum((0, 2))
    torch.testing.assert_close(got, torch.where(mask, derivative, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [k for k in KERNELS if len(CASES[k].params) < 3])
def test_layers(name: str, dtype: torch.dtype) -> None:
    """Against the reference in float64, and their gradients against the plain layer's."""
    case, mask = CASES[name], _mask(M)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    g = torch.Generator().manual_seed(3)
    positive = name in ("poisson", "counts", "counts-D")
    hidden, weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((M, B, K, H), (D, H), (D,))
    )
    if positive:
        hidden, weight, bias = hidden.abs(), weight.abs(), bias.abs() + 0.1
    scale = None
    if len(case.params) > 1:
        scale = case.params[1] if case.params[1].dim() < 2 else torch.tensor(0.7).double()
    x = torch.where(mask, case.x, NAN).to(sums)
    layer = [t.to(dtype) for t in (hidden, weight, bias)]
    ratio = _ratio().to(sums)
    leaves = [t.clone().requires_grad_() for t in layer]
    fused = functional.linear_log_weights(*leaves, x, ratio, case.likelihood, mask, scale=scale)
    exact = [t.double().requires_grad_() for t in layer]
    params = F.linear(*exact)
    given = params if scale is None else (params, scale)
    plain = dvae_fast.log_weights(given, x.double(), ratio.double(), case.likelihood, mask)
    wide = dtype in (torch.float32, torch.float64)
    tolerance = {"rtol": 1e-5 if wide else 0.02, "atol": 1e-4 if wide else 1.0}
    torch.testing.assert_close(fused.double(), plain, **tolerance)
    upstream = _ratio(17)
    got = torch.autograd.grad((fused * upstream.to(sums)).sum(), leaves)
    expected = torch.autograd.grad((plain * upstream).sum(), exact)
    for a, b in zip(got, expected, strict=True):
        error = (a.double() - b).abs().max()
        assert error <= (1e-5 if wide else 0.05) * b.abs().max()
    if wide:
        with torch.no_grad():
            whole = functional.mlp_log_weights(
                layer[0], [tuple(layer[1:])], x, ratio, case.likelihood, mask, scale=scale
            )
        torch.testing.assert_close(whole.double(), plain.detach(), **tolerance)


def test_more_unknown_dimensions_than_a_byte_counts() -> None:
    """In each of sixteen places side by side."""
    g = torch.Generator().manual_seed(6)
    d, known = 4800, [0, 4097, 4799]
    mean, x = torch.randn(2, K, d, generator=g), torch.randn(2, d, generator=g)
    mask = torch.zeros(2, d, dtype=torch.bool)
    mask[:, known] = True
    got = dvae_fast.log_weights((mean, torch.full((d,), 0.7)), x, torch.zeros(2, K), "gaussian",
                                mask=mask)  # fmt: skip
    plain = Normal(mean, 0.7).log_prob(x.unsqueeze(1))[..., known].sum(-1)
    torch.testing.assert_close(got, plain)


def test_layouts_and_no_examples() -> None:
    case, ratio, mask = CASES["bernoulli"], _ratio(), _mask(M)
    (logits,) = case.params
    expected = dvae_fast.log_weights(logits, case.x, ratio, mask=mask)
    strided = mask.repeat_interleave(2, -1)[..., ::2]
    assert not strided.is_contiguous()
    assert torch.equal(dvae_fast.log_weights(logits, case.x, ratio, mask=strided), expected)
    turned = mask.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(dvae_fast.log_weights(logits, case.x, ratio, mask=turned), expected)
    # A bool is true whatever byte says so.
    bytes_ = (mask.to(torch.uint8) * 7).view(torch.bool)
    assert torch.equal(dvae_fast.log_weights(logits, case.x, ratio, mask=bytes_), expected)
    none = dvae_fast.log_weights(logits[:, :0], case.x[:0], ratio[:, :0], mask=mask[:, :0])
    assert none.shape == (M, 0, K)
    loss = dvae_fast.iwae_loss(
        logits[:, :0].clone().requires_grad_(), case.x[:0], ratio[:, :0], mask=mask[0, :0]
    )
    assert loss.isnan()
    # One mask for both copies, and one each of x.
    once = dvae_fast.log_weights(logits, case.x.expand(M, B, D), ratio, mask=mask[0])
    assert torch.equal(once[0], expected[0])


@pytest.mark.parametrize("name", CASES)
def test_values_are_checked_where_they_were_observed(name: str) -> None:
    case, ratio, mask = CASES[name], _ratio(), _mask()
    params, x = _spoilt(case, mask)
    was = dvae_fast.set_validation(True)
    try:
        got = dvae_fast.log_weights(_as_params(params), x, ratio, case.likelihood, mask)
        torch.testing.assert_close(got, _expected(case, mask, ratio))
        if name.startswith("gaussian"):
            return  # whose support is all there is
        x[0, int(mask[0].nonzero()[-1])] = -1.0
        with pytest.raises(ValueError, match="x must"):
            dvae_fast.log_weights(_as_params(params), x, ratio, case.likelihood, mask)
    finally:
        dvae_fast.set_validation(was)


@pytest.mark.parametrize(
    "mask, error, words",
    [
        (torch.ones(B, D), TypeError, "mask must be bool, .* got torch.float32"),
        ("none", TypeError, "mask must be a tensor, got str"),
        (
            torch.ones(B, D - 1, dtype=torch.bool),
            ValueError,
            r"\(5, 67\).*\(2, 5, 3, 67\).*\(5, 66\)",
        ),
        (torch.ones(K, B, D, dtype=torch.bool), ValueError, r"got \(3, 5, 67\)"),
        (torch.ones(D, dtype=torch.bool), ValueError, r"got \(67,\)"),
    ],
)
def test_wrong_masks_are_refused(mask: Any, error: type[Exception], words: str) -> None:
    (logits,), x, ratio = CASES["bernoulli"].params, CASES["bernoulli"].x, _ratio()
    poisson = CASES["own-poisson"]
    weight = torch.zeros(D, D, dtype=torch.float64)
    for call in (
        lambda: dvae_fast.log_weights(logits, x, ratio, "bernoulli", mask),
        lambda: dvae_fast.iwae_loss(logits, x, ratio, "bernoulli", mask),
        lambda: dvae_fast.log_weights(poisson.params, poisson.x, ratio, poisson.likelihood, mask),
    ):
        with pytest.raises(error, match=words):
            call()
    with pytest.raises(error, match="mask must"):
        functional.linear_log_weights(logits, weight, None, x, ratio, "bernoulli", mask)
    with pytest.raises(error, match="mask must"):
        functional.mlp_log_weights(logits, [(weight, None)], x, ratio, "bernoulli", mask)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_loss_that_overwrites_its_params(overwrite: bool) -> None:
    """Compacted and spread in the memory of the decoder's output itself."""
    case, ratio, mask = CASES["gaussian-D"], _ratio(), _mask()
    mean, scale = (p.clone().requires_grad_() for p in case.params)
    spoilt, x = _spoilt(case, mask)
    leaf = spoilt[0].clone().requires_grad_()
    loss = dvae_fast.iwae_loss(
        (leaf * 1, scale), x, ratio, "gaussian", mask, overwrite_params=overwrite
    )
    got = torch.autograd.grad(loss, (leaf, scale))
    plain = _expected(case._replace(params=(mean, scale)), mask, ratio)
    expected = torch.autograd.grad(
        -(torch.logsumexp(plain, -1) - math.log(K)).mean(), (mean, scale)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled() -> None:
    case, ratio, mask = CASES["gaussian-D"], _ratio(), _mask()

    def loss(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        return dvae_fast.iwae_loss((mean, scale), case.x, ratio, "gaussian", mask)

    leaves = [p.clone().requires_grad_() for p in case.params]
    expected = loss(*leaves, mask)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = compiled(*leaves, mask)
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_reference_takes_the_mask_on_other_devices() -> None:
    """Where there are no kernels of it; "meta" has no values, yet shapes."""
    case, ratio, mask = CASES["bernoulli"], _ratio(), _mask()
    args = (case.params[0].flatten(0, 1), None, case.x, ratio.flatten(0, 1), "bernoulli", mask)
    expected = reference.masked_log_weights(*args)
    torch.testing.assert_close(torch.ops.dvae_fast.masked_log_weights(*args), expected)
    meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
    assert torch.ops.dvae_fast.masked_log_weights(*meta).shape == expected.shape


@torch.no_grad()
def test_layers_whose_first_bias_is_of_each_example() -> None:
    case, ratio, mask = CASES["bernoulli"], _ratio(), _mask(M)
    g = torch.Generator().manual_seed(3)
    z, first, shift, last = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((M, B, K, 2), (H, 2), (B, H), (D, H))
    )
    layers = [(first, shift), (last, None)]
    got = functional.mlp_log_weights(z, layers, case.x, ratio, "bernoulli", mask, activation="tanh")
    logits = F.linear(torch.tanh(F.linear(z, first) + shift.unsqueeze(-2)), last)
    torch.testing.assert_close(got, _expected(case._replace(params=(logits,)), mask, ratio))
