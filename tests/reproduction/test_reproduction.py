"""Published tables: their rows, runs that are resumed and refused, and the table from numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import numpy as np
import pytest
import torch
from forks import Context, Program
from interrupts import StopAfter

from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.evaluation.precision import has_bfloat16
from dvae_fast.files import CheckpointError
from dvae_fast.models import load_model
from dvae_fast.reproduction import processes, rows, runs
from dvae_fast.reproduction.rows import ROWS, SCALES, select
from dvae_fast.reproduction.runs import Run, evaluate_so_far, plan, run_one, unfinished
from dvae_fast.training import TrainConfig, default_config, load_config, stopping

if TYPE_CHECKING:
    from typer.testing import Result

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # rich wraps by the terminal; one width makes the output the same everywhere.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def run(*arguments: str | Path) -> Result:
    return command_line.run("reproduce", *arguments)


def ok(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def words(output: str) -> str:
    return " ".join(output.split())


def tiny(seed: int = 0, **options: Any) -> Run:
    """On the digits, whose training takes a second; K, M, sizes and batch that all differ."""
    values = {"copies": 2, "samples": 3, "batch_size": 237, "latent_size": 4,
              "hidden_sizes": (9, 7), "epochs": 3, "seed": seed, "threads": 1}  # fmt: skip
    return Run("diwae-k5-5", default_config(**(values | options)), "dynamic", 25, 20)


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_valid_configuration(name: str, scale: str) -> None:
    row = ROWS[name]
    config = row.config(SCALES[scale], seed=7, epochs=None, device="cpu")
    assert (config.seed, config.threads, config.cuda_graph) == (7, 1, False)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert row.baseline is None or row.baseline in ROWS
    assert row.table in rows.TABLES
    assert row.comparable in rows.FIGURES
    graphed = row.config(SCALES[scale], seed=7, epochs=11, device="cuda")
    assert (graphed.epochs, graphed.cuda_graph, graphed.threads) == (11, True, None)


def test_rows_are_those_of_the_tables() -> None:
    assert len(ROWS) == 60
    full = SCALES["full"]

    def config(name: str) -> TrainConfig:
        return ROWS[name].config(full, 0, None, "cpu")

    c = config("diwae-gru-k5-10")
    assert (c.model, c.samples, c.copies, c.corruption, c.level) == (
        "diwae",
        5,
        1,
        "salt_and_pepper",
        0.1,
    )
    assert (c.encoder, c.binarise, c.batch_size, c.epochs) == ("gru", "fixed", 100, 5000)
    assert (c.hidden_sizes, c.latent_size, c.decoder_hidden_sizes) == ((200, 200), 50, (200,))
    assert (c.activation, c.learning_rate, c.lr_schedule) == ("softplus", 1e-3, "stepwise")
    assert config("dvae-pixel-k1-15").per_pixel
    c = config("dvae-learnt-k1-5")
    assert (c.gradient, c.copies, c.level) == ("score", 2, 0.05)
    assert replace(c, gradient=None) == config(str(ROWS["dvae-learnt-k1-5"].baseline))
    assert config("dvae-released-k1-5").corruption == "salt_and_pepper_released"
    assert config("vae-augmented-k1").binarise == "dynamic"
    assert ROWS["vae-augmented-k1"].evaluated_on == "fixed"
    c = config("omniglot-once-diwae-k5-5")
    assert (c.data, c.binarise, c.model, c.samples, c.level) == (
        "omniglot",
        "once",
        "diwae",
        5,
        0.05,
    )
    assert config("omniglot-dvae-k1-5").binarise == "dynamic"
    assert ROWS["omniglot-once-diwae-k5-5"].baseline == "omniglot-once-iwae-k5"
    c = config("burda-k50")
    assert (c.model, c.samples, c.binarise, c.batch_size, c.epochs) == (
        "iwae",
        50,
        "dynamic",
        20,
        3280,
    )
    assert (c.activation, c.decoder_hidden_sizes) == ("tanh", None)
    c = config("frey-dvae")
    assert (c.likelihood, c.corruption, c.level, c.binarise) == (
        "gaussian", "gaussian", 0.025, "none",
    )  # fmt: skip
    baselines = {name: row.baseline for name, row in ROWS.items() if row.baseline}
    assert baselines["dvae-k5-15"] == "vae-k5"
    assert baselines["diwae-gru-k5-10"] == "iwae-gru-k5"
    assert baselines["diwae-pixel-k5-10"] == "diwae-k5-10"
    assert baselines["dvae-released-k1-5"] == "dvae-k1-5"
    assert baselines["iwae-augmented-k5"] == "iwae-k5"
    assert ROWS["vae-k1"].protocol == "known"
    assert ROWS["diwae-gru-k5-10"].protocol == (
        "guess: the encoder's sizes and order; the figure's K and evaluation"
    )


def test_rows_of_one_scale_are_treated_alike() -> None:
    small = SCALES["small"]
    configs = [row.config(small, 0, None, "cpu") for row in select(small.rows)]
    assert len(configs) == 13
    shared = ("data", "epochs", "train_examples", "valid_examples", "batch_size", "learning_rate",
              "lr_schedule", "seed", "data_seed")  # fmt: skip
    for name in shared:
        assert len({getattr(c, name) for c in configs}) == 1, name


def test_rows_are_selected_by_name_and_glob() -> None:
    chosen = select(["burda-k5", "dvae-k1-*", "vae-k1", "dvae-k1-5"])
    assert [row.name for row in chosen] == [
        "vae-k1", "dvae-k1-5", "dvae-k1-10", "dvae-k1-15", "burda-k5",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'vea-k1' is of none: did you mean vae-k1 or"):
        select(["vae-k1", "vea-k1"])
    with pytest.raises(ValueError, match="'xyzzy' is of none: --list shows them"):
        select(["xyzzy"])


def test_a_plan_takes_every_row_before_the_next_seed() -> None:
    planned = plan(select(["vae-k1", "vae-gru-k1"]), SCALES["small"])
    assert [r.name for r in planned] == [
        "vae-k1-seed0", "vae-gru-k1-seed0", "vae-k1-seed1", "vae-gru-k1-seed1", "vae-k1-seed2",
        "vae-gru-k1-seed2",
    ]  # fmt: skip
    planned = plan(select(["vae-gru-k1"]), SCALES["full"], epochs=3, seeds=2)
    assert [(r.config.seed, r.config.epochs) for r in planned] == [(0, 3), (1, 3)]


def test_a_dtype_is_of_every_run_and_only_where_there_are_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has, device in ((True, "cpu"), (False, "cuda")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda h=has: {"avx512_bf16": h})
        chosen = select(["vae-k1", "dvae-k1-5"])
        planned = plan(chosen, SCALES["full"], seeds=2, device=device, dtype="bfloat16")
        assert {r.settings()["dtype"] for r in planned} == {"bfloat16"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    message = "dtype must be float32 on a CPU without instructions for bfloat16; got 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        plan(chosen, SCALES["full"], dtype="bfloat16")
    assert {r.config.dtype for r in plan(chosen, SCALES["full"])} == {"float32"}
    with pytest.raises(ValueError, match=r"dtype must be one of bfloat16, float32; got 'float16'"):
        plan(chosen, SCALES["full"], dtype="float16")


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_one(tiny(), folder)


def test_a_run_keeps_what_it_measures(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    one = tiny()
    assert json.loads((folder / f"{one.name}.json").read_text()) == result
    assert runs.read_results(folder) == [result]
    assert result["settings"] == one.settings()
    assert "threads" not in result["settings"]
    assert result["versions"]["torch"] == torch.__version__
    assert result["training_seconds"] > 0
    metrics = json.loads((folder / one.name / "metrics.json").read_text())
    assert result["best_epoch"] == metrics["best"]["epoch"]
    assert result["valid_bound"] == metrics["best"]["valid_bound"]
    history = [{k: h[k] for k in ("epoch", "train_bound", "valid_bound")}
               for h in metrics["history"]]  # fmt: skip
    assert result["curve"] == history
    assert result["learnt_level"] is None
    # The trainer's own judgement of the same model differs in its noise alone.
    assert -result["figures"]["own"] == pytest.approx(metrics["test_bound"], abs=0.5)
    model = load_model(folder / one.name)
    x = one.config.load_data().evaluation("test")
    clean = estimate_log_likelihood(model, x, 1, seed=0).elbo.mean()
    assert -result["figures"]["clean"] == pytest.approx(float(clean), rel=1e-6)
    ten = estimate_log_likelihood(model, x, 10, seed=0).mean
    assert -result["figures"]["ten"] == pytest.approx(ten, rel=1e-6)
    assert result["epochs_done"] == 3
    spaced = x[[15 * i for i in range(20)]]
    estimate = estimate_log_likelihood(model, spaced, 25, seed=0)
    assert -result["figures"]["nll"] == pytest.approx(estimate.mean, rel=1e-6)
    assert result["likelihood"]["standard_error"] == pytest.approx(estimate.mean_standard_error)
    assert result["likelihood"]["examples_standard_error"] == pytest.approx(
        float(estimate.log_likelihood.std()) / math.sqrt(20)
    )
    assert unfinished([one], folder) == []


def test_a_long_curve_is_thinned_from_its_end() -> None:
    history = [{"epoch": i, "train_bound": -i, "valid_bound": math.nan} for i in range(1, 131)]
    curve = runs._curve(history)
    assert [line["epoch"] for line in curve] == list(range(1, 131, 3))
    assert curve[-1] == {"epoch": 130, "train_bound": -130, "valid_bound": None}


def test_the_rate_that_was_learnt_is_kept(tmp_path: Path) -> None:
    result = run_one(tiny(gradient="score", epochs=1), tmp_path)
    level = load_model(tmp_path / "diwae-k5-5-seed0").corruption.level.detach()
    assert result["learnt_level"] == float(level)
    assert result["learnt_level"] != tiny().config.level


# 3 epochs of 6 steps are 18 reports; the evaluation's are the rest.
@pytest.mark.parametrize("calls", [4, 12, 19])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(
    calls: int, tmp_path: Path, finished: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_one(tiny(), tmp_path, StopAfter(calls))
    assert unfinished([tiny()], tmp_path) == [tiny()]
    assert not list(tmp_path.glob("*.json"))
    epochs = json.loads((tmp_path / tiny().name / "metrics.json").read_text())["epochs_done"]
    assert epochs == (calls - 1) // 6
    again = run_one(tiny(), tmp_path)
    expected = finished[1]
    for result in (again, expected):
        assert result["training_seconds"] > 0
    assert again | {"training_seconds": 0} == expected | {"training_seconds": 0}
    left = {path.name for path in (tmp_path / tiny().name).iterdir()}
    assert not left & {"evaluation.partial.npz", "checkpoint.safetensors"}


def test_what_an_unfinished_run_has_come_to_is_kept_until_it_is_finished(
    tmp_path: Path, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)
    assert evaluate_so_far(tiny(), tmp_path) is None  # not begun
    with pytest.raises(KeyboardInterrupt):
        run_one(tiny(), tmp_path, StopAfter(4))
    assert evaluate_so_far(tiny(), tmp_path) is None  # of 6 steps an epoch
    assert not list(tmp_path.glob("*.json"))
    with pytest.raises(KeyboardInterrupt):
        run_one(tiny(), tmp_path, StopAfter(6 + 3))
    early = evaluate_so_far(tiny(), tmp_path)
    assert early is not None
    assert runs.read_results(tmp_path) == [early]
    assert (early["epochs_done"], early["settings"]["epochs"]) == (2, 3)
    assert early["curve"] == finished[1]["curve"][:2]
    metrics = json.loads((tmp_path / tiny().name / "metrics.json").read_text())
    assert early["best_epoch"] == metrics["best"]["epoch"]
    model = load_model(tmp_path / tiny().name)  # of that epoch
    x = tiny().config.load_data().evaluation("test")
    clean = float(estimate_log_likelihood(model, x, 1, seed=0).elbo.mean())
    assert early["figures"]["clean"] == pytest.approx(-clean, rel=1e-6)
    assert unfinished([tiny()], tmp_path) == [tiny()]
    with pytest.raises(ValueError, match="its samples is 3, not 4"):
        unfinished([tiny(samples=4)], tmp_path)
    run_one(tiny(), tmp_path)
    (last,) = runs.read_results(tmp_path)
    assert last | {"training_seconds": 0} == finished[1] | {"training_seconds": 0}
    assert unfinished([tiny()], tmp_path) == []


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_whose_process_is_ended_goes_on_to_the_same_numbers(
    number: signal.Signals, tmp_path: Path
) -> None:
    """In bfloat16, where the processor has it; saved after each report, as if 30 s were over."""
    dtype = "bfloat16" if has_bfloat16("cpu") else "float32"
    config = tiny(epochs=8, dtype=dtype).config
    program = f"""
        from pathlib import Path
        from dvae_fast.reproduction.runs import Run, run_one
        from dvae_fast.training import TrainConfig, loop, stopping
        loop.train.__kwdefaults__["checkpoint_seconds"] = stopping.REPORT_SECONDS = 0.0
        def report(state):
            if getattr(state, "epoch", 0) == 4:
                Path("reached").touch()
        config = TrainConfig.from_dict({config.to_dict()!r})
        run_one(Run("diwae-k5-5", config, "dynamic", 25, 20), Path("ended"), report)
    """
    process = Program("-c", textwrap.dedent(program))
    process.wait_for(Path("reached"))
    assert process.process.pid is not None
    os.kill(process.process.pid, number)
    assert process.result().returncode != 0
    run = replace(tiny(), config=config)
    assert unfinished([run], Path("ended")) == [run]
    assert not list(Path("ended").glob("*.json"))
    again, whole = run_one(run, Path("ended")), run_one(run, Path("whole"))
    assert again | {"training_seconds": 0} == whole | {"training_seconds": 0}


def test_other_settings_are_refused_by_name(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    for other, message in (
        (tiny(epochs=5), "its epochs is 3, not 5; name another folder"),
        (tiny(samples=4), "its samples is 3, not 4"),
        (replace(tiny(), k=26), "its k is 25, not 26"),
        (tiny(dtype="bfloat16"), "its dtype is 'float32', not 'bfloat16'"),
        (replace(tiny(), evaluated_on="once"), "its evaluated_on is 'dynamic', not 'once'"),
    ):
        with pytest.raises(ValueError, match=rf"diwae-k5-5-seed0\.json is of other .*{message}"):
            unfinished([tiny(1), other], folder)
    assert unfinished([tiny(threads=2)], folder) == []  # changes rounding alone


def test_a_run_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_one(tiny(epochs=10**6), tmp_path, StopAfter(1))
    with pytest.raises(ValueError, match=r"diwae-k5-5-seed0 is of other .*its epochs is 1000000"):
        unfinished([tiny()], tmp_path)
    with pytest.raises(ValueError, match=r"its dtype is 'float32', not 'bfloat16'"):
        unfinished([tiny(epochs=10**6, dtype="bfloat16")], tmp_path)
    assert load_config(tmp_path / tiny().name).epochs == 10**6


def test_a_folder_without_numbers_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no numbers of a run: there is no \*-seed"):
        runs.read_results(tmp_path)
    (tmp_path / f"{tiny().name}.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"seed0\.json does not hold the numbers of a run"):
        runs.read_results(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold the numbers"):
        unfinished([tiny()], tmp_path)


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def frey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random pixels in the shape of Frey Face, the smallest file, and a scale of seconds."""
    pixels = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), np.uint8)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "frey_face.npz", images=pixels)
    monkeypatch.setenv("DVAE_FAST_DATA", str(tmp_path / "data"))
    sizes = {"hidden_sizes": (6, 5), "decoder_hidden_sizes": (4,), "latent_size": 3}
    training = sizes | {"epochs": 2, "train_examples": 250, "valid_examples": 30}
    scale = replace(SCALES["small"], rows=("frey-*",), seeds=1, k=5, examples=12,
                    training=training)  # fmt: skip
    monkeypatch.setitem(SCALES, "small", scale)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs' processes need not load torch."""
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda _: Context)


@pytest.mark.process
@pytest.mark.usefixtures("frey", "forked")
def test_rows_are_run_side_by_side_and_once(tmp_path: Path) -> None:
    """One that fails leaves the others, and is tried again by the same command."""
    folder = Path("runs/reproduction-small")
    damaged = folder / "frey-vae-seed0" / "checkpoint.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("damaged")
    result = run("--jobs", "2")
    assert result.exit_code == 1
    assert "2 of 2 runs to do, 2 at a time; folder runs/reproduction-small" in result.output
    assert f"dvae-fast: frey-vae-seed0 failed: {damaged} is damaged" in result.output
    assert "1 of 2 runs are in" in result.output
    assert "dvae-fast: failed: frey-vae-seed0; the same command tries again" in result.output
    assert (folder / "frey-dvae-seed0.json").is_file()
    damaged.unlink()
    output = ok("--jobs", "2")
    assert "1 of 2 runs to do" in output
    assert sorted(p.name for p in folder.glob("*.json")) == [
        "frey-dvae-seed0.json", "frey-vae-seed0.json",
    ]  # fmt: skip
    files = {p: p.read_bytes() for p in folder.glob("*.json")}
    assert "frey-vae-seed0: own bound" in output
    assert "dvae-fast reproduce --table --scale small --folder runs/reproduction-small" in output
    assert "0 of 2 runs to do" in ok()
    assert {p: p.read_bytes() for p in folder.glob("*.json")} == files
    wrong = run("--epochs", "3")
    assert wrong.exit_code == 2
    assert "is of other settings: its epochs is 2, not 3" in wrong.output
    vae, dvae = (json.loads((folder / f"frey-{m}-seed0.json").read_text()) for m in ("vae", "dvae"))
    assert vae["figures"]["own"] == pytest.approx(vae["figures"]["clean"], rel=1e-2)
    assert dvae["settings"]["level"] == 0.025
    assert ok("--table", "--output", "table.md") == "table.md\n"
    assert "| `frey-dvae` − `frey-vae` | 1† |" in Path("table.md").read_text()
    ok("--table")
    assert Path("docs/reproduction.md").read_text() == Path("table.md").read_text()


@pytest.mark.process
@pytest.mark.usefixtures("forked")
def test_absent_data_is_told_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVAE_FAST_DATA", str(tmp_path))
    result = run("--rows", "frey-vae", "--seeds", "1", "--folder", "out")
    assert result.exit_code == 1
    assert "frey-vae-seed0 failed: frey_face.npz was not found: " in result.output


@pytest.mark.process
@pytest.mark.usefixtures("frey")
@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(seeds: int, tmp_path: Path) -> None:
    """Each run in a process of its own, which loads torch: one by day."""
    process = Program("-m", "dvae_fast", "reproduce", "--rows", "frey-vae", "--seeds", str(seeds),
                      "--epochs", "1000000", "--jobs", "2", "--folder", "out")  # fmt: skip
    for seed in range(seeds):
        process.wait_for(Path(f"out/frey-vae-seed{seed}/checkpoint.safetensors"))
    process.interrupt()
    done = process.result()
    assert done.returncode == 130, done
    assert done.stderr == (
        f"dvae-fast: interrupted with 0 of {seeds} runs finished; all is saved, the same command "
        "goes on\n"
    )
    assert "Traceback" not in done.stdout
    assert all(Path(f"out/frey-vae-seed{s}/metrics.json").is_file() for s in range(seeds))


@pytest.mark.usefixtures("frey")
def test_the_table_has_what_is_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)
    asked = ("--rows", "frey-*", "--folder", "out")
    (vae, _) = plan(select(["frey-*"]), SCALES["small"])
    with pytest.raises(KeyboardInterrupt):
        run_one(vae, Path("out"), StopAfter(4))  # of 2 epochs of 3 steps
    output = ok(*asked, "--so-far")
    assert output.startswith("frey-vae-seed0: 1 of 2 epochs; own bound ")
    assert "seed1" not in output
    assert ok("--table", "--folder", "out", "--output", "table.md") == "table.md\n"
    assert "| 1 | 1 of 2, unfinished | – |" in Path("table.md").read_text()
    wrong = run(*asked, "--dtype", "float16", "--so-far")
    assert "dtype must be one of bfloat16, float32; got 'float16'" in wrong.output


@pytest.mark.parametrize(
    "first, second", [("list", "table"), ("list", "so-far"), ("table", "so-far")]
)
def test_one_thing_is_done_at_a_time(first: str, second: str) -> None:
    for given in ((first, second), (second, first)):
        command_line.refused(
            f"{second} must be left out with --{first}",
            "reproduce", *(f"--{option}" for option in given),
        )  # fmt: skip


def test_rows_are_listed_with_what_was_published() -> None:
    output = words(ok("--list", "--scale", "full"))
    for name in ROWS:
        assert f" {name} " in output
    assert "* diwae-gru-k5-10 DIWAE, K = 5, 10 % noise, a GRU reads the rows 3 5,000" in output
    assert "92.84 ± 0.07" in output
    output = words(ok("--list", "--rows", "burda-k*"))
    assert "burda-k50 IWAE, K = 50, one stochastic layer 3 250 84.78 known" in output
    assert "vae-k1" not in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--scale", "huge"], "scale must be one of small, check, full; got 'huge'"),
        (["--rows", "vea-k1"], "'vea-k1' is of none: did you mean vae-k1"),
        (["--epochs", "0"], "epochs must be >= 1, got 0"),
        (["--seeds", "0"], "seeds must be >= 1, got 0"),
        (["--seeds", f"{2**31}"], "seeds must be <= 10,000, got 2147483648"),
        (["--jobs", "0"], "jobs must be >= 1, got 0"),
        (["--jobs", f"{2**63}"], "jobs must be <= 1,024, got 9223372036854775808"),
        (["--device", "gpu"], "device must be cpu, cuda or cuda:N, got 'gpu'"),
        (["--device", "cuda:99"], "device must be one that torch sees"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command_line.refused(message, "reproduce", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_table_of_nothing_and_torchrun_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("--table")
    assert result.exit_code == 1
    assert result.output == (
        "dvae-fast: runs/reproduction-small holds no numbers of a run: there is no *-seed*.json\n"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run()
    assert result.exit_code == 2
    assert "reproduce starts its processes itself: run it without torchrun" in result.output


def test_help_names_every_choice() -> None:
    text = words(ok("--help").replace("│", " "))
    for part in ("small, check, full", "--rows", "--check", "--list", "--table", "--epochs",
                 "--seeds", "--jobs", "--so-far", "--dtype", "--device", "--folder",
                 "--output"):  # fmt: skip
        assert part in text


def test_a_commit_is_told_where_the_package_is_tracked() -> None:
    if not (ROOT / ".git").exists() or not Path(runs.__file__).is_relative_to(ROOT):
        pytest.skip("the package in use is not in a checkout")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commit = runs._commit()
    assert commit is not None
    assert commit.removesuffix("-dirty") == head.stdout.strip()


def test_the_results_kept_are_of_the_rows_as_they_are() -> None:
    """Read under the names and options of now: none of them is run again, and none refused."""
    folder = Path(__file__).parents[2] / "docs" / "reproduction" / "small"
    runs = plan(ROWS.values(), SCALES["small"])
    kept = {path.stem for path in folder.glob("*.json")}
    assert kept == {run.name for run in runs} - {run.name for run in unfinished(runs, folder)}
