"""``dvae-fast reproduce``."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.markup import escape
from rich.table import Table

from dvae_fast._checks import check_choice, check_device, check_size
from dvae_fast._text import format_duration, format_number
from dvae_fast.cli.console import (
    fail,
    listed,
    one_line_errors,
    wrong_options,
)
from dvae_fast.cli.options import shown
from dvae_fast.cli.outlet import new_console, progress_bar, say
from dvae_fast.cli.train import RUNS
from dvae_fast.files import one_line
from dvae_fast.models.config import OUTPUT, TRAINING
from dvae_fast.reproduction import expected, processes, table
from dvae_fast.reproduction.rows import FIGURES, ROWS, SCALES, Row, Scale, select
from dvae_fast.reproduction.runs import (
    Run,
    epochs_done,
    evaluate_so_far,
    plan,
    read_results,
    run_one,
    unfinished,
)
from dvae_fast.training import MOST_THREADS, TrainConfig
from dvae_fast.training import Progress as TrainProgress
from dvae_fast.training.config import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from rich.console import Console

    from dvae_fast.evaluation import EvaluationProgress

__all__ = ["reproduce_command"]

DOCUMENT = Path("docs/reproduction.md")


_ROWS = "Rows"
_SCALE = next(iter(SCALES))  # where none is asked for


def reproduce_command(
    scale: Annotated[
        str,
        shown(
            _ROWS,
            f"One of {listed(SCALES)}: "
            f"{'; '.join(f'{name} is {s.about}' for name, s in SCALES.items())}.",
            choices=SCALES,
        ),
    ] = _SCALE,
    rows: Annotated[
        list[str] | None,
        shown(
            _ROWS,
            "A row's name or a glob, such as '*gru*'; may be given again. Default: the "
            "scale's, which --list marks.",
            choices=ROWS,
        ),
    ] = None,
    list_rows: Annotated[
        bool, shown(_ROWS, "Print the rows and what was published for them.", "--list")
    ] = False,
    check: Annotated[
        str | None,
        shown(
            _ROWS,
            f"Run this row for a moment and hold its figures to what they should be; the exit "
            f"code is 1 where one is not. One of {listed(SCALES[expected.SCALE].rows)}; by default "
            "the runs of a table are made.",
            choices=SCALES[expected.SCALE].rows,
        ),
    ] = None,
    epochs: Annotated[int | None, shown(TRAINING, "Of every run. Default: the scale's.")] = None,
    seeds: Annotated[int | None, shown(TRAINING, "Of every row. Default: the scale's.")] = None,
    jobs: Annotated[
        int | None,
        shown(TRAINING, "Runs at once, each on one thread. Default: a core each; 1 on a GPU."),
    ] = None,
    device: Annotated[
        str, shown(TRAINING, "cpu, cuda or cuda:N; on a GPU steps are replayed as CUDA graphs.")
    ] = "cpu",
    dtype: Annotated[
        str,
        shown(
            TRAINING,
            f"Of matrix products in training: {' or '.join(DTYPES)}, where the processor has "
            "instructions for it.",
            choices=DTYPES,
        ),
    ] = TrainConfig.dtype,
    folder: Annotated[
        Path | None, shown(OUTPUT, "Of the runs. Default: runs/reproduction-<scale>.")
    ] = None,
    so_far: Annotated[
        bool,
        shown(
            OUTPUT,
            "Evaluate what is begun as it stands, and keep the numbers for the table, which says "
            "how far it was; train nothing.",
            "--so-far",
        ),
    ] = False,
    write_table: Annotated[
        bool, shown(OUTPUT, "Write the table of the runs kept; train nothing.", "--table")
    ] = False,
    output: Annotated[
        Path, shown(OUTPUT, "Of the table: a new file, or one with a place for it.")
    ] = DOCUMENT,
    quiet: Annotated[bool, shown(OUTPUT, "Print errors only.", "--quiet", "-q")] = False,
) -> None:
    """Train the rows of the published tables and write ours beside them.

    Leaves a JSON file for each row and seed. The same command goes on where it was stopped and
    leaves out what is finished.
    """
    with one_line_errors():
        with wrong_options():
            check_choice("scale", scale, SCALES)
            if check is not None:
                _check_alone(
                    rows=rows, list=list_rows, epochs=epochs, seeds=seeds, jobs=jobs,
                    folder=folder, so_far=so_far, table=write_table,
                    scale=None if scale == _SCALE else scale,
                    dtype=None if dtype == TrainConfig.dtype else dtype,
                )  # fmt: skip
            asked = {"list": list_rows, "table": write_table, "so-far": so_far}
            given = [option for option, wanted in asked.items() if wanted]
            if len(given) > 1:
                raise ValueError(f"{given[1]} must be left out with --{given[0]}")
            chosen = select(rows or SCALES[scale].rows)
            jobs = _jobs(jobs, device)
            check_device("device", device)
            runs = plan(
                chosen, SCALES[scale], epochs=epochs, seeds=seeds, device=device, dtype=dtype
            )
            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise ValueError("reproduce starts its processes itself: run it without torchrun")
            held_to = None if check is None else expected.run_of(check, device)
        console = new_console(quiet=quiet)
        if held_to is not None:
            _check(console, held_to)
            return
        folder = folder or RUNS / f"reproduction-{scale}"
        if list_rows:
            console.print(_rows_table(chosen if rows else ROWS.values(), SCALES[scale]))
            return
        if write_table:
            with wrong_options():
                table.put_into(output, table.markdown(read_results(folder)), scale)
            console.print(f"{output}", soft_wrap=True)
            return
        with wrong_options():
            left = unfinished(runs, folder)
        if so_far:
            _so_far(console, left, folder)
            return
        failed = _reproduce(console, left, len(runs), folder, jobs)
        console.print(
            f"{len(runs) - len(failed)} of {len(runs)} runs are in {folder}; for the table: "
            f"dvae-fast reproduce --table --scale {scale} --folder {shlex.quote(str(folder))}",
            soft_wrap=True,
            markup=False,
        )
        if failed:
            fail(f"failed: {listed(failed)}; the same command tries again", 1)


def _check_alone(**options: Any) -> None:
    """Raise ValueError for what a check would not heed: its run is what the intervals are of."""
    for name, value in options.items():
        if value:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            option = name.replace("_", "-")
            raise ValueError(f"{option} must be left out with --check, got {shown}")


def _check(console: Console, run: Run) -> None:
    """Do the run, whose files are of no use after it, and hold it to what is kept of the row."""
    bar = _progress(console)
    task = bar.add_task(run.row, state="")
    with tempfile.TemporaryDirectory() as folder, _shown_unless_quiet(console, bar):
        try:
            result = run_one(run, Path(folder), lambda s: bar.update(task, **_run_state(s)))
        except KeyboardInterrupt:
            fail("interrupted; nothing is kept of a check", 130)
        bar.remove_task(task)
    held = expected.held(run.row, result["figures"])
    shown = Table(title=f"{run.row}, in nats, lower is better", title_justify="left", box=None)
    for name in ("figure", "this run", "should be within"):
        shown.add_column(name, justify="left" if name == "figure" else "right")
    for each in held:
        limits = f"{format_number(each.low)} to {format_number(each.high)}"
        shown.add_row(FIGURES[each.name], format_number(each.value), limits)
    console.print(shown)
    outside = [FIGURES[each.name] for each in held if not each.inside]
    if outside:
        fail(
            f"{run.row} is not what it should be: outside {'are' if outside[1:] else 'is'} "
            f"{', '.join(outside)}",
            1,
        )
    console.print(
        f"All are where they should be, as are those of {1 - expected.FALSE_ALARMS:.0%} of seeds "
        "or more where nothing is wrong. "
        f"{format_duration(result['training_seconds'])} of training.",
        soft_wrap=True,
    )


def _so_far(console: Console, runs: list[Run], folder: Path) -> None:
    """Keep the numbers of those that have finished an epoch, and say how far they are."""
    for run in runs:
        result = evaluate_so_far(run, folder)
        if result is not None:
            done = f"{epochs_done(result):,} of {run.config.epochs:,} epochs"
            console.print(f"{run.name}: {done}; {_shown(result)}", soft_wrap=True, markup=False)


def _shown(result: dict[str, Any]) -> str:
    """A run's figures and its time."""
    values = [(label, result["figures"][name]) for name, label in FIGURES.items()]
    figures = (f"{label} {'not finite' if v is None else format_number(v)}" for label, v in values)
    return f"{'; '.join(figures)}; {format_duration(result['training_seconds'])} of training"


def _jobs(jobs: int | None, device: str) -> int:
    if jobs is None:
        if device != "cpu":
            return 1
        # Those that this process may use, where the system can tell.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return check_size("jobs", jobs, most=MOST_THREADS)


def _rows_table(rows: Iterable[Row], scale: Scale) -> Table:
    shown = Table(title="Rows (* run by default at this scale)", title_justify="left", box=None)
    for name in ("", "row", "what", "seeds", "epochs", "published", "protocol"):
        shown.add_column(name, no_wrap=name == "row", overflow="fold")
    default = select(scale.rows)
    for row in rows:
        shown.add_row(
            "*" * (row in default), row.name, escape(row.about), f"{scale.seeds}",
            f"{row.config(scale, 0, None, 'cpu').epochs:,}", table.shown_published(row.published),
            escape(row.protocol),
        )  # fmt: skip
    return shown


def _reproduce(console: Console, runs: list[Run], total: int, folder: Path, jobs: int) -> list[str]:
    """Do the runs that are left of `total`; the names of those that failed."""
    console.print(
        f"{len(runs)} of {total} runs to do, {jobs} at a time; folder {folder}", soft_wrap=True
    )
    bar = _progress(console)
    tasks: dict[str, Any] = {}
    done, failed = 0, []

    def report(run: Run, kind: str, value: Any) -> None:
        nonlocal done
        if kind == processes.PROGRESS:
            if run.name not in tasks:
                tasks[run.name] = bar.add_task(run.name, state="")
            bar.update(tasks[run.name], **_run_state(value))
            return
        if run.name in tasks:
            bar.remove_task(tasks.pop(run.name))
        if kind == processes.FAILED:
            failed.append(run.name)
            say(f"dvae-fast: {run.name} failed: {one_line(str(value))}", error=True)
            return
        done += 1
        console.print(f"{run.name}: {_shown(value)}", soft_wrap=True)

    try:
        with _shown_unless_quiet(console, bar):
            processes.run_all(runs, folder, jobs, report)
    except KeyboardInterrupt:
        fail(
            f"interrupted with {total - len(runs) + done} of {total} runs finished; all is saved, "
            "the same command goes on",
            130,
        )
    return failed


def _progress(console: Console) -> Any:
    return progress_bar(
        console, "{task.description}", "{task.percentage:>3.0f} %", "{task.fields[state]}"
    )


def _shown_unless_quiet(console: Console, bar: Any) -> AbstractContextManager[Any]:
    return contextlib.nullcontext() if console.quiet else cast("AbstractContextManager[Any]", bar)


def _run_state(state: TrainProgress | EvaluationProgress) -> dict[str, Any]:
    """What the bar of a run shows."""
    if isinstance(state, TrainProgress):
        left = format_duration(state.seconds_left)
        return {
            "total": state.total_examples,
            "completed": state.examples,
            "state": f"epoch {state.epoch}/{state.epochs}, {left} left",
        }
    return {"total": state.total, "completed": state.examples, "state": "evaluating"}
