"""How log-weights become a bound and a loss: the one place that knows K in from K out.

With log w = log p(x|z) + log p(z) − log q(z|x̃), K samples z in each of M groups. A group is a
corruption x̃ of the example; in a model without corruption it is one more draw of K samples from
the same posterior. Every bound is made of log-means of a temperature t,

    T_t(w) = 1/t log mean w^t,    T_0 = mean of log w,    T_∞ = max log w,

*nested* (over the K samples of a group, then a mean over the M groups) or *joint* (over all M·K):

================ ============================================ =====================================
objective        the bound                                    source
================ ============================================ =====================================
``elbo``         T_0; the (denoising) variational bound       Kingma and Welling 2013 (1312.6114),
                                                              eq. 3; Im et al. 2015 (1511.06406)
``elbo-kl``      mean log p(x|z) − KL(q || p), KL analytic    the same
``iwae``         T_1, nested: the (denoising)                 Burda et al. 2015 (1509.00519), eq. 8;
                 importance-weighted bound; with M groups     Im et al. 2015, section 3.1;
                 and no corruption it is MIWAE(M, K)          Rainforth et al. 2018 (1802.04537)
``iwae-joint``   T_1, joint: tighter, and still a bound,      Burda et al. 2015, eq. 8
                 each w having its own q(z|x̃) below
``ciwae``        β T_0 + (1 − β) T_1, nested                  Rainforth et al. 2018
``piwae``        T_1, joint, for the generative net; the      Rainforth et al. 2018
                 inference net ascends T_1 nested (MIWAE)
``vr``           T_(1−α), nested: α = 0 is iwae, 1 is elbo    Li and Turner 2016 (1602.02311)
``vr-max``       T_∞, nested: α → −∞                          Li and Turner 2016
``mixture``      T_1, joint, with 1/M Σ_m q(z|x̃_m) below,     Im et al. 2015: the posterior that
                 the density that z is drawn from             corruption makes of q
``mixture-elbo`` T_0, joint, with the same below              the same
================ ============================================ =====================================

All are below log p(x) in expectation but ``vr`` for α < 0 and ``vr-max``, which are above the
importance-weighted bound and may be above log p(x).

Gradient estimators of the inference network φ; the generative network always has the bound's
own gradient, coefficients c = ∂bound/∂log w, w̃ = w / Σ w where the bound is ``iwae``:

- ``standard``: the reparameterised gradient.
- ``stl``: sticking the landing (Roeder et al. 2017, 1703.09194): log q's explicit dependence on φ
  is dropped. Unbiased where c is constant, ``elbo`` and ``mixture-elbo``; biased for every bound
  with K inside the logarithm, since the dropped score function is there correlated with c.
- ``dreg``: doubly reparameterised (Tucker et al. 2018, 1810.04152): c − ∂c/∂log w in the place of
  c, w̃² for ``iwae``, on the path through z alone. Unbiased; for ``elbo`` it is ``stl``.
- ``vimco``: score function with a leave-one-out baseline (Mnih and Rezende 2016, 1602.06725), in
  O(K); unbiased, and needs no reparameterisation.

Numbers in brackets are arXiv's.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from dvae_fast.functional import log_weights as functional
from dvae_fast.reference import accumulation_dtype

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Likelihood

__all__ = [
    "ESTIMATORS",
    "OBJECTIVES",
    "OUTSIDE",
    "Latents",
    "Objective",
    "as_objective",
    "bound",
    "check_discrete",
    "draw_bernoulli",
    "loss",
    "sample_bernoulli_latents",
    "sample_latents",
]

ESTIMATORS = ("standard", "stl", "dreg", "vimco")

#: The objectives, and the estimators that each is defined with.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "elbo": ESTIMATORS,
    "elbo-kl": ("standard",),
    "iwae": ESTIMATORS,
    "iwae-joint": ESTIMATORS,
    "ciwae": ESTIMATORS,
    "piwae": ESTIMATORS,
    "vr": ESTIMATORS,
    "vr-max": ("standard", "stl"),
    "mixture": ("standard", "stl"),
    "mixture-elbo": ("standard", "stl"),
}

#: Objectives whose K samples are outside the logarithm.
OUTSIDE = ("elbo", "elbo-kl", "mixture-elbo")

_op: Any = torch.ops.dvae_fast

# PIWAE's generative coefficients are no smaller than this: beside a sum of 1 it is nothing in any
# dtype, and the inference net's coefficient over it still is a number.
_LEAST = 1e-20


class _Term(NamedTuple):
    """share · T_temperature, nested or joint."""

    share: float
    temperature: float
    joint: bool = False


@dataclass(frozen=True)
class Objective:
    """What is maximised, and how the inference network's gradient is estimated.

    Args:
        name: one of `OBJECTIVES`.
        estimator: one of `ESTIMATORS`, and of those that `OBJECTIVES` lists for the name.
        beta: of "ciwae" alone, in [0, 1]: 0 is the IWAE's bound, 1 the ELBO. Default 0.5.
        alpha: of "vr" alone, finite: 0 is the IWAE's bound, 1 the ELBO. Default 0.5.
        free_bits: of "elbo-kl" alone: λ >= 0 nats a latent dimension. The loss's gradient is that
            of Σ_j max(λ, KL_j), KL_j the mean over the batch given (Kingma et al. 2016, arXiv
            1606.04934); its value stays the bound's.

    Raises:
        ValueError: naming the argument, the rule and the value.
    """

    name: str = "iwae"
    estimator: str = "standard"
    beta: float | None = None
    alpha: float | None = None
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.name!r}")
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(ESTIMATORS)}; got {self.estimator!r}"
            )
        if self.estimator not in (known := OBJECTIVES[self.name]):
            others = [name for name, of in OBJECTIVES.items() if self.estimator in of]
            raise ValueError(
                f"estimator must be one of {', '.join(known)} for {self.name} ({self.estimator} "
                f"is defined for {', '.join(others)}); got {self.estimator!r}"
            )
        self._check_parameter("beta", "ciwae", 0.0, 1.0)
        self._check_parameter("alpha", "vr", -math.inf, math.inf)
        if not _is_number(self.free_bits) or not 0 <= self.free_bits < math.inf:
            raise ValueError(
                f"free_bits must be a finite number >= 0, in nats; got {self.free_bits!r}"
            )
        if self.free_bits and self.name != "elbo-kl":
            raise ValueError(
                "free_bits must be 0 unless the objective is elbo-kl, which alone has a "
                f"divergence for each latent dimension; got {self.free_bits!r} for {self.name}"
            )

    def _check_parameter(self, argument: str, owner: str, lower: float, upper: float) -> None:
        value = getattr(self, argument)
        if self.name != owner:
            if value is not None:
                raise ValueError(
                    f"{argument} must be None unless the objective is {owner}; "
                    f"got {value!r} for {self.name}"
                )
        elif value is None:
            object.__setattr__(self, argument, 0.5)
        elif not _is_number(value) or not lower <= value <= upper or math.isinf(value):
            rule = "finite" if math.isinf(lower) else f"in [{lower:g}, {upper:g}]"
            raise ValueError(f"{argument} must be a number, {rule}; got {value!r}")

    def check_samples(self, groups: int, samples: int) -> None:
        """Raise ValueError unless M = `groups` and K = `samples` are enough for the estimator."""
        if self.estimator != "vimco":
            return
        if self.name == "iwae-joint":
            name, count = "M·K", groups * samples
        else:
            name, count = "K", samples
        if count < 2:
            raise ValueError(
                f"{name} must be >= 2 for vimco, whose baseline is made of the other samples; "
                f"got {count}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The name, and the arguments that differ from their defaults; JSON-able."""
        default = Objective(self.name)
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k == "name" or v != getattr(default, k)}

    def __str__(self) -> str:
        values = self.to_dict()
        name = values.pop("name")
        return f"{name} ({', '.join(f'{k} {v}' for k, v in values.items())})" if values else name

    # --- the formulas ---

    @property
    def _generative(self) -> tuple[_Term, ...]:
        """The bound, whose gradient the generative network has."""
        if self.name == "ciwae":
            beta = cast("float", self.beta)
            return _Term(beta, 0.0), _Term(1 - beta, 1.0)
        if self.name == "vr":
            return (_Term(1.0, 1 - cast("float", self.alpha)),)
        if self.name == "vr-max":
            return (_Term(1.0, math.inf),)
        joint = self.name in ("iwae-joint", "piwae", "mixture", "mixture-elbo")
        return (_Term(1.0, 0.0 if self.name in OUTSIDE else 1.0, joint),)

    @property
    def _inference(self) -> tuple[_Term, ...]:
        """What the inference network ascends."""
        return (_Term(1.0, 1.0),) if self.name == "piwae" else self._generative

    @property
    def _mixed(self) -> bool:
        """Whether the density below is that of the mixture over corruptions."""
        return self.name.startswith("mixture")

    @property
    def _rescales(self) -> bool:
        """Whether z's gradient has coefficients other than the generative network's."""
        return self.name == "piwae" or (self.estimator == "dreg" and self.name not in OUTSIDE)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_objective(objective: str | Objective, estimator: str | None = None) -> Objective:
    """The `Objective` of a name or an object, with another estimator if one is given.

    Raises:
        TypeError, ValueError: if it is neither, or not known.
    """
    if isinstance(objective, str):
        return Objective(objective) if estimator is None else Objective(objective, estimator)
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be a string or an Objective, got {type(objective).__name__}"
        )
    return objective if estimator is None else dataclasses.replace(objective, estimator=estimator)


# --- gradients that are not the value's derivative --------------------------------------------


class _Scaled(torch.autograd.Function):
    """x, with its gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @functional._differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _WithGradients(torch.autograd.Function):
    """The scalar `value`, whose derivatives with respect to a and b are said to be da and db."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, a: Tensor, da: Tensor, b: Tensor | None, db: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(da, db)
        return value.clone()

    @staticmethod
    @functional._differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        da, db = ctx.saved_tensors
        return None, upstream * da, None, None if db is None else upstream * db, None


class _Deliver(torch.autograd.Function):
    """The loss, which in the backward pass hands `ratio` to the `_PathSample` of that carrier."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, carrier: Tensor, ratio: Tensor) -> Tensor:
        ctx.save_for_backward(ratio)
        return loss.view_as(loss)

    @staticmethod
    @functional._differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return upstream, ratio, None


class _PathSample(torch.autograd.Function):
    """`sample_latent` whose gradient is rescaled row by row, and log q's own φ dropped.

    Returns z (M, B, K, Z), log_ratio (M, B, K) and a carrier, zeros like log_ratio: it computes
    nothing, but what comes back as its gradient is, if `rescales`, the ratio of the inference
    net's coefficient to the generative net's. So the decoder is gone back through once, whatever
    the estimator, and only the gradient of z is touched.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        log_var: Tensor,
        seed: Tensor,
        k: int,
        first_example: int,
        drop_score: bool,
        rescales: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, log_ratio = _op.sample_latent(mean, log_var, k, seed, first_example, 0)
        ctx.save_for_backward(mean, log_var, seed, z)
        ctx.k, ctx.first_example = k, first_example
        ctx.drop_score, ctx.rescales = drop_score, rescales
        ctx.set_materialize_grads(False)
        return z, log_ratio, torch.zeros_like(log_ratio)

    @staticmethod
    @functional._differentiable_once
    def backward(
        ctx: Any, grad_z: Tensor | None, grad_log_ratio: Tensor | None, ratio: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        mean, log_var, seed, z = ctx.saved_tensors
        if ctx.drop_score and grad_log_ratio is not None:
            # ∂(log p(z) − log q(z))/∂z alone.
            rows = (grad_log_ratio, z, mean, log_var)
            through = _op.latent_log_ratio_backward(*(t.flatten(0, 1) for t in rows))[0]
            through = through.view(z.shape)
            grad_z = through if grad_z is None else through.add_(grad_z)
            grad_log_ratio = None
        if grad_z is None and grad_log_ratio is None:
            return (None,) * 7
        # A flag, because torch.compile makes zeros of a gradient that nobody gave.
        if ctx.rescales and ratio is not None:
            grad_z = None if grad_z is None else grad_z * ratio.unsqueeze(-1).to(grad_z.dtype)
            grad_log_ratio = None if grad_log_ratio is None else grad_log_ratio * ratio
        grads = _op.sample_latent_backward(
            grad_z, grad_log_ratio, mean, log_var, ctx.k, seed, ctx.first_example, 0
        )
        return *grads, None, None, None, None, None


# --- samples ----------------------------------------------------------------------------------


class Latents(NamedTuple):
    """Samples laid out so that the bound is, where it can be, a mean of log-mean-weights.

    Attributes:
        z: (*L, B, K, Z), the decoder's input; L as the objective wants it.
        log_ratio: log p(z) − log q(z|x̃), (*L, B, K).
        inference: the inference network's end of the gradient where it is not log_ratio's and z's
            own, in the shape of log_ratio; for `loss` alone.
    """

    z: Tensor
    log_ratio: Tensor
    inference: Tensor | None = None


def sample_latents(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    objective: str | Objective,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
) -> Latents:
    """K samples of each q(z|x̃) = N(mean, exp(log_var)), for the objective.

    Args:
        mean, log_var: (*L, B, Z), encoded once; *L usually is M or nothing.
        k: K >= 1; >= 2 for vimco, unless M·K is in one logarithm.
        objective: a name or an `Objective`.
        seed, first_example: as for `dvae_fast.sample_latent`.

    Returns:
        `Latents`, z and log_ratio of shapes (*L, B, K, Z) and (*L, B, K), but for
        "elbo" and "elbo-kl" with K > 1 (*L, K, B, 1, Z) and (*L, K, B, 1): samples go outside the
        logarithm, as if they were corruptions;
        "iwae-joint" and "mixture" with M groups (B, M·K, Z) and (B, M·K);
        "mixture-elbo" (M·K, B, 1, Z) and (M·K, B, 1).
        For "elbo-kl" log_ratio is −KL(q || p).

    Raises:
        TypeError, ValueError: as `dvae_fast.sample_latent`, or if the objective is wrong.
    """
    objective = as_objective(objective)
    functional._check_posterior(mean, log_var)
    functional._check_count("k", k, 1)
    objective.check_samples(math.prod(mean.shape[:-2]), k)
    if objective._mixed:
        return _sample_mixture(mean, log_var, k, objective, seed, first_example)
    if objective.name == "elbo-kl":
        return _sample_analytic(mean, log_var, k, objective.free_bits, seed, first_example)
    if objective.estimator == "vimco":
        with torch.no_grad():
            z, _ = functional.sample_latent(mean, log_var, k, seed, first_example=first_example)
        log_ratio = functional.latent_log_ratio(z, mean, log_var)
        return Latents(z, log_ratio.detach(), -log_ratio)
    if objective.name == "elbo":
        mean, log_var, k = *_outside(mean, log_var, k), 1
    carrier = None
    if objective.estimator == "standard" and not objective._rescales:
        z, log_ratio = functional.sample_latent(mean, log_var, k, seed, first_example=first_example)
    else:
        shape, mean, log_var = functional._sampled_rows(mean, log_var, k, first_example)
        key = functional._seed_tensor(seed, mean.device)
        drop_score, rescales = objective.estimator != "standard", objective._rescales
        z, log_ratio, carrier = _PathSample.apply(
            mean, log_var, key, k, first_example, drop_score, rescales
        )
        z = z.view(*shape[:-1], k, shape[-1])
        log_ratio = log_ratio.view(*shape[:-1], k)
        carrier = carrier.view(log_ratio.shape) if rescales else None
    if objective.name == "iwae-joint" and z.dim() > 3:
        z, log_ratio = _joined(z, 2), _joined(log_ratio, 1)
        carrier = None if carrier is None else _joined(carrier, 1)
    return Latents(z, log_ratio, carrier)


def _outside(mean: Tensor, log_var: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(*L, B, Z) → (*L, K, B, Z) without a copy; K = 1 as it is."""
    if k == 1:
        return mean, log_var
    shape = (*mean.shape[:-2], k, *mean.shape[-2:])
    return mean.unsqueeze(-3).expand(shape), log_var.unsqueeze(-3).expand(shape)


def _joined(t: Tensor, after: int) -> Tensor:
    """(*L, B, K, ...) → (B, L·K, ...), `after` dimensions from K on."""
    t = t.flatten(0, t.dim() - after - 2).transpose(0, 1)
    return t.reshape(t.shape[0], t.shape[1] * t.shape[2], *t.shape[3:])


def _kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) element by element."""
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var)


def _sample_analytic(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    free_bits: float,
    seed: int | Tensor | None,
    first_example: int,
) -> Latents:
    outer = _outside(mean, log_var, k)
    z, _ = functional.sample_latent(*outer, 1, seed, first_example=first_example)
    dtype = accumulation_dtype(mean.dtype)
    divergence = _kl_divergence(mean.to(dtype), log_var.to(dtype))
    if free_bits:
        # The gradient of Σ_j max(λ, KL_j): none where KL_j is below.
        over = divergence.detach().flatten(0, -2).mean(0) > free_bits
        divergence = cast("Tensor", _Scaled.apply(divergence, over.to(dtype)))
    log_ratio = -divergence.sum(-1)
    if k > 1:
        log_ratio = log_ratio.unsqueeze(-2).expand(*log_ratio.shape[:-1], k, log_ratio.shape[-1])
    return Latents(z, log_ratio.unsqueeze(-1))


def _sample_mixture(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    objective: Objective,
    seed: int | Tensor | None,
    first_example: int,
) -> Latents:
    mean, log_var = (t.reshape(-1, *t.shape[-2:]) for t in (mean, log_var))
    groups, examples, size = mean.shape
    z, _ = functional.sample_latent(mean, log_var, k, seed, first_example=first_example)
    z = _joined(z, 2)
    if z.dtype != mean.dtype:
        mean, log_var = mean.to(z.dtype), log_var.to(z.dtype)
    if objective.estimator == "stl":
        mean, log_var = mean.detach(), log_var.detach()
    log_ratio = functional.mixture_log_ratio(z, mean, log_var)
    if objective.name == "mixture-elbo":
        z = z.transpose(0, 1).reshape(groups * k, examples, 1, size)
        log_ratio = log_ratio.transpose(0, 1).unsqueeze(-1)
    return Latents(z, log_ratio)


def sample_bernoulli_latents(
    logits: Tensor,
    prior_logits: Tensor | None,
    k: int,
    objective: str | Objective,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
) -> Latents:
    """K samples h in {0, 1}^Z of each q(h|x̃) = Π Bernoulli(σ(logits)).

    Args:
        logits: (*L, B, Z), encoded once.
        prior_logits: (Z,), p(h) = Π Bernoulli(σ(prior_logits)); None for probability ½.
        k, seed, first_example: as for `sample_latents`.
        objective: with the estimator vimco, which alone needs no reparameterisation.

    Returns:
        `Latents`, z in logits' dtype.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    objective = as_objective(objective)
    check_discrete(objective)
    functional._check_float("logits", logits)
    if logits.dim() < 2:
        raise ValueError(f"logits must have shape (*L, B, Z), got {tuple(logits.shape)}")
    if prior_logits is not None and prior_logits.shape != logits.shape[-1:]:
        functional._check_shape("prior_logits", prior_logits, tuple(logits.shape[-1:]), "(Z,)")
    functional._check_count("k", k, 1)
    objective.check_samples(math.prod(logits.shape[:-2]), k)
    dtype = accumulation_dtype(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.to(dtype)
        z = draw_bernoulli(wide, k, seed, first_example=first_example)
        log_q = _bernoulli_log_density(z, wide)
        if prior_logits is None:
            log_p = torch.full_like(log_q, -logits.shape[-1] * math.log(2))
        else:
            log_p = _bernoulli_log_density(z, prior_logits.to(dtype))
    return Latents(z.to(logits.dtype), log_p - log_q.detach(), log_q)


@torch.no_grad()
def draw_bernoulli(
    logits: Tensor, k: int, seed: int | Tensor | None, *, first_example: int = 0
) -> Tensor:
    """K draws of Π Bernoulli(σ(logits)): (*L, B, Z) → (*L, B, K, Z), of 0 and 1.

    From the normals ε of `sample_latent`: 1 where ε < Φ⁻¹(σ(l)).
    """
    zero = torch.zeros_like(logits)
    noise, _ = functional.sample_latent(zero, zero, k, seed, first_example=first_example)
    # From the smaller tail: σ(l) near 1 has few digits.
    tail: Tensor = torch.special.ndtri(torch.sigmoid(-logits.abs()))
    return (noise < (-logits.sign() * tail).unsqueeze(-2)).to(logits.dtype)


def check_discrete(objective: Objective) -> None:
    """Raise ValueError unless the objective needs no reparameterisation of z."""
    if objective.estimator != "vimco":
        others = [name for name, of in OBJECTIVES.items() if "vimco" in of]
        raise ValueError(
            "estimator must be vimco for Bernoulli latents, which have no reparameterisation "
            f"(with one of {', '.join(others)}); got {objective.estimator!r}"
        )


def _bernoulli_log_density(h: Tensor, logits: Tensor) -> Tensor:
    """Σ_j h_j l_j − log(1 + e^l_j): h (*L, B, K, Z), logits (*L, B, Z) or (Z,) → (*L, B, K)."""
    products = torch.matmul(h, logits.unsqueeze(-1)).squeeze(-1)
    total = functional.softplus(logits).sum(-1)
    return products - (total.unsqueeze(-1) if logits.dim() > 1 else total)


# --- bounds -----------------------------------------------------------------------------------


def _rows(log_w: Tensor, joint: bool) -> Tensor:
    """(M, B, K) → what a log-mean is over, last: (M, B, K) nested, (1, B, M·K) joint."""
    return _joined(log_w, 1).unsqueeze(0) if joint else log_w


def _log_mean(rows: Tensor, t: float) -> Tensor:
    """T_t over the last dimension."""
    if t == 0:
        return rows.mean(-1)
    if math.isinf(t):
        return rows.amax(-1)
    return functional.logmeanexp(rows) if t == 1 else functional.logmeanexp(t * rows) / t


def bound(log_w: Tensor, objective: str | Objective) -> Tensor:
    """The bound of each example, in nats: of the generative network, for "piwae".

    Args:
        log_w: log-weights (*L, B, K), usually (M, B, K) or (B, K), as laid out by
            `sample_latents`; for a joint bound (M, B, K) and (B, M·K) are the same.
        objective: a name or an `Objective`.

    Returns:
        (B,): the bound itself, never the surrogate Σ w̃ log w, whatever the estimator, free bits
        or the weight of the divergence in the loss.

    Raises:
        TypeError, ValueError: if the objective is wrong, log_w has fewer than two dimensions, or
            K < 1.
    """
    objective = as_objective(objective)
    if log_w.dim() < 2 or log_w.shape[-1] < 1:
        raise ValueError(f"log_w must have shape (*L, B, K) with K >= 1, got {tuple(log_w.shape)}")
    grouped = log_w.reshape(-1, *log_w.shape[-2:])
    terms = [
        _log_mean(_rows(grouped, joint), t).mean(0) * share
        for share, t, joint in objective._generative
        if share != 0
    ]
    return sum(terms[1:], start=terms[0])


# --- coefficients -----------------------------------------------------------------------------


def _coefficients(
    log_w: Tensor, terms: tuple[_Term, ...], estimator: str, kl_weight: Tensor | float
) -> Tensor:
    """What multiplies each sample's gradient, (M, B, K).

    "standard", "stl": c = ∂bound/∂log w, of ∂log w. "dreg": c + ∂c/∂log q, of ∂log w through z:
    E c ∂log q/∂φ is E ∂c/∂z ∂z/∂φ. "vimco": of ∂log q. log w holds −kl_weight · log q.
    """
    total = torch.zeros_like(log_w)
    for share, t, joint in terms:
        if share == 0:
            continue
        rows = _rows(log_w, joint)
        c = _log_mean_gradient(rows, t)
        if estimator == "dreg":
            c = c * (1 - kl_weight * t * (1 - c))  # ∂c/∂log w = t c (1 − c)
        elif estimator == "vimco":
            c = _left_out(rows, t) - kl_weight * c
        c = c * (share / rows.shape[0])
        if joint:
            groups, examples, k = log_w.shape
            c = c.view(examples, groups, k).transpose(0, 1)
        total = total + c
    return total


def _log_mean_gradient(rows: Tensor, t: float) -> Tensor:
    """∂T_t/∂log w: 1/K, the normalised weights w^t / Σ w^t, or 1 for the largest alone."""
    if t == 0:
        return torch.full_like(rows, 1 / rows.shape[-1])
    if math.isinf(t):
        return torch.zeros_like(rows).scatter_(-1, rows.argmax(-1, keepdim=True), 1.0)
    flat = (rows if t == 1 else t * rows).reshape(-1, rows.shape[-1])
    weights = _op.logmeanexp_backward(torch.ones_like(flat[:, 0]), flat)
    return cast("Tensor", weights.view(rows.shape))


def _left_out(rows: Tensor, t: float) -> Tensor:
    """VIMCO's learning signal, T_t less the T_t in which w_k is the others' geometric mean.

    O(K), and no digits lost: Σ_(j≠k) w_j is Σ w less w_k, except for the largest, for which the
    others are summed afresh.
    """
    scaled = rows if t in (0, 1) else t * rows
    k = rows.shape[-1]
    infinite = scaled == -math.inf
    finite = scaled.masked_fill(infinite, 0.0)
    mean = (finite.sum(-1, keepdim=True) - finite) / (k - 1)
    mean = torch.where(infinite.sum(-1, keepdim=True) - infinite.long() > 0, -math.inf, mean)
    if t == 0:
        signal = (scaled - mean) / k
        return signal.masked_fill(infinite.any(-1, keepdim=True), 0.0)
    top, index = scaled.max(-1, keepdim=True)
    shift = torch.where(top == -math.inf, 0.0, top)
    each = torch.exp(scaled - shift)
    total = each.sum(-1, keepdim=True)
    largest = torch.zeros_like(infinite).scatter_(-1, index, True)
    rest = torch.logsumexp(scaled.masked_fill(largest, -math.inf), -1, keepdim=True)
    others = torch.where(largest, rest, torch.log(total - each) + shift)
    whole = torch.log(total) + shift
    signal = (whole - torch.logaddexp(others, mean)) / t
    return signal.masked_fill(top == -math.inf, 0.0)


# --- the loss ---------------------------------------------------------------------------------


def loss(
    params: Tensor | tuple[Tensor, Tensor | float],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    objective: str | Objective = "iwae",
    *,
    inference: Tensor | None = None,
    kl_weight: Tensor | float = 1.0,
    overwrite_params: bool = False,
) -> Tensor:
    """The negative bound, a mean over examples: a scalar in nats.

    Its value is that of the bound; its gradient is what the estimator, PIWAE, free bits and
    `kl_weight` make it. One fused pass for the elbo, iwae and mixture families, laid out as
    `sample_latents` does.

    Args:
        params, x, log_ratio, likelihood, overwrite_params: as for `dvae_fast.iwae_loss`.
        objective: a name or an `Objective`.
        inference: what `sample_latents` returned with log_ratio.
        kl_weight: in [0, 1], multiplies log p(z) − log q(z|x̃) (the negative divergence, for
            "elbo-kl") in what the gradient is that of; a tensor may change under a CUDA graph.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    objective = as_objective(objective)
    vimco = objective.estimator == "vimco"
    if (inference is None) == (vimco or objective._rescales):
        rule = "be what sample_latents returned" if inference is None else "be None"
        raise ValueError(
            f"inference must {rule} for {objective.name} with the estimator "
            f"{objective.estimator}, got {'None' if inference is None else 'a tensor'}"
        )
    if objective.name == "piwae" and not vimco and _dtype(params) == torch.float16:
        raise TypeError(
            "params must not be float16 for piwae without vimco, which needs the range of a wider "
            "dtype; bfloat16 has it"
        )
    weighted = isinstance(kl_weight, Tensor) or kl_weight != 1
    ratio: Tensor | None = None
    given = cast("Tensor", _Scaled.apply(log_ratio, kl_weight)) if weighted else log_ratio
    if _is_one_pass(objective, log_ratio, weighted):
        total, weights = functional._iwae_loss(
            params, x, given, likelihood, "mean", overwrite_params
        )
        if inference is None or not torch.is_grad_enabled():
            return total
        if weights is not None:
            return cast("Tensor", _Deliver.apply(total, inference, weights.view(inference.shape)))

    log_w = functional.log_weights(params, x, given, likelihood)
    values = log_w.detach()
    total = -bound(values, objective).mean()
    if not torch.is_grad_enabled():
        return total
    shape = values.shape
    if weighted:
        values = values + (kl_weight - 1) * log_ratio.detach()
    values = values.reshape(-1, *shape[-2:])
    factor = -1.0 / max(shape[-2], 1)
    c = _coefficients(values, objective._generative, "standard", kl_weight)
    if inference is not None:
        of_z = _coefficients(values, objective._inference, objective.estimator, kl_weight)
        if vimco:
            dq = (factor * of_z).view(shape)
            dw = (factor * c).view(shape)
            return cast("Tensor", _WithGradients.apply(total, log_w, dw, inference, dq))
        if objective.name == "piwae":
            c = c.clamp_min(_LEAST)
        ratio = (of_z / torch.where(c == 0, 1.0, c)).view(inference.shape)
    total = _WithGradients.apply(total, log_w, (factor * c).view(shape), None, None)
    if ratio is not None:
        total = _Deliver.apply(total, inference, ratio)
    return cast("Tensor", total)


def _dtype(params: Any) -> torch.dtype | None:
    first = params[0] if isinstance(params, (tuple, list)) and params else params
    return first.dtype if isinstance(first, Tensor) else None


def _is_one_pass(objective: Objective, log_ratio: Tensor, weighted: bool) -> bool:
    """Whether the bound is a mean of log-mean-weights over the last dimension, as laid out."""
    if objective.estimator == "vimco" or objective.name == "piwae":
        return False
    if objective.name in OUTSIDE:
        return log_ratio.shape[-1] == 1
    if objective.name == "iwae":
        return not weighted
    return objective.name in ("iwae-joint", "mixture") and log_ratio.dim() == 2 and not weighted
