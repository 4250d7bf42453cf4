"""What the kernels are measured against: the best plain PyTorch code for each task.

Plain means formulas, autograd and torch.compile: no gradient written by hand, no custom kernel.
Where one formula can be written in several ways, all of them are here as candidates and the
benchmark takes the fastest on the machine it runs on (`fastest`), so that no choice made on
another machine holds a rival back. Nothing in this file uses dvae_fast.

Shapes: B examples, K samples, Z latent and D data dimensions.
"""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Calls = dict[str, Callable[..., Any]]
    Density = Callable[[Tensor, Tensor], Tensor]

#: seconds that `fastest` gives each candidate; 0 takes the first one untried
choosing_seconds = 0.15

#: how many times the least time of another a candidate must take to be tried no longer
FAR = 1.5
#: rounds before that is evaluated, and seconds that they must have taken, for short calls vary; and
#: the least of rounds that follow
FIRST_ROUNDS, FIRST_SECONDS, LAST_ROUNDS = 2, 5e-3, 3

#: what torch.compile is told; the second tries everything, for products in minutes
COMPILERS: dict[str, dict[str, Any]] = {
    "compile": {},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}
#: what eager gains nothing from, and a compiler; and all that one gets where it takes minutes
FOR_COMPILERS, FOR_EAGER = ("explicit",), ("bce", "softplus+bmm", "bmm")
FUSED = ("select", "sum", "broadcast", "explicit")
fused_alone = False


def compiled(function: Callable[..., Any], how: str = "compile", **options: bool) -> Any:
    """torch.compile as it is fastest here: static shapes, and an error instead of a graph break."""
    return torch.compile(
        function, dynamic=False, fullgraph=True, options=options or None, **COMPILERS[how]
    )


def candidates(formulas: Calls, rival: str) -> Calls:
    """Those that `rival`, eager or a compiler, is to try."""
    if rival not in COMPILERS:
        return {n: f for n, f in formulas.items() if n not in FOR_COMPILERS}
    if fused_alone and len(formulas) > 1:
        return {n: f for n, f in formulas.items() if n in FUSED}
    return {n: f for n, f in formulas.items() if n not in FOR_EAGER}


def ways(formulas: Calls, rival: str, random: bool = False) -> Calls:
    """The formulas as `rival` runs them, eager or compiled; random ones with each generator."""
    tried = candidates(formulas, rival).items()
    if rival not in COMPILERS:
        return dict(tried)
    if not random or fused_alone:
        return {name: compiled(formula, rival) for name, formula in tried}
    return {
        f"{name}, {source} generator": compiled(formula, fallback_random=source == "ATen's")
        for name, formula in tried
        for source in ("Inductor's", "ATen's")
    }


def fastest(
    candidates: Mapping[str, Callable[[], object]],
    prepare: Callable[[], None] | None = None,
    times_longer: float = 1.0,
) -> str:
    """The name of the candidate with the least median time, run in turn.

    One that is far from the fastest after the first rounds is tried no longer.
    """
    seconds = choosing_seconds * times_longer
    if len(candidates) == 1 or seconds == 0:
        return next(iter(candidates))
    times: dict[str, list[float]] = {name: [] for name in candidates}

    def run(name: str) -> float:
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        candidates[name]()
        return time.perf_counter() - start

    def round_of(names: list[str]) -> float:
        for name in names:
            times[name].append(run(name))
        return sum(times[name][-1] for name in names)

    names = list(candidates)
    for name in names:
        run(name)  # compiles
    rounds, spent = 0, 0.0
    while rounds < FIRST_ROUNDS or spent < min(FIRST_SECONDS, seconds):
        rounds, spent = rounds + 1, spent + round_of(names)
    least = {name: min(t) for name, t in times.items()}
    names = [name for name in names if least[name] <= FAR * min(least.values())]
    if len(names) > 1:
        slowest = max(least[name] for name in names)
        for _ in range(max(LAST_ROUNDS, min(200, int(seconds / slowest)))):
            round_of(names)
    return min(names, key=lambda name: statistics.median(times[name]))


def by_chunk(
    make: Callable[[str, int], Callable[[], Any]],
    names: Iterable[str],
    chunks: Sequence[int],
    rows: str,
    times_longer: float = 1.0,
) -> Calls:
    """`make(name, chunk)` with every chunk, by the name that is fastest with the middling one."""
    middling = chunks[len(chunks) // 2]
    best = fastest({name: make(name, middling) for name in names}, times_longer=times_longer)
    return {f"{best}, {chunk} {rows} at a time": make(best, chunk) for chunk in chunks}


def corrupt_where(x: Tensor, u: Tensor, rate: float, salt: float) -> Tensor:
    """u < rate · salt gives 1, u < rate gives 0, else x."""
    one, zero = x.new_ones(()), x.new_zeros(())
    return torch.where(u < rate * salt, one, torch.where(u < rate, zero, x))


CORRUPTIONS: Calls = {
    "where": corrupt_where,
    # One comparison less in the select: the hit value is itself a comparison.
    "select": lambda x, u, rate, salt: torch.where(u < rate, (u < rate * salt).to(x.dtype), x),
}


def corrupt(
    x: Tensor, copies: int | None, rate: float, salt: float, formula: Callable[..., Tensor]
) -> Tensor:
    """x (B, D) → x̃ (B, D), or (copies, B, D)."""
    shape = x.shape if copies is None else (copies, *x.shape)
    return formula(x, torch.rand(shape, device=x.device), rate, salt)


def _squares(t: Tensor) -> Tensor:
    """Σ t² as an inner product, which keeps no intermediate of t's size."""
    return torch.linalg.vecdot(t, t)


def reparameterise(mean: Tensor, log_var: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z = mean + exp(log_var / 2) ε (B, K, Z), and log p(z) − log q(z) (B, K)."""
    z = torch.addcmul(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1), noise)
    return z, 0.5 * (noise.square() - z.square() + log_var.unsqueeze(1)).sum(-1)


def reparameterise_dot(mean: Tensor, log_var: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.addcmul(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1), noise)
    return z, 0.5 * (_squares(noise) - _squares(z) + log_var.sum(-1, keepdim=True))


REPARAMETERISATIONS: Calls = {"sum": reparameterise, "vecdot": reparameterise_dot}


def sample_latent(mean: Tensor, log_var: Tensor, k: int, formula: Callable[..., Any]) -> Any:
    noise = torch.randn(mean.shape[0], k, mean.shape[1], device=mean.device)
    return formula(mean, log_var, noise)


# --- log p(z) − log q(z) of a z (B, K, Z) from elsewhere ------------------------------------------


def log_ratio_sum(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    mean, log_var = mean.unsqueeze(1), log_var.unsqueeze(1)
    return 0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var - z.square()).sum(-1)


def log_ratio_vecdot(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    noise = (z - mean.unsqueeze(1)) * torch.exp(-0.5 * log_var).unsqueeze(1)
    return 0.5 * (_squares(noise) - _squares(z) + log_var.sum(-1, keepdim=True))


LOG_RATIOS: Calls = {"sum": log_ratio_sum, "vecdot": log_ratio_vecdot}


def logmeanexp(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


# --- mixture of posteriors: z (B, K, Z) under mean and log_var (M, B, Z) --------------------------


def mixture_broadcast(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(z) − log (1/M Σ_m N(z; mean_m, exp(log_var_m))), (B, K), through (M, B, K, Z)."""
    diff = z - mean.unsqueeze(2)
    precision, spread = torch.exp(-log_var).unsqueeze(2), log_var.sum(-1).unsqueeze(2)
    log_q = -0.5 * ((diff.square() * precision).sum(-1) + spread)
    return math.log(mean.shape[0]) - torch.logsumexp(log_q, 0) - 0.5 * z.square().sum(-1)


def mixture_matmul(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The square multiplied out, two matrix products and no (M, B, K, Z); what cancels is lost."""
    precision = torch.exp(-log_var)
    scaled = mean * precision
    constant = (mean * scaled + log_var).sum(-1).t().unsqueeze(1)
    products = z.square() @ precision.permute(1, 2, 0) - 2 * (z @ scaled.permute(1, 2, 0))
    log_q = -0.5 * (products + constant)
    return math.log(mean.shape[0]) - torch.logsumexp(log_q, -1) - 0.5 * z.square().sum(-1)


MIXTURES: Calls = {"broadcast": mixture_broadcast, "matmul": mixture_matmul}


# --- Bernoulli log-density from logits (B, K, D) and x (B, D), summed over D --------------------


def density_bce(logits: Tensor, x: Tensor) -> Tensor:
    target = x.unsqueeze(1).expand_as(logits)
    return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def density_softplus(logits: Tensor, x: Tensor) -> Tensor:
    return (x.unsqueeze(1) * logits - F.softplus(logits)).sum(-1)


def density_softplus_bmm(logits: Tensor, x: Tensor) -> Tensor:
    """Σ x l as a matrix product, which makes no intermediate of logits' size."""
    return torch.bmm(logits, x.unsqueeze(2)).squeeze(2) - F.softplus(logits).sum(-1)


def density_explicit(logits: Tensor, x: Tensor) -> Tensor:
    """x l − max(l, 0) − log(1 + e^−|l|), for compilers to fuse; never in half precision."""
    logits = logits.float() if logits.itemsize < 4 else logits
    softplus = logits.clamp(min=0) + torch.log1p(torch.exp(-logits.abs()))
    return (x.unsqueeze(1) * logits - softplus).sum(-1)


#: Eager PyTorch gains from matrix products and composed kernels, a compiler from pointwise code.
DENSITIES: Calls = {
    "bce": density_bce,
    "softplus": density_softplus,
    "softplus+bmm": density_softplus_bmm,
    "explicit": density_explicit,
}


def by_density(function: Callable[..., Tensor]) -> Calls:
    """`function`, which takes a density, by each."""
    return {name: partial(function, density=density) for name, density in DENSITIES.items()}


def log_weights(logits: Tensor, x: Tensor, log_ratio: Tensor, density: Density) -> Tensor:
    return density(logits, x) + log_ratio


def iwae_loss(logits: Tensor, x: Tensor, log_ratio: Tensor, density: Density) -> Tensor:
    return loss_of(density(logits, x) + log_ratio)


def loss_of(log_w: Tensor) -> Tensor:
    """−mean over B of log (1/K Σ_k w_k); one sample needs no logsumexp."""
    if log_w.shape[1] == 1:
        return -log_w.mean()
    return math.log(log_w.shape[1]) - torch.logsumexp(log_w, 1).mean()


# --- log p(x|z) (B, K) of other likelihoods, from params (B, K, D) and x (B, D) -------------------


def poisson(rate: Tensor, x: Tensor) -> Tensor:
    of_x = torch.lgamma(x + 1).sum(-1, keepdim=True)
    return (x.unsqueeze(1) * torch.log(rate) - rate).sum(-1) - of_x


def poisson_bmm(rate: Tensor, x: Tensor) -> Tensor:
    of_x = torch.lgamma(x + 1).sum(-1, keepdim=True)
    return torch.bmm(torch.log(rate), x.unsqueeze(2)).squeeze(2) - rate.sum(-1) - of_x


def zero_inflated(mean: Tensor, scale: Tensor, zero_logits: Tensor, x: Tensor) -> Tensor:
    """log(π + (1 − π) NB(0)) of a 0 is softplus(log NB(0) − l) − softplus(−l)."""
    x = x.unsqueeze(1)
    log_total = torch.log(mean + scale)
    of_zero = scale * (torch.log(scale) - log_total) - zero_logits
    gammas = torch.lgamma(x + scale) - torch.lgamma(scale) - torch.lgamma(x + 1)
    of_count = of_zero + x * (torch.log(mean) - log_total) + gammas
    each = torch.where(x == 0, F.softplus(of_zero), of_count) - F.softplus(-zero_logits)
    return each.sum(-1)


def laplace(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return -((x.unsqueeze(1) - mean).abs() / scale + torch.log(2 * scale)).sum(-1)


def continuous_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """log C(l) = log (l/tanh (l/2)), of small l by its series."""
    size, square = logits.abs(), logits.square()
    small = size < 0.3
    safe = torch.where(small, 1.0, size)
    series = math.log(2) + square * (1 / 12 - square * (7 / 1440 - square * (31 / 90720)))
    log_c = torch.where(small, series, torch.log(safe) - torch.log(torch.tanh(safe / 2)))
    return (x.unsqueeze(1) * logits - F.softplus(logits) + log_c).sum(-1)


def masked_gaussian(
    mean: Tensor, scale: Tensor, x: Tensor, log_ratio: Tensor, mask: Tensor | None
) -> Tensor:
    """Log-weights (B, K) of a scale (D,)."""
    each = -0.5 * ((x.unsqueeze(1) - mean) / scale).square() - torch.log(scale)
    each = each - 0.5 * math.log(2 * math.pi)
    return log_ratio + (each if mask is None else each.where(mask.unsqueeze(1), 0.0)).sum(-1)


def bernoulli_probabilities(p: Tensor, x: Tensor) -> Tensor:
    rows = x.unsqueeze(1).expand_as(p).to(p.dtype)
    return -F.binary_cross_entropy(p, rows, reduction="none").sum(-1)


def bernoulli_probabilities_explicit(p: Tensor, x: Tensor) -> Tensor:
    x = x.unsqueeze(1)
    return (x * torch.log(p) + (1 - x) * torch.log1p(-p)).sum(-1)


CLASSES = 4


def categorical(logits: Tensor, x: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits.unflatten(-1, (-1, CLASSES)), -1).flatten(-2)
    return (x.unsqueeze(1) * log_p).sum(-1)


def categorical_bmm(logits: Tensor, x: Tensor) -> Tensor:
    normaliser = torch.logsumexp(logits.unflatten(-1, (-1, CLASSES)), -1).sum(-1)
    return torch.bmm(logits, x.unsqueeze(2)).squeeze(2) - normaliser


def categorical_explicit(logits: Tensor, x: Tensor) -> Tensor:
    """Class by class, which compilers make one loop of."""
    each = logits.unflatten(-1, (-1, CLASSES)).unbind(-1)
    most = each[0]
    for other in each[1:]:
        most = torch.maximum(most, other)
    total = sum(torch.exp(one - most) for one in each)
    chosen = x.unflatten(-1, (-1, CLASSES)).unsqueeze(1).unbind(-1)
    of_class = sum(a * b for a, b in zip(chosen, each, strict=True))
    return (of_class - most - torch.log(total)).sum(-1)


#: by the likelihood's name; the first formula is the one that results are held to
LIKELIHOODS: dict[str, Calls] = {
    "poisson": {"": poisson, "bmm": poisson_bmm},
    "zero_inflated_negative_binomial": {"": zero_inflated},
    "laplace": {"": laplace},
    "continuous_bernoulli": {"": continuous_bernoulli},
    "bernoulli_probabilities": {
        "": bernoulli_probabilities, "explicit": bernoulli_probabilities_explicit,
    },
    "categorical": {
        "": categorical, "bmm": categorical_bmm, "explicit": categorical_explicit,
    },
}  # fmt: skip


def likelihood_loss(*operands: Tensor, x: Tensor, density: Callable[..., Tensor]) -> Tensor:
    """The loss of params and log_ratio, in this order."""
    *params, log_ratio = operands
    return loss_of(density(*params, x) + log_ratio)


def tiled(
    step: Callable[[Tensor, Tensor], Tensor], rows: Tensor, x: Tensor, log_ratio: Tensor, tile: int
) -> Tensor:
    """Log-weights (B, K) by `step` of at most `tile` of one example's rows (B, K, …)."""
    out = torch.empty_like(log_ratio)
    for b in range(rows.shape[0]):
        for k in range(0, rows.shape[1], tile):
            out[b, k : k + tile] = step(rows[b, k : k + tile], x[b])
    return out.add_(log_ratio)


def density_step(density: Density) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits (N, D) of one example to its log-density (N,)."""
    return lambda logits, x: density(logits.unsqueeze(0), x.unsqueeze(0))[0]


def linear_step(
    weight: Tensor, bias: Tensor, density: Density, tile: int | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The last layer and the density: into a buffer that all tiles use, or for a compiler."""
    after = density_step(density)
    if tile is None:
        return lambda rows, x: after(F.linear(rows, weight, bias), x)
    out = weight.new_empty(tile, weight.shape[0])
    return lambda rows, x: after(torch.addmm(bias, rows, weight.t(), out=out[: len(rows)]), x)


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear and activation alternating, no activation after the last layer."""
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


class DIWAE(nn.Module):
    """A denoising importance-weighted autoencoder in plain PyTorch, Bernoulli decoder.

    It encodes each example once, keeps no copy it does not need, and draws its noise in one call
    each, unless it is given, so that the formulas can be checked: x̃ (M · B, D), all copies of a
    batch together, and ε (rows, K, Z). `sizes` are the encoder's: D, …, Z.
    """

    def __init__(self, sizes: Sequence[int], k: int, rate: float, salt: float, m: int = 1) -> None:
        super().__init__()
        self.latent_size, self.k, self.m, self.corruption = sizes[-1], k, m, (rate, salt)
        self.encoder = mlp([*sizes[:-1], 2 * sizes[-1]], nn.Softplus)
        self.decoder = mlp(sizes[::-1], nn.Softplus)
        self.density: Density = density_softplus
        self.reparameterise = reparameterise

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(x).chunk(2, -1)

    def log_weights(
        self, x: Tensor, mean: Tensor, log_var: Tensor, k: int, noise: Tensor | None = None
    ) -> Tensor:
        if noise is None:
            noise = torch.randn(mean.shape[0], k, self.latent_size, device=x.device)
        z, log_ratio = self.reparameterise(mean, log_var, noise)
        return self.density(self.decoder(z), x) + log_ratio

    def loss(self, x: Tensor, noisy: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        if noisy is None:
            copies = None if self.m == 1 else self.m
            noisy = corrupt(x, copies, *self.corruption, corrupt_where).view(-1, x.shape[1])
        x = x if self.m == 1 else x.repeat(self.m, 1)
        return loss_of(self.log_weights(x, *self.encode(noisy), self.k, noise))


def estimate_log_likelihood(
    model: DIWAE, log_weights: Callable[..., Tensor], x: Tensor, k: int, chunk: int
) -> Tensor:
    """log p̂(x) per example (B,): encoded once, `chunk` samples of every example at a time."""
    with torch.no_grad():
        mean, log_var = model.encode(x)
        log_w = x.new_empty(x.shape[0], k)
        for start in range(0, k, chunk):
            n = min(chunk, k - start)
            log_w[:, start : start + n] = log_weights(x, mean, log_var, n)
        return logmeanexp(log_w)


def adam(model: nn.Module, rate: float = 1e-3, capturable: bool = False) -> torch.optim.Optimizer:
    """The fused implementation is the fastest of torch's Adams on the CPU too."""
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=capturable)
