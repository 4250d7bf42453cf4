"""A run's files are whole and belong together, or say so; a folder has one training at a time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from dvae_fast.corruptions import Masking
from dvae_fast.files import (
    CHECKPOINT,
    CheckpointError,
    load_tensors,
    read_json,
    read_tensors,
    save_tensors,
    sweep_temporaries,
    write_atomically,
)
from dvae_fast.kept import evaluation_name, mark_old
from dvae_fast.locking import locked
from dvae_fast.models import load_model, make_model, save_model
from dvae_fast.models.saving import MODEL, read_model
from dvae_fast.training import CONFIG, OptionError, TrainConfig, default_config, load_run, train
from dvae_fast.training.loop import _LOCK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: at night scale each byte of a file is damaged
EVERY_BYTE = os.environ.get("DVAE_FAST_SLOW", "0") not in ("", "0")


def tiny(**options: Any) -> TrainConfig:
    values = {"copies": 2, "samples": 3, "batch_size": 237, "latent_size": 4, "epochs": 1,
              "hidden_sizes": (5,), "seed": 11, "threads": 1}  # fmt: skip
    return default_config(**(values | options))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "it"
    train(tiny(), folder, tensorboard=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for name in (CONFIG, CHECKPOINT, MODEL):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


def refused(error: pytest.ExceptionInfo[Exception]) -> str:
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 600
    return said


# --- damage -----------------------------------------------------------------------------------


def damaged(data: bytes, many: int) -> list[bytes]:
    """With one byte changed: some of each part, all of them at night scale."""
    draw = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = list(range(len(data)))
    if not EVERY_BYTE:
        digest = data.index(b"digest")
        places = [*range(12), *range(digest - 20, digest + 84, 3), len(data) - 1]
        places += draw.sample(range(header), many) + draw.sample(range(header, len(data)), many)
    out = []
    for place in places:
        other = bytearray(data)
        other[place] ^= 1 << draw.randrange(8)
        out.append(bytes(other))
    return out


def test_any_damaged_byte_of_a_model_is_found(tmp_path: Path) -> None:
    model = make_model("dvae", 11, 2, (3,), corruption=Masking(torch.rand(11)), copies=2)
    path = tmp_path / MODEL
    save_model(path, model, run={"data_seed": 0})
    data = path.read_bytes()
    assert path.read_bytes() == (save_model(path, model, run={"data_seed": 0}), data)[1]
    for other in damaged(data, 60):
        path.write_bytes(other)
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        refused(caught)


def test_any_damaged_byte_of_a_checkpoint_is_found(run: Path) -> None:
    data = (run / CHECKPOINT).read_bytes()
    for other in damaged(data, 40)[:: 1 if EVERY_BYTE else 2]:
        (run / CHECKPOINT).write_bytes(other)
        with pytest.raises(CheckpointError) as caught:
            load_tensors(run / CHECKPOINT)
        refused(caught)


def test_a_file_that_was_cut_or_lengthened_is_damaged(run: Path) -> None:
    data = (run / MODEL).read_bytes()
    for other in (data[:-1], data + b"\0", data[:100], data[:7], b"", bytes(50), data * 2):
        (run / MODEL).write_bytes(other)
        with pytest.raises(CheckpointError, match=r"is damaged|was not written"):
            load_model(run)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    first = save_tensors(tmp_path / "x", tensors, {"k": [1, "0" * 64]})
    again = save_tensors(
        tmp_path / "y", {"b": tensors["b"], "a": tensors["a"]}, {"k": [1, "0" * 64]}
    )
    assert read_tensors(tmp_path / "x").digest == first == again
    assert save_tensors(tmp_path / "x", tensors, {"k": [2]}) != first
    assert save_tensors(tmp_path / "x", tensors | {"b": torch.tensor(2)}, {"k": [1]}) != first


def test_a_file_of_an_earlier_version_is_read_with_a_warning(tmp_path: Path) -> None:
    model = make_model("vae", 6, 2, (3,))
    header = json.dumps({"model": model.config()})
    save_file(model.state_dict(), tmp_path / MODEL, {"dvae_fast": header})
    with pytest.warns(RuntimeWarning, match=r"model\.safetensors has no digest, being of"):
        loaded = load_model(tmp_path)
    assert torch.equal(loaded.encoder.output.weight, model.encoder.output.weight)


@pytest.mark.parametrize(
    "header",
    [5, "x", [1], None, {"model": 5}, {"model": {}}, {"model": {"model": "vae"}}, {"model": None},
     {"model": {"model": "vae", "data_size": "x"}}, {"model": {"model": ["vae"], "data_size": 6}},
     {"model": {"model": "vae", "data_size": 10**40}}],
    ids=str,
)  # fmt: skip
def test_headers_of_other_types_are_one_line(header: Any, tmp_path: Path) -> None:
    state = make_model("vae", 6, 2, (3,)).state_dict()
    save_file(state, tmp_path / MODEL, {"dvae_fast": json.dumps(header)})
    warned = pytest.warns(RuntimeWarning) if isinstance(header, dict) else contextlib.nullcontext()
    with warned, pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    assert MODEL in refused(caught)


def test_sizes_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    model = make_model("vae", 6, 2, (3,))
    # 4 TB of weights, which some systems would promise.
    config = model.config() | {"hidden_sizes": [10**6, 10**6]}
    save_tensors(tmp_path / MODEL, model.state_dict(), {"model": config})
    with pytest.raises(CheckpointError, match=r"where its configuration asks|which its c"):
        load_model(tmp_path)


def test_nested_brackets_are_one_line(run: Path) -> None:
    brackets = "[" * 100_000
    (run / CONFIG).write_text(brackets)
    with pytest.raises(CheckpointError, match=r"config\.json is not a JSON file") as caught:
        load_run(run)
    refused(caught)
    save_file({"a": torch.ones(1)}, run / MODEL, {"dvae_fast": brackets})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as caught:
        load_model(run)
    refused(caught)
    raw = b'{"__metadata__":' + brackets.encode()
    (run / MODEL).write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(run)


def test_a_file_of_torch_is_told_apart(tmp_path: Path) -> None:
    torch.save(make_model("vae", 6, 2, (3,)).state_dict(), tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"best\.pt is a file of torch\.save.*torch\.load"):
        load_model(tmp_path / "best.pt")


@pytest.mark.parametrize(
    "changes",
    [{"epoch": "x"}, {"epoch": -1}, {"epoch": None}, {"epoch": 7}, {"epoch": True}, {"config": 5},
     {"config": None}, {"config": []}, {"config": {"samples": "x"}}, {"config": {"colour": 1}},
     {"position": 1.5}, {"position": 10**9}, {"position": 3}, {"seconds": "1"}, {"history": 5},
     {"history": [5]}, {"history": [{"x": "y"}]}, {"best_epoch": [1]}, {"best_bound": "x"},
     {"history": [{"epoch": 1, "train_bound": -9.0}]}, {"best_bound": None},
     {"seconds": None}],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_with_other_types_is_one_line(changes: dict[str, Any], run: Path) -> None:
    path = run / CHECKPOINT
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | changes)
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.safetensors (is not a run's|does not fit)"
    ) as caught:
        train(tiny(), run, resume=True, tensorboard=False)
    refused(caught)


@pytest.mark.parametrize(
    "key",
    ["model/decoder.output.bias", "best/decoder.output.bias", "run/permutation", "run/total",
     "run/generator", "run/gradient_norms", "optimizer/decoder.output.bias/exp_avg"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "of another shape", "not of numbers"])
def test_a_checkpoint_with_other_tensors_is_one_line(key: str, how: str, run: Path) -> None:
    path = run / CHECKPOINT
    tensors, header = load_tensors(path)
    header |= {"position": 237, "epoch": 0, "history": []}
    if how == "missing":
        del tensors[key]
    elif how == "of another shape":
        tensors[key] = tensors[key].new_zeros(3, 7)
    else:
        tensors[key] = torch.zeros(3, 7, dtype=torch.bool)
    save_tensors(path, tensors, header)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors does not fit") as caught:
        train(tiny(), run, resume=True, tensorboard=False)
    refused(caught)


# --- what belongs together --------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [("data_seed", 1), ("binarise", "once"), ("seed", 4),
                                         ("train_examples", 7)])  # fmt: skip
def test_a_configuration_of_another_model_is_refused(name: str, value: Any, run: Path) -> None:
    assert load_run(run)[0] == tiny()
    config = read_json(run / CONFIG)
    (run / CONFIG).write_text(json.dumps(config | {name: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json does not belong.* its {name} is"):
        load_run(run)
    # What changes neither data nor model may differ.
    (run / CONFIG).write_text(json.dumps(config | {"threads": 3, "epochs": 50}))
    assert load_run(run)[0].epochs == 50


def test_a_run_that_is_resumed_is_compared_before_memory_is_taken(run: Path) -> None:
    config = TrainConfig.from_dict(read_json(run / CONFIG) | {"hidden_sizes": (10**6, 10**6)})
    with pytest.raises(OptionError, match="hidden_sizes must be as in the run to resume"):
        train(config, run, resume=True, tensorboard=False)


def test_a_model_is_saved_and_loaded_by_the_same_name(tmp_path: Path) -> None:
    model = make_model("vae", 6, 2, (3,))
    for name in ("best", "best.v2", "a b.safetensors"):
        save_model(tmp_path / name, model)
        loaded = load_model(tmp_path / name)
        assert torch.equal(loaded.encoder.output.weight, model.encoder.output.weight)
    with pytest.raises(CheckpointError, match=r"worst\.pt: there is no such file"):
        load_model(tmp_path / "worst.pt")


def test_a_model_loaded_in_inference_mode_can_be_trained(run: Path) -> None:
    with torch.inference_mode():
        model = load_model(run)
    model.train()
    model.loss(torch.rand(5, 64).round(), 3).backward()
    assert all(p.grad is not None for p in model.parameters())


# --- evaluations ------------------------------------------------------------------------------


def test_evaluations_of_another_model_are_marked(tmp_path: Path) -> None:
    report = {"split": "valid", "method": "importance", "proposal": "mixture", "k": 50}
    name = evaluation_name(report)
    assert name == "evaluation-valid-importance-mixture-k50"
    assert evaluation_name({"split": "test", "method": "ais", "chains": 3}) == (
        "evaluation-test-ais-k3"
    )
    assert evaluation_name(report | {"limit": 7, "examples": 7}) == f"{name}-first7"
    files = [f"{name}.json", f"{name}.npz", "evaluation.json", "evaluation.npz",
             "evaluation_bounds.png", "evaluation.partial.npz"]  # fmt: skip
    for file in files:
        (tmp_path / file).write_text(json.dumps(report | {"model_digest": "a"}))
    (tmp_path / "metrics.json").write_text(json.dumps({"evaluation": {"model_digest": "a"}}))
    mark_old(tmp_path, "a")
    assert sorted(os.listdir(tmp_path)) == sorted([*files, "metrics.json"])
    mark_old(tmp_path, "b")
    assert sorted(os.listdir(tmp_path)) == sorted([
        f"{name}.old.json", f"{name}.old.npz", "evaluation.old.json", "evaluation.old.npz",
        "evaluation_bounds.old.png", "evaluation.partial.npz", "metrics.json",
    ])  # fmt: skip
    assert read_json(tmp_path / f"{name}.old.json") == {"old": True, **report, "model_digest": "a"}
    assert read_json(tmp_path / "metrics.json")["evaluation"]["old"] is True
    (tmp_path / "evaluation.json").write_text("[" * 10)  # what is damaged is left
    mark_old(tmp_path, "c")
    assert (tmp_path / "evaluation.json").exists()


def test_training_further_marks_them_only_if_the_model_is_another(run: Path) -> None:
    digest = read_model(run).digest
    (run / "evaluation.json").write_text(json.dumps({"model_digest": digest}))
    train(tiny(), run, resume=True, tensorboard=False)
    assert read_model(run).digest == digest
    assert (run / "evaluation.json").exists()
    train(tiny(epochs=3), run, resume=True, tensorboard=False)
    assert read_model(run).digest != digest
    assert read_json(run / "evaluation.old.json") == {"old": True, "model_digest": digest}


# --- locks and temporary files ----------------------------------------------------------------


def test_a_second_training_in_a_folder_is_refused(run: Path) -> None:
    found: list[str] = []

    def second(_: object) -> None:
        if not found:
            for resume in (False, True):
                with pytest.raises(
                    CheckpointError, match="is in use: another training is under"
                ) as caught:
                    train(tiny(), run, resume=resume, tensorboard=False)
                found.append(refused(caught))

    train(tiny(epochs=2), run, resume=True, tensorboard=False, on_epoch=second)
    assert len(found) == 2
    assert f"process {os.getpid()} on " in found[0]
    assert not (run / _LOCK).exists()
    train(tiny(epochs=2), run, resume=True, tensorboard=False)


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a fork of this process, which costs nothing; its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads: the child does not need them
        process = os.fork()
    if process:
        return process
    try:
        work()
    finally:
        os._exit(1)


def test_death_frees_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "sub" / ".lock"
    told, tell = os.pipe()

    def hold() -> None:
        with locked(path, "another"):
            os.write(tell, b"held")
            time.sleep(100)

    process = in_child(hold)
    try:
        assert os.read(told, 4) == b"held"
        with pytest.raises(CheckpointError, match=f"process {process} on"), locked(path, "x"):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert path.exists()
    with locked(path, "x"):
        pass
    assert not path.exists()


def test_one_of_many_holds_a_lock(tmp_path: Path) -> None:
    """Also where the file of one is removed just as another opens it."""
    inside, most, count = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, count
        for _ in range(100):
            try:
                with locked(tmp_path / "lock", "x"):
                    inside += 1
                    most, count = max(most, inside), count + 1
                    inside -= 1
            except CheckpointError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert count >= 4


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_goes_on_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="cannot be locked .No locks available."):
        assert train(tiny(), tmp_path, tensorboard=False)["status"] == "finished"


def test_temporary_files_of_the_dead_are_swept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> None:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_atomically(run / CHECKPOINT, b"half")

    os.waitpid(in_child(killed), 0)
    (left,) = run.glob(".*")
    assert left.name.startswith(f".{CHECKPOINT}.")
    alive = left.with_name(left.name.replace(left.name.split(".")[-2], str(os.getppid())))
    elsewhere = run / ".model.safetensors.elsewhere.1.abcdefgh"
    mine = (run / ".checkpoint.safetensors.abc12345", run / ".gitignore", run / ".a.json.txt")
    for file in (alive, elsewhere, *mine):
        file.write_bytes(b"")
    train(tiny(), run, resume=True, tensorboard=False)
    found = {file.name for file in run.glob(".*")}
    assert found == {alive.name, elsewhere.name, ".gitignore", ".a.json.txt"}
    os.utime(elsewhere, (1, 1))
    sweep_temporaries(run)
    assert not elsewhere.exists()
    sweep_temporaries(run / "nowhere")


def test_what_is_being_written_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        sweep_temporaries(tmp_path)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "x.json", b"1")
    assert os.listdir(tmp_path) == ["x.json"]
