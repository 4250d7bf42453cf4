"""What a run's files hold, checked before it is used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvae_fast._checks import check_integer
from dvae_fast.files import CheckpointError, load_tensors, one_line, read_json
from dvae_fast.models.saving import SavedModel, read_model
from dvae_fast.training.config import CONFIG, OptionError, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

__all__ = [
    "Checkpoint",
    "load_config",
    "load_optimizer",
    "load_run",
    "optimizer_tensors",
    "read_checkpoint",
]


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from: its tensors by group, and its numbers (see `Run`)."""

    groups: dict[str, dict[str, Tensor]]
    epoch: int
    position: int
    seconds: float
    best_epoch: int
    best_bound: float | None
    history: list[dict[str, float]]


def read_checkpoint(path: Path, config: TrainConfig) -> Checkpoint:
    """The checkpoint at `path`, if a run with `config` may go on from it.

    Raises:
        OptionError: if the run that it is of was another.
        CheckpointError: if it is absent, damaged or something else.
    """
    tensors, header = load_tensors(path)
    try:
        old = TrainConfig.from_dict(header["config"])
        checkpoint = _checked(tensors, header)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"{path} is not a run's checkpoint: {what}") from None
    had, now = old.origin(), config.origin()
    if (name := _other_run(had, now)) is not None:
        raise OptionError(
            f"{name} must be as in the run to resume, {had[name]!r}; got {now[name]!r}"
        )
    if config.lr_schedule != "constant" and old.epochs != config.epochs:
        raise OptionError(
            f"epochs must be as in the run to resume, {old.epochs}, unless the learning rate is "
            f"constant; got {config.epochs}"
        )
    if config.epochs < checkpoint.epoch:
        raise OptionError(
            f"epochs must be >= {checkpoint.epoch}, the epochs done, to resume; got {config.epochs}"
        )
    return checkpoint


# Of an epoch, what its line of the history has had in every version.
_LINE = ("epoch", "train_bound", "valid_bound")


def _checked(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Checkpoint:
    for name in ("epoch", "position", "best_epoch"):
        check_integer(name, header[name], 0)
    bound = header["best_bound"]
    if header["epoch"] > 0 or bound is not None:
        _check_number("best_bound", bound)
    _check_number("seconds", header["seconds"])
    history = header["history"]
    if not isinstance(history, list) or len(history) != header["epoch"]:
        raise ValueError(f"history must have a line for each of {header['epoch']} epochs")
    for line in history:
        if not isinstance(line, dict) or not line.keys() >= {*_LINE}:
            raise ValueError(f"a line of history must hold {', '.join(_LINE)}, got {line!r}")
        for name, value in line.items():
            _check_number(f"history's {name}", value)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return Checkpoint(
        groups, header["epoch"], header["position"], header["seconds"], header["best_epoch"],
        bound, history,
    )  # fmt: skip


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


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


def load_run(run_dir: str | Path) -> tuple[TrainConfig, SavedModel]:
    """The configuration of a run and its best model, which belong together.

    Raises:
        CheckpointError: if one is not there, is damaged, or is not of the other: a model knows
            what it was trained with.
        MissingExtraError: if safetensors is not installed.
    """
    config, saved = load_config(run_dir), read_model(run_dir)
    if saved.run is None:  # of an earlier version
        return config, saved
    try:
        made = TrainConfig.from_dict(saved.run).origin()
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the model in {run_dir} does not say what it was trained with: {one_line(error)}"
        ) from None
    says = config.origin()
    if (name := _other_run(says, made)) is not None:
        raise CheckpointError(
            f"{run_dir}/{CONFIG} does not belong to the model beside it: its {name} is "
            f"{says[name]!r}, the model was trained with {made[name]!r}"
        )
    return config, saved


# --- optimisers ---------------------------------------------------------------------------------


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimiser's state, every entry a tensor, under ``<parameter's name>/<entry>``."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave.

    Raises:
        ValueError: if an entry is missing, or of another shape than its parameter.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        states.setdefault(name, {})[entry] = value
    order = [p for group in optimizer.param_groups for p in group["params"]]
    entries = {entry for state in states.values() for entry in state}
    for parameter in order:
        found = states.get(names[parameter], {})
        if found and found.keys() != entries:
            missing = ", ".join(sorted(entries - found.keys()))
            raise ValueError(f"{names[parameter]} has no {missing}, where others have")
        for entry, value in found.items():
            if value.dim() and value.shape != parameter.shape:
                raise ValueError(
                    f"{entry} of {names[parameter]} is of shape {tuple(value.shape)}, not "
                    f"{tuple(parameter.shape)}"
                )
    state = {i: states[names[p]] for i, p in enumerate(order) if names[p] in states}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _other_run(had: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first field of two of :meth:`TrainConfig.origin` in which they differ, None if in none.

    The same data of one's own may lie elsewhere.
    """
    same = had["fingerprint"] is not None and had["fingerprint"] == now["fingerprint"]
    return next((k for k in had if had[k] != now[k] and not (same and k == "data")), None)
