"""The mixture's density at a sample, from the corruption that made it and J others.

q̃(z|x) = E_p(x̃|x) q(z|x̃) is a semi-implicit posterior: it can be drawn from, not evaluated. Of a
z ~ q(z|x̃_0), with J further corruptions of the same example,

    ĥ(z) = 1/(J+1) Σ_(j=0..J) p(x̃_j|x) / τ(x̃_j|z, x) · q(z|x̃_j),    x̃_1, …, x̃_J ~ τ(x̃|z, x),

has E [1/ĥ] = 1/q̃ over all that is drawn, so that every bound with ĥ for q̃ is one: the more so
the larger J, towards the mixture's own. With τ = p(x̃|x) and the J drawn once for all of an
example's samples it is that of semi-implicit variational inference (Yin and Zhou 2018,
arXiv 1805.11183); with τ learnt, and J of each sample's own, that of importance
weighted hierarchical variational inference (Sobolev and Vetrov 2019, arXiv 1905.03290).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast._checks import check_shape
from dvae_fast.functional._autograd import Operation, final, keep, same
from dvae_fast.functional.latent import check_mean_and_log_var
from dvae_fast.objectives.bound import log_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.objectives.objective import Objective

__all__ = ["Outer", "Reversed", "check_outer", "hierarchical_log_ratio", "semi_implicit_log_ratio"]

_FIRST_ORDER = (
    "a reverse proposal of which pixels are hit is learnt by the score function, whose gradient is "
    "an estimate of first order, in reverse mode: there is nothing to differentiate again, and no "
    "forward mode"
)


class Reversed(NamedTuple):
    """What a reverse proposal τ(x̃|z, x) drew for samples z (S, B, Z): J corruptions of each.

    Attributes:
        mean, log_var: of q(z|x̃_j), (S, B, J, Z).
        log_weight: log p(x̃_j|x) − log τ(x̃_j|z, x), (S, B, 1 + J); the first is that of the x̃
            that made z.
        scored: whether x̃_j is a draw with no derivative, so that τ, and z through it, are given
            the score function's.
        kl_weight: as `loss` is given it.
    """

    mean: Tensor
    log_var: Tensor
    log_weight: Tensor
    scored: bool = False
    kl_weight: Tensor | float = 1.0


#: mean and log_var (J, B, Z) of further corruptions, or what draws them for samples z (S, B, Z)
Outer = tuple[Tensor, Tensor] | Callable[[Tensor], Reversed]


def check_outer(outer: Any, objective: Objective, examples: int, size: int) -> None:
    """Raise TypeError or ValueError unless it is what the objective takes, for B and Z."""
    bound = objective.bound
    if outer is None:
        return
    if not bound.outer:
        raise ValueError(
            f"outer must be None for {objective.name}, which has no further corruptions, "
            f"got {type(outer).__name__}"
        )
    if bound.reverse:
        if not callable(outer):
            raise TypeError(
                f"outer must be a function of the samples for {objective.name}, "
                f"got {type(outer).__name__}"
            )
        return
    if not isinstance(outer, tuple) or len(outer) != 2:
        raise TypeError(
            f"outer must be a pair of tensors, mean and log_var, for {objective.name}, "
            f"got {type(outer).__name__}"
        )
    check_mean_and_log_var(*outer)
    shape = (len(outer[0]), examples, size)
    check_shape("outer", outer[0], shape, "(J, B, Z)")


def _check_drawn(drawn: Any, z: Tensor) -> None:
    """Raise TypeError or ValueError unless a reverse proposal's draws are of z (S, B, Z)."""
    if not isinstance(drawn, Reversed):
        raise TypeError(f"outer must return a Reversed, got {type(drawn).__name__}")
    check_mean_and_log_var(drawn.mean, drawn.log_var)
    count = drawn.mean.shape[-2]
    samples, examples, size = z.shape
    check_shape("outer's mean", drawn.mean, (samples, examples, count, size), "(S, B, J, Z)")
    shape = (samples, examples, 1 + count)
    check_shape("outer's log_weight", drawn.log_weight, shape, "(S, B, 1 + J)")


def semi_implicit_log_ratio(
    z: Tensor, mean: Tensor, log_var: Tensor, outer: tuple[Tensor, Tensor]
) -> Tensor:
    """log p(z) − log ĥ(z) of one J for all: z (M, B, K, Z), mean and log_var (M, B, Z) of the
    corruptions that made them, `outer` (J, B, Z) → (M, B, K)."""
    groups, examples, k, size = z.shape
    # Each group has a mixture of its own: as examples, of which the operator takes any number.
    own_and_outer = (
        torch.cat((own.unsqueeze(0), other.unsqueeze(1).expand(-1, groups, -1, -1)))
        for own, other in zip((mean, log_var), outer, strict=True)
    )
    rows = (t.reshape(-1, groups * examples, size) for t in own_and_outer)
    found = functional.mixture_log_ratio(z.reshape(groups * examples, k, size), *rows)
    return found.view(groups, examples, k)


def hierarchical_log_ratio(
    z: Tensor,
    own: Tensor,
    drawn: Reversed,
    below: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    joint: bool,
) -> Tensor:
    """log p(z) − log ĥ(z) of J of each sample's own: z (S, B, Z), and `own`, log p(z) − log q(z|x̃)
    of the x̃ that made it, (S, B) → (S, B).

    `below` is what an estimator makes of the parameters of a density. `joint` says whether the S
    samples of an example are in one logarithm, or each in its own.
    """
    _check_drawn(drawn, z)
    count = drawn.mean.shape[2]
    log_h = drawn.log_weight[..., :1] - own.unsqueeze(-1)
    if count > 0:
        each = z.unsqueeze(2).expand(-1, -1, count, -1).unsqueeze(3)
        others = functional.latent_log_ratio(each, *below(drawn.mean, drawn.log_var)).squeeze(-1)
        log_h = torch.cat((log_h, drawn.log_weight[..., 1:] - others), -1)
    log_ratio = -functional.logmeanexp(log_h)
    if not drawn.scored or count == 0 or not torch.is_grad_enabled():
        return log_ratio
    with torch.no_grad():
        whole, without = log_sums(log_h)
        # log ĥ less what it would be of the others alone: x̃_j's own doing.
        gain = (whole - without)[..., 1:] - math.log((count + 1) / count)
        gain = torch.where(gain.isfinite(), gain, 0.0)
    args = (log_ratio, drawn.log_weight[..., 1:], gain, drawn.kl_weight, joint)
    return cast("Tensor", _Scored.apply(*args))


class _Scored(Operation):
    """`log_ratio` (S, B), in whose backward pass log τ has the score function's gradient.

    The bound U of an example is a log-mean-weight, log w_s = … − β log ĥ_s, of one sample or, if
    joint, of all S. The learning signal of x̃_sj is U less the U that leaves x̃_sj out of ĥ_s, on
    which x̃_sj has no influence: with g = log ĥ_s − log ĥ_s^(−j) and w̃ the normalised weights

        A_sj = −log(1 + w̃_s (e^(β g_sj) − 1)),

    and the gradient is E Σ A_sj ∇ log τ(x̃_sj|z_s, x). w̃ is the gradient that comes back, over its
    sum. log τ is −log_weight but for what has no derivative.
    """

    @staticmethod
    def forward(
        log_ratio: Tensor,
        log_weight: Tensor,
        gain: Tensor,
        kl_weight: Tensor | float,
        joint: bool,
    ) -> Tensor:
        return same(log_ratio)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, output, *inputs)

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        log_ratio, log_weight, gain, kl_weight, joint = args
        upstream = cast("Tensor", grads[0])
        of_weight = None
        if need[1]:
            signal = upstream.unsqueeze(-1) * gain
            if joint and len(upstream) > 1:
                signal = _joint_signal(upstream, gain, kl_weight)
            of_weight = signal.to(log_weight.dtype)
        pulled = final((upstream, of_weight), _FIRST_ORDER, upstream, log_ratio, log_weight)
        return *pulled, *(None,) * 3


def _joint_signal(upstream: Tensor, gain: Tensor, kl_weight: Tensor | float) -> Tensor:
    """−A times the gradient's scale, which is the sum of what comes back, over β."""
    total = upstream.sum(0, keepdim=True)
    share = (upstream / torch.where(total == 0, 1.0, total)).unsqueeze(-1)
    scaled = kl_weight * gain
    near = torch.log1p(share * torch.expm1(scaled.clamp(max=10.0)))
    far = torch.logaddexp(torch.log1p(-share), torch.log(share) + scaled)
    signal = torch.where(scaled < 10.0, near, far)
    # Of no weight nothing comes back, and there is no signal.
    scale = total.unsqueeze(-1) / kl_weight if _is_not_zero(kl_weight) else 0.0
    return torch.where((share > 0) & (total != 0).unsqueeze(-1), scale * signal, 0.0)


def _is_not_zero(weight: Tensor | float) -> bool:
    """Of a tensor, whose value is not read: 0/0 is left out by who divides."""
    return isinstance(weight, Tensor) or weight != 0
