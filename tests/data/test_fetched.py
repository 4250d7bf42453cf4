"""OMNIGLOT, Fashion-MNIST and the silhouettes: found in a folder, or fetched and read."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dvae_fast import data
from dvae_fast.data import DATASETS, SPLITS, DataError, fetched, load_dataset
from dvae_fast.data.sets import _mnist_labels

if TYPE_CHECKING:
    from pathlib import Path

REAL_FOLDER = os.environ.get("DVAE_FAST_DATA") or None
NEW = ("omniglot", "fashion_mnist", "caltech101_silhouettes")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def served(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, bytes]) -> list[str]:
    """A network that has those files; what is asked for."""
    asked: list[str] = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        asked.append(url)
        assert known_hash.startswith("md5:")
        assert len(known_hash) == 4 + 32
        (folder / fname).write_bytes(files[url.rpartition("/")[2]])
        return str(folder / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    return asked


def idx(array: Any) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


# --- Fashion-MNIST and MNIST's labels -------------------------------------------------------------


def test_fashion_mnist_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    arrays = [g.integers(0, 256, (4, 28, 28)), np.arange(4), g.integers(0, 256, (3, 28, 28)),
              np.arange(3)]  # fmt: skip
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = {f"{n}-ubyte.gz": idx(a) for n, a in zip(names, arrays, strict=True)}
    asked = served(monkeypatch, tmp_path, files)
    for found, wanted in zip(fetched.fashion_mnist(None), arrays, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert all("fashion-mnist" in url for url in asked)
    # Beside MNIST's, which are called the same.
    assert {p.name for p in tmp_path.glob("fashion-*.gz")} == {f"fashion-{name}" for name in files}


def test_fashion_mnist_in_a_folder(tmp_path: Path) -> None:
    train = np.zeros((60000, 28, 28), np.uint8)
    train[:, 0, 0] = np.arange(60000) % 251
    np.savez(
        tmp_path / "fashion_mnist.npz", train_images=train, test_images=train[:10000],
        train_labels=np.arange(60000) % 10, test_labels=np.zeros(10000, np.uint8),
    )  # fmt: skip
    with pytest.raises(DataError, match="'train_labels' must be uint8"):
        load_dataset("fashion_mnist", folder=tmp_path)
    np.savez(
        tmp_path / "fashion_mnist.npz", train_images=train, test_images=train[:10000],
        train_labels=(np.arange(60000) % 10).astype(np.uint8),
        test_labels=np.zeros(10000, np.uint8),
    )  # fmt: skip
    d = load_dataset("fashion_mnist", binarise="none", folder=tmp_path)
    assert [len(getattr(d, split)) for split in SPLITS] == [50000, 10000, 10000]
    assert d.values == "8bit"
    assert d.labels is not None
    assert d.labels["valid"][:3].tolist() == [0, 1, 2]
    assert float(d.valid[3, 0]) == pytest.approx(50003 % 251 / 255)


def test_labels_of_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {name: idx(np.arange(5)) for name in fetched.MNIST_LABELS}
    served(monkeypatch, tmp_path, files)
    assert [part.tolist() for part in _mnist_labels(None)] == [[*range(5)]] * 2


def test_labels_of_the_digits_are_those_of_the_images() -> None:
    from sklearn.datasets import load_digits

    digits, d = load_digits(), load_dataset("digits", binarise="none")
    by_image = {
        row.tobytes(): label
        for row, label in zip((digits.data / 16).astype(np.float32), digits.target, strict=True)
    }
    assert d.labels is not None
    for split in SPLITS:
        wanted = [by_image[row.numpy().tobytes()] for row in getattr(d, split)]
        assert d.labels[split].tolist() == wanted


# --- OMNIGLOT -------------------------------------------------------------------------------------


def drawings(names: list[str], shade: dict[tuple[str, int], int]) -> bytes:
    """A zip as Lake et al. have it: a black square of a size of its own on white."""
    pil = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            for drawer in range(1, 21):
                image = pil.new("1", (105, 105), 1)
                image.paste(0, (0, 0, 15 * (1 + shade[name, drawer]), 15))
                entry = io.BytesIO()
                image.save(entry, "PNG")
                file.writestr(f"images/{name}/0001_{drawer:02}.png", entry.getvalue())
    return out.getvalue()


def test_omniglot_is_fetched_and_made_smaller(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """105 to 28 pixels: 15 become 4, exactly."""
    names = {"background": ["A/character01", "A/character02"], "evaluation": ["B/character01"]}
    every = [name for part in names.values() for name in part]
    shade = {(n, d): (3 * i + d) % 6 for i, n in enumerate(every) for d in range(1, 21)}
    files = {f"images_{part}.zip": drawings(n, shade) for part, n in names.items()}
    served(monkeypatch, tmp_path, files)
    train, test = fetched.omniglot(None)
    for (images, characters), drawers in ((train, range(1, 16)), (test, range(16, 21))):
        assert images.dtype == np.uint8
        assert characters.tolist() == [i for i in range(3) for _ in drawers]
        at = [(name, drawer) for name in every for drawer in drawers]
        for image, key in zip(images, at, strict=True):
            wanted = np.zeros((28, 28), np.uint8)
            wanted[:4, : 4 * (1 + shade[key])] = 255
            np.testing.assert_array_equal(image, wanted)


def test_a_zip_that_lacks_drawings_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("images/readme.txt", "")
    served(monkeypatch, tmp_path, {"images_background.zip": out.getvalue()})
    with pytest.raises(DataError, match="must hold 20 drawings of each character"):
        fetched.omniglot(None)
    served(monkeypatch, tmp_path, {"images_background.zip": b"junk"})
    with pytest.raises(DataError, match="cannot be read as a zip of drawings"):
        fetched.omniglot(None)


@pytest.mark.skipif(REAL_FOLDER is None, reason="DVAE_FAST_DATA is not set")
def test_the_real_omniglot() -> None:
    d = load_dataset("omniglot", binarise="none", folder=REAL_FOLDER)
    assert [len(getattr(d, split)) for split in SPLITS] == [23000, 1345, 8115]
    assert d.test.mean().item() == pytest.approx(0.081, abs=0.002)
    assert d.labels is not None
    assert all(len(d.labels[s]) == len(getattr(d, s)) for s in SPLITS)
    assert sorted(d.labels["test"].unique().tolist()) == list(range(1623))


# --- silhouettes ----------------------------------------------------------------------------------


def silhouettes() -> dict[str, np.ndarray[Any, Any]]:
    g = np.random.default_rng(2)
    arrays = {}
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        arrays[f"{split}_data"] = g.integers(0, 2, (count, 784), np.uint8)
        arrays[f"{split}_labels"] = g.integers(1, 102, (count, 1), np.uint8)
    return arrays


def test_silhouettes_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Published column by column, the object 0 and the classes from 1."""
    scipy = pytest.importorskip("scipy.io")
    arrays, file = silhouettes(), io.BytesIO()
    scipy.savemat(file, arrays)
    asked = served(monkeypatch, tmp_path, {"caltech101_silhouettes_28_split1.mat": file.getvalue()})
    images, labels = fetched.silhouettes(None)
    for x, y, split in zip(images, labels, ("train", "val", "test"), strict=True):
        column = arrays[f"{split}_data"].reshape(-1, 28, 28)
        np.testing.assert_array_equal(x, 1 - column.transpose(0, 2, 1))
        np.testing.assert_array_equal(y + 1, arrays[f"{split}_labels"][:, 0])
    assert asked == [
        "https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat"
    ]


def test_silhouettes_in_a_folder_are_binary(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for split, count in (("train", 4100), ("valid", 2264), ("test", 2307)):
        arrays[f"{split}_images"] = np.ones((count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.full(count, 7, np.uint8)
    np.savez_compressed(tmp_path / "caltech101_silhouettes.npz", **arrays)
    d = load_dataset("caltech101_silhouettes", binarise="none", folder=tmp_path)
    assert torch.equal(d.train[:3], torch.ones(3, 784))
    assert d.values == "binary"
    assert d.labels is not None
    assert d.labels["test"].unique().tolist() == [7]


# --- absent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEW)
def test_offline_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("pooch.retrieve", offline)
    with pytest.raises(DataError, match=rf"{name}\.npz was not found: .*It is an \.npz") as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value)


def test_every_set_says_what_its_values_are() -> None:
    for named in DATASETS.values():
        assert named.values in data.KINDS
