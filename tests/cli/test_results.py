"""The results of evaluations and samples: where they are kept, and what they say they are of."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import no_pictures, ok, plain_terminal, run, trained_run
from typer.main import get_command

from dvae_fast import cli, files
from dvae_fast.cli.evaluate import evaluate
from dvae_fast.evaluation import storing
from dvae_fast.files import CheckpointError
from dvae_fast.models import load_model
from dvae_fast.models.saving import MODEL, read_model
from dvae_fast.training import default_config

if TYPE_CHECKING:
    from typer.testing import Result

TINY = ["--latent-size", "4", "--hidden-sizes", "9,7", "-M", "2", "-K", "3", "--batch-size", "237",
        "--threads", "1", "--no-tensorboard"]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain_terminal(monkeypatch)
    no_pictures(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory, *TINY, "--epochs", "1", "--evaluate-k", "0", "-q")


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(trained, tmp_path / "r"))


def report(path: Path) -> dict[str, Any]:
    read = json.loads(path.read_text())
    assert isinstance(read, dict)
    return read


# --- one for each -----------------------------------------------------------------------------


def test_each_evaluation_is_kept(run_dir: Path) -> None:
    limited = ["--limit", "4", "-q"]
    ok("evaluate", run_dir, "--k", "3", *limited)
    ok("evaluate", run_dir, "--k", "4", *limited)
    ok("evaluate", run_dir, "--k", "3", "--split", "valid", *limited)
    ok("evaluate", run_dir, "--k", "3", "--proposal", "mixture", "--copies", "2", *limited)
    ok("evaluate", run_dir, "--k", "3", "--method", "ais", "--temperatures", "2", *limited)
    ok("evaluate", run_dir, "--k", "3", "-q")
    names = ["test-importance-posterior-k3-first4", "test-importance-posterior-k4-first4",
             "valid-importance-posterior-k3-first4", "test-importance-mixture-k3-first4",
             "test-ais-k3-first4", "test-importance-posterior-k3"]  # fmt: skip
    expected = sorted(["evaluation", *(f"evaluation-{name}" for name in names)])
    for kind in ("json", "npz"):
        assert sorted(path.stem for path in run_dir.glob(f"evaluation*.{kind}")) == expected
    whole = run_dir / f"evaluation-{names[-1]}.json"
    assert whole.read_bytes() == (run_dir / "evaluation.json").read_bytes()
    assert report(whole)["model_digest"] == read_model(run_dir).digest
    ok("evaluate", run_dir, "--k", "3", "--seed", "5", "-q")
    assert report(whole)["seed"] == 5
    assert len(list(run_dir.glob("evaluation*.json"))) == len(expected)
    with np.load(run_dir / f"evaluation-{names[0]}.npz") as arrays:
        assert arrays["log_likelihood"].shape == (4,)


def test_more_training_marks_them_old(run_dir: Path) -> None:
    ok("evaluate", run_dir, "--k", "3", "--limit", "4", "-q")
    before = report(run_dir / "evaluation.json")
    ok("train", "--resume", "--run-dir", run_dir, "--epochs", "3", "--evaluate-k", "5", "-q",
       "--no-tensorboard")  # fmt: skip
    digest = read_model(run_dir).digest
    assert digest != before["model_digest"]
    assert report(run_dir / "evaluation.old.json") == {"old": True, **before}
    for path in run_dir.glob("evaluation*.json"):
        assert ("old" in report(path)) == path.name.endswith(".old.json")
        assert (report(path)["model_digest"] == digest) != path.name.endswith(".old.json")
    assert report(run_dir / "metrics.json")["evaluation"]["model_digest"] == digest


# --- elsewhere --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "out, names",
    [
        ("some/where", ["evaluation-test-importance-posterior-k3-first4.json",
                        "evaluation-test-importance-posterior-k3-first4.npz", "evaluation.json",
                        "evaluation.npz"]),
        ("some/where/mine.json", ["mine.json", "mine.npz"]),
    ],
)  # fmt: skip
def test_results_may_go_elsewhere(out: str, names: list[str], run_dir: Path) -> None:
    before = sorted(os.listdir(run_dir))
    ok("evaluate", run_dir, "--k", "3", "--limit", "4", "-q", "--out", out)
    assert sorted(os.listdir("some/where")) == names
    assert sorted(os.listdir(run_dir)) == before


def test_a_run_that_cannot_be_written_is_evaluated(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def can_write_in(folder: Path) -> bool:
        return folder != run_dir and files.can_write_in(folder)

    before = sorted(os.listdir(run_dir))
    monkeypatch.setattr(cli.evaluate, "can_write_in", can_write_in)
    output = ok("evaluate", run_dir, "--k", "3", "--limit", "4")
    assert "warning: cannot write in" in output
    assert "the results are printed, not kept; --out names a folder" in output
    assert "log p(x)" in output
    quiet = run("evaluate", run_dir, "--k", "3", "--limit", "4", "-q")
    assert quiet.exit_code == 1
    assert quiet.output == (
        f"dvae-fast: cannot write in {run_dir}: name another folder with --out\n"
    )
    ok("evaluate", run_dir, "--k", "3", "--limit", "4", "-q", "--out", "o")
    assert report(Path("o/evaluation.json"))["examples"] == 4
    assert sorted(os.listdir(run_dir)) == before
    Path("file").write_text("")
    wrong = run("evaluate", run_dir, "--k", "3", "--out", "file/o")
    assert (wrong.exit_code, wrong.output.count("\n")) == (1, 1)
    assert "cannot write in file/o" in wrong.output


def test_a_second_evaluation_at_a_time_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("evaluate", run_dir, "--k", "3", "--limit", "4")
    second: list[Result] = []

    def evaluating(*arguments: Any, **given: Any) -> Any:
        if not second:
            second.append(run(*options))
            second.append(run(*options, "--out", "o"))
        return evaluate(*arguments, **given)

    monkeypatch.setattr(cli.evaluate, "evaluate", evaluating)
    ok(*options)
    refused, elsewhere = second
    assert refused.exit_code == 1
    assert f"{run_dir} is in use: another evaluation is under way in it" in refused.output
    assert refused.output.count("\n") == 1
    assert elsewhere.exit_code == 0
    assert not list(run_dir.glob(".*"))


@pytest.mark.parametrize(
    ("module", "writer"), [(cli.results, "write_json"), (storing, "write_arrays")]
)
def test_what_can_be_kept_is_kept(
    module: Any, writer: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise CheckpointError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(module, writer, full)
    result = run("evaluate", run_dir, "--k", "5", "--limit", "3")
    assert result.exit_code == 1
    assert "log p(x)" in result.output
    assert "cannot write" in result.output
    if writer == "write_arrays":
        assert report(run_dir / "evaluation.json")["k"] == 5


# --- runs that are not whole ------------------------------------------------------------------


def brackets(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def other_data(folder: Path) -> None:
    config = report(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"data_seed": 1}))


def flipped(folder: Path) -> None:
    data = bytearray((folder / MODEL).read_bytes())
    data[-5] ^= 1
    (folder / MODEL).write_bytes(data)


@pytest.mark.parametrize(
    "damage, message",
    [(brackets, "is not a JSON file"), (other_data, "data_seed is 1, the model was trained with 0"),
     (flipped, "is damaged")],
)  # fmt: skip
def test_a_damaged_run_is_one_line(damage: Any, message: str, run_dir: Path) -> None:
    damage(run_dir)
    for command in (["evaluate", "--k", "3"], ["sample"]):
        result = run(command[0], run_dir, *command[1:])
        assert result.exit_code == 1
        assert message in result.output
        assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "option, size",
    [("--hidden-sizes", "10,1000000000000"), ("--copies", f"{2**32}")],
)
def test_sizes_beyond_memory_are_one_line(option: str, size: str) -> None:
    result = run("train", option, size, "-q", "--run-dir", "r")
    assert result.exit_code == 1
    assert result.output.startswith("dvae-fast: a size is too large for this machine: ")
    assert result.output.count("\n") == 1
    assert not re.search("cpp|aoti|empty", result.output)  # in plain words


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**63])
@pytest.mark.parametrize("option", ["temperatures", "leapfrog", "copies"])
def test_absurd_counts_are_wrong_options(option: str, value: int, run_dir: Path) -> None:
    method = ["--proposal", "mixture"] if option == "copies" else ["--method", "ais"]
    result = run("evaluate", run_dir, *method, f"--{option}={value}")
    assert result.exit_code == 2
    rule = ">= 1" if value < 1 else "<= [0-9,]+"
    assert re.search(f"dvae-fast: {option} must be {rule}, got {value}\n", result.output)


@pytest.mark.parametrize("name", ["copies", "samples", "latent-size"])
def test_more_than_the_noise_has_is_a_wrong_option(name: str) -> None:
    result = run("train", f"--{name}", f"{2**32 + 1}", "-q", "--run-dir", "r")
    assert result.exit_code == 2
    assert f"{name.replace('-', '_')} must be <= 2**32, got 4294967297" in result.output
    assert not Path("r").exists()


# --- grey values ------------------------------------------------------------------------------


def test_grey_values_are_a_gaussians_unless_asked() -> None:
    for data in ("digits", "mnist", "frey"):
        assert default_config(data=data, binarise="none").likelihood == "gaussian"
        assert default_config(data=data, binarise="once").likelihood == "bernoulli"


def test_a_bernoulli_of_grey_pixels_is_qualified() -> None:
    output = ok("train", *TINY, "--epochs", "1", "--run-dir", "r", "--binarise", "none",
                "--likelihood", "bernoulli", "--evaluate-k", "3")  # fmt: skip
    assert output.count("Warning: The pixels are grey and the likelihood is a Bernoulli") == 1
    assert output.count("of which a Bernoulli is no distribution") == 1
    assert output.count("no probability: a Bernoulli of grey pixels") == 2
    kept = report(Path("r/evaluation.json"))
    assert kept["grey_bernoulli"]
    assert any("a Bernoulli is no distribution" in warning for warning in kept["warnings"])
    assert "no probability" in ok("evaluate", "r", "--k", "3", "--limit", "3")
    output = ok("train", *TINY, "--epochs", "1", "--run-dir", "s", "--evaluate-k", "3",
                "--binarise", "none", "--corruption", "gaussian")  # fmt: skip
    assert "no probability" not in output
    assert "of a density on [0, 1]" in output


# --- lines, samples, help ---------------------------------------------------------------------


def test_an_output_that_is_no_terminal_has_lines(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ok("evaluate", run_dir, "--k", "3", "--limit", "40", "--batch-size", "2").splitlines()
    assert lines[0] == "Evaluating diwae on digits, test set: 40 examples"
    told = [line for line in lines if re.match(r"\d+/40 examples   log p\(x\) −\d", line)]
    assert [line.split("/")[0] for line in told] == [str(n) for n in range(4, 40, 4)]
    monkeypatch.setattr(cli.train, "_LINE_SECONDS", -1.0)
    monkeypatch.setattr("dvae_fast.training.stopping.REPORT_SECONDS", 0.0)
    output = ok("train", *TINY, "--epochs", "2", "--run-dir", "p", "--evaluate-k", "0")
    assert len(re.findall(r"^in epoch [12]/2, bound −[\d.]+ nats, [\d:–]+ left$", output, re.M)) > 3


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", ["x.png", "x.PDF", "x.svg", "x.npz"])
def test_samples_are_what_their_name_says(name: str, run_dir: Path) -> None:
    arguments = ("sample", run_dir, "--n", "7", "--seed", "3", "--out")
    assert ok(*arguments, name).strip() == name
    data = Path(name).read_bytes()
    kind = name[-3:].lower()
    assert data.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "npz": b"PK"}[kind])
    if kind == "npz":
        with np.load(name) as arrays:
            (images,) = (arrays[key] for key in arrays.files)
        expected = load_model(run_dir).sample(7, seed=3).view(7, 8, 8)
        assert torch.equal(torch.from_numpy(images), expected)
    elif kind == "pdf":
        ok(*arguments, "again.pdf")
        assert Path("again.pdf").read_bytes() == data


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.npz.txt"])
def test_samples_of_no_kind_are_refused(name: str, run_dir: Path) -> None:
    result = run("sample", run_dir, "--out", name)
    assert result.exit_code == 2
    assert (
        result.output == f"dvae-fast: out must end in .png, .pdf, .svg, .npz, .csv, got '{name}'\n"
    )


COMMANDS = ("train", "evaluate", "sample", "reproduce", "info", "check")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_word_and_every_default(command: str) -> None:
    """Nothing is taken for markup: of each option the whole help, and what it is without it."""
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", ok(command, "--help")).split())
    joined = shown.replace(" ", "")
    root: Any = get_command(cli.app)
    for parameter in root.commands[command].params:
        words = getattr(parameter, "help", None)
        if words is None or parameter.name == "help":
            continue
        assert _in_column(words, joined), (parameter.name, words)
        if parameter.param_type_name == "option" and not parameter.is_flag:
            default = f"Default: {parameter.default}."
            assert "efault" in words or default in shown, parameter.name


def _in_column(words: str, shown: str) -> bool:
    """Whether they stand there but for how lines are broken; table columns come between."""
    return all(word in shown for word in words.split())
