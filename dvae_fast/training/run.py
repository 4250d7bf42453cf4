"""The state of a run: a step, and all that is saved and restored."""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dvae_fast import ops
from dvae_fast._checks import check_float, check_size
from dvae_fast._version import __version__
from dvae_fast.data import Streamed, batches, check_missing, observed
from dvae_fast.data.given import given_from
from dvae_fast.distributed import World, all_sum, any_true, on_main, share
from dvae_fast.evaluation.precision import has_bfloat16, precision
from dvae_fast.files import CHECKPOINT, CheckpointError, one_line, save_tensors
from dvae_fast.kept import mark_old
from dvae_fast.models import save_model
from dvae_fast.models.context import as_context
from dvae_fast.models.layers import evaluating
from dvae_fast.models.saving import MODEL
from dvae_fast.models.wrappers import unwrapped
from dvae_fast.training.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from dvae_fast.training.config import DTYPES, OptionError, TrainConfig
from dvae_fast.training.graphed import GraphedStep
from dvae_fast.training.heap import return_free_memory
from dvae_fast.training.optimizers import make_optimizer
from dvae_fast.training.schedules import KEPT, ORDERS, kl_weight, learning_rate
from dvae_fast.training.step import TrainingStep

if TYPE_CHECKING:
    from pathlib import Path

    from dvae_fast.data import Dataset
    from dvae_fast.data.given import Data
    from dvae_fast.models import Autoencoder

__all__ = ["NonFiniteError", "Run", "mean_bound", "versions"]


def versions(processes: int = 1) -> dict[str, Any]:
    """What numbers were made with, JSON-able."""
    return {
        "dvae_fast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "compiled_kernels": ops.library_loaded(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


class NonFiniteError(RuntimeError):
    """The bound became NaN or infinite; the message says when, and what can be gone on from."""


def mean_bound(
    model: nn.Module,
    x: Data | Streamed,
    seed: int,
    batch_size: int,
    world: World | None = None,
    *,
    context: Tensor | None = None,
    missing: str | None = None,
) -> float:
    """Mean over x (N, D) of the model's own bound, in nats, on the model's device.

    The noise is a function of seed and example: that of the whole of x at once, whatever
    `batch_size` and however many processes of `world` share the work.

    Args:
        model: an `Autoencoder`; wrapped or compiled too.
        x: a tensor, an array, examples that are streamed, a Dataset or a DataLoader; of pairs
            (x, y), y is the context of a model that has one.
        context: (N, C), or labels (N,).
        missing: "nan", if NaN in x stands for what was not observed: the bound is of the rest.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    check_missing(missing)
    check_size("batch_size", batch_size)
    own: Autoencoder = unwrapped(model)
    if isinstance(x, Streamed):
        values, told = x, given_from(x[:1], context)[1]
    else:
        values, told = given_from(x, context, wants_context=own.context_size > 0)
        check_float("x", values)
        if values.is_meta:
            raise ValueError("x must hold values, got a tensor on meta")
    if len(values) < 1:
        raise ValueError(f"x must hold N >= 1 examples, got shape {tuple(values.shape)}")
    told = own.as_context(told, len(values), values[:1])
    device = next(own.parameters()).device
    world = world or World(0, 1, 0, device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(own):
        for first in range(0, len(values), batch_size):
            batch = values[first : first + batch_size]
            start, stop = share(len(batch), world)
            if start < stop:
                mine = batch[start:stop].to(device)
                rows = slice(first + start, first + stop)
                more = {} if told is None else {"context": told[rows].to(device)}
                if (mask := observed(mine, missing)) is not None:
                    more["mask"] = mask
                bounds = own.bound(mine, seed, first_example=first + start, **more)
                total += bounds.sum(dtype=torch.float64)
    return all_sum(total, world).item() / len(values)


class Run:
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
            try:
                self.model = config.make_model(data)
            except ValueError as error:
                raise OptionError(str(error)) from None
        self.device = self.world.device
        self.model.to(self.device)
        self.images = data.to(self.device)
        self.told = self._context_of(data)
        self.parameters = dict(self.model.named_parameters())
        self.names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        self.optimizer = make_optimizer(
            config.optimizer,
            self.model.parameters(),
            config.learning_rate,
            config.batch_size,
            graphed=config.cuda_graph,
        )
        self.single = TrainingStep(self.model, self.optimizer)
        if config.cuda_graph and config.kl_warmup:
            self.model.kl_weight = torch.ones((), device=self.device)
        self.dtype = DTYPES[config.dtype] if has_bfloat16(self.device) else None
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

    def _context_of(self, data: Dataset) -> dict[str, Tensor]:
        """The labels of each split, looked at once; {} without a context."""
        told = self.config.context_of(data) or {}
        for split, labels in told.items():
            as_context(labels, len(getattr(data, split)), self.model.context_size)
        return {split: labels.to(self.device) for split, labels in told.items()}

    def _context(self, split: str, index: Tensor) -> Tensor | None:
        """(B, C) of the examples at `index`."""
        if split not in self.told:
            return None
        labels = self.told[split]
        labels = labels[index.to(labels.device, non_blocking=True)]
        dtype = next(self.model.parameters()).dtype
        return as_context(labels, len(index), self.model.context_size, dtype, look=False)

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
            order = ORDERS[self.config.order]
            self.permutation = order(len(self.data.train), self.generator)

    def step(self) -> None:
        index = self.permutation[self.position : self.position + self.config.batch_size]
        # Already there, but for examples that are streamed.
        x = self.images.train_batch(index, self.generator).to(self.device, non_blocking=True)
        context = self._context("train", index)
        seed = torch.randint(0, 2**63 - 1, (1,), generator=self.generator)
        seed = seed.to(self.device, non_blocking=True)
        if self.config.cuda_graph and len(index) == self.config.batch_size:
            if self.graph is None:
                self.graph = GraphedStep(self._loss, self.optimizer, x, context)
            loss = self.graph(x, seed, context).detach()
            norm = torch.nn.utils.get_total_norm(self.graph.gradients)
        else:
            if self.parallel is None:
                with precision(self.device, self.dtype):
                    mask = self.data.observed(x)
                    loss = self.single(x, seed, context=context, mask=mask)
            else:
                loss = self.single.descend(self.part(x, seed, context))
            norm = self.single.gradient_norm
        # Not looked at here.
        self.gradient_norms[self.position // self.config.batch_size].copy_(norm)
        self.total.sub_(loss, alpha=len(index) / self.world.size)
        self.position += len(index)

    def _loss(self, x: Tensor, seed: Tensor, context: Tensor | None = None) -> Tensor:
        with precision(self.device, self.dtype):
            return self.model.loss(x, seed, context=context, mask=self.data.observed(x))

    def part(self, x: Tensor, seed: Tensor, context: Tensor | None = None) -> Tensor:
        """This rank's part of the loss: the mean of the parts over ranks is the batch's loss."""
        assert self.parallel is not None
        start, stop = share(len(x), self.world)
        # A rank without an example joins in with one that weighs nothing: the others wait for it.
        rows = slice(start, stop) if start < stop else slice(1)
        told = None if context is None else context[rows]
        mask = self.data.observed(x[rows])
        with precision(self.device, self.dtype):
            loss: Tensor = self.parallel(
                x[rows], seed, context=told, mask=mask, first_example=start
            )
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
        if self.best_bound is None or KEPT[self.config.keep](valid, self.best_bound):
            self.best_bound, self.best_epoch, self.best_saved = valid, self.epoch, False
            for name, t in self.model.state_dict().items():
                self.best[name].copy_(t)
        return_free_memory()
        return record

    def bound(self, split: str, seed: int) -> float:
        """Mean bound over a split, in nats; the same noise at every call."""
        x = self.data.evaluation(split)
        told = self.told.get(split)
        return mean_bound(
            self.model, x, seed, self.config.batch_size, self.world, context=told,
            missing=self.data.missing,
        )  # fmt: skip

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
            f"{self.config.learning_rate:g}.{self._outside_support()}"
        )

    def _outside_support(self) -> str:
        """What the likelihood has against the data, looked at where a number is none."""
        try:
            for x in batches(self.data.train):
                self.model.likelihood.check_support(x, self.data.observed(x))
        except ValueError as error:
            return f" And {error}."
        return ""

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
            run = self.config.origin()
            digest = save_model(self.folder / MODEL, self.model, self.best, run=run)
            self.best_saved = True
            mark_old(self.folder, digest)
        save_tensors(self.folder / CHECKPOINT, tensors, header)

    def restore(self, saved: Checkpoint) -> None:
        """Go on from `saved`, which is of a run with this configuration.

        Raises:
            CheckpointError: if its tensors do not fit.
        """
        groups, examples = saved.groups, len(self.data.train)
        try:
            self.model.load_state_dict(groups["model"])
            load_optimizer(self.optimizer, self.names, groups.get("optimizer", {}))
            for name, t in self.best.items():
                t.copy_(groups["best"][name])
            self.generator.set_state(groups["run"]["generator"])
            self.permutation = groups["run"]["permutation"]
            self._check_position(saved.position, examples)
            total = groups["run"]["total"]
            self.total.copy_(total if self.world.is_main else torch.zeros_like(total))
            self.gradient_norms.copy_(groups["run"]["gradient_norms"])
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
            raise CheckpointError(
                f"{self.folder / CHECKPOINT} does not fit this run: {what}"
            ) from None
        self.epoch, self.position = saved.epoch, saved.position
        self.seconds, self.history = saved.seconds, saved.history
        self.best_epoch, self.best_bound = saved.best_epoch, saved.best_bound

    def _check_position(self, position: int, examples: int) -> None:
        if position > examples:
            raise ValueError(f"position must be <= {examples}, the examples, got {position}")
        if position % self.config.batch_size and position != examples:
            raise ValueError(
                f"position must be a multiple of {self.config.batch_size}, a batch, got {position}"
            )
        if not position:
            return
        order = self.permutation
        if order.dtype != torch.int64 or order.shape != (examples,):
            raise ValueError(f"permutation must be int64 of {examples} examples")
        if not torch.equal(order.sort().values, torch.arange(examples)):
            raise ValueError("permutation must name each example once")

    def metrics(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "config": self.config.to_dict(),
            "versions": versions(self.world.size),
            "parameters": sum(p.numel() for p in self.parameters.values()),
            "epochs_done": self.epoch,
            "best": {"epoch": self.best_epoch, "valid_bound": self.best_bound},
            "history": self.history,
        }
