"""The same numbers on every instruction set that the CPU has.

Run as a program, this file writes the results of the operator table at the level that
DVAE_FAST_ISA names; the test starts it once for each level that is not in use, and compares.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

# With compiled kernels there is nothing to warn of, and without them nothing to test here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    import dvae_fast.ops

import categorical_cases
import mlp_loss_cases
import pytest
import torch
import zero_inflated_cases
from forks import Program
from operator_cases import assert_within, oracle
from ranks import environment
from torch import Tensor

from dvae_fast import reference
from dvae_fast.checking.cases import OPERATORS, run_operator, sample_inputs
from dvae_fast.checking.limits import allowed_error

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from dvae_fast.checking.operands import Sample

pytestmark = pytest.mark.process

LEVELS = ("base", "avx2", "avx512", "avx512bf16", "amx")
#: in which products of bfloat16 are what avx512 lacks
PRODUCTS = LEVELS[3:]
# All in float32; of 16 bits, which other tests hold to every value, two and one.
_PARTS = ("M4-B3-K2-Z1-D63", "M1-B3-K2-Z513-D1985", "M3-B4-K50-Z2-D65", "M2-B3-K7-Z50-D785")
_COUNT = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 1}


def _samples() -> list[Sample]:
    """Rows of several blocks, of less than one, of one and a bit, longer than kernels hold, and
    more samples than a pack has."""
    return [
        sample
        for dtype, count in _COUNT.items()
        for op in OPERATORS
        for sample in sample_inputs(op, dtype, "cpu")
        if sample.layout == "contiguous"
        and sample.label.startswith(_PARTS[: count - op.startswith("masked_")])
        and _is_needed(sample)
    ]


def _is_needed(sample: Sample) -> bool:
    """Products of long rows take longest, and are the same for every likelihood."""
    product = "linear" in sample.op or "mlp" in sample.op
    if not (product and sample.label.startswith(_PARTS[1])):
        return True
    return "bernoulli" in sample.label or (
        "gaussian" in sample.label and sample.dtype == torch.float32
    )


def _masks(corrupt: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Every discrete corruption of 0.25 at many sizes: the noise's own bits, through thresholds."""
    out = {}
    for d in (1, 15, 16, 63, 64, 65, 785):
        x = torch.full((5, d), 0.25)
        rate, salt = torch.linspace(0.001, 0.999, d), torch.linspace(0.9, 0.1, d)
        for kind in ("masking", "bit_flip", "salt_and_pepper"):
            for seed in (0, -1, 2**40 + 3):
                args = (x, kind, rate, salt if kind.startswith("salt") else None,
                        torch.tensor([seed]), 3, 2, 1)  # fmt: skip
                out[f"{kind} D={d} seed={seed}"] = corrupt(*args)
    return out


def _samples_of(level: str) -> list[Sample]:
    """All; those with products of bfloat16 where all else is what avx512 has."""
    every = _samples()
    if level not in PRODUCTS:
        return every
    return [s for s in every if s.dtype == torch.bfloat16 and ("linear" in s.op or "mlp" in s.op)]


def _here(level: str) -> dict[str, Any]:
    """The results at the level in use."""
    tables = {str(s): run_operator(s.op, s.args()) for s in _samples_of(level)}
    losses, rounded = (
        {
            name: mlp_loss_cases.run(mlp_loss_cases.make(*case), bfloat16=bfloat16)
            for name, case in mlp_loss_cases.cases()
        }
        for bfloat16 in (False, True)
    )
    if level in PRODUCTS:
        return {"tables": tables, "losses": losses, "rounded": rounded}
    masks = _masks(torch.ops.dvae_fast.corrupt)
    inflated = {str(case): zero_inflated_cases.run(case) for case in zero_inflated_cases.CASES}
    categorical = {str(case): categorical_cases.run(case) for case in categorical_cases.CASES}
    return {
        "tables": tables, "masks": masks, "losses": losses, "rounded": rounded,
        "inflated": inflated, "categorical": categorical,
    }  # fmt: skip


def _process(level: str, path: Path) -> subprocess.CompletedProcess[str]:
    return Program(__file__, str(path), env=environment(DVAE_FAST_ISA=level)).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not dvae_fast.ops.library_loaded():
        pytest.skip(f"no compiled library, so no ISA levels: {dvae_fast.ops.LIBRARY_ERROR}")
    return tmp_path_factory.mktemp("isa")


@functools.cache
def _results(level: str, folder: Path) -> dict[str, Any]:
    if level == dvae_fast.build_info()["isa"]:
        return _here(level)
    path = folder / f"{level}.pt"
    process = _process(level, path)
    if "DVAE_FAST_ISA must be one of" in process.stderr:
        # The message lists what there is; the level asked for must not be in it.
        listed = process.stderr.rsplit("(", 1)[-1].split(")")[0]
        assert level not in listed.split(", "), process.stderr
        pytest.skip(f"this build and CPU have {listed}, not {level}")
    assert process.returncode == 0, process.stderr
    out: dict[str, Any] = torch.load(path)
    return out


#: the same on every level
_allowed: dict[str, Tensor] = {}


@functools.cache
def _wanted(*case: Any) -> tuple[Tensor, ...]:
    return mlp_loss_cases.expected(mlp_loss_cases.make(*case))


@functools.cache
def _expected_masks() -> dict[str, Tensor]:
    return _masks(reference.corrupt)


@pytest.mark.parametrize("level", LEVELS[:3])
def test_masks_are_the_same_bits(level: str, folder: Path) -> None:
    masks = _results(level, folder)["masks"]
    expected = _expected_masks()
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        differ = int((mask != expected[name]).sum())
        assert torch.equal(mask, expected[name]), f"{name}: {differ} differ"


@pytest.mark.parametrize("level", LEVELS)
def test_operators_are_as_accurate_on_every_level(level: str, folder: Path) -> None:
    tables = _results(level, folder)["tables"]
    in_use = level == dvae_fast.build_info()["isa"]
    for sample in _samples_of(level):
        if in_use and sample.dtype == torch.float32:  # test_operators.py has them
            continue
        outputs = zip(tables[str(sample)], oracle(sample, keep=True), strict=True)
        for i, (a, (e, *of)) in enumerate(outputs):
            key = f"{sample} output {i}"
            if key not in _allowed:
                _allowed[key] = allowed_error(a.dtype, e, of[0], torch.float32, of[1])
            assert_within(f"{level}: {key}", a, e, _allowed[key])


@pytest.mark.parametrize("level", LEVELS[:3])
def test_likelihoods_of_rows_are_as_accurate_on_every_level(level: str, folder: Path) -> None:
    results = _results(level, folder)
    for case in zero_inflated_cases.CASES:
        zero_inflated_cases.assert_is(results["inflated"][str(case)], case)
    for one in categorical_cases.CASES:
        categorical_cases.assert_is(results["categorical"][str(one)], one)


@pytest.mark.parametrize("level", LEVELS)
def test_one_pass_losses_are_as_accurate_on_every_level(level: str, folder: Path) -> None:
    """Those of bfloat16 are float32's where the level has no such products."""
    results = _results(level, folder)
    for name, case in mlp_loss_cases.cases():
        wanted = _wanted(*case)
        exact, rounded = results["losses"][name], results["rounded"][name]
        mlp_loss_cases.assert_is(exact, wanted, f"{level}: {name}")
        mlp_loss_cases.assert_is_rounded(rounded, wanted, f"{level}: {name}")
        same = all(map(torch.equal, exact, rounded))
        assert same is not (level in ("amx", "avx512bf16")), (level, name)


@pytest.mark.parametrize("level", LEVELS[1:3])
def test_discrete_results_are_those_of_the_base_level(level: str, folder: Path) -> None:
    """What no rounding enters is bit-identical between levels."""
    base, other = _results("base", folder)["tables"], _results(level, folder)["tables"]
    compared = 0
    for name, results in base.items():
        if name.startswith("corrupt-") and "gaussian" not in name:
            compared += 1
            for a, b in zip(results, other[name], strict=True):
                assert torch.equal(a, b), name
    assert compared


def test_unknown_level_is_refused_and_the_known_ones_named(folder: Path) -> None:
    process = _process("sse9", folder / "none.pt")
    assert process.returncode != 0
    assert "DVAE_FAST_ISA must be one of" in process.stderr
    assert "base" in process.stderr
    assert "'sse9'" in process.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(_here(os.environ["DVAE_FAST_ISA"]), sys.argv[1])
