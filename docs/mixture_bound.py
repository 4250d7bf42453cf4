"""How tight the denoising bound is, compared with the mixture bound and with log p(x).

    python docs/mixture_bound.py RUN [--output FILE] [--limit N] [--k K]

RUN is the folder of a trained DVAE or DIWAE. Prints the bounds and draws them into a PNG file.

The denoising bound L_dvae = E_p(x̃|x) E_q(z|x̃) log p(x, z)/q(z|x̃) is at most the bound whose
posterior is the mixture q̃ = E_p(x̃|x) q(z|x̃) (Im, Ahn, Memisevic and Bengio, arXiv 1511.06406,
section 3). That one is intractable. With q̃ over M drawn corruptions, the expected bound is L_dvae
for M = 1 and rises with M.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import dvae_fast
from dvae_fast.models import load_model
from dvae_fast.plots import write_figure
from dvae_fast.training import load_config

COPIES = (1, 2, 4, 8, 16, 32, 64)


def measure(run: Path, limit: int, k: int) -> dict[str, Any]:
    """Means over the test examples, in nats, with standard errors over the draws of z."""
    config, model = load_config(run), load_model(run)
    x = config.load_data().evaluation("test")[:limit]

    def estimate(**options: Any) -> dvae_fast.LikelihoodEstimate:
        return dvae_fast.estimate_log_likelihood(model, x, k, curve=(1,), seed=0, **options)

    def bound(e: dvae_fast.LikelihoodEstimate) -> list[float]:
        return [float(e.elbo.mean()), float(e.curve_standard_error.square().sum().sqrt()) / len(x)]

    clean, dvae = estimate(), estimate(proposal="corrupted")
    return {
        "model": config.model,
        "data": config.data,
        "corruption": f"{config.corruption} {config.level:g}",
        "examples": len(x),
        "k": k,
        "log p(x)": [clean.mean, clean.mean_standard_error],
        "ELBO with q(z|x)": bound(clean),
        "DVAE bound": bound(dvae),
        "mixture bound": {m: bound(estimate(proposal="mixture", copies=m)) for m in COPIES},
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """The mixture bound against M, between the DVAE bound and log p(x)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    mixture = found["mixture bound"]
    m = [int(one) for one in mixture]
    axes.errorbar(
        m, [v for v, _ in mixture.values()], yerr=[2 * e for _, e in mixture.values()],
        fmt="o-", color="#1f5fa8", markersize=4, linewidth=1.4, label="mixture bound",
    )  # fmt: skip
    for name, colour, style in (
        ("log p(x)", "#222222", "-"),
        ("ELBO with q(z|x)", "#8a8a8a", "--"),
        ("DVAE bound", "#d9730d", "--"),
    ):
        axes.axhline(found[name][0], color=colour, linestyle=style, linewidth=1.2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(m, [str(one) for one in m])
    title = f"{found['model']} on {found['data']}, {found['corruption']}: test set"
    axes.set(xlabel="corruptions M in the mixture", ylabel="nats per example", title=title)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoising bound, mixture bound and log p(x).")
    parser.add_argument("run", type=Path, help="folder of a trained DVAE or DIWAE")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "mixture_bound.png")
    parser.add_argument("--limit", type=int, default=300, help="test examples")
    parser.add_argument("--k", type=int, default=1000, help="samples of z per example")
    a = parser.parse_args()
    found = measure(a.run, a.limit, a.k)
    print(json.dumps(found, indent=1))
    plot(found, a.output)


if __name__ == "__main__":
    main()
