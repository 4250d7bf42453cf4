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

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import platform
import signal
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dvae_fast import ops
from dvae_fast._version import __version__
from dvae_fast.corruptions.basic import CORRUPTIONS, Corruption, make_corruption, rates_from_mean
from dvae_fast.corruptions.learnable import LEVEL_ESTIMATORS, Learnable
from dvae_fast.data.sets import (
    BINARISATIONS,
    DATASETS,
    GREY_LEVEL_DATASETS,
    IMAGE_SHAPES,
    Dataset,
    load_dataset,
)
from dvae_fast.distributed import (
    World,
    all_max,
    all_sum,
    any_true,
    broadcast_object,
    join,
    on_main,
    share,
)
from dvae_fast.files import (
    CHECKPOINT,
    MODEL,
    CheckpointError,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    read_json,
    save_model,
    save_tensors,
    write_json,
)
from dvae_fast.functional.log_weights import corrupt
from dvae_fast.likelihoods.base import LIKELIHOODS
from dvae_fast.models.decoders import ACTIVATIONS, POSTERIORS, evaluating
from dvae_fast.models.encoders import INFERENCES
from dvae_fast.models.gaussian import (
    MODELS,
    LatentVariableModel,
    check_posterior_objective,
    check_score_objective,
    make_model,
)
from dvae_fast.objectives.loss import OUTSIDE, Objective
from dvae_fast.training.graphed import GraphedStep
from dvae_fast.training.heap import return_free_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

__all__ = [
    "CONFIG",
    "LR_SCHEDULES",
    "METRICS",
    "NonFiniteError",
    "Progress",
    "TrainConfig",
    "check_device",
    "check_world",
    "cpu_threads",
    "default_config",
    "kl_weight",
    "learning_rate",
    "load_config",
    "mean_bound",
    "reconstructions",
    "train",
]

CONFIG = "config.json"
METRICS = "metrics.json"
LR_SCHEDULES = ("constant", "stepwise")

#: by data set: an epoch of the digits is 13 steps, one of MNIST 500
DEFAULT_EPOCHS = {"digits": 300, "mnist": 100, "frey": 300}
DEFAULT_LEARNING_RATES = {"digits": 3e-3, "mnist": 1e-3, "frey": 1e-3}
DEFAULT_LEVEL = 0.05

_REPORT_SECONDS = 0.2
_CHECKPOINT_SECONDS = 30.0
_PICTURE_SECONDS = 15.0


class NonFiniteError(RuntimeError):
    """The bound became NaN or infinite; the message says when, and what can be gone on from."""


# --- configuration ----------------------------------------------------------------------------


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_device(name: str, value: Any, *, here: bool = True) -> None:
    """Raise ValueError unless `value` is ``cpu``, ``cuda`` or ``cuda:N``, and there if `here`."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be cpu, cuda or cuda:N, got {value!r}")
    if here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{name} must be one that torch sees ({torch.cuda.device_count()} GPUs), got {value!r}"
        )


def check_world(config: TrainConfig, world: World) -> None:
    """Raise ValueError if the run cannot be made by that many processes."""
    if config.cuda_graph and world.size > 1:
        raise ValueError(
            f"cuda_graph must be off in a run of several processes; there are {world.size}"
        )


def _check_count(name: str, value: Any, lower: int, upper: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lower <= value < upper:
        rule = f">= {lower}" if upper == math.inf else f"from {lower} to {upper - 1}"
        raise ValueError(f"{name} must be an integer {rule}, got {value!r}")


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
        _check_choice("model", self.model, MODELS)
        _check_choice("data", self.data, DATASETS)
        _check_choice("binarise", self.binarise, BINARISATIONS)
        if self.binarise == "fixed" and self.data != "mnist":
            others = ", ".join(b for b in BINARISATIONS if b != "fixed")
            raise ValueError(
                f"binarise must be one of {others} for {self.data} (fixed exists for mnist "
                "alone); got 'fixed'"
            )
        _check_choice("corruption", self.corruption, CORRUPTIONS)
        self._check_corruption()
        for name, lower in (("M", 1), ("K", 1), ("latent_size", 1), ("epochs", 1)):
            _check_count(name, getattr(self, name), lower)
        _check_count("kl_warmup", self.kl_warmup, 0)
        objective = self.make_objective()
        objective.check_samples(self.M, self.K)
        if self.posterior == "full":
            check_posterior_objective(objective)
        if self.learn_level == "score":
            check_score_objective(objective)
        _check_count("batch_size", self.batch_size, 1)
        for name in ("hidden_sizes", "decoder_hidden_sizes"):
            if (sizes := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(sizes))
                for size in sizes:
                    _check_count(f"each of {name}", size, 1)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("inference", self.inference, INFERENCES)
        _check_choice("posterior", self.posterior, POSTERIORS)
        if self.inference.startswith("gru") and not self.hidden_sizes:
            raise ValueError(
                f"hidden_sizes must hold the size of the recurrent layer for {self.inference}, "
                "got none"
            )
        _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        self._check_support()
        if not (isinstance(self.learning_rate, float) and 0 < self.learning_rate < math.inf):
            raise ValueError(
                f"learning_rate must be a finite number > 0, got {self.learning_rate!r}"
            )
        _check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_count("seed", self.seed, 0, 2**63)
        _check_count("data_seed", self.data_seed, 0, 2**32)
        for name in ("train_examples", "valid_examples", "threads"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), 1)
        # A run is read on machines other than its own, too.
        check_device("device", self.device, here=False)
        if self.cuda_graph and torch.device(self.device).type != "cuda":
            raise ValueError(
                f"cuda_graph must be off unless device is cuda; device is {self.device}"
            )

    def _check_support(self) -> None:
        if self.likelihood == "negative_binomial":
            raise ValueError(
                f"likelihood must not be negative_binomial for {self.data}: it is of counts, and "
                "the values of images lie in [0, 1]"
            )
        if self.likelihood == "discretised_logistic" and (
            self.binarise != "none" or self.data not in GREY_LEVEL_DATASETS
        ):
            raise ValueError(
                "likelihood must not be discretised_logistic unless the data has 256 grey levels: "
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
            _check_choice("learn_level", self.learn_level, LEVEL_ESTIMATORS)
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
    _check_choice("model", model, MODELS)
    _check_choice("data", data, DATASETS)
    values = {name: value for name, value in given.items() if value is not None}
    values.setdefault("binarise", "none" if data == "frey" else "dynamic")
    grey = data == "frey" and values["binarise"] == "none"
    values.setdefault("likelihood", "gaussian" if grey else "bernoulli")
    outside = values.get("objective", MODELS[model].default_objective) in OUTSIDE
    values.setdefault("K", 1 if outside and values.get("estimator") != "vimco" else 5)
    values.setdefault("epochs", DEFAULT_EPOCHS[data])
    values.setdefault("learning_rate", DEFAULT_LEARNING_RATES[data])
    if MODELS[model].denoising:
        binary = values["likelihood"] == "bernoulli"
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


# --- progress and pictures --------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch, epochs: the epoch in progress, from 1, and how many there are.
        examples, total_examples: read so far and in the whole run, all epochs together.
        bound: mean over this epoch so far, in nats per example.
        examples_per_second: of training alone.
        seconds_left: validation included.
    """

    epoch: int
    epochs: int
    examples: int
    total_examples: int
    bound: float
    examples_per_second: float
    seconds_left: float


@torch.no_grad()
def reconstructions(
    model: LatentVariableModel, x: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x, what the encoder is given of it (x̃, or x without corruption), and its reconstruction."""
    x = x.to(next(model.parameters(), x).device)
    noisy = x if model.corruption is None else corrupt(x, model.corruption, seed=seed)
    return x, noisy, model.reconstruct(noisy)


class _Board:
    """TensorBoard's events, or nothing where it is not wanted or not installed."""

    def __init__(self, folder: Path, wanted: bool, epoch: int) -> None:
        self.writer: Any = None
        self.next_picture = 0.0
        if wanted and importlib.util.find_spec("tensorboard") is not None:
            with warnings.catch_warnings():  # its own dependencies' deprecations
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter

            # Whatever a crashed run wrote beyond its checkpoint is hidden.
            purge = epoch + 1 if epoch else None
            with self._optional():
                self.writer = SummaryWriter(str(folder), purge_step=purge)

    @contextlib.contextmanager
    def _optional(self) -> Iterator[None]:
        """What cannot be written is done without: a log must not end a run."""
        try:
            yield
        except OSError as error:
            self.writer = None
            warnings.warn(
                f"TensorBoard's events cannot be written ({error}); going on without them",
                RuntimeWarning,
                stacklevel=2,
            )

    def epoch(self, record: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        step = int(record["epoch"])
        with self._optional():
            for tag, key in (
                ("bound/train", "train_bound"),
                ("bound/valid", "valid_bound"),
                ("gradient norm", "gradient_norm"),
                ("learning rate", "learning_rate"),
                ("examples per second", "examples_per_second"),
            ):
                self.writer.add_scalar(tag, record[key], step)

    def pictures(
        self, model: LatentVariableModel, data: Dataset, epoch: int, *, last: bool = False
    ) -> None:
        if self.writer is None or (time.monotonic() < self.next_picture and not last):
            return
        self.next_picture = time.monotonic() + _PICTURE_SECONDS
        rows = reconstructions(model, data.evaluation("valid")[:8], seed=0)
        shape = (-1, 1, *data.image_shape)
        with self._optional():
            for tag, images in (
                ("samples", model.sample(64, seed=0)),
                ("x, corrupted, reconstructed", torch.cat(rows)),
            ):
                self.writer.add_images(tag, images.clamp(0, 1).reshape(shape), epoch)

    def close(self) -> None:
        if self.writer is not None:
            with self._optional():
                self.writer.close()


class _Signals:
    """Turns the first SIGINT or SIGTERM into a flag, so that no step is cut in half.

    A second one interrupts at once. Outside the main thread, where no handler may be set, only
    a callback's KeyboardInterrupt can stop the run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
        self.old = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.__exit__()
            raise KeyboardInterrupt
        self.received = number

    def call(self, callback: Callable[[Any], None] | None, value: Any) -> None:
        """Call back between two steps, where a KeyboardInterrupt is as good as a signal."""
        if callback is None:
            return
        try:
            callback(value)
        except KeyboardInterrupt:
            self.received = self.received or signal.SIGINT


_MOST_STEPS = 1000


class _Pace:
    """When to report, save and stop: by rank 0's clock and any rank's signal, at one step for all.

    Several processes agree a few times a second; at every step it would cost as much as a small
    step does.
    """

    def __init__(self, world: World, signals: _Signals) -> None:
        self.world, self.signals = world, signals
        self._stop: int | None = None
        self._steps, self._left = 0, 1  # since they last agreed, and until they will again
        self._since = time.perf_counter()

    @property
    def stop(self) -> int | None:
        """The signal at which all ranks stop."""
        return self.signals.received if self.world.size == 1 else self._stop

    def agree(self, *flags: bool) -> list[bool]:
        """Rank 0's flags, after every rank has heard of every other's signal."""
        if self.world.size == 1:
            return list(flags)
        now = time.perf_counter()
        wanted = _REPORT_SECONDS / 2 * self._steps / max(now - self._since, 1e-9)
        own = (*flags, max(1, min(int(wanted), _MOST_STEPS)))
        mine = own if self.world.is_main else [0] * len(own)
        number, *told, self._left = all_max([self.signals.received or 0, *mine], self.world)
        self._stop = number or None
        self._steps, self._since = 0, now
        return [bool(flag) for flag in told]

    def after_step(self, *flags: bool) -> list[bool]:
        """`agree`, if this is a step to do so; else no flag is set."""
        if self.world.size > 1:
            self._steps += 1
            if self._steps < self._left:
                return [False] * len(flags)
        return self.agree(*flags)


# --- the run ----------------------------------------------------------------------------------


def mean_bound(
    model: LatentVariableModel, x: Tensor, seed: int, batch_size: int, world: World | None = None
) -> float:
    """Mean over x (N, D) of the model's own bound, in nats, on the model's device.

    One seed and `batch_size` give one noise, however many processes of `world` share the work.
    """
    device = next(model.parameters()).device
    world = world or World(0, 1, 0, device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for i, batch in enumerate(torch.split(x, batch_size)):
            # A seed for each batch, because the noise counts examples from its first.
            key = (seed + i) % 2**63
            start, stop = share(len(batch), world)
            if start < stop:
                bounds = model.bound(batch[start:stop].to(device), key, first_example=start)
                total += bounds.sum(dtype=torch.float64)
    return all_sum(total, world).item() / len(x)


class _Run:
    """The state of a run: all of it is saved, and a step is the only thing that changes it."""

    def __init__(
        self, config: TrainConfig, folder: Path, data: Dataset, world: World | None = None
    ) -> None:
        self.config, self.folder, self.data = config, folder, data
        self.world = world or World(0, 1, 0, torch.device(config.device))
        self.generator = torch.Generator().manual_seed(config.seed)
        seeds = torch.randint(0, 2**63 - 1, (3,), generator=self.generator).tolist()
        initial, self.valid_seed, self.test_seed = seeds
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(initial)
            self.model = config.make_model(data)
        self.device = self.world.device
        self.model.to(self.device)
        self.images = data.to(self.device)
        self.parameters = dict(self.model.named_parameters())
        self.names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        # Fused: one pass over each parameter, 3 to 4 times as fast as the default on a CPU. A
        # number would be a constant of a graph.
        rate = config.learning_rate
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=torch.tensor(rate, device=self.device) if config.cuda_graph else rate,
            fused=True,
            capturable=config.cuda_graph,
        )
        if config.cuda_graph and config.kl_warmup:
            self.model.kl_weight = torch.ones((), device=self.device)
        self.graph: GraphedStep | None = None
        self.parallel: DistributedDataParallel | None = None
        if self.world.size > 1:
            self.parallel = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        self.epoch = 0  # finished
        self.position = 0  # examples read of the epoch in progress
        self.permutation = torch.empty(0, dtype=torch.int64)
        # Σ bound over those examples; of several ranks each has a part of it
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        # norm of each step's gradient, of the epoch in progress
        steps = -(-len(data.train) // config.batch_size)
        self.gradient_norms = torch.zeros(steps, device=self.device)
        self.seconds = 0.0  # training time of the epoch in progress
        self.history: list[dict[str, float]] = []
        self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.best_epoch = 0
        self.best_bound: float | None = None
        self.best_saved = False

    # --- steps ---

    def start_epoch(self) -> None:
        rate = learning_rate(self.config, self.epoch)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        weight = kl_weight(self.config, self.epoch)
        if isinstance(self.model.kl_weight, Tensor):
            self.model.kl_weight.fill_(weight)
        else:
            self.model.kl_weight = weight
        if self.position == 0:
            self.permutation = torch.randperm(len(self.data.train), generator=self.generator)

    def step(self) -> None:
        index = self.permutation[self.position : self.position + self.config.batch_size]
        x = self.images.train_batch(index, self.generator)
        seed = torch.randint(0, 2**63 - 1, (1,), generator=self.generator)
        seed = seed.to(self.device, non_blocking=True)
        if self.config.cuda_graph and len(index) == self.config.batch_size:
            if self.graph is None:
                self.graph = GraphedStep(self.model.loss, self.optimizer, x)
            loss = self.graph(x, seed)
            gradients = self.graph.gradients
        else:
            loss = self.model.loss(x, seed) if self.parallel is None else self.part(x, seed)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        # 0.12 ms on a CPU: 2 % of the shortest step (K = 1), 0.2 % at K = 50. Not looked at here.
        norm = torch.nn.utils.get_total_norm(gradients)
        self.gradient_norms[self.position // self.config.batch_size].copy_(norm)
        self.total.sub_(loss.detach(), alpha=len(index) / self.world.size)
        self.position += len(index)

    def part(self, x: Tensor, seed: Tensor) -> Tensor:
        """This rank's part of the loss: the mean of the parts over ranks is the batch's loss."""
        assert self.parallel is not None
        start, stop = share(len(x), self.world)
        # A rank without an example joins in with one that weighs nothing: the others wait for it.
        mine = x[start:stop] if start < stop else x[:1]
        loss: Tensor = self.parallel(mine, seed, first_example=start)
        weight = (stop - start) * self.world.size / len(x)
        return loss if weight == 1 else loss * weight

    def epoch_done(self) -> bool:
        return self.position == len(self.data.train)

    def finish_epoch(self) -> dict[str, float]:
        """Validate, keep the best, and be ready for the next epoch."""
        total = self.check_finite()
        valid = self.bound("valid", self.valid_seed)
        if not math.isfinite(valid):
            raise self.non_finite("the validation bound", valid)
        norms = self.gradient_norms
        record = {
            "epoch": self.epoch + 1,
            "train_bound": total / self.position,
            "valid_bound": valid,
            "learning_rate": learning_rate(self.config, self.epoch),
            "gradient_norm": norms.mean().item(),
            "largest_gradient_norm": norms.max().item(),
            "seconds": self.seconds,
            "examples_per_second": self.position / max(self.seconds, 1e-9),
        }
        self.history.append(record)
        self.epoch, self.position, self.seconds = self.epoch + 1, 0, 0.0
        self.total.zero_()
        if self.best_bound is None or valid > self.best_bound:
            self.best_bound, self.best_epoch, self.best_saved = valid, self.epoch, False
            for name, t in self.model.state_dict().items():
                self.best[name].copy_(t)
        return_free_memory()
        return record

    def bound(self, split: str, seed: int) -> float:
        """Mean bound over a split, in nats; the same noise at every call."""
        x = self.data.evaluation(split)
        return mean_bound(self.model, x, seed, self.config.batch_size, self.world)

    # --- numbers that are none ---

    def norms_so_far(self) -> Tensor:
        """Of the gradients of the epoch in progress."""
        return self.gradient_norms[: -(-self.position // self.config.batch_size)]

    def check_finite(self) -> float:
        """The one look at the loss, a few times a second: a NaN or an infinity stays in the sum."""
        value = all_sum(self.total, self.world).item()
        if not math.isfinite(value):
            raise self.non_finite("the training bound", value)
        norms = self.norms_so_far()
        if not bool(norms.isfinite().all()):  # the same on every rank
            raise self.non_finite("a gradient", float(norms[~norms.isfinite()][0]))
        return value

    def parameters_finite(self) -> bool:
        finite = all(bool(p.isfinite().all()) for p in self.parameters.values())
        return not any_true(not finite, self.world)

    def non_finite(self, what: str, value: float) -> NonFiniteError:
        norms = self.norms_so_far()
        bad = ~norms.isfinite()
        gradients = f"{int(bad.sum())} of the epoch's {len(norms)} gradients are not finite"
        if bool(bad.any()):
            gradients += f", the first of step {int(bad.nonzero()[0]) + 1}"
        if not bool(bad.all()):
            gradients += f"; the largest norm of the others is {float(norms[~bad].max()):.3g}"
        return NonFiniteError(
            f"{what} became {value} in epoch {self.epoch + 1}, after {self.position} of "
            f"{len(self.data.train)} examples ({gradients}); {self.folder / CHECKPOINT} holds the "
            f"last state before that. Start another run with a smaller learning rate than "
            f"{self.config.learning_rate:g}."
        )

    # --- files ---

    def save(self) -> None:
        """Write the checkpoint and, if it is new, the best model; never one with a NaN in it."""
        self.check_finite()
        if not self.parameters_finite():
            raise self.non_finite("a parameter", math.nan)
        total = all_sum(self.total, self.world)
        on_main(lambda: self._write(total), self.world)

    def _write(self, total: Tensor) -> None:
        groups = {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": optimizer_tensors(self.optimizer, self.names),
            "run": {
                "generator": self.generator.get_state(),
                "permutation": self.permutation,
                "total": total,
                "gradient_norms": self.gradient_norms,
            },
        }
        tensors = {f"{group}/{k}": t for group, ts in groups.items() for k, t in ts.items()}
        header = {
            "config": self.config.to_dict(),
            "epoch": self.epoch,
            "position": self.position,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_bound": self.best_bound,
            "history": self.history,
        }
        if not self.best_saved and self.best_epoch:
            save_model(self.folder / MODEL, self.model.config(), self.best)
            self.best_saved = True
        save_tensors(self.folder / CHECKPOINT, tensors, header)

    def restore(self) -> None:
        path = self.folder / CHECKPOINT
        tensors, header = on_main(lambda: load_tensors(path), self.world)
        try:
            old = TrainConfig.from_dict(header["config"]).to_dict()
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a run's checkpoint: {error}") from None
        new = self.config.to_dict()
        for name in old.keys() - {"epochs", "threads", "device", "cuda_graph"}:
            if old[name] != new[name]:
                raise ValueError(
                    f"{name} must be as in the run to resume, {old[name]!r}; got {new[name]!r}"
                )
        if self.config.lr_schedule != "constant" and old["epochs"] != new["epochs"]:
            raise ValueError(
                f"epochs must be as in the run to resume, {old['epochs']}, unless the learning "
                f"rate is constant; got {new['epochs']}"
            )
        if self.config.epochs < header["epoch"]:
            raise ValueError(
                f"epochs must be >= {header['epoch']}, the epochs done, to resume; "
                f"got {self.config.epochs}"
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
        try:
            self.model.load_state_dict(groups["model"])
            load_optimizer(self.optimizer, self.names, groups.get("optimizer", {}))
            for name, t in self.best.items():
                t.copy_(groups["best"][name])
            self.generator.set_state(groups["run"]["generator"])
            self.permutation = groups["run"]["permutation"]
            total = groups["run"]["total"]
            self.total.copy_(total if self.world.is_main else torch.zeros_like(total))
            self.epoch, self.position = header["epoch"], header["position"]
            self.gradient_norms.copy_(groups["run"]["gradient_norms"])
            self.seconds, self.history = header["seconds"], header["history"]
            self.best_epoch, self.best_bound = header["best_epoch"], header["best_bound"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from None

    def metrics(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "config": self.config.to_dict(),
            "versions": {
                "dvae_fast": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "compiled_kernels": ops.library_loaded(),
                "threads": torch.get_num_threads(),
                "processes": self.world.size,
            },
            "parameters": sum(p.numel() for p in self.parameters.values()),
            "epochs_done": self.epoch,
            "best": {"epoch": self.best_epoch, "valid_bound": self.best_bound},
            "history": self.history,
        }


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Torch's number of CPU threads within the block; None leaves it as it is."""
    old = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(old)


def train(
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    tensorboard: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train a model and leave a run folder.

    SIGINT, SIGTERM, and a KeyboardInterrupt raised by a callback end the step in progress, save,
    and return; a second signal interrupts at once, without saving. Of several processes (see
    `dvae_fast.distributed.join`) all stop at the same step, a moment later.

    Args:
        config: what to train.
        run_dir: the folder; made if it is not there.
        resume: go on from the folder's checkpoint. `config` must be the run's, but for ``epochs``
            (to train longer), ``threads``, ``device`` and ``cuda_graph``.
        tensorboard: write its events, if it is installed.
        on_progress: called a few times a second, on rank 0 alone.
        on_epoch: called after each epoch with its line of ``history``, on rank 0 alone.
        checkpoint_seconds: how often to save; always at the start, the end and when stopped.

    Returns:
        What ``metrics.json`` holds: ``status`` ("finished" or "interrupted"), ``config``,
        ``versions``, ``history`` (of each epoch: bounds, mean and largest norm of the gradients,
        time) and ``best``, bounds in nats per example, and, if finished,
        ``test_bound`` of the best model, and the mean of its corruption's levels as
        ``learnt_level``, if learnt; if a signal came, even too late to interrupt, its number as
        ``signal``. The same on every rank.

    Raises:
        ValueError: if the folder holds a run and `resume` is False, or holds another than
            `config` says; if the device is not there, or torchrun's environment is not whole;
            for ``cuda_graph`` with several processes.
        DistributedError: if another process ends or is silent for too long.
        NonFiniteError: if a bound becomes NaN or infinite; the last good checkpoint is kept.
        CheckpointError: if a file cannot be written or read; earlier ones stay intact.
        DataError, MissingExtraError: if the data or safetensors cannot be had.
    """
    check_device("device", config.device)
    folder = Path(run_dir)
    with join(config.device) as world:
        check_world(config, world)
        on_main(lambda: _check_folder(folder, resume), world)
        data = _load_data(config, world)
        with cpu_threads(config.threads), _Signals() as signals:
            run = _Run(config, folder, data, world)
            if resume:
                run.restore()
            on_main(lambda: write_json(folder / CONFIG, config.to_dict()), world)
            run.save()  # that the folder can be written shows before the work, not after
            board = _Board(folder, tensorboard and world.is_main, run.epoch)
            pace = _Pace(world, signals)
            try:
                _loop(run, board, pace, on_progress, on_epoch, checkpoint_seconds)
                finished = run.epoch >= config.epochs
                run.save()
                metrics = run.metrics("finished" if finished else "interrupted")
                if finished:
                    run.model.load_state_dict(run.best)
                    if isinstance(run.model.corruption, Learnable):
                        metrics["learnt_level"] = run.model.corruption.level.detach().mean().item()
                    metrics["test_bound"] = run.bound("test", run.test_seed)
                    board.pictures(run.model, data, run.best_epoch, last=True)
                pace.agree()
                if pace.stop is not None:
                    metrics["signal"] = pace.stop
                on_main(lambda: write_json(folder / METRICS, metrics), world)
                return broadcast_object(metrics, world)  # the times are rank 0's
            finally:
                board.close()


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / CHECKPOINT).is_file():
        raise CheckpointError(f"{folder} holds no {CHECKPOINT} to resume from")
    if not resume and (folder / CHECKPOINT).exists():
        raise ValueError(f"run_dir must not hold a run already, unless it is resumed; got {folder}")


def _load_data(config: TrainConfig, world: World) -> Dataset:
    """Rank 0 first, so that what must be downloaded is downloaded once."""
    loaded: list[Dataset] = []
    on_main(lambda: loaded.append(config.load_data()), world)
    return loaded[0] if world.is_main else config.load_data()


def _loop(
    run: _Run,
    board: _Board,
    pace: _Pace,
    on_progress: Callable[[Progress], None] | None,
    on_epoch: Callable[[dict[str, float]], None] | None,
    checkpoint_seconds: float,
) -> None:
    epochs, examples = run.config.epochs, len(run.data.train)
    start = run.epoch * examples + run.position
    began = last = time.perf_counter()
    next_report, next_save = began + _REPORT_SECONDS, began + checkpoint_seconds
    trained = 0.0
    if not run.world.is_main:
        on_progress = on_epoch = None

    def report(total: float) -> None:
        done = run.epoch * examples + run.position
        wall = max(time.perf_counter() - began, 1e-9)
        new = done - start
        progress = Progress(
            epoch=min(run.epoch + 1, epochs),
            epochs=epochs,
            examples=done,
            total_examples=epochs * examples,
            bound=total / run.position if run.position else math.nan,
            examples_per_second=new / max(trained, 1e-9),
            seconds_left=(epochs * examples - done) * wall / new if new else math.inf,
        )
        pace.signals.call(on_progress, progress)

    while run.epoch < epochs and pace.stop is None:
        run.start_epoch()
        last = time.perf_counter()
        while not run.epoch_done() and pace.stop is None:
            run.step()
            now = time.perf_counter()
            run.seconds += now - last
            trained += now - last
            last = now
            reporting, saving = pace.after_step(now >= next_report, now >= next_save)
            if reporting:
                total = run.check_finite()
                waited = time.perf_counter() - now  # for the steps that a GPU still had before it
                run.seconds += waited
                trained += waited
                report(total)
                if saving:
                    run.save()
                    next_save = time.perf_counter() + checkpoint_seconds
                last = time.perf_counter()
                next_report = last + _REPORT_SECONDS
        if run.epoch_done() and pace.stop is None:
            record = run.finish_epoch()
            board.epoch(record)
            board.pictures(run.model, run.data, run.epoch)
            pace.signals.call(on_epoch, record)
            pace.agree()
