"""The mixture over corruptions, trained: which bound gives the best log p(x)?

    python docs/semi_implicit.py [--train FOLDER] [--results FILE] [--output FOLDER] [--page FILE]

DVAEs with the same networks, noise and epochs, trained with the denoising bound, the mixture's,
SIVI's and IWHVI's; and a VAE without noise. With --train FOLDER the runs that FILE
(docs/semi_implicit.json) has no numbers of are made there, some half an hour of one core in all,
and those that were interrupted go on. Writes a table into a page and draws a figure of those that
are there. Needs matplotlib and scipy.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dvae_fast import estimate_log_likelihood
from dvae_fast.data import evenly_spaced
from dvae_fast.files import CHECKPOINT, read_json, write_json
from dvae_fast.models import load_model
from dvae_fast.plots import write_figure
from dvae_fast.reproduction import table as tables
from dvae_fast.training import TrainConfig, default_config, load_config, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Result = Mapping[str, Any]

HERE = Path(__file__).parent
PAGE = "bounds_and_estimators.md"
BEGIN, END = (
    f"<!-- {w} of what is written by `python docs/semi_implicit.py`. -->" for w in ("Begin", "End")
)
COLOURS = "#1f5fa8", "#d9730d", "#3a8f4d"
SEEDS = (0, 1, 2)
COPIES, K = 64, 1000


class Row(NamedTuple):
    """What is trained, and how it is called."""

    label: str
    model: str = "dvae"
    options: Mapping[str, Any] = {}


#: M + J corruptions of an image at a step: 1, 8, 8, 8 and 8
ROWS = {
    "vae": Row("VAE, no noise", "vae"),
    "dvae": Row("denoising bound"),
    "dvae-m8": Row("denoising bound, M = 8", options={"copies": 8}),
    "mixture": Row("mixture, M = 8", options={"objective": "mixture_elbo", "copies": 8}),
    "sivi": Row("SIVI, J = 7", options={"objective": "sivi_elbo", "outer_samples": 7}),
    "iwhvi": Row("IWHVI, J = 7", options={"objective": "iwhvi_elbo", "outer_samples": 7}),
}
BASE = "dvae"
#: by data set: how it is called, how it is trained, and on how many test images it is evaluated
DATA: dict[str, tuple[str, dict[str, Any], int]] = {
    "digits": ("digits", {"epochs": 200, "learning_rate": 1e-3}, 180),
    "mnist": (
        "MNIST, 2,000 images",
        {
            "binarise": "fixed", "train_examples": 2000, "valid_examples": 500, "epochs": 60,
            "learning_rate": 2e-3,
        },
        200,
    ),
}  # fmt: skip
#: softplus and 50 latents end, on the digits, where q(z|x) is the prior whatever the bound
SHARED = {"hidden_sizes": (200,), "latent_size": 20, "activation": "relu", "threads": 1}
NOISE = {"corruption": "salt_and_pepper", "level": 0.1}
#: what is measured, in nats a test image
FIGURES = {
    "log_p": "log p(x)",
    "clean": "ELBO, q(z|x)",
    "mixture": f"mixture bound, M = {COPIES}",
    "denoising": "denoising bound",
}


def config_of(data: str, row: Row, seed: int) -> TrainConfig:
    """What is trained."""
    noise = NOISE if row.model == "dvae" else {}
    return default_config(
        row.model, data, seed=seed, **SHARED, **DATA[data][1], **noise, **row.options
    )


def measure(folder: Path, limit: int) -> dict[str, float]:
    """`FIGURES` of the best model of a run, means over test images.

    log p(x) is the larger of two importance sampling estimates, which are too low where they are
    wrong: a model trained for the mixture may have components too narrow to propose from alone.
    """
    model = load_model(folder)
    config = load_config(folder)
    x = evenly_spaced(config.load_data().evaluation("test")[:], limit)

    def estimate(k: int, **options: Any) -> tuple[float, float]:
        found = estimate_log_likelihood(model, x, k, curve=(1,), seed=0, **options)
        return found.mean, float(found.elbo.mean())

    log_p, clean = estimate(K)
    if config.model == "vae":
        return {"log_p": log_p, "clean": clean}
    mixed, mixture = estimate(K, proposal="mixture", copies=COPIES)
    _, denoising = estimate(100, proposal="corrupted")
    return {"log_p": max(log_p, mixed), "log_p_clean": log_p, "log_p_mixture": mixed,
            "clean": clean, "mixture": mixture, "denoising": denoising}  # fmt: skip


def run_all(folder: Path, path: Path, chosen: Sequence[str]) -> None:
    """What the file has no numbers of, one run after the other."""
    results = read_json(path) if path.exists() else []
    done = {(r["data"], r["row"], r["seed"]) for r in results}
    wanted = [(d, name, seed) for d in chosen for seed in SEEDS for name in ROWS]
    for data, name, seed in wanted:
        if (data, name, seed) in done:
            continue
        config, run = config_of(data, ROWS[name], seed), folder / f"{data}-{name}-{seed}"
        resume = (run / CHECKPOINT).is_file()
        metrics = train(config, run, resume=resume, tensorboard=False)
        if metrics["status"] != "finished":
            raise SystemExit("semi_implicit: interrupted; the same command goes on")
        results.append(
            {
                "data": data, "row": name, "seed": seed, "epochs": config.epochs,
                "best_epoch": metrics["best"]["epoch"],
                "seconds": sum(line["seconds"] for line in metrics["history"]),
                "own": metrics["test_bound"], **measure(run, DATA[data][2]),
            }
        )  # fmt: skip
        write_json(path, results)
        print(f"{data} {name} {seed}: log p(x) {results[-1]['log_p']:.2f}", flush=True)


# --- the report -----------------------------------------------------------------------------------


def by_row(results: Sequence[Result], data: str) -> dict[str, dict[int, Result]]:
    """Of one data set, in the order of `ROWS`, by seed."""
    found: dict[str, dict[int, Result]] = {name: {} for name in ROWS}
    for result in results:
        if result["data"] == data:
            found[result["row"]][result["seed"]] = result
    return found


def difference(
    runs: Mapping[str, Mapping[int, Result]], name: str, figure: str
) -> tables.Difference | None:
    """From the model trained with the denoising bound, paired by seed; None if they share none."""
    ours, theirs = ({s: float(r[figure]) for s, r in runs[n].items()} for n in (name, BASE))
    return tables.paired_difference(ours, theirs)


def interval(found: tables.Difference | None) -> str:
    """Mean and 95 % interval."""
    if found is None or found.half_width is None:
        return "" if found is None else f"{found.mean:+.2f} (one seed)"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def table(results: Sequence[Result]) -> str:
    """Markdown, a row each that has a result: means over its seeds, and by how much log p(x) is
    more than that of the denoising bound's model, with its interval."""
    measured = (label.replace("|", "\\|") for label in FIGURES.values())
    head = ["trained with", "seeds", *measured, "log p(x), more"]
    lines = []
    for data, (label, _, limit) in DATA.items():
        runs = by_row(results, data)
        if not any(runs.values()):
            continue
        rows = []
        for name, seeds in runs.items():
            if not seeds:
                continue
            cells = [ROWS[name].label, f"{len(seeds)} of {len(SEEDS)}"]
            for key in FIGURES:
                values = [r[key] for r in seeds.values() if key in r]
                cells.append(f"{statistics.fmean(values):.2f}" if values else "")
            more = None if name == BASE else difference(runs, name, "log_p")
            cells.append(interval(more))
            rows.append([cell.replace("-", "−") for cell in cells])
        lines += [
            "",
            f"{label}, {limit} test images:",
            "",
            *tables.markdown_table(head, rows, (0,)),
        ]
    return "\n".join(lines[1:])


def draw(results: Sequence[Result], path: Path) -> None:
    """log p(x) and two bounds, less those of the denoising bound's model, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    names = [name for name in ROWS if name != BASE]
    panels = figure.subplots(1, len(DATA))
    for axes, (data, (label, _, _)) in zip(panels, DATA.items(), strict=True):
        runs = by_row(results, data)
        shown = {"log_p": "log p(x)", "clean": "ELBO, q(z|x)", "mixture": "mixture bound"}
        for i, ((key, what), colour) in enumerate(zip(shown.items(), COLOURS, strict=True)):
            has = [n for n in names if all(key in r for r in runs[n].values())]
            found = {n: d for n in has if (d := difference(runs, n, key)) is not None}
            axes.errorbar(
                [d.mean for d in found.values()], [names.index(n) + 0.2 * (i - 1) for n in found],
                xerr=[d.half_width or 0 for d in found.values()], fmt="o", color=colour,
                markersize=4, capsize=3, linewidth=1.3, label=what,
            )  # fmt: skip
        axes.axvline(0, color="#222222", linewidth=1)
        axes.set_yticks(range(len(names)), [ROWS[n].label for n in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("nats more than by the denoising bound")
        axes.set_title(label, fontsize=11)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="The mixture over corruptions, trained.")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="make the runs that are left")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="of these")
    parser.add_argument("--results", type=Path, default=HERE / "semi_implicit.json")
    parser.add_argument("--output", type=Path, default=HERE / "figures", help="of the figure")
    parser.add_argument("--page", type=Path, default=HERE / PAGE, help="of the table")
    a = parser.parse_args()
    if a.train is not None:
        run_all(a.train, a.results, a.data)
    if not a.results.is_file():
        raise SystemExit(f"semi_implicit: {a.results} is not there; --train makes it")
    if not a.output.is_dir():
        raise SystemExit(f"semi_implicit: --output must be a folder, got {a.output}")
    results = read_json(a.results)
    tables.put_between(a.page, table(results) + "\n", BEGIN, END)
    draw(results, a.output / "semi_implicit.png")


if __name__ == "__main__":
    main()
