"""The report of one run: `report/RESULTS.md` from the benchmarks' JSON.

The folder holds what `run.py` collects: times.json, and kept, growth, memory and growth_memory
where they were measured; results.md is the text around its figures.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import growth
import targets
from figures import load, mebibytes, seconds, table

if TYPE_CHECKING:
    from figures import Groups

FOLDER = Path(__file__).resolve().parent
RIVALS_HEAD = ["group", "rival", "median", "IQR", "drift", "ns/element", "of ours", "rounds"]
ROOFLINE_HEAD = ["group", "GB/s", "of copy", "GFLOP/s", "of GEMM"]


def rival_table(groups: Groups) -> str:
    rows = []
    for name, group in groups.items():
        for i, figure in enumerate(group.values()):
            label = figure.rival + (f" ({figure.variant})" if figure.variant else "")
            each = f"{figure.median / figure.elements * 1e9:.3g}" if figure.elements else ""
            where = (name if i == 0 else "", label, seconds(figure.median))
            spread = (f"{figure.spread:.0%}", f"{figure.drift:.2f}")
            of_ours = "1" if figure is group.get("ours") else ""
            if "ours" in group and not of_ours:
                low, high = figure.ratio_range(group["ours"])
                of_ours = f"{figure.median / group['ours'].median:.2f} ({low:.2f}–{high:.2f})"
            rows.append([*where, *spread, each, of_ours, str(len(figure.times))])
    return table(RIVALS_HEAD, rows, ("rival",))


def roofline_table(groups: Groups) -> str:
    """Bytes and operations a second as shares of what copy and GEMM reached in the same run."""
    ceilings, rows = groups.get("ceilings", {}), []
    for name, group in groups.items():
        for rival, figure in group.items():
            cells: list[str] = []
            for work, best in (("bytes", "copy"), ("flops", "GEMM")):
                rate, top = figure.rate(work), ceilings.get(best)
                cells.append(f"{rate / 1e9:.3g}" if rate else "")
                cells.append(f"{rate / top.rate(work):.0%}" if rate and top else "")
            if any(cells) and not rival.startswith("eager") and "torch.compile" not in rival:
                rows.append([f"{name}: {rival}", *cells])
    return table(ROOFLINE_HEAD, rows)


#: a section of which something was not measured is left out
SECTION = re.compile(r"^(?=## )", re.MULTILINE)


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
        + "".join(f"{name} {version}, " for name, version in setting.get("others", {}).items())
        + f"Python {info['python_version']}, {info['system']} {info['release']}",
        "Kernels": (built or "compiled") if ours["compiled"] else "**none: the reference ran**",
        "Commit": f"{commit.get('id', 'unknown')}{state}",
        "Date": content["datetime"][:19].replace("T", " "),
        "Load": f"{setting['load_average']:.2f} when the run began",
    }
    if setting["malloc"]:
        lines["malloc"] = ", ".join(f"{k}={v}" for k, v in setting["malloc"].items())
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)


def read(path: Path) -> Any:
    """What is missing was not measured, and the tables say so."""
    return json.loads(path.read_text()) if path.exists() else []


def target_parts(groups: Groups, memory: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    rows = [
        *targets.speed_rows(groups),
        *targets.memory_rows(memory),
        *targets.evaluation_memory_rows(memory),
        *targets.likelihood_rows(FOLDER / "iwae_mnist" / "metrics.json"),
    ]
    verdicts = Counter(row[-1] for row in rows if row[-1])
    shown = table(targets.HEAD, rows, ("against", ""))
    return {"met": verdicts["met"], "judged": sum(verdicts.values()), "targets": shown}


def report(folder: Path, command: str) -> str:
    """The sections of results.md that the JSON files in a folder have figures for."""
    groups, content = load(folder / "times.json")
    memory = read(folder / "memory.json")
    parts = {
        "command": command,
        "machine": machine(content),
        "turns": content["machine_info"]["measured_with"]["turns"],
        "rivals": rival_table(groups),
        "roofline": roofline_table(groups),
        **target_parts(groups, memory, folder),
    }
    if (folder / "growth.json").exists():
        parts |= growth.parts(load(folder / "growth.json")[0], read(folder / "growth_memory.json"))
    if (folder / "kept.json").exists():
        kept, about = load(folder / "kept.json")
        malloc = about["machine_info"]["measured_with"]["malloc"]
        parts["malloc"] = " ".join(f"{name}={value}" for name, value in malloc.items())
        parts["kept"] = rival_table(kept)
    if memory:
        parts["tensors"] = "; ".join(
            f"{row['work']}, {row['rival']}: {mebibytes(row['tensors'])}"
            for row in memory
            if row.get("tensors") is not None  # not asked for, or not to be had
        )
    sections = SECTION.split((FOLDER / "results.md").read_text())
    measured = [one for one in sections if parts.keys() >= set(re.findall(r"{(\w+)}", one))]
    return "".join(measured).rstrip().format(**parts) + "\n"


def write(folder: Path, output: Path, command: str) -> None:
    """RESULTS.md."""
    text = report(folder, command)
    output.mkdir(parents=True, exist_ok=True)
    (output / "RESULTS.md").write_text(text)
