"""Training a conditional model on the labels of a data set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import undrawn
from typer.testing import CliRunner

from dvae_fast import cli
from dvae_fast.models import load_model
from dvae_fast.training import TrainConfig, default_config, train
from dvae_fast.training.run import Run, mean_bound

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {
    "context": "labels", "hidden_sizes": (6,), "latent_size": 2, "epochs": 2, "batch_size": 300,
}  # fmt: skip


def test_the_labels_go_with_their_examples(tmp_path: Path) -> None:
    """The loss of a step is that of its batch and its labels, and so is each bound."""
    config = default_config("diwae", "digits", **SMALL)
    data: Any = config.load_data()
    run = Run(config, tmp_path, data)
    assert run.model.context_size == 10
    seen: list[Any] = []
    original = run.model.loss
    run.model.loss = lambda x, seed, **told: (  # type: ignore[method-assign]
        seen.append((x, told["context"])), original(x, seed, **told)
    )[1]  # fmt: skip
    run.start_epoch()
    while not run.epoch_done():
        run.step()
    numbers = torch.nn.functional.one_hot(data.labels["train"], 10).float()
    assert torch.equal(torch.cat([y for _, y in seen]), numbers[run.permutation])
    x, labels = data.evaluation("valid"), data.labels["valid"]
    expected = mean_bound(run.model, x, run.valid_seed, 300, context=labels)
    assert run.bound("valid", run.valid_seed) == expected
    other = mean_bound(run.model, x, run.valid_seed, 300, context=(labels + 1) % 10)
    assert other != expected


def test_stopped_and_resumed(tmp_path: Path) -> None:
    whole = train(default_config("vae", "digits", **SMALL), tmp_path / "a", tensorboard=False)
    options = {**SMALL, "epochs": 1}
    train(default_config("vae", "digits", **options), tmp_path / "b", tensorboard=False)
    again = train(
        default_config("vae", "digits", **SMALL), tmp_path / "b", resume=True, tensorboard=False
    )
    assert again["test_bound"] == whole["test_bound"]
    assert whole["config"]["context"] == "labels"
    assert load_model(tmp_path / "a").context_size == 10


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)

    def run(*arguments: Any, code: int = 0) -> str:
        result = CliRunner().invoke(cli.app, list(map(str, arguments)))
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    folder = tmp_path / "run"
    said = run(
        "train", "--context", "labels", "--epochs", 1, "--hidden-sizes", 6, "--latent-size", 2,
        "--evaluate-k", 20, "--run-dir", folder, "--no-tensorboard",
    )  # fmt: skip
    assert "given labels" in said
    for name in ("samples.png", "reconstructions.png", "evaluation_worst.png"):
        assert (folder / name).is_file()
    run("evaluate", folder, "--k", 20, "--limit", 30)
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["examples"] == 30
    run("evaluate", folder, "--method", "ais", "--k", 2, "--limit", 5, "--temperatures", 3)
    arrays = []
    for label in (None, 0, 9):
        out = tmp_path / "images.npz"
        more = [] if label is None else ["--label", label]
        run("sample", folder, "-n", 20, "--out", out, *more)
        arrays.append(np.load(out)["images"])
    np.testing.assert_array_equal(arrays[0][:2], arrays[1][:2])  # 0, 0, 1, 1, …
    np.testing.assert_array_equal(arrays[0][18:], arrays[2][18:])
    assert "label must be from 0 to 9" in run("sample", folder, "--label", 10, code=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "label"}, "context must be one of labels; got 'label'"),
        ({"context": None, "context_size": 3}, "context_size must come with a context, labels"),
    ],
)
def test_a_configuration_that_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_config("diwae", "digits", **SMALL | options)


def test_labels_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = TrainConfig.load_data

    def with_labels(change: Any) -> None:
        def changed(self: TrainConfig) -> Any:
            data: Any = load(self)
            object.__setattr__(data, "labels", change(data.labels))
            return data

        monkeypatch.setattr(TrainConfig, "load_data", changed)

    cases: list[tuple[Any, dict[str, Any], str]] = [
        (lambda labels: None, {}, "context must be left out: digits has no labels"),
        (lambda labels: labels, {"context_size": 2}, "context_size must be >= 10, the classes of"),
        (lambda labels: {**labels, "valid": labels["valid"][1:]}, {}, "got 199 labels"),
        (lambda labels: {k: v - 1 for k, v in labels.items()}, {}, "labels 0, 1, … .*, got -1"),
    ]
    for i, (change, options, message) in enumerate(cases):
        with_labels(change)
        with pytest.raises(ValueError, match=message):
            train(default_config("diwae", "digits", **SMALL | options), tmp_path / str(i))
