"""The table: ours beside the published figures, and paired differences, as Markdown."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvae_fast._extras import require
from dvae_fast.files import CheckpointError, write_atomically
from dvae_fast.reproduction.rows import FIGURES, ROWS, TABLES
from dvae_fast.reproduction.runs import epochs_done, is_finished
from dvae_fast.training import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dvae_fast.reproduction.rows import Published, Row

    Result = Mapping[str, Any]
    #: a row's name, the epochs of its runs, and their dtype
    Variant = tuple[str, int, str]

__all__ = [
    "Difference",
    "by_row",
    "by_variant",
    "markdown",
    "markdown_table",
    "marks",
    "mean_and_error",
    "number",
    "paired_difference",
    "put_between",
    "put_into",
    "shown_difference",
    "shown_published",
]

#: of the epoch that a run keeps the model of, by `dvae_fast.training.schedules.KEPT`
_KEPT = {
    "best": "the best epoch by the validation bound",
    "last": "the last epoch where Burda's code is followed",
}
_COVERAGE = 0.95
_FEW = 3  # seeds below which an interval says little


# --- statistics -----------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error s/√n, s with n − 1; None of one value."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return statistics.fmean(values), error


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences in nats.

    Attributes:
        mean: negative where the first of the pair is better.
        half_width: of its 95 % confidence interval, Student's t with n − 1 degrees; None for one.
        pairs: n.
    """

    mean: float
    half_width: float | None
    pairs: int


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """`ours` − `theirs` over the seeds that both have; None if they share none.

    Raises:
        MissingExtraError: if scipy, which has the quantiles of t, is not installed.
    """
    differences = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    if not differences:
        return None
    mean, error = mean_and_error(differences)
    n, half_width = len(differences), None
    if error is not None:
        t = require("scipy.stats", "scipy", "an interval of Student's t").t
        half_width = float(t.ppf((1 + _COVERAGE) / 2, n - 1)) * error
    return Difference(mean, half_width, n)


# --- what the results share -----------------------------------------------------------------------


def by_row(results: Iterable[Result]) -> dict[str, dict[int, Result]]:
    """Results by row and seed, in the order of the tables; the same settings for all seeds.

    Raises:
        CheckpointError: if one is of an unknown row.
        ValueError: if the seeds of a row had different settings.
    """
    found: dict[str, dict[int, Result]] = {}
    for (name, *_), seeds in by_variant(results).items():
        for result in seeds.values():
            _check_alike(next(iter(found.get(name, seeds).values())), result)
        found.setdefault(name, {}).update(seeds)
    return {name: dict(sorted(seeds.items())) for name, seeds in found.items()}


def by_variant(results: Iterable[Result]) -> dict[Variant, dict[int, Result]]:
    """Results by row, epochs and dtype, in the order of the tables, and by seed.

    All other settings are the same for all seeds.
    """
    found: dict[Variant, dict[int, Result]] = {}
    for result in results:
        if result["row"] not in ROWS:
            raise CheckpointError(
                f"the numbers of {result['row']}, seed {result['seed']}, are of no row known here"
            )
        seeds = found.setdefault(_variant(result), {})
        for other in seeds.values():
            _check_alike(other, result)
        seeds[result["seed"]] = result
    order = list(ROWS)
    ordered = sorted(found, key=lambda variant: (order.index(variant[0]), variant))
    return {variant: dict(sorted(found[variant].items())) for variant in ordered}


def _variant(result: Result) -> Variant:
    settings = result["settings"]
    return result["row"], settings["epochs"], settings.get("dtype", TrainConfig.dtype)


def _check_alike(a: Result, b: Result) -> None:
    for name in a["settings"].keys() - {"seed"}:
        if a["settings"][name] != b["settings"].get(name):
            raise ValueError(
                f"{a['row']} was run with different settings: {name} is {a['settings'][name]!r} "
                f"with seed {a['seed']}, {b['settings'].get(name)!r} with seed {b['seed']}"
            )


def _figure(seeds: Mapping[int, Result], name: str) -> dict[int, float]:
    """A figure by seed, where it was measured; NaN where it was not finite."""
    measured = {seed: r["figures"] for seed, r in seeds.items() if name in r["figures"]}
    values = {seed: figures[name] for seed, figures in measured.items()}
    return {seed: math.nan if value is None else value for seed, value in values.items()}


# --- Markdown -------------------------------------------------------------------------------------


def number(value: float, digits: int = 2) -> str:
    """With a minus sign, or what to say of none."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "not finite"


def _with_error(value: float, error: float | None) -> str:
    shown = number(value)
    return shown if error is None or not math.isfinite(error) else f"{shown} ± {number(error)}"


def shown_published(published: Published | None) -> str:
    """The figure and its standard error; a dash for none."""
    return "–" if published is None else _with_error(published.value, published.error)


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], left: Iterable[int]
) -> list[str]:
    """A Markdown table; the columns not in `left` are numbers."""
    rule = ["---" if i in set(left) else "---:" for i in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)]


def _row(row: Row, seeds: Mapping[int, Result]) -> list[str]:
    cells = []
    for name in FIGURES:
        figures = list(_figure(seeds, name).values())
        text = _with_error(*mean_and_error(figures)) if figures else "–"
        cells.append(f"**{text}**" if name == row.comparable and figures else text)
    effective = [result["likelihood"]["ess_mean"] for result in seeds.values()]
    ess = "–" if None in effective else f"{statistics.fmean(effective):,.0f}"
    return [
        f"`{row.name}`", row.about, f"{len(seeds)}", _epochs(row, seeds),
        shown_published(row.published), *cells, ess, row.protocol,
    ]  # fmt: skip


def _epochs(row: Row, seeds: Mapping[int, Result]) -> str:
    """How many were done of how many, whether there are more to come, and in which dtype."""
    everyone = list(seeds.values())
    done = sorted({epochs_done(result) for result in everyone})
    shown = "–".join(f"{epochs:,}" for epochs in dict.fromkeys((done[0], done[-1])))
    finished = all(map(is_finished, everyone))
    _, wanted, dtype = _variant(everyone[0])
    whole = row.settings["epochs"] if finished else wanted
    parts = [f"{shown} of {whole:,}", *["unfinished"] * (not finished)]
    return ", ".join(parts + [dtype] * (dtype != TrainConfig.dtype))


def shown_difference(difference: Difference | None) -> str:
    """Its mean and, in brackets, its interval; of one pair the mean, of none a dash."""
    if difference is None:
        return "–"
    mean, half = difference.mean, difference.half_width
    if half is None or not math.isfinite(half):
        return number(mean)
    return f"{number(mean)} [{number(mean - half)}, {number(mean + half)}]"


def _baseline(variant: Variant) -> Variant | None:
    """What a row's runs are compared with: the baseline's of as many epochs and the same dtype."""
    name, epochs, dtype = variant
    baseline = ROWS[name].baseline
    return None if baseline is None else (baseline, epochs, dtype)


def _difference(row: Row, ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> list[str]:
    differences = [paired_difference(_figure(ours, f), _figure(theirs, f)) for f in FIGURES]
    shared = ours.keys() & theirs.keys()
    alike = all(epochs_done(ours[seed]) == epochs_done(theirs[seed]) for seed in shared)
    pairs, mark = len(shared), "†" * (len(shared) < _FEW) + "‡" * (not alike)
    return [f"`{row.name}` − `{row.baseline}`", f"{pairs}{mark}",
            *map(shown_difference, differences)]  # fmt: skip


def markdown(results: Iterable[Result]) -> str:
    """Every table that the results have rows of, and the paired differences.

    Args:
        results: what `dvae_fast.reproduction.runs.read_results` returns.

    Raises:
        CheckpointError: if one is of an unknown row.
        ValueError: if the seeds of a row had different settings.
        MissingExtraError: if scipy is not installed.
    """
    found = by_variant(results)
    lines = [_summary(found), ""]
    head = ["row", "", "seeds", "epochs", "published", *FIGURES.values(), "ESS", "protocol"]
    for key, title in TABLES.items():
        cells = [_row(ROWS[v[0]], found[v]) for v in found if ROWS[v[0]].table == key]
        if cells:
            lines += [f"### {title}", "", *markdown_table(head, cells, (0, 1, len(head) - 1)), ""]
    pairs = [
        _difference(ROWS[variant[0]], found[variant], found[other])
        for variant in found
        if (other := _baseline(variant)) in found
    ]
    if pairs:
        lines += [
            "### Differences, paired by seed", "",
            "Negative where the first is better; in brackets the 95 % confidence interval, "
            "Student's t over seeds.", "",
            *markdown_table(["pair", "seeds", *FIGURES.values()], pairs, (0,)), "",
        ]  # fmt: skip
        if any("†" in cells[1] for cells in pairs):
            lines += [
                f"† Fewer than {_FEW} seeds: of one there is no interval, and that of two has one "
                "degree of freedom and is too wide to decide anything.",
                "",
            ]
        if any("‡" in cells[1] for cells in pairs):
            lines += ["‡ Of runs that are not equally far: no difference of the models alone.", ""]
    return "\n".join(lines)


def _summary(found: Mapping[Variant, Mapping[int, Result]]) -> str:
    everyone = [result for seeds in found.values() for result in seeds.values()]
    estimates = {_estimated(result) for result in everyone}
    trained = {_trained(result) for result in everyone}
    kept = {_KEPT[r["settings"].get("keep", TrainConfig.keep)] for r in everyone}
    minutes = sum(result["training_seconds"] for result in everyone) / 60
    commits = {result["commit"] or "no commit" for result in everyone}
    left = sum(not is_finished(result) for result in everyone)
    unfinished = f", {left} of them unfinished: their best epoch so far" if left else ""
    low = {dtype for _, _, dtype in found} - {TrainConfig.dtype}
    products = (
        f"Where {' or '.join(sorted(low))} stands beside the epochs, matrix products in training "
        f"were in it; evaluations are in {TrainConfig.dtype}. "
    ) * bool(low)
    torches = {f"torch {result['versions']['torch']}" for result in everyone}
    return (
        f"Nats, lower is better; mean ± standard error over seeds. Trained on "
        f"{' or '.join(sorted(trained))} images, {' or '.join(sorted(kept))} evaluated. "
        f"Bounds are negative, on the whole test set; NLL from {' or '.join(sorted(estimates))}, "
        f"of which ESS were effective on average: where those are few the NLL is too high. "
        f"Bold: what the published figure is to be compared with. {products}"
        f"{len(everyone)} run{'s' * (len(everyone) != 1)}{unfinished}, "
        f"{minutes:,.0f} minutes of training ({', '.join(sorted(torches))}; "
        f"{', '.join(sorted(commits))})."
    )


def _estimated(result: Result) -> str:
    estimate = result["likelihood"]
    return f"{estimate['k']:,} importance samples on {estimate['examples']:,} test examples"


def _trained(result: Result) -> str:
    examples = result["settings"]["train_examples"]
    return "all" if examples is None else f"the first {examples:,}"


# --- the file -------------------------------------------------------------------------------------


def marks(scale: str) -> tuple[str, str]:
    """The lines that the table of a scale stands between."""
    what = f"what is written by `dvae-fast reproduce --table --scale {scale}`"
    return f"<!-- Begin of {what}. -->", f"<!-- End of {what}. -->"


def put_into(path: Path, table: str, scale: str) -> None:
    """Write the table between the two marks of its scale, or into a new file with nothing else.

    Raises:
        CheckpointError: if the file is there without the marks, or cannot be read or written.
    """
    put_between(path, table, *marks(scale))


def put_between(path: Path, table: str, begin: str, end: str) -> None:
    """The same between two lines of the file's own."""
    text = f"{begin}\n{end}\n"
    if path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from None
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise CheckpointError(f"{path} has no place for the table: no lines {begin} and {end}")
    write_atomically(path, f"{before}{begin}\n\n{table}\n{end}{after}".encode())
