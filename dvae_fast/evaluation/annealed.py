"""log p(x) of a model by annealed importance sampling, from below and, on its own data, above.

Intermediate distributions f_t(z) ∝ f_0(z)^(1−β_t) [p(z) p(x|z)]^β_t lead from f_0, the prior or
q(z|x), to the posterior; Hamiltonian moves follow them (Neal, Annealed Importance Sampling, 2001;
for decoders, Wu, Burda, Salakhutdinov, Grosse, arXiv 1611.04273).

The moves run on u, with z = μ + σ u and μ, σ those of f_0, so that f_0 is N(0, I) and one step
size fits latents of any scale; where f_0 is a prior of another kind, u is z. With the log-weight
ℓ(u) = log p(x|z) + log p(z) − log f_0(z),

    log f_t = log f_0 + β_t ℓ(u) + constant,    ∇ log f_t = ∇ log f_0 + β_t ∇ℓ(u):

one decode gives ℓ and ∇ℓ, which serve every temperature.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import reference
from dvae_fast._checks import check_choice, check_index, check_size, is_number
from dvae_fast._seeds import seed_tensor
from dvae_fast.data.given import Given
from dvae_fast.evaluation.annealed_results import AISEstimate, BidirectionalEstimate
from dvae_fast.evaluation.hamiltonian import EXTRA_NORMALS, Point, Target, move
from dvae_fast.evaluation.joint import Joint, prior_draws
from dvae_fast.evaluation.modules import ordinary_tensors
from dvae_fast.evaluation.progress import Meter, progress_callback
from dvae_fast.evaluation.simulation import normal, simulate
from dvae_fast.evaluation.statistics import from_state
from dvae_fast.evaluation.target import Evaluated, rows_at_once
from dvae_fast.models import TwoLayerModel
from dvae_fast.models.distributions import Sampled
from dvae_fast.models.posterior import marginal_log_var

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from dvae_fast.data.given import Data
    from dvae_fast.evaluation.progress import EvaluationProgress
    from dvae_fast.evaluation.target import Model
    from dvae_fast.likelihoods import Likelihood

__all__ = ["annealed_importance_sampling", "bidirectional_monte_carlo"]

_op: Any = torch.ops.dvae_fast

STARTS = ("posterior", "prior")
SCHEDULES = ("sigmoid", "linear")

#: the acceptance rate that step sizes are tuned to (Wu et al., section 4)
TARGET = 0.65

_STEEPNESS = 4.0  # δ of the sigmoid schedule, Wu et al.'s
_TUNING_CHAINS = 4  # enough for a mean acceptance rate, a quarter of the cost of the default
_RATE = 0.3  # of the step size's logarithm for each unit of acceptance amiss


def _schedule(kind: str, temperatures: int) -> list[float]:
    """β_0 = 0 to β_T = 1; "sigmoid" is Wu et al.'s, section 4: σ(δ (2t/T − 1)), made to fit."""
    t = torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64, device="cpu")
    if kind == "sigmoid":
        t = torch.sigmoid(_STEEPNESS * t)
    betas: list[float] = ((t - t[0]) / (t[-1] - t[0])).tolist()
    return betas


def _tune(
    target: Target,
    point: Point,
    betas: list[float],
    step: Tensor,
    leapfrog: int,
    noise: Callable[[int], Tensor],
) -> Tensor:
    """A step size for each inner temperature and example, (T − 1, B), from one first pass.

    log step follows the acceptance rate: up where it is above the aim, down where below.
    """
    steps = []
    for t in range(1, len(betas) - 1):
        point, acceptance = move(target, point, betas[t], step, leapfrog, noise(t))
        step = step * torch.exp(_RATE * (acceptance.mean(1) - TARGET))
        steps.append(step)
    return torch.stack(steps)


def _anneal(
    target: Target,
    point: Point,
    betas: list[float],
    steps: Tensor,
    leapfrog: int,
    noise: Callable[[int], Tensor],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """log w and mean acceptance, (B, C) each: log w = Σ_t (β_t+1 − β_t) ℓ(u_t).

    u_0 ~ f_0, and u_t from u_t−1 by a move at β_t, t = 1 … T − 1; in reverse u_T−1 is a draw of
    the posterior, and u_t−1 comes from u_t by a move at β_t, each move being its own reversal.
    """
    last = len(betas) - 2
    gains = [after - before for before, after in pairwise(betas)]
    log_w = gains[last if reverse else 0] * point.value
    acceptance = torch.zeros_like(log_w)
    for t in range(last, 0, -1) if reverse else range(1, last + 1):
        point, probability = move(target, point, betas[t], steps[t - 1], leapfrog, noise(t))
        log_w = log_w + gains[t - 1 if reverse else t] * point.value
        acceptance += probability
    return log_w, acceptance / last if last else acceptance.fill_(math.nan)


# --- the estimates --------------------------------------------------------------------------------


#: chains have 24 bits in the noise; of the others, more than anybody waits for
_MOST = {"chains": 2**24, "temperatures": 10**6, "leapfrog": 10**6}


@dataclass(frozen=True)
class _Settings:
    """The arguments that both estimates share, checked."""

    chains: int
    temperatures: int
    leapfrog: int
    start: str
    schedule: str
    tune: bool
    step_size: float | None
    batch_size: int | None

    def __post_init__(self) -> None:
        # As plain ints, whatever integers they are.
        for name, most in _MOST.items():
            object.__setattr__(self, name, check_size(name, getattr(self, name), most=most))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", check_size("batch_size", self.batch_size))
        for name, value, valid in (
            ("start", self.start, STARTS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            check_choice(name, value, valid)
        if not isinstance(self.tune, bool):
            raise TypeError(f"tune must be a bool, got {type(self.tune).__name__}")
        if self.step_size is not None:
            if not is_number(self.step_size):
                raise TypeError(
                    f"step_size must be a number or None, got {type(self.step_size).__name__}"
                )
            if not 0 < self.step_size < math.inf:
                raise ValueError(f"step_size must be > 0 and finite, got {self.step_size}")
            object.__setattr__(self, "step_size", float(self.step_size))

    def batch(self, device: torch.device) -> int:
        return self.batch_size or max(1, rows_at_once(device) // self.chains)

    def estimate(self, parts: list[dict[str, Tensor]], reverse: bool, **given: Any) -> AISEstimate:
        fields = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
        return AISEstimate(
            **cast("dict[str, Any]", fields),
            **given,
            chains=self.chains,
            temperatures=self.temperatures,
            leapfrog=self.leapfrog,
            start=self.start,
            schedule=self.schedule,
            reverse=reverse,
        )


def _statistics(
    log_w: Tensor, acceptance: Tensor, steps: Tensor, reverse: bool
) -> dict[str, Tensor]:
    """The fields of an `AISEstimate` that have a number an example."""
    signed = -log_w if reverse else log_w
    state = _op.lse_update(reference.lse_init(signed.shape[0], signed.device), signed)
    fields = from_state(state)
    log_mean = fields["log_likelihood"]
    return {
        "log_likelihood": -log_mean if reverse else log_mean,
        "standard_error": fields["standard_error"],
        "ess": fields["ess"],
        "acceptance": acceptance.mean(1),
        "step_size": steps.mean(0),  # of none: NaN
    }


def _run(
    evaluated: Evaluated,
    batch: Given,
    exact: Tensor | None,
    settings: _Settings,
    like: Tensor,
    key: Tensor,
    first: int,
) -> list[dict[str, Tensor]]:
    """The statistics of one batch forward and, if given its exact posterior draws, in reverse."""
    mean, log_var = _start(evaluated, batch, settings.start)
    from_prior = settings.start == "prior" and evaluated.log_ratio_above is not None
    target = Joint(evaluated, mean, log_var, batch, from_prior=from_prior)
    examples, size = mean.shape
    temperatures, chains = settings.temperatures, settings.chains
    betas = _schedule(settings.schedule, temperatures)

    def noise(run: int, chains: int) -> Callable[[int], Tensor]:
        shape = (examples, chains, size + EXTRA_NORMALS)
        return lambda t: normal(like, shape, key, first, run * temperatures + t)

    def started(run: int, chains: int, noise: Callable[[int], Tensor]) -> Point:
        if from_prior:
            return target(prior_draws(evaluated, batch, chains, like, key, first, run))
        return target(noise(0)[..., :size])

    # The acceptance rate of Hamiltonian moves stays where it is if the step goes as Z^(−1/4).
    start = settings.step_size or size**-0.25
    step = torch.full((examples,), start, dtype=torch.float64, device=like.device)
    if settings.tune and temperatures > 1:
        few = min(chains, _TUNING_CHAINS)
        tuning = noise(1, few)
        point = started(1, few, tuning)
        steps = _tune(target, point, betas, step, settings.leapfrog, tuning)
    else:
        steps = step.expand(temperatures - 1, -1)
    forward = noise(0, chains)
    point = started(0, chains, forward)
    args = (betas, steps, settings.leapfrog)
    results = [_statistics(*_anneal(target, point, *args, forward, False), steps, False)]
    if exact is not None:
        u = target.whitened(exact).unsqueeze(1).expand(-1, chains, -1).contiguous()
        log_w, acceptance = _anneal(target, target(u), *args, noise(2, chains), True)
        results.append(_statistics(log_w, acceptance, steps, True))
    return results


def _start(evaluated: Evaluated, batch: Given, start: str) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of f_0, (B, Z) each; 0 of a prior."""
    posterior = evaluated.posterior(batch.x, batch.context)
    if start == "prior":
        like = posterior.middle() if isinstance(posterior, Sampled) else posterior[0]
        return torch.zeros_like(like), torch.zeros_like(like)
    if isinstance(posterior, Sampled):
        raise ValueError(
            "model's encode must return mean and log_var for annealed importance sampling, which "
            f"starts there, or start must be prior; got {type(posterior.q).__name__}"
        )
    mean, spread = posterior
    return mean, marginal_log_var(mean, spread)


def _evaluated(model: Model, likelihood: str | Likelihood | None) -> Evaluated:
    evaluated = Evaluated(model, likelihood)
    foreign = evaluated.own is None and evaluated.log_ratio_above is not None
    if foreign or evaluated.discrete or isinstance(evaluated.own, TwoLayerModel):
        raise ValueError(
            "model must have one layer of latents, continuous, and a prior besides N(0, I) only as "
            "a model of this package, for annealed importance sampling, got "
            f"{type(evaluated.model).__name__}"
        )
    return evaluated


def _run_all(
    evaluated: Evaluated,
    data: Given,
    exact: Tensor | None,
    settings: _Settings,
    like: Tensor,
    key: Tensor,
    progress: Callable[[EvaluationProgress], None] | None,
    first_example: int = 0,
) -> list[AISEstimate]:
    parts = []
    batch_size = settings.batch(like.device)
    meter = Meter(len(data), progress)
    with ExitStack() as stack:
        stack.enter_context(evaluated.evaluating())
        stack.enter_context(ordinary_tensors(evaluated.modules))
        for first in range(0, len(data), batch_size):
            rows = slice(first, first + batch_size)
            batch = data[rows].to(like.device)
            draws = None if exact is None else exact[rows]
            parts.append(_run(evaluated, batch, draws, settings, like, key, first_example + first))
            done = parts[-1][0]
            meter.advance(
                done["log_likelihood"], done["standard_error"], len(batch) * settings.chains
            )
    about = {
        "seed": int(key), "first_example": first_example, "data_size": data.size,
        "remarks": evaluated.remarks(data.x),
    }  # fmt: skip
    return [
        settings.estimate(list(part), reverse=i == 1, **about)
        for i, part in enumerate(zip(*parts, strict=True))
    ]


@torch.inference_mode(False)
@torch.no_grad()
def annealed_importance_sampling(
    model: Model,
    x: Data,
    *,
    context: Tensor | np.ndarray[Any, Any] | None = None,
    mask: Tensor | np.ndarray[Any, Any] | None = None,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 10,
    start: str = "posterior",
    schedule: str = "sigmoid",
    tune: bool = True,
    step_size: float | None = None,
    likelihood: str | Likelihood | None = None,
    batch_size: int | None = None,
    seed: int | Tensor | None = None,
    first_example: int = 0,
    progress: bool | Callable[[EvaluationProgress], None] | None = None,
) -> AISEstimate:
    """log p(x) ≈ log 1/C Σ w for each example, w unbiased for p(x); x is not corrupted.

    A first pass of at most 4 chains an example finds a step size for each of its temperatures, by
    the acceptance rate. The pass that counts draws new noise and takes those steps as they are,
    so that it is exact: steps that follow the chains they move bias w. An example costs
    (1 + (T − 1) L) (C + min(C, 4)) decodes with gradient for T temperatures, L leapfrog steps and
    C chains; memory does not depend on T but for its step sizes, 8 bytes a temperature.

    Args:
        model: as for `dvae_fast.estimate_log_likelihood`, of one layer of continuous latents; its
            decoder must be differentiable, and the log_prob of a prior of its own.
        x, context, mask: as there.
        chains: C >= 1.
        temperatures: T >= 1, the number of factors of w, with T − 1 moves between them. With one
            this is importance sampling from f_0 with C samples.
        leapfrog: steps of each Hamiltonian move, L >= 1.
        start: f_0, "posterior" for q(z|x), encoded once (of a full one, the product of its
            marginals), or "prior", for which the encoder may return any distribution.
        schedule: of β, "sigmoid" or "linear".
        tune: False to take `step_size` everywhere.
        step_size: in standard deviations of f_0, where tuning starts; each move varies it by up
            to a fifth. Default: Z^(−1/4).
        likelihood: as for `dvae_fast.log_weights`. Default: the model's ``likelihood``
            if it has one, else "bernoulli".
        batch_size: examples at once. Default: about 2,500 rows (examples by chains) on a CPU,
            65,536 on a GPU.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator; the
            result tells which. Noise depends on seed, example, chain and temperature alone, so
            that any batch_size gives the same numbers up to rounding; where rounding tips an
            acceptance, which float32 does now and then, that chain goes another way, as likely.
        first_example: index of x's first example in the noise, as there.
        progress: as for `dvae_fast.estimate_log_likelihood`.

    Returns:
        An `AISEstimate`. NaN in an example is that example's alone; none is left out.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Neal (2001); Wu, Burda, Salakhutdinov, Grosse (arXiv 1611.04273), section 4.
    """
    evaluated = _evaluated(model, likelihood)
    data = evaluated.examples(x, context, mask)
    check_index("first_example", first_example, len(data))
    tell = progress_callback(progress)
    settings = _Settings(
        chains, temperatures, leapfrog, start, schedule, tune, step_size, batch_size
    )
    like = evaluated.like(data.x)
    key = seed_tensor(seed, like.device)
    # Tensors of inference mode autograd could not save.
    values, *more = (t.clone() if t is not None and t.is_inference() else t
                     for t in (data.x, data.context, data.mask))  # fmt: skip
    data = Given(cast("Tensor", values), *more)
    (forward,) = _run_all(evaluated, data, None, settings, like, key, tell, int(first_example))
    return forward


@torch.inference_mode(False)
@torch.no_grad()
def bidirectional_monte_carlo(
    model: Model,
    n: int,
    *,
    context: Tensor | np.ndarray[Any, Any] | None = None,
    latent_size: int | None = None,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 10,
    start: str = "posterior",
    schedule: str = "sigmoid",
    tune: bool = True,
    step_size: float | None = None,
    likelihood: str | Likelihood | None = None,
    batch_size: int | None = None,
    seed: int | Tensor | None = None,
    progress: bool | Callable[[EvaluationProgress], None] | None = None,
) -> BidirectionalEstimate:
    """log p(x) of n examples that the model makes, between two stochastic bounds.

    z ~ p(z) and x ~ p(x|z) make z an exact draw of the posterior of x, from which chains can run
    back to f_0: their 1/w is unbiased for 1/p(x). How close the bounds are tells how far
    `annealed_importance_sampling` with the same arguments can be trusted, on data like the model's.
    Real data comes without such a draw, so for it there is no upper bound.

    Costs twice the pass that counts, as of `annealed_importance_sampling`, and tunes once: given
    x, the step sizes are independent of z.

    Args:
        n: N >= 1.
        context: of each of them, as for `dvae_fast.estimate_log_likelihood`.
        latent_size: Z, for a model that does not tell by an attribute ``latent_size``.
        seed: of x too, which is drawn by torch's generator from it, and so depends on the device.
        others: as for `annealed_importance_sampling`.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Grosse, Ghahramani, Adams (arXiv 1511.02543), section 3; Wu et al. (arXiv 1611.04273),
    section 4.
    """
    evaluated = _evaluated(model, likelihood)
    if isinstance(cast("Any", n), Tensor):
        raise TypeError(
            "n must be the number of examples to simulate, got a tensor: the reverse chains start "
            "at an exact draw of the posterior, which only simulated data comes with"
        )
    n, tell = check_size("n", n), progress_callback(progress)
    settings = _Settings(
        chains, temperatures, leapfrog, start, schedule, tune, step_size, batch_size
    )
    known = getattr(evaluated.model, "latent_size", None)
    size = known if latent_size is None else latent_size
    if size is None:
        raise ValueError("latent_size must be given for a model without the attribute, got None")
    size = check_size("latent_size", size)
    if known is not None and size != known:
        raise ValueError(f"latent_size must be the model's, {known}, got {size}")
    place = evaluated.like(torch.empty(0, device="cpu")).device
    key = seed_tensor(seed, place)
    told = evaluated.context(context, n)
    told = None if told is None else told.to(place)
    with evaluated.evaluating():
        x, z = simulate(evaluated, n, size, place, key, told)
    evaluated.likelihood.check_support(x)
    like = evaluated.like(x)
    forward, reverse = _run_all(evaluated, Given(x, told), z, settings, like, key, tell)
    return BidirectionalEstimate(x.cpu(), z.cpu(), forward, reverse)
