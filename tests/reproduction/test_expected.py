"""`dvae-fast reproduce --check`: what is kept of rows, its intervals, and the exit code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import command_line
import numpy as np
import pytest

from dvae_fast.reproduction import expected
from dvae_fast.reproduction.rows import FIGURES, ROWS, SCALES
from dvae_fast.reproduction.runs import plan, run_one

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("scipy")


def test_an_interval_is_students_of_another_value() -> None:
    # 1, 2, 6: mean 3, s² = 7; t of 97.5 % with 2 degrees is 4.302653.
    low, high = expected.interval([1.0, 2.0, 6.0], 0.05)
    half = 4.302653 * math.sqrt(7 * (1 + 1 / 3))
    assert (low, high) == (pytest.approx(3 - half, rel=1e-6), pytest.approx(3 + half, rel=1e-6))


def test_false_alarms_are_as_many_as_is_said() -> None:
    """Of 4,000 runs 5 % are outside: ± 4.5 standard errors, missed by 7 in a million seeds."""
    draws = np.random.default_rng(5).normal(100, 3, (4000, 9))
    outside = sum(
        not low <= last <= high
        for *others, last in draws.tolist()
        for low, high in [expected.interval(others, 0.05)]
    )
    assert abs(outside - 200) <= 4.5 * math.sqrt(4000 * 0.05 * 0.95)


def test_what_is_kept_is_of_the_rows_as_they_are() -> None:
    rows = expected.expected_rows()
    assert list(rows) == list(SCALES["check"].rows)
    for name, row in rows.items():
        run = expected.run_of(name)
        assert run.config.seed == 0
        assert 0 not in row["seeds"]
        assert row["seeds"] == sorted(set(row["seeds"]))
        assert len(row["seeds"]) >= 10
        assert row["figures"].keys() == FIGURES.keys()
        for values in [*row["figures"].values(), row["training_seconds"]]:
            assert len(values) == len(row["seeds"])
        means = {figure: float(np.mean(values)) for figure, values in row["figures"].items()}
        held = expected.held(name, means)
        assert all(each.inside for each in held)
        assert max(each.high - each.low for each in held) < 12
        off = expected.held(name, {figure: mean + 10 for figure, mean in means.items()})
        assert not any(each.inside for each in off)


def test_a_figure_that_is_not_finite_is_outside() -> None:
    rows = expected.expected_rows()["vae-k1"]["figures"]
    figures = {name: values[0] for name, values in rows.items()}
    found = expected.held("vae-k1", figures | {"nll": None})
    assert [each.name for each in found if not each.inside] == ["nll"]
    # Together they are outside by no more than is said.
    low, high = expected.interval(rows["own"], expected.FALSE_ALARMS / 4)
    assert (found[0].low, found[0].high) == (low, high)


def result(seed: int, **figures: float) -> dict[str, Any]:
    """What `run_one` writes, as far as `kept` reads it."""
    return {
        "row": "vae-k1", "seed": seed, "commit": "abc", "training_seconds": 1.23456,
        "settings": {"epochs": 3, "seed": seed}, "versions": {"dvae_fast": "1", "torch": "2"},
        "figures": {name: 10.0 * seed + i for i, name in enumerate(FIGURES)} | figures,
    }  # fmt: skip


def test_every_seed_but_the_first_is_kept() -> None:
    found = expected.kept([result(2), result(0), result(1, nll=7.123456)])
    assert found == {
        "vae-k1": {
            "settings": {"epochs": 3}, "versions": {"dvae_fast": "1", "torch": "2"},
            "commit": "abc", "seeds": [1, 2], "training_seconds": [1.23, 1.23],
            "figures": {"own": [10.0, 20.0], "clean": [11.0, 21.0], "ten": [12.0, 22.0],
                        "nll": [7.1235, 23.0]},
        }
    }  # fmt: skip


@pytest.fixture
def frey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A row that is checked in a second, and what is kept of it: its own numbers, give or take."""
    pixels = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), np.uint8)
    np.savez(tmp_path / "frey_face.npz", images=pixels)
    monkeypatch.setenv("DVAE_FAST_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    sizes = {"hidden_sizes": (6, 5), "decoder_hidden_sizes": (4,), "latent_size": 3}
    training = sizes | {"epochs": 2, "train_examples": 250, "valid_examples": 30}
    scale = replace(SCALES["check"], k=5, examples=12, training=training)
    monkeypatch.setitem(SCALES, "check", scale)
    (run,) = plan([ROWS["frey-vae"]], scale)
    figures = run_one(run, tmp_path / "runs")["figures"]
    settings = {name: value for name, value in run.settings().items() if name != "seed"}
    around = {name: [value - 1, value, value + 1] for name, value in figures.items()}
    rows = {"frey-vae": {"settings": settings, "figures": around}}
    monkeypatch.setattr(expected, "expected_rows", lambda: rows)
    return rows["frey-vae"]


def test_a_run_that_is_as_it_should_be_ends_well(frey: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = command_line.run("reproduce", "--check", "frey-vae")
    assert done.exit_code == 0, done.output
    assert "frey-vae, in nats, lower is better" in done.output
    low, high = expected.interval(frey["figures"]["nll"], expected.FALSE_ALARMS / 4)
    assert f"{low:.2f}".replace("-", "−") in done.output
    assert f"{high:.2f}".replace("-", "−") in done.output
    assert "All are where they should be, as are those of 99% of seeds or more" in done.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_is_not_is_told_by_figure(frey: dict[str, Any]) -> None:
    frey["figures"]["own"] = [v + 9000 for v in frey["figures"]["own"]]
    frey["figures"]["nll"] = [v - 9000 for v in frey["figures"]["nll"]]
    done = command_line.run("reproduce", "--check", "frey-vae")
    assert done.exit_code == 1
    assert "dvae-fast: frey-vae is not what it should be: outside are own bound, NLL" in done.output


def test_other_rows_and_other_settings_are_refused(frey: dict[str, Any]) -> None:
    command_line.refused("check must be one of frey-vae; got 'vea'", "reproduce", "--check", "vea")
    for option, value in (
        ("rows", "vae-k1"), ("epochs", "3"), ("seeds", "2"), ("jobs", "2"), ("folder", "f"),
        ("scale", "full"), ("dtype", "bfloat16"),
    ):  # fmt: skip
        command_line.refused(
            f"{option} must be left out with --check, got {value}",
            "reproduce", "--check", "frey-vae", f"--{option}", value,
        )  # fmt: skip
    for option in ("list", "table", "so-far"):
        command_line.refused(
            f"{option} must be left out with --check, got True",
            "reproduce", "--check", "frey-vae", f"--{option}",
        )  # fmt: skip
    frey["settings"]["samples"] = 7
    command_line.refused(
        "frey-vae must be the row that numbers are kept of: its samples is 7, not 1",
        "reproduce", "--check", "frey-vae",
    )  # fmt: skip
