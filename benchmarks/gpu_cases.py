"""The cases of `gpu.py`: those of the operators, and a step and an evaluation of the GPU's own.

Operands of the operators are far larger than the second-level cache, so nothing is left in it from
the call before; the cases named "small" are a training step's, where launching is what costs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import cases
import rivals
import torch
import torch.nn.functional as F
from bench_models import TrainingCase
from bench_operators import (
    CopyCase,
    CorruptCase,
    GemmCase,
    IWAELossCase,
    LinearLogWeightsCase,
    LogWeightsCase,
    MixtureLogRatioCase,
    SampleLatentCase,
)
from cases import FLOAT, HIDDEN, Calls, Case, D, Z

import dvae_fast
from dvae_fast.models import IWAE
from dvae_fast.training.graphed import GraphedStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu import Bench
    from torch import Tensor, nn

GIB = 1 << 30


class Linear(LinearLogWeightsCase):
    """A decoder's last layer, 500,000 rows: the product, and the likelihood of its output."""

    def ways(self, rival: str) -> Calls:
        if rival == "ours":
            return super().ways(rival)
        weight, bias = self.layer[1:]

        def whole(hidden: Tensor, x: Tensor, log_ratio: Tensor, density: rivals.Density) -> Tensor:
            return rivals.log_weights(F.linear(hidden, weight, bias), x, log_ratio, density)

        hidden, k = self.layer[0], self.layer[0].shape[1]
        functions = rivals.ways(rivals.by_density(whole), rival)
        if rival == "eager":
            step = rivals.linear_step(weight, bias, rivals.density_softplus, k)
            functions["tiles"] = partial(rivals.tiled, step, tile=k)
        return {n: cases.no_grad(f, hidden, *self.data) for n, f in functions.items()}


class Training(TrainingCase):
    """The paper's network, B = 100: ours and plain PyTorch, each in a CUDA graph and out of one."""

    def ways(self, rival: str) -> Calls:
        calls, graphs = super().ways(rival), self.x.is_cuda
        if rival == "ours" and graphs:
            model = cases.make_model(self.model.samples).to(self.x.device)
            return {"": self._in_graph(model, model.loss), "eager": calls[""]}
        if rival == "eager" and graphs:
            calls["in a graph"] = self._in_graph(self.plain, lambda x, seed: self.plain.loss(x))
        return calls

    def _in_graph(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> cases.Call:
        """What `loss` holds is captured when it is first called, which is not timed."""
        made: list[GraphedStep] = []
        # A seed for each step, drawn outside the graph as the trainer does; its fetching of the
        # batch is left out, for every rival.
        seeds = torch.randint(2**62, (64, 1), device=self.x.device).unbind()
        count = [0]

        def replay() -> None:
            if not made:
                made.append(GraphedStep(loss, rivals.adam(model, 0.0, capturable=True), self.x))
            count[0] += 1
            made[0](self.x, seeds[count[0] % 64])

        return replay


class Evaluation(Case):
    """The size of MNIST's test set, k = 5000, Burda's decoder, bfloat16 matrices."""

    def __init__(self, b: int, k: int) -> None:
        self.group, self.k, self.x = f"evaluation, {b:,} × k={k}, bfloat16", k, cases.make_data(b)
        self.model = IWAE(D, Z, HIDDEN).to(self.x.device)
        self.plain = cases.make_rival(self.model)
        self.flops = 2 * b * k * (Z * HIDDEN[1] + HIDDEN[1] * HIDDEN[0] + HIDDEN[0] * D)
        # The best plain chunk: the largest that fits easily, 500,000 rows, and a smaller one.
        self.chunks = {"": k, "small chunks": max(1, k // 10)}

    def ours(self, x: Tensor, **options: Any) -> dvae_fast.LikelihoodEstimate:
        return dvae_fast.estimate_log_likelihood(self.model, x, self.k, dtype="bfloat16", **options)

    def ways(self, rival: str) -> Calls:
        if rival == "ours":
            return {"": partial(self.ours, self.x)}
        estimate = rivals.estimate_log_likelihood
        functions = rivals.ways({"sum": self.plain.log_weights}, rival).values()

        def batches(log_weights: Callable[..., Tensor], chunk: int) -> object:
            with torch.autocast(self.x.device.type, torch.bfloat16):
                parts = self.x.split(100)
                return [estimate(self.plain, log_weights, part, self.k, chunk) for part in parts]

        sizes = self.chunks if rival == "eager" else {"": self.k}
        return {n: partial(batches, f, size) for n, size in sizes.items() for f in functions}

    def check(self, rival: str, result: dvae_fast.LikelihoodEstimate) -> None:
        """The noise is an example's own, so the first ones are what they are by themselves."""
        together, alone = (self.ours(part, seed=1) for part in (self.x, self.x[:3]))
        cases.close(rival, together.log_likelihood[:3], alone.log_likelihood, 1e-3)


#: the most of each size where all that matters is that it works
TINY = {"b": 4, "k": 9, "m": 3, "n": 64, "size": 1 << 16}


def run(
    bench: Bench, /, make: Callable[..., Case], dtype: torch.dtype = FLOAT, **sizes: int
) -> None:
    """The rivals of one case that are wanted, each way to write plain code by its name."""
    more = {} if dtype == FLOAT else {"dtype": dtype}
    sizes = {n: min(size, TINY[n]) if bench.tiny else size for n, size in sizes.items()}
    calls: Calls = {}
    with torch.device(bench.device):
        case = make(**sizes, **more)
        # What the machine can do has no rivals.
        for family in bench.families if case.group != "ceilings" else {"ours"} & {*bench.families}:
            ways = case.ways(family)
            for way, call in ways.items():
                calls[f"{family}, {way}" if way and len(ways) > 1 else family] = call
    key = bench.key if case.group == "ceilings" else case.group
    bench.run(
        ", ".join([key, *(str(t).removeprefix("torch.") for t in more.values())]),
        calls,
        bytes=case.bytes,
        flops=case.flops,
        agrees=lambda: case.check("ours", calls["ours"]()),
    )


def all_cases() -> dict[str, Callable[[Bench], None]]:
    """By their keys; those that targets speak of first, for a run may be stopped early."""

    def rows(row: int, bytes: int = GIB // 4, dtype: torch.dtype = FLOAT) -> int:
        """Examples of `row` elements that make so many bytes."""
        return bytes // (row * dtype.itemsize) + 1

    def one(make: Callable[..., Case], **options: Any) -> Callable[[Bench], None]:
        return lambda bench: run(bench, make, **options)

    def log_weights(dtype: torch.dtype) -> Callable[[Bench], None]:
        return one(LogWeightsCase, b=rows(5000 * D, GIB, dtype), k=5000, dtype=dtype)

    def loss(k: int, dtype: torch.dtype) -> Callable[[Bench], None]:
        return one(IWAELossCase, b=rows(k * D, GIB, dtype), k=k, dtype=dtype)

    both = {"float32": FLOAT, "bfloat16": torch.bfloat16}
    later = [(50, "bfloat16"), *((k, name) for k in (1, 5, 500) for name in both)]
    return {
        "copy": one(CopyCase, size=GIB),
        **{f"log_weights {name}": log_weights(dtype) for name, dtype in both.items()},
        "iwae_loss K=50 float32": loss(50, FLOAT),
        "training K=5": one(Training, k=5, b=100),
        "evaluation bfloat16": one(Evaluation, b=10_000, k=5000),
        **{f"product {name}": one(GemmCase, n=8192, dtype=dtype) for name, dtype in both.items()},
        **{f"iwae_loss K={k} {name}": loss(k, both[name]) for k, name in later},
        **{f"corrupt M={m}": one(CorruptCase, m=m, b=rows(m * D)) for m in (1, 10)},
        "sample_latent": one(SampleLatentCase, b=rows(50 * Z)),
        "mixture M=10": one(MixtureLogRatioCase, b=rows(4 * 50 * Z)),
        **{
            f"linear_log_weights {name}": one(Linear, b=100, k=5000, dtype=dtype)
            for name, dtype in both.items()
        },
        **{f"training K={k}": one(Training, k=k, b=100) for k in (1, 50)},
        "log_weights float32 small": one(LogWeightsCase, b=100, k=5),
        "iwae_loss K=5 float32 small": one(IWAELossCase, b=100, k=5),
        "corrupt M=1 small": one(CorruptCase, m=1, b=100),
        "sample_latent small": one(SampleLatentCase, b=100, k=5),
    }
