"""Data sets: splits, binarisation, files, downloads, and what is said when a file is absent."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dvae_fast import data
from dvae_fast._extras import MissingExtraError
from dvae_fast.corruptions import SaltAndPepper, corrupt
from dvae_fast.data import DataError, downloads, load_dataset
from dvae_fast.data.dataset import _BLOCK, fixed_draw
from dvae_fast.data.sets import _fixed_mnist, _mnist

# Indices that np.random.RandomState(0).permutation(1797) begins each part with.
SPLIT_OF_SEED_0 = {
    "train": (1081, 1707, 927),
    "valid": (1768, 1452, 1623),
    "test": (804, 168, 1371),
}
REAL_FOLDER = os.environ.get("DVAE_FAST_DATA") or None  # empty is as good as unset


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on a folder of the person who runs it, or writes to their cache."""
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(images: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in images]


# --- digits and the split ---------------------------------------------------------------------


def test_digits_are_cut_in_three_disjoint_parts() -> None:
    from sklearn.datasets import load_digits

    d = load_dataset("digits", binarise="none")
    parts = [rows(d.train), rows(d.valid), rows(d.test)]
    assert [len(p) for p in parts] == [1297, 200, 300]
    # All 1,797 images differ, so equal sets of rows mean disjoint parts that cover the whole.
    everything = torch.from_numpy(load_digits().data / 16).float()
    assert len(set(rows(everything))) == 1797
    assert sorted(sum(parts, [])) == sorted(rows(everything))  # noqa: RUF017
    assert d.image_shape == (8, 8)
    assert d.size == 64


def test_digits_split_never_changes() -> None:
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().data / 16).float()
    d = load_dataset("digits", binarise="none", seed=0)
    for part, indices in SPLIT_OF_SEED_0.items():
        assert torch.equal(getattr(d, part)[:3], images[list(indices)]), part


def test_split_depends_on_the_seed_alone() -> None:
    a = load_dataset("digits", binarise="none", seed=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  (the global generator is the point)
    b = load_dataset("digits", binarise="none", seed=3)
    c = load_dataset("digits", binarise="none", seed=4)
    assert torch.equal(a.test, b.test)
    assert not torch.equal(a.test, c.test)


def test_mean_is_that_of_the_training_images() -> None:
    d = load_dataset("digits", binarise="dynamic")
    torch.testing.assert_close(d.mean, d.train.double().mean(0).float())
    assert d.mean.shape == (64,)


# --- binarisation -----------------------------------------------------------------------------


def test_dynamic_draws_are_bernoulli_of_the_grey_value() -> None:
    """Binomial counts, exactly, and the sum of their squared scores: a false alarm in a million
    each."""
    d = load_dataset("digits")
    generator = torch.Generator().manual_seed(5)
    index = torch.arange(1200, 1100, -1)
    draws = torch.stack([d.train_batch(index, generator) for _ in range(400)])
    grey = d.train[index]
    assert draws.shape == (400, 100, 64)
    assert draws.dtype == torch.float32
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    certain = (grey == 0) | (grey == 1)
    assert bool(certain.any())
    assert torch.equal(draws[:, certain], grey[certain].expand(400, -1))
    count, p = draws.sum(0)[~certain].double().numpy(), grey[~certain].double().numpy()
    tail = np.minimum(stats.binom.cdf(count, 400, p), stats.binom.sf(count - 1, 400, p))
    assert tail.min() > 1e-6 / 2 / len(p)
    squares = float(((count - 400 * p) ** 2 / (400 * p * (1 - p))).sum())
    low, high = stats.chi2.interval(1 - 1e-6, len(p))
    assert low < squares < high


def test_dynamic_draws_are_governed_by_the_generator_alone() -> None:
    d = load_dataset("digits")
    index = torch.arange(50)
    torch.manual_seed(1)
    a = d.train_batch(index, torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(5)
    b, c = d.train_batch(index, generator), d.train_batch(index, generator)
    assert torch.equal(a, b)
    assert not torch.equal(b, c)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_drawing_leaves_the_data_as_it_is() -> None:
    d = load_dataset("digits")
    before = d.train.clone()
    d.train_batch(torch.arange(30), torch.Generator().manual_seed(0)).fill_(7)
    d.evaluation("train")
    assert torch.equal(d.train, before)


@pytest.mark.parametrize("binarise", ["dynamic", "once"])
def test_evaluation_sets_are_onefixed_draw(binarise: str) -> None:
    """The ones of each of three sets within 4.5 standard errors: a false alarm in 50,000."""
    d, grey = load_dataset("digits", binarise=binarise), load_dataset("digits", binarise="none")
    for split in data.SPLITS:
        x, p = d.evaluation(split), getattr(grey, split).double()
        assert torch.equal(x, load_dataset("digits", binarise=binarise).evaluation(split))
        assert set(x.unique().tolist()) == {0.0, 1.0}
        z = (x - p).sum() / (p * (1 - p)).sum().sqrt()
        assert abs(z) < 4.5
    other = load_dataset("digits", binarise=binarise, seed=1)
    assert not torch.equal(d.evaluation("test"), other.evaluation("test"))


def test_dynamic_and_once_are_judged_on_the_same_draw() -> None:
    a, b = load_dataset("digits", binarise="dynamic"), load_dataset("digits", binarise="once")
    assert torch.equal(a.evaluation("test"), b.evaluation("test"))


def test_fixed_draws_of_examples_blocks_and_splits_are_independent() -> None:
    """Three correlations within 4.5 standard errors: a false alarm in 50,000."""
    half = torch.full((2 * _BLOCK + 5, 96), 0.5)
    valid, test = fixed_draw(half, 0, "valid"), fixed_draw(half, 0, "test")
    assert len(set(rows(valid)) | set(rows(test))) == 2 * len(half)
    # Correlation of neighbours in each direction: 0 ± 1/sqrt(n).
    centred = 2 * valid - 1
    for shifted in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(shifted.mean()) < 4.5 / shifted.numel() ** 0.5
    both = (2 * valid - 1) * (2 * test - 1)
    assert abs(both.mean()) < 4.5 / both.numel() ** 0.5


@pytest.mark.parametrize("split", data.SPLITS)
def test_fixed_draws_share_no_noise_with_a_corruption_of_their_seed(split: str) -> None:
    """Of each row that begins a block, and of each block's example: correlations of 9,000 pairs
    within 4.5 standard errors, a false alarm in 25,000. Shared, they would be 1."""
    half = torch.full((3 * _BLOCK, 3000), 0.5)
    drawn = 2 * fixed_draw(half, 3, split)[::_BLOCK] - 1
    struck = corrupt(torch.full((3, 3000), 0.5), SaltAndPepper(1.0), seed=3)
    assert abs((drawn * (2 * struck - 1)).mean()) < 4.5 / drawn.numel() ** 0.5


@pytest.mark.parametrize("binarise", ["once", "none"])
def test_training_images_that_are_fixed_take_nothing_from_the_generator(binarise: str) -> None:
    d = load_dataset("digits", binarise=binarise)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    index = torch.tensor([5, 2, 2, 1296])
    assert torch.equal(d.train_batch(index, generator), d.train[index])
    assert torch.equal(generator.get_state(), state)
    assert (set(d.train.unique().tolist()) == {0.0, 1.0}) == (binarise == "once")


def test_grey_values_are_sixteenths() -> None:
    d = load_dataset("digits", binarise="none")
    sixteenths = d.evaluation("test") * 16
    assert torch.equal(sixteenths, sixteenths.round())
    assert d.train.max() == 1


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "cifar"}, "name must be one of digits, mnist, frey, omniglot, fashion_mnist,"),
        (
            {"name": "digits", "binarise": "x"},
            "binarise must be one of dynamic, once, fixed, none; got 'x'",
        ),
        (
            {"name": "digits", "binarise": "fixed"},
            "binarise must be one of dynamic, once, none for digits (fixed exists for mnist "
            "alone); got 'fixed'",
        ),
        ({"name": "digits", "seed": np.int64(-1)}, "seed must be an int from 0 to 2**32 - 1, got"),
        ({"name": "digits", "seed": -1}, "seed must be an int from 0 to 2**32 - 1, got -1"),
        ({"name": "digits", "seed": 2**32}, "seed must be an int from 0"),
        ({"name": "digits", "seed": 1.5}, "seed must be an int from 0"),
    ],
)
def test_wrong_arguments_name_the_rule(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_dataset(**arguments)
    assert message in str(caught.value)


def test_wrong_split_names_the_valid_ones() -> None:
    d = load_dataset("digits")
    with pytest.raises(ValueError, match="split must be one of train, valid, test; got 'dev'"):
        d.evaluation("dev")


# --- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files with the shapes of the real ones, and content that tells the index."""
    path = tmp_path_factory.mktemp("data")
    train, test = np.zeros((60000, 28, 28), np.uint8), np.zeros((10000, 28, 28), np.uint8)
    train[:, 0, 0], train[:, 27, 5] = np.arange(60000) % 256, np.arange(60000) // 256
    test[:, 3, 4] = 255
    np.savez(path / "mnist.npz", train_images=train, test_images=test)
    packed = {}
    for i, (split, count) in enumerate([("train", 50000), ("valid", 10000), ("test", 10000)]):
        bits = np.zeros((count, 784), np.uint8)
        bits[:, i] = 1
        bits[7, 783] = 1
        packed[split] = np.asarray(np.packbits(bits, axis=1), order="F")
    np.savez_compressed(path / "binarized_mnist.npz", **packed)
    frames = np.zeros((1965, 28, 20), np.uint8)
    frames[:, 0, 0], frames[:, 27, 19] = np.arange(1965) % 256, np.arange(1965) // 256
    np.savez_compressed(path / "frey_face.npz", images=frames)
    return path


def test_mnist_keeps_its_order(folder: Path) -> None:
    d = load_dataset("mnist", binarise="none", folder=folder)
    assert [len(d.train), len(d.valid), len(d.test)] == [50000, 10000, 10000]
    assert d.image_shape == (28, 28)
    for images, index, original in ((d.train, 49999, 49999), (d.valid, 1, 50001)):
        expected = torch.zeros(28, 28)
        expected[0, 0], expected[27, 5] = original % 256 / 255, original // 256 / 255
        torch.testing.assert_close(images[index].view(28, 28), expected)
    assert torch.equal(d.test.sum(1), torch.ones(10000))


def test_folder_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(folder))
    assert load_dataset("frey", binarise="none").size == 560


def test_fixed_mnist_is_unpacked_row_by_row(folder: Path) -> None:
    d = load_dataset("mnist", binarise="fixed", folder=folder)
    for i, (split, count) in enumerate([("train", 50000), ("valid", 10000), ("test", 10000)]):
        images = d.evaluation(split)
        assert images.shape == (count, 784)
        assert images.is_contiguous()
        assert torch.equal(images[0].nonzero().flatten(), torch.tensor([i]))
        assert torch.equal(images[7].nonzero().flatten(), torch.tensor([i, 783]))
    generator = torch.Generator()
    assert torch.equal(d.train_batch(torch.tensor([7]), generator), d.train[7:8])


def test_frey_is_cut_in_three_disjoint_parts(folder: Path) -> None:
    d = load_dataset("frey", binarise="none", folder=folder)
    index = [
        ((part[:, 0] + 256 * part[:, -1]) * 255).round().int().tolist()
        for part in (d.train, d.valid, d.test)
    ]
    assert [len(i) for i in index] == [1572, 193, 200]
    assert sorted(sum(index, [])) == list(range(1965))  # noqa: RUF017
    assert index[0] != sorted(index[0])
    assert d.image_shape == (28, 20)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "frey_face.npz"
    file.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"frey_face\.npz cannot be read as an \.npz file"):
        load_dataset("frey", folder=tmp_path)
    np.savez(file, faces=np.zeros((1965, 28, 20), np.uint8))
    with pytest.raises(DataError, match=r"frey_face\.npz must hold an array 'images'"):
        load_dataset("frey", folder=tmp_path)
    np.savez(file, images=np.zeros((1965, 560), np.uint8))
    with pytest.raises(DataError, match=r"uint8 of shape \(1965, 28, 20\), got uint8 of shape"):
        load_dataset("frey", folder=tmp_path)
    np.savez(file, images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read"):
        load_dataset("frey", folder=tmp_path)


def _npy(header: bytes, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header + values


def _zipped(path: Path, entry: bytes, name: str = "images.npy") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, entry)


FREY = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1965, 28, 20)}"
GIANT = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000000, 28, 20)}"


@pytest.mark.parametrize(
    "entry, message",
    [
        (b"not an array", "cannot be read.*magic string"),
        (b"", "cannot be read"),
        (_npy(b"(" * 5000), "cannot be read"),
        (_npy(b"{" + b"'a': [" * 1000 + b"]" * 1000 + b"}"), "cannot be read"),
        (_npy(GIANT), r"uint8 of shape \(1965, 28, 20\), got uint8 of shape \(4000000000000, 28"),
        (_npy(FREY, bytes(1000)), "'images' does not hold 1100400 bytes"),
        (_npy(FREY, bytes(1100401)), "'images' does not hold 1100400 bytes"),
        (_npy(FREY.replace(b"|u1", b"|S1"), bytes(1100400)), r"got \|S1 of shape"),
        (_npy(FREY, version=b"\3\0"), r"of npy version \(3, 0\)"),
        (_npy(FREY, version=b"\7\0"), "cannot be read"),
    ],
    ids=["no magic", "empty", "brackets", "nested", "giant", "short", "long", "strings", "npy 3",
         "npy 7"],
)  # fmt: skip
def test_damaged_arrays_are_one_line(entry: bytes, message: str, tmp_path: Path) -> None:
    _zipped(tmp_path / "frey_face.npz", entry)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("frey", folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_an_array_is_not_unpacked_before_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MB of zeros in 40 kB: too many for their header, and, with another, of another shape."""
    read: list[int] = []
    original = zipfile.ZipExtFile.read

    def counted(self: Any, n: int = -1) -> bytes:
        data = original(self, n)
        read.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    for header, message in ((FREY, "does not hold 1100400 bytes"), (GIANT, "got uint8 of shape")):
        _zipped(tmp_path / "frey_face.npz", _npy(header, bytes(40_000_000)))
        read.clear()
        with pytest.raises(DataError, match=message):
            load_dataset("frey", folder=tmp_path)
        assert sum(read) < 2_000_000


def test_encrypted_arrays_and_other_checksums_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "frey_face.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", _npy(FREY, bytes(1100400)))
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\1\2")
    for at in (6, central + 8):  # the flag of either header that says so
        data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"frey_face\.npz cannot be read.*encrypted"):
        load_dataset("frey", folder=tmp_path)
    for at in (6, central + 8):
        data[at] &= 0xFE
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"frey_face\.npz cannot be read.*CRC"):
        load_dataset("frey", folder=tmp_path)


def test_data_is_the_same_under_any_default(folder: Path) -> None:
    expected = load_dataset("digits")
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            found = load_dataset("digits")
            test = found.evaluation("test")
            batch = found.train_batch(
                torch.arange(5, device="cpu"), torch.Generator("cpu").manual_seed(3)
            )
    finally:
        torch.set_default_device(None)
    assert not test.is_inference()
    assert torch.equal(test, expected.evaluation("test"))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(batch, expected.train_batch(torch.arange(5), generator))


@pytest.mark.skipif(REAL_FOLDER is None, reason="DVAE_FAST_DATA is not set")
@pytest.mark.parametrize(
    "name, binarise, means",
    [
        ("mnist", "none", (None, None, 0.13251)),
        ("mnist", "fixed", (0.13056, 0.13113, 0.13251)),
        ("frey", "none", (None, None, None)),
    ],
)
def test_the_real_files(name: str, binarise: str, means: tuple[float | None, ...]) -> None:
    d = load_dataset(name, binarise=binarise, folder=REAL_FOLDER)
    for split, mean in zip(data.SPLITS, means, strict=True):
        if mean is not None:
            assert d.evaluation(split).mean().item() == pytest.approx(mean, abs=1e-5)
    if name == "frey":
        everything = torch.cat([d.train, d.valid, d.test]) * 255
        assert everything.mean().item() == pytest.approx(154.461, abs=1e-3)
        assert len(set(rows(everything))) == 1965


# --- absent, and downloads --------------------------------------------------------------------


def offline(url: str, *_: Any, **__: Any) -> str:
    raise ConnectionError(f"cannot resolve the host of {url}\nand more, over several lines")


@pytest.mark.parametrize(
    "binarise, file", [("dynamic", "mnist.npz"), ("fixed", "binarized_mnist.npz")]
)
def test_offline_and_absent_is_one_clear_line(
    binarise: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.retrieve", offline)
    with pytest.raises(DataError) as unset:
        load_dataset("mnist", binarise=binarise)
    message = str(unset.value)
    assert message.startswith(f"{file} was not found: DVAE_FAST_DATA is not set, and http")
    assert "could not be fetched (no connection)" in message
    assert "It is an .npz file with " in message
    assert f"Put {file} into a folder and set DVAE_FAST_DATA to that folder." in message
    assert "\n" not in message

    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(DataError) as empty:
        load_dataset("mnist", binarise=binarise)
    assert f"{tmp_path} does not hold it" in str(empty.value)
    assert f"Put {file} there, or set DVAE_FAST_DATA" in str(empty.value)
    with pytest.raises(DataError, match="nowhere is no folder"):
        load_dataset("mnist", binarise=binarise, folder=tmp_path / "nowhere")


def test_frey_is_never_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("tried to download"))
    with pytest.raises(DataError) as caught:
        load_dataset("frey")
    message = str(caught.value)
    assert message.startswith("frey_face.npz was not found: DVAE_FAST_DATA is not set")
    assert "no download with a published checksum" in message
    assert "(1965, 28, 20)" in message


@pytest.mark.parametrize(
    "name, module, package",
    [("mnist", "pooch", "pooch"), ("digits", "sklearn.datasets", "scikit-learn")],
)
def test_missing_package_is_named(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((DataError, MissingExtraError)) as caught:
        load_dataset(name)
    assert f"the package {package}, which is not installed" in str(caught.value)
    assert "pip install 'dvae_fast[train]'" in str(caught.value)


def idx(array: np.ndarray[Any, Any]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_mnist_is_downloaded_from_the_first_mirror_that_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte.gz": generator.integers(0, 256, (5, 28, 28)),
        "t10k-images-idx3-ubyte.gz": generator.integers(0, 256, (3, 28, 28)),
    }
    asked = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        asked.append(url)
        assert known_hash.startswith("md5:")
        assert len(known_hash) == 4 + 32
        if url.startswith("https://ossci-datasets") and fname.startswith("t10k"):
            raise ValueError("MD5 hash of downloaded file does not match the known hash")
        (tmp_path / fname).write_bytes(gzip.compress(idx(arrays[fname])))
        return str(tmp_path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    train, test = _mnist(None)
    np.testing.assert_array_equal(train, arrays["train-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(test, arrays["t10k-images-idx3-ubyte.gz"])
    assert train.dtype == np.uint8
    assert asked == [
        "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
        "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz",
        "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-images-idx3-ubyte.gz",
    ]


def test_fixed_mnist_is_downloaded_and_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (4, 784))

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        assert url.endswith(f"/binarized_mnist/{fname}")
        assert known_hash.startswith("sha256:")
        assert len(known_hash) == 7 + 64
        count = {"train": 4, "valid": 2, "test": 1}[fname[len("binarized_mnist_") : -len(".amat")]]
        lines = [" ".join(map(str, row)) + " \n" for row in bits[:count]]
        (tmp_path / fname).write_text("".join(lines))
        return str(tmp_path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    for part, count in zip(_fixed_mnist(None), (4, 2, 1), strict=True):
        assert part.dtype == np.uint8
        np.testing.assert_array_equal(part, bits[:count])


def test_fixed_mnist_is_asked_for_by_https_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def retrieve(url: str, *_: Any, **__: Any) -> str:
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(DataError, match=r"https://www\.cs\.toronto\.edu.*no route"):
        _fixed_mnist(None)
    assert [url.partition(":")[0] for url in asked] == ["https", "http"]


def test_a_download_with_the_wrong_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pooch's own check, over file URLs: nothing unverified is ever read."""
    import pooch

    for file in downloads.MNIST_FILES:
        (tmp_path / file).write_bytes(gzip.compress(idx(np.zeros((2, 28, 28)))))

    def copy(url: str, output_file: Any, _: Any) -> None:
        Path(output_file).write_bytes((tmp_path / url.rpartition("/")[2]).read_bytes())

    real = pooch.retrieve
    monkeypatch.setattr("pooch.retrieve", lambda *a, **k: real(*a, **k, downloader=copy))
    with pytest.raises(DataError, match=r"mnist\.npz was not found.*does not match the known hash"):
        _mnist(None)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"not gzip", "cannot be read as a gzip file"),
        (gzip.compress(b"\0\0\x0d\x03" + b"\0" * 12), "is not an idx file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03\0"), "is not an idx file of unsigned bytes"),
        (gzip.compress(idx(np.ones((2, 3, 4)))[:-1]), "must hold 24 values.*got 23"),
        (gzip.compress(idx(np.ones((2, 3, 4))) + b"\0"), "must hold 24 values.*it holds more"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "must hold 79228162458924105385300197375"),
        (gzip.compress(b"\0\0\x08\xff" + b"\0\0\0\1" * 255), "is not an idx file"),
        (gzip.compress(idx(np.ones((2, 3, 4))))[:-9], "cannot be read as a gzip file"),
        (gzip.compress(b"x")[:10] + b"\xff" * 20, "cannot be read as a gzip file"),
    ],
    ids=[
        "not-gzip",
        "floats",
        "short-header",
        "short-values",
        "more",
        "giant",
        "rank",
        "cut-off",
        "bad-deflate",
    ],
)
def test_damaged_idx_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"x-ubyte.gz {message}"):
        downloads.read_idx(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("<html>404</html>", "must hold the numbers 0 and 1 alone"),
        ("0 1 2 ", "must hold the numbers 0 and 1 alone"),
        ("0 1 " * 300, "must hold lines of 784 numbers, got 600 numbers"),
        ("", "must hold lines of 784 numbers, got 0 numbers"),
    ],
    ids=["html", "two", "short-line", "empty"],
)
def test_damaged_amat_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.amat"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        downloads.read_amat(path)
