"""The optimisers by name, and the one of Burda's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter
from torch.optim import Adam, AdamW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["FUSED", "OPTIMIZERS", "BurdaAdam", "make_optimizer", "told_of"]

_op: Any = torch.ops.dvae_fast


def told_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[Any, ...]:
    """What `reference.adam_` is told from ``learning_rate`` on, of one of `FUSED` and a group of
    its parameters."""
    numbers = [*map(float, (group["lr"], *group["betas"], group["eps"]))]
    if isinstance(optimizer, BurdaAdam):
        return *numbers, 0.0, "burda", float(group["examples"])
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
    return *numbers, float(group["weight_decay"]), "decoupled" if decoupled else "adam", 1.0


class BurdaAdam(torch.optim.Optimizer):
    """Adam as the code of "Importance Weighted Autoencoders" has it, where it is not Adam's own.

    With g the gradient of the batch's *sum*, m = 0 and v = 1 at the start, and t = 1, 2, …

        θ ← θ − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + 1e-4),  then  m ← β₁ m + (1 − β₁) g,
        v ← β₂ v + (1 − β₂) g²,

    β₁ = 0.99 and β₂ = 0.999: ε is outside the correction of the bias, the second moments start at
    one, and a step takes the moments from before its own gradient, because the updates of a Theano
    function all read what was there before it. The first step moves nothing.

    Args:
        params: as for any optimiser of torch.
        lr: a number, or a tensor of no dimensions.
        examples: of a batch; gradients are taken to be of a mean over so many. Kept in the state
            dict, like lr.
        on_device: keep t on the parameters' device, as a CUDA graph needs it.

    Source: optimizers.py, iwae.py and train.py of github.com/yburda/iwae (arXiv 1509.00519).
    """

    BETAS, EPS = (0.99, 0.999), 1e-4

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor,
        examples: int,
        *,
        on_device: bool = False,
    ) -> None:
        # By "capturable" torch knows on which device to put a "step" that is loaded.
        defaults = {"lr": lr, "betas": self.BETAS, "eps": self.EPS, "examples": examples}
        super().__init__(params, {**defaults, "capturable": on_device})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; of the new parameters no step was made yet."""
        super().add_param_group(param_group)
        # From the start, so that what undoes steps finds them, and a checkpoint always has them.
        group = self.param_groups[-1]
        for p in group["params"]:
            device = p.device if group["capturable"] else "cpu"
            self.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.ones_like(p),
            }

    def _rates(self, group: dict[str, Any], steps: list[Tensor]) -> Any:
        """lr with the correction of the bias: for each parameter its number, which costs less; in a
        CUDA graph a tensor, of the first one's steps."""
        beta_1, beta_2 = group["betas"]

        def corrected(lr: Any, t: Any) -> Any:
            return lr * (1 - beta_2**t) ** 0.5 / (1 - beta_1**t)

        if group["capturable"]:
            return corrected(group["lr"], steps[0].double() + 1)
        return [corrected(float(group["lr"]), t.item() + 1) for t in steps]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without a gradient stay, and so do their moments.

        Args:
            closure: makes the gradients anew and returns the loss, as for torch's own.

        Returns:
            What the closure does, or None.

        Raises:
            RuntimeError: for a sparse gradient; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [p.grad for group in self.param_groups for p in group["params"]]
        if any(g is not None and g.layout is not torch.strided for g in given):
            raise RuntimeError("gradients must be dense for Burda's Adam, got a sparse one")
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            states = [self.state[p] for p in moving]
            first, second, steps = (
                [s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            gradients = [p.grad for p in moving]
            if not group["capturable"] and _are_plain(moving, gradients, first, second, steps):
                _op.adam_(moving, gradients, first, second, steps, *told_of(self, group))
                increment_version([*moving, *first, *second, *steps])
                continue
            beta_1, beta_2 = group["betas"]
            scale = torch._foreach_sqrt(second)
            torch._foreach_add_(scale, group["eps"])
            change = torch._foreach_div(first, scale)
            torch._foreach_mul_(change, self._rates(group, steps))
            torch._foreach_sub_(moving, change)
            of_sum = torch._foreach_mul(gradients, group["examples"])
            torch._foreach_lerp_(first, of_sum, 1 - beta_1)
            torch._foreach_mul_(second, beta_2)
            torch._foreach_addcmul_(second, of_sum, of_sum, 1 - beta_2)
            torch._foreach_add_(steps, 1)
        return loss


#: whose steps `TrainingStep` makes in its operator
FUSED = (Adam, AdamW, BurdaAdam)


def _are_plain(parameters: list[Tensor], gradients: list[Tensor], *states: list[Tensor]) -> bool:
    """Whether `adam_` takes them, where `states` are the moments, and the steps last."""
    if not all(t.is_cpu and t.dtype == torch.float32 for t in states[-1]):
        return False
    if len({float(t) for t in states[-1]}) != 1:
        return False
    for p, g, *moments in zip(parameters, gradients, *states[:-1], strict=True):
        if p.dtype not in (torch.float32, torch.float64) or g.dtype != p.dtype:
            return False
        for t in (p, *moments):
            if type(t) not in (Tensor, Parameter) or not t.is_cpu or not t.is_contiguous():
                return False
            if t.dtype != p.dtype:
                return False
    return all(type(g) is Tensor for g in gradients)


def _adam(
    params: Iterable[Tensor], lr: float | Tensor, examples: int, on_device: bool
) -> torch.optim.Optimizer:
    # Fused: one pass over each parameter, 3 to 4 times as fast as the default on a CPU.
    return torch.optim.Adam(params, lr=lr, fused=True, capturable=on_device)


def _burda(
    params: Iterable[Tensor], lr: float | Tensor, examples: int, on_device: bool
) -> torch.optim.Optimizer:
    return BurdaAdam(params, lr, examples, on_device=on_device)


#: of parameters, the rate, the examples of a batch, and whether a CUDA graph makes the steps
OPTIMIZERS: dict[
    str, Callable[[Iterable[Tensor], float | Tensor, int, bool], torch.optim.Optimizer]
] = {"adam": _adam, "burda": _burda}


def make_optimizer(
    name: str, params: Iterable[Tensor], lr: float, examples: int, *, graphed: bool = False
) -> torch.optim.Optimizer:
    """The optimiser called `name`.

    Args:
        name: one of `OPTIMIZERS`.
        params: what it moves.
        lr: the rate at first.
        examples: of a batch.
        graphed: whether a CUDA graph makes its steps, where a number would be a constant.
    """
    params = list(params)
    rate = torch.tensor(lr, device=params[0].device) if graphed else lr
    return OPTIMIZERS[name](params, rate, examples, graphed)
