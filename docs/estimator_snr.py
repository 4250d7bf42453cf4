"""Signal-to-noise of the encoder's gradient against K, for each estimator, as a PNG.

python docs/estimator_snr.py [--output FILE] [--draws N] [--groups M]

The model is linear and Gaussian, its posterior near but not at the best one, with parameters of its
own for every draw. For IWAE's bound the standard
estimator's ratio falls as K^-½ (Rainforth et al., arXiv 1802.04537) and the doubly
reparameterised one's rises as K^½ (Tucker et al., arXiv 1810.04152). A ratio near N^-½ is no more
than the noise of N draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dvae_fast import objectives
from dvae_fast._extras import require
from dvae_fast.objectives import ESTIMATORS, Objective
from dvae_fast.plots import write_figure

SIZES = (2, 4, 8, 16, 32, 64, 128)
D, Z = 20, 4


def gradients(estimator: str, k: int, draws: int, groups: int, seed: int) -> Tensor:
    """`draws` independent gradients of one example's bound in its posterior's mean: (draws, Z).

    p(x|z) = N(W z, 1) in D dimensions; q is 0.3 posterior deviations off and twice too wide.
    """
    g = torch.Generator().manual_seed(0)
    weight = torch.linalg.qr(torch.randn(D, Z, generator=g, dtype=torch.float64)).Q
    x = weight.sum(1, keepdim=True).T  # (1, D); the posterior is N(Wᵀx / 2, ½)
    deviation = 0.5**0.5
    mean = (x @ weight / 2 + 0.3 * deviation).expand(groups, draws, Z).clone().requires_grad_()
    log_var = torch.zeros_like(mean)
    objective = Objective("iwae", estimator)
    latents = objectives.sample_latents(mean, log_var, k, objective, seed)
    loss = objectives.loss(
        (latents.z @ weight.T, 1.0), x.expand(draws, D), latents.log_ratio, "gaussian", objective,
        inference=latents.inference,
    )  # fmt: skip
    return torch.autograd.grad(-draws * loss, mean)[0].sum(0)


def signal_to_noise(estimator: str, k: int, draws: int, groups: int) -> float:
    """|mean| / standard deviation, a mean over the parameters."""
    chunk = max(1, min(draws, 400_000 // (k * groups)))
    parts = [
        gradients(estimator, k, min(chunk, draws - first), groups, seed=first)
        for first in range(0, draws, chunk)
    ]
    samples = torch.cat(parts)
    return float((samples.mean(0).abs() / samples.std(0)).mean())


def plot(curves: dict[str, list[float]], path: Path, title: str) -> None:
    require("matplotlib", "matplotlib", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.loglog(
            SIZES,
            values,
            marker="o",
            markersize=4,
            label=f"{name} (biased)" if name == "stl" else name,
        )
    axes.set(xlabel="K", ylabel="signal-to-noise of ∂bound/∂mean", title=title)
    axes.set_xticks(SIZES, [str(k) for k in SIZES], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot the estimators' signal-to-noise ratio.")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/estimator_snr.png"))
    parser.add_argument("--draws", type=int, default=20_000, help="gradients a point")
    parser.add_argument("--groups", type=int, default=1, help="M")
    a = parser.parse_args()
    if a.draws < 2 or a.groups < 1:
        parser.error(f"draws must be >= 2 and groups >= 1, got {a.draws} and {a.groups}")
    curves = {
        name: [signal_to_noise(name, k, a.draws, a.groups) for k in SIZES] for name in ESTIMATORS
    }
    for name, values in curves.items():
        print(f"{name:>9}", *(f"{value:8.3f}" for value in values))
    plot(curves, a.output, f"IWAE's bound, M = {a.groups}")
    print(f"Wrote {a.output}")


if __name__ == "__main__":
    main()
