"""The benchmarks' report: comparing two runs, slopes, and tables of a small known file."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import compare
import figures
import growth
import report
import rivals
import targets

MACHINE = {
    "python_version": "3.11",
    "system": "Linux",
    "release": "6",
    "dvae_fast": {"version": "0", "compiled": True, "build": {"isa": "avx2"}},
    "measured_with": {
        "torch": "2",
        "threads": 2,
        "cpu": {"model": "a CPU", "isa": ["avx2"], "caches": {"L2": 1 << 19, "L3": 1 << 25}},
        "load_average": 0.0,
        "turns": 2,
        "malloc": {},
    },
}
CORRUPT = "corrupt salt-and-pepper, 100×784, M=1"


def row(
    group: str, rival: str, turn: list[float], work: int = 1000, **extra: Any
) -> dict[str, Any]:
    """One turn as pytest-benchmark writes it."""
    about = {"rival": rival, "variant": "", "elements": work, "bytes": 8 * work, "flops": 0}
    return {"group": group, "extra_info": about | extra, "stats": {"data": turn}}


def point(value: int, time: float, who: str = "ours") -> dict[str, Any]:
    """A point of the growth over K whose work is 10,000 elements a sample."""
    where = {"operator": "iwae_loss", "axis": "K", "value": value, "who": who, "unit": "element"}
    name = f"{who}, K={value}"
    return row("growth, iwae_loss over K", name, [time], 10_000 * value, **where)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    content = {"machine_info": MACHINE, "benchmarks": rows, "datetime": "2026-01-01T00:00:00"}
    path.write_text(json.dumps(content))
    return path


TURNS = [
    row(CORRUPT, "ours", [1e-4, 1e-4, 2e-4]),
    row(CORRUPT, "eager", [7e-4, 8e-4, 9e-4]),
    row(CORRUPT, "ours", [1e-4, 1e-4, 1e-4]),
    row(CORRUPT, "eager", [8e-4, 8e-4, 8e-4]),
    row("ceilings", "copy", [1e-6], 10_000),
]


# --- comparing ------------------------------------------------------------------------------------


def scaled(path: Path, factors: list[float]) -> Path:
    """The same run, each turn of ours times its factor."""
    rows, left = copy.deepcopy(TURNS), iter(factors)
    for one in rows:
        if one["extra_info"]["rival"] == "ours":
            factor = next(left)
            one["stats"]["data"] = [t * factor for t in one["stats"]["data"]]
    return write(path, rows)


@pytest.mark.parametrize(
    ("factors", "status", "said"),
    [
        ([1.0, 1.0], 0, "0 slower, 0 unsure, 0 faster"),
        ([1.09, 1.09], 0, "0 slower, 0 unsure, 0 faster"),
        ([1.2, 1.2], 1, "1 slower, 0 unsure, 0 faster"),
        ([1.5, 1.0], 0, "0 slower, 1 unsure, 0 faster"),  # a turn was as fast as ever
        ([0.5, 0.5], 0, "0 slower, 0 unsure, 1 faster"),
    ],
)
def test_compare_says_what_is_slower(
    factors: list[float], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = write(tmp_path / "a.json", TURNS), scaled(tmp_path / "b.json", factors)
    assert compare.compare(before, after, 1.1) == status
    out = capsys.readouterr().out
    assert said in out
    assert "The others took 1.00× as long (median of 2)" in out


def test_compare_has_its_threshold(tmp_path: Path) -> None:
    before = write(tmp_path / "a.json", TURNS)
    assert compare.compare(before, scaled(tmp_path / "b.json", [1.2, 1.2]), 1.25) == 0


def test_compare_names_what_is_missing_and_needs_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path / "a.json", [*TURNS, row("another", "ours", [1.0])])
    assert compare.compare(before, write(tmp_path / "b.json", TURNS), 1.1) == 0
    assert "1 of ours are in a.json alone, first another, ours." in capsys.readouterr().out
    assert compare.compare(before, write(tmp_path / "c.json", []), 1.1) == 2


@pytest.mark.parametrize("content", [None, "no JSON", "{}", "[]"])
def test_compare_refuses_other_files(
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after = write(tmp_path / "a.json", TURNS), tmp_path / "b.json"
    if content is not None:
        after.write_text(content)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(before), str(after)])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == 2
    assert "not two files of the benchmarks" in capsys.readouterr().err


# --- growth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power(power: float) -> None:
    sizes = [1, 4, 16, 256]
    assert growth.slope(sizes, [3e-6 * n**power for n in sizes]) == pytest.approx(power, abs=1e-12)


def test_slope_of_one_point_is_none() -> None:
    assert math.isnan(growth.slope([1], [2.0]))


def series_of(tmp_path: Path, times: dict[int, float]) -> growth.Series:
    # Written in no order: the sizes are sorted.
    rows = [point(k, time) for k, time in reversed(times.items())]
    groups, _ = figures.load(write(tmp_path / "growth.json", rows))
    (one,) = growth.series(groups)
    return one


def test_flat_growth_has_no_steps(tmp_path: Path) -> None:
    one = series_of(tmp_path, {1: 1e-3, 4: 4.5e-3, 16: 16e-3})
    assert [p.value for p in one.points] == [1, 4, 16]
    assert one.points[0].cost == pytest.approx(100)
    assert growth.steps(one) == []


def test_slope_of_a_training_step_is_over_its_operations(tmp_path: Path) -> None:
    """Which grow faster than the width of its layers does."""
    where = {"operator": "training step", "axis": "H", "who": "ours", "unit": "kFLOP"}
    rows = [
        row("growth", f"ours, H={h}", [1e-9 * h**2], flops=1000 * h**2, value=h, **where)
        for h in (100, 200, 400)
    ]
    (one,) = growth.series(figures.load(write(tmp_path / "growth.json", rows))[0])
    assert one.slope() == pytest.approx(1)
    assert one.slope(last=2) == pytest.approx(1)


def test_steps_are_named_with_the_data_on_both_sides(tmp_path: Path) -> None:
    one = series_of(tmp_path, {1: 1e-4, 4: 4e-4, 16: 4e-3, 64: 8e-3})
    assert growth.step_rows([one]) == [
        ["iwae_loss", "K", "4 → 16", "10 → 25", "2.50", "0.3 MiB → 1.2 MiB"],
        ["iwae_loss", "K", "16 → 64", "25 → 12.5", "0.50", "1.2 MiB → 4.9 MiB"],
    ]
    assert growth.step_rows([one._replace(who="eager")]) == []


def condition(axis: str, value: Any, time: float, who: str = "ours") -> dict[str, Any]:
    """A point of an axis that is no size; its work is 1,000 elements."""
    where = {"operator": "iwae_loss", "axis": axis, "value": value, "who": who, "unit": "element"}
    return row(f"growth, iwae_loss over {axis}", f"{who}, {axis}={value}", [time], **where)


def test_threads_and_dtypes_have_tables(folder: Path) -> None:
    rows = json.loads((folder / "growth.json").read_text())["benchmarks"]
    rows += [condition("threads", n, t, who) for who, a, b in (("ours", 4e-3, 2e-3), ("eager", 9e-3,
             6e-3)) for n, t in ((1, a), (2, b))]  # fmt: skip
    rows += [condition("dtype", "float32", 2e-6), condition("dtype", "bfloat16", 5e-6)]
    write(folder / "growth.json", rows)
    report.write(folder, folder / "out", "make bench")
    text = (folder / "out" / "RESULTS.md").read_text()
    assert "| iwae_loss | ours | 4 ms | 2 | 2 ms | 2.00× |" in text
    assert "| iwae_loss | eager | 9 ms | 2 | 6 ms | 1.50× |" in text
    assert "| iwae_loss | ours | float32 | 2 | 1.00 |" in text
    assert "| iwae_loss | ours | bfloat16 | 5 | 2.50 |" in text
    assert "| iwae_loss | threads |" not in text, "conditions are no sizes"


def test_the_fastest_formula_is_found_through_a_slow_spell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what is far slower, there are no more calls than it takes to see it."""
    now, calls = 0.0, Counter[str]()
    monkeypatch.setattr(rivals, "time", SimpleNamespace(perf_counter=lambda: now))

    def candidate(name: str, seconds: float) -> None:
        nonlocal now
        calls[name] += 1
        spell = 5 <= calls.total() <= 8  # after each call's first, which compiles
        now += seconds * (10 if spell else 1)

    costs = {"fastest": 0.010, "near": 0.011, "far": 0.016, "slow": 0.1}
    chosen = rivals.fastest({n: lambda n=n, s=s: candidate(n, s) for n, s in costs.items()})
    assert chosen == "fastest"
    assert calls["far"] == calls["slow"] == 1 + rivals.FIRST_ROUNDS
    assert calls["near"] == calls["fastest"] > 10


def test_memory_that_was_not_measured_is_not_evaluated() -> None:
    measured = [
        {"work": "training step", "rival": "ours", "resident": 1 << 20},
        {"work": "training step", "rival": "eager", "resident": 2 << 20},
        {"work": "evaluation", "rival": "k = 50000", "tensors": 1 << 20},
    ]
    rows = targets.memory_rows(measured)
    assert [row[1] for row in rows] == ["eager", "addmm"]
    assert "not measured" in rows[1][-1]
    assert all("not measured" in row[-1] for row in targets.evaluation_memory_rows(measured))


def test_slopes_of_memory_need_three_sizes() -> None:
    where = {"operator": "iwae_loss", "axis": "K", "who": "eager"}
    memory = [{**where, "value": k, "resident": k << 20} for k in (1, 4, 16)]
    assert growth.memory_rows(memory) == [["iwae_loss, eager", "K", "1.00", "1.0 MiB", "16.0 MiB"]]
    assert growth.memory_rows(memory[:2]) == []


# --- the report -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "times.json", TURNS)
    points = [point(k, 1e-6 * k, who) for k in (1, 4, 16) for who in ("ours", "eager")]
    write(tmp_path / "growth.json", points)
    return tmp_path


def test_target_row_of_a_known_file(folder: Path) -> None:
    groups, _ = figures.load(folder / "times.json")
    rows = targets.speed_rows(groups)
    expected = ["100 µs", "800 µs", "8.00× (8.00–8.00)", "≥ 6×", "met"]
    assert [CORRUPT, "eager", *expected] in rows
    # What this file does not hold stays in the table.
    assert sum(r[-1] == "**not measured**" for r in rows) == len(rows) - 1


def test_ratios_have_the_range_of_their_turns(folder: Path) -> None:
    groups, _ = figures.load(folder / "times.json")
    ours, eager = groups[CORRUPT]["ours"], groups[CORRUPT]["eager"]
    eager.turns = [6e-4, 9e-4]
    assert eager.ratio_range(ours) == pytest.approx((6, 9))


def test_report_has_what_was_measured_and_no_more(folder: Path) -> None:
    report.write(folder, folder / "out", "make bench")
    text = (folder / "out" / "RESULTS.md").read_text()
    assert "Made by `make bench`." in text
    assert "| iwae_loss | K | 1–16 | 1.00 | 1.00 | 0.1 | 0.1 | element |" in text
    assert "8.00× (8.00–8.00)" in text
    for title in ("Targets", "Every rival", "Roofline", "Growth", "Where cost is not flat"):
        assert f"\n## {title}\n" in text
    for title in ("Threads", "Dtypes", "With memory kept by malloc", "Memory"):
        assert f"## {title}\n" not in text
    assert "{" not in text, "a figure is missing"
    (folder / "kept.json").write_bytes((folder / "times.json").read_bytes())
    report.write(folder, folder / "out", "make bench")
    assert "## With memory kept by malloc\n" in (folder / "out" / "RESULTS.md").read_text()


def test_report_lists_tensors_of_what_they_were_measured_of(folder: Path) -> None:
    measured = [
        {"work": "training step", "rival": "ours", "resident": 1 << 20, "tensors": 3 << 20},
        {"work": "training step", "rival": "eager, bce", "resident": 2 << 20, "tensors": None},
        {"work": "evaluation", "rival": "k = 50", "process": 300 << 20},
        {"work": "evaluation", "rival": "k = 50000", "tensors": 2 << 20},
    ]
    (folder / "memory.json").write_text(json.dumps(measured))
    report.write(folder, folder / "out", "make bench")
    text = (folder / "out" / "RESULTS.md").read_text()
    assert "\ntraining step, ours: 3.0 MiB; evaluation, k = 50000: 2.0 MiB." in text
