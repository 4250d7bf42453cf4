"""What the numbers should be: the tables of docs/numbers.md, and the intervals of `--check`.

    python docs/expectations.py [--runs FOLDER] [--output FILE]

Writes the tables between their marks in FILE (docs/numbers.md), from the runs in docs/reproduction
and from what is kept with the package for `dvae-fast reproduce --check`. With --runs, that is made
first from the runs in FOLDER: `dvae-fast reproduce --scale check --seeds 21 --folder FOLDER`.
Needs scipy.
"""

from __future__ import annotations

import argparse
import json
import statistics
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvae_fast.files import write_atomically
from dvae_fast.reproduction import expected
from dvae_fast.reproduction.rows import FIGURES, ROWS
from dvae_fast.reproduction.runs import epochs_done, read_results
from dvae_fast.reproduction.table import (
    by_variant,
    markdown_table,
    mean_and_error,
    number,
    put_between,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Result = Mapping[str, Any]

HERE = Path(__file__).parent
BEGIN = "<!-- Begin of what is written by `python docs/expectations.py`, {}. -->"
END = "<!-- End of what is written by `python docs/expectations.py`, {}. -->"


def trained(results: Sequence[Result]) -> str:
    """On what, and how long."""
    settings = results[0]["settings"]
    images = settings["train_examples"]
    done = sorted({epochs_done(result) for result in results})
    epochs = "–".join(f"{n:,}" for n in dict.fromkeys((done[0], done[-1])))
    which = {"fixed": "fixed", "dynamic": "drawn anew", "once": "drawn once", "none": "grey"}
    amount = "all" if images is None else f"{images:,}"
    return f"{amount} images, {which[settings['binarise']]}, {epochs} epochs"


def of_runs(folder: Path) -> list[str]:
    """Every row of docs/reproduction, whatever its scale."""
    cells = []
    for (name, *_), seeds in by_variant(read_results(folder)).items():
        results = list(seeds.values())
        shown = []
        for figure in ("clean", "nll"):
            mean, error = mean_and_error([result["figures"][figure] for result in results])
            shown.append(number(mean) if error is None else f"{number(mean)} ± {number(error)}")
        minutes = statistics.fmean(result["training_seconds"] for result in results) / 60
        cells.append(
            [f"`{name}`", ROWS[name].about, trained(results), f"{len(results)}", *shown,
             f"{minutes:,.0f}" if minutes >= 2 else f"{minutes:.1f}"]
        )  # fmt: skip
    head = ["row", "", "trained on", "seeds", FIGURES["clean"], FIGURES["nll"], "minutes a seed"]
    return markdown_table(head, cells, (0, 1, 2))


def of_checks() -> list[str]:
    """The intervals that `--check` holds a run to."""
    cells = []
    for name, row in expected.expected_rows().items():
        means = {figure: statistics.fmean(values) for figure, values in row["figures"].items()}
        held = expected.held(name, means)
        shown = [f"{number(each.low)} to {number(each.high)}" for each in held]
        seconds = statistics.fmean(row["training_seconds"])
        cells.append([f"`{name}`", f"{len(row['seeds'])}", *shown, f"{seconds:.0f}"])
    head = ["row", "seeds", *FIGURES.values(), "seconds a seed"]
    return markdown_table(head, cells, (0,))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the numbers should be.")
    parser.add_argument("--runs", type=Path, help="of the scale check, to keep with the package")
    parser.add_argument("--output", type=Path, default=HERE / "numbers.md")
    options = parser.parse_args()
    if options.runs is not None:
        text = json.dumps(expected.kept(read_results(options.runs)), indent=1)
        place = resources.files("dvae_fast.reproduction").joinpath(expected.FILE)
        write_atomically(Path(str(place)), f"{text}\n".encode())
    reproduction = HERE / "reproduction"
    for what, lines in (
        ("small scale", of_runs(reproduction / "small")),
        ("full scale", of_runs(reproduction / "full")),
        ("checks", of_checks()),
    ):
        put_between(options.output, "\n".join(lines) + "\n", BEGIN.format(what), END.format(what))


if __name__ == "__main__":
    main()
