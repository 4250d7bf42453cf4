"""The command line: what it leaves, what it prints, and what it says to a wrong option."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import no_pictures, ok, plain_terminal, refused, run, trained_run
from forks import Program

from dvae_fast import cli
from dvae_fast.corruptions import rates_from_mean
from dvae_fast.evaluation import annealed_importance_sampling, estimate_log_likelihood
from dvae_fast.evaluation.engine import Evaluation
from dvae_fast.evaluation.partial import PARTIAL
from dvae_fast.files import CHECKPOINT, load_tensors, save_tensors
from dvae_fast.models import load_model
from dvae_fast.models.saving import MODEL
from dvae_fast.training import default_config, load_config, load_run

if TYPE_CHECKING:
    from torch import Tensor

TINY = ["--latent-size", "4", "--hidden-sizes", "9,7", "-M", "2", "-K", "3", "--batch-size", "237",
        "--threads", "1"]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVAE_FAST_DATA", raising=False)
    plain_terminal(monkeypatch)
    if "pictures" not in request.fixturenames:
        no_pictures(monkeypatch)


@pytest.fixture
def pictures() -> None:
    """For those who ask for it they are made; "drawn" makes them of pixels."""


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory, *TINY, "--epochs", "2", "--evaluate-k", "17", "--quiet")


# --- train ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures", "drawn")
def test_train_leaves_a_complete_run(tmp_path: Path) -> None:
    output = ok("train", *TINY, "--epochs", "3", "--evaluate-k", "20", "--corruption", "masking",
                "--level", "0.25")  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("diwae-digits-20")
    for name in ("learning_curve.png", "samples.png", "reconstructions.png"):
        assert is_png(folder / name)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert metrics["evaluation"] == json.loads((folder / "evaluation.json").read_text())
    assert metrics["evaluation"]["k"] == 20
    assert len(metrics["history"]) == 3
    assert list(folder.glob("events.out.tfevents*"))
    c = load_config(folder)
    assert (c.corruption, c.level, c.copies, c.samples, c.latent_size, c.hidden_sizes) == (
        "masking", 0.25, 2, 3, 4, (9, 7),
    )  # fmt: skip
    assert load_model(folder).config()["corruption"] == {"name": "masking", "level": 0.25}
    assert "epoch 1/3" in output
    assert "epoch 3/3" in output
    assert f"runs/{folder.name}" in output
    for value in (metrics["best"]["valid_bound"], metrics["test_bound"]):
        assert f"−{abs(value):.2f} nats" in output
    assert "log p(x)" in output


def test_the_encoder_is_an_option() -> None:
    output = ok("train", *TINY, "--epochs", "1", "--evaluate-k", "5", "--encoder", "gru",
                "--covariance", "full", "--no-tensorboard", "--run-dir", "r")  # fmt: skip
    assert "gru encoder, full covariance" in output
    config = load_model("r").config()
    assert (config["encoder"], config["image_shape"]) == ("gru", [8, 8])
    assert config["covariance"] == "full"
    wrong = run("train", "--encoder", "rnn")
    assert wrong.exit_code == 2
    assert "encoder must be one of mlp, gru, gru_2d, conv, mlp_log1p; got 'rnn'" in wrong.output


def test_the_decoder_and_the_data_may_be_smaller() -> None:
    ok("train", *TINY, "--epochs", "1", "--evaluate-k", "5", "--no-tensorboard", "--run-dir", "r",
       "--decoder-hidden-sizes", "5", "--train-examples", "300", "--valid-examples", "50",
       "-q")  # fmt: skip
    assert load_model("r").config()["decoder_hidden_sizes"] == [5]
    config = load_config("r")
    assert (config.train_examples, config.valid_examples) == (300, 50)
    ok("train", "--resume", "--run-dir", "r", "--epochs", "2", "--evaluate-k", "0", "-q")
    assert load_config("r").decoder_hidden_sizes == (5,)


def test_rates_may_follow_the_mean_image() -> None:
    output = ok("train", *TINY, "--epochs", "1", "--evaluate-k", "5", "--per-pixel",
                "--level", "0.125", "--no-tensorboard", "--run-dir", "r")  # fmt: skip
    assert "salt_and_pepper 0.125 by pixel" in output
    config = load_config("r")
    assert config.per_pixel
    rates = load_model("r").config()["corruption"]["level"]
    assert torch.equal(torch.tensor(rates), rates_from_mean(config.load_data().mean, 0.125))
    ok("train", "--resume", "--run-dir", "r", "--epochs", "2", "--evaluate-k", "0", "-q")
    wrong = run("train", "--corruption", "gaussian", "--per-pixel")
    assert wrong.exit_code == 2
    assert "per_pixel must be off unless the corruption has a rate; corruption is gaussian" in (
        " ".join(wrong.output.split())
    )


def test_the_level_may_be_learnt() -> None:
    output = ok("train", *TINY, "--epochs", "1", "--evaluate-k", "5", "--gradient", "score",
                "--no-tensorboard", "--run-dir", "r")  # fmt: skip
    assert "salt_and_pepper 0.05, learnt" in output
    level = json.loads(Path("r/metrics.json").read_text())["learnt_level"]
    assert level != pytest.approx(0.05, abs=1e-6)
    assert f"{level:.4g}, from 0.05" in output
    state = load_model("r").state_dict()
    assert float(state["corruption.unconstrained"].sigmoid()) == pytest.approx(level)
    ok("train", "--resume", "--run-dir", "r", "--epochs", "2", "--evaluate-k", "0", "-q")
    wrong = run("train", "--gradient", "score", "-M", "1")
    assert wrong.exit_code == 2
    assert "gradient does not fit salt_and_pepper 0.05: copies must be >= 2" in wrong.output


@pytest.mark.usefixtures("pictures")
def test_quiet_prints_nothing(tmp_path: Path) -> None:
    output = ok("train", *TINY, "--epochs", "1", "--evaluate-k", "0", "-q", "--no-tensorboard",
                "--run-dir", "r")  # fmt: skip
    assert output == ""
    assert sorted(os.listdir("r")) == [
        CHECKPOINT, "config.json", "learning_curve.png", "metrics.json", MODEL,
        "reconstructions.png", "samples.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "model, options",
    [
        ("vae", {"corruption": "identity", "copies": 1, "samples": 1}),
        ("iwae", {"corruption": "identity", "copies": 1, "samples": 5}),
        ("dvae", {"corruption": "salt_and_pepper", "level": 0.05, "copies": 1, "samples": 1}),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_each_model_has_its_defaults(model: str, options: dict[str, Any]) -> None:
    ok("train", "--model", model, "--latent-size", "3", "--hidden-sizes", "5", "--epochs", "1",
       "-q", "--evaluate-k", "0", "--run-dir", "r", "--batch-size", "500",
       "--threads", "1")  # fmt: skip
    config = load_config("r").to_dict()
    assert {name: config[name] for name in options} == options
    assert is_png(Path("r/reconstructions.png"))


@pytest.mark.usefixtures("pictures")
def test_two_latents_are_pictured_as_a_plane() -> None:
    ok("train", "--model", "vae", "--latent-size", "2", "--hidden-sizes", "5", "--epochs", "1",
       "-q", "--evaluate-k", "0", "--run-dir", "r", "--batch-size", "500",
       "--threads", "1")  # fmt: skip
    assert is_png(Path("r/manifold.png"))


def test_an_objective_is_one_option_away() -> None:
    output = ok("train", *TINY, "--epochs", "1", "--evaluate-k", "0", "--run-dir", "r",
                "--objective", "ciwae", "--beta", "0.2", "--estimator", "dreg",
                "--kl-warmup", "3")  # fmt: skip
    assert "objective ciwae (estimator dreg, beta 0.2)" in output
    config = load_config("r")
    assert (config.objective, config.beta, config.kl_warmup) == ("ciwae", 0.2, 3)
    assert load_model("r").objective == config.make_objective()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--model", "gan"],
            "model must be one of bernoulli, vae, iwae, dvae, diwae, two_layer; got 'gan'",
        ),
        (["--data", "cifar"], "data must be one of digits, mnist, frey, omniglot, fashion_mnist,"),
        (["--binarise", "x"], "binarise must be one of dynamic, once, fixed, none; got 'x'"),
        (["--binarise", "fixed"], "dynamic, once, none for digits (fixed exists for mnist alone)"),
        (["--corruption", "x"], "corruption must be one of identity, masking, salt_and_pepper"),
        (["--level", "2"], "level does not fit salt_and_pepper: rate must be in [0, 1], got 2"),
        (["--model", "vae", "--corruption", "masking"], "corruption must be identity for vae"),
        (["-K", "0"], "samples must be >= 1, got 0"),
        (["--objective", "x"], "objective must be one of elbo, elbo_kl, iwae"),
        (["--estimator", "x"], "estimator must be one of standard, stl, dreg, vimco; got 'x'"),
        (["--objective", "vr_max", "--estimator", "dreg"], "one of standard, stl for vr_max"),
        (["--beta", "0.5"], "beta must be None unless the objective is ciwae; got 0.5 for iwae"),
        (["--objective", "vr", "--alpha", "nan"], "alpha must be a number, finite; got nan"),
        (["--kl-warmup", "-1"], "kl_warmup must be an integer >= 0, got -1"),
        (["--free-bits", "0.1"], "free_bits must be 0 unless the objective is elbo_kl"),
        (
            ["--hidden-sizes", "a,b"],
            "--hidden-sizes must be sizes separated by commas, such as 200,200",
        ),
        (
            ["--decoder-hidden-sizes", "a"],
            "--decoder-hidden-sizes must be sizes separated by commas",
        ),
        (["--activation", "x"], "activation must be one of softplus, tanh"),
        (
            ["--likelihood", "x"],
            "bernoulli_probabilities, gaussian_real; got 'x'",
        ),
        (
            ["--likelihood", "negative_binomial"],
            "likelihood must not be negative_binomial for digits: it is of counts",
        ),
        (
            ["--likelihood", "discretised_logistic", "--binarise", "none"],
            "its values are one of 256 grey levels, and the data are grey values in [0, 1]; take",
        ),
        (["--lr-schedule", "x"], "lr_schedule must be one of constant, stepwise, stepwise_rounded"),
        (["--learning-rate", "-1"], "learning_rate must be a finite number > 0, got -1.0"),
        (["--evaluate-k", "-1"], "evaluate-k must be >= 0, got -1"),
        (["--evaluate-k", f"{2**63}"], "evaluate-k must be <= 4,294,967,296, got 92233720368"),
        (["--model", "vae", "--level", "0.3"], "level must be 0 without a corruption, got 0.3"),
        (["--level", "nan"], "level must be finite, got nan"),
        (["--device", "gpu"], "device must be cpu, cuda or cuda:N, got 'gpu'"),
        (["--device", "cuda:99"], "device must be one that torch sees"),
        (["--cuda-graph"], "cuda_graph must be off unless device is cuda; device is cpu"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    refused(message, "train", *arguments)
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_or_a_wrong_type_exits_with_2() -> None:
    for arguments in (["--colour"], ["--epochs", "many"]):
        result = run("train", *arguments)
        assert result.exit_code == 2
        assert "Error" in result.output


def test_help_names_every_choice() -> None:
    text = " ".join(ok("train", "--help").replace("│", " ").split())
    for names in ("vae, iwae, dvae, diwae", "digits, mnist, frey", "constant, stepwise",
                  "dynamic, once, fixed, none",
                  "bernoulli, gaussian, discretised_logistic, negative_binomial"):  # fmt: skip
        assert names in text
    assert "--copies" in text
    assert "--samples" in text


def test_absent_data_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVAE_FAST_DATA", str(tmp_path))
    result = run("train", "--data", "frey", "-q")
    assert result.exit_code == 1
    assert result.output.startswith(f"dvae-fast: frey_face.npz was not found: {tmp_path} does not")
    assert result.output.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    Path("file").write_text("in the way")
    result = run("train", *TINY, "-q", "--run-dir", "file/run")
    assert result.exit_code == 1
    assert result.output.startswith("dvae-fast: cannot write file/run/config.json: ")
    assert result.output.count("\n") == 1


def test_a_run_is_never_overwritten(run_dir: Path) -> None:
    before = (run_dir / MODEL).read_bytes()
    result = run("train", *TINY, "--run-dir", run_dir, "-q")
    assert result.exit_code == 2
    assert "run_dir must not hold a run already, unless it is resumed" in result.output
    assert (run_dir / MODEL).read_bytes() == before


def test_a_bound_that_is_not_finite_is_one_line() -> None:
    result = run("train", *TINY, "--learning-rate", "1e30", "-q", "--run-dir", "r")
    assert result.exit_code == 1
    assert "became" in result.output
    assert "Start another run with a smaller learning rate than 1e+30" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.usefixtures("pictures")
def test_no_matplotlib_means_no_pictures_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    output = ok("train", *TINY, "--epochs", "1", "--evaluate-k", "0", "--run-dir", "r")
    assert "No pictures: drawing needs the package matplotlib, which is not installed: " in output
    assert "pip install 'dvae_fast[train]'" in output
    assert not list(Path("r").glob("*.png"))
    result = run("sample", "r")
    assert result.exit_code == 1
    assert "the package matplotlib" in result.output


# --- resume -----------------------------------------------------------------------------------


def test_two_runs_of_the_same_second_have_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(cli.train.datetime):  # type: ignore[name-defined, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(cli.train, "datetime", Stopped)
    config = default_config()
    folders = [cli.train._new_run_dir(config) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() for folder in folders)


def test_ctrl_c_at_the_end_does_not_start_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cli.train.train

    def train(config: Any, folder: Path, **options: Any) -> Any:
        def on_epoch(record: dict[str, float]) -> None:
            if record["epoch"] == config.epochs:
                raise KeyboardInterrupt

        return real(config, folder, **options | {"on_epoch": on_epoch})

    monkeypatch.setattr(cli.train, "train", train)
    result = run("train", *TINY, "--epochs", "2", "--run-dir", "it")
    assert result.exit_code == 130
    assert (
        "trained, then interrupted; to evaluate the model: dvae-fast evaluate it" in result.output
    )
    assert "evaluation" not in json.loads((tmp_path / "it" / "metrics.json").read_text())


def test_a_run_of_a_gpu_is_read_and_resumed_without_one() -> None:
    ok("train", *TINY, "--epochs", "1", "--run-dir", "it", "--evaluate-k", "0", "-q")
    for path in (Path("it/config.json"), Path("it/checkpoint.safetensors")):
        data = path.read_bytes()
        if path.suffix == ".json":
            config = json.loads(data) | {"device": "cuda:7", "cuda_graph": True}
            path.write_text(json.dumps(config))
        else:
            tensors, header = load_tensors(path)
            header["config"] |= {"device": "cuda:7", "cuda_graph": True}
            save_tensors(path, tensors, header)
    ok("evaluate", "it", "--k", "5", "--limit", "3")
    result = run("train", "--resume", "--run-dir", "it", "--epochs", "2", "--evaluate-k", "0")
    assert result.exit_code == 2
    assert "device must be one that torch sees" in result.output
    ok("train", "--resume", "--run-dir", "it", "--epochs", "2", "--evaluate-k", "0",
       "--device", "cpu")  # fmt: skip
    assert load_config("it").device == "cpu"


def test_resume_takes_the_options_of_the_run() -> None:
    options = ["-q", "--evaluate-k", "0", "--no-tensorboard"]
    ok("train", *TINY, *options, "--epochs", "1", "--run-dir", "r")
    ok("train", "--resume", "--run-dir", "r", "--epochs", "2", *options)
    assert load_config("r").samples == 3
    assert len(json.loads(Path("r/metrics.json").read_text())["history"]) == 2
    ok("train", "--resume", "--run-dir", "r", *TINY, *options)  # the same options are no change
    result = run("train", "--resume", "--run-dir", "r", "-K", "4", *options)
    assert result.exit_code == 2
    assert "samples must be as in the run to resume, 3; got 4" in result.output


def test_resume_finds_the_latest_run() -> None:
    result = run("train", "--resume")
    assert result.exit_code == 1
    assert "no run to resume" in result.output
    assert "--run-dir" in result.output
    options = ["-q", "--evaluate-k", "0", "--no-tensorboard"]
    ok("train", *TINY, *options, "--epochs", "1", "--run-dir", "runs/newer")
    ok("train", *TINY, *options, "--epochs", "1", "--run-dir", "runs/older")
    os.utime(f"runs/older/{CHECKPOINT}", (1, 1))
    ok("train", "--resume", "--epochs", "2", *options)
    assert load_config("runs/newer").epochs == 2
    assert load_config("runs/older").epochs == 1


# --- evaluate ---------------------------------------------------------------------------------


def test_evaluate_reports_what_the_estimator_says(run_dir: Path) -> None:
    output = ok("evaluate", run_dir, "--k", "13", "--split", "valid", "--limit", "31", "--seed",
                "5", "--batch-size", "7", "--chunk", "4", "--threads", "1")  # fmt: skip
    report = json.loads((run_dir / "evaluation.json").read_text())
    x = load_config(run_dir).load_data().evaluation("valid")[:31]
    expected = estimate_log_likelihood(load_model(run_dir), x, 13, seed=5)
    assert report["log_likelihood"] == pytest.approx(expected.mean, rel=1e-6)
    assert report["standard_error"] == pytest.approx(expected.mean_standard_error, rel=1e-3)
    assert report["ess_mean"] == pytest.approx(expected.ess.mean().item(), rel=1e-3)
    assert report["bits_per_dimension"] == pytest.approx(
        -expected.mean / 64 / math.log(2), rel=1e-6
    )
    assert (report["split"], report["k"], report["examples"]) == ("valid", 13, 31)
    assert report["non_finite"] == 0
    assert f"−{-expected.mean:.2f} ± {expected.mean_standard_error:.3f} nats" in output
    assert "k = 13, 31 examples" in output
    assert "bits per dimension" in output
    assert "effective samples" in output


def test_evaluate_keeps_each_example(run_dir: Path) -> None:
    ok("evaluate", run_dir, "--k", "40", "--limit", "5")
    report = json.loads((run_dir / "evaluation.json").read_text())
    with np.load(run_dir / "evaluation.npz", allow_pickle=False) as arrays:
        assert arrays["log_likelihood"].shape == (5,)
        assert float(arrays["log_likelihood"].mean()) == pytest.approx(report["log_likelihood"])
        assert arrays["curve_k"].tolist() == [1, 5, 40]
        assert arrays["curve"].shape == (5, 3)
        assert arrays["spent"].tolist() == [40] * 5


def test_evaluate_stops_when_sure(run_dir: Path) -> None:
    output = ok("evaluate", run_dir, "--k", "10", "--limit", "5", "--tolerance", "1e-9",
                "--max-k", "33")  # fmt: skip
    report = json.loads((run_dir / "evaluation.json").read_text())
    assert report["samples"] == 5 * 33
    assert "(k = 33 on average, 5 examples)" in output
    assert "Pareto" in output


@pytest.mark.parametrize("proposal", ["corrupted", "mixture"])
def test_evaluate_with_another_proposal(proposal: str, run_dir: Path) -> None:
    copies = ["--copies", "3"] * (proposal == "mixture")
    ok("evaluate", run_dir, "--k", "30", "--limit", "5", "--proposal", proposal, *copies)
    report = json.loads((run_dir / "evaluation.json").read_text())
    x = load_config(run_dir).load_data().evaluation("test")[:5]
    expected = estimate_log_likelihood(
        load_model(run_dir), x, 30, seed=0, proposal=proposal, copies=3
    )
    assert report["proposal"] == proposal
    assert report["log_likelihood"] == pytest.approx(expected.mean, rel=1e-6)


def test_evaluate_annealed(run_dir: Path) -> None:
    output = ok("evaluate", run_dir, "--method", "ais", "--k", "3", "--limit", "4",
                "--temperatures", "5", "--leapfrog", "2")  # fmt: skip
    report = json.loads((run_dir / "evaluation.json").read_text())
    assert (report["method"], report["chains"], report["temperatures"]) == ("ais", 3, 5)
    assert "(3 chains, 5 temperatures, 4 examples)" in output
    assert "acceptance" in output
    with np.load(run_dir / "evaluation.npz", allow_pickle=False) as arrays:
        assert arrays["acceptance"].shape == (4,)
    x = load_config(run_dir).load_data().evaluation("test")[:4]
    expected = annealed_importance_sampling(
        load_model(run_dir), x, chains=3, temperatures=5, leapfrog=2, seed=0
    )
    assert report["log_likelihood"] == pytest.approx(expected.mean, rel=1e-5)


@pytest.mark.usefixtures("pictures", "drawn")
def test_evaluate_draws_pictures(run_dir: Path) -> None:
    ok("evaluate", run_dir, "--k", "30", "--limit", "12")
    for name in ("bounds", "ess", "worst"):
        picture = run_dir / f"evaluation_{name}.png"
        assert is_png(picture)
        assert picture.stat().st_size > 1000  # more than an empty one


def test_evaluate_goes_on_where_it_was_interrupted(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("evaluate", run_dir, "--k", "7", "--limit", "20", "--batch-size", "4")
    original = Evaluation.batch
    evaluated: list[int] = []

    def batch(self: Any, x: Tensor, first: int) -> Any:
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(first)
        return original(self, x, first)

    monkeypatch.setattr(Evaluation, "batch", batch)
    result = run(*options)
    assert result.exit_code == 130
    assert "interrupted; what is done is kept, go on with --resume" in result.output
    assert (run_dir / PARTIAL).exists()
    # With other options it is another evaluation; without --resume, a new one.
    wrong = run(*options, "--resume", "--seed", "3")
    assert wrong.exit_code == 2
    assert "the seed of" in wrong.output
    evaluated.clear()
    monkeypatch.setattr(
        Evaluation, "batch",
        lambda self, x, first: (evaluated.append(first), original(self, x, first))[1],
    )  # fmt: skip
    ok(*options, "--resume")
    assert evaluated == [8, 12, 16]
    resumed = json.loads((run_dir / "evaluation.json").read_text())
    assert not (run_dir / PARTIAL).exists()
    evaluated.clear()
    ok(*options)
    assert evaluated == [0, 4, 8, 12, 16]
    whole = json.loads((run_dir / "evaluation.json").read_text())
    whole["seconds"] = resumed["seconds"]
    assert resumed == whole


def test_evaluate_needs_nothing_but_the_folder(run_dir: Path) -> None:
    """No checkpoint, no metrics; the model and its configuration are enough."""
    folder = Path("copy")
    folder.mkdir()
    for name in (MODEL, "config.json"):
        (folder / name).write_bytes((run_dir / name).read_bytes())
    assert ok("evaluate", folder, "--k", "3", "--limit", "5", "-q") == ""
    assert json.loads((folder / "evaluation.json").read_text())["examples"] == 5


def test_evaluate_counts_what_is_not_finite(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, saved = load_run(run_dir)
    with torch.no_grad():
        saved.model.decoder.output.bias[0] = math.nan
    monkeypatch.setattr(cli.evaluate, "load_run", lambda _: (config, saved))
    output = ok("evaluate", run_dir, "--k", "3", "--limit", "5")
    report = json.loads((run_dir / "evaluation.json").read_text())
    assert report["non_finite"] == 5
    assert report["log_likelihood"] is None
    assert "not finite ± not finite" in output
    assert "5 of 5 examples" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--split", "dev"], "split must be one of train, valid, test; got 'dev'"),
        (["--k", "0"], "k must be >= 1, got 0"),
        (["--limit", "0"], "limit must be >= 1, got 0"),
        (["--batch-size", "0"], "batch-size must be >= 1, got 0"),
        (["--chunk", "0"], "chunk must be >= 1, got 0"),
        (["--threads", "0"], "threads must be >= 1, got 0"),
        (["--max-k", "9"], "max-k must come with a tolerance"),
        (["--tolerance", "0"], "tolerance must be > 0 and finite, got 0.0"),
        (["--tolerance", "1", "--max-k", "9"], "max-k must be >= k = 5000, got 9"),
        (["--seed", "-1"], f"seed must be from 0 to {2**63 - 1}, got -1"),
        (["--method", "mcmc"], "method must be one of importance, ais; got 'mcmc'"),
        (["--proposal", "q"], "proposal must be one of posterior, corrupted, mixture; got 'q'"),
        (
            ["--method", "aiss"],
            "method must be one of ais, importance; got 'aiss'; did you mean 'ais'?",
        ),
        (["--dtype", "int8"], "dtype must be one of float32, bfloat16, float16; got 'int8'"),
        (["--copies", "3"], "copies must come with the proposal mixture"),
        (["--copies", "0"], "copies must be >= 1, got 0"),
        (["--temperatures", "0"], "temperatures must be >= 1, got 0"),
        (["--temperatures", "3"], "temperatures must be left out with method importance"),
        (
            ["--method", "ais", "--max-k", "9000", "--tolerance", "1"],
            "tolerance must be left out with method ais",
        ),
        (["--method", "ais", "--resume"], "resume must be left out with method ais"),
        (["--seed", str(2**63)], f"seed must be from 0 to {2**63 - 1}, got {2**63}"),
    ],
)
def test_wrong_options_of_evaluate(arguments: list[str], message: str, run_dir: Path) -> None:
    result = run("evaluate", run_dir, *arguments)
    assert result.exit_code == 2
    assert result.output == f"dvae-fast: {message}\n"


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_a_folder_that_is_no_run_is_one_line(command: str) -> None:
    result = run(command, "nowhere")
    assert result.exit_code == 1
    assert result.output == (
        "dvae-fast: nowhere is not the folder of a run: it holds no config.json\n"
    )


# --- sample -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures", "drawn")
def test_sample_writes_a_png(run_dir: Path) -> None:
    assert ok("sample", run_dir, "--n", "7", "--out", "a.png").strip() == "a.png"
    ok("sample", run_dir, "--n", "7", "--out", "b.png")
    ok("sample", run_dir, "--n", "7", "--seed", "1", "--out", "c.png")
    ok("sample", run_dir, "--n", "7", "--draw", "--out", "d.png")
    pictures = [Path(f"{name}.png").read_bytes() for name in "abcd"]
    assert is_png(Path("a.png"))
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3
    result = run("sample", run_dir, "--n", "0")
    assert result.exit_code == 2
    assert "n must be >= 1, got 0" in result.output


# --- info -------------------------------------------------------------------------------------


def test_info_prints_a_table_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"dvae_fast": "1.2.3", "compiled": False, "isas": ["base", "avx2"], "cuda": None,
            "missing": ["No compiled kernels: build them with [make].", "No pooch."]}  # fmt: skip
    fake = types.ModuleType("dvae_fast._build")
    fake.build_info = lambda: info  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dvae_fast._build", fake)
    lines = ok("info").splitlines()
    words = [line.split() for line in lines]
    assert ["dvae_fast", "1.2.3"] in words
    assert ["compiled", "no"] in words
    assert ["isas", "base,", "avx2"] in words
    assert ["cuda", "none"] in words
    assert "No compiled kernels: build them with [make]." in lines[-2]
    assert "No pooch." in lines[-1]
    info["missing"] = []
    assert "Nothing is missing." in ok("info")
    monkeypatch.setattr(cli.info.importlib.util, "find_spec", lambda _: None)
    assert "• The package pooch, for downloading MNIST: pip install 'dvae_fast[train]'" in ok(
        "info"
    )


# --- as a process -----------------------------------------------------------------------------


EXTRAS = ("typer", "rich", "sklearn", "safetensors", "tensorboard", "matplotlib", "pooch")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"


@pytest.mark.process
def test_the_package_imports_without_the_extras() -> None:
    result = Program("-c", BLOCK + "import dvae_fast, dvae_fast.training, dvae_fast.plots").result()
    assert result.returncode == 0, result.stderr


@pytest.mark.process
def test_the_command_line_without_typer_says_what_to_install() -> None:
    code = BLOCK + "import runpy; runpy.run_module('dvae_fast', run_name='__main__')"
    result = Program("-c", code).result()
    assert result.returncode == 1
    assert result.stderr == (
        "dvae-fast: the command line needs the package typer, which is not installed: "
        "pip install 'dvae_fast[train]'\n"
    )


@pytest.mark.process
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = ["-m", "dvae_fast", "train", *TINY, "--epochs", "1000000", "--run-dir", "a run",
               "--evaluate-k", "0", "--no-tensorboard"]  # fmt: skip
    process = Program(*command, cwd=tmp_path)
    process.wait_for(tmp_path / "a run" / CHECKPOINT)
    process.interrupt()
    done = process.result()
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("dvae-fast: interrupted after ")
    assert done.stderr.endswith("go on with: dvae-fast train --resume --run-dir 'a run'\n")
    metrics = json.loads((tmp_path / "a run" / "metrics.json").read_text())
    epochs = str(metrics["epochs_done"] + 1)
    ok("train", "--resume", "--run-dir", "a run", "--epochs", epochs, "-q", "--evaluate-k", "0",
       "--no-tensorboard")  # fmt: skip
    assert json.loads(Path("a run/metrics.json").read_text())["status"] == "finished"


@pytest.mark.process
def test_console_script_is_the_same_program() -> None:
    result = Program("-m", "dvae_fast", "--help").result()
    assert result.returncode == 0
    for name in ("train", "evaluate", "sample", "reproduce", "info"):
        assert name in result.stdout


def test_a_result_is_kept_before_it_is_shown(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed_pipe(*_: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(cli.evaluate, "evaluation_rows", closed_pipe)
    file = run_dir / "evaluation.json"
    file.unlink(missing_ok=True)
    assert run("evaluate", run_dir, "--k", "3", "--limit", "2").exit_code == 1
    assert json.loads(file.read_text())["examples"] == 2
