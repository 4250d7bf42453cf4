"""The table, made from the numbers of runs alone."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest

from dvae_fast.files import CheckpointError
from dvae_fast.reproduction import table

if TYPE_CHECKING:
    from pathlib import Path


def numbers(row: str, seed: int, own: float | None, clean: float, nll: float) -> dict[str, Any]:
    """What `run_one` writes, as far as the table reads it."""
    return {
        "row": row, "seed": seed, "best_epoch": 4, "training_seconds": 1800.0, "commit": None,
        "settings": {"epochs": 3280, "seed": seed, "train_examples": None, "samples": 1},
        "versions": {"torch": "2.13.0"}, "curve": [],
        "figures": {"own": own, "clean": clean, "ten": clean - 3, "nll": nll},
        "likelihood": {"k": 5000, "examples": 10000, "ess_mean": 40.0 + 10 * seed},
    }  # fmt: skip


def test_statistics_are_those_worked_out_by_hand() -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, s² = 7, s/√3 = √(7/3)
    mean, error = table.mean_and_error([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3)
    assert error == pytest.approx(math.sqrt(7 / 3))
    assert table.mean_and_error([5.0]) == (5.0, None)
    # Differences −1, −2, −6 of the seeds 0, 1, 2; t of 97.5 % with 2 degrees is 4.302653.
    ours, theirs = {0: 1.0, 1: 2.0, 2: 1.0, 9: 5.0}, {2: 7.0, 1: 4.0, 0: 2.0, 8: 1.0}
    difference = table.paired_difference(ours, theirs)
    assert difference is not None
    assert (difference.mean, difference.pairs) == (pytest.approx(-3), 3)
    assert difference.half_width == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    # Of two, −1 and −2: s/√2 = ½, and t with 1 degree is 12.706205.
    two = table.paired_difference({0: 1.0, 1: 2.0}, {0: 2.0, 1: 4.0})
    assert two == table.Difference(-1.5, pytest.approx(12.706205 / 2, rel=1e-6), 2)
    assert table.paired_difference({0: 1.0}, {0: 1.5}) == table.Difference(-0.5, None, 1)
    assert table.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_table_is_made_from_the_numbers_alone() -> None:
    results = [numbers("burda-k5", 0, 87.0, 88.0, 85.5)]
    for seed, value in enumerate((94.0, 95.0, 99.0)):  # 96 ± √(7/3)
        results.append(numbers("dvae-k1-5", seed, value + 1, value, value - 4))
        results.append(numbers("vae-k1", seed, 98.25, 98.25, 90 + seed))
    text = table.markdown(reversed(results))
    assert table.markdown(results) == text
    lines = text.splitlines()
    (row,) = (line for line in lines if line.startswith("| `dvae-k1-5` |"))
    assert row == (
        "| `dvae-k1-5` | DVAE, K = 1, 5 % noise | 3 | 3,280 of 5,000 | 94.32 ± 0.12 | "
        "97.00 ± 1.53 | **96.00 ± 1.53** | 93.00 ± 1.53 | 92.00 ± 1.53 | 50 | "
        "guess: the figure's noise level, K and evaluation |"
    )
    (row,) = (line for line in lines if line.startswith("| `burda-k5` |"))
    assert "| 1 | 3,280 of 3,280 | 85.54 | 87.00 | 88.00 | 85.00 | **85.50** | 40 | known |" in row
    # own: −2.25, −1.25, 2.75 (mean −0.25); clean: one less; NLL: 0, 0, 3 less 0: 90 − 90, …
    (row,) = (line for line in lines if line.startswith("| `dvae-k1-5` − `vae-k1` |"))
    half = 4.302653 * math.sqrt(7 / 3)
    nll = 4.302653 * 1.0  # 0, 0, 3: mean 1, s² = 3, s/√3 = 1
    assert row == (
        f"| `dvae-k1-5` − `vae-k1` | 3 | −1.25 [−{1.25 + half:.2f}, {half - 1.25:.2f}] | "
        f"−2.25 [−{2.25 + half:.2f}, {half - 2.25:.2f}] | "
        f"−2.25 [−{2.25 + half:.2f}, {half - 2.25:.2f}] | 1.00 [−{nll - 1:.2f}, {1 + nll:.2f}] |"
    )
    assert "†" not in text
    assert "7 runs, 210 minutes of training (torch 2.13.0; no commit)" in text
    assert "5,000 importance samples on 10,000 test examples" in text
    order = [text.index(f"| `{name}` |") for name in ("vae-k1", "dvae-k1-5", "burda-k5")]
    assert order == sorted(order)


def test_the_table_says_where_seeds_are_few_and_numbers_are_none() -> None:
    results = [numbers("vae-k1", 0, None, 98.0, 90.0), numbers("dvae-k1-5", 0, 97.0, 96.0, 91.0),
               numbers("dvae-k1-10", 1, 97.0, 96.0, 91.0)]  # fmt: skip
    text = table.markdown(results)
    assert "| `dvae-k1-5` − `vae-k1` | 1† | not finite | −2.00 | −2.00 | 1.00 |" in text
    assert "| `dvae-k1-10` − `vae-k1` | 0† | – | – | – | – |" in text
    assert "† Fewer than 3 seeds" in text
    assert "| `vae-k1` | VAE, K = 1 | 1 | 3,280 of 5,000 | – | not finite | **98.00** |" in text


def test_the_table_says_what_is_unfinished_and_in_which_dtype() -> None:
    def low(row: str, seed: int, done: int, clean: float) -> dict[str, Any]:
        result = numbers(row, seed, 97.0, clean, 91.0)
        result["settings"] |= {"epochs": 5000, "dtype": "bfloat16"}
        return result | {"epochs_done": done}

    old = numbers("vae-k1", 0, 99.0, 98.0, 92.0)  # of a version that did not measure ten samples
    old["figures"].pop("ten")
    results = [low("vae-k1", 0, 5000, 95.0), low("vae-k1", 1, 1234, 97.0), old,
               low("dvae-k1-5", 0, 5000, 96.0), low("dvae-k1-10", 1, 777, 96.0)]  # fmt: skip
    text = table.markdown(results)
    first, second = (line for line in text.splitlines() if line.startswith("| `vae-k1` |"))
    assert "| 1 | 3,280 of 5,000 | – | 99.00 | **98.00** | – | 92.00 | 40 | known |" in first
    assert "| 2 | 1,234–5,000 of 5,000, unfinished, bfloat16 | – | 97.00 ± 0.00 |" in second
    assert "| 1 | 777 of 5,000, unfinished, bfloat16 |" in text
    assert "| 1 | 5,000 of 5,000, bfloat16 | 94.32 ± 0.12 |" in text
    # Paired with the runs of as many epochs in the same dtype.
    assert "| `dvae-k1-5` − `vae-k1` | 1† | 0.00 | 1.00 | 1.00 | 0.00 |" in text
    assert "| `dvae-k1-10` − `vae-k1` | 1†‡ | 0.00 | −1.00 | −1.00 | 0.00 |" in text
    assert "‡ Of runs that are not equally far" in text
    assert "5 runs, 2 of them unfinished: their best epoch so far, 150 minutes" in text
    assert "Where bfloat16 stands beside the epochs, matrix products in training" in text
    text = table.markdown([old])
    assert "bfloat16" not in text
    assert "unfinished" not in text


def test_numbers_that_do_not_belong_together_are_refused() -> None:
    a, b = numbers("vae-k1", 0, 1, 1, 1), numbers("vae-k1", 1, 1, 1, 1)
    b["settings"]["samples"] = 5
    with pytest.raises(
        ValueError, match="vae-k1 was run with different settings: samples is 1 with see"
    ):
        table.markdown([a, b])
    b = copy.deepcopy(a) | {"row": "gan-k1"}
    with pytest.raises(CheckpointError, match="the numbers of gan-k1, seed 0, are of no row known"):
        table.markdown([a, b])


def test_each_scale_has_its_place_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    (a, b), (c, d) = table.marks("small"), table.marks("full")
    path.write_text(f"before\n{a}\nold\n{b}\nbetween\n{c}\nold\n{d}\nafter\n")
    for _ in range(2):
        table.put_into(path, "new", "full")
        assert path.read_text() == (f"before\n{a}\nold\n{b}\nbetween\n{c}\n\nnew\n{d}\nafter\n")
    table.put_into(tmp_path / "other.md", "new", "small")
    assert (tmp_path / "other.md").read_text() == f"{a}\n\nnew\n{b}\n"
    with pytest.raises(
        CheckpointError, match=r"other\.md has no place for the table: no lines <!--"
    ):
        table.put_into(tmp_path / "other.md", "new", "full")
    assert (tmp_path / "other.md").read_text() == f"{a}\n\nnew\n{b}\n"
