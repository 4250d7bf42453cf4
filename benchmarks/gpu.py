"""Every operator, a training step and an evaluation on a GPU, against eager and torch.compile.

python benchmarks/gpu.py --json FILE [--seconds 1] [--tiny]

Times are medians by CUDA events. Operands of the operators are far larger than the second-level
cache, so nothing is left in it from the call before. `--tiny` runs small sizes, on the CPU if there
is no GPU, to see that everything works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rivals
import torch
from torch import Tensor, nn

import dvae_fast
from dvae_fast import ops
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import DIWAE, IWAE
from dvae_fast.training.graphed import GraphedStep

if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = dict[str, Callable[[], object]]

RATE, SALT, D = 0.1, 0.5, 784


@dataclass
class Result:
    """Of one case: seconds by rival; what a rival that failed said; the work of one call."""

    case: str
    bytes: int = 0
    flops: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class Timer:
    def __init__(self, device: torch.device, seconds: float) -> None:
        self.gpu, self.seconds = device.type == "cuda", seconds

    def __call__(self, call: Callable[[], object]) -> float:
        """Median seconds of a call, after it has been warmed up (and compiled)."""
        for _ in range(2):
            call()
        once = statistics.median(self._times(call, 1 if self.gpu else 3))
        # Of calls that take seconds, three: all the cases are to fit in minutes.
        least = 3 if once > self.seconds else 5
        rounds = max(least, min(200, int(self.seconds / max(once, 1e-6))))
        return statistics.median(self._times(call, rounds))

    def _times(self, call: Callable[[], object], rounds: int) -> list[float]:
        if not self.gpu:
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


class Bench:
    def __init__(self, device: torch.device, seconds: float, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.time = Timer(device, seconds)
        self.results: list[Result] = []

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)

    def compiled(
        self, function: Callable[..., Any], autotune: bool = True
    ) -> dict[str, Callable[..., Any]]:
        """torch.compile as it comes, and told to try everything, for products in minutes."""
        modes = {"compile": None, "compile, max-autotune": "max-autotune-no-cudagraphs"}
        if self.tiny or not autotune:
            modes.popitem()
        return {
            name: torch.compile(function, dynamic=False, fullgraph=True, mode=mode)
            for name, mode in modes.items()
        }

    def run(self, case: str, calls: Calls, *, bytes: int = 0, flops: int = 0) -> None:
        result = Result(case, bytes, flops)
        self.results.append(result)
        for name, call in calls.items():
            try:
                result.seconds[name] = self.time(call)
            except Exception as error:  # one that fails must not take the others along
                traceback.print_exc()
                result.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        rates = ""
        if "ours" in result.seconds:
            rates += f", {bytes / result.seconds['ours'] / 1e9:.0f} GB/s" if bytes else ""
            rates += f", {flops / result.seconds['ours'] / 1e12:.1f} TFLOP/s" if flops else ""
        print(f"{case}{rates}", flush=True)
        for name, seconds in result.seconds.items():
            print(f"    {name:24} {seconds * 1e6:12.1f} µs")


def no_grad(call: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(call)


# --- ceilings -------------------------------------------------------------------------------------


def ceilings(b: Bench) -> None:
    n = b.size(1 << 30, 1 << 16) // 4
    source, target = b.tensor(n), b.tensor(n)
    b.run("copy", {"ours": lambda: target.copy_(source)}, bytes=8 * n)
    for dtype in (torch.float32, torch.bfloat16):
        m = b.size(8192, 64)
        left, right = b.tensor(m, m, dtype=dtype), b.tensor(m, m, dtype=dtype)
        out = torch.empty_like(left)
        name = f"GEMM {str(dtype).removeprefix('torch.')}"
        calls: Calls = {"ours": lambda a=left, c=right, o=out: torch.mm(a, c, out=o)}  # type: ignore[misc]
        b.run(name, calls, flops=2 * m**3)


# --- operators ------------------------------------------------------------------------------------


def log_weights(b: Bench, dtype: torch.dtype) -> None:
    k = 5000
    examples = b.size((1 << 30) // (k * D * dtype.itemsize) + 1, 1)
    k = b.size(k, 7)
    logits, x = b.tensor(examples, k, D, dtype=dtype), torch.rand(examples, D, device=b.device)
    ratio = b.tensor(examples, k)

    def plain(logits: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        return rivals.log_weights(logits.float(), x, ratio, rivals.density_explicit)

    def eager() -> Tensor:
        return rivals.log_weights(logits, x.to(dtype), ratio, rivals.density_softplus)

    calls: Calls = {
        "ours": no_grad(lambda: dvae_fast.log_weights(logits, x, ratio)),
        "eager": no_grad(eager),
    }
    for name, f in b.compiled(plain).items():
        calls[name] = no_grad(lambda f=f: f(logits, x, ratio))  # type: ignore[misc]
    bytes = logits.numel() * dtype.itemsize + (x.numel() + 2 * ratio.numel()) * 4
    b.run(f"log_weights forward, {examples}×{k}×{D}, {dtype}", calls, bytes=bytes)


def iwae_loss(b: Bench, k: int, dtype: torch.dtype) -> None:
    examples = b.size((1 << 30) // (k * D * dtype.itemsize) + 1, 3)
    logits = b.tensor(examples, k, D, dtype=dtype).requires_grad_()
    x = torch.rand(examples, D, device=b.device)
    ratio = b.tensor(examples, k).requires_grad_()

    def gradient(loss: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(logits, x, ratio), (logits, ratio))

    def plain(logits: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        return rivals.iwae_loss(logits.float(), x, ratio, rivals.density_explicit)

    def eager(logits: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        return rivals.iwae_loss(logits, x.to(dtype), ratio, rivals.density_softplus)

    calls = {"ours": gradient(dvae_fast.iwae_loss), "eager": gradient(eager)}
    calls |= {name: gradient(f) for name, f in b.compiled(plain).items()}
    bytes = 2 * logits.numel() * dtype.itemsize
    b.run(f"iwae_loss forward+backward, {examples}×{k}×{D}, {dtype}", calls, bytes=bytes)


def corrupt(b: Bench) -> None:
    examples = b.size((1 << 28) // (D * 4) + 1, 3)
    x = torch.rand(examples, D, device=b.device)
    corruption = SaltAndPepper(RATE, SALT).to(b.device)

    def plain(x: Tensor) -> Tensor:
        return rivals.corrupt(x, None, RATE, SALT, rivals.corrupt_select)

    calls: Calls = {
        "ours": lambda: dvae_fast.corrupt(x, corruption),
        "eager": lambda: plain(x),
    }
    for name, f in b.compiled(plain).items():
        calls[name] = lambda f=f: f(x)  # type: ignore[misc]
    b.run(f"corrupt salt-and-pepper, {examples}×{D}", calls, bytes=8 * x.numel())


def sample_latent(b: Bench) -> None:
    k, z = 50, 50
    examples = b.size((1 << 28) // (k * z * 4) + 1, 3)
    mean, log_var = (0.1 * b.tensor(examples, z) for _ in range(2))

    def plain(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        return rivals.sample_latent(mean, log_var, k, rivals.reparameterise)

    calls: Calls = {
        "ours": lambda: dvae_fast.sample_latent(mean, log_var, k),
        "eager": lambda: plain(mean, log_var),
    }
    for name, f in b.compiled(plain).items():
        calls[name] = lambda f=f: f(mean, log_var)  # type: ignore[misc]
    b.run(f"sample_latent forward, {examples}×{k}×{z}", calls, bytes=4 * examples * k * (z + 1))


# --- loops ----------------------------------------------------------------------------------------


def training_step(b: Bench, k: int) -> None:
    """The paper's network, B = 100: ours in a CUDA graph and eager, plain eager and compiled."""
    examples, z, hidden = 100, 50, (200, 200)
    x = (torch.rand(examples, D, device=b.device) < 0.2).float()
    gpu = b.device.type == "cuda"
    calls: Calls = {}

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.0, fused=True, capturable=gpu)

    def ours() -> tuple[DIWAE, torch.optim.Optimizer]:
        model = DIWAE(D, z, hidden, corruption=SaltAndPepper(RATE, SALT), samples=k).to(b.device)
        return model, adam(model)

    if gpu:
        model, optimizer = ours()
        graph = GraphedStep(model.loss, optimizer, x)
        # A seed for each step, drawn outside the graph as the trainer does; its fetching of the
        # batch is left out, for every rival.
        seeds = torch.randint(2**62, (64, 1), device=b.device).unbind()
        count = [0]

        def replay() -> None:
            count[0] += 1
            graph(x, seeds[count[0] % 64])

        calls["ours"] = replay
    model, optimizer = ours()
    calls["ours, eager" if gpu else "ours"] = rivals.training_step(model.loss, optimizer, x)
    plain = rivals.DIWAE(D, z, hidden, nn.Softplus, k, RATE, SALT).to(b.device)
    calls["eager"] = rivals.training_step(plain.loss, adam(plain), x)
    for name, loss in b.compiled(plain.loss, autotune=False).items():
        calls[name] = rivals.training_step(loss, adam(plain), x)
    encoder, decoder = D * 200 + 200 * 200 + 200 * 2 * z, z * 200 + 200 * 200 + 200 * D
    flops = 2 * examples * (3 * (encoder + k * decoder) - D * 200)
    b.run(f"training step, B={examples} K={k}, 784-200-200-50", calls, flops=flops)


def evaluation(b: Bench) -> None:
    """The size of MNIST's test set, k = 5000, Burda's decoder, bfloat16 matrices."""
    examples, k = b.size(10_000, 4), b.size(5000, 9)
    x = (torch.rand(examples, D, device=b.device) < 0.2).float()
    model = IWAE(D, 50, (200, 200)).to(b.device)
    plain = rivals.DIWAE(D, 50, (200, 200), nn.Softplus, k, RATE, SALT).to(b.device)
    plain.copy_parameters(model)
    low = torch.autocast(b.device.type, torch.bfloat16)

    def ours() -> object:
        with low:
            return dvae_fast.estimate_log_likelihood(model, x, k)

    def chunked(log_weights: Callable[..., Tensor], batch: int, chunk: int) -> object:
        with low:
            parts = torch.split(x, batch)
            return [rivals.estimate_log_likelihood(plain, log_weights, p, k, chunk) for p in parts]

    # The best plain chunk: the largest that fits easily, 500,000 rows, and a smaller one.
    sizes = {"eager": (100, 5000), "eager, small chunks": (100, 500)}
    if b.tiny:
        sizes = {"eager": (2, 4)}
    calls: Calls = {"ours": ours}
    for name, size in sizes.items():
        calls[name] = lambda size=size: chunked(plain.log_weights, *size)  # type: ignore[misc]
    rows, decoder = examples * k, 50 * 200 + 200 * 200 + 200 * D
    b.run(f"evaluation, {examples:,} × k={k}, bfloat16", calls, flops=2 * rows * decoder)


# --- the whole ------------------------------------------------------------------------------------


def _said(*command: str) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip()


def machine(device: torch.device) -> dict[str, Any]:
    gpu = device.type == "cuda"
    root = str(Path(__file__).resolve().parent.parent)
    return {
        "device": torch.cuda.get_device_name(device) if gpu else "CPU",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_kernels": ops.cuda_kernels(),
        "build": {name: str(value) for name, value in dvae_fast.build_info().items()},
        # Of scripts/gpu_check.sh: what ran before, and its exit status.
        "checks": dict(c.split("=") for c in os.environ.get("DVAE_FAST_CHECKS", "").split()),
        "commit": os.environ.get("DVAE_FAST_COMMIT")
        or _said("git", "-C", root, "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="GPU benchmarks, as one JSON file.")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds of each rival")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
    a = parser.parse_args()
    if not torch.cuda.is_available() and not a.tiny:
        parser.error("torch sees no GPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    b = Bench(device, 0.01 if a.tiny else a.seconds, a.tiny)
    about = machine(device)
    print(json.dumps(about, indent=2))
    fp32, bf16 = torch.float32, torch.bfloat16
    steps: list[Callable[[], None]] = [
        lambda: ceilings(b),
        lambda: training_step(b, 5),
        lambda: evaluation(b),
        lambda: log_weights(b, fp32),
        lambda: log_weights(b, bf16),
        lambda: iwae_loss(b, 50, fp32),
        lambda: iwae_loss(b, 50, bf16),
        lambda: iwae_loss(b, 5, fp32),
        lambda: iwae_loss(b, 500, fp32),
        lambda: corrupt(b),
        lambda: sample_latent(b),
        lambda: training_step(b, 50),
    ]
    failures = []
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for i, step in enumerate(steps):
            interrupted = True
            try:
                step()
                interrupted = False
            except Exception as error:  # what was measured is written all the same
                traceback.print_exc()
                failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
                interrupted = False
            finally:  # when it is interrupted, too
                content = {
                    "machine": about,
                    "results": [asdict(r) for r in b.results],
                    "failures": failures,
                    "complete": i + 1 == len(steps) and not interrupted,
                }
                a.json.write_text(json.dumps(content, indent=2) + "\n")
    if failures or any(r.errors for r in b.results):
        raise SystemExit("benchmarks: some failed, see above and the JSON")


if __name__ == "__main__":
    main()
