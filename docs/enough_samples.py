"""How many importance samples are enough: the bias of log p̂ against k, and what foretells it.

    python docs/enough_samples.py [--output FOLDER] [--results FILE] [--plot]

Trains three small models, one on scikit-learn's digits and two on MNIST's first 2,000 images, lets
each make images, and brackets their log p(x) by bidirectional annealed importance sampling. Beside
it the bounds of k = 50 to 50,000 importance samples, and k̂ and the effective sample size at
k = 1,000. Leaves the numbers as JSON (docs/enough_samples.json), the tables of docs/reading.md and
a figure; --plot makes both from the file again. Some two minutes on a core. Needs matplotlib, scipy
and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast import bidirectional_monte_carlo, estimate_log_likelihood
from dvae_fast._extras import require
from dvae_fast.files import write_json
from dvae_fast.models import load_model
from dvae_fast.plots import write_figure
from dvae_fast.reproduction.table import markdown_table, number, put_between
from dvae_fast.training import default_config, train

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
FIGURE = "enough_samples.png"
BEGIN = "<!-- Begin of what is written by `python docs/enough_samples.py`. -->"
END = "<!-- End of what is written by `python docs/enough_samples.py`. -->"
SIZES = (50, 500, 5_000, 50_000)
#: where k̂ and the effective sample size are taken, to foretell the bias there
AT = 1_000
_MNIST = {
    "data": "mnist", "binarise": "fixed", "train_examples": 2000, "valid_examples": 500,
    "latent_size": 20, "hidden_sizes": (100,), "epochs": 60, "learning_rate": 1e-3, "threads": 1,
}  # fmt: skip
_DIGITS = {
    "data": "digits", "binarise": "once", "latent_size": 5, "hidden_sizes": (50,), "epochs": 100,
    "threads": 1,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "VAE, digits": {"model": "vae", **_DIGITS},
    "VAE, MNIST": {"model": "vae", **_MNIST},
    "IWAE, MNIST": {"model": "iwae", "samples": 5, **_MNIST},
}
COLOURS = ("#3a7d44", "#1f5fa8", "#d9730d")
ANNEALED = {"chains": 5, "temperatures": 300, "leapfrog": 5}


def measured(options: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Of one model: the bracket, the bounds and the signs, by image, in nats."""
    config = default_config(**options)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", tensorboard=False)
        model = load_model(Path(folder) / "run")
    truth = bidirectional_monte_carlo(model, images, seed=1, **ANNEALED)
    # Each size with noise of its own, so that a point's error is its own.
    bounds = {}
    for k in SIZES:
        estimate = estimate_log_likelihood(model, truth.x, k, seed=k)
        bounds[k] = estimate.log_likelihood
    at = estimate_log_likelihood(model, truth.x, AT, seed=2)
    middle = (truth.lower + truth.upper) / 2
    return {
        "lower": truth.lower.tolist(),
        "upper": truth.upper.tolist(),
        "missing": {str(k): (middle - bound).tolist() for k, bound in bounds.items()},
        "missing_at": (middle - at.log_likelihood).tolist(),
        "pareto_k": at.pareto_k.tolist(),
        "ess": at.ess.tolist(),
        "foretold": (-at.bias).tolist(),
    }


def correlation(a: list[float], b: list[float]) -> float:
    """Of ranks (Spearman)."""
    return float(require("scipy.stats", "scipy", "a rank correlation").spearmanr(a, b)[0])


def summary(model: Mapping[str, Any]) -> dict[str, Any]:
    """What docs/reading.md says of a model: means over images, with their standard errors."""

    def mean(values: list[float]) -> list[float]:
        t = torch.tensor(values, dtype=torch.float64)
        return [round(float(t.mean()), 3), round(float(t.std() / len(t) ** 0.5), 3)]

    gap = [up - low for low, up in zip(model["lower"], model["upper"], strict=True)]
    k_hat = torch.tensor(model["pareto_k"])
    heavy = int((k_hat > 0.7).sum())
    return {
        "bracket": mean(gap),
        "missing": {k: mean(values) for k, values in model["missing"].items()},
        "missing_at": mean(model["missing_at"]),
        "foretold": mean(model["foretold"]),
        "heavy": heavy,
        "by_pareto_k": round(correlation(model["pareto_k"], model["missing_at"]), 2),
        "by_ess": round(correlation([-v for v in model["ess"]], model["missing_at"]), 2),
    }


def tables(models: Mapping[str, Any]) -> str:
    """What docs/reading.md shows, in nats, means over images ± standard error."""

    def shown(value: list[float]) -> str:
        return f"{number(value[0])} ± {number(value[1])}"

    found = {name: summary(model) for name, model in models.items()}
    missing = [
        [name, *map(shown, each["missing"].values()), shown(each["bracket"])]
        for name, each in found.items()
    ]
    signs = [
        [name, f"{each['heavy']} of {len(models[name]['lower'])}", shown(each["missing_at"]),
         shown(each["foretold"]), number(each["by_pareto_k"]), number(each["by_ess"])]
        for name, each in found.items()
    ]  # fmt: skip
    first = ["missing at k =", *(f"{k:,}" for k in SIZES), "upper − lower end"]
    second = [f"at k = {AT:,}", "k̂ > 0.7", "missing", "`bias` says", "ρ with k̂", "ρ with −ess"]
    lines = [*markdown_table(first, missing, (0,)), "", *markdown_table(second, signs, (0,))]
    return "\n".join(lines) + "\n"


def plot(models: Mapping[str, Any], path: Path) -> None:
    require("matplotlib", "matplotlib", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, model), colour in zip(models.items(), COLOURS, strict=True):
        found = summary(model)
        means, errors = zip(*(found["missing"][str(k)] for k in SIZES), strict=True)
        left.errorbar(SIZES, means, [1.96 * e for e in errors], color=colour, marker="o",
                      markersize=4, label=name)  # fmt: skip
        half = found["bracket"][0] / 2
        left.axhspan(-half, half, color=colour, alpha=0.15, lw=0)
        right.scatter(model["pareto_k"], model["missing_at"], s=14, color=colour, alpha=0.7,
                      label=f"{name}: ρ = {found['by_pareto_k']:.2f}")  # fmt: skip
    left.set(xscale="log", xlabel="k", ylabel="log p(x) − log p̂(x), nats",
             title="What k samples miss, and the bracket")  # fmt: skip
    right.margins(y=0.3)  # room for the legend
    right.axvline(0.7, color="grey", lw=1, ls="--")
    right.set(xlabel=f"Pareto k̂ at k = {AT:,}", ylabel=f"missed at k = {AT:,}, nats",
              title="By image")  # fmt: skip
    for axes in (left, right):
        axes.axhline(0, color="grey", lw=0.8)
        axes.grid(alpha=0.3)
        axes.legend()
    write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many importance samples are enough.")
    parser.add_argument("--output", type=Path, default=HERE / "figures", help="of the figure")
    parser.add_argument("--page", type=Path, default=HERE / "reading.md", help="of the tables")
    parser.add_argument("--results", type=Path, default=HERE / "enough_samples.json")
    parser.add_argument("--images", type=int, default=40, help="of each model")
    parser.add_argument("--plot", action="store_true", help="from the file, measuring nothing")
    a = parser.parse_args()
    if a.images < 2:
        parser.error(f"images must be >= 2, got {a.images}")
    if not a.plot:
        torch.set_num_threads(1)
        models = {name: measured(options, a.images) for name, options in MODELS.items()}
        rounded = json.loads(json.dumps(models), parse_float=lambda text: round(float(text), 4))
        write_json(a.results, rounded)
    models = json.loads(a.results.read_text(encoding="utf-8"))
    put_between(a.page, tables(models), BEGIN, END)
    print(tables(models))
    plot(models, a.output / FIGURE)
    print(f"Wrote {a.output / FIGURE}")


if __name__ == "__main__":
    main()
