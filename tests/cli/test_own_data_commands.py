"""`dvae-fast train --data PATH`, and what evaluates, draws and goes on from there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ok, plain_terminal, run

from dvae_fast.data import Dataset, load_path, named_as
from dvae_fast.models import load_model
from dvae_fast.training import default_config, load_config, train
from dvae_fast.training.config import OptionError

N = 40
RNG = np.random.default_rng(9)
TINY = ["--latent-size", "2", "--hidden-sizes", "5", "--threads", "1", "--no-tensorboard",
        "--epochs", "2", "--batch-size", "15"]  # fmt: skip
CONFIG: dict[str, Any] = {
    "latent_size": 2, "hidden_sizes": (5,), "epochs": 2, "batch_size": 15, "threads": 1,
}  # fmt: skip
TABLE = RNG.normal([0, 50, -3], [1, 10, 0.1], (N, 3)).round(4)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")


def write_table(path: str = "a.csv", table: Any = TABLE) -> None:
    lines = ["size,heat,ph"] + [",".join(map(str, row)) for row in table.tolist()]
    Path(path).write_text("\n".join(lines))


def write_images(folder: str = "toys") -> None:
    pil = pytest.importorskip("PIL.Image")
    for i in range(N):
        path = Path(folder) / ("ball" if i % 2 else "cube") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pil.fromarray(RNG.integers(0, 256, (4, 5, 3), np.uint8)).save(path)


def pixels(path: str) -> Any:
    return np.asarray(pytest.importorskip("PIL.Image").open(path).convert("RGB")).astype(int)


def is_coloured(path: str) -> bool:
    """Beyond the frames' blue, which is a mild one."""
    return bool((np.ptp(pixels(path), axis=-1) > 60).any())


@pytest.mark.usefixtures("drawn")
def test_a_folder_of_images() -> None:
    write_images()
    output = ok("train", *TINY, "--data", "toys", "--evaluate-k", "3", "--run-dir", "r")
    assert "toys: 40 images of 3 × 4 × 5, 256 levels, labels of 2 classes; 32 for" in output
    assert "diwae on toys (256 levels, discretised_logistic likelihood, gaussian 0.05" in output
    for name in ("samples", "reconstructions", "evaluation_worst"):
        assert (Path("r") / f"{name}.png").is_file()
    assert is_coloured("r/reconstructions.png")
    assert is_coloured("r/evaluation_worst.png")
    model = load_model("r")
    assert model.image_shape == (3, 4, 5)
    config = load_config("r")
    assert Path(config.data) == Path("toys").resolve()
    ok("sample", "r", "--n", "7", "--out", "x.npz")
    with np.load("x.npz") as arrays:
        images = arrays["images"]
    assert images.shape == (7, 3, 4, 5)
    expected = model.sample(7, seed=0).view(7, 3, 4, 5) * 255
    np.testing.assert_allclose(images, expected.numpy(), rtol=1e-6)
    refused = run("sample", "r", "--out", "x.csv")
    assert "out must not end in .csv for a run on images" in refused.output
    assert json.loads(Path("r/evaluation.json").read_text())["data"] == "toys"


def test_a_table_is_standardised_and_told_in_its_units() -> None:
    write_table()
    output = ok("train", *TINY, "--data", "a.csv", "--evaluate-k", "3", "--run-dir", "r")
    assert "a: 40 rows of 3 columns, real numbers, standardised; 32 for training" in output
    assert "gaussian_real likelihood, gaussian 0.05" in output
    report = json.loads(Path("r/evaluation.json").read_text())
    scale = load_config("r").scaling
    assert scale is not None
    volume = float(np.log(scale["scale"]).sum())
    in_units = report["log_likelihood"] - volume
    assert report["log_likelihood_in_units"] == pytest.approx(in_units, rel=1e-9)
    assert "in the data's units" in output
    assert ", of a density of the standardised values" in output
    for name in ("samples", "reconstructions", "evaluation_worst"):
        assert (Path("r") / f"{name}.png").is_file()
    ok("sample", "r", "--n", "3", "--out", "x.csv", "--draw")
    lines = Path("x.csv").read_text().split()
    assert lines[0] == "size,heat,ph"
    drawn = np.array([line.split(",") for line in lines[1:]], float)
    x = load_model("r").sample(3, seed=0, draw=True).double().numpy()
    np.testing.assert_allclose(drawn, x * scale["scale"] + np.array(scale["shift"]), rtol=1e-5)
    ok("sample", "r", "--n", "9")


def test_counts_go_by_their_logarithms() -> None:
    np.savez("a.npz", x=RNG.poisson(3, (N, 6)), y=np.arange(N) % 3)
    output = ok("train", *TINY, "--data", "a.npz", "--evaluate-k", "3", "--run-dir", "r")
    assert "counts, labels of 3 classes" in output
    assert "(counts, negative_binomial likelihood, mlp_log1p encoder, masking 0.05" in output
    config = load_config("r")
    assert (config.likelihood, config.corruption) == ("negative_binomial", "masking")


@pytest.mark.parametrize(
    ("values", "options", "likelihood"),
    [
        (RNG.integers(0, 2, (N, 6)), [], "bernoulli"),
        (RNG.random((N, 6)), [], "gaussian"),
        (RNG.random((N, 6)), ["--binarise", "dynamic"], "bernoulli"),
        (RNG.integers(0, 256, (N, 2, 3), np.uint8), ["--binarise", "once"], "bernoulli"),
    ],
)
def test_the_kind_chooses_the_likelihood(values: Any, options: Any, likelihood: str) -> None:
    np.save("a.npy", values)
    output = ok("train", *TINY, "--data", "a.npy", *options, "--evaluate-k", "0", "--run-dir", "r")
    assert f"{likelihood} likelihood" in output
    assert "Warning: The pixels are grey" not in output


# --- the same data, and others --------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_data_wherever_they_are() -> None:
    write_table()
    ok("train", *TINY, "--data", "a.csv", "--evaluate-k", "0", "--run-dir", "r")
    Path("a.csv").rename("b.csv")
    gone = run("train", "--resume", "--run-dir", "r", "--epochs", "3")
    assert gone.exit_code == 1
    assert "a.csv was not found: there is no such file or folder" in gone.output
    again = ("train", "--resume", "--run-dir", "r", "--epochs", "3", "--evaluate-k", "0")
    ok(*again, "--data", "b.csv")
    write_table(table=TABLE[:-1])
    other = run(*again, "--data", "a.csv")
    assert other.exit_code == 2
    assert "data must be those of the run, whose fingerprint is" in other.output


def test_what_is_refused_is_refused_before_it_is_announced() -> None:
    """Options that a run may not change, epochs that are done, other data, a folder with a run."""
    write_table()
    done = ("train", *TINY, "--data", "a.csv", "--evaluate-k", "0", "--run-dir", "r")
    ok(*done)
    again = ("train", "--resume", "--run-dir", "r", "--evaluate-k", "0")
    write_table("other.csv", TABLE[:-1])
    for command, said in (
        ((*again, "--missing", "nan"), "missing must be as in the run to resume, None; got 'nan'"),
        ((*again, "--likelihood", "laplace"), "likelihood must be as in the run to resume"),
        ((*again, "--epochs", "1"), "epochs must be >= 2, the epochs done, to resume; got 1"),
        ((*again, "--data", "other.csv"), "data must be those of the run, whose fingerprint is"),
        (done, "run_dir must not hold a run already"),
    ):
        refused = run(*command)
        assert refused.exit_code == 2, refused.output
        assert len(refused.output.splitlines()) == 1, refused.output
        assert said in refused.output


def test_a_run_that_is_interrupted_goes_on_bit_for_bit() -> None:
    write_table()
    ok("train", *TINY, "--data", "a.csv", "--evaluate-k", "0", "--run-dir", "whole", "-q")
    ok("train", *TINY[:-4], "--epochs", "1", "--batch-size", "15", "--data", "a.csv",
       "--evaluate-k", "0", "--run-dir", "r", "-q")  # fmt: skip
    ok("train", "--resume", "--run-dir", "r", "--epochs", "2", "--evaluate-k", "0", "-q")
    one, other = load_model("whole").state_dict(), load_model("r").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_evaluation_on_other_data_says_so() -> None:
    write_table()
    ok("train", *TINY, "--data", "a.csv", "--evaluate-k", "0", "--run-dir", "r", "-q")
    plain = ok("evaluate", "r", "--k", "3")
    assert "does not hold the data" not in plain
    Path("copy.csv").write_text(Path("a.csv").read_text())
    assert "does not hold the data" not in ok("evaluate", "r", "--k", "3", "--data", "copy.csv")
    write_table("b.csv", TABLE * 2)
    other = ok("evaluate", "r", "--k", "3", "--data", "b.csv")
    assert "b.csv does not hold the data that the model was trained on" in other
    report = json.loads(Path("r/evaluation.json").read_text())
    assert report["other_data"]["trained_on"] == load_config("r").fingerprint
    write_table("a.csv", TABLE[::-1])
    assert "a.csv does not hold the data" in ok("evaluate", "r", "--k", "3")
    np.savetxt("c.csv", TABLE[:, :2], delimiter=",")
    narrow = run("evaluate", "r", "--k", "3", "--data", "c.csv")
    assert narrow.exit_code == 1
    assert "examples must hold 3 values as those of the training, got 2" in narrow.output
    ok("train", *TINY, "--evaluate-k", "0", "--run-dir", "digits", "-q")
    named = run("evaluate", "digits", "--data", "b.csv")
    assert named.exit_code == 2
    assert "data must be left out for a run on digits" in named.output


# --- in Python ------------------------------------------------------------------------------------


def test_arrays_are_trained_on_in_python() -> None:
    data = Dataset.from_arrays(RNG.poisson(3, (N, 6)), name="visits")
    config = default_config("vae", data, **CONFIG)
    metrics = train(config, "r", data=data, tensorboard=False)
    assert metrics["status"] == "finished"
    longer = default_config("vae", data, **{**CONFIG, "epochs": 3})
    assert train(longer, "r", data=data, resume=True, tensorboard=False)["epochs_done"] == 3
    other = Dataset.from_arrays(RNG.poisson(3, (N, 6)), name="visits")
    with pytest.raises(OptionError, match="data must be those of the run"):
        train(longer, "r", data=other, resume=True, tensorboard=False)
    real = Dataset.from_arrays(TABLE)
    with pytest.raises(OptionError, match="data must be those that config was made for, counts"):
        train(config, "q", data=real, tensorboard=False)
    evaluated = run("evaluate", "r", "--k", "3")
    assert evaluated.exit_code == 1
    assert "the data called 'visits' were given in Python" in evaluated.output


class Items(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return torch.from_numpy(TABLE[i]), i % 2


def test_torchs_data_sets_are_trained_on_as_they_are() -> None:
    """The same numbers as of the array, and from the same seed."""
    models = []
    plain = torch.utils.data.TensorDataset(torch.from_numpy(TABLE))
    loader = torch.utils.data.DataLoader(Items(), batch_size=3, shuffle=True)
    for i, data in enumerate((TABLE, plain, Items(), loader)):
        config = default_config("vae", data, split="0.5,0.3,0.2", **CONFIG)
        assert (config.values, config.likelihood) == ("real", "gaussian_real")
        train(config, f"r{i}", data=data, tensorboard=False)
        models.append(load_model(f"r{i}").state_dict())
    for other in models[1:]:
        assert all(torch.equal(models[0][name], other[name]) for name in other)
    with pytest.raises(ValueError, match="size must be left out with data in Python"):
        default_config("vae", TABLE, size="3")
    with pytest.raises(TypeError, match=r"train must be an array, .* got int"):
        default_config("vae", 3)


def test_labels_of_folders_make_a_model_conditional() -> None:
    write_images()
    ok("train", *TINY, "--data", "toys", "--context", "labels", "--evaluate-k", "2",
       "--run-dir", "r")  # fmt: skip
    assert load_model("r").context_size == 2
    images = []
    for label in ("1", "cube"):
        ok("sample", "r", "--n", "4", "--label", label, "--out", f"{label}.npz")
        with np.load(f"{label}.npz") as arrays:
            images.append(arrays["images"])
    np.testing.assert_array_equal(*images)
    refused = run("sample", "r", "--label", "cone")
    assert "label must be from 0 to 1, or one of ball, cube, for this model, got cone" in (
        refused.output
    )
    np.save("a.npy", TABLE)
    refused = run("train", *TINY, "--data", "a.npy", "--context", "labels")
    assert "context must be left out: a has no labels" in refused.output
    assert "Training" not in refused.output


def test_a_stream_trains_as_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("a.npy", TABLE)
    ok("train", *TINY, "--data", "a.npy", "--evaluate-k", "2", "--run-dir", "kept", "-q")
    monkeypatch.setattr("dvae_fast.data.own.MOST_KEPT", 0)
    monkeypatch.setattr("dvae_fast.data.paths._last", {})
    output = ok("train", *TINY, "--data", "a.npy", "--evaluate-k", "2", "--run-dir", "streamed")
    assert "streamed; 32 for training" in output
    one, other = load_model("kept").state_dict(), load_model("streamed").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    kept, streamed = (
        json.loads(Path(run_dir, "evaluation.json").read_text())["log_likelihood"]
        for run_dir in ("kept", "streamed")
    )
    assert kept == streamed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.csv"], "data must be one of digits, .*, or a path that is there"),
        (["--data", "mnits"], "did you mean 'mnist'"),
        (["--data", "a.csv", "--likelihood", "bernoulli"], "the data are real numbers; take"),
        (["--data", "a.csv", "--values", "counts"], "counts must be whole numbers"),
        (["--data", "a.csv", "--split", "1,2"], "split must be three shares"),
        (["--data", "a.csv", "--binarise", "fixed"], "for your own data; got 'fixed'"),
        (["--data", "digits", "--split", "0.5,0.3,0.2"], "split must be left out for digits"),
        (["--data", "digits", "--values", "real"], "values must be left out for digits"),
    ],
)
def test_wrong_options_leave_nothing(arguments: list[str], message: str) -> None:
    write_table()
    result = run("train", *arguments)
    assert result.exit_code in (1, 2)
    assert result.output.count("\n") == 1
    assert re.search(message, result.output)
    assert not Path("runs").exists()


def test_columns_and_classes_are_those_of_the_training() -> None:
    """Others are refused; the same classes in another file count as in the training's."""

    def write(
        path: str, columns: str, kinds: list[str], order: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        rows = [
            ",".join([*(str(row[i]) for i in order), kinds[n % len(kinds)]])
            for n, row in enumerate(TABLE.tolist())
        ]
        Path(path).write_text("\n".join([f"{columns},kind", *rows]))

    write("a.csv", "size,heat,ph", ["one", "three", "two"])
    tiny = [*TINY, "--labels", "kind", "--context", "labels", "--evaluate-k", "3"]
    ok("train", *tiny, "--data", "a.csv", "--run-dir", "r")
    names = {"columns": ["size", "heat", "ph"], "classes": ["one", "three", "two"]}
    assert load_config("r").names == names
    write("b.csv", "ph,heat,size", ["one", "three", "two"])
    refused = run("evaluate", "r", "--data", "b.csv", "--k", "3")
    assert (
        "must have the columns of the training, in order, size, heat, ph; got ph" in refused.output
    )
    write("c.csv", "size,heat,ph", ["one", "four"])
    refused = run("evaluate", "r", "--data", "c.csv", "--k", "3")
    assert "must have classes of the training, one, three, two; got four too" in refused.output
    write("d.csv", "size,heat,ph", ["two", "three"])
    torch.set_default_device("meta")  # nothing is made there
    try:
        data = named_as(load_path("d.csv", labels="kind"), names)
    finally:
        torch.set_default_device(None)
    assert data.labels is not None
    every = torch.cat([data.labels[split] for split in ("train", "valid", "test")])
    assert sorted(every.unique().tolist()) == [1, 2]
    assert data.classes == ("one", "three", "two")
    ok("evaluate", "r", "--data", "d.csv", "--k", "3")
