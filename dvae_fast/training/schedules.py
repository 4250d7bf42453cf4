"""What changes from epoch to epoch: the learning rate, the order of the examples, the divergence's
weight, and which model is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dvae_fast.training.config import TrainConfig

__all__ = ["KEPT", "LR_SCHEDULES", "ORDERS", "kl_weight", "learning_rate"]

# Burda et al. (arXiv 1509.00519), section 5: 3^i passes at 10^(−i/7) of the first rate, i = 0…7.
_STAGES = 8
_PASSES = sum(3**i for i in range(_STAGES))

#: the rate of stage 0, 1, … 7, of the first one
LR_SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _: 1.0,
    "stepwise": lambda stage: 10 ** (-stage / 7),
    "stepwise_rounded": lambda stage: round(10 ** (1 - stage / 7), 1) / 10,
}
#: in which each epoch reads the training examples, by their number and the run's generator
ORDERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "shuffled": lambda n, generator: torch.randperm(n, generator=generator),
    "file": lambda n, _: torch.arange(n),
}
#: whether an epoch's model is kept, by its validation bound and the kept one's
KEPT: dict[str, Callable[[float, float], bool]] = {
    "best": lambda bound, best: bound > best,
    "last": lambda bound, best: True,
}


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The rate of epoch 0, 1, …

    ``stepwise`` falls in eight stages from ``learning_rate`` to a tenth of it (1e-3 to 1e-4), each
    three times as long as the one before, as in Burda et al. (arXiv 1509.00519); the stages are
    scaled from their 3,280 epochs to the run's. ``stepwise_rounded`` is the same with the rates of
    their code, which rounds them to tenths of the last: 10, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4 and 1.
    """
    passes = epoch * _PASSES / config.epochs
    stage = next(i for i in range(_STAGES) if passes < (3 ** (i + 1) - 1) / 2 or i == _STAGES - 1)
    return float(config.learning_rate * LR_SCHEDULES[config.lr_schedule](stage))


def kl_weight(config: TrainConfig, epoch: int) -> float:
    """The divergence's weight in epoch 0, 1, …: linear, 0 at first and 1 from ``kl_warmup`` on.

    Source: Sønderby et al., "Ladder variational autoencoders" (arXiv 1602.02282).
    """
    return min(1.0, epoch / config.kl_warmup) if config.kl_warmup else 1.0
