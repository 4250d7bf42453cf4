"""What the kernels are measured against: the best plain PyTorch code for each task.

Plain means formulas, autograd and torch.compile: no gradient written by hand, no custom kernel.
Where one formula can be written in several ways, all of them are here as candidates and the
benchmark takes the fastest on the machine it runs on (`fastest`), so that no choice made on
another machine holds a rival back. Nothing in this file uses dvae_fast.

Shapes: B examples, K samples, Z latent and D data dimensions.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Density = Callable[[Tensor, Tensor], Tensor]
    Noise = Callable[[Tensor, Tensor, float, float], Tensor]

T = TypeVar("T")

#: seconds that `fastest` gives each candidate; 0 takes the first one untried
choosing_seconds = 0.15

#: how many times the least time of another a candidate must take to be tried no longer
FAR = 1.5
#: rounds before that is evaluated, and seconds that they must have taken, for short calls vary; and
#: the least of rounds that follow
FIRST_ROUNDS, FIRST_SECONDS, LAST_ROUNDS = 2, 5e-3, 3


def compiled(function: Callable[..., T], **options: bool) -> Callable[..., T]:
    """torch.compile as it is fastest here: static shapes, and an error instead of a graph break."""
    return torch.compile(function, dynamic=False, fullgraph=True, options=options or None)


#: how torch.compile may draw random numbers
GENERATORS = {"Inductor's generator": False, "ATen's generator": True}


def ways(
    formulas: Mapping[str, Callable[..., Any]], rival: str, random: bool = False
) -> dict[str, Callable[..., Any]]:
    """The formulas as `rival` runs them, "eager" or "compile"; random ones with each generator."""
    if rival != "compile":
        return dict(formulas)
    if not random:
        return {name: compiled(formula) for name, formula in formulas.items()}
    return {
        f"{name}, {source}": compiled(formula, fallback_random=fallback)
        for name, formula in formulas.items()
        for source, fallback in GENERATORS.items()
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
    make: Callable[[str, int], Callable[[], object]],
    names: Iterable[str],
    chunks: Sequence[int],
    rows: str,
    times_longer: float = 1.0,
) -> dict[str, Callable[[], object]]:
    """`make(name, chunk)` with every chunk, by the name that is fastest with the middling one."""
    middling = chunks[len(chunks) // 2]
    best = fastest({name: make(name, middling) for name in names}, times_longer=times_longer)
    return {f"{best}, {chunk} {rows} at a time": make(best, chunk) for chunk in chunks}


# --- corruption: salt and pepper, one uniform number an element ---------------------------------


def corrupt_where(x: Tensor, u: Tensor, rate: float, salt: float) -> Tensor:
    """u < rate · salt gives 1, u < rate gives 0, else x."""
    one, zero = x.new_ones(()), x.new_zeros(())
    return torch.where(u < rate * salt, one, torch.where(u < rate, zero, x))


def corrupt_masked_fill(x: Tensor, u: Tensor, rate: float, salt: float) -> Tensor:
    return x.masked_fill(u < rate, 0.0).masked_fill(u < rate * salt, 1.0)


def corrupt_select(x: Tensor, u: Tensor, rate: float, salt: float) -> Tensor:
    """One comparison less in the select: the hit value is itself a comparison."""
    return torch.where(u < rate, (u < rate * salt).to(x.dtype), x)


CORRUPTIONS: dict[str, Noise] = {
    "where": corrupt_where,
    "masked_fill": corrupt_masked_fill,
    "select": corrupt_select,
}


def corrupt(x: Tensor, copies: int | None, rate: float, salt: float, formula: Noise) -> Tensor:
    """x (B, D) → x̃ (B, D), or (copies, B, D)."""
    shape = x.shape if copies is None else (copies, *x.shape)
    return formula(x, torch.rand(shape, device=x.device), rate, salt)


# --- latent samples -----------------------------------------------------------------------------


def reparameterise(mean: Tensor, log_var: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z = mean + exp(log_var / 2) ε (B, K, Z), and log p(z) − log q(z) (B, K)."""
    z = torch.addcmul(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1), noise)
    return z, 0.5 * (noise.square() - z.square() + log_var.unsqueeze(1)).sum(-1)


def reparameterise_dot(mean: Tensor, log_var: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The same with inner products, which keep no (B, K, Z) intermediate."""
    z = torch.addcmul(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1), noise)
    squares = torch.linalg.vecdot(noise, noise) - torch.linalg.vecdot(z, z)
    return z, 0.5 * (squares + log_var.sum(-1, keepdim=True))


REPARAMETERISATIONS = {"sum": reparameterise, "vecdot": reparameterise_dot}


def sample_latent(
    mean: Tensor, log_var: Tensor, k: int, formula: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    noise = torch.randn(mean.shape[0], k, mean.shape[1], device=mean.device)
    return formula(mean, log_var, noise)


# --- log p(z) − log q(z) of a z (B, K, Z) from elsewhere ------------------------------------------


def log_ratio_sum(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    mean, log_var = mean.unsqueeze(1), log_var.unsqueeze(1)
    return 0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var - z.square()).sum(-1)


def log_ratio_vecdot(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The same with inner products."""
    noise = (z - mean.unsqueeze(1)) * torch.exp(-0.5 * log_var).unsqueeze(1)
    squares = torch.linalg.vecdot(noise, noise) - torch.linalg.vecdot(z, z)
    return 0.5 * (squares + log_var.sum(-1, keepdim=True))


LOG_RATIOS = {"sum": log_ratio_sum, "vecdot": log_ratio_vecdot}


def logmeanexp(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


# --- mixture of posteriors: z (B, K, Z) under mean and log_var (M, B, Z) --------------------------


def mixture_broadcast(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(z) − log (1/M Σ_m N(z; mean_m, exp(log_var_m))), (B, K), through (M, B, K, Z)."""
    diff = z - mean.unsqueeze(2)
    precision, spread = torch.exp(-log_var).unsqueeze(2), log_var.sum(-1).unsqueeze(2)
    log_q = -0.5 * ((diff.square() * precision).sum(-1) + spread)
    return math.log(mean.shape[0]) - torch.logsumexp(log_q, 0) - 0.5 * z.square().sum(-1)


def mixture_vecdot(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The same with inner products."""
    noise = (z - mean.unsqueeze(2)) * torch.exp(-0.5 * log_var).unsqueeze(2)
    log_q = -0.5 * (torch.linalg.vecdot(noise, noise) + log_var.sum(-1).unsqueeze(2))
    squares = torch.linalg.vecdot(z, z)
    return math.log(mean.shape[0]) - torch.logsumexp(log_q, 0) - 0.5 * squares


def mixture_matmul(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The square multiplied out, two matrix products and no (M, B, K, Z); what cancels is lost."""
    precision = torch.exp(-log_var)
    scaled = mean * precision
    constant = (mean * scaled + log_var).sum(-1).t().unsqueeze(1)
    products = z.square() @ precision.permute(1, 2, 0) - 2 * (z @ scaled.permute(1, 2, 0))
    log_q = -0.5 * (products + constant)
    return math.log(mean.shape[0]) - torch.logsumexp(log_q, -1) - 0.5 * z.square().sum(-1)


MIXTURES = {"broadcast": mixture_broadcast, "vecdot": mixture_vecdot, "matmul": mixture_matmul}


# --- Bernoulli log-density from logits (B, K, D) and x (B, D), summed over D --------------------


def density_bce(logits: Tensor, x: Tensor) -> Tensor:
    target = x.unsqueeze(1).expand_as(logits)
    return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def density_softplus(logits: Tensor, x: Tensor) -> Tensor:
    return (x.unsqueeze(1) * logits - F.softplus(logits)).sum(-1)


def density_softplus_bmm(logits: Tensor, x: Tensor) -> Tensor:
    """Σ x l as a matrix product, which makes no intermediate of logits' size."""
    return torch.bmm(logits, x.unsqueeze(2)).squeeze(2) - F.softplus(logits).sum(-1)


def density_logsigmoid_bmm(logits: Tensor, x: Tensor) -> Tensor:
    """(x − 1) l + log σ(l)."""
    return torch.bmm(logits, (x - 1).unsqueeze(2)).squeeze(2) + F.logsigmoid(logits).sum(-1)


def density_explicit(logits: Tensor, x: Tensor) -> Tensor:
    """x l − max(l, 0) − log(1 + e^−|l|), for compilers to fuse."""
    softplus = logits.clamp(min=0) + torch.log1p(torch.exp(-logits.abs()))
    return (x.unsqueeze(1) * logits - softplus).sum(-1)


#: Eager PyTorch gains from matrix products and composed kernels, a compiler from pointwise code.
EAGER_DENSITIES: dict[str, Density] = {
    "bce": density_bce,
    "softplus": density_softplus,
    "softplus+bmm": density_softplus_bmm,
    "logsigmoid+bmm": density_logsigmoid_bmm,
}
COMPILED_DENSITIES: dict[str, Density] = {
    "bce": density_bce,
    "softplus": density_softplus,
    "softplus+bmm": density_softplus_bmm,
    "explicit": density_explicit,
}


def densities(rival: str) -> dict[str, Density]:
    return COMPILED_DENSITIES if rival == "compile" else EAGER_DENSITIES


def ways_by_density(
    function: Callable[..., Tensor], rival: str
) -> dict[str, Callable[..., Tensor]]:
    """`function`, which takes a density, by each that suits `rival`."""
    formulas = {n: functools.partial(function, density=d) for n, d in densities(rival).items()}
    return ways(formulas, rival)


def log_weights(logits: Tensor, x: Tensor, log_ratio: Tensor, density: Density) -> Tensor:
    return density(logits, x) + log_ratio


def log_weights_chunked(
    logits: Tensor, x: Tensor, log_ratio: Tensor, density: Density, chunk: int
) -> Tensor:
    """`log_weights` in chunks of one example's samples, so that intermediates stay in cache."""
    out = torch.empty_like(log_ratio)
    for b in range(logits.shape[0]):
        for k in range(0, logits.shape[1], chunk):
            out[b, k : k + chunk] = density(logits[b : b + 1, k : k + chunk], x[b : b + 1])[0]
    return out.add_(log_ratio)


def iwae_loss(logits: Tensor, x: Tensor, log_ratio: Tensor, density: Density) -> Tensor:
    """−mean over B of log (1/K Σ_k w_k); one sample needs no logsumexp."""
    log_w = density(logits, x) + log_ratio
    if log_w.shape[1] == 1:
        return -log_w.mean()
    return math.log(log_w.shape[1]) - torch.logsumexp(log_w, 1).mean()


def iwae_by_hand(logits: Tensor, x: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients without autograd, in place where possible: (loss, ∂logits, ∂log_ratio).

    Not plain code, and no target speaks of it: it shows how much of the gain over eager PyTorch
    is had by writing the gradient out, with no kernel.
    """
    b, k = log_ratio.shape
    log_w = density_softplus_bmm(logits, x).add_(log_ratio)
    loss = math.log(k) - torch.logsumexp(log_w, 1).mean()
    grad_ratio = torch.softmax(log_w, 1).mul_(-1 / b)
    grad = torch.sigmoid(logits).sub_(x.unsqueeze(1)).mul_(-grad_ratio.unsqueeze(2))
    return loss, grad, grad_ratio


# --- last linear layer and likelihood -----------------------------------------------------------


def linear_step(density: Density) -> Callable[..., Tensor]:
    """A tile's step for a compiler: one fused pass after the product."""

    def step(rows: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return density(F.linear(rows, weight, bias).unsqueeze(0), x.unsqueeze(0))[0]

    return step


def linear_log_weights(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    log_ratio: Tensor,
    density: Density,
    tile: int,
    step: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Tiles of one example's rows: hidden (B, K, H) → (B, K), by a `linear_step` where it is given.

    Else the density follows the product, into a buffer that all tiles use.
    """
    if step is None:
        buffer = hidden.new_empty(tile, weight.shape[0])

        def step(rows: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            logits = torch.addmm(bias, rows, weight.t(), out=buffer[: rows.shape[0]])
            return density(logits.unsqueeze(0), x.unsqueeze(0))[0]

    out = torch.empty_like(log_ratio)
    for b in range(hidden.shape[0]):
        for k in range(0, hidden.shape[1], tile):
            out[b, k : k + tile] = step(hidden[b, k : k + tile], weight, bias, x[b])
    return out.add_(log_ratio)


# --- model --------------------------------------------------------------------------------------


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear and activation alternating, no activation after the last layer."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class DIWAE(nn.Module):
    """A denoising importance-weighted autoencoder in plain PyTorch, Bernoulli decoder.

    It encodes each example once, keeps no copy it does not need, and draws its noise in one call
    each. `*_from` methods take the noise instead of drawing it, so that they can be checked.
    """

    def __init__(
        self,
        data_size: int,
        latent_size: int,
        hidden_sizes: Sequence[int],
        activation: Callable[[], nn.Module],
        k: int,
        rate: float,
        salt: float,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.latent_size, self.k, self.rate, self.salt = latent_size, k, rate, salt
        self.copies = copies
        self.encoder = mlp([data_size, *hidden_sizes, 2 * latent_size], activation)
        self.decoder = mlp([latent_size, *reversed(hidden_sizes), data_size], activation)
        self.density: Density = density_softplus
        self.noise: Noise = corrupt_where
        self.reparameterise = reparameterise

    def copy_parameters(self, model: nn.Module) -> None:
        """Take `model`'s parameters, which must be the same ones in the same order."""
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), model.parameters(), strict=True):
                if mine.shape != theirs.shape:
                    raise ValueError(
                        f"model must have the same layers, got a parameter of shape "
                        f"{tuple(theirs.shape)} for {tuple(mine.shape)}"
                    )
                mine.copy_(theirs)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, -1)
        return mean, log_var

    def loss_from(self, x: Tensor, corrupted: Tensor, noise: Tensor) -> Tensor:
        """From x̃ (copies · B, D) and ε (copies · B, K, Z), all copies of a batch together."""
        x = x if self.copies == 1 else x.repeat(self.copies, 1)
        z, log_ratio = self.reparameterise(*self.encode(corrupted), noise)
        return iwae_loss(self.decoder(z), x, log_ratio, self.density)

    def loss(self, x: Tensor) -> Tensor:
        copies = None if self.copies == 1 else self.copies
        corrupted = corrupt(x, copies, self.rate, self.salt, self.noise).view(-1, x.shape[1])
        rows = corrupted.shape[0]
        noise = torch.randn(rows, self.k, self.latent_size, device=x.device)
        return self.loss_from(x, corrupted, noise)

    def log_weights_from(self, x: Tensor, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        z, log_ratio = self.reparameterise(mean, log_var, noise)
        return log_weights(self.decoder(z), x, log_ratio, self.density)

    def log_weights(self, x: Tensor, mean: Tensor, log_var: Tensor, k: int) -> Tensor:
        noise = torch.randn(x.shape[0], k, self.latent_size, device=x.device)
        return self.log_weights_from(x, mean, log_var, noise)


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
        return torch.logsumexp(log_w, 1) - math.log(k)


def training_step(
    loss: Callable[[Tensor], Tensor], optimiser: torch.optim.Optimizer, x: Tensor
) -> Callable[[], None]:
    """One step with the gradients freed rather than zeroed."""

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(x).backward()
        optimiser.step()

    return step


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Optimizer:
    """The fused implementation is the fastest of torch's Adams on the CPU too."""
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True)
