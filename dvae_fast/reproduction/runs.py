"""Runs of a table: trained, evaluated on the test set, and kept as one JSON file each.

A folder holds ``<row>-seed<n>.json`` of every finished run, and beside it the run's own folder,
``<row>-seed<n>/``, from which an interrupted one goes on. What an unfinished run has come to may be
kept as such a file too, which says how many epochs were done; the finished run writes over it.
"""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvae_fast._checks import check_choice, check_size
from dvae_fast.corruptions import Learnable
from dvae_fast.data import evenly_spaced, load_dataset
from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.evaluation.partial import PARTIAL, remove_partial
from dvae_fast.evaluation.precision import has_bfloat16
from dvae_fast.evaluation.results import finite_or_none
from dvae_fast.files import CHECKPOINT, CheckpointError, read_json, write_json
from dvae_fast.models import load_model
from dvae_fast.training import CONFIG, TrainConfig, load_config, mean_bound, train
from dvae_fast.training.checkpoint import read_checkpoint
from dvae_fast.training.config import DTYPES
from dvae_fast.training.loop import cpu_threads
from dvae_fast.training.run import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dvae_fast.evaluation import EvaluationProgress
    from dvae_fast.models import Autoencoder
    from dvae_fast.reproduction.rows import Row, Scale
    from dvae_fast.training import Progress

    Report = Callable[["Progress | EvaluationProgress"], None]

__all__ = [
    "Run", "differing", "epochs_done", "evaluate_so_far", "is_finished", "plan", "read_results",
    "result_path", "run_one", "unfinished",
]  # fmt: skip

#: what a result had of an option that is newer than it
_DEFAULTS = TrainConfig().to_dict()
#: of a configuration, what changes speed and rounding alone
_ANYWHERE = ("threads", "device", "cuda_graph")
_COMMIT_SECONDS = 10.0
#: more than anybody trains
_MOST_SEEDS = 10**4
#: points of a learning curve that are kept, at most
_CURVE = 64


@dataclass(frozen=True)
class Run:
    """One row with one seed; pickled to the process that does it.

    Attributes:
        row: its name.
        config: what is trained; holds the seed.
        evaluated_on: the binarisation of the test set.
        k, examples: importance samples an example, and how many test examples, evenly spaced
            because the fixed test set is sorted by digit; None for all.
    """

    row: str
    config: TrainConfig
    evaluated_on: str
    k: int
    examples: int | None

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.row}-seed{self.config.seed}"

    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, JSON-able."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in _ANYWHERE}
        return config | {"evaluated_on": self.evaluated_on, "k": self.k, "examples": self.examples}


def plan(
    rows: Iterable[Row],
    scale: Scale,
    *,
    epochs: int | None = None,
    seeds: int | None = None,
    device: str = "cpu",
    dtype: str = TrainConfig.dtype,
) -> list[Run]:
    """Each row with seeds 0, 1, …; all rows with a seed before any with the next.

    Args:
        rows, scale: what to run, and how much to spend on it.
        epochs, seeds: in the place of the scale's.
        device, dtype: as for `Row.config`; bfloat16 only where it has instructions of its own, for
            a run that went on elsewhere would be of two precisions.

    Raises:
        ValueError: if `epochs`, `seeds`, `device` or `dtype` is not valid.
    """
    if seeds is not None:
        check_size("seeds", seeds, most=_MOST_SEEDS)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be >= 1, got {epochs}")
    check_choice("dtype", dtype, DTYPES)
    if DTYPES[dtype] is not None and not has_bfloat16(device):
        raise ValueError(
            f"dtype must be {TrainConfig.dtype} on a CPU without instructions for {dtype}; "
            f"got {dtype!r}"
        )
    wanted = [(seed, row) for row in rows for seed in range(seeds or scale.seeds)]
    runs = []
    for seed, row in sorted(wanted, key=lambda pair: pair[0]):
        config = row.config(scale, seed, epochs, device, dtype)
        evaluated_on = row.evaluated_on or config.binarise
        runs.append(Run(row.name, config, evaluated_on, scale.k, scale.examples))
    return runs


# --- files --------------------------------------------------------------------------------------


def result_path(folder: Path, run: Run) -> Path:
    """Where the run's numbers are kept."""
    return folder / f"{run.name}.json"


def unfinished(runs: Iterable[Run], folder: Path) -> list[Run]:
    """The runs that the folder holds no numbers of, or those of an unfinished run.

    Raises:
        ValueError: if it holds one, finished or begun, that had other settings.
        CheckpointError: if a file cannot be read.
    """
    left = []
    for run in runs:
        path = result_path(folder, run)
        if path.exists():
            result = _read_result(path)
            _check_settings(path, result["settings"], run.settings())
            if is_finished(result):
                continue
        begun = folder / run.name
        if (begun / CONFIG).is_file():
            earlier = Run(run.row, load_config(begun), run.evaluated_on, run.k, run.examples)
            _check_settings(begun, earlier.settings(), run.settings())
        left.append(run)
    return left


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """In which setting what was `found` is another than `wanted`, if in any, and how."""
    for name in wanted:
        had = found.get(name, _DEFAULTS.get(name))
        if had != wanted[name]:
            return f"its {name} is {had!r}, not {wanted[name]!r}"
    return None


def _check_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if (difference := differing(found, wanted)) is not None:
        raise ValueError(
            f"{path} is of other settings: {difference}; name another folder, or ask for the "
            "settings it had"
        )


_KEYS = (
    "row", "seed", "settings", "versions", "commit", "training_seconds", "best_epoch", "curve",
    "figures", "likelihood",
)  # fmt: skip


def _read_result(path: Path) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or any(key not in result for key in _KEYS):
        raise CheckpointError(f"{path} does not hold the numbers of a run")
    return result


def read_results(folder: Path) -> list[dict[str, Any]]:
    """What was kept of every run, finished or not, in the folder and the folders in it.

    Raises:
        CheckpointError: if there is none, or a file cannot be read.
    """
    results = [_read_result(path) for path in sorted(folder.rglob("*-seed*.json"))]
    if not results:
        raise CheckpointError(f"{folder} holds no numbers of a run: there is no *-seed*.json")
    return results


def epochs_done(result: Mapping[str, Any]) -> int:
    """Of a run's numbers: how many epochs it had trained, fewer than asked for if unfinished."""
    return int(result.get("epochs_done", result["settings"]["epochs"]))


def is_finished(result: Mapping[str, Any]) -> bool:
    """Whether a run's numbers are of all its epochs."""
    return epochs_done(result) == int(result["settings"]["epochs"])


def _commit() -> str | None:
    """Of the repository that this file is tracked in, if it is."""
    here = Path(__file__)
    tracked = ["ls-files", "--error-unmatch", here.name]
    described = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (tracked, described):
            said = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True,
                timeout=_COMMIT_SECONDS,
            ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said


# --- one run ------------------------------------------------------------------------------------


def run_one(run: Run, folder: Path, report: Report | None = None) -> dict[str, Any]:
    """Train, evaluate the best model on the test set, and write the numbers.

    Args:
        run: what to do. One that was interrupted goes on.
        folder: where its files are.
        report: called a few times a second with how far it is; a KeyboardInterrupt that it raises
            stops the run, with all that is done kept.

    Returns:
        What ``<row>-seed<n>.json`` holds: ``row``, ``seed``, ``settings``, ``versions``,
        ``commit``, ``epochs_done``, ``training_seconds``, ``best_epoch`` (by the validation bound:
        it is the model that is evaluated) and its ``valid_bound``; ``learnt_level``, its rate or
        None; ``curve``, both bounds by epoch, at most 64 epochs; ``figures`` on the test set, in
        nats, lower is better: ``own``, minus the model's own bound, K samples and corruption as
        trained, ``clean`` and ``ten``, minus the bounds of one and of ten samples given x itself,
        all three on all of it, and ``nll``, from the importance samples; and ``likelihood``, the
        summary of that estimate, with ``examples_standard_error``, which is of the choice of
        examples. Bounds that are not finite are None.

    Raises:
        KeyboardInterrupt: if it was stopped.
        NonFiniteError, DataError, CheckpointError, MissingExtraError: as `train` and `load_model`.
    """
    run_dir, config = folder / run.name, run.config
    metrics = train(
        config,
        run_dir,
        resume=(run_dir / CHECKPOINT).is_file(),
        tensorboard=False,
        on_progress=report,
    )
    if metrics["status"] == "interrupted" or "signal" in metrics:
        raise KeyboardInterrupt
    model = load_model(run_dir).to(config.device)
    result = _result(run, metrics, model, report, run_dir / PARTIAL)
    write_json(result_path(folder, run), result)
    remove_partial(run_dir / PARTIAL)
    (run_dir / CHECKPOINT).unlink(missing_ok=True)  # all that it is for is done
    return result


def evaluate_so_far(run: Run, folder: Path, report: Report | None = None) -> dict[str, Any] | None:
    """Evaluate the best model yet of a run that is unfinished, or under way in another process.

    Args:
        run, folder, report: as for `run_one`.

    Returns:
        What `run_one` does, ``epochs_done`` fewer than those of the settings, which is written
        where that is; None, and nothing written, of a run that has not finished an epoch.

    Raises:
        CheckpointError, DataError, MissingExtraError: as `load_model` and `train`.
    """
    run_dir = folder / run.name
    if not (run_dir / CHECKPOINT).is_file():
        return None
    # One file, so that nothing that the run writes meanwhile can come between its parts.
    saved = read_checkpoint(run_dir / CHECKPOINT, run.config)
    if not saved.epoch:
        return None
    model = run.config.make_model(run.config.load_data())
    model.load_state_dict(saved.groups["best"])
    metrics = {
        "versions": versions(),
        "epochs_done": saved.epoch,
        "best": {"epoch": saved.best_epoch, "valid_bound": saved.best_bound},
        "history": saved.history,
    }
    result = _result(run, metrics, model.to(run.config.device), report, None)
    write_json(result_path(folder, run), result)
    return result


def _result(
    run: Run,
    metrics: Mapping[str, Any],
    model: Autoencoder,
    report: Report | None,
    partial: Path | None,
) -> dict[str, Any]:
    config, corruption = run.config, model.corruption
    with cpu_threads(config.threads):
        return {
            "row": run.row,
            "seed": config.seed,
            "settings": run.settings(),
            "versions": metrics["versions"],
            "commit": _commit(),
            "device": config.device,
            "epochs_done": metrics["epochs_done"],
            "training_seconds": sum(line["seconds"] for line in metrics["history"]),
            "best_epoch": metrics["best"]["epoch"],
            "valid_bound": metrics["best"]["valid_bound"],
            "learnt_level": corruption.level.mean().item()
            if isinstance(corruption, Learnable)
            else None,
            "curve": _curve(metrics["history"]),
            **_evaluated(run, model, report, partial),
        }


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th epoch, counted from the last."""
    kept = history[:: -math.ceil(len(history) / _CURVE)][::-1]
    names = ("epoch", "train_bound", "valid_bound")
    return [finite_or_none({name: line[name] for name in names}) for line in kept]


def _evaluated(
    run: Run, model: Autoencoder, report: Report | None, partial: Path | None
) -> dict[str, Any]:
    config = run.config
    data = load_dataset(config.data, binarise=run.evaluated_on, seed=config.data_seed)
    x, seed = data.evaluation("test")[:], config.seed
    own = mean_bound(model, x, seed, config.batch_size)
    clean = float(estimate_log_likelihood(model, x, 1, seed=seed).elbo.mean())
    ten = estimate_log_likelihood(model, x, 10, seed=seed).mean
    some = len(x) if run.examples is None else min(run.examples, len(x))
    spaced = evenly_spaced(x, some)
    estimate = estimate_log_likelihood(
        model, spaced, run.k, seed=seed, progress=report, partial=partial
    )
    values = estimate.log_likelihood
    spread = float(values.std()) / math.sqrt(len(values))
    return {
        "figures": finite_or_none(
            {"own": -own, "clean": -clean, "ten": -ten, "nll": -estimate.mean}
        ),
        "likelihood": estimate.summary() | finite_or_none({"examples_standard_error": spread}),
    }
