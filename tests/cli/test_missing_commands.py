"""`--missing nan`: what is trained on data of which some values are missing, and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ok, plain_terminal, run

from dvae_fast import estimate_log_likelihood
from dvae_fast.data import Dataset
from dvae_fast.models import load_model
from dvae_fast.training import default_config, load_config, mean_bound, train
from dvae_fast.training.config import OptionError
from dvae_fast.training.run import Run

N, D = 40, 3
RNG = np.random.default_rng(9)
SMALL = ["--latent-size", "2", "--hidden-sizes", "5", "--threads", "1", "--no-tensorboard",
         "--batch-size", "15", "--missing", "nan"]  # fmt: skip
TINY = [*SMALL, "--epochs", "2"]
CONFIG: dict[str, Any] = {
    "latent_size": 2, "hidden_sizes": (5,), "epochs": 2, "batch_size": 15, "threads": 1,
}  # fmt: skip
GONE = RNG.random((N, D)) < 0.25
TABLE = RNG.normal([0, 50, -3], [1, 10, 0.1], (N, D)).round(4)
HOLES = np.where(GONE, np.nan, TABLE)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")


def write_table(path: str, table: Any = HOLES) -> None:
    cells = [["" if np.isnan(v) else str(v) for v in row] for row in table.tolist()]
    Path(path).write_text("\n".join(["size,heat,ph", *map(",".join, cells)]))


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    return load_model(run_dir).state_dict()


def test_a_table_with_blanks() -> None:
    write_table("a.csv")
    refused = run("train", *TINY[:-4], "--epochs", "2", "--data", "a.csv")
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "got nan in row" in refused.output
    assert "--missing nan" in refused.output
    output = ok("train", *TINY, "--data", "a.csv", "--evaluate-k", "7", "--run-dir", "r")
    share = f"{100 * GONE.mean():.3g} % missing"
    assert f"a: 40 rows of 3 columns, real numbers, standardised, {share}; 32 for" in output
    for words in ("log p(x observed)", "bits per observed dimension", "% of the values"):
        assert words in output
    for name in ("samples", "reconstructions", "evaluation_worst"):
        assert (Path("r") / f"{name}.png").is_file()
    config, model = load_config("r"), load_model("r")
    assert config.missing == "nan"
    data = config.load_data()
    x = data.evaluation("test")[:]
    mask = ~x.isnan()
    assert 0 < int(mask.sum()) < mask.numel()
    # What every number is of: the observed alone.
    estimate = estimate_log_likelihood(model, x, 7, mask=mask, seed=0)
    report = json.loads(Path("r/evaluation.json").read_text())
    assert report["log_likelihood"] == pytest.approx(estimate.mean, rel=1e-5)
    assert report["missing"] == pytest.approx(1 - float(mask.double().mean()))
    bits = -estimate.mean / (int(mask.sum()) / len(x) * np.log(2))
    assert report["bits_per_dimension"] == pytest.approx(bits, rel=1e-5)
    volume = float((mask.double().numpy() * np.log(data.scaling.scale)).sum() / len(x))
    assert report["log_likelihood_in_units"] == pytest.approx(report["log_likelihood"] - volume)
    bounds = model.bound(x, 11, mask=mask)
    assert mean_bound(model, x, 11, 2, missing="nan") == pytest.approx(float(bounds.mean()), 1e-5)
    ok("sample", "r", "--n", "3", "--out", "x.csv", "--draw")
    assert len(Path("x.csv").read_text().split()) == 4
    ok("sample", "r", "--n", "9")
    ok("evaluate", "r", "--k", "3", "--method", "ais", "--temperatures", "4")
    # Other data: as the run's, or as is said.
    write_table("b.csv", HOLES[::-1])
    assert "% of the values" in ok("evaluate", "r", "--k", "3", "--data", "b.csv")
    write_table("c.csv", TABLE)
    ok("train", *TINY[:-4], "--epochs", "1", "--data", "c.csv", "--evaluate-k", "0",
       "--run-dir", "whole", "-q")  # fmt: skip
    assert "--missing nan" in run("evaluate", "whole", "--k", "3", "--data", "b.csv").output
    output = ok("evaluate", "whole", "--k", "3", "--data", "b.csv", "--missing", "nan")
    assert "% of the values" in output


def test_a_run_goes_on_bit_for_bit() -> None:
    write_table("a.csv")
    made = ("--data", "a.csv", "--evaluate-k", "0", "-q")
    ok("train", *TINY, *made, "--run-dir", "whole")
    ok("train", *SMALL, "--epochs", "1", *made, "--run-dir", "r")
    ok("train", "--resume", "--run-dir", "r", "--epochs", "2", "--evaluate-k", "0", "-q")
    one, other = weights("whole"), weights("r")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("binarise", ["none", "dynamic"])
def test_images_with_holes_streamed_or_not(binarise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = RNG.random((N, 3, 4)).astype(np.float32)
    images[RNG.random(images.shape) < 0.5] = np.nan
    np.save("a.npy", images)
    made = ("--data", "a.npy", "--binarise", binarise, "--evaluate-k", "3")
    ok("train", *TINY, *made, "--run-dir", "kept", "-q")
    assert (Path("kept") / "reconstructions.png").is_file()
    monkeypatch.setattr("dvae_fast.data.own.MOST_KEPT", 0)
    monkeypatch.setattr("dvae_fast.data.paths._last", {})
    assert "missing, streamed; 32" in ok("train", *TINY, *made, "--run-dir", "streamed")
    one, other = weights("kept"), weights("streamed")
    assert all(torch.equal(one[name], other[name]) for name in one)
    kept, streamed = (
        json.loads(Path(run_dir, "evaluation.json").read_text())["log_likelihood"]
        for run_dir in ("kept", "streamed")
    )
    assert kept == streamed


def test_a_step_is_of_the_masked_loss() -> None:
    """And not of what stands in the place of what is missing."""
    data = Dataset.from_arrays(HOLES, missing="nan")
    config = default_config("diwae", data, **CONFIG)
    assert config.missing == "nan"
    step = Run(config, Path("r"), data)
    twin = Run(config, Path("q"), data)
    step.start_epoch()
    twin.start_epoch()
    step.step()
    x = twin.data.train_batch(twin.permutation[:15], twin.generator)
    seed = torch.randint(0, 2**63 - 1, (1,), generator=twin.generator)
    mask = ~x.isnan()
    assert not bool(mask.all())
    loss = twin.model.loss(x.nan_to_num(9.0), seed, mask=mask)
    assert float(step.total) == pytest.approx(-15 * loss.item(), rel=1e-6)
    loss.backward()
    twin.optimizer.step()
    for one, other in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("table", [TABLE, (TABLE.mean(0) < TABLE).astype(float)])
def test_without_holes_it_is_as_without_the_option(table: Any) -> None:
    runs = []
    for i, missing in enumerate((None, "nan")):
        data = Dataset.from_arrays(table, missing=missing)
        config = default_config("diwae", data, **CONFIG)
        metrics = train(config, f"r{i}", data=data, tensorboard=False)
        runs.append((metrics["test_bound"], weights(f"r{i}")))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


def test_arrays_in_python() -> None:
    config = default_config("vae", HOLES, missing="nan", **CONFIG)
    assert train(config, "r", data=HOLES)["status"] == "finished"
    whole = Dataset.from_arrays(HOLES, missing="nan")
    plain = default_config("vae", TABLE, **CONFIG)
    with pytest.raises(OptionError, match="made for, with missing None; got nan"):
        train(plain, "q", data=whole, tensorboard=False)
    with pytest.raises(ValueError, match="missing must be left out with a data set"):
        default_config("vae", whole, missing="nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a.csv", "--missing", "NaN"], "missing must be one of nan; got 'NaN'"),
        (["--data", "digits", "--missing", "nan"], "missing must be left out for digits"),
        (["--data", "a.csv", "--missing", "nan", "--values", "counts"], "counts must be whole"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str) -> None:
    write_table("a.csv")
    result = run("train", *arguments)
    assert result.exit_code in (1, 2)
    assert result.output.count("\n") == 1
    assert message in result.output
    alone = run("evaluate", "nowhere", "--missing", "nan")
    assert "missing must come with data" in alone.output


def test_a_rate_learnt_by_scores_takes_no_holes() -> None:
    np.save("a.npy", np.where(GONE, np.nan, TABLE.mean(0) < TABLE))
    result = run("train", *TINY, "--data", "a.npy", "--gradient", "score", "--copies", "2")
    assert result.exit_code == 2
    assert "gradient must not be score where values may be missing" in result.output
