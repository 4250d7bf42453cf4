"""A process in which the CPU plays a GPU whose kernels wait for their check.

    python standin.py use      call operators as a user does; print what happened, as JSON
    python standin.py worker   be the check's process, with the arguments of dvae_fast.checking

There are no compiled kernels here; those that are "enabled" are the reference, counted, but for
the ones that the environment makes wrong: STANDIN_WRONG names operators, STANDIN_CRASH and
STANDIN_HANG one. STANDIN_RUNS is a file that gets a line for each check; one is of what is used
here alone.
"""

# ruff: noqa: E402  (what is imported depends on what comes first)
from __future__ import annotations

import functools
import json
import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.modules["dvae_fast._C"] = None  # type: ignore[assignment]  # importing it fails
with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    import dvae_fast

import torch

from dvae_fast import functional, ops, reference
from dvae_fast.checking import command, run, trust
from dvae_fast.checking.machine import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

USED = ("corrupt", "iwae", "rescale_", "softplus")
calls: dict[str, int] = {}
library = torch.library.Library("dvae_fast", "IMPL")


def _kernel(name: str) -> Callable[..., Any]:
    formula = getattr(reference, name)

    def kernel(*args: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        if name == os.environ.get("STANDIN_CRASH"):
            os.abort()
        if name == os.environ.get("STANDIN_HANG"):
            time.sleep(600)
        out = formula(*args)
        if name in os.environ.get("STANDIN_WRONG", "").split(","):
            (out[0] if isinstance(out, tuple) else out).add_(1e-3)
        return out

    return kernel


def _enable(names: Iterable[str]) -> None:
    for name in names:
        library.impl(name, _kernel(name), "CPU")


trust.BACKEND = trust.Backend(
    kinds=lambda: [Kind(os.environ.get("STANDIN_NAME", "stand-in"), "0.0", "cpu")],
    driver=lambda: "1",
    library=lambda: os.environ.get("STANDIN_LIBRARY", "a"),
    worker=lambda: [sys.executable, __file__, "worker", "--small"],
    limit=float(os.environ.get("STANDIN_LIMIT", "120")),
    wait=180.0,
)
trust.OPERATORS = USED
ops.hold_back(("cpu",), _enable)
if os.environ.get("DVAE_FAST_CHECK") == "0":  # as ops.py has it for the GPU
    ops.trust_all_kernels()


def _use() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, generator=g)
    x, ratio = torch.rand(3, 9, generator=g).round(), torch.randn(3, 4, generator=g)
    waiting = ops._gate
    if "STANDIN_FAKE" in os.environ:  # loads half of torch's compiler
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode:
            functional.softplus(mode.from_tensor(logits))
    functional.softplus(logits.to("meta"))
    untouched = waiting is ops._gate
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:  # the first calls, all at once
            soft = list(pool.map(functional.softplus, [logits] * 4))
        leaf = logits.clone().requires_grad_()
        loss = dvae_fast.iwae_loss(leaf, x, ratio)
        (gradient,) = torch.autograd.grad(2 * loss, leaf)
        noisy = dvae_fast.corrupt(x, dvae_fast.corruptions.Masking(0.5), seed=3)
    bound, _, slope, _ = reference.iwae(logits, None, x, ratio, "bernoulli", -1 / 3)
    rate = torch.tensor(0.5)
    mask = reference.corrupt(x, "masking", rate, None, torch.tensor([3]), 1, 0, 0)[0]
    return {
        "untouched": untouched,
        "warnings": [str(w.message) for w in caught],
        "kernels": sorted(calls),
        "right": {
            "softplus": all(torch.equal(s, reference.softplus(logits)) for s in soft),
            "iwae": torch.equal(loss.detach(), -bound.mean()) and torch.equal(gradient, 2 * slope),
            "corrupt": torch.equal(noisy, mask),
        },
        "decided": ops._gate is None,
    }


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        with Path(os.environ["STANDIN_RUNS"]).open("a") as runs:
            runs.write(f"{os.getpid()}\n")
        run.run_checks = functools.partial(run.run_checks, operators=USED)  # for time
        raise SystemExit(command.main(sys.argv[2:]))
    print(json.dumps(_use()))
