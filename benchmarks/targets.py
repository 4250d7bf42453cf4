"""The targets, and for each a row of the report's first table: met, missed or not measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from figures import Figure, Groups, mebibytes, seconds

if TYPE_CHECKING:
    from pathlib import Path


LOSS = "iwae_loss forward+backward, B=100 K="
CORRUPT = "corrupt salt-and-pepper, 100×784, M="
STEP = "training step, 784-200-200-50-200-200-784, B=100 K="
EVALUATION = "evaluation, 10 examples"

BFLOAT16 = "ours, bfloat16"

#: by the start of a group's name: the rival, how many times as fast ours must be, and who that is
TARGETS: dict[str, list[tuple[Any, ...]]] = {
    f"{LOSS}50": [("compile", 3), ("eager", 5)],
    f"{LOSS}5": [("compile", 2.5)],
    f"{LOSS}1": [("compile", 2.5)],
    "log_weights forward": [("compile", 3.5), ("eager", 15), ("eager, chunked", 15)],
    f"{CORRUPT}1": [("eager", 6), ("compile", 6)],
    f"{CORRUPT}10": [("eager", 8), ("compile", 8)],
    "sample_latent": [("eager", 3.5)],
    "linear_log_weights": [("addmm", 1), ("addmm, kept buffer", 1)],
    f"{STEP}50": [("eager", 1.25)],
    f"{STEP}1": [("eager", 1.5)],
    EVALUATION: [
        *(("eager", 1.7), ("compile", 1.35)),
        *(("compile", 2.5, BFLOAT16), ("compile, bfloat16", 1.3, BFLOAT16)),
    ],
    "pythae's VAE": [("pythae", 4.5)],
}
COPY_SHARE = 0.70
PRODUCT_SHARE = 0.85
SAME_MEMORY = 0.05
MEMORY_SHARE = 0.6
LINEAR_EXTRA = 32e6
PROCESSES = 1e-5  # relative difference
GAP = 0.1
SPEED_UP, APART = 3, 0.02  # of a tolerance of 0.02
NLL = 89.5  # of the run in iwae_mnist

HEAD = ["what", "against", "ours", "theirs", "ratio", "target", ""]


def row(
    what: str,
    against: str,
    target: str,
    met: bool | None,
    ours: str = "",
    theirs: str = "",
    ratio: str = "",
) -> list[str]:
    """Of `HEAD`; nobody's target where `target` is "". `met` is None where it was not measured.

    A target must not vanish from the table, and so from the count, because a run broke.
    """
    verdict = "**not measured**" if met is None else "met" if met else "**missed**"
    return [what, against, ours, theirs, ratio, target, verdict if target else ""]


def find(groups: Groups, prefix: str) -> tuple[str, dict[str, Figure]]:
    """The group whose name starts with `prefix`, which ends where the name or a number does."""
    for name, group in groups.items():
        if name.startswith(prefix) and not name[len(prefix) :][:1].isdigit():
            return name, group
    return prefix, {}


def speed_rows(groups: Groups) -> list[list[str]]:
    rows = []
    for prefix, bars in TARGETS.items():
        name, group = find(groups, prefix)
        for against, factor, *other in bars:
            mine = other[0] if other else "ours"
            ours, rival = group.get(mine), group.get(against)
            said = (f"{name}{mine.removeprefix('ours')}", against, f"≥ {factor:g}×")
            if ours is None or rival is None:
                rows.append(row(*said, None))
                continue
            ratio, (low, high) = rival.median / ours.median, rival.ratio_range(ours)
            shown = f"{ratio:.2f}× ({low:.2f}–{high:.2f})"
            times = (seconds(ours.median), seconds(rival.median))
            rows.append(row(*said, ratio >= factor, *times, shown))
    return rows + _copy_rows(groups) + _product_rows(groups)


def _share(what: str, against: str, least: float, ours: float, bound: float) -> list[str]:
    """How much of our time the least possible would take."""
    times, share = (seconds(ours), seconds(bound)), bound / ours
    return row(what, against, f"≥ {least:.0%}", share >= least, *times, f"{share:.0%}")


def _copy_rows(groups: Groups) -> list[list[str]]:
    """The loss against a copy of as many bytes."""
    name, group = find(groups, f"{LOSS}50")
    copy, against = groups.get("ceilings", {}).get("copy"), "copy bandwidth at 8 bytes an element"
    rows = []
    for rival in ("ours", "ours, overwrite_params"):
        if copy is not None and (ours := group.get(rival)) is not None:
            what = f"{name}{rival.removeprefix('ours')}"
            same = copy.median * ours.bytes / copy.bytes
            rows.append(_share(what, against, COPY_SHARE, ours.median, same))
    return rows or [row(name, against, f"≥ {COPY_SHARE:.0%}", None)]


def _product_rows(groups: Groups) -> list[list[str]]:
    """The share of an evaluation that its matrix products alone would take."""
    (name, group), against = find(groups, EVALUATION), "its matrix products alone"
    if "ours" not in group or "products" not in group:
        return [row(name, against, f"≥ {PRODUCT_SHARE:.0%}", None)]
    return [_share(name, against, PRODUCT_SHARE, *(group[r].median for r in ("ours", "products")))]


def memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Growth of the resident set, of a training step and of the last layer."""
    figures = {(one["work"], one["rival"]): one.get("resident") for one in memory}
    ours = figures.get(("training step", "ours"))
    rows, step = [], "peak memory, training step K=50"
    for (work, rival), theirs in figures.items():
        if ours is None or theirs is None or work != "training step" or rival == "ours":
            continue
        bar = f"≤ {MEMORY_SHARE}" if rival.startswith("eager") else ""
        share, sizes = ours / theirs, (mebibytes(ours), mebibytes(theirs))
        rows.append(row(step, rival, bar, share <= MEMORY_SHARE, *sizes, f"{share:.2f}"))
    if not any(one[5] for one in rows):
        rows.append(row(step, "eager", f"≤ {MEMORY_SHARE}", None))
    what = ("peak extra memory, linear_log_weights", "addmm", f"< {LINEAR_EXTRA / 1e6:.0f} MB")
    extra, product = (figures.get(("linear_log_weights", r)) for r in ("ours", "addmm"))
    if extra is None or product is None:
        return [*rows, row(*what, None)]
    return [*rows, row(*what, extra < LINEAR_EXTRA, mebibytes(extra), mebibytes(product))]


def evaluation_memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Memory of an evaluation must not grow with k."""
    figures = {one["rival"]: one for one in memory if one["work"] == "evaluation"}
    rows = []
    # At k = 50 no chunk is full: only from there on is it the tensors alone that must not grow.
    for what, method, larger, smaller in (
        ("peak memory of the process", "process", "k = 5000", "k = 50"),
        ("most memory in tensors", "tensors", "k = 50000", "k = 5000"),
    ):
        many, few = (figures.get(k, {}).get(method) for k in (larger, smaller))
        said = (f"{what}, evaluation, {larger}", smaller, f"within {SAME_MEMORY:.0%}")
        if many is None or few is None:
            rows.append(row(*said, None))
            continue
        same = abs(many / few - 1) <= SAME_MEMORY
        rows.append(row(*said, same, mebibytes(many), mebibytes(few), f"{many / few:.3f}"))
    return rows


def evaluator_rows(evaluator: dict[str, Any]) -> list[list[str]]:
    """Processes, annealed bounds and a tolerance, of `evaluator.py`."""
    two, bar = evaluator.get("processes"), f"≤ {PROCESSES:.0e}"
    what = "2 processes" + (f", k = {two['k']}, {two['examples']} examples" if two else "")
    apart = two and two["relative_difference"]
    said = (what, "1 process, each log p(x)", bar)
    rows = [row(*said, apart <= PROCESSES, f"{apart:.1e}") if two else row(*said, None)]
    for start in ("posterior", "prior"):
        what = f"AIS from the {start}, forward and reverse, linear-Gaussian"
        found, bar = evaluator.get("annealed", {}).get(start), f"around, gap < {GAP}"
        if found is None:
            rows.append(row(what, "exact log p(x)", bar, None))
            continue
        # Each mean within five of its own standard errors.
        below, above = (5 * found[f"{side}_standard_error"] for side in ("lower", "upper"))
        inside = found["lower"] - below <= found["exact"] <= found["upper"] + above
        bounds = ", ".join(
            f"{found[side]:.4f} ± {found[f'{side}_standard_error']:.4f}"
            for side in ("lower", "upper")
        )
        against, met = f"exact log p(x), {found['exact']:.4f}", inside and found["gap"] < GAP
        rows.append(row(what, against, bar, met, bounds, ratio=f"{found['gap']:.4f}"))
    what, bar = "evaluation, tolerance 0.02, MNIST test", f"≥ {SPEED_UP}×, mean within {APART}"
    found = next((t for t in evaluator.get("tolerances", ()) if t["tolerance"] == 0.02), None)
    if found is None:
        return [*rows, row(what, "k = 5000", bar, None)]
    fixed, ours = found["seconds"]["fixed"], found["seconds"]["tolerance"]
    apart = abs(found["mean"]["fixed"] - found["mean"]["tolerance"])
    met = fixed / ours >= SPEED_UP and apart <= APART
    said = (f"{what}, mean apart by {apart:.3f}", f"k = {found['max_k']}", bar, met)
    return [*rows, row(*said, seconds(ours), seconds(fixed), f"{fixed / ours:.2f}×")]


def likelihood_rows(run: Path) -> list[list[str]]:
    """Test log-likelihood of the training run whose metrics are kept beside this file."""
    metrics = json.loads(run.read_text())
    config, evaluation = metrics["config"], metrics["evaluation"]
    nll, error = -evaluation["log_likelihood"], evaluation["standard_error"]
    data = f"{config['binarise']} {config['data'].upper()}, {config['epochs']} epochs"
    what = f"{config['model'].upper()} K={config['samples']}, {data}"
    against = f"test NLL in nats, k = {evaluation['k']}, all {evaluation['examples']:,}"
    return [row(what, against, f"≤ {NLL}", nll <= NLL, f"{nll:.2f} ± {error:.3f}")]
