"""The GPU's targets, met, missed or unknown; and the benchmarks' file, whatever fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from check_rows import row
from gpu_check import targets

# --- targets --------------------------------------------------------------------------------------


def result(key: str, seconds: float, eager: float = 1.0, **more: Any) -> dict[str, Any]:
    times = {"ours": seconds, "eager, a": eager, "eager, b": 2 * eager, "compile": 1e-9}
    return {"key": key, "bytes": 100, "seconds": times, "wall_seconds": times, "errors": {}} | more


def measured() -> dict[str, Any]:
    return {
        "results": [
            result("copy", 1.0),
            result("log_weights float32", 1 / 0.86),
            result("log_weights bfloat16", 1 / 0.84),
            result("iwae_loss K=50 float32", 1 / 0.81, eager=6.1 / 0.81),
            result("evaluation bfloat16", 0.29),
            result("training K=5", 101e-6),
        ]
    }


def met(rows: list[dict[str, Any]]) -> list[bool | None]:
    return [r["met"] for r in rows]


def test_targets_are_met_or_missed_or_unknown() -> None:
    check = {"rows": [row(), row(operator="corrupt", what="masks"), row(dtype="bfloat16", worst=9)]}
    rows = targets.targets(check, measured())
    assert met(rows) == [True, True, True, False, True, True, True, False]
    table = targets.table(rows)
    assert [line.split()[-1] for line in table.splitlines()] == [
        *("met", "met", "met", "MISSED", "met", "met", "met", "MISSED")
    ]
    assert "84.0 %" in table
    assert "101.0 µs" in table
    assert met(targets.targets(None, None)) == [None] * 8
    assert met(targets.targets(check, measured(), dry_run=True)) == [None] * 8


def test_targets_of_wrong_results_are_missed() -> None:
    check = {
        "rows": [
            row(worst="inf", verdict="failed"),
            row(operator="corrupt", what="masks", verdict="failed"),
        ]
    }
    bench = measured()
    bench["results"][1]["errors"] = {"ours, result": "AssertionError: must agree"}
    rows = targets.targets(check, bench)
    assert met(rows)[:4] == [False, False, False, False]
    assert rows[2]["shown"] == "AssertionError: must agree"
    # Nothing was compared where no case ran.
    check = {"rows": [row(cases=0), row(operator="corrupt", what="masks", cases=0)]}
    assert met(targets.targets(check, None))[:2] == [None, None]


# --- the benchmarks -------------------------------------------------------------------------------


def test_benchmarks_keep_what_others_failed_at_and_add_to_the_file(tmp_path: Path) -> None:
    import torch
    from cases import close
    from gpu import Bench, Store

    path, x = tmp_path / "bench.json", torch.ones(3)

    def fails() -> None:
        raise RuntimeError("no kernel image\nmore")

    def bench(families: tuple[str, ...], append: bool) -> dict[str, Any]:
        b = Bench(torch.device("cpu"), 0.001, True, Store(path, {"device": "CPU"}, append))
        b.key, b.families = "sum", families
        wrong = lambda: close("sum", x.sum(), x.double().sum() + 1e-3, 1e-4)
        calls = {"ours": lambda: x.sum(), "eager, a": fails, "compile": lambda: x + 1}
        b.run("sum of 3", calls, bytes=12, agrees=wrong)
        assert b.failed == ("ours" in families)
        (found,) = json.loads(path.read_text())["results"]
        return found

    first = bench(("ours", "eager"), append=False)
    assert set(first["seconds"]) == set(first["wall_seconds"]) == {"ours"}
    assert first["errors"]["eager, a"] == "RuntimeError: no kernel image"
    assert "sum: " in first["errors"]["ours, result"]
    both = bench(("compile",), append=True)
    assert set(both["seconds"]) == {"ours", "compile"}
    assert both["errors"] == first["errors"]
    assert set(bench(("compile",), append=False)["seconds"]) == {"compile"}
    assert os.listdir(tmp_path) == ["bench.json"]
