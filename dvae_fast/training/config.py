"""What is trained, and how: one configuration of every run."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._checks import check_choice, check_device, check_integer, nearest_choice
from dvae_fast.corruptions import (
    CORRUPTIONS,
    LEVEL_ESTIMATORS,
    Corruption,
    Identity,
    Learnable,
    RateCorruption,
    SaltAndPepper,
    make_corruption,
    rates_from_mean,
)
from dvae_fast.data import (
    BINARISATIONS,
    BINARY,
    DATASETS,
    KINDS,
    MISSING,
    OWN_SUFFIXES,
    SPLIT,
    DataError,
    Dataset,
    Kind,
    Scaling,
    check_binarise,
    check_own_binarise,
    check_split,
    fitting,
    load_dataset,
    load_path,
    misfit,
    named_as,
)
from dvae_fast.likelihoods import NAMED, Bernoulli, get_likelihood
from dvae_fast.models import MODELS, Autoencoder, ModelConfig, make_model
from dvae_fast.models.config import (
    DATA,
    OBJECTIVE,
    TRAINING,
    default_samples,
    option,
    option_kind,
    options_of,
)
from dvae_fast.models.encoders import check_encoder
from dvae_fast.objectives import Objective
from dvae_fast.objectives.objective import check_score_objective
from dvae_fast.training.optimizers import OPTIMIZERS
from dvae_fast.training.schedules import KEPT, LR_SCHEDULES, ORDERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = [
    "CHANGEABLE", "CONFIG", "CONTEXTS", "DEFAULT_LEVEL", "DTYPES", "MOST_THREADS", "OF_OWN",
    "OptionError", "TrainConfig", "no_data",
]  # fmt: skip

CONFIG = "config.json"
#: of matrix products, and what autocast is asked for
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
#: the fields that a run that is resumed may change
CHANGEABLE = ("epochs", "threads", "device", "cuda_graph")
#: more than any machine has; of very many the system's own limits end the process
MOST_THREADS = 1024


#: the fields that say how data of one's own are read
OF_OWN = ("values", "split", "size", "grey", "labels", "missing")


def no_data(name: str) -> str:
    """What to say of data that are neither a name nor there."""
    if Path(name).name != name or Path(name).suffix:
        return f"data must be one of {', '.join(DATASETS)}, or a path that is there; got {name!r}"
    return f"{nearest_choice('data', name, DATASETS)} (nor is it a file or folder)"


class OptionError(ValueError):
    """An option does not fit what is there: the folder, the run in it, the other processes."""


#: of a data set, what a model may be told of each split
CONTEXTS: dict[str, Callable[[Dataset], Mapping[str, Tensor] | None]] = {
    "labels": lambda data: data.labels,
}
_DEFAULT_DATA = next(iter(DATASETS))
DEFAULT_LEVEL = 0.05
_of_data, _of_objective, _of_training = (
    partial(option, group=group) for group in (DATA, OBJECTIVE, TRAINING)
)
_MODEL_FIELDS = frozenset(field.name for field in dataclasses.fields(ModelConfig))
#: of binary data; of counts, masking; of any other, gaussian
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
    data: str = _of_data(
        _DEFAULT_DATA,
        f"The data set: one of {', '.join(DATASETS)}; or a file that ends in "
        f"{', '.join(OWN_SUFFIXES)}, or a folder of images, whose folders are classes.",
    )
    values: str | None = _of_data(
        None, "What the values of your own data are. Default: they are looked at.", choices=KINDS
    )
    split: str = _of_data(
        SPLIT, "Shares to train, validate and test, of your data without those parts."
    )
    size: str | None = _of_data(
        None,
        "Crop and resize your images to so many pixels: 32, or 48x64 (height x width). Default: "
        "they stay.",
    )
    grey: bool = _of_data(False, "Make your images grey.")
    labels: str | None = _of_data(
        None,
        "The column of your table (of .h5ad's obs; the array of .npz) that holds labels. "
        "Default: none.",
    )
    missing: str | None = _of_data(
        None, "What means that a value of your own data is missing. Default: none.", choices=MISSING
    )
    binarise: str = _of_data(
        "dynamic",
        "How grey values are made binary; fixed exists for mnist only. Default: dynamic; none for "
        "frey, caltech101_silhouettes and your own.",
        choices=BINARISATIONS,
    )
    likelihood: str = option(
        "bernoulli",
        "p(x|z). Default: bernoulli for binary values; gaussian for grey ones; of your own "
        + "; ".join(f"{kind.likelihood} for {kind.label}" for kind in KINDS.values())
        + ".",
        choices=NAMED,
    )
    # A name here, which `level` makes a corruption of.
    corruption: str = option(  # type: ignore[assignment]
        _BINARY_CORRUPTION,
        f"For the models that corrupt. Default: {_BINARY_CORRUPTION} for dvae and diwae, masking "
        "for counts, gaussian for any other likelihood but a Bernoulli; identity for the others.",
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
    beta: float | None = _of_objective(None, "Of ciwae: 0 is iwae, 1 elbo. Default: 0.5.")
    alpha: float | None = _of_objective(None, "Of vr: 0 is iwae, 1 elbo. Default: 0.5.")
    free_bits: float = _of_objective(
        0.0, "Of the objective with the analytic divergence: nats a latent dimension that are free."
    )
    kl_warmup: int = _of_objective(
        0, "Epochs over which the divergence's weight in the gradient rises to 1."
    )
    context: str | None = _of_data(
        None,
        "What the networks are told besides x: labels make the model conditional on the data's. "
        "Default: nothing.",
        choices=CONTEXTS,
    )
    train_examples: int | None = _of_data(
        None, "Train on the first so many images only. Default: all."
    )
    valid_examples: int | None = _of_data(None, "Validate on the first so many only. Default: all.")
    valid_to_train: int = _of_data(
        0, "Train on the first so many validation images too, which then validate no more."
    )
    epochs: int = _of_training(
        DATASETS[_DEFAULT_DATA].epochs,
        f"Passes over the training set. Default: {_by_data('epochs')}.",
    )
    batch_size: int = _of_training(100, "Given a step, of all processes together.")
    learning_rate: float = _of_training(
        DATASETS[_DEFAULT_DATA].learning_rate,
        f"Adam's, at the start. Default: {_by_data('learning_rate')}.",
    )
    lr_schedule: str = _of_training(
        "constant",
        "stepwise falls to a tenth in eight stages; stepwise_rounded at the rates of Burda's code.",
        choices=LR_SCHEDULES,
    )
    optimizer: str = _of_training("adam", "burda: Adam as in Burda's code.", choices=OPTIMIZERS)
    order: str = _of_training(
        "shuffled", "Of the examples: anew in each epoch, or as in the file.", choices=ORDERS
    )
    keep: str = _of_training(
        "best", "The model of the best epoch on the validation set, or of the last.", choices=KEPT
    )
    seed: int = _of_training(0, "Governs everything random in training.")
    data_seed: int = _of_data(0, "Governs the split and the binarised validation and test sets.")
    threads: int | None = _of_training(
        None, "CPU threads of each process. Default: PyTorch's choice."
    )
    device: str = _of_training(
        "cpu", "cpu, cuda or cuda:N; of several processes each takes its own GPU of cuda."
    )
    cuda_graph: bool = _of_training(False, "Replay each full batch's step as one CUDA graph.")
    dtype: str = _of_training(
        "float32",
        "Of matrix products in training; float32 where a CPU has no instructions for bfloat16.",
        choices=DTYPES,
    )
    fingerprint: str | None = option(None, "Of the values of your own data.", shown=False)
    scaling: dict[str, list[float]] | None = option(  # noqa: RUF009
        None, "How those were made what the model sees.", shown=False
    )
    names: dict[str, list[str]] | None = option(None, "Columns and classes.", shown=False)  # noqa: RUF009

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
        self._check_data()
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
        check_integer("valid_to_train", self.valid_to_train, 0)
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

    def _check_data(self) -> None:
        if not isinstance(self.data, str):
            raise ValueError(f"data must be a name or a path, got {type(self.data).__name__}")
        if not self.is_own:
            check_binarise(self.data, self.binarise)
            for name in OF_OWN:
                value, default = getattr(self, name), getattr(type(self), name)
                if value != default:
                    raise ValueError(
                        f"{name} must be left out for {self.data}, which is known; got {value!r}"
                    )
            return
        if self.values is None:
            raise ValueError(no_data(self.data))
        check_split(self.split)
        check_own_binarise(KINDS[self.values], self.binarise)
        if self.scaling is not None:
            try:
                Scaling.from_dict(self.scaling)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"scaling must have a shift and a scale: {error}") from None

    def _check_model(self, model: type[Autoencoder]) -> None:
        known = options_of(model)
        for field in dataclasses.fields(ModelConfig):
            value = getattr(self, field.name)
            if field.name not in known and field.name != "corruption" and value != field.default:
                raise ValueError(
                    f"{field.name} must be left out for {self.model}, which has none; got {value!r}"
                )

    def _check_support(self) -> None:
        kind = self.kind
        reason = misfit(kind, self.likelihood)
        if reason is not None:
            raise ValueError(
                f"likelihood must not be {self.likelihood} for {self.data_name}: {reason}; take "
                f"{' or '.join(fitting(kind))}"
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
                if self.missing is not None:
                    raise ValueError("gradient must not be score where values may be missing")

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
        least = min(int(labels.min()) for labels in told.values() if len(labels))
        if least < 0:
            raise ValueError(f"context must be labels 0, 1, … of {data.name}, got {least}")
        classes = 1 + max(int(labels.max()) for labels in told.values() if len(labels))
        if self.context_size and self.context_size < classes:
            raise ValueError(
                f"context_size must be >= {classes}, the classes of {data.name}, or left out; "
                f"got {self.context_size}"
            )
        return max(self.context_size, classes)

    def load_data(self) -> Dataset:
        """The data set; raises as `dvae_fast.data.load_dataset` and `load_path`."""
        if self.is_own:
            if not Path(self.data).is_absolute() and not Path(self.data).exists():
                raise DataError(
                    f"the data called {self.data!r} were given in Python, and must be given again, "
                    "as data="
                )
            scaling = None if self.scaling is None else Scaling.from_dict(self.scaling)
            data = load_path(
                self.data, values=self.values, binarise=self.binarise, split=self.split,
                seed=self.data_seed, size=self.size, grey=self.grey, labels=self.labels,
                scaling=scaling, missing=self.missing,
            )  # fmt: skip
            data = named_as(data, self.names)
        else:
            data = load_dataset(self.data, binarise=self.binarise, seed=self.data_seed)
        return self.of(data)

    def of(self, data: Dataset) -> Dataset:
        """The examples of `data` that are trained and validated on.

        Raises:
            OptionError: if there are not so many validation examples to train on.
        """
        try:
            data = data.moved(self.valid_to_train)
        except ValueError as error:
            raise OptionError(f"valid_to_train does not fit: {error}") from None
        return data.first(self.train_examples, self.valid_examples)

    @property
    def is_own(self) -> bool:
        """Whether the data are the user's own."""
        return self.data not in DATASETS

    @property
    def data_name(self) -> str:
        """What the data are called, without the way to them."""
        return Path(self.data).stem if self.is_own else self.data

    @property
    def kind(self) -> Kind:
        """What the values that a model is given are."""
        values = (self.values or BINARY) if self.is_own else DATASETS[self.data].values
        return KINDS[values if BINARISATIONS[self.binarise].grey else BINARY]

    @property
    def is_grey_bernoulli(self) -> bool:
        """Whether a Bernoulli is asked for the density of grey values, which it has none of."""
        return self.kind.step != 1 and isinstance(get_likelihood(self.likelihood), Bernoulli)

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
