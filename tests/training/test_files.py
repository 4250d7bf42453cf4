"""Files of a run: whole or not at all, exact, without pickle, and one line when they fail."""

from __future__ import annotations

import errno
import os
import resource
import stat
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch

from dvae_fast._extras import MissingExtraError
from dvae_fast.corruptions import AdditiveGaussian, Masking
from dvae_fast.files import (
    CheckpointError,
    load_tensors,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)
from dvae_fast.models import MODELS, load_model, make_model, save_model, saving
from dvae_fast.training.checkpoint import load_optimizer, optimizer_tensors

if TYPE_CHECKING:
    from pathlib import Path

# --- atomic writing ---------------------------------------------------------------------------


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"first")
    write_atomically(path, b"second, longer")
    assert path.read_bytes() == b"second, longer"
    assert os.listdir(path.parent) == ["file"]


def test_write_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    """A real short write: the kernel refuses to let a file grow beyond 4 kB."""
    path = tmp_path / "model.safetensors"
    write_atomically(path, b"earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == (
        f"cannot write {path}: {os.strerror(errno.EFBIG)}; the earlier file is intact"
    )
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_any_failing_call_leaves_the_earlier_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"

    def fail(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError) as caught:
        write_atomically(path, b"new")
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert os.listdir(tmp_path) == []

    monkeypatch.undo()
    write_atomically(path, b"earlier")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match="the earlier file is intact"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_data_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, r=real, n=name: (calls.append(n), r(*a))[1])
    write_atomically(tmp_path / "file", b"data")
    assert calls[:2] == ["fsync", "replace"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/sub/x: (Not a dir|File exi)"):
        write_atomically(tmp_path / "file" / "sub" / "x", b"")


# --- JSON -------------------------------------------------------------------------------------


def test_json_keeps_every_bit_of_a_float(tmp_path: Path) -> None:
    value = {"a": [0.1 + 0.2, -1e-310, 12345678901234567890], "b": None, "c": "ξ"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.json: No such file"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"x\.json is not a JSON file"):
        read_json(tmp_path / "x.json")


# --- tensors ----------------------------------------------------------------------------------


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.arange(35.0).view(5, 7)
    tensors = {
        "transposed": base.T,
        "part": base[1:4, ::2],
        "same storage": base.view(7, 5),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "bytes": torch.Generator().manual_seed(3).get_state(),
        "half": torch.tensor([1.5, float("nan"), -float("inf")], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    header = {"epoch": 3, "bound": -0.1 - 0.2, "history": [{"x": None}], "name": "ξ"}
    save_tensors(tmp_path / "t.safetensors", tensors, header)
    loaded, read = load_tensors(tmp_path / "t.safetensors")
    assert read == header
    assert loaded.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert loaded[name].dtype == expected.dtype, name
        torch.testing.assert_close(
            loaded[name], expected.detach(), rtol=0, atol=0, equal_nan=True, msg=name
        )
    assert not loaded["parameter"].requires_grad


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    """What the format promises: a length, a JSON header, raw numbers; nothing to execute."""
    from safetensors import safe_open

    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {"k": 1})
    raw = path.read_bytes()
    assert raw[8:9] == b"{"
    assert raw[8 + int.from_bytes(raw[:8], "little") :] == torch.ones(3).numpy().tobytes()
    with safe_open(str(path), framework="np") as file:
        assert list(file.keys()) == ["a"]


def test_unreadable_tensor_files_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot read .*: there is no such file"):
        load_tensors(path)
    save_tensors(path, {"a": torch.ones(300)}, {})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"t\.safetensors is damaged"):
        load_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"t\.safetensors is damaged"):
        load_tensors(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="was not written by dvae_fast"):
        load_tensors(path)


def test_missing_safetensors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, module, None)
    line = r"the package safetensors, which is not installed: pip install 'dvae_fast\[train\]'"
    with pytest.raises(MissingExtraError, match=line):
        save_tensors(tmp_path / "t", {}, {})
    with pytest.raises(MissingExtraError, match=line):
        load_tensors(tmp_path / "t")


# --- models and optimisers --------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_its_folder_alone(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 3, "activation": "tanh"}
    if MODELS[name].denoising:
        options |= {"corruption": Masking(0.3), "copies": 2}
    model = make_model(name, 11, 4, (7, 5), data_mean=torch.rand(11), **options)
    save_model(tmp_path / saving.MODEL, model)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for place in (tmp_path, tmp_path / saving.MODEL):
        loaded = load_model(place)
        x = torch.bernoulli(torch.full((6, 11), 0.5), generator=torch.Generator().manual_seed(1))
        assert type(loaded) is type(model)
        assert torch.equal(loaded.bound(x, 5), model.bound(x, 5))
        assert not loaded.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gaussian_model_comes_back(tmp_path: Path) -> None:
    model = make_model("dvae", 6, 3, (8,), likelihood="gaussian", corruption=AdditiveGaussian(0.25))
    save_model(tmp_path / saving.MODEL, model)
    x = torch.rand(4, 6)
    assert torch.equal(load_model(tmp_path).bound(x, 7), model.bound(x, 7))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not the folder of a run: it holds no model"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere is not the folder of a run"):
        load_model(tmp_path / "nowhere")


def test_a_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model = make_model("iwae", 11, 4, (7,))
    path = tmp_path / saving.MODEL
    save_tensors(path, model.state_dict(), {"model": model.config() | {"latent_size": 5}})
    with pytest.raises(CheckpointError, match="does not hold a model that fits"):
        load_model(tmp_path)
    save_tensors(path, model.state_dict(), {"model": model.config() | {"model": "gan"}})
    with pytest.raises(CheckpointError, match=r"does not hold a model that fits.*gan"):
        load_model(tmp_path)
    save_tensors(path, model.state_dict(), {})
    with pytest.raises(CheckpointError, match="does not hold a model that fits"):
        load_model(tmp_path)


@pytest.mark.parametrize("steps", [0, 3])
def test_an_optimiser_goes_on_where_it_was(steps: int, tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Adam, dict[torch.Tensor, str]]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        adam = torch.optim.Adam(module.parameters(), lr=0.01, fused=True)
        return module, adam, {p: n for n, p in module.named_parameters()}

    def step(module: torch.nn.Module, adam: torch.optim.Adam, seed: int) -> None:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        adam.zero_grad()
        module(x).square().sum().backward()
        adam.step()

    module, adam, names = build()
    for seed in range(steps):
        step(module, adam, seed)
    tensors = optimizer_tensors(adam, names)
    assert len(tensors) == (12 if steps else 0)  # step and two moments of four parameters
    save_tensors(
        tmp_path / "t", tensors | {"m/" + k: t for k, t in module.state_dict().items()}, {}
    )

    other, other_adam, other_names = build()
    loaded = load_tensors(tmp_path / "t")[0]
    other.load_state_dict({k[2:]: t for k, t in loaded.items() if k.startswith("m/")})
    saved = {k: t for k, t in loaded.items() if not k.startswith("m/")}
    load_optimizer(other_adam, other_names, saved)
    for m, a in ((module, adam), (other, other_adam)):
        step(m, a, 100)
        step(m, a, 101)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
