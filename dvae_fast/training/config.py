"""What is trained, and how: one configuration of every run."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._checks import check_choice, check_device, check_integer, nearest_choice
from dvae_fast.corruptions import (
    CORRUPTIONS,
    LEVEL_ESTIMATORS,
    AdditiveGaussian,
    Corruption,
    Identity,
    Learnable,
    RateCorruption,
    SaltAndPepper,
    make_corruption,
    rates_from_mean,
)
from dvae_fast.data import BINARISATIONS, DATASETS, Dataset, check_binarise, load_dataset
from dvae_fast.files import CheckpointError, read_json
from dvae_fast.likelihoods import LIKELIHOODS, Bernoulli, get_likelihood
from dvae_fast.models import MODELS, Autoencoder, ModelConfig, make_model
from dvae_fast.models.config import default_samples, option, option_kind, options_of
from dvae_fast.models.encoders import check_encoder
from dvae_fast.objectives import Objective
from dvae_fast.objectives.objective import check_score_objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = [
    "CHANGEABLE",
    "CONFIG",
    "CONTEXTS",
    "DEFAULT_LEVEL",
    "LR_SCHEDULES",
    "MOST_THREADS",
    "OptionError",
    "TrainConfig",
    "default_config",
    "kl_weight",
    "learning_rate",
    "load_config",
]

CONFIG = "config.json"
LR_SCHEDULES = ("constant", "stepwise")
#: the fields that a run that is resumed may change
CHANGEABLE = ("epochs", "threads", "device", "cuda_graph")
#: more than any machine has; of very many the system's own limits end the process
MOST_THREADS = 1024


class OptionError(ValueError):
    """An option does not fit what is there: the folder, the run in it, the other processes."""


#: of a data set, what a model may be told of each split
CONTEXTS: dict[str, Callable[[Dataset], Mapping[str, Tensor] | None]] = {
    "labels": lambda data: getattr(data, "labels", None),
}
_DEFAULT_DATA = next(iter(DATASETS))
DEFAULT_LEVEL = 0.05
_MODEL_FIELDS = frozenset(field.name for field in dataclasses.fields(ModelConfig))
#: of binary data; of any other, gaussian
_BINARY_CORRUPTION = SaltAndPepper.kind


def _by_data(name: str) -> str:
    """What suits each data set."""
    return ", ".join(f"{getattr(named, name):g} for {data}" for data, named in DATASETS.items())


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelConfig):
    """What a run is: the options of its model, those below, and those of its training.

    Every field is JSON-able and checked; its help says what it is. See :func:`default_config`.

    Raises:
        ValueError: naming the field, the rule and the value.
    """

    model: str = option("diwae", "The model.", choices=MODELS)
    data: str = option(_DEFAULT_DATA, "The data set.", choices=DATASETS)
    binarise: str = option(
        "dynamic",
        "How; fixed exists for mnist only. Default: dynamic; none for frey.",
        choices=BINARISATIONS,
    )
    likelihood: str = option(
        "bernoulli",
        "p(x|z). Default: bernoulli; gaussian for grey values.",
        choices=LIKELIHOODS,
    )
    # A name here, which `level` makes a corruption of.
    corruption: str = option(  # type: ignore[assignment]
        _BINARY_CORRUPTION,
        f"For the models that corrupt. Default: {_BINARY_CORRUPTION} for dvae and diwae, gaussian "
        "for any likelihood but bernoulli; identity for the others.",
        choices=CORRUPTIONS,
    )
    level: float = option(
        DEFAULT_LEVEL,
        f"The corruption's rate, or standard deviation. Default: {DEFAULT_LEVEL}; 0 for identity.",
    )
    per_pixel: bool = option(
        False, "A rate for each pixel, in proportion to the mean image, the level on average."
    )
    gradient: str | None = option(
        None,
        "Learn the level from there on, by this gradient (pathwise for gaussian, score with 2 "
        "copies or more). Default: it stays.",
        choices=LEVEL_ESTIMATORS,
    )
    beta: float | None = option(None, "Of ciwae: 0 is iwae, 1 elbo. Default: 0.5.")
    alpha: float | None = option(None, "Of vr: 0 is iwae, 1 elbo. Default: 0.5.")
    free_bits: float = option(
        0.0, "Of the objective with the analytic divergence: nats a latent dimension that are free."
    )
    kl_warmup: int = option(
        0, "Epochs over which the divergence's weight in the gradient rises to 1."
    )
    context: str | None = option(
        None,
        "What the networks are told besides x: labels make the model conditional on the data's. "
        "Default: nothing.",
        choices=CONTEXTS,
    )
    train_examples: int | None = option(
        None, "Train on the first so many images only. Default: all."
    )
    valid_examples: int | None = option(None, "Validate on the first so many only. Default: all.")
    epochs: int = option(DATASETS[_DEFAULT_DATA].epochs, f"Default: {_by_data('epochs')}.")
    batch_size: int = option(100, "Given a step, of all processes together.")
    learning_rate: float = option(
        DATASETS[_DEFAULT_DATA].learning_rate,
        f"Adam's, at the start. Default: {_by_data('learning_rate')}.",
    )
    lr_schedule: str = option(
        "constant", "stepwise falls to a tenth in eight stages.", choices=LR_SCHEDULES
    )
    seed: int = option(0, "Governs everything random in training.")
    data_seed: int = option(0, "Governs the split and the binarised validation and test sets.")
    threads: int | None = option(None, "CPU threads of each process. Default: PyTorch's choice.")
    device: str = option(
        "cpu", "cpu, cuda or cuda:N; of several processes each takes its own GPU of cuda."
    )
    cuda_graph: bool = option(False, "Replay each full batch's step as one CUDA graph.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices is not None and not (value is None and field.default is None):
                check_choice(field.name, value, choices)
            # NumPy's are numbers too, and the configuration is JSON.
            for number, kind in ((numbers.Integral, int), (numbers.Real, float)):
                is_one = isinstance(value, number) and not isinstance(value, bool)
                if is_one and option_kind(type(self), field.name) is kind:
                    object.__setattr__(self, field.name, kind(value))
        try:
            super().__post_init__()
        except TypeError as error:
            raise ValueError(str(error)) from None
        check_binarise(self.data, self.binarise)
        model, objective = MODELS[self.model], self.make_objective()
        if self.samples is None:
            object.__setattr__(self, "samples", default_samples(objective))
        self._check_model(model)
        check_encoder(str(self.encoder), self.hidden_sizes)
        objective.check_samples(self.copies, self.samples or 1)
        self._check_corruption(model, objective)
        model.check_options(self, objective)
        self._check_support()
        if self.context_size and self.context is None:
            raise ValueError(
                f"context_size must come with a context, {' or '.join(CONTEXTS)}; "
                f"got {self.context_size}"
            )
        check_integer("kl_warmup", self.kl_warmup, 0)
        check_integer("epochs", self.epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        if not (isinstance(self.learning_rate, float) and 0 < self.learning_rate < math.inf):
            raise ValueError(
                f"learning_rate must be a finite number > 0, got {self.learning_rate!r}"
            )
        check_integer("seed", self.seed, 0, 2**63)
        check_integer("data_seed", self.data_seed, 0, 2**32)
        for name in ("train_examples", "valid_examples", "threads"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ValueError(f"threads must be <= {MOST_THREADS}, got {self.threads}")
        # A run is read on machines other than its own, too.
        check_device("device", self.device, here=False)
        if self.cuda_graph and torch.device(self.device).type != "cuda":
            raise ValueError(
                f"cuda_graph must be off unless device is cuda; device is {self.device}"
            )

    def _check_model(self, model: type[Autoencoder]) -> None:
        known = options_of(model)
        for field in dataclasses.fields(ModelConfig):
            value = getattr(self, field.name)
            if field.name not in known and field.name != "corruption" and value != field.default:
                raise ValueError(
                    f"{field.name} must be left out for {self.model}, which has none; got {value!r}"
                )

    def _check_support(self) -> None:
        step = get_likelihood(self.likelihood).step
        if step == 1:
            raise ValueError(
                f"likelihood must not be {self.likelihood} for {self.data}: it is of counts, and "
                "the values of images lie in [0, 1]"
            )
        grey = BINARISATIONS[self.binarise].grey
        if step > 0 and not (grey and DATASETS[self.data].grey_levels):
            names = ", ".join(name for name, named in DATASETS.items() if named.grey_levels)
            ways = ", ".join(name for name, way in BINARISATIONS.items() if way.grey)
            raise ValueError(
                f"likelihood must not be {self.likelihood} unless the data has 256 grey levels: "
                f"{names} with binarise {ways}; got {self.data} with {self.binarise}"
            )

    def _check_corruption(self, model: type[Autoencoder], objective: Objective) -> None:
        if "corruption" not in options_of(model) and self.corruption != Identity.kind:
            corrupting = [name for name, cls in MODELS.items() if "corruption" in options_of(cls)]
            raise ValueError(
                f"corruption must be identity for {self.model} (only {', '.join(corrupting)} "
                f"corrupt); got {self.corruption!r}"
            )
        try:
            if not math.isfinite(self.level):
                raise ValueError(f"level must be finite, got {self.level!r}")
            corruption = make_corruption(self.corruption, self.level)
        except (TypeError, ValueError) as error:
            raise ValueError(f"level does not fit {self.corruption}: {error}") from None
        if self.per_pixel and not isinstance(corruption, RateCorruption):
            raise ValueError(
                "per_pixel must be off unless the corruption has a rate; "
                f"corruption is {self.corruption}"
            )
        if self.gradient is not None:
            try:
                learnable = Learnable(corruption, self.gradient)
                learnable.check_copies(self.copies)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"gradient does not fit {self.corruption} {self.level:g}: {error}"
                ) from None
            if learnable.scores:
                check_score_objective(objective)

    def make_objective(self) -> Objective:
        """The model's objective."""
        name = self.objective or MODELS[self.model].defaults["objective"]
        return Objective(str(name), self.estimator, self.beta, self.alpha, self.free_bits)

    def make_model(self, data: Dataset) -> Autoencoder:
        """The model, with fresh parameters from torch's generator."""
        options = {name: getattr(self, name) for name in options_of(MODELS[self.model])}
        if "corruption" in options:
            level = rates_from_mean(data.mean, self.level) if self.per_pixel else self.level
            corruption: Corruption = make_corruption(self.corruption, level)
            if self.gradient is not None:
                corruption = Learnable(corruption, self.gradient)
            options["corruption"] = corruption
        options["objective"] = self.make_objective()
        options["context_size"] = self.context_size_of(data)
        return make_model(
            self.model, data.size, image_shape=data.image_shape, data_mean=data.mean, **options
        )

    def context_of(self, data: Dataset) -> Mapping[str, Tensor] | None:
        """What the model is told of each split, int64 (N,); None without a context.

        Raises:
            ValueError: if the data has no such thing.
        """
        if self.context is None:
            return None
        told = CONTEXTS[self.context](data)
        if told is None:
            raise ValueError(f"context must be left out: {data.name} has no {self.context}")
        return told

    def context_size_of(self, data: Dataset) -> int:
        """C of the model: of labels, one more than the largest, unless there are to be more."""
        told = self.context_of(data)
        if told is None:
            return 0
        classes = 1 + max(int(labels.max()) for labels in told.values() if len(labels))
        if self.context_size and self.context_size < classes:
            raise ValueError(
                f"context_size must be >= {classes}, the classes of {data.name}, or left out; "
                f"got {self.context_size}"
            )
        return max(self.context_size, classes)

    def load_data(self) -> Dataset:
        """The data set; raises as `dvae_fast.data.load_dataset`."""
        data = load_dataset(self.data, binarise=self.binarise, seed=self.data_seed)
        return data.first(self.train_examples, self.valid_examples)

    @property
    def is_grey_bernoulli(self) -> bool:
        """Whether a Bernoulli is asked for the density of grey values, which it has none of."""
        return BINARISATIONS[self.binarise].grey and isinstance(
            get_likelihood(self.likelihood), Bernoulli
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width)."""
        return DATASETS[self.data].image_shape

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        # What only a run has comes first: its model, its data.
        names = sorted((f.name for f in dataclasses.fields(self)), key=_MODEL_FIELDS.__contains__)
        values = {name: getattr(self, name) for name in names}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def origin(self) -> dict[str, Any]:
        """Those of :meth:`to_dict` that a model's numbers depend on."""
        return {name: v for name, v in self.to_dict().items() if name not in CHANGEABLE}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From :meth:`to_dict`.

        Raises:
            ValueError: if a key is unknown or a value wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := values.keys() - set(known):
            raise ValueError(
                nearest_choice("an option in the configuration", sorted(unknown)[0], known)
            )
        return cls(**values)


def default_config(model: str = "diwae", data: str = "digits", **given: Any) -> TrainConfig:
    """A configuration with what suits the model and the data for every field not given.

    Args:
        model, data: as in :class:`TrainConfig`.
        given: its other fields; None counts as not given. What suits is the model's own default
            (``samples``: 5 inside the logarithm or for vimco, else 1), and of the data
            ``binarise``, ``epochs`` and ``learning_rate``; ``likelihood`` is gaussian for grey
            values, else bernoulli. A denoising model's ``corruption`` is of salt and pepper,
            gaussian for any likelihood but bernoulli, at ``level`` 0.05; any other model has none.

    Raises:
        ValueError: naming the field, the rule and the value.
    """
    check_choice("model", model, MODELS)
    check_choice("data", data, DATASETS)
    values = {name: value for name, value in given.items() if value is not None}
    named = DATASETS[data]
    values.setdefault("binarise", named.binarise)
    check_binarise(data, values["binarise"])
    values.setdefault("likelihood", BINARISATIONS[values["binarise"]].likelihood)
    for name, value in MODELS[model].defaults.items():
        if name not in ("objective", "corruption"):
            values.setdefault(name, value)
    values.setdefault("epochs", named.epochs)
    values.setdefault("learning_rate", named.learning_rate)
    if MODELS[model].denoising:
        binary = isinstance(LIKELIHOODS.get(values["likelihood"]), Bernoulli)
        values.setdefault("corruption", (SaltAndPepper if binary else AdditiveGaussian).kind)
    else:
        values.setdefault("corruption", Identity.kind)
    identity = values["corruption"] == Identity.kind
    if identity and values.get("level", 0) != 0:
        raise ValueError(f"level must be 0 without a corruption, got {values['level']!r}")
    values.setdefault("level", 0.0 if identity else DEFAULT_LEVEL)
    return TrainConfig.from_dict({"model": model, "data": data, **values})


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
