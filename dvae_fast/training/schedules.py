"""What changes from epoch to epoch: the learning rate, and the divergence's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvae_fast.training.config import TrainConfig

__all__ = ["kl_weight", "learning_rate"]

# Burda et al. (arXiv 1509.00519), section 5: 3^i passes at 10^(−i/7) of the first rate, i = 0…7.
_STAGES = 8
_PASSES = sum(3**i for i in range(_STAGES))


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The rate of epoch 0, 1, …

    ``stepwise`` falls in eight stages from ``learning_rate`` to a tenth of it (1e-3 to 1e-4), each
    three times as long as the one before, as in Burda et al. (arXiv 1509.00519); the stages are
    scaled from their 3,280 epochs to the run's.
    """
    if config.lr_schedule == "constant":
        return config.learning_rate
    passes = epoch * _PASSES / config.epochs
    stage = next(i for i in range(_STAGES) if passes < (3 ** (i + 1) - 1) / 2 or i == _STAGES - 1)
    return float(config.learning_rate * 10 ** (-stage / 7))


def kl_weight(config: TrainConfig, epoch: int) -> float:
    """The divergence's weight in epoch 0, 1, …: linear, 0 at first and 1 from ``kl_warmup`` on.

    Source: Sønderby et al., "Ladder variational autoencoders" (arXiv 1602.02282).
    """
    return min(1.0, epoch / config.kl_warmup) if config.kl_warmup else 1.0
