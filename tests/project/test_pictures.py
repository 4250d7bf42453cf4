"""docs/pictures.py: which filters and noise it shows, what it writes, what it refuses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from docs_script import load_script
from torch import nn

from dvae_fast import corrupt, plots
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import load_model, make_model
from dvae_fast.training import default_config, train

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytest.importorskip("matplotlib")

NAMES = ("filters", "interpolation", "manifold", "noise_levels", "samples_dvae", "samples_vae")


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return load_script("pictures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on the digits by name, of one epoch each."""
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, dict[str, Any]] = {
        "vae": {"model": "vae"},
        "dvae": {"model": "dvae"},
        "plane": {"model": "dvae", "latent_size": 2},
        "narrow": {"model": "vae", "hidden_sizes": (35,)},
        "gru": {"model": "dvae", "encoder": "gru"},
    }
    shared = {"epochs": 1, "batch_size": 500, "latent_size": 4, "hidden_sizes": (40,), "threads": 1}
    for name, given in options.items():
        train(default_config(**(shared | given)), folder / name)
    return {name: folder / name for name in options}


def draw(
    pictures: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path
) -> str | None:
    """What it ends with: one line of an error, or None."""
    monkeypatch.setattr(sys, "argv", ["pictures.py", *(str(a) for a in arguments)])
    try:
        pictures.main()
    except SystemExit as end:
        return str(end)
    return None


def test_every_picture_is_written(
    pictures: ModuleType, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_DPI", 20)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        arguments = (runs["vae"], runs["dvae"], runs["plane"], "--output", folder)
        assert draw(pictures, monkeypatch, *arguments) is None
        assert sorted(path.stem for path in folder.iterdir()) == list(NAMES)
    for name in NAMES:
        first, again = ((tmp_path / one / f"{name}.png").read_bytes() for one in "ab")
        assert first.startswith(b"\x89PNG")
        assert first == again, "the seed governs"


def test_filters_are_the_first_units_of_largest_norm(
    pictures: ModuleType, runs: dict[str, Path]
) -> None:
    model = load_model(runs["vae"])
    first = next(m for m in model.encoder.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        first.weight[[7, 2, 30]] = torch.tensor([[3.0], [-5.0], [4.0]]).expand(3, 64)
    shown = pictures.strongest(model, "VAE", 3)
    assert torch.equal(shown[:, 0], torch.tensor([-5.0, 4.0, 3.0]))
    assert not shown.requires_grad


def test_noise_is_the_same_for_all_models(pictures: ModuleType, runs: dict[str, Path]) -> None:
    models = {name: load_model(runs[name]) for name in ("vae", "dvae")}
    x = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    rows = pictures.noise_rows(models, x, 5)
    expected = [x, *(corrupt(x, SaltAndPepper(p), seed=5) for p in pictures.LEVELS)]
    labels = ["$x$", "5 %", "10 %", "15 %", "30 %", "50 %"]
    assert [label for label, _ in rows] == [n for label in labels for n in (label, *models)]
    for i, given in enumerate(expected):
        (_, shown), *means = rows[3 * i : 3 * i + 3]
        assert torch.equal(shown, given)
        for name, mean in means:
            assert torch.equal(mean, models[name].reconstruct(given))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("none", "dvae", "plane"), "none is not the folder of a run"),
        (("vae", "dvae", "dvae"), "FREY must have two latents, got 4"),
        (("vae", "gru", "plane"), "the encoder of DVAE must be a perceptron over the pixels"),
        (("narrow", "dvae", "plane"), "the encoder of VAE must have >= 36 units in its first"),
    ],
)
def test_unsuitable_runs_are_refused_in_one_line(
    pictures: ModuleType, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...], error: str,
) -> None:  # fmt: skip
    folders = [runs.get(name, tmp_path / name) for name in given]
    said = draw(pictures, monkeypatch, *folders, "--output", tmp_path)
    assert said is not None
    assert said.startswith("pictures: ")
    assert error in said
    assert "\n" not in said
    assert not list(tmp_path.glob("*.png"))


def test_images_of_two_shapes_are_refused(
    pictures: ModuleType, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = pictures.load

    def other(folder: Path) -> Any:
        config, model = load(folder)
        if folder == runs["dvae"]:
            model = make_model("dvae", 784, 4, (40,), image_shape=(28, 28))
        return config, model

    monkeypatch.setattr(pictures, "load", other)
    said = draw(
        pictures, monkeypatch, runs["vae"], runs["dvae"], runs["plane"], "--output", tmp_path
    )
    assert said == "pictures: VAE and DVAE must have images of one shape, got (8, 8) and (28, 28)"


def test_a_folder_that_cannot_be_written_is_one_line(
    pictures: ModuleType, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    arguments = (runs["vae"], runs["dvae"], runs["plane"], "--output", tmp_path / "file")
    said = draw(pictures, monkeypatch, *arguments)
    assert said is not None
    assert said.startswith("pictures: cannot write ")
    assert "\n" not in said
