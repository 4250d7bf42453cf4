"""What arXiv 1511.06406 claims of denoising, held against the runs of `dvae-fast reproduce`.

    python docs/claims.py [FOLDER] [--output FOLDER]

FOLDER holds the runs' JSON files (docs/reproduction/small); those of the paper's length are in
docs/reproduction/full. Prints the numbers that docs/claims.md quotes and draws its figures. Needs
matplotlib and scipy.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvae_fast.files import CheckpointError
from dvae_fast.reproduction.rows import FIGURES, ROWS
from dvae_fast.reproduction.runs import read_results
from dvae_fast.reproduction.table import Difference, by_row, paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Result = Mapping[str, Any]
    Runs = Mapping[str, Mapping[int, Result]]

HERE = Path(__file__).parent
BLUE, ORANGE = "#1f5fa8", "#d9730d"
# The rows that answer each question; where they are compared it is with their baselines.
HELPS = ("dvae-k1-5", "dvae-k1-10", "dvae-k1-15", "diwae-k5-5", "diwae-k5-10", "dvae-gru-k1-5")
CONTRAST = ("vae-augmented-k1", "iwae-augmented-k5")
PIXEL, LEARNT, COPIES = "dvae-pixel-k1-5", "dvae-learnt-k1-5", "dvae-copies-k1-5"
CURVES = {"perceptron": ("vae-k1", "dvae-k1-5"), "GRU": ("vae-gru-k1", "dvae-gru-k1-5")}
AT_LENGTH = ("dvae-k1-5", "dvae-k1-10")
TIGHT = ("vae-k1", "dvae-k1-5", "dvae-k1-10", "dvae-k1-15", "vae-augmented-k1")


def differences(
    runs: Runs, ours: str, theirs: str, figure: Callable[[Result], float]
) -> Difference:
    """Of a figure, paired by seed."""
    first, second = ({s: figure(r) for s, r in runs[name].items()} for name in (ours, theirs))
    found = paired_difference(first, second)
    if found is None:
        raise SystemExit(f"claims: {ours} and {theirs} share no seed")
    return found


def figure_of(name: str) -> Callable[[Result], float]:
    """One of `FIGURES`, in nats."""
    return lambda result: float(result["figures"][name])


def gap(bound: str) -> Callable[[Result], float]:
    """From a bound to the log-likelihood, in nats: how loose it is."""
    return lambda result: figure_of(bound)(result) - figure_of("nll")(result)


def overfit(result: Result) -> float:
    """Training bound less validation bound at the last epoch, in nats."""
    last = result["curve"][-1]
    return float(last["train_bound"] - last["valid_bound"])


def lost(result: Result) -> float:
    """What the validation bound lost from its best to the last epoch, in nats."""
    return float(result["valid_bound"] - result["curve"][-1]["valid_bound"])


def shown(found: Difference) -> str:
    """Mean and 95 % interval."""
    if found.half_width is None:
        return f"{found.mean:+.2f} (one seed)"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}], {found.pairs} seeds"


# --- figures --------------------------------------------------------------------------------------


def _axes(height: float = 3.6) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7.0, height), layout="constrained").add_subplot()
    _plain(axes)
    return axes


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(
    axes: Any, labels: Sequence[str], found: Mapping[str, Sequence[Difference]], xlabel: str
) -> None:
    """A point and its 95 % interval for each label, of each series in `found`."""
    for i, ((name, values), colour) in enumerate(zip(found.items(), (BLUE, ORANGE), strict=True)):
        shift = 0.18 * (i - (len(found) - 1) / 2)
        axes.errorbar(
            [d.mean for d in values], [y + shift for y in range(len(values))],
            xerr=[d.half_width or 0 for d in values],
            fmt="o", color=colour, markersize=5, capsize=3, linewidth=1.4, label=name,
        )  # fmt: skip
    axes.axvline(0, color="#222222", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.legend(frameon=False, fontsize=9)


def draw_differences(runs: Runs, rows: Sequence[str], title: str, path: Path) -> None:
    """Rows less their baselines, in the one-sample bound and the NLL."""
    pairs = [(name, ROWS[name].baseline) for name in rows]
    found = {
        FIGURES[key]: [differences(runs, name, str(base), figure_of(key)) for name, base in pairs]
        for key in ("clean", "nll")
    }
    axes = _axes(1.4 + 0.45 * len(rows))
    labels = [f"{name} − {base}" for name, base in pairs]
    _bars(axes, labels, found, "nats per test example, 95 % interval; left of 0: better")
    axes.set_title(title, fontsize=11)
    axes.figure.savefig(path, dpi=150)
    for name, values in found.items():
        for label, value in zip(labels, values, strict=True):
            print(f"  {label}, {name}: {shown(value)}")


def draw_gaps(runs: Runs, path: Path) -> None:
    """How far each bound lies from the log-likelihood, by model."""
    axes = _axes()
    series = {"own bound, x̃ drawn": "own", "one sample, clean x": "clean"}
    for i, ((label, key), colour) in enumerate(zip(series.items(), (ORANGE, BLUE), strict=True)):
        values = [[gap(key)(r) for r in runs[name].values()] for name in TIGHT]
        means = [statistics.fmean(v) for v in values]
        axes.plot(means, [y + 0.18 * (i - 0.5) for y in range(len(TIGHT))], "o", color=colour,
                  label=label)  # fmt: skip
        for y, each in enumerate(values):
            axes.plot(each, [y + 0.18 * (i - 0.5)] * len(each), "|", color=colour, markersize=9)
        for name, mean in zip(TIGHT, means, strict=True):
            print(f"  {name}, {label}: {mean:.2f} nats below log p(x)")
    axes.set_yticks(range(len(TIGHT)), TIGHT)
    axes.set_ylim(len(TIGHT) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("log p(x) − bound, nats per test example; bars: seeds")
    axes.set_title("How loose the bounds are", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    axes.figure.savefig(path, dpi=150)
    for name in TIGHT[1:]:
        for label, key in series.items():
            print(
                f"  {name} − vae-k1, {label}: {shown(differences(runs, name, 'vae-k1', gap(key)))}"
            )


def draw_curves(runs: Runs, path: Path) -> None:
    """Training and validation bounds by epoch, a line a seed, with and without noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    panels = figure.subplots(1, len(CURVES), sharey=True)
    lowest = []
    for axes, (encoder, pair) in zip(panels, CURVES.items(), strict=True):
        for name, colour in zip(pair, (BLUE, ORANGE), strict=True):
            for i, result in enumerate(runs[name].values()):
                curve = result["curve"]
                for key, style, of in (
                    ("train_bound", "--", "training"),
                    ("valid_bound", "-", "validation"),
                ):
                    values = [line[key] for line in curve]
                    axes.plot([line["epoch"] for line in curve], values, style, color=colour,
                              linewidth=1.2, label=None if i else f"{name}, {of}")  # fmt: skip
                    lowest.append(values[len(values) // 8])
            best = [result["best_epoch"] for result in runs[name].values()]
            print(f"  {name}: best epochs {best}")
        for what, of in (
            ("best validation bound", lambda result: float(result["valid_bound"])),
            ("training − validation", overfit),
            ("lost since the best", lost),
        ):
            for name in pair:
                each = [of(result) for result in runs[name].values()]
                shown_each = ", ".join(f"{one:.1f}" for one in each)
                print(f"  {name}, {what}: {shown_each}; mean {statistics.fmean(each):.1f}")
            print(f"  {pair[1]} − {pair[0]}, {what}: {shown(differences(runs, *pair[::-1], of))}")
        _plain(axes)
        axes.set_xlabel("epoch")
        axes.set_title(f"{encoder} encoder", fontsize=11)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylim(bottom=min(lowest))
    panels[0].set_ylabel("own bound, nats per example")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's claims against finished runs.")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "reproduction" / "small")
    parser.add_argument("--output", type=Path, default=HERE / "figures")
    a = parser.parse_args()
    try:
        runs = by_row(read_results(a.folder))
    except (CheckpointError, ValueError) as error:
        raise SystemExit(f"claims: {error}") from None
    if not a.output.is_dir():
        raise SystemExit(f"claims: --output must be a folder, got {a.output}")
    curves = (name for pair in CURVES.values() for name in pair)
    needed = {*HELPS, *CONTRAST, PIXEL, LEARNT, *curves, *TIGHT}
    missing = sorted((needed | {str(ROWS[n].baseline or n) for n in needed}) - runs.keys())
    if missing:
        raise SystemExit(f"claims: {a.folder} has no runs of {', '.join(missing)}")
    print("Does denoising help?")
    draw_differences(runs, (*HELPS, *CONTRAST), "Noise, and fresh draws of the images instead",
                     a.output / "claim_denoising.png")  # fmt: skip
    print("And at the paper's length?")
    whole = by_row(read_results(HERE / "reproduction" / "full"))
    for row, (name, title) in itertools.product(AT_LENGTH, FIGURES.items()):
        found = differences(whole, row, str(ROWS[row].baseline), figure_of(name))
        print(f"  {row}, {title}: {shown(found)}")
    print("Is its bound tighter?")
    draw_gaps(runs, a.output / "claim_tightness.png")
    print("Do GRU encoders overfit without it?")
    draw_curves(runs, a.output / "claim_gru.png")
    print("Do rates per pixel help? Does a learnt rate?")
    draw_differences(runs, (PIXEL, LEARNT, COPIES), "Where the noise goes, and how much",
                     a.output / "claim_rates.png")  # fmt: skip
    levels = [f"{r['learnt_level']:.2e}" for r in runs[LEARNT].values()]
    print(f"  learnt rates, from {ROWS[LEARNT].settings['level']}: {', '.join(levels)}")


if __name__ == "__main__":
    main()
