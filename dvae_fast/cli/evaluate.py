"""``dvae-fast evaluate``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import time
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from dvae_fast._checks import check_choice, check_device
from dvae_fast._extras import MissingExtraError
from dvae_fast.cli.console import (
    check_seed,
    fail,
    format_duration,
    format_number,
    listed,
    one_line_errors,
    print_warnings,
    two_columns,
    wrong_options,
)
from dvae_fast.cli.pictures import evaluation_pictures
from dvae_fast.data import SPLITS
from dvae_fast.distributed import World, barrier, is_main_process, join
from dvae_fast.evaluation import (
    DTYPES,
    PROPOSALS,
    LikelihoodEstimate,
    annealed_importance_sampling,
    estimate_log_likelihood,
)
from dvae_fast.evaluation.partial import PARTIAL, partial_exists, remove_partial
from dvae_fast.files import write_atomically, write_json
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.models import load_model
from dvae_fast.training import load_config
from dvae_fast.training.loop import cpu_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dvae_fast.evaluation import AISEstimate, EvaluationProgress

__all__ = ["evaluate", "evaluate_command", "evaluation_rows", "keep_estimate"]

EVALUATION = "evaluation.json"


METHODS = ("importance", "ais")


def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    k: Annotated[
        int | None,
        typer.Option(
            "--k", "-k", help="Importance samples an example, or AIS chains.  [default: 5000, 16]"
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"One of {listed(METHODS)}: importance sampling, or annealed, slower."),
    ] = "importance",
    split: Annotated[str, typer.Option(help=f"One of {listed(SPLITS)}.")] = "test",
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many examples. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the importance samples.")] = 0,
    proposal: Annotated[
        str,
        typer.Option(
            help=f"Draw z from one of {listed(PROPOSALS)}: q(z|x), q(z|x̃) with a fresh x̃ for each "
            "sample, or the mean of q(z|x̃) over --copies corruptions."
        ),
    ] = "posterior",
    copies: Annotated[int, typer.Option(help="Corruptions of a mixture.")] = 10,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Go on where the standard error in nats is above this, as far as --max-k. "
            "Default: k samples everywhere."
        ),
    ] = None,
    max_k: Annotated[
        int | None, typer.Option("--max-k", help="With a tolerance. Default: 20 k.")
    ] = None,
    temperatures: Annotated[
        int | None, typer.Option(help="Of AIS: distributions on the way.  [default: 500]")
    ] = None,
    leapfrog: Annotated[
        int | None, typer.Option(help="Of AIS: steps of a Hamiltonian move.  [default: 10]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the decoder's products: bfloat16 or float16. Default: the model's."),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the decoder through torch.compile.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples at once; changes speed and memory alone.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Samples at once; changes speed and memory alone.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: PyTorch's choice.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an evaluation that was interrupted.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
) -> None:
    """Estimate log p(x) of a run's best model by importance sampling.

    Writes evaluation.json, evaluation.npz with each example's numbers, and pictures, into the
    run's folder.
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
            check_seed(seed)
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
        console = Console(quiet=quiet or not is_main_process(), highlight=False)
        with contextlib.ExitStack() as stack:
            stack.enter_context(cpu_threads(threads))
            with wrong_options(shared=False):  # each process has an environment of its own
                world = stack.enter_context(join(device))
            if method == "ais" and world.size > 1:
                fail("method must be importance for several processes, got ais", 2, shared=True)
            report, estimate = evaluate(
                console, run_dir, world, method=method, split=split, limit=limit, **options
            )
        if not is_main_process():
            return
        title = f"{report['model']} on {report['data']}, {report['split']} set"
        try:
            keep_estimate(console, run_dir, report, estimate)
        finally:  # a full disk does not take all along, nor does a closed pipe
            console.print(two_columns(evaluation_rows(report), title))
            print_warnings(console, report)


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
    folder: Path,
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
    """Evaluate the run's best model: what evaluation.json holds, and all of it."""
    config, model = load_config(folder), load_model(folder).to(world.device)
    x = config.load_data().evaluation(split)[:limit]
    with _evaluation_bar(console, world) as advance:
        start = time.perf_counter()
        estimate: LikelihoodEstimate | AISEstimate
        with wrong_options():
            if method == "ais":
                if k is not None:
                    options["chains"] = k
                estimate = annealed_importance_sampling(
                    model, x, seed=seed, progress=advance, **options
                )
            else:
                partial = folder / PARTIAL
                if not resume and world.is_main and remove_partial(partial):
                    console.print(
                        "An unfinished evaluation is dropped; --resume would have gone on with it."
                    )
                barrier(world)
                if k is not None:
                    options["k"] = k
                try:
                    estimate = estimate_log_likelihood(
                        model, x, seed=seed, progress=advance, partial=partial, world=world,
                        **options,
                    )  # fmt: skip
                except KeyboardInterrupt:
                    kept = "; what is done is kept, go on with --resume"
                    fail(f"interrupted{kept if partial_exists(partial) else ''}", 130, shared=True)
        seconds = time.perf_counter() - start
    report = {
        "model": config.model,
        "data": config.data,
        "binarise": config.binarise,
        "likelihood": config.likelihood,
        "split": split,
        **estimate.summary(),
    }
    report["seconds"] = seconds
    report["processes"] = world.size
    return report, estimate


def keep_estimate(
    console: Console,
    folder: Path,
    report: dict[str, Any],
    estimate: LikelihoodEstimate | AISEstimate,
) -> None:
    """evaluation.json, evaluation.npz with each example's numbers, and pictures."""
    write_json(folder / EVALUATION, report)
    file = io.BytesIO()
    np.savez(file, **_arrays(estimate))
    write_atomically((folder / EVALUATION).with_suffix(".npz"), file.getvalue())
    remove_partial(folder / PARTIAL)
    for name in ("bounds", "ess", "worst"):  # of an earlier evaluation
        (folder / f"evaluation_{name}.png").unlink(missing_ok=True)
    try:
        evaluation_pictures(folder, report, estimate)
    except MissingExtraError as error:
        console.print(f"No pictures: {error}", soft_wrap=True, markup=False)


def _arrays(estimate: LikelihoodEstimate | AISEstimate) -> dict[str, Any]:
    """All that has a number an example, and the k of the curve."""
    values = {f.name: getattr(estimate, f.name) for f in dataclasses.fields(estimate)}
    arrays = {name: v.numpy() for name, v in values.items() if isinstance(v, Tensor)}
    if "curve_k" in values:
        arrays["curve_k"] = np.array(values["curve_k"])
    return arrays


@contextlib.contextmanager
def _evaluation_bar(console: Console, world: World) -> Iterator[Any]:
    """A bar of this process's share; the others' goes at about the same pace."""
    if console.quiet:
        yield None
        return
    bar = Progress(
        TextColumn("evaluating"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} examples"),
        TextColumn("{task.fields[rate]} samples/s"),
        TextColumn("log p(x) {task.fields[value]} nats"),
        TextColumn("{task.fields[left]} left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, rate="–", value="–", left="–:––")
    start = time.perf_counter()

    def advance(state: EvaluationProgress) -> None:
        seconds = time.perf_counter() - start
        value = "not finite"
        if math.isfinite(state.log_likelihood):
            value = (
                f"{format_number(state.log_likelihood)} ± {format_number(state.standard_error, 3)}"
            )
        bar.update(
            task,
            total=state.total,
            completed=state.examples,
            rate=f"{world.size * state.samples / max(seconds, 1e-9):,.0f}",
            value=value,
            left=format_duration(seconds * (state.total - state.examples) / state.examples),
        )

    with bar:
        yield advance


def evaluation_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    def shown(key: str, digits: int = 2) -> str:
        value = report[key]
        return "not finite" if value is None else format_number(value, digits)

    annealed = report["method"] == "ais"
    if annealed:
        samples = f"{report['chains']} chains, {report['temperatures']} temperatures"
    elif report["samples"] == report["k"] * report["examples"]:
        samples = f"k = {report['k']:,}"
    else:
        samples = f"k = {report['samples'] / report['examples']:,.0f} on average"
    is_density = get_likelihood(report["likelihood"]).is_density
    density = ", of a density on [0, 1]" if is_density else ""
    rows = [
        (
            "log p(x)",
            f"{shown('log_likelihood')} ± {shown('standard_error', 3)} nats "
            f"({samples}, {report['examples']:,} examples)",
        ),
        ("bits per dimension", shown("bits_per_dimension", 4) + density),
    ]
    if annealed:
        rows += [
            ("acceptance", shown("acceptance")),
            (
                "effective chains",
                f"{shown('ess_mean', 1)} on average, {shown('ess_min', 1)} at least",
            ),
        ]
    else:
        rows += [
            ("ELBO", f"{shown('elbo')} nats"),
            (
                "effective samples",
                f"{shown('ess_mean', 1)} on average, {shown('ess_min', 1)} at least, below 10 for "
                f"{report['ess_below_10']:,}",
            ),
            ("Pareto k̂", f"above 0.7 for {report['pareto_k_above_0.7']:,} examples"),
        ]
    rows.append(("evaluated in", f"{report['seconds']:.1f} s"))
    if report["non_finite"]:
        rows.append(("not finite", f"{report['non_finite']} of {report['examples']} examples"))
    return rows
