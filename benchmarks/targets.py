"""The targets, and for each a row of the report's first table: met, missed or not measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from figures import Figure, Groups, mebibytes, seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


LOSS = "iwae_loss forward+backward, B=100 K="
CORRUPT = "corrupt salt-and-pepper, 100×784, M="
STEP = "training step, 784-200-200-50-200-200-784, B=100 K="
EVALUATION = "evaluation, 10 examples"

BFLOAT16, HALF = "ours, bfloat16", "compile, bfloat16"
WHOLE = "ours, TrainingStep"

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
    f"{STEP}50": [("compile", 1.55, WHOLE), ("eager", 1.25, WHOLE), (HALF, 2, BFLOAT16)],
    f"{STEP}5": [("compile", 1.6, WHOLE)],
    f"{STEP}1": [("compile", 1.8, WHOLE), ("eager", 1.5, WHOLE)],
    EVALUATION: [
        ("eager", 1.7),
        ("compile", 1.35),
        ("compile", 2.5, BFLOAT16),
        (HALF, 2.8, BFLOAT16),
    ],
    "pythae's VAE": [("pythae", 4.5)],
}
COPY, COPY_SHARE = "copy bandwidth at 8 bytes an element", 0.70
PRODUCTS, PRODUCT_SHARE = "its matrix products alone", 0.85
STEP_SHARES = {50: 0.82, 5: 0.65, 1: 0.50}
SAME_MEMORY = 0.05
MEMORY_SHARE = 0.25
LINEAR_EXTRA = 32e6
NLL = 89.5  # of the run in iwae_mnist

HEAD = ["what", "against", "ours", "theirs", "ratio", "target", ""]


def row(
    what: str, against: str, target: str, ours: Any, theirs: Any, *, show: Any = seconds,
    met: Callable[[Any, Any], bool], ratio: Callable[[Any, Any], str] = lambda a, b: "",
) -> list[str]:  # fmt: skip
    """Of `HEAD`; nobody's target where `target` is "".

    A target must not vanish from the table, and so from the count, because a run broke.
    """
    if ours is None or theirs is None:
        return [what, against, "", "", "", target, "**not measured**" if target else ""]
    verdict = ("met" if met(ours, theirs) else "**missed**") if target else ""
    return [what, against, show(ours), show(theirs), ratio(ours, theirs), target, verdict]


def find(groups: Groups, prefix: str) -> tuple[str, dict[str, Figure]]:
    """The group whose name starts with `prefix`, which ends where the name or a number does."""
    for name, group in groups.items():
        if name.startswith(prefix) and not name[len(prefix) :][:1].isdigit():
            return name, group
    return prefix, {}


def speed_rows(groups: Groups) -> list[list[str]]:
    def shown(ours: Figure, rival: Figure) -> str:
        low, high = rival.ratio_range(ours)
        return f"{rival.median / ours.median:.2f}× ({low:.2f}–{high:.2f})"

    rows = []
    for prefix, bars in TARGETS.items():
        name, group = find(groups, prefix)
        for against, factor, *other in bars:
            mine = other[0] if other else "ours"
            rows.append(row(
                f"{name}{mine.removeprefix('ours')}", against, f"≥ {factor:g}×",
                group.get(mine), group.get(against), show=lambda figure: seconds(figure.median),
                met=lambda a, b, least=factor: b.median / a.median >= least, ratio=shown,
            ))  # fmt: skip
    return rows + _share_rows(groups)


def _share_rows(groups: Groups) -> list[list[str]]:
    """How much of our time the least possible would take: a copy of as many bytes as the loss reads
    and writes, and an evaluation's or a step's matrix products.
    """
    rows, copy = [], groups.get("ceilings", {}).get("copy")
    for prefix, rival, against, least in (
        (f"{LOSS}50", "ours", COPY, COPY_SHARE),
        (f"{LOSS}50", "ours, overwrite_params", COPY, COPY_SHARE),
        (EVALUATION, "ours", PRODUCTS, PRODUCT_SHARE),
        *((f"{STEP}{k}", WHOLE, PRODUCTS, share) for k, share in STEP_SHARES.items()),
    ):
        name, group = find(groups, prefix)
        ours, products = group.get(rival), group.get("products")
        bound = products and products.median
        if against == COPY:
            bound = ours and copy and ours.bytes / copy.rate("bytes")
        rows.append(row(
            f"{name}{rival.removeprefix('ours')}", against, f"≥ {least:.0%}", ours and ours.median,
            bound, met=lambda a, b, least=least: b / a >= least, ratio=lambda a, b: f"{b / a:.0%}",
        ))  # fmt: skip
    return rows


def memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Growth of the resident set, of a training step and of the last layer."""
    found = {(one["work"], one["rival"]): one.get("resident") for one in memory}
    ours = found.pop(("training step", "ours"), None)
    steps = {rival: figure for (work, rival), figure in found.items() if work == "training step"}
    if ours is None or not any(r.startswith("eager") and f for r, f in steps.items()):
        steps = {"eager": None}
    rows = [
        row(
            "peak memory, training step K=50", rival,
            f"≤ {MEMORY_SHARE}" if rival.startswith("eager") else "", ours, theirs, show=mebibytes,
            met=lambda a, b: a / b <= MEMORY_SHARE, ratio=lambda a, b: f"{a / b:.2f}",
        )
        for rival, theirs in steps.items()
    ]  # fmt: skip
    extra, product = (found.get(("linear_log_weights", r)) for r in ("ours", "addmm"))
    linear = ("peak extra memory, linear_log_weights", "addmm", f"< {LINEAR_EXTRA / 1e6:.0f} MB")
    fits = row(*linear, extra, product, show=mebibytes, met=lambda a, b: a < LINEAR_EXTRA)
    return [*rows, fits]


def evaluation_memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Memory of an evaluation must not grow with k."""
    figures = {one["rival"]: one for one in memory if one["work"] == "evaluation"}
    # At k = 50 no chunk is full: only from there on is it the tensors alone that must not grow.
    return [
        row(
            f"{what}, evaluation, {larger}", smaller, f"within {SAME_MEMORY:.0%}",
            *(figures.get(k, {}).get(method) for k in (larger, smaller)), show=mebibytes,
            met=lambda a, b: abs(a / b - 1) <= SAME_MEMORY, ratio=lambda a, b: f"{a / b:.3f}",
        )
        for what, method, larger, smaller in (
            ("peak memory of the process", "process", "k = 5000", "k = 50"),
            ("most memory in tensors", "tensors", "k = 50000", "k = 5000"),
        )
    ]  # fmt: skip


def likelihood_rows(run: Path) -> list[list[str]]:
    """Test log-likelihood of the training run whose metrics are kept beside this file."""
    metrics = json.loads(run.read_text())
    config, evaluation = metrics["config"], metrics["evaluation"]
    nll, error = -evaluation["log_likelihood"], evaluation["standard_error"]
    data = f"{config['binarise']} {config['data'].upper()}, {config['epochs']} epochs"
    what = f"{config['model'].upper()} K={config['samples']}, {data}"
    against = f"test NLL in nats, k = {evaluation['k']}, all {evaluation['examples']:,}"
    met = "met" if nll <= NLL else "**missed**"
    return [[what, against, f"{nll:.2f} ± {error:.3f}", "", "", f"≤ {NLL}", met]]
