"""Largest error of each operator in float32, and whether noise is the same on every ISA.

    python benchmarks/accuracy.py [--json FILE]

Errors are against the reference in float64, relative to the sum of the absolute terms a result is
made of, over the cases of the operator tests (`dvae_fast/checking/cases.py`) and over the sizes
that the benchmarks time. Noise is compared bit by bit: each instruction set this CPU and build have
draws every discrete corruption in a process of its own, and the reference draws it too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import torch  # noqa: E402

from dvae_fast import ops, reference  # noqa: E402
from dvae_fast.checking.cases import (  # noqa: E402
    OPERATORS,
    run_operator,
    run_reference,
    sample_inputs,
    upcast,
)
from dvae_fast.checking.terms import absolute_terms  # noqa: E402

TARGET = 2e-6


def largest_error(op: str, args: tuple[Any, ...]) -> float:
    """max |actual − expected| / terms over the finite elements of all results."""
    args64 = upcast(args)
    terms_of = absolute_terms(op, args64)  # first: some operators change their arguments
    worst = 0.0
    for actual, expected, terms in zip(
        run_operator(op, args), run_reference(op, args64), terms_of, strict=True
    ):
        expected = expected.double()
        terms = terms.expand_as(expected)
        # Below the smallest normal numbers a relative error says nothing.
        keep = torch.isfinite(expected) & torch.isfinite(terms) & (terms > 1e-30)
        error = (actual.double() - expected).abs()[keep] / terms[keep]
        if bool(error.isnan().any()):
            return math.inf
        if error.numel():
            worst = max(worst, error.max().item())
    return worst


def table_cases() -> dict[str, list[tuple[Any, ...]]]:
    """The sizes of the table."""
    from bench_operators import D, decoder_output

    torch.manual_seed(0)
    out: dict[str, list[tuple[Any, ...]]] = {"iwae": [], "log_weights": [], "sample_latent": []}
    for k in (1, 5, 50):
        decoder = decoder_output(100, k)
        out["iwae"].append((decoder[0], None, *decoder[1:], "bernoulli", -0.01))
        out["log_weights"].append((decoder[0], None, *decoder[1:], "bernoulli"))
    posterior = (torch.randn(1, 100, 50), torch.randn(1, 100, 50))
    out["sample_latent"].append((*posterior, 50, torch.tensor([5]), 0, 0))
    weights = (torch.randn(3, 500, 200), torch.randn(D, 200) / 14, torch.randn(D))
    data = ((torch.rand(3, D) < 0.2).float(), torch.randn(3, 500))
    out["linear_log_weights"] = [(*weights, None, *data, "bernoulli")]
    return out


def errors() -> dict[str, float]:
    """The largest error by operator."""
    more = table_cases()
    out = {}
    for op in OPERATORS:
        cases = [sample.args() for sample in sample_inputs(op, torch.float32, "cpu")]
        out[op] = max((largest_error(op, args) for args in cases + more.get(op, [])), default=0.0)
    return out


def noise_digest(corrupt: Any) -> str:
    """A hash of masks of every discrete corruption over sizes of whole and broken blocks."""
    digest = hashlib.sha256()
    for size in (1, 15, 64, 65, 784, 785):
        x = torch.full((5, size), 0.25)
        rate, salt = torch.linspace(0.001, 0.999, size), torch.linspace(0.9, 0.1, size)
        for kind in ("masking", "bit_flip", "salt_and_pepper"):
            for seed in (0, -1, 2**40 + 3):
                key = torch.tensor([seed])
                args = (x, kind, rate, salt if kind == "salt_and_pepper" else None, key, 3, 2, 1)
                digest.update(corrupt(*args).numpy().tobytes())
    return digest.hexdigest()


def noise_by_isa() -> dict[str, bool]:
    """Whether each instruction set draws the reference's bits; empty without compiled kernels."""
    if not ops.library_loaded():
        return {}
    from dvae_fast._build import build_info

    expected = noise_digest(reference.corrupt)
    out = {}
    for isa in build_info()["isas"]:
        process = subprocess.run(
            [sys.executable, __file__, "--digest"],
            env={**os.environ, "DVAE_FAST_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        out[isa] = process.stdout.strip() == expected
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors in float32, and noise on every ISA.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--digest", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.digest:
        print(noise_digest(torch.ops.dvae_fast.corrupt))
        return
    results = {"errors": errors(), "noise": noise_by_isa()}
    for op, error in results["errors"].items():
        print(f"{op}: {error:.2e}")
    for isa, same in results["noise"].items():
        print(f"noise on {isa}: {'bit-identical' if same else 'DIFFERS'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
