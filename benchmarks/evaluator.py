"""What the evaluator promises beyond speed, measured: processes, tolerance, annealed bounds.

    python benchmarks/evaluator.py [--json FILE] [--run FOLDER] [--limit N]

Two processes against one on digits; annealed importance sampling, forward and reverse, around the
exact log p(x) of a linear-Gaussian model; and, with --run, the folder of a trained run, a tolerance
against a fixed k on its test set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path[:0] = [str(ROOT / "tests")]


def processes(k: int = 500, limit: int = 100) -> dict[str, Any]:
    """The same evaluation by one process and by two; the largest difference of any example."""
    arrays, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = ["--epochs", "2", "--no-tensorboard", "--quiet", "--evaluate-k", "0"]
        _run([], "train", *options, "--run-dir", str(run))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        for launcher in ([], launch):
            evaluate = ["evaluate", str(run), "--k", str(k), "--limit", str(limit), "--quiet"]
            start = time.perf_counter()
            _run(launcher, *evaluate, *(["--threads", "1"] if not launcher else []))
            seconds.append(time.perf_counter() - start)
            with np.load(run / "evaluation.npz") as file:
                arrays.append(file["log_likelihood"])
    difference = float(np.abs(arrays[0] - arrays[1]).max() / np.abs(arrays[0]).max())
    return {"relative_difference": difference, "seconds": seconds, "k": k, "examples": limit}


def _run(launcher: list[str], *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, "-m", "dvae_fast", *arguments]
    subprocess.run(command, env=environment, check=True)


def annealed(examples: int = 100, temperatures: int = 200) -> dict[str, Any]:
    """Both bounds around the exact answer, on average over data that the model made."""
    from linear_gaussian import exact_log_likelihood, linear_gaussian

    import dvae_fast

    model = linear_gaussian("vae", widen=2.0)
    out: dict[str, Any] = {"temperatures": temperatures, "examples": examples}
    for start in ("posterior", "prior"):
        both = dvae_fast.bidirectional(
            model, examples, temperatures=temperatures, start=start, seed=1
        )
        exact = exact_log_likelihood(model, both.x)
        out[start] = {
            "lower": both.forward.mean,
            "exact": float(exact.mean()),
            "upper": both.reverse.mean,
            "lower_standard_error": both.forward.mean_standard_error,
            "upper_standard_error": both.reverse.mean_standard_error,
            "gap": float(both.gap.mean()),
            "acceptance": float(both.forward.acceptance.mean()),
        }
    return out


def tolerance(run: Path, limit: int, value: float, k: int = 100, max_k: int = 5000) -> Any:
    """Time and mean NLL of a tolerance, against max_k samples for every example."""
    import dvae_fast
    from dvae_fast.models import load_model
    from dvae_fast.training import load_config

    model, x = load_model(run), load_config(run).load_data().evaluation("test")[:limit]
    ways = {"fixed": {"k": max_k}, "tolerance": {"k": k, "tolerance": value, "max_k": max_k}}
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(3):
        for name, options in ways.items():
            start = time.perf_counter()
            found[name] = dvae_fast.estimate_log_likelihood(model, x, seed=0, **options)
            times[name].append(time.perf_counter() - start)
    return {
        "tolerance": value,
        "k": k,
        "max_k": max_k,
        "examples": len(x),
        "seconds": {name: sorted(t)[1] for name, t in times.items()},
        "mean": {name: estimate.mean for name, estimate in found.items()},
        "samples": {name: int(estimate.spent.sum()) for name, estimate in found.items()},
        "median_standard_error_of_fixed": float(found["fixed"].standard_error.median()),
        "median_ess_of_fixed": float(found["fixed"].ess.median()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What the evaluator promises beyond speed.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--run", type=Path, help="folder of a trained run")
    parser.add_argument("--limit", type=int, default=200, help="test examples of the run")
    a = parser.parse_args()
    results: dict[str, Any] = {"processes": processes(), "annealed": annealed()}
    if a.run:
        results["tolerances"] = [tolerance(a.run, a.limit, value) for value in (0.02, 0.1, 0.2)]
    text = json.dumps(results, indent=1)
    print(text)
    if a.json:
        a.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
