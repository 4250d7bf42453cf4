"""The report of one run: `report/index.html` and `report/RESULTS.md` from the benchmarks' JSON.

    python benchmarks/report.py FOLDER [--output FOLDER]

The first folder holds what `run.py` collects: times.json, and kept, growth, memory, growth_memory,
accuracy and evaluator where they were measured.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import charts
import growth
from figures import MIB, Chart, Figure, Groups, Section, Table, load, markdown, seconds
from page import page

# --- targets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """`group` starts with this; ours must be `factor` times as fast as the fastest of `against`."""

    group: str
    against: tuple[str, ...]
    factor: float
    ours: str = "ours"


EAGER = ("eager",)
COMPILE = ("compile",)

TARGETS = (
    Target("iwae_loss forward+backward, B=100 K=50", COMPILE, 3),
    Target("iwae_loss forward+backward, B=100 K=50", EAGER, 5),
    Target("iwae_loss forward+backward, B=100 K=5 ", COMPILE, 2.5),
    Target("iwae_loss forward+backward, B=100 K=1 ", COMPILE, 2.5),
    Target("log_weights forward", COMPILE, 3.5),
    Target("log_weights forward", EAGER, 15),
    Target("log_weights forward", ("eager, chunked",), 15),
    Target("corrupt salt-and-pepper, 100×784, M=1", EAGER, 6),
    Target("corrupt salt-and-pepper, 100×784, M=1", COMPILE, 6),
    Target("corrupt salt-and-pepper, 100×784, M=10", EAGER, 8),
    Target("corrupt salt-and-pepper, 100×784, M=10", COMPILE, 8),
    Target("sample_latent", EAGER, 3.5),
    Target("linear_log_weights", ("addmm",), 1),
    Target("linear_log_weights", ("addmm, kept buffer",), 1),
    Target("training step, 784-200-200-50-200-200-784, B=100 K=50", EAGER, 1.25),
    Target("training step, 784-200-200-50-200-200-784, B=100 K=1", EAGER, 1.5),
    Target("evaluation, 10 examples", EAGER, 1.7),
    Target("evaluation, 10 examples", COMPILE, 1.35),
    Target("evaluation, 10 examples", COMPILE, 2.5, "ours, bfloat16"),
    Target("evaluation, 10 examples", ("compile, bfloat16",), 1.3, "ours, bfloat16"),
    Target("pythae's VAE", ("pythae",), 4.5),
)
COPY_SHARE = 0.70
PRODUCT_SHARE = 0.85
SAME_MEMORY = 0.05
MEMORY_SHARE = 0.6
LINEAR_EXTRA = 32e6
ACCURACY = 2e-6
NLL = 89.5  # of the run in iwae_mnist


def find(groups: Groups, prefix: str) -> tuple[str, dict[str, Figure]] | None:
    """The group whose name starts with `prefix`, which ends where the name or a number does."""
    for name, group in groups.items():
        if name.startswith(prefix) and not name[len(prefix) :][:1].isdigit():
            return name, group
    return None


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def unmeasured(what: str, against: str, target: str) -> list[str]:
    """A target must not vanish from the table, and so from the count, because a run broke."""
    return [what, against, "", "", "", target, "**not measured**"]


def target_rows(groups: Groups) -> list[list[str]]:
    rows = []
    for target in TARGETS:
        name, group = find(groups, target.group) or (target.group.strip(), {})
        rivals = [group[rival] for rival in target.against if rival in group]
        what = f"{name}{target.ours.removeprefix('ours')}"
        if target.ours not in group or not rivals:
            rows.append(unmeasured(what, " or ".join(target.against), f"≥ {target.factor:g}×"))
            continue
        rival = min(rivals, key=lambda figure: figure.median)
        ours = group[target.ours].median
        ratio = rival.median / ours
        low, high = rival.ratio_range(group[target.ours])
        rows.append(
            [
                what,
                rival.rival,
                seconds(ours),
                seconds(rival.median),
                f"{ratio:.2f}× ({low:.2f}–{high:.2f})",
                f"≥ {target.factor:g}×",
                verdict(ratio >= target.factor),
            ]
        )
    return rows + _copy_rows(groups) + _product_rows(groups)


def _product_rows(groups: Groups) -> list[list[str]]:
    """The share of an evaluation that its matrix products alone would take."""
    target = f"≥ {PRODUCT_SHARE:.0%}"
    name, group = find(groups, "evaluation, 10 examples") or ("evaluation", {})
    if "ours" not in group or "products" not in group:
        return [unmeasured(name, "its matrix products alone", target)]
    ours, products = group["ours"].median, group["products"].median
    share = products / ours
    return [
        [
            name,
            "its matrix products alone",
            seconds(ours),
            seconds(products),
            f"{share:.0%}",
            target,
            verdict(share >= PRODUCT_SHARE),
        ]
    ]


def _copy_rows(groups: Groups) -> list[list[str]]:
    """The loss against a copy of as many bytes."""
    found = find(groups, "iwae_loss forward+backward, B=100 K=50")
    copy = groups.get("ceilings", {}).get("copy")
    if found is None or copy is None:
        return [unmeasured("iwae_loss forward+backward", "copy bandwidth", f"≥ {COPY_SHARE:.0%}")]
    rows = []
    for rival in ("ours", "ours, overwrite_params"):
        figure = found[1].get(rival)
        if figure is None:
            continue
        same = copy.median * figure.bytes / copy.bytes  # a copy of as many bytes
        share = same / figure.median
        rows.append(
            [
                f"{found[0]}" + rival.removeprefix("ours"),
                "copy bandwidth at 8 bytes an element",
                seconds(figure.median),
                seconds(same),
                f"{share:.0%}",
                f"≥ {COPY_SHARE:.0%}",
                verdict(share >= COPY_SHARE),
            ]
        )
    return rows


def memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    figures = {(row["work"], row["rival"]): row.get("resident") for row in memory}
    ours = figures.get(("training step", "ours"))
    rows = []

    def size(value: float) -> str:
        return f"{value / MIB:.1f} MiB"

    for (work, rival), value in figures.items():
        if ours is None or value is None or work != "training step" or rival == "ours":
            continue
        share = ours / value
        judged = rival.startswith("eager")
        rows.append(
            [
                "peak memory, training step K=50",
                rival,
                size(ours),
                size(value),
                f"{share:.2f}",
                f"≤ {MEMORY_SHARE}" if judged else "",
                verdict(share <= MEMORY_SHARE) if judged else "",
            ]
        )
    if not any(row[5] for row in rows):
        rows.append(unmeasured("peak memory, training step K=50", "eager", f"≤ {MEMORY_SHARE}"))
    extra, product = (figures.get(("linear_log_weights", r)) for r in ("ours", "addmm"))
    if extra is not None and product is not None:
        rows.append(
            [
                "peak extra memory, linear_log_weights",
                "addmm",
                size(extra),
                size(product),
                "",
                f"< {LINEAR_EXTRA / 1e6:.0f} MB",
                verdict(extra < LINEAR_EXTRA),
            ]
        )
    else:
        limit = f"< {LINEAR_EXTRA / 1e6:.0f} MB"
        rows.append(unmeasured("peak extra memory, linear_log_weights", "addmm", limit))
    return rows


def evaluation_rows(memory: list[dict[str, Any]], evaluator: dict[str, Any]) -> list[list[str]]:
    """Memory in k, processes, a tolerance, and annealed bounds, of `evaluator.py`."""
    figures = {row["rival"]: row for row in memory if row["work"] == "evaluation"}
    rows = []
    # At k = 50 no chunk is full: only from there on is it the tensors alone that must not grow.
    for what, method, larger, smaller in (
        ("peak memory of the process", "process", "k = 5000", "k = 50"),
        ("most memory in tensors", "tensors", "k = 50000", "k = 5000"),
    ):
        many, few = (figures.get(k, {}).get(method) for k in (larger, smaller))
        what, target = f"{what}, evaluation, {larger}", f"within {SAME_MEMORY:.0%}"
        if many is None or few is None:
            rows.append(unmeasured(what, smaller, target))
            continue
        ratio = many / few
        rows.append(
            [
                what,
                smaller,
                f"{many / MIB:.1f} MiB",
                f"{few / MIB:.1f} MiB",
                f"{ratio:.3f}",
                target,
                verdict(abs(ratio - 1) <= SAME_MEMORY),
            ]
        )
    if two := evaluator.get("processes"):
        difference = two["relative_difference"]
        rows.append(
            [
                f"2 processes, k = {two['k']}, {two['examples']} examples",
                "1 process, each log p(x)",
                f"{difference:.1e}",
                "",
                "",
                "≤ 1e-05",
                verdict(difference <= 1e-5),
            ]
        )
    else:
        rows.append(unmeasured("2 processes", "1 process, each log p(x)", "≤ 1e-05"))
    for start in ("posterior", "prior"):
        what = f"AIS from the {start}, forward and reverse, linear-Gaussian"
        if start not in evaluator.get("annealed", {}):
            rows.append(unmeasured(what, "exact log p(x)", "around, gap < 0.1"))
            continue
        found = evaluator["annealed"][start]
        # Each mean within five of its own standard errors.
        below, above = (5 * found[f"{side}_standard_error"] for side in ("lower", "upper"))
        inside = found["lower"] - below <= found["exact"] <= found["upper"] + above
        rows.append(
            [
                what,
                f"exact log p(x), {found['exact']:.4f}",
                f"{found['lower']:.4f} ± {found['lower_standard_error']:.4f}, "
                f"{found['upper']:.4f} ± {found['upper_standard_error']:.4f}",
                "",
                f"{found['gap']:.4f}",
                "around, gap < 0.1",
                verdict(inside and found["gap"] < 0.1),
            ]
        )
    found = next((t for t in evaluator.get("tolerances", ()) if t["tolerance"] == 0.02), None)
    what = "evaluation, tolerance 0.02, MNIST test"
    target = "≥ 3×, mean within 0.02"
    if found is None:
        rows.append(unmeasured(what, "k = 5000", target))
    else:
        ratio = found["seconds"]["fixed"] / found["seconds"]["tolerance"]
        apart = abs(found["mean"]["fixed"] - found["mean"]["tolerance"])
        rows.append(
            [
                f"{what}, mean apart by {apart:.3f}",
                f"k = {found['max_k']}",
                seconds(found["seconds"]["tolerance"]),
                seconds(found["seconds"]["fixed"]),
                f"{ratio:.2f}×",
                target,
                verdict(ratio >= 3 and apart <= 0.02),
            ]
        )
    return rows


def likelihood_rows(run: Path) -> list[list[str]]:
    """Test log-likelihood of the training run whose metrics are kept beside this file."""
    metrics = json.loads(run.read_text())
    config, evaluation = metrics["config"], metrics["evaluation"]
    nll, error = -evaluation["log_likelihood"], evaluation["standard_error"]
    return [
        [
            f"{config['model'].upper()} K={config['samples']}, {config['binarise']} "
            f"{config['data'].upper()}, {config['epochs']} epochs",
            f"test NLL in nats, k = {evaluation['k']}, all {evaluation['examples']:,}",
            f"{nll:.2f} ± {error:.3f}",
            "",
            "",
            f"≤ {NLL}",
            verdict(nll <= NLL),
        ]
    ]


def accuracy_rows(accuracy: dict[str, Any] | None) -> list[list[str]]:
    if accuracy is None:
        target = f"≤ {ACCURACY:.0e}"
        return [
            unmeasured("largest error, float32", "float64", target),
            unmeasured("noise on every instruction set", "reference, bit by bit", "identical"),
        ]
    op, worst = max(accuracy["errors"].items(), key=lambda item: item[1])
    noise = accuracy["noise"]
    rows = [
        [
            f"largest error, float32, {len(accuracy['errors'])} operators",
            "float64, over the sum of absolute terms",
            f"{worst:.1e} ({op})",
            "",
            "",
            f"≤ {ACCURACY:.0e}",
            verdict(worst <= ACCURACY),
        ]
    ]
    if noise:
        same = all(noise.values())
        rows.append(
            [
                f"noise on {', '.join(noise)}",
                "reference, bit by bit",
                "identical" if same else "differs",
                "",
                "",
                "identical",
                verdict(same),
            ]
        )
    return rows


# --- all rivals, roofline -------------------------------------------------------------------------


def rival_rows(groups: Groups) -> list[list[str]]:
    rows = []
    for name, group in groups.items():
        ours = group.get("ours")
        for i, figure in enumerate(group.values()):
            label = figure.rival + (f" ({figure.variant})" if figure.variant else "")
            each = f"{figure.median / figure.elements * 1e9:.3g}" if figure.elements else ""
            rows.append(
                [
                    name if i == 0 else "",
                    label,
                    seconds(figure.median),
                    f"{figure.spread:.0%}",
                    f"{figure.drift:.2f}",
                    each,
                    _of_ours(figure, ours),
                    str(len(figure.times)),
                ]
            )
    return rows


def _of_ours(figure: Figure, ours: Figure | None) -> str:
    """Time over ours, with its range from turn to turn."""
    if ours is None:
        return ""
    if figure is ours:
        return "1"
    low, high = figure.ratio_range(ours)
    return f"{figure.median / ours.median:.2f} ({low:.2f}–{high:.2f})"


def roofline_rows(groups: Groups) -> list[list[str]]:
    """Bytes and operations a second as shares of what copy and GEMM reached in the same run."""
    ceilings = groups.get("ceilings", {})
    copy, gemm = ceilings.get("copy"), ceilings.get("GEMM")
    rows = []
    for name, group in groups.items():
        for rival, figure in group.items():
            if rival.startswith("eager") or "torch.compile" in rival:
                continue
            if not (figure.bytes or figure.flops):
                continue
            cells = [f"{name}: {rival}"]
            for work, ceiling, unit in (
                (figure.bytes, copy and copy.bytes / copy.median, 1e9),
                (figure.flops, gemm and gemm.flops / gemm.median, 1e9),
            ):
                rate = work / figure.median
                cells += [f"{rate / unit:.3g}"] if work else [""]
                cells += [f"{rate / ceiling:.0%}"] if work and ceiling else [""]
            rows.append(cells)
    return rows


# --- the whole ------------------------------------------------------------------------------------


def machine(content: dict[str, Any]) -> str:
    """What the figures were measured on and with."""
    info = content["machine_info"]
    ours, setting = info["dvae_fast"], info["measured_with"]
    cpu = setting["cpu"]
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in cpu["caches"].items())
    commit = content.get("commit_info", {})
    state = " with uncommitted changes" if commit.get("dirty") else ""
    build = ours["build"]
    built = ", ".join(f"{k} {build[k]}" for k in ("isa", "compiler") if k in build)
    lines = {
        "CPU": f"{cpu['model']}; {' '.join(cpu['isa'])}",
        "Cores": f"{setting['threads']}, all of them used by every rival",
        "Caches": caches + " (as the first core sees them)" if caches else "",
        "Versions": f"dvae_fast {ours['version']}, torch {setting['torch']}, "
        f"Python {info['python_version']}, {info['system']} {info['release']}",
        "Kernels": (built or "compiled") if ours["compiled"] else "**none: the reference ran**",
        "Commit": f"{commit.get('id', 'unknown')}{state}",
        "Date": content["datetime"][:19].replace("T", " "),
        "Load": f"{setting['load_average']:.2f} when the run began",
    }
    if setting["malloc"]:
        lines["malloc"] = ", ".join(f"{k}={v}" for k, v in setting["malloc"].items())
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)


_HOW = """\
A figure is the median of one run, over all rounds of all turns ({turns} of them). In each turn the
rivals of a group run one after the other, in another order each time, so that a machine that gets
slower or faster favours none; each is warmed up again before it is timed. "IQR" is the
interquartile range over the median, "drift" the slowest turn's median over the fastest's. A ratio
is of the medians, and in brackets stand the least and the most of any turn, in which both ran
one after the other. Every rival's result is checked against the reference or ours before it is
timed.

Where plain code can be written in several ways, all are tried first and the fastest runs; its
name stands in brackets. "eager, chunked" is the same in chunks that stay in cache, and "addmm,
kept buffer" pays for no fresh memory: both are harder rivals than the targets name. "compile" is
`torch.compile(dynamic=False, fullgraph=True)`, and all training steps use the fused Adam. "eager,
gradient by hand" is no plain code, and no target speaks of it.

The likelihood is of a run of its own, not of this command; its log, settings and command are in
`iwae_mnist/`.
"""

_ROOFLINE = """\
Copy is `Tensor.copy_` between buffers far larger than the caches, bytes read and bytes written
both counted; GEMM is `torch.mm` of square float32 matrices into a kept buffer. Both were measured
in this run, with the same threads. Bytes are those an operator cannot do without (each input read
and each output written once), so a share says how far from a plain copy it is. Groups whose data
fit the last cache can exceed 100 % of the copy.
"""

_KEPT = """\
glibc gives large blocks back to the system when they are freed, and fresh ones cost page faults.
Above, every rival has that default. Here malloc keeps its memory, which takes that cost from
everybody, and mostly from those that make large intermediates:
`{malloc}`.
"""

_MEMORY = """\
Peak memory is the growth of the resident set during five steps, Adam's state already there, each
in a process of its own in which freed memory goes back to the system at once (see
`peak_memory.py`). Of the formulas of eager PyTorch "softplus+bmm" keeps the least, and "bce",
`F.binary_cross_entropy_with_logits`, is the usual one. The peak of torch's tensors alone, as its
profiler counts it:
"""


_GROWTH = """\
Ours and plain eager PyTorch over one size at a time, the others fixed; eager takes the first of its
formulas, not the fastest at each size, and no compiler was tried. A unit of work is an element, or
a thousand operations of the linear layers in a training step. The slope is of log time over log
size: 1 where time grows as the size does, less where a fixed cost counts; "last three" are the
largest sizes. Peak memory is the growth of the resident set during one call; where the data are
under 1/4 MiB it is not measured.
"""

_STEPS = """\
Flat is good. Every two neighbouring sizes of which a unit costs ours more than {flat}× as much at
one as at the other, with the cause where it is one of those that `growth.py` knows.
"""


def load_json(path: Path, otherwise: Any) -> Any:
    """What is missing was not measured, and the tables say so."""
    return json.loads(path.read_text()) if path.exists() else otherwise


def sections(folder: Path, command: str) -> list[Section]:
    """The whole report of the JSON files in a folder."""
    groups, content = load(folder / "times.json")
    memory = load_json(folder / "memory.json", [])
    rows = target_rows(groups) + memory_rows(memory)
    rows += evaluation_rows(memory, load_json(folder / "evaluator.json", {}))
    rows += accuracy_rows(load_json(folder / "accuracy.json", None))
    rows += likelihood_rows(Path(__file__).parent / "iwae_mnist" / "metrics.json")
    verdicts = Counter(row[-1] for row in rows if row[-1])
    turns = content["machine_info"]["measured_with"]["turns"]
    head = ["what", "against", "ours", "theirs", "ratio", "target", ""]
    rivals_head = ["group", "rival", "median", "IQR", "drift", "ns/element", "of ours", "rounds"]
    out = [
        Section("", (f"Made by `{command}`.", machine(content), _HOW.format(turns=turns))),
        Section(
            "Targets",
            (
                f"{verdicts['met']} of {sum(verdicts.values())} met.",
                Table(head, rows, ("against", "")),
            ),
        ),
        Section(
            "Every rival",
            (
                Chart(charts.ratios(groups)),
                Table(rivals_head, rival_rows(groups), ("rival",)),
            ),
        ),
        Section(
            "Roofline",
            (
                _ROOFLINE,
                *(Chart(charts.roofline(groups, work)) for work in ("bytes", "flops")),
                Table(["group", "GB/s", "of copy", "GFLOP/s", "of GEMM"], roofline_rows(groups)),
            ),
        ),
    ]
    if (folder / "growth.json").exists():
        memory_points = load_json(folder / "growth_memory.json", [])
        out += growth_sections(*load(folder / "growth.json"), memory_points)
    if (folder / "kept.json").exists():
        kept, kept_content = load(folder / "kept.json")
        malloc = kept_content["machine_info"]["measured_with"]["malloc"]
        named = _KEPT.format(malloc=" ".join(f"{k}={v}" for k, v in malloc.items()))
        kept_table = Table(rivals_head, rival_rows(kept), ("rival",))
        out.append(Section("With memory kept by malloc", (named, kept_table)))
    if memory:
        tensors = "; ".join(
            f"{row['work']}, {row['rival']}: {row['tensors'] / MIB:.1f} MiB"
            for row in memory
            if row.get("tensors") is not None  # not asked for, or not to be had
        )
        out.append(Section("Memory", (_MEMORY.rstrip() + "\n" + tensors + ".",)))
    return out


def growth_sections(
    groups: Groups, content: dict[str, Any], memory: list[dict[str, Any]]
) -> list[Section]:
    """Growth, where it is not flat, threads and dtypes."""
    found = growth.series(groups)
    steps = growth.step_rows(found, growth.machine_of(content))
    unexplained = sum(1 for row in steps if row[-1].startswith("**"))
    slopes = Table(growth.SLOPE_HEAD, growth.slope_rows(found), ("over",))
    memory_slopes = Table(growth.MEMORY_HEAD, growth.memory_rows(memory), ("over",))
    operators = dict.fromkeys(one.operator for one in growth.sizes_of(found))
    out = [
        Section(
            "Growth",
            (
                _GROWTH,
                *(Chart(charts.growth(name, found, memory)) for name in operators),
                slopes,
                memory_slopes,
            ),
        ),
        Section(
            "Where cost is not flat",
            (
                _STEPS.format(flat=growth.FLAT),
                f"{len(steps)} steps, {unexplained} not explained.",
                Table(growth.STEP_HEAD, steps, ("over", "sizes", "cause")),
            ),
        ),
    ]
    for title, axis, head, rows in (
        ("Threads", "threads", growth.THREAD_HEAD, growth.thread_rows(found)),
        ("Dtypes", "dtype", growth.DTYPE_HEAD, growth.dtype_rows(found)),
    ):
        if rows:
            chart = Chart(charts.bars(found, axis))
            out.append(Section(title, (chart, Table(head, rows, ("who", "dtype")))))
    return out


def write(folder: Path, output: Path, command: str) -> None:
    """index.html and RESULTS.md."""
    parts = sections(folder, command)
    output.mkdir(parents=True, exist_ok=True)
    (output / "RESULTS.md").write_text(markdown("Results", parts))
    (output / "index.html").write_text(page("dvae_fast: results", parts))


def main() -> None:
    parser = argparse.ArgumentParser(description="The report of the benchmarks' JSON.")
    parser.add_argument("folder", type=Path, help="where run.py left its JSON")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "report")
    parser.add_argument("--command", default="make bench", help="to be named")
    a = parser.parse_args()
    write(a.folder, a.output, a.command)


if __name__ == "__main__":
    main()
