"""Every operator in plain PyTorch: the oracle for tests, and the fallback on any device.

Written for clarity: each function is the formula. Low-precision inputs are accumulated in
float32, float64 stays float64. Shapes use B examples, M corruptions, K samples, Z latent and D
data dimensions; N = M·B rows, of which row n belongs to example n % B.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.likelihoods import Categorical, get_likelihood
from dvae_fast.likelihoods.base import weighted
from dvae_fast.noise import corruption_index, latent_noise, standard_normal, threshold, uniform_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# --- corruption -------------------------------------------------------------------------------


def _hits(
    kind: str,
    rate: Tensor,
    salt: Tensor | None,
    shape: torch.Size,
    seed: Tensor,
    first_example: int,
    first_copy: int,
) -> tuple[Tensor, Tensor]:
    """(hit, becomes one) per element, (M, B, D) each."""
    copies, examples, size = shape
    index = corruption_index(copies, examples, seed, first_example, first_copy)
    bits = uniform_bits(*index, size, seed) >> 8
    hit = bits < threshold(rate)
    if salt is None:
        return hit, torch.zeros_like(hit)
    # One uniform decides both: [0, rate·salt) is salt, [rate·salt, rate) is pepper.
    return hit, bits < threshold(rate * salt)


class _Hit(NamedTuple):
    """What a hit makes of x, given where it becomes one, and of a gradient on its way back."""

    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]


_HITS = {
    "masking": _Hit(lambda x, one: torch.zeros_like(x), torch.zeros_like),
    "bit_flip": _Hit(lambda x, one: 1 - x, torch.neg),
    "salt_and_pepper": _Hit(lambda x, one: one.to(x.dtype), torch.zeros_like),
}
#: the others: how often the parameter times a normal number is added
_ADDED = {"identity": 0, "gaussian": 1}


def corrupt(
    x: Tensor,
    kind: str,
    rate: Tensor,
    salt: Tensor | None,
    seed: Tensor,
    copies: int,
    first_example: int,
    first_copy: int,
) -> Tensor:
    """x (B, D) → x̃ (M, B, D); `rate` (the standard deviation, if Gaussian) has 1 or D elements."""
    shape = torch.Size((copies, *x.shape))
    if kind in _ADDED:
        if not _ADDED[kind]:
            return x.expand(shape).clone(memory_format=torch.contiguous_format)
        dtype = accumulation_dtype(x.dtype)
        index = corruption_index(copies, x.shape[0], seed, first_example, first_copy)
        noise = standard_normal(*index, x.shape[1], seed, dtype)
        return (x.to(dtype) + rate.reshape(-1).to(dtype) * noise).to(x.dtype)
    hit, one = _hits(kind, rate.reshape(-1), _flat(salt), shape, seed, first_example, first_copy)
    return torch.where(hit, _HITS[kind].value(x, one), x)


def corrupt_backward(
    grad: Tensor,
    kind: str,
    rate: Tensor,
    salt: Tensor | None,
    seed: Tensor,
    first_example: int,
    first_copy: int,
) -> Tensor:
    """∂/∂x: (M, B, D) → (B, D); a hit element passes nothing (bit flip: −1)."""
    if kind in _ADDED:
        return _sum_copies(grad)
    hit, _ = _hits(kind, rate.reshape(-1), _flat(salt), grad.shape, seed, first_example, first_copy)
    return _sum_copies(torch.where(hit, _HITS[kind].gradient(grad), grad))


def corrupt_backward_std(
    grad: Tensor, std: Tensor, seed: Tensor, first_example: int, first_copy: int
) -> Tensor:
    """∂/∂std = Σ grad · n, in the shape of `std`."""
    dtype = accumulation_dtype(grad.dtype)
    copies, examples, size = grad.shape
    index = corruption_index(copies, examples, seed, first_example, first_copy)
    noise = standard_normal(*index, size, seed, dtype)
    per_element = (grad.to(dtype) * noise).sum((0, 1))
    total = per_element.sum() if std.numel() == 1 else per_element
    return total.reshape(std.shape).to(std.dtype)


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.reshape(-1)


def _sum_copies(grad: Tensor) -> Tensor:
    return grad.to(accumulation_dtype(grad.dtype)).sum(0).to(grad.dtype)


# --- latent samples ---------------------------------------------------------------------------


def sample_latent(
    mean: Tensor, log_var: Tensor, k: int, seed: Tensor, first_example: int, first_sample: int
) -> tuple[Tensor, Tensor]:
    """mean, log_var (M, B, Z) → z (M, B, K, Z) and log p(z) − log q(z) = ½ Σ (ε² − z² + log_var).

    The constants ½ log 2π of the two normals cancel.
    """
    dtype = accumulation_dtype(mean.dtype)
    copies, examples, size = mean.shape
    noise = latent_noise(copies, examples, k, size, seed, first_example, first_sample, dtype)
    m, v = mean.to(dtype).unsqueeze(2), log_var.to(dtype).unsqueeze(2)
    z = m + torch.exp(0.5 * v) * noise
    return z.to(mean.dtype), 0.5 * (noise.square() - z.square() + v).sum(-1)


def sample_latent_backward(
    grad_z: Tensor | None,
    grad_log_ratio: Tensor | None,
    mean: Tensor,
    log_var: Tensor,
    k: int,
    seed: Tensor,
    first_example: int,
    first_sample: int,
) -> tuple[Tensor, Tensor]:
    """With δ = grad_z − grad_r z: ∂/∂mean = Σ_k δ; ∂/∂log_var = ½ Σ_k (δ (z − mean) + grad_r)."""
    dtype = accumulation_dtype(mean.dtype)
    copies, examples, size = mean.shape
    noise = latent_noise(copies, examples, k, size, seed, first_example, first_sample, dtype)
    scaled = torch.exp(0.5 * log_var.to(dtype)).unsqueeze(2) * noise
    z = mean.to(dtype).unsqueeze(2) + scaled
    delta = torch.zeros_like(z) if grad_z is None else grad_z.to(dtype)
    grad_mean = delta
    half = 0.5 * delta * scaled
    if grad_log_ratio is not None:
        g = grad_log_ratio.to(dtype).unsqueeze(-1)
        delta = delta - g * z
        grad_mean = delta
        half = 0.5 * (delta * scaled + g)
    return grad_mean.sum(2).to(mean.dtype), half.sum(2).to(log_var.dtype)


def latent_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """z (N, K, Z), mean and log_var (N, Z) → ½ Σ ((z − mean)²/var − z² + log_var), (N, K)."""
    dtype = accumulation_dtype(z.dtype)
    zz, m, v = z.to(dtype), mean.to(dtype).unsqueeze(1), log_var.to(dtype).unsqueeze(1)
    return 0.5 * ((zz - m).square() * torch.exp(-v) - zz.square() + v).sum(-1)


def _log_ratio_slopes(
    z: Tensor, mean: Tensor, log_var: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in z, mean and log_var, (N, K, Z) each: u − z, −u, ½ (1 − u²var) with
    u = (z − mean)/var.
    """
    zz, m, v = z.to(dtype), mean.to(dtype).unsqueeze(1), log_var.to(dtype).unsqueeze(1)
    diff = zz - m
    u = diff * torch.exp(-v)
    return u - zz, -u, 0.5 * (1.0 - u * diff)


def latent_log_ratio_backward(
    grad: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """∂z = g (u − z), ∂mean = −Σ_k g u, ∂log_var = ½ Σ_k g (1 − u²var)."""
    dtype = accumulation_dtype(z.dtype)
    g = grad.to(dtype).unsqueeze(-1)
    d_z, d_mean, d_log_var = _log_ratio_slopes(z, mean, log_var, dtype)
    return (
        (g * d_z).to(z.dtype),
        (g * d_mean).sum(1).to(mean.dtype),
        (g * d_log_var).sum(1).to(log_var.dtype),
    )


def mixture_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """z (B, K, Z), mean and log_var (M, B, Z) → −logmeanexp_m (−r_m), (B, K), of the components'
    log-ratios r, and each component's share of the mixture's density at z, (B, K, M).
    """
    minus = torch.stack(
        [-latent_log_ratio(z, m, v) for m, v in zip(mean, log_var, strict=True)], -1
    )
    return -logmeanexp(minus), normalised_weights(minus)


def mixture_log_ratio_backward(
    grad: Tensor, weights: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `latent_log_ratio_backward` for each component, with g w_m for g; ∂z is the sum."""
    dtype = accumulation_dtype(z.dtype)
    grad_z = torch.zeros_like(z, dtype=dtype)
    grad_mean, grad_log_var = [], []
    for m, v, w in zip(mean, log_var, weights.to(dtype).unbind(-1), strict=True):
        g = (grad.to(dtype) * w).unsqueeze(-1)
        d_z, d_mean, d_log_var = _log_ratio_slopes(z, m, v, dtype)
        # A weight of zero stops a non-finite derivative: 0 · inf would be NaN.
        grad_z = grad_z + weighted(g, d_z)
        grad_mean.append(weighted(g, d_mean).sum(1))
        grad_log_var.append(weighted(g, d_log_var).sum(1))
    return (
        grad_z.to(z.dtype),
        torch.stack(grad_mean).to(mean.dtype),
        torch.stack(grad_log_var).to(log_var.dtype),
    )


# --- likelihoods ------------------------------------------------------------------------------


def log_density(
    params: Tensor, scale: Tensor | None, x: Tensor, likelihood: str, mask: Tensor | None = None
) -> Tensor:
    """log p(x|z) of each element: params (N, K, D), x (B, D) → (N, K, D).

    A mask (B, D) is True where x was observed; elsewhere it is 0.
    """
    *parameters, data = _operands(params, scale, x, mask)
    density = get_likelihood(likelihood).log_prob(tuple(parameters), data)
    return _observed(density, params, mask, 0.0)


def _operands(
    params: Tensor, scale: Tensor | None, x: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Parameters and x in the dtype of sums, so that they broadcast over (N, K, D).

    What a mask leaves out is ½, of which every derivative is finite: 0 · NaN would be NaN.
    """
    dtype = accumulation_dtype(params.dtype)
    scales = () if scale is None else (_scale(scale, params, dtype),)
    operands = (params.to(dtype), *scales, _rows(x.to(dtype), params))
    return tuple(_observed(t, params, mask, 0.5) for t in operands)


def _observed(t: Tensor, params: Tensor, mask: Tensor | None, other: float) -> Tensor:
    """t, which broadcasts over (N, K, D), with `other` where the mask leaves out."""
    return t if mask is None else torch.where(_rows(mask, params), t, other)


def _rows(x: Tensor, params: Tensor) -> Tensor:
    """x (B, D) for each of N rows, (N, 1, D): row n belongs to example n % B."""
    n, b = params.shape[0], x.shape[0]
    return x.repeat(n // b if b else 1, 1).unsqueeze(1)


def _scale(scale: Tensor, params: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale of 1, D or N·K·D elements, shaped to broadcast over (N, K, D)."""
    scale = scale.to(dtype)
    if scale.numel() == 1:
        return scale.reshape(1, 1, 1)
    return scale.reshape(params.shape) if scale.dim() == 3 else scale.reshape(1, 1, -1)


def log_weights(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> Tensor:
    """params (N, K, D), x (B, D), log_ratio (N, K) → log p(x|z) + log_ratio, (N, K).

    With a mask (B, D), p of what was observed (Mattei, Frellsen, arXiv 1812.02633).
    """
    density = log_density(params, scale, x, likelihood, mask)
    return density.sum(-1) + log_ratio.to(density.dtype)


def log_weights_backward(
    grad: Tensor,
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """grad times the derivatives: (∂params, ∂scale), of no element if there is no scale.

    A scale that elements share gets the sum over them.
    """
    *parameters, data = _operands(params, scale, x, mask)
    g = grad.to(data.dtype).unsqueeze(-1)
    # A weight of zero stops a non-finite derivative: 0 · inf would be NaN.
    derivatives = get_likelihood(likelihood).derivatives(tuple(parameters), data)
    grads = [_observed(weighted(g, d), params, mask, 0.0) for d in derivatives]
    grad_params = grads[0].to(params.dtype)
    if scale is None:
        return grad_params, params.new_empty(0)
    return grad_params, _summed(grads[1], scale)


def _summed(grad: Tensor, scale: Tensor) -> Tensor:
    """A scale's gradient from that of each element."""
    if scale.numel() == 1:
        grad = grad.sum()
    elif scale.dim() != 3:
        grad = grad.sum((0, 1))
    return grad.reshape(scale.shape).to(scale.dtype)


def zero_inflated(
    mean: Tensor,
    scale: Tensor,
    zero_logits: Tensor,
    x: Tensor,
    log_ratio: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """`log_weights` of a zero-inflated negative binomial, (N, K): mean and zero_logits (N, K, D), a
    scale of 1, D or N·K·D elements, x and mask (B, D), log_ratio (N, K)."""
    operands = _inflated(mean, scale, zero_logits, x, mask)
    density = get_likelihood(_ZERO_INFLATED).log_prob(operands[:3], operands[3])
    return _observed(density, mean, mask, 0.0).sum(-1) + log_ratio


def zero_inflated_backward(
    grad: Tensor,
    mean: Tensor,
    scale: Tensor,
    zero_logits: Tensor,
    x: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad (N, K) times the derivatives in mean, scale and zero_logits, each of its shape."""
    operands = _inflated(mean, scale, zero_logits, x, mask)
    derivatives = get_likelihood(_ZERO_INFLATED).derivatives(operands[:3], operands[3])
    of_mean, of_scale, of_logits = (
        _observed(weighted(grad.unsqueeze(-1), d), mean, mask, 0.0) for d in derivatives
    )
    return of_mean, _summed(of_scale, scale), of_logits


_ZERO_INFLATED = "zero_inflated_negative_binomial"


def _inflated(
    mean: Tensor, scale: Tensor, zero_logits: Tensor, x: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    mean, scale, data = _operands(mean, scale, x, mask)
    return mean, scale, _observed(zero_logits, mean, mask, 0.5), data


def categorical(
    logits: Tensor, x: Tensor, log_ratio: Tensor, classes: int, mask: Tensor | None = None
) -> Tensor:
    """`log_weights` of one-hot variables of so many classes, (N, K): logits (N, K, D), x and mask
    (B, D), log_ratio (N, K)."""
    wide, data = _operands(logits, None, x, mask)
    density = Categorical(classes).log_prob((wide,), data)
    return _observed(density, logits, mask, 0.0).sum(-1) + log_ratio


def categorical_backward(
    grad: Tensor, logits: Tensor, x: Tensor, classes: int, mask: Tensor | None = None
) -> Tensor:
    """grad (N, K) times the derivatives in the logits, (N, K, D)."""
    wide, data = _operands(logits, None, x, mask)
    (derivative,) = Categorical(classes).derivatives((wide,), data)
    return _observed(weighted(grad.unsqueeze(-1), derivative), logits, mask, 0.0)


# --- activation -------------------------------------------------------------------------------


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) = max(x, 0) + log1p(e^−|x|), in any shape."""
    v = x.to(accumulation_dtype(x.dtype))
    # Not abs and clamp, whose derivatives at 0 are neither side's.
    above = torch.where(v > 0, v, 0.0)
    out = above + torch.log1p(torch.exp(torch.where(v > 0, -v, v)))
    return out.to(x.dtype, memory_format=torch.contiguous_format)


def softplus_backward(grad: Tensor, out: Tensor) -> Tensor:
    """grad · σ(x) from out = log(1 + e^x): σ(x) = 1 − e^−out."""
    dtype = accumulation_dtype(out.dtype)
    result = grad.to(dtype) * -torch.expm1(-out.to(dtype))
    return result.to(out.dtype, memory_format=torch.contiguous_format)


# --- logsumexp over samples -------------------------------------------------------------------


def logmeanexp(log_w: Tensor) -> Tensor:
    """(N, K) → log (1/K Σ_k exp log_w), (N,). K = 0 has no mean: refused by the caller."""
    # Not torch's logsumexp, whose forward mode cannot be gone back through.
    top = log_w.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    total = torch.exp(log_w - top).sum(-1)
    return torch.log(total) + (top.squeeze(-1) - math.log(log_w.shape[-1]))


def normalised_weights(log_w: Tensor) -> Tensor:
    """w̃ = w / Σ w = e^(log w − max) / Σ e^(log w − max); all 0 where every log-weight is −inf.

    Not e^(log w − bound) / K: the bound is rounded to its own size, at −3000 nats 1e-4 of a weight.
    """
    top = log_w.detach().amax(-1, keepdim=True)
    weights = torch.exp(log_w - torch.where(top == -math.inf, 0.0, top))
    # A weight of inf leaves its own w̃ undefined and takes all from the others.
    total = torch.where(top == math.inf, top, weights.sum(-1, keepdim=True))
    return weights / torch.where(total == 0, 1.0, total)


def logmeanexp_backward(grad: Tensor, log_w: Tensor) -> Tensor:
    """g w̃, (N, K)."""
    return weighted(grad.unsqueeze(-1), normalised_weights(log_w))


def iwae(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    multiplier: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(bound (N,), w̃ (N, K), multiplier · ∂bound/∂params, multiplier · ∂bound/∂scale)."""
    log_w = log_weights(params, scale, x, log_ratio, likelihood, mask)
    bound = logmeanexp(log_w)
    weights = normalised_weights(log_w)
    grads = log_weights_backward(weights * multiplier, params, scale, x, likelihood, mask)
    return bound, weights, *grads


def iwae_(params: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`iwae` that leaves the gradient in `params`: (bound, w̃, ∂scale)."""
    bound, weights, grad, grad_scale = iwae(params, *others)
    params.copy_(grad)
    return bound, weights, grad_scale


def rescale_(grad: Tensor, factor: Tensor) -> None:
    """grad (N, ...) *= factor, of one element or N; float16 does not hold a loss scale of 65536."""
    dtype = accumulation_dtype(grad.dtype)
    shape = () if factor.numel() == 1 else (-1, *[1] * (grad.dim() - 1))
    grad.copy_(grad.to(dtype) * factor.to(dtype).reshape(shape))


# Streaming state per example, float64: max m, Σ e^(w−m), Σ e^2(w−m), Σ w, count.
STATE_SIZE = 5


def lse_init(examples: int, device: torch.device | str = "cpu") -> Tensor:
    """The state of no samples: (examples, 5)."""
    state = torch.zeros(examples, STATE_SIZE, dtype=torch.float64, device=device)
    state[:, 0] = -math.inf
    return state


def lse_update(state: Tensor, log_w: Tensor) -> Tensor:
    """The state after also seeing log_w (N, K)."""
    if log_w.shape[1] == 0:
        return state.clone()
    w = log_w.to(torch.float64)
    m = w.amax(1)
    shifted = torch.exp(w - torch.where(m == -math.inf, 0.0, m).unsqueeze(1))
    count = torch.full_like(m, log_w.shape[1])
    chunk = torch.stack((m, shifted.sum(1), shifted.square().sum(1), w.sum(1), count), 1)
    return lse_merge(state, chunk)


def lse_merge(a: Tensor, b: Tensor) -> Tensor:
    """The state of the union of two disjoint sets of samples."""
    m = torch.maximum(a[:, 0], b[:, 0])
    finite = torch.where(m == -math.inf, 0.0, m)
    fa, fb = torch.exp(a[:, 0] - finite), torch.exp(b[:, 0] - finite)
    return torch.stack(
        (
            m,
            a[:, 1] * fa + b[:, 1] * fb,
            a[:, 2] * fa.square() + b[:, 2] * fb.square(),
            a[:, 3] + b[:, 3],
            a[:, 4] + b[:, 4],
        ),
        1,
    )


# --- last linear layer and likelihood ---------------------------------------------------------


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def linear_log_weights(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> Tensor:
    """hidden (N, K, H), weight (D, H), bias (D,) → log_weights(hidden Wᵀ + b, …), (N, K).

    One row n at a time, so that no more than (1, K, D) is held.
    """
    rows = [log_ratio[:0]]
    for n in range(hidden.shape[0]):
        params = _linear(hidden[n : n + 1], weight, bias)
        some = None if mask is None else _row(mask, n)
        ratio = log_ratio[n : n + 1]
        rows.append(log_weights(params, scale, _row(x, n), ratio, likelihood, some))
    return torch.cat(rows)


def _row(t: Tensor, n: int) -> Tensor:
    """What row n has of x or a mask, (1, D)."""
    return t[n % t.shape[0]].unsqueeze(0)


#: what a decoder's hidden layers may make of their linear parts, by name
DENSE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "softplus": lambda x: softplus(x),
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def mlp_log_weights(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> Tensor:
    """z (N, K, Z) through dense layers (O_i, O_(i-1)) with biases (O_i) or empty → (N, K).

    log_weights of the last one's output; the activation follows every other.
    """
    f = DENSE_ACTIVATIONS[activation]
    *hidden, last = [
        (weight, bias if bias.numel() > 0 else None)
        for weight, bias in zip(weights, biases, strict=True)
    ]
    for layer in hidden:
        z = f(_linear(z, *layer))
    return linear_log_weights(z, *last, scale, x, log_ratio, likelihood, mask)


def linear_log_weights_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    x: Tensor,
    likelihood: str,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(∂hidden, ∂weight, ∂bias, ∂scale), the linear layer recomputed a row at a time."""
    dtype = accumulation_dtype(hidden.dtype)
    grad_hidden = [hidden[:0]]
    grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    grad_bias = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device)
    grad_scale = torch.zeros(
        0 if scale is None else scale.numel(), dtype=dtype, device=weight.device
    )
    for n in range(hidden.shape[0]):
        params = _linear(hidden[n : n + 1], weight, bias)
        some = None if mask is None else _row(mask, n)
        g, gs = log_weights_backward(grad[n : n + 1], params, scale, _row(x, n), likelihood, some)
        grad_hidden.append(g @ weight)
        g = g[0]
        grad_weight = grad_weight + (g.transpose(0, 1) @ hidden[n]).to(dtype)
        grad_bias = grad_bias + g.to(dtype).sum(0)
        grad_scale = grad_scale + gs.reshape(-1).to(dtype)
    return (
        torch.cat(grad_hidden),
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype),
        hidden.new_empty(0) if scale is None else grad_scale.reshape(scale.shape).to(scale.dtype),
    )


# --- those of which a mask leaves out elements, as operators of their own ------------------------

masked_log_weights = log_weights
masked_log_weights_backward = log_weights_backward
masked_iwae = iwae
masked_iwae_ = iwae_
masked_linear_log_weights = linear_log_weights
masked_linear_log_weights_backward = linear_log_weights_backward
masked_mlp_log_weights = mlp_log_weights


# --- a training step in one pass --------------------------------------------------------------


def _perceptron(t: Tensor, layers: Sequence[Tensor], activation: str) -> Tensor:
    """t through weights and biases in turn; the activation follows every layer but the last."""
    pairs = [
        (w, b if b.numel() > 0 else None) for w, b in zip(layers[::2], layers[1::2], strict=True)
    ]
    for weight, bias in pairs[:-1]:
        t = DENSE_ACTIVATIONS[activation](_linear(t, weight, bias))
    return _linear(t, *pairs[-1])


def mlp_loss(
    x: Tensor,
    corruption: str,
    rate: Tensor,
    salt: Tensor | None,
    seed: Tensor,
    copies: int,
    samples: int,
    first_example: int,
    encoder: Sequence[Tensor],
    decoder: Sequence[Tensor],
    activation: str,
    likelihood: str,
    outside: bool,
    analytic: bool,
    drops_score: bool,
    doubly: bool,
    kl_weight: float,
    bfloat16: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """x (B, D) → −1/M Σ_m 1/B Σ_b of the bound, and its gradient in every layer.

    The layers are weights (O, I) and biases (O,) or empty in turn; the encoder ends in mean and
    log-variance, 2 Z. The bound is log 1/K Σ w, or `outside` 1/K Σ log w; `analytic`, with the
    exact divergence. The gradient is the estimator's: see `dvae_fast.objectives`. With `bfloat16`
    kernels may round what they multiply to that, as nothing here does.
    """
    leaves = [[t.detach().requires_grad_() for t in layers] for layers in (encoder, decoder)]
    with torch.enable_grad():
        plain = corruption in _ADDED and not _ADDED[corruption]
        noisy = x.unsqueeze(0)
        if not plain:
            noisy = corrupt(x, corruption, rate, salt, seed, copies, first_example, 0)
        mean, log_var = _perceptron(noisy, leaves[0], activation).chunk(2, -1)
        k, groups = (1, copies * samples) if outside else (samples, copies)
        mean, log_var = (
            t.unsqueeze(1).expand(-1, groups // len(t), -1, -1).flatten(0, 1)
            for t in (mean, log_var)
        )
        noise = latent_noise(groups, len(x), k, mean.shape[-1], seed, first_example, 0, mean.dtype)
        m, v = mean.unsqueeze(2), log_var.unsqueeze(2)
        z = m + torch.exp(v / 2) * noise
        if analytic:
            log_ratio = -0.5 * (m.square() + torch.expm1(v) - v).sum(-1)
        else:
            if drops_score:
                m, v = m.detach(), v.detach()
            log_ratio = 0.5 * ((z - m).square() * torch.exp(-v) - z.square() + v).sum(-1)

        def density(z: Tensor, layers: Sequence[Tensor]) -> Tensor:
            params = _perceptron(z, layers, activation).flatten(0, 1)
            return log_density(params, None, x, likelihood).sum(-1).view(log_ratio.shape)

        log_p = density(z, leaves[1])
        log_w = (log_p + log_ratio).detach()
        weights = normalised_weights(log_w.flatten(0, 1)).view(log_w.shape)
        path = weights.square() if doubly else weights
        fixed = [t.detach() for t in leaves[1]]
        of_z = weighted(path, density(z, fixed) + kl_weight * log_ratio)
        of_layers = weighted(weights, density(z.detach(), leaves[1]))
        rows = groups * len(x)
        surrogate = -(of_z + of_layers).sum() / rows
    every = [t for layers in leaves for t in layers]
    grads = torch.autograd.grad(surrogate, every, allow_unused=True)
    loss = -logmeanexp(log_w.flatten(0, 1)).sum() / rows
    return loss, [
        torch.zeros_like(t) if g is None else g for t, g in zip(every, grads, strict=True)
    ]


_PASS_ARGUMENTS = 17  # of `mlp_loss` besides x


def mlp_step_(x: Tensor, *told: Any) -> tuple[Tensor, Tensor]:
    """`mlp_loss` and a step of `adam_` by its gradients; returns the loss and their norm.

    Args:
        x: (B, D).
        told: `mlp_loss`'s other arguments, all of them; then `adam_`'s from ``means`` on.
    """
    of_pass, of_step = told[:_PASS_ARGUMENTS], told[_PASS_ARGUMENTS:]
    loss, grads = mlp_loss(x, *of_pass)
    encoder, decoder = of_pass[7:9]
    adam_([*encoder, *decoder], grads, *of_step)
    return loss, torch.stack([g.norm() for g in grads]).norm()


def adam_(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    rule: str,
    factor: float,
) -> None:
    """A step of Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) by `factor` times the gradients;
    in place.

    Args:
        steps: how many there were, float32 of one element each, alike for all parameters.
        rule: "adam"; "decoupled", whose decay is AdamW's (Loshchilov and Hutter, arXiv 1711.05101);
            or "burda", which steps by the means from before these gradients and has ε outside the
            correction of the bias: see `dvae_fast.training.optimizers.BurdaAdam`.
    """
    if rule not in ("adam", "decoupled", "burda"):
        raise ValueError(f"rule must be adam, decoupled or burda, got {rule}")
    step = int(steps[0]) + 1
    of_means, of_squares = 1 - beta1**step, 1 - beta2**step
    for parameter, grad, mean, square in zip(parameters, grads, means, squares, strict=True):
        grad = factor * grad
        if rule == "decoupled":
            parameter.mul_(1 - learning_rate * weight_decay)
        elif weight_decay != 0:
            grad = grad + weight_decay * parameter
        if rule == "burda":
            rate = learning_rate * of_squares**0.5 / of_means
            parameter.addcdiv_(mean, square.sqrt() + epsilon, value=-rate)
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if rule != "burda":
            root = (square / of_squares).sqrt() + epsilon
            parameter.addcdiv_(mean, root, value=-learning_rate / of_means)
    for count in steps:
        count.add_(1)
