"""``dvae-fast evaluate``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvae_fast._checks import check_choice, check_device
from dvae_fast._text import counted, format_duration, format_number
from dvae_fast.cli.console import (
    check_seed,
    check_threads,
    fail,
    listed,
    one_line_errors,
    print_warnings,
    two_columns,
    wrong_options,
)
from dvae_fast.cli.options import shown
from dvae_fast.cli.outlet import new_console, progress_bar, say
from dvae_fast.cli.results import Results, evaluation_rows
from dvae_fast.data import MISSING, SPLITS, check_missing
from dvae_fast.distributed import World, barrier, is_main_process, join, on_main
from dvae_fast.evaluation import (
    DTYPES,
    PROPOSALS,
    LikelihoodEstimate,
    annealed_importance_sampling,
    estimate_log_likelihood,
)
from dvae_fast.evaluation.partial import PARTIAL, partial_exists, remove_partial
from dvae_fast.files import can_write_in
from dvae_fast.kept import MODEL_DIGEST
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.models.config import DATA, OUTPUT
from dvae_fast.training import load_run
from dvae_fast.training.loop import cpu_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from dvae_fast.data import Dataset
    from dvae_fast.evaluation import AISEstimate, EvaluationProgress
    from dvae_fast.models.saving import SavedModel
    from dvae_fast.training import TrainConfig

__all__ = ["evaluate", "evaluate_command", "load_data_of"]

METHODS = ("importance", "ais")


_ESTIMATE, _ANNEALED, _SPEED = "Estimate", "Annealed importance sampling", "Speed and memory"


def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    data: Annotated[
        Path | None, shown(DATA, "Other data, or where those lie now. Default: the run's.")
    ] = None,
    missing: Annotated[
        str | None,
        shown(
            DATA,
            f"Of other data, as in training: {listed(MISSING)}. Default: the run's.",
            choices=MISSING,
        ),
    ] = None,
    split: Annotated[str, shown(DATA, f"One of {listed(SPLITS)}.", choices=SPLITS)] = "test",
    limit: Annotated[
        int | None, shown(DATA, "Only the first so many examples. Default: all.")
    ] = None,
    k: Annotated[
        int | None,
        shown(
            _ESTIMATE,
            "Importance samples an example, or AIS chains. Default: 5000; 16 chains.",
            "--k",
            "-k",
        ),
    ] = None,
    method: Annotated[
        str,
        shown(
            _ESTIMATE,
            f"One of {listed(METHODS)}: importance sampling, or annealed, slower.",
            choices=METHODS,
        ),
    ] = "importance",
    proposal: Annotated[
        str,
        shown(
            _ESTIMATE,
            f"Draw z from one of {listed(PROPOSALS)}: q(z|x), q(z|x̃) with a fresh x̃ for each "
            "sample, or the mean of q(z|x̃) over --copies corruptions.",
            choices=PROPOSALS,
        ),
    ] = "posterior",
    copies: Annotated[int, shown(_ESTIMATE, "Corruptions of a mixture.")] = 10,
    tolerance: Annotated[
        float | None,
        shown(
            _ESTIMATE,
            "Go on where the standard error in nats is above this, as far as --max-k. "
            "Default: k samples everywhere.",
        ),
    ] = None,
    max_k: Annotated[
        int | None, shown(_ESTIMATE, "With a tolerance. Default: 20 k.", "--max-k")
    ] = None,
    seed: Annotated[int, shown(_ESTIMATE, "Of the importance samples.")] = 0,
    temperatures: Annotated[
        int | None, shown(_ANNEALED, "Distributions on the way. Default: 500.")
    ] = None,
    leapfrog: Annotated[
        int | None, shown(_ANNEALED, "Steps of a Hamiltonian move. Default: 10.")
    ] = None,
    dtype: Annotated[
        str | None,
        shown(
            _SPEED,
            f"Of the decoder's products: {' or '.join(DTYPES)}. Default: the model's.",
            choices=DTYPES,
        ),
    ] = None,
    compile: Annotated[
        bool, shown(_SPEED, "Run the decoder through torch.compile.", "--compile")
    ] = False,
    batch_size: Annotated[
        int | None,
        shown(_SPEED, "Examples at once; the numbers stay the same. Default: by memory."),
    ] = None,
    chunk: Annotated[
        int | None, shown(_SPEED, "Samples at once; the numbers stay the same. Default: by memory.")
    ] = None,
    threads: Annotated[int | None, shown(_SPEED, "CPU threads. Default: PyTorch's choice.")] = None,
    device: Annotated[str, shown(_SPEED, "cpu, cuda or cuda:N.")] = "cpu",
    resume: Annotated[
        bool, shown(OUTPUT, "Go on with an evaluation that was interrupted.", "--resume")
    ] = False,
    out: Annotated[
        Path | None,
        shown(
            OUTPUT, "A folder for the results, or a file that ends in .json. Default: the run's."
        ),
    ] = None,
    quiet: Annotated[bool, shown(OUTPUT, "Print errors only.", "--quiet", "-q")] = False,
) -> None:
    """Estimate log p(x) of a run's best model by importance sampling.

    Writes evaluation.json, evaluation.npz with each example's numbers, and pictures, into the
    run's folder; and the first two once more for each split, method, proposal and k, as
    evaluation-test-importance-posterior-k5000.json, say.
    """
    with one_line_errors():
        with wrong_options():
            for name, value, valid in (
                ("split", split, SPLITS), ("method", method, METHODS),
                ("proposal", proposal, PROPOSALS), ("dtype", dtype, DTYPES),
            ):  # fmt: skip
                if value is not None:
                    check_choice(name, value, valid)
            for name, count in (
                ("k", k), ("limit", limit), ("batch-size", batch_size), ("chunk", chunk),
                ("threads", threads), ("max-k", max_k), ("copies", copies),
                ("temperatures", temperatures), ("leapfrog", leapfrog),
            ):  # fmt: skip
                if count is not None and count < 1:
                    raise ValueError(f"{name} must be >= 1, got {count}")
            if tolerance is not None and not 0 < tolerance < math.inf:
                raise ValueError(f"tolerance must be > 0 and finite, got {tolerance}")
            if max_k is not None and tolerance is None:
                raise ValueError("max-k must come with a tolerance")
            if max_k is not None and max_k < (k or 5000):
                raise ValueError(f"max-k must be >= k = {k or 5000}, got {max_k}")
            check_missing(missing)
            if missing is not None and data is None:
                raise ValueError("missing must come with data")
            check_seed(seed)
            check_threads(threads)
            check_device("device", device)
        options: dict[str, Any] = {"k": k, "seed": seed, "batch_size": batch_size}
        importance = {
            "proposal": proposal, "copies": copies, "tolerance": tolerance, "max_k": max_k,
            "dtype": dtype, "compile": compile, "chunk": chunk, "resume": resume,
        }  # fmt: skip
        ais = {"temperatures": temperatures, "leapfrog": leapfrog}
        with wrong_options():
            if copies != _UNSET["copies"] and proposal != "mixture":
                raise ValueError("copies must come with the proposal mixture")
            options |= _of_method(method, {"importance": importance, "ais": ais})
        console = new_console(quiet=quiet or not is_main_process())
        with contextlib.ExitStack() as stack:
            stack.enter_context(cpu_threads(threads))
            with wrong_options(shared=False):  # each process has an environment of its own
                world = stack.enter_context(join(device))
            if method == "ais" and world.size > 1:
                fail("method must be importance for several processes, got ais", 2, shared=True)
            stack.enter_context(one_line_errors())  # told while the others are still there
            config, saved = on_main(lambda: load_run(run_dir), world)
            if data is not None:
                config = _on_other_data(config, data, missing or config.missing)
            found = load_data_of(config)
            results = Results.at(out or run_dir)
            writable = on_main(lambda: can_write_in(results.folder), world)
            if not writable:
                _cannot_write(results.folder, silent=out is not None or quiet, world=world)
            on_main(lambda: stack.enter_context(results.locked()), world)
            report, estimate = evaluate(
                console, config, found, saved, results if writable else None, world, method=method,
                split=split, limit=limit, **options,
            )  # fmt: skip
            if not world.is_main:
                return
            title = f"{report['model']} on {report['data']}, {report['split']} set"
            try:
                if writable:
                    results.keep(console, config, found, saved.model, report, estimate)
            finally:  # a full disk does not take all along
                console.print(two_columns(evaluation_rows(report), title))
                print_warnings(console, report)


def load_data_of(config: TrainConfig) -> Dataset:
    """The data that `config` names, before any work."""
    with wrong_options():
        return config.load_data()


def _on_other_data(config: TrainConfig, data: Path, missing: str | None) -> TrainConfig:
    with wrong_options():
        if not config.is_own:
            raise ValueError(f"data must be left out for a run on {config.data}, got {str(data)!r}")
        where = str(data.expanduser().resolve())
        return dataclasses.replace(config, data=where, missing=missing)


def other_data(config: TrainConfig, data: Dataset) -> str:
    """What to say of an evaluation on data that the model was not trained on."""
    return (
        f"{config.data} does not hold the data that the model was trained on: their fingerprint is "
        f"{config.fingerprint}, that of these {data.fingerprint}. Its test set may have been "
        "trained on."
    )


def _cannot_write(folder: Path, *, silent: bool, world: World) -> None:
    """Before the work: an error where the results would be lost, a warning where they are shown."""
    if silent:
        fail(f"cannot write in {folder}: name another folder with --out", 1, shared=True)
    if world.is_main:
        say(
            f"dvae-fast: warning: cannot write in {folder}: the results are printed, not kept; "
            "--out names a folder that keeps them",
            error=True,
        )


def _of_method(method: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of this method; ValueError if one of another method is given."""
    for other, theirs in options.items():
        for name, value in theirs.items():
            if other != method and value != _UNSET.get(name):
                option = name.replace("_", "-")
                raise ValueError(f"{option} must be left out with method {method}")
    return {name: value for name, value in options[method].items() if value is not None}


#: what options are if they are not given, where that is not None
_UNSET = {"proposal": "posterior", "copies": 10, "compile": False, "resume": False}


def evaluate(
    console: Console,
    config: TrainConfig,
    data: Dataset,
    saved: SavedModel,
    results: Results | None,
    world: World,
    *,
    k: int | None,
    method: str = "importance",
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    resume: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], LikelihoodEstimate | AISEstimate]:
    """Evaluate the run's best model: what evaluation.json holds, and all of it.

    `data`: what `config` names. `results`: where what is done is kept on the way; None for nowhere.
    """
    model = saved.model.to(world.device)
    x = data.evaluation(split)[:limit]
    mask = data.observed(x)
    with wrong_options():
        told = config.context_of(data)
    context = None if told is None else told[split][:limit]
    console.print(
        f"Evaluating {config.model} on {config.data_name}, {split} set: "
        f"{counted(len(x), 'example')}",
        soft_wrap=True,
        markup=False,
    )
    with _Bar(console, world) as bar:
        start = time.perf_counter()
        estimate: LikelihoodEstimate | AISEstimate
        with wrong_options(begun=lambda: bar.begun):
            if method == "ais":
                if k is not None:
                    options["chains"] = k
                estimate = annealed_importance_sampling(
                    model, x, context=context, mask=mask, seed=seed, progress=bar.advance,
                    **options,
                )  # fmt: skip
            else:
                partial = results.folder / PARTIAL if results else None
                if partial and not resume and world.is_main and remove_partial(partial):
                    console.print(
                        "An unfinished evaluation is dropped; --resume would have gone on with it."
                    )
                barrier(world)
                if k is not None:
                    options["k"] = k
                try:
                    estimate = estimate_log_likelihood(
                        model, x, context=context, mask=mask, seed=seed, progress=bar.advance,
                        partial=partial, world=world, **options,
                    )  # fmt: skip
                except KeyboardInterrupt:
                    is_kept = partial and partial_exists(partial)
                    kept = "; what is done is kept, go on with --resume" * bool(is_kept)
                    fail(f"interrupted{kept}", 130, shared=True)
        seconds = time.perf_counter() - start
    report = {
        "model": config.model,
        MODEL_DIGEST: saved.digest,
        "data": config.data_name,
        "binarise": config.binarise,
        "likelihood": config.likelihood,
        "split": split,
        "limit": limit,
        **estimate.summary(),
    }
    report["density_of"] = "on [0, 1]" if config.kind.is_unit else "of the standardised values"
    volume = data.scaling.log_volume(data.size, mask)
    report["missing"] = None if mask is None else 1 - mask.double().mean().item()
    if config.is_own and get_likelihood(config.likelihood).is_density and volume:
        report["log_likelihood_in_units"] = estimate.mean - volume
    if data.fingerprint != config.fingerprint:
        report["other_data"] = {"trained_on": config.fingerprint, "this": data.fingerprint}
        report["warnings"] = [other_data(config, data), *report["warnings"]]
    report["grey_bernoulli"] = config.is_grey_bernoulli  # the estimate's own warnings say it
    report["seconds"] = seconds
    report["processes"] = world.size
    return report, estimate


_LINES = 10


class _Bar:
    """A bar of this process's share; the others' goes at about the same pace.

    Where the output is no terminal: lines, ten of them or fewer.
    """

    def __init__(self, console: Console, world: World) -> None:
        self.begun = False
        self._console, self._world = console, world
        self._start, self._told = time.perf_counter(), 0
        self._bar = progress_bar(
            console,
            "evaluating",
            "{task.completed}/{task.total} examples",
            "{task.fields[rate]} samples/s",
            "log p(x) {task.fields[value]} nats",
            "{task.fields[left]} left",
        )
        self._task = self._bar.add_task("", total=None, rate="–", value="–", left="–:––")

    def __enter__(self) -> _Bar:
        if not self._console.quiet:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, state: EvaluationProgress) -> None:
        self.begun = True
        if self._console.quiet:
            return
        seconds = time.perf_counter() - self._start
        value = "not finite"
        if math.isfinite(state.log_likelihood):
            value = (
                f"{format_number(state.log_likelihood)} ± {format_number(state.standard_error, 3)}"
            )
        left = format_duration(seconds * (state.total - state.examples) / state.examples)
        self._bar.update(
            self._task,
            total=state.total,
            completed=state.examples,
            rate=f"{self._world.size * state.samples / max(seconds, 1e-9):,.0f}",
            value=value,
            left=left,
        )
        tenth = state.examples * _LINES // max(state.total, 1)
        if self._console.is_terminal or tenth == self._told or state.examples == state.total:
            return
        self._told = tenth
        self._console.print(
            f"{state.examples}/{state.total} examples   log p(x) {value} nats   {left} left",
            soft_wrap=True,
        )
