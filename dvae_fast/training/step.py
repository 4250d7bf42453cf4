"""One step of training: a model's loss, its gradients and the optimizer's update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import optimizer as _optimizers

from dvae_fast.functional._autograd import without_autocast
from dvae_fast.models import LatentVariableModel
from dvae_fast.training.optimizers import FUSED, told_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from dvae_fast.models import Autoencoder
    from dvae_fast.models.one_pass import Pass

__all__ = ["TrainingStep"]


class TrainingStep:
    """``loss = step(x)`` is what these four lines are, to rounding:

    ::

        loss = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    On a CPU, where the model is one of plain perceptrons with a Gaussian posterior and the
    optimizer is torch's Adam or AdamW, or `BurdaAdam`, a compiled operator does it all: a gradient
    goes into the update of its weights while it is in cache, and the parameters' ``grad`` is None
    afterwards.
    Whatever else it finds, hooks, several groups of parameters or ``amsgrad`` among it, those four
    lines run. So do they first for torch's: that makes the optimizer's state, which stays the
    optimizer's own, to be saved and loaded as ever.

    Args:
        model: any of this package's, or what has its ``loss``.
        optimizer: of its parameters.
    """

    def __init__(self, model: Autoencoder, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self._norm: Tensor | None = None
        self._last: _State | None = None

    def __call__(
        self,
        x: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        first_example: int = 0,
    ) -> Tensor:
        """The loss before the update, a scalar without a graph.

        Args:
            x, seed, context, mask, first_example: see `dvae_fast.models.Autoencoder.loss`.

        Raises:
            TypeError, ValueError: as that; nothing is changed then.
        """
        told = {name: t for name, t in (("context", context), ("mask", mask)) if t is not None}
        if context is None and (group := self._plain(x)):
            model = cast("LatentVariableModel", self.model)
            found, seed = model._pass_of(x, seed, mask, first_example)
            if found is not None:
                state = _state_of(found.layers, self.optimizer, group, self._last)
                if state is not None:
                    self._last = state
                    return self._update(found, state, group)
        loss = self.model.loss(x, seed, first_example=first_example, **told)
        with without_autocast(loss):
            return self.descend(loss)

    def descend(self, loss: Tensor) -> Tensor:
        """The last three of the four lines, of a loss made elsewhere; returns it without its
        graph."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._norm = None
        return loss.detach()

    @property
    def gradient_norm(self) -> Tensor:
        """Of the last step's gradients all together, a scalar."""
        if self._norm is None:
            groups = self.optimizer.param_groups
            grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(grads)
        return self._norm

    def _plain(self, x: Tensor) -> dict[str, Any] | None:
        """The optimizer's one group of parameters, if all might be what the operator is for."""
        if type(x) is not Tensor or not x.is_cpu or not isinstance(self.model, LatentVariableModel):
            return None
        return None if torch.is_anomaly_enabled() else _group_of(self.optimizer)

    def _update(self, found: Pass, state: _State, group: dict[str, Any]) -> Tensor:
        loss, self._norm = found.step(*state, *told_of(self.optimizer, group))
        increment_version([*found.layers, *state.means, *state.squares, *state.steps])
        for p in group["params"]:
            p.grad = None
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedulers ask
        return loss


class _State(NamedTuple):
    """Of Adam: means and squares of all layers in turn, steps of those that are there."""

    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]


def _state_of(
    layers: Sequence[Tensor], optimizer: Optimizer, group: dict[str, Any], last: _State | None
) -> _State | None:
    """The optimizer's, if an update of the layers, all at once, would be its step.

    What was looked at for the `last` one is not looked at again.
    """
    left, seen = {*map(id, group["params"])}, set()
    if last is not None:
        seen = {*map(id, last.means), *map(id, last.squares), *map(id, last.steps)}
    found = means, squares, steps = _State([], [], [])
    for t in layers:
        if not t.numel():  # no bias
            means.append(t)
            squares.append(t)
            continue
        if t._backward_hooks or t._post_accumulate_grad_hooks or not t.requires_grad:
            return None
        state = optimizer.state.get(t)
        if not state or id(t) not in left:
            return None
        left.remove(id(t))  # a layer that is there twice has the sum of two gradients
        mean, square, step = state.get("exp_avg"), state.get("exp_avg_sq"), state.get("step")
        if not t.is_contiguous() or t.is_inference():
            return None
        # Somebody may have loaded others, or moved or replaced either.
        for own in (mean, square):
            if id(own) not in seen and not _is_plain(own, t):
                return None
        if id(step) not in seen and not _counts(step):
            return None
        means.append(mean)
        squares.append(square)
        steps.append(step)
    # Of a parameter that joined later the bias correction is another.
    return found if len({float(step) for step in steps}) == 1 else None


def _is_plain(t: Any, like: Tensor) -> bool:
    return (
        isinstance(t, Tensor)
        and t.dtype == like.dtype
        and t.is_cpu
        and t.shape == like.shape
        and t.is_contiguous()
        and not t.is_inference()
    )


def _counts(step: Any) -> bool:
    """Whether it is what the operator counts steps in; Adam may do so in float64."""
    return (
        isinstance(step, Tensor)
        and step.dtype == torch.float32
        and step.is_cpu
        and step.numel() == 1
        and not step.is_inference()
    )


def _group_of(optimizer: Optimizer) -> dict[str, Any] | None:
    """Its one group of parameters, if its step is Adam's and nothing else."""
    if type(optimizer) not in FUSED or len(optimizer.param_groups) != 1:
        return None
    own = optimizer.__dict__
    if "zero_grad" in own or ("step" in own and not _is_schedulers(own["step"], optimizer)):
        return None
    if own["_optimizer_step_pre_hooks"] or own["_optimizer_step_post_hooks"]:
        return None
    if _optimizers._global_optimizer_pre_hooks or _optimizers._global_optimizer_post_hooks:
        return None
    if "grad_scale" in own or "found_inf" in own:
        return None
    group = optimizer.param_groups[0]
    if any(group.get(name) for name in ("amsgrad", "maximize", "differentiable", "capturable")):
        return None
    return group


def _is_schedulers(step: Any, optimizer: Optimizer) -> bool:
    """Whether it is what a scheduler of the learning rate puts in the place of the class's own, to
    see that it was called: neither around another, nor within one that took over its attributes."""
    wraps = getattr(step, "__wrapped__", None) is type(optimizer).step
    return wraps and getattr(step, "_wrapped_by_lr_sched", False)
