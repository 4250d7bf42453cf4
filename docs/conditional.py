"""What labels are worth: a conditional DIWAE on MNIST and the plain one, by `dvae-fast`.

    python docs/conditional.py RUNS [--seeds N]

Trains and evaluates what is not yet in the folder RUNS, with the commands that docs/conditional.md
shows, one seed after the other, and writes the table there. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from dvae_fast.files import read_json
from dvae_fast.reproduction.table import mean_and_error, paired_difference, put_between

PAGE = Path(__file__).parent / "conditional.md"
BEGIN, END = (
    f"<!-- {which} of what is written by `python docs/conditional.py`. -->"
    for which in ("Begin", "End")
)
KINDS = {"given the label": ["--context", "labels"], "plain": []}
DATA = ["--data", "mnist", "--train-examples", "10000", "--valid-examples", "1000"]
TRAIN = [*DATA, "--epochs", "6", "--evaluate-k", "0", "--threads", "1"]
EVALUATE = ["--limit", "500", "--k", "500", "--threads", "1"]


def run(*arguments: str) -> None:
    """`dvae-fast` with them."""
    subprocess.run([sys.executable, "-m", "dvae_fast", *arguments], check=True)


def nll(folder: Path, options: list[str], seed: int) -> tuple[float, np.ndarray]:
    """Of a run, which is made unless it is there: the mean, and each example's."""
    if not (folder / "metrics.json").exists():
        told = ["--run-dir", str(folder), "--seed", str(seed), "--quiet"]
        run("train", *TRAIN, *options, *told)
    if not (folder / "evaluation.json").exists():
        run("evaluate", str(folder), *EVALUATE, "--quiet")
    each = -np.load(folder / "evaluation.npz")["log_likelihood"]
    report = read_json(folder / "evaluation.json")
    assert report["examples"] == len(each)
    return float(-report["log_likelihood"]), each


def table(found: dict[str, dict[int, tuple[float, np.ndarray]]]) -> str:
    """NLL of each seed, and the differences, each with its error over the test images."""
    first, second = found
    lines = [
        f"| seed | NLL {first} | NLL {second} | difference, its standard error over images |",
        "|---|---|---|---|",
    ]
    for seed, (ours, each) in found[first].items():
        theirs, other = found[second][seed]
        error = (each - other).std(ddof=1) / len(each) ** 0.5
        lines.append(f"| {seed} | {ours:.2f} | {theirs:.2f} | {ours - theirs:.2f} ± {error:.2f} |")
    of_seeds = {kind: {s: value for s, (value, _) in runs.items()} for kind, runs in found.items()}
    means = [f"{mean_and_error(list(of_seeds[kind].values()))[0]:.2f}" for kind in found]
    difference = paired_difference(of_seeds[first], of_seeds[second])
    assert difference is not None
    shown = f"{difference.mean:.2f}"
    if difference.half_width is not None:
        shown += f" ± {difference.half_width:.2f}, 95 % by Student's t over seeds"
    lines.append(f"| all | {means[0]} | {means[1]} | {shown} |")
    return "\n".join(lines).replace("| -", "| −")


def main(folder: Path, seeds: int) -> None:
    """Makes the runs, and writes the page."""
    found = {
        kind: {s: nll(folder / f"{kind.split()[0]}-{s}", options, s) for s in range(seeds)}
        for kind, options in KINDS.items()
    }
    put_between(PAGE, table(found), BEGIN, END)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    main(given.runs, given.seeds)
