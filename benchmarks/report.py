"""The report of one run: `report/RESULTS.md` from the benchmarks' JSON.

    python benchmarks/report.py FOLDER [--output FOLDER]

The first folder holds what `run.py` collects: times.json, and kept, growth, memory, growth_memory,
accuracy and evaluator where they were measured.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import growth
import targets
from figures import Figure, load, mebibytes, seconds, table

if TYPE_CHECKING:
    from figures import Groups

RIVALS_HEAD = ["group", "rival", "median", "IQR", "drift", "ns/element", "of ours", "rounds"]
ROOFLINE_HEAD = ["group", "GB/s", "of copy", "GFLOP/s", "of GEMM"]


def rival_table(groups: Groups) -> str:
    rows = []
    for name, group in groups.items():
        for i, figure in enumerate(group.values()):
            label = figure.rival + (f" ({figure.variant})" if figure.variant else "")
            each = f"{figure.median / figure.elements * 1e9:.3g}" if figure.elements else ""
            spread = (f"{figure.spread:.0%}", f"{figure.drift:.2f}")
            where = (name if i == 0 else "", label, seconds(figure.median))
            of_ours = _of_ours(figure, group.get("ours"))
            rows.append([*where, *spread, each, of_ours, str(len(figure.times))])
    return table(RIVALS_HEAD, rows, ("rival",))


def _of_ours(figure: Figure, ours: Figure | None) -> str:
    """Time over ours, with its range from turn to turn."""
    if ours is None:
        return ""
    if figure is ours:
        return "1"
    low, high = figure.ratio_range(ours)
    return f"{figure.median / ours.median:.2f} ({low:.2f}–{high:.2f})"


def roofline_table(groups: Groups) -> str:
    """Bytes and operations a second as shares of what copy and GEMM reached in the same run."""
    ceilings = groups.get("ceilings", {})
    best = [
        (work, getattr(ceilings[name], work) / ceilings[name].median if name in ceilings else None)
        for work, name in (("bytes", "copy"), ("flops", "GEMM"))
    ]
    rows = []
    for name, group in groups.items():
        for rival, figure in group.items():
            if rival.startswith("eager") or "torch.compile" in rival:
                continue
            cells = []
            for work, ceiling in best:
                rate = getattr(figure, work) / figure.median
                cells.append(f"{rate / 1e9:.3g}" if rate else "")
                cells.append(f"{rate / ceiling:.0%}" if rate and ceiling else "")
            if any(cells):
                rows.append([f"{name}: {rival}", *cells])
    return table(ROOFLINE_HEAD, rows)


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


def report(folder: Path, command: str) -> str:
    """RESULTS.md of the JSON files in a folder."""
    groups, content = load(folder / "times.json")
    memory = load_json(folder / "memory.json", [])
    rows = [
        *targets.speed_rows(groups),
        *targets.memory_rows(memory),
        *targets.evaluation_memory_rows(memory),
        *targets.evaluator_rows(load_json(folder / "evaluator.json", {})),
        *targets.accuracy_rows(load_json(folder / "accuracy.json", {})),
        *targets.likelihood_rows(Path(__file__).parent / "iwae_mnist" / "metrics.json"),
    ]
    verdicts = Counter(row[-1] for row in rows if row[-1])
    turns = content["machine_info"]["measured_with"]["turns"]
    parts = [
        "# Results",
        f"Made by `{command}`.",
        machine(content),
        _HOW.format(turns=turns),
        "## Targets",
        f"{verdicts['met']} of {sum(verdicts.values())} met.",
        table(targets.HEAD, rows, ("against", "")),
        "## Every rival",
        rival_table(groups),
        "## Roofline",
        _ROOFLINE,
        roofline_table(groups),
    ]
    if (folder / "growth.json").exists():
        points = load_json(folder / "growth_memory.json", [])
        parts += growth_parts(*load(folder / "growth.json"), points)
    if (folder / "kept.json").exists():
        kept, kept_content = load(folder / "kept.json")
        malloc = kept_content["machine_info"]["measured_with"]["malloc"]
        named = _KEPT.format(malloc=" ".join(f"{k}={v}" for k, v in malloc.items()))
        parts += ["## With memory kept by malloc", named, rival_table(kept)]
    if memory:
        tensors = "; ".join(
            f"{row['work']}, {row['rival']}: {mebibytes(row['tensors'])}"
            for row in memory
            if row.get("tensors") is not None  # not asked for, or not to be had
        )
        parts += ["## Memory", f"{_MEMORY}{tensors}."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def growth_parts(
    groups: Groups, content: dict[str, Any], memory: list[dict[str, Any]]
) -> list[str]:
    """Growth, where it is not flat, threads and dtypes."""
    found = growth.series(groups)
    steps = growth.step_rows(found, growth.machine_of(content))
    unexplained = sum(1 for row in steps if row[-1].startswith("**"))
    parts = [
        "## Growth",
        _GROWTH,
        table(growth.SLOPE_HEAD, growth.slope_rows(found), ("over",)),
        table(growth.MEMORY_HEAD, growth.memory_rows(memory), ("over",)),
        "## Where cost is not flat",
        _STEPS.format(flat=growth.FLAT),
        f"{len(steps)} steps, {unexplained} not explained.",
        table(growth.STEP_HEAD, steps, ("over", "sizes", "cause")),
    ]
    if rows := growth.thread_rows(found):
        parts += ["## Threads", table(growth.THREAD_HEAD, rows, ("who",))]
    if rows := growth.dtype_rows(found):
        parts += ["## Dtypes", table(growth.DTYPE_HEAD, rows, ("who", "dtype"))]
    return parts


def write(folder: Path, output: Path, command: str) -> None:
    """RESULTS.md."""
    text = report(folder, command)
    output.mkdir(parents=True, exist_ok=True)
    (output / "RESULTS.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="The report of the benchmarks' JSON.")
    parser.add_argument("folder", type=Path, help="where run.py left its JSON")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "report")
    parser.add_argument("--command", default="make bench", help="to be named")
    a = parser.parse_args()
    write(a.folder, a.output, a.command)


if __name__ == "__main__":
    main()
