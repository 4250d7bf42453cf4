"""The trainer: Adam over one of the models, a run folder, and an exact way to go on.

A run folder holds ``config.json``, ``checkpoint.safetensors`` (to go on from),
``model.safetensors`` (the best model, by the bound on the validation set), ``metrics.json`` and
TensorBoard's events. All that is random comes from the run's seed, through one generator of its
own: nothing outside moves it, and it moves nothing outside. A run that is stopped, wherever, and
resumed gives the same parameters to the last bit, on the same machine with as many threads.

Under ``torchrun`` each process takes its share of every batch: the same order, noise and mean
gradient as in one process, so the same run up to rounding. Rank 0 alone reads and writes the run
folder and calls back.
"""

from dvae_fast.kept import METRICS
from dvae_fast.training.board import each_label, reconstructions
from dvae_fast.training.checkpoint import load_config, load_run
from dvae_fast.training.config import (
    CONFIG,
    MOST_THREADS,
    OptionError,
    TrainConfig,
)
from dvae_fast.training.defaults import default_config
from dvae_fast.training.loop import Progress, train
from dvae_fast.training.run import NonFiniteError, mean_bound
from dvae_fast.training.schedules import LR_SCHEDULES, kl_weight, learning_rate
from dvae_fast.training.step import TrainingStep

__all__ = [
    "CONFIG",
    "LR_SCHEDULES",
    "METRICS",
    "MOST_THREADS",
    "NonFiniteError",
    "OptionError",
    "Progress",
    "TrainConfig",
    "TrainingStep",
    "default_config",
    "each_label",
    "kl_weight",
    "learning_rate",
    "load_config",
    "load_run",
    "mean_bound",
    "reconstructions",
    "train",
]
