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
COPY, COPY_SHARE = "copy bandwidth at 8 bytes an element", 0.70
PRODUCTS, PRODUCT_SHARE = "its matrix products alone", 0.85
SAME_MEMORY = 0.05
MEMORY_SHARE = 0.6
LINEAR_EXTRA = 32e6
NLL = 89.5  # of the run in iwae_mnist

HEAD = ["what", "against", "ours", "theirs", "ratio", "target", ""]


def row(
    what: str, against: str, target: str, met: bool | None = None, *shown: str, ratio: str = ""
) -> list[str]:
    """Of `HEAD`; nobody's target where `target` is "". `met` is None where it was not measured.

    A target must not vanish from the table, and so from the count, because a run broke.
    """
    verdict = "**not measured**" if met is None else "met" if met else "**missed**"
    ours, theirs, *_ = (*shown, "", "")
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
                rows.append(row(*said))
                continue
            ratio, (low, high) = rival.median / ours.median, rival.ratio_range(ours)
            shown = f"{ratio:.2f}× ({low:.2f}–{high:.2f})"
            times = (seconds(ours.median), seconds(rival.median))
            rows.append(row(*said, ratio >= factor, *times, ratio=shown))
    return rows + _share_rows(groups)


def _share_rows(groups: Groups) -> list[list[str]]:
    """How much of our time the least possible would take: a copy of as many bytes as the loss reads
    and writes, and an evaluation's matrix products.
    """
    rows, copy = [], groups.get("ceilings", {}).get("copy")
    for prefix, rival, against, least in (
        (f"{LOSS}50", "ours", COPY, COPY_SHARE),
        (f"{LOSS}50", "ours, overwrite_params", COPY, COPY_SHARE),
        (EVALUATION, "ours", PRODUCTS, PRODUCT_SHARE),
    ):
        name, group = find(groups, prefix)
        ours, products = group.get(rival), group.get("products")
        said = (f"{name}{rival.removeprefix('ours')}", against, f"≥ {least:.0%}")
        bound = products.median if products else None
        if against == COPY and ours and copy:
            bound = ours.bytes / copy.rate("bytes")
        if ours is None or bound is None:
            rows.append(row(*said))
            continue
        times, share = (seconds(ours.median), seconds(bound)), bound / ours.median
        rows.append(row(*said, share >= least, *times, ratio=f"{share:.0%}"))
    return rows


def memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Growth of the resident set, of a training step and of the last layer."""
    found = {(one["work"], one["rival"]): one.get("resident") for one in memory}
    ours = found.pop(("training step", "ours"), None)
    rows, step = [], "peak memory, training step K=50"
    for (work, rival), theirs in found.items():
        if ours is not None and theirs is not None and work == "training step":
            bar = f"≤ {MEMORY_SHARE}" if rival.startswith("eager") else ""
            share, sizes = ours / theirs, (mebibytes(ours), mebibytes(theirs))
            rows.append(row(step, rival, bar, share <= MEMORY_SHARE, *sizes, ratio=f"{share:.2f}"))
    if not any(one[5] for one in rows):
        rows.append(row(step, "eager", f"≤ {MEMORY_SHARE}"))
    what = ("peak extra memory, linear_log_weights", "addmm", f"< {LINEAR_EXTRA / 1e6:.0f} MB")
    extra, product = (found.get(("linear_log_weights", r)) for r in ("ours", "addmm"))
    if extra is None or product is None:
        return [*rows, row(*what)]
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
            rows.append(row(*said))
            continue
        same, sizes = abs(many / few - 1) <= SAME_MEMORY, (mebibytes(many), mebibytes(few))
        rows.append(row(*said, same, *sizes, ratio=f"{many / few:.3f}"))
    return rows


def likelihood_rows(run: Path) -> list[list[str]]:
    """Test log-likelihood of the training run whose metrics are kept beside this file."""
    metrics = json.loads(run.read_text())
    config, evaluation = metrics["config"], metrics["evaluation"]
    nll, error = -evaluation["log_likelihood"], evaluation["standard_error"]
    data = f"{config['binarise']} {config['data'].upper()}, {config['epochs']} epochs"
    what = f"{config['model'].upper()} K={config['samples']}, {data}"
    against = f"test NLL in nats, k = {evaluation['k']}, all {evaluation['examples']:,}"
    return [row(what, against, f"≤ {NLL}", nll <= NLL, f"{nll:.2f} ± {error:.3f}")]
