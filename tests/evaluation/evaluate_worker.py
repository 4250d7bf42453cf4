"""What `test_evaluate_distributed` runs, alone or under torchrun: evaluations kept in a folder.

torchrun --nproc-per-node 2 evaluate_worker.py FOLDER RUN PORT PORT PORT
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from linear_gaussian import draw_data, linear_gaussian
from ranks import meet_elsewhere, program
from torch import Tensor
from torch.distributions import Normal

from dvae_fast.corruptions import AdditiveGaussian
from dvae_fast.distributed import TIMEOUT_VARIABLE, DistributedError, World, join
from dvae_fast.evaluation import (
    batching,
    estimate_from_log_weights,
    estimate_log_likelihood,
)

if TYPE_CHECKING:
    from dvae_fast.evaluation import EvaluationProgress, LikelihoodEstimate

N, K, SEED = 11, 23, 99
STANDARD = Normal(0.0, 1.0, validate_args=False)
FIELDS = (
    "log_likelihood", "standard_error", "ess", "elbo", "pareto_k", "spent", "curve",
    "curve_standard_error",
)  # fmt: skip

#: examples, and options
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "examples": (N, {}),
    "chunks": (N, {"chunk": 5, "batch_size": 2}),
    "one example": (1, {}),
    "one example in chunks": (1, {"chunk": 2}),
    "one sample": (1, {"k": 1}),
    "tolerance": (N, {"tolerance": 0.05, "max_k": 500}),
    "tolerance of one": (1, {"tolerance": 0.03, "max_k": 500, "chunk": 7}),
    "mixture": (N, {"proposal": "mixture", "copies": 3}),
    "corrupted": (1, {"proposal": "corrupted"}),
    "function": (N, {"by": "function", "tolerance": 0.05, "max_k": 300, "chunk": 9}),
    "function of one": (1, {"by": "function", "chunk": 7, "tolerance": 0.01, "max_k": 300}),
}


def model() -> Any:
    return linear_gaussian("dvae", widen=2.0, corruption=AdditiveGaussian(0.3))


def data(n: int) -> Tensor:
    x = draw_data(model(), n)
    if n > 3:
        x[3] = float("nan")
    return x


def evaluate(n: int, *, by: str = "model", **options: Any) -> LikelihoodEstimate:
    """n examples, by the model or by a function whose draws are torch's."""
    given, x = model(), data(n)
    if by == "model":
        return estimate_log_likelihood(given, x, **options)

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        mean, log_var = given.encode(x)
        q = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
        z = q.sample((k,))
        log_p = Normal(*given.decode(z), validate_args=False).log_prob(x).sum(-1)
        return (log_p + (STANDARD.log_prob(z) - q.log_prob(z)).sum(-1)).T

    return estimate_from_log_weights(log_weights, x, **options)


#: how each is planned: as on a CPU, or from memory, of which the processes have unlike amounts
PLANS = ("cpu", "gpu")


def run(world: World, folder: Path) -> None:
    of_cpu = batching.free_memory
    for plan in PLANS:
        if plan == "gpu":
            batching.free_memory = lambda device: 20_000 * (world.rank + 1)
        for name, (n, options) in CASES.items():
            estimate = evaluate(n, **{"k": K, "seed": SEED, "world": world, **options})
            arrays = {field: getattr(estimate, field).numpy() for field in FIELDS}
            np.savez(folder / f"{name}, {plan}.{world.rank}.npz", **arrays)
    batching.free_memory = of_cpu
    shares: list[EvaluationProgress] = []
    path = folder / "partial.npz"
    estimate_log_likelihood(
        model(), data(N), K, seed=SEED, world=world, partial=path, batch_size=2,
        progress=shares.append,
    )  # fmt: skip
    (folder / f"total.{world.rank}").write_text(str(shares[-1].total))


def gone(folder: Path) -> None:
    """Rank 1 ends amid an evaluation; what rank 0 is told of it is kept."""
    # torchrun, which sees the other end, must not end this one before it is told.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def evaluate() -> None:
        with join("cpu") as world:
            estimate_log_likelihood(
                model(), data(N), K, seed=SEED, world=world, batch_size=2,
                progress=lambda _: os._exit(7) if world.rank == 1 else None,
            )  # fmt: skip

    with pytest.raises(DistributedError) as caught:
        evaluate()
    (folder / "told").write_text(str(caught.value))


def main(folder: Path, trained: str, *ports: str) -> None:
    """The command line, a wrong one, evaluations, and one that ends: each with its own group."""
    rank = os.environ["RANK"]
    evaluate = ("evaluate", trained, "--k", "30", "--limit", "31")
    for name, options in (("right", ()), ("wrong", ("--method", "ais"))):
        if name == "wrong":
            meet_elsewhere(ports[0])
        told = json.dumps(program(*evaluate, *options))
        (folder / f"{name}.{rank}.json").write_text(told)
    meet_elsewhere(ports[1])
    with join("cpu") as place:
        run(place, folder)
    meet_elsewhere(ports[2])
    os.environ[TIMEOUT_VARIABLE] = "20"
    gone(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
