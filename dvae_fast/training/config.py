"""What is trained, and how: one configuration of every run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._checks import check_choice, check_device, check_integer
from dvae_fast.corruptions import (
    CORRUPTIONS,
    LEVEL_ESTIMATORS,
    Corruption,
    Learnable,
    make_corruption,
    rates_from_mean,
)
from dvae_fast.data import (
    BINARISATIONS,
    DATASETS,
    GREY_LEVEL_DATASETS,
    IMAGE_SHAPES,
    Dataset,
    load_dataset,
)
from dvae_fast.files import CheckpointError, read_json
from dvae_fast.likelihoods import LIKELIHOODS, Bernoulli
from dvae_fast.models import (
    ACTIVATIONS,
    INFERENCES,
    MODELS,
    POSTERIORS,
    LatentVariableModel,
    make_model,
)
from dvae_fast.objectives import OUTSIDE, Objective
from dvae_fast.objectives.objective import check_posterior_objective, check_score_objective

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CONFIG",
    "DEFAULT_EPOCHS",
    "DEFAULT_LEARNING_RATES",
    "DEFAULT_LEVEL",
    "LR_SCHEDULES",
    "TrainConfig",
    "default_config",
    "kl_weight",
    "learning_rate",
    "load_config",
]

CONFIG = "config.json"
LR_SCHEDULES = ("constant", "stepwise")

#: by data set: an epoch of the digits is 13 steps, one of MNIST 500
DEFAULT_EPOCHS = {"digits": 300, "mnist": 100, "frey": 300}
DEFAULT_LEARNING_RATES = {"digits": 3e-3, "mnist": 1e-3, "frey": 1e-3}
DEFAULT_LEVEL = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """What a run is; every field is JSON-able and checked. See :func:`default_config`.

    Attributes:
        model, data: one of `MODELS`, one of `DATASETS`.
        binarise: one of `BINARISATIONS`.
        corruption, level: one of `CORRUPTIONS` and its rate or standard deviation; identity and 0
            for a model that does not denoise.
        per_pixel: rates in proportion to the mean image, `level` their mean (see
            `dvae_fast.corruptions.rates_from_mean`).
        learn_level: how the level is learnt from there on, one of `LEVEL_ESTIMATORS`; None if not.
        M, K: corruptions an example (without corruption, groups of samples from its one
            posterior), latent samples of each, in training and validation.
        objective: one of `OBJECTIVES`; None for the model's own.
        estimator: one of `ESTIMATORS`.
        beta, alpha: of the objectives ciwae and vr alone; None for their default.
        kl_warmup: epochs over which the divergence's weight in the gradient rises from 0 to 1 (see
            :func:`kl_weight`); bounds are reported without it.
        free_bits: of the objective elbo-kl alone, in nats a latent dimension.
        latent_size, hidden_sizes, activation, likelihood: the network's.
        decoder_hidden_sizes: of the decoder, from the latents on; None for the encoder's in
            reverse.
        inference, posterior: its encoder, one of `INFERENCES`, and the covariance that gives, one
            of `POSTERIORS`.
        train_examples, valid_examples: the first so many of each set; None for all.
        epochs, batch_size, learning_rate: of Adam; a batch is that of all processes together.
        lr_schedule: ``constant``, or ``stepwise`` (see :func:`learning_rate`).
        seed: governs initial values, order, binarisation while training, and noise.
        data_seed: governs the split and the fixed draws; runs to be compared share it.
        threads: CPU threads of each process; None leaves torch's number as it is.
        device: ``cpu``, ``cuda`` or ``cuda:N``; of several processes each takes its own GPU of
            ``cuda``. Only the CPU promises the same bits again.
        cuda_graph: replay each full batch's step as one CUDA graph.

    Raises:
        ValueError: naming the field, the rule and the value.
    """

    model: str = "diwae"
    data: str = "digits"
    binarise: str = "dynamic"
    corruption: str = "salt-and-pepper"
    level: float = DEFAULT_LEVEL
    per_pixel: bool = False
    learn_level: str | None = None
    M: int = 1
    K: int = 5
    objective: str | None = None
    estimator: str = "standard"
    beta: float | None = None
    alpha: float | None = None
    kl_warmup: int = 0
    free_bits: float = 0.0
    latent_size: int = 50
    hidden_sizes: tuple[int, ...] = (200, 200)
    decoder_hidden_sizes: tuple[int, ...] | None = None
    activation: str = "softplus"
    inference: str = "mlp"
    posterior: str = "diagonal"
    likelihood: str = "bernoulli"
    train_examples: int | None = None
    valid_examples: int | None = None
    epochs: int = DEFAULT_EPOCHS["digits"]
    batch_size: int = 100
    learning_rate: float = DEFAULT_LEARNING_RATES["digits"]
    lr_schedule: str = "constant"
    seed: int = 0
    data_seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        check_choice("model", self.model, MODELS)
        check_choice("data", self.data, DATASETS)
        check_choice("binarise", self.binarise, BINARISATIONS)
        if self.binarise == "fixed" and self.data != "mnist":
            others = ", ".join(b for b in BINARISATIONS if b != "fixed")
            raise ValueError(
                f"binarise must be one of {others} for {self.data} (fixed exists for mnist "
                "alone); got 'fixed'"
            )
        check_choice("corruption", self.corruption, CORRUPTIONS)
        self._check_corruption()
        for name, lower in (("M", 1), ("K", 1), ("latent_size", 1), ("epochs", 1)):
            check_integer(name, getattr(self, name), lower)
        check_integer("kl_warmup", self.kl_warmup, 0)
        objective = self.make_objective()
        objective.check_samples(self.M, self.K)
        if self.posterior == "full":
            check_posterior_objective(objective)
        if self.learn_level == "score":
            check_score_objective(objective)
        check_integer("batch_size", self.batch_size, 1)
        for name in ("hidden_sizes", "decoder_hidden_sizes"):
            if (sizes := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(sizes))
                for size in sizes:
                    check_integer(f"each of {name}", size, 1)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("inference", self.inference, INFERENCES)
        check_choice("posterior", self.posterior, POSTERIORS)
        if self.inference.startswith("gru") and not self.hidden_sizes:
            raise ValueError(
                f"hidden_sizes must hold the size of the recurrent layer for {self.inference}, "
                "got none"
            )
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        self._check_support()
        if not (isinstance(self.learning_rate, float) and 0 < self.learning_rate < math.inf):
            raise ValueError(
                f"learning_rate must be a finite number > 0, got {self.learning_rate!r}"
            )
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_integer("seed", self.seed, 0, 2**63)
        check_integer("data_seed", self.data_seed, 0, 2**32)
        for name in ("train_examples", "valid_examples", "threads"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        # A run is read on machines other than its own, too.
        check_device("device", self.device, here=False)
        if self.cuda_graph and torch.device(self.device).type != "cuda":
            raise ValueError(
                f"cuda_graph must be off unless device is cuda; device is {self.device}"
            )

    def _check_support(self) -> None:
        step = LIKELIHOODS[self.likelihood].step
        if step == 1:
            raise ValueError(
                f"likelihood must not be {self.likelihood} for {self.data}: it is of counts, and "
                "the values of images lie in [0, 1]"
            )
        if step > 0 and (self.binarise != "none" or self.data not in GREY_LEVEL_DATASETS):
            raise ValueError(
                f"likelihood must not be {self.likelihood} unless the data has 256 grey levels: "
                f"{', '.join(GREY_LEVEL_DATASETS)} with binarise none; "
                f"got {self.data} with {self.binarise}"
            )

    def _check_corruption(self) -> None:
        if not MODELS[self.model].denoising:
            denoising = ", ".join(name for name, cls in MODELS.items() if cls.denoising)
            if self.corruption != "identity":
                raise ValueError(
                    f"corruption must be identity for {self.model} (only {denoising} corrupt); "
                    f"got {self.corruption!r}"
                )
        if self.per_pixel and self.corruption in ("identity", "gaussian"):
            raise ValueError(
                "per_pixel must be off unless the corruption has a rate; "
                f"corruption is {self.corruption}"
            )
        try:
            if not math.isfinite(self.level):
                raise ValueError(f"level must be finite, got {self.level!r}")
            corruption = make_corruption(self.corruption, self.level)
        except (TypeError, ValueError) as error:
            raise ValueError(f"level does not fit {self.corruption}: {error}") from None
        if self.learn_level is not None:
            check_choice("learn_level", self.learn_level, LEVEL_ESTIMATORS)
            try:
                Learnable(corruption, self.learn_level).check_copies(self.M)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"learn_level does not fit {self.corruption} {self.level:g}: {error}"
                ) from None

    def make_objective(self) -> Objective:
        """The model's objective."""
        name = MODELS[self.model].default_objective if self.objective is None else self.objective
        return Objective(name, self.estimator, self.beta, self.alpha, self.free_bits)

    def make_model(self, data: Dataset) -> LatentVariableModel:
        """The model, with fresh parameters from torch's generator."""
        corruption: Corruption | None = None
        if MODELS[self.model].denoising:
            level = rates_from_mean(data.mean, self.level) if self.per_pixel else self.level
            corruption = make_corruption(self.corruption, level)
            if self.learn_level is not None:
                corruption = Learnable(corruption, self.learn_level)
        return make_model(
            self.model,
            data.size,
            self.latent_size,
            self.hidden_sizes,
            activation=self.activation,
            inference=self.inference,
            image_shape=data.image_shape,
            posterior=self.posterior,
            likelihood=self.likelihood,
            corruption=corruption,
            M=self.M,
            K=self.K,
            data_mean=data.mean,
            objective=self.make_objective(),
            decoder_hidden_sizes=self.decoder_hidden_sizes,
        )

    def load_data(self) -> Dataset:
        """The data set; raises as `dvae_fast.data.load_dataset`."""
        data = load_dataset(self.data, binarise=self.binarise, seed=self.data_seed)
        return data.first(self.train_examples, self.valid_examples)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width)."""
        return IMAGE_SHAPES[self.data]

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From :meth:`to_dict`.

        Raises:
            ValueError: if a key is unknown or a value wrong.
        """
        if unknown := values.keys() - {f.name for f in dataclasses.fields(cls)}:
            raise ValueError(f"unknown option in the configuration: {', '.join(sorted(unknown))}")
        return cls(**values)


def default_config(model: str = "diwae", data: str = "digits", **given: Any) -> TrainConfig:
    """A configuration with what suits the model and the data for every field not given.

    Args:
        model, data: as in :class:`TrainConfig`.
        given: its other fields; None counts as not given. Defaults: ``binarise`` dynamic (frey:
            none), ``likelihood`` bernoulli (grey frey: gaussian), ``corruption`` salt-and-pepper
            (gaussian for any other likelihood) at ``level`` 0.05, ``K`` 5 with the samples inside
            the logarithm (as for iwae and diwae) or vimco, and 1 outside, ``epochs`` and
            ``learning_rate`` by data set.

    Raises:
        ValueError: naming the field, the rule and the value.
    """
    check_choice("model", model, MODELS)
    check_choice("data", data, DATASETS)
    values = {name: value for name, value in given.items() if value is not None}
    values.setdefault("binarise", "none" if data == "frey" else "dynamic")
    grey = data == "frey" and values["binarise"] == "none"
    values.setdefault("likelihood", "gaussian" if grey else "bernoulli")
    outside = values.get("objective", MODELS[model].default_objective) in OUTSIDE
    values.setdefault("K", 1 if outside and values.get("estimator") != "vimco" else 5)
    values.setdefault("epochs", DEFAULT_EPOCHS[data])
    values.setdefault("learning_rate", DEFAULT_LEARNING_RATES[data])
    if MODELS[model].denoising:
        binary = isinstance(LIKELIHOODS.get(values["likelihood"]), Bernoulli)
        values.setdefault("corruption", "salt-and-pepper" if binary else "gaussian")
    else:
        values.setdefault("corruption", "identity")
    identity = values["corruption"] == "identity"
    if identity and values.get("level", 0) != 0:
        raise ValueError(f"level must be 0 without a corruption, got {values['level']!r}")
    values.setdefault("level", 0.0 if identity else DEFAULT_LEVEL)
    return TrainConfig(model=model, data=data, **values)


def load_config(run_dir: str | Path) -> TrainConfig:
    """The configuration of a run, from its folder.

    Raises:
        CheckpointError: if it is not there or cannot be understood.
    """
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not the folder of a run: it holds no {CONFIG}")
    try:
        return TrainConfig.from_dict(read_json(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a configuration that fits: {error}") from None


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
