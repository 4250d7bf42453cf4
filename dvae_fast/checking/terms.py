"""How large an error may be: the sum of the absolute terms that a result is made of.

The functions take float64 arguments and return that sum, output by output. Where a term is itself
a computed sum (a log-weight inside an exponential, a logit made by a matrix product), its own
terms are carried through to first order: that is the error no rounding of the operands could
avoid.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast import reference
from dvae_fast.checking.likelihoods import LIKELIHOODS
from dvae_fast.checking.operands import LOW_PRECISION
from dvae_fast.corruptions import AdditiveGaussian
from dvae_fast.noise import STREAM_CORRUPTION, STREAM_LATENT, uniform_bits

if TYPE_CHECKING:
    from collections.abc import Callable


def _radius(stream: Tensor, example: Tensor, sample: Tensor, size: int, seed: Tensor) -> Tensor:
    """Box–Muller's radius: a normal is radius · cos θ, and is as exact as its radius is."""
    bits = uniform_bits(stream, example, sample, 64 * -(-size // 64), seed)
    words = bits.unflatten(-1, (-1, 2, 2, 16))[..., :1, :]  # (block, pair, first of two, lane)
    radius = torch.sqrt(-2 * torch.log((words.double() + 0.5) * 2.0**-32))
    return radius.expand(*words.shape[:-2], 2, 16).flatten(-4)[..., :size]


def _latent_radius(
    copies: int, b: int, k: int, size: int, seed: Tensor, first_example: int, first_sample: int
) -> Tensor:
    copy = torch.arange(copies, device=seed.device).view(-1, 1, 1) * 256
    example = torch.arange(b, device=seed.device).view(1, -1, 1) + first_example
    sample = torch.arange(k, device=seed.device) + first_sample
    index = torch.broadcast_tensors(copy + STREAM_LATENT, example, sample)
    return _radius(index[0], index[1], index[2], size, seed)


def _corruption_radius(
    copies: int, b: int, size: int, seed: Tensor, first_example: int, first_copy: int
) -> Tensor:
    copy = torch.arange(copies, device=seed.device).view(-1, 1) + first_copy
    example = torch.arange(b, device=seed.device) + first_example
    stream = torch.full_like(example, STREAM_CORRUPTION)
    index = torch.broadcast_tensors(stream, example, copy)
    return _radius(index[0], index[1], index[2], size, seed)


def _terms_corrupt(
    x: Tensor,
    kind: str,
    rate: Tensor,
    salt: Tensor | None,
    seed: Tensor,
    copies: int,
    first_example: int,
    first_copy: int,
) -> tuple[Tensor, ...]:
    if kind != AdditiveGaussian.kind:
        return ((1 + x.abs()).expand(copies, *x.shape),)
    b, size = x.shape
    radius = _corruption_radius(copies, b, size, seed, first_example, first_copy)
    return (x.abs() + rate.reshape(-1) * radius,)


def _terms_corrupt_backward(grad: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return (grad.abs().sum(0),)


def _terms_corrupt_backward_std(
    grad: Tensor, std: Tensor, seed: Tensor, first_example: int, first_copy: int
) -> tuple[Tensor, ...]:
    copies, b, size = grad.shape
    radius = _corruption_radius(copies, b, size, seed, first_example, first_copy)
    total = (grad.abs() * radius).sum((0, 1))
    return ((total.sum() if std.numel() == 1 else total).reshape(std.shape),)


def _latent_terms(
    mean: Tensor, log_var: Tensor, k: int, seed: Tensor, first_example: int, first_sample: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of ε, of σ ε and of z = mean + σ ε, (M, B, K, Z) each."""
    copies, b, size = mean.shape
    radius = _latent_radius(copies, b, k, size, seed, first_example, first_sample)
    scaled = torch.exp(0.5 * log_var).unsqueeze(2) * radius
    return radius, scaled, mean.abs().unsqueeze(2) + scaled


def _terms_sample_latent(mean: Tensor, log_var: Tensor, *index: Any) -> tuple[Tensor, ...]:
    noise, _, z = _latent_terms(mean, log_var, *index)
    return z, 0.5 * (noise.square() + z.square() + log_var.abs().unsqueeze(2)).sum(-1)


def _terms_sample_latent_backward(
    grad_z: Tensor | None, grad_log_ratio: Tensor | None, mean: Tensor, log_var: Tensor, *index: Any
) -> tuple[Tensor, ...]:
    _, scaled, z = _latent_terms(mean, log_var, *index)
    delta = torch.zeros_like(z) if grad_z is None else grad_z.abs()
    g = delta.new_zeros(()) if grad_log_ratio is None else grad_log_ratio.abs().unsqueeze(-1)
    delta = delta + g * z
    return delta.sum(2), 0.5 * (delta * scaled + g).sum(2)


def _terms_latent_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    m, v = mean.unsqueeze(1), log_var.unsqueeze(1)
    return (0.5 * ((z - m).square() * torch.exp(-v) + z.square() + v.abs()).sum(-1),)


def _terms_latent_log_ratio_backward(
    grad: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> tuple[Tensor, ...]:
    g, m = grad.abs().unsqueeze(-1), mean.unsqueeze(1)
    diff = (z - m).abs()
    u = diff * torch.exp(-log_var).unsqueeze(1)
    return g * (u + z.abs()), (g * u).sum(1), 0.5 * (g * (1 + u * diff)).sum(1)


def _terms_mean_exp(log_w: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Of log (1/K Σ w) and of the normalised weights, where log w was made of `terms`."""
    weights = torch.softmax(log_w, -1)
    mean_terms = (weights * terms).sum(-1, keepdim=True)
    exponent = (log_w - log_w.amax(-1, keepdim=True)).abs()
    bound = mean_terms.squeeze(-1) + _terms_logmeanexp(log_w)[0]
    return bound, weights * (1 + exponent + terms + mean_terms)


def _terms_mixture_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    pairs = list(zip(mean, log_var, strict=True))
    minus = torch.stack([-reference.latent_log_ratio(z, m, v) for m, v in pairs], -1)
    terms = torch.stack([_terms_latent_log_ratio(z, m, v)[0] for m, v in pairs], -1)
    return _terms_mean_exp(minus, terms)


def _terms_mixture_log_ratio_backward(
    grad: Tensor, weights: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> tuple[Tensor, ...]:
    each = [
        _terms_latent_log_ratio_backward(grad * w, z, m, v)
        for m, v, w in zip(mean, log_var, weights.unbind(-1), strict=True)
    ]
    d_z, d_mean, d_log_var = (torch.stack(terms) for terms in zip(*each, strict=True))
    return d_z.sum(0), d_mean, d_log_var


class _Density(NamedTuple):
    """Terms, (N, K, D) each, of log p, of its derivatives; and the sizes of the derivative in the
    params, of its own derivative (curvature), and of that in the scale (cross)."""

    value: Tensor
    d_params: Tensor
    d_scale: Tensor
    slope: Tensor
    curvature: Tensor
    cross: Tensor


@torch.enable_grad()
def _density(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
    order: int = 0,
) -> _Density:
    """Up to the slope with `order` 1, and all with 2; what was not asked for is NaN. What a mask
    leaves out is 0."""
    n, b = params.shape[0], x.shape[0]
    rows = x.repeat(n // b if b else 1, 1).unsqueeze(1)
    if mask is not None:
        seen = mask.repeat(n // b if b else 1, 1).unsqueeze(1)
        params, rows = torch.where(seen, params, 0.5), torch.where(seen, rows, 1.0)
        whole = _density(params.detach(), scale, rows.flatten(0, 1), likelihood, order=order)
        return _Density(*(torch.where(seen, t, 0.0) for t in whole))
    p, s = params.detach().requires_grad_(order > 0), None
    if scale is not None:
        s = scale.detach() if scale.dim() == 3 else scale.detach().reshape(1, 1, -1)
        s = s.expand(params.shape).clone().requires_grad_(order > 1)
    with torch.no_grad():
        terms = LIKELIHOODS[likelihood].terms(p, s, rows)
    missing = params.new_full((), math.nan)
    if order == 0:
        return _Density(*terms, missing, missing, missing)
    value = reference.log_density(p, s, x, likelihood)
    (slope,) = torch.autograd.grad(value.sum(), p, create_graph=order > 1)
    if order == 1:
        return _Density(*terms, slope.abs(), missing, missing)
    second = torch.autograd.grad(slope.sum(), (p,) if s is None else (p, s))
    return _Density(*terms, *(t.detach().abs() for t in (slope, second[0], second[-1])))


def _sum_like_scale(terms: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return terms.new_empty(0)
    if scale.dim() == 3:
        return terms
    return (terms.sum() if scale.numel() == 1 else terms.sum((0, 1))).reshape(scale.shape)


def _terms_log_weights(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return (_density(params, scale, x, likelihood, mask).value.sum(-1) + log_ratio.abs(),)


def _terms_log_weights_backward(
    grad: Tensor,
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    g, density = grad.abs().unsqueeze(-1), _density(params, scale, x, likelihood, mask)
    return g * density.d_params, _sum_like_scale(g * density.d_scale, scale)


def _terms_softplus(x: Tensor) -> tuple[Tensor, ...]:
    """Both terms, max(x, 0) and log1p(e^−|x|), are positive."""
    return (reference.softplus(x),)


def _terms_softplus_backward(grad: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    return (grad.abs() * -torch.expm1(-out),)


def _terms_logmeanexp(log_w: Tensor) -> tuple[Tensor, ...]:
    """bound = max + log Σ e^(w − max) − log K."""
    top = log_w.amax(-1)
    total = torch.exp(log_w - top.unsqueeze(-1)).sum(-1)
    return (top.abs() + total.log().abs() + math.log(log_w.shape[-1]),)


def _terms_logmeanexp_backward(grad: Tensor, log_w: Tensor) -> tuple[Tensor, ...]:
    exponent = log_w - log_w.amax(-1, keepdim=True)
    return (grad.abs().unsqueeze(-1) * torch.softmax(log_w, -1) * (1 + exponent.abs()),)


def _terms_iwae(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    multiplier: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    log_w = reference.log_weights(params, scale, x, log_ratio, likelihood, mask)
    density = _density(params, scale, x, likelihood, mask)
    terms = density.value.sum(-1) + log_ratio.abs()
    bound, weight_terms = _terms_mean_exp(log_w, terms)
    g = abs(multiplier) * weight_terms.unsqueeze(-1)
    return (
        bound,
        weight_terms,
        g * density.d_params,
        _sum_like_scale(g * density.d_scale, scale),
    )


def _terms_iwae_(*args: Any) -> tuple[Tensor, ...]:
    bound, weights, grad, grad_scale = _terms_iwae(*args)
    return bound, weights, grad_scale, grad


def _terms_rescale(grad: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
    shape = () if factor.numel() == 1 else (-1, *[1] * (grad.dim() - 1))
    return ((grad * factor.reshape(shape)).abs(),)


def _terms_state(*states: Tensor) -> Tensor:
    """max is exact, the two sums have positive terms, the last is Σ log w, then a count."""
    a, b = states[0].abs(), states[1].abs()
    return torch.where(torch.isfinite(a), a, 0.0) + torch.where(torch.isfinite(b), b, 0.0)


def _terms_lse_update(state: Tensor, log_w: Tensor) -> tuple[Tensor, ...]:
    chunk = reference.lse_update(reference.lse_init(state.shape[0], state.device), log_w)
    chunk[:, 3] = log_w.abs().sum(1)
    return (_terms_state(state, chunk),)


def _linear_terms(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    terms = hidden.abs() @ weight.abs().transpose(0, 1)
    return terms if bias is None else terms + bias.abs()


def _terms_linear_log_weights(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    params = torch.nn.functional.linear(hidden, weight, bias)
    density = _density(params, scale, x, likelihood, mask, order=1)
    terms = density.value + density.slope * _linear_terms(hidden, weight, bias)
    return (terms.sum(-1) + log_ratio.abs(),)


def _terms_linear_log_weights_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    x: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    params = torch.nn.functional.linear(hidden, weight, bias)
    density = _density(params, scale, x, likelihood, mask, order=2)
    carried = _linear_terms(hidden, weight, bias)
    g = grad.abs().unsqueeze(-1)
    d_params = g * (density.d_params + density.curvature * carried)
    d_scale = g * (density.d_scale + density.cross * carried)
    return (
        d_params @ weight.abs(),
        torch.einsum("nkd,nkh->dh", d_params, hidden.abs()),
        d_params.sum((0, 1)),
        _sum_like_scale(d_scale, scale),
    )


#: derivative of the activations of `mlp_log_weights`
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": torch.sigmoid,
    "relu": lambda x: (x > 0).to(x.dtype),
    "tanh": lambda x: 1 - torch.tanh(x).square(),
}


def _terms_mlp_log_weights(
    z: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    terms = z.abs()
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        given = bias if bias.numel() else None
        if i:  # the activation of the layer before
            terms = _SLOPES[activation](z) * terms
            z = reference.DENSE_ACTIVATIONS[activation](z)
            terms = terms + z.abs()
        # An input's own terms bound its error; the products are rounded as _linear_terms has it.
        terms = terms @ weight.abs().transpose(0, 1)
        terms = terms if given is None else terms + given.abs()
        z = torch.nn.functional.linear(z, weight, given)
    density = _density(z, scale, x, likelihood, mask, order=1)
    return ((density.value + density.slope * terms).sum(-1) + log_ratio.abs(),)


_TERMS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "corrupt": _terms_corrupt,
    "corrupt_backward": _terms_corrupt_backward,
    "corrupt_backward_std": _terms_corrupt_backward_std,
    "sample_latent": _terms_sample_latent,
    "sample_latent_backward": _terms_sample_latent_backward,
    "latent_log_ratio": _terms_latent_log_ratio,
    "latent_log_ratio_backward": _terms_latent_log_ratio_backward,
    "mixture_log_ratio": _terms_mixture_log_ratio,
    "mixture_log_ratio_backward": _terms_mixture_log_ratio_backward,
    "log_weights": _terms_log_weights,
    "log_weights_backward": _terms_log_weights_backward,
    "softplus": _terms_softplus,
    "softplus_backward": _terms_softplus_backward,
    "logmeanexp": _terms_logmeanexp,
    "logmeanexp_backward": _terms_logmeanexp_backward,
    "iwae": _terms_iwae,
    "iwae_": _terms_iwae_,
    "rescale_": _terms_rescale,
    "lse_update": _terms_lse_update,
    "linear_log_weights": _terms_linear_log_weights,
    "linear_log_weights_backward": _terms_linear_log_weights_backward,
    "mlp_log_weights": _terms_mlp_log_weights,
}


def absolute_terms(op: str, args64: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """For every result of `op`, the sum of the absolute terms it is made of."""
    return _TERMS[op.removeprefix("masked_")](*args64)


def _layers_moved(
    z: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str, unit: float
) -> tuple[Tensor, Tensor]:
    """The last layer's output, and how far rounding what lies between moves it."""
    moved = torch.zeros_like(z)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if i:  # no activation is steeper than 1
            z = reference.DENSE_ACTIVATIONS[activation](z)
            moved = moved + unit * z.abs()
        # A kernel adds the bias to a product that has been rounded: the two may cancel.
        product = torch.nn.functional.linear(z, weight)
        z = product + bias if bias.numel() else product
        moved = moved @ weight.abs().transpose(0, 1) + unit * torch.maximum(product.abs(), z.abs())
    return z, moved


def rounded_intermediates(
    op: str, args64: tuple[Any, ...], dtype: torch.dtype
) -> tuple[Tensor | float, ...]:
    """Error from values that low precision keeps between the input and the sum.

    Only linear layers have them: their outputs, and the gradients of these, are in the dtype of
    their operands as torch.nn.Linear's are, and a matrix product leaves them rounded.
    """
    plain = op.removeprefix("masked_")
    if dtype not in LOW_PRECISION or not plain.startswith(("linear", "mlp")):
        return (0.0,) * 4
    args64, mask = (args64, None) if plain == op else (args64[:-1], args64[-1])
    unit = torch.finfo(dtype).eps
    if plain.startswith("mlp"):
        z, weights, biases, activation, scale, x = args64[:6]
        params, moved = _layers_moved(z, weights, biases, activation, unit)
        density = _density(params, scale, x, args64[-1], mask, order=2)
        return (((density.slope + density.curvature * moved) * moved).sum(-1),)
    backward = op.endswith("backward")
    hidden, weight, bias, scale, x = args64[1:6] if backward else args64[:5]
    given = weight.new_empty(0) if bias is None else bias
    params, moved = _layers_moved(hidden, [weight], [given], "none", unit)
    density = _density(params, scale, x, args64[-1], mask, order=2)
    if not backward:
        return (((density.slope + density.curvature * moved) * moved).sum(-1),)
    g = args64[0].abs().unsqueeze(-1)
    d_params = g * (density.curvature * moved + unit * density.slope)
    # The products of a row with its weights are rounded once more before they are summed.
    slope = g * density.slope
    d_scale = g * (density.cross * moved + unit * density.d_scale)
    return (
        d_params @ weight.abs(),
        torch.einsum("nkd,nkh->dh", d_params + unit * slope, hidden.abs()),
        d_params.sum((0, 1)),
        _sum_like_scale(d_scale, scale),
    )
