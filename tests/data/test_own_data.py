"""Data of one's own: what values are, the split, labels, streams, torch's data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from refusals import refusals
from scipy import sparse
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dvae_fast.data import KINDS, SPLITS, Dataset, Streamed, misfit
from dvae_fast.data import dataset as dataset_module
from dvae_fast.data.examples import mean_of
from dvae_fast.data.own import Raw, build
from dvae_fast.data.sources import NpySource, Source, SparseSource
from dvae_fast.likelihoods import NAMED, get_likelihood
from dvae_fast.models import MODELS, make_model

if TYPE_CHECKING:
    from pathlib import Path

N, D = 53, 7
RNG = np.random.default_rng(3)
BYTES = RNG.integers(0, 256, (N, 3, 5, 4), np.uint8)
REAL = RNG.normal(5.0, 3.0, (N, D)) * np.arange(1, D + 1)
COUNTS = RNG.poisson(4.0, (N, D))


def rows(data: Dataset) -> torch.Tensor:
    return torch.cat([getattr(data, split)[:] for split in SPLITS])


def as_set(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


# --- what values are ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "kind", "divisor"),
    [
        (RNG.integers(0, 2, (N, D)), "binary", 1),
        (RNG.integers(0, 2, (N, D)).astype(bool), "binary", 1),
        (RNG.integers(0, 2, (N, D)).astype(np.float64), "binary", 1),
        (RNG.integers(0, 2, (N, D), np.uint8) * np.uint8(255), "binary", 255),
        (BYTES, "8bit", 255),
        (BYTES.reshape(N, -1), "8bit", 255),
        (BYTES.astype(np.int64), "8bit", 255),
        (BYTES.astype(np.float32), "8bit", 255),
        ((BYTES / 255).astype(np.float32), "8bit", 1),
        (RNG.random((N, D)), "grey", 1),
        (REAL, "real", None),
        (REAL.astype(np.float16), "real", None),
        (-RNG.random((N, 6, 5)), "real", None),
        (COUNTS, "counts", 1),
        (COUNTS.astype(">f4"), "counts", 1),
        (COUNTS * 1000, "counts", 1),
        (COUNTS.astype(np.uint16), "counts", 1),
    ],
)
def test_values_are_looked_at(array: Any, kind: str, divisor: float | None) -> None:
    data = Dataset.from_arrays(array)
    assert data.values == kind
    flat = torch.from_numpy(array.reshape(N, -1).astype(np.float64))
    found = rows(data)
    assert found.dtype == torch.float32
    assert len(found) == N
    if divisor is not None:
        assert as_set(found) == as_set((flat / divisor).float())
    low, high = KINDS[kind].interval
    assert low <= float(found.min())
    assert float(found.max()) <= high
    for name in NAMED:
        if misfit(KINDS[kind], name) is None:
            get_likelihood(name).check_support(found)
    suited = get_likelihood(KINDS[kind].likelihood)
    suited.start(data.mean)  # where the decoder's bias starts
    assert misfit(KINDS[kind], KINDS[kind].likelihood) is None
    torch.testing.assert_close(data.mean, data.train[:].double().mean(0).float())


def test_real_columns_are_standardised_by_the_training_rows() -> None:
    table = REAL.copy()
    table[:, 2] = 41.5  # nothing is known of its scale
    data = Dataset.from_arrays(table, seed=2)
    train = data.train[:].double()
    torch.testing.assert_close(train.mean(0), torch.zeros(D).double(), atol=1e-6, rtol=0)
    deviation = train.std(0, correction=0)
    assert deviation[2] == 0
    others = torch.arange(D) != 2
    torch.testing.assert_close(deviation[others], torch.ones(D - 1).double())
    undone = data.scaling.undo(rows(data))
    order = np.lexsort(undone.numpy().T[[0]])
    again = np.lexsort(table.T[[0]])
    np.testing.assert_allclose(undone.numpy()[order], table[again], rtol=1e-5, atol=1e-5)
    by_hand = np.log(table[:, [i for i in range(D) if i != 2]].std(0))
    assert data.scaling.log_volume(D) == pytest.approx(by_hand.sum(), abs=0.5)


def test_real_images_are_standardised_as_one() -> None:
    images = RNG.normal(9, 2, (N, 6, 5))
    data = Dataset.from_arrays(images)
    assert data.scaling.scale.shape == (1,)
    assert float(data.train[:].mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train[:].std(correction=0)) == pytest.approx(1, abs=1e-5)
    shaded = data.shaded(rows(data))
    assert (float(shaded.min()), float(shaded.max())) == (0, 1)


def test_whole_numbers_said_to_be_real_are_standardised() -> None:
    for dtype in (np.uint8, np.uint16, np.int32, np.float16):
        data = Dataset.from_arrays(COUNTS.astype(dtype), values="real")
        torch.testing.assert_close(data.train[:].std(0, correction=0), torch.ones(D))


def test_what_values_are_can_be_said() -> None:
    assert Dataset.from_arrays(COUNTS, values="real").values == "real"
    grey = Dataset.from_arrays(COUNTS.astype(np.uint8), values="grey")
    assert float(rows(grey).max()) == pytest.approx(COUNTS.max() / 255)
    negative = COUNTS - 3
    assert Dataset.from_arrays(negative, values="real").values == "real"


def test_a_kind_has_the_likelihoods_that_have_its_values() -> None:
    assert misfit(KINDS["counts"], "bernoulli") is not None
    assert misfit(KINDS["counts"], "negative_binomial") is None
    assert misfit(KINDS["real"], "gaussian") is not None  # whose mean lies in [0, 1]
    assert misfit(KINDS["real"], "gaussian_real") is None
    assert misfit(KINDS["grey"], "discretised_logistic") is not None
    assert misfit(KINDS["8bit"], "discretised_logistic") is None
    assert misfit(KINDS["binary"], "negative_binomial") is not None


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (BYTES, (3, 5, 4)),
        (np.moveaxis(BYTES, 1, -1), (3, 5, 4)),
        (BYTES[:, :1], (1, 5, 4)),
        (BYTES[:, 0], (5, 4)),
        (BYTES[:, 0, 0], None),
        (torch.from_numpy(BYTES), (3, 5, 4)),
    ],
)
def test_channels_come_first(array: Any, shape: tuple[int, ...] | None) -> None:
    data = Dataset.from_arrays(array)
    assert data.image_shape == shape
    size = int(np.prod(shape)) if shape else 4
    assert data.size == size
    wanted = (BYTES if shape is None or len(shape) == 2 else BYTES[:, : shape[0]]).reshape(N, -1)
    assert as_set(rows(data)) == as_set(torch.from_numpy(wanted[:, :size]).float() / 255)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_on_colours(model: str) -> None:
    data = Dataset.from_arrays(BYTES)
    made = make_model(
        model, data.size, 2, (5,), image_shape=data.image_shape, data_mean=data.mean,
        likelihood=KINDS[data.values].likelihood,
    )  # fmt: skip
    assert torch.isfinite(made.loss(data.train[:], 1))


# --- splits and labels ----------------------------------------------------------------------------


def test_parts_are_disjoint_and_whole() -> None:
    table = np.arange(N * 2).reshape(N, 2) + 300
    data = Dataset.from_arrays(table, labels=np.arange(N), split="0.6,0.25,0.15", seed=4)
    assert [len(getattr(data, split)) for split in SPLITS] == [32, 13, 8]
    firsts = (rows(data)[:, 0].long() - 300) // 2
    assert sorted(firsts.tolist()) == list(range(N))
    assert data.labels is not None
    assert torch.equal(torch.cat([data.labels[split] for split in SPLITS]), firsts)
    assert all(data.labels[split].dtype == torch.int64 for split in SPLITS)
    again = Dataset.from_arrays(table, split=(0.6, 0.25, 0.15), seed=4)
    assert torch.equal(rows(again), rows(data))
    assert not torch.equal(rows(Dataset.from_arrays(table, seed=5)), rows(data))


def test_parts_given_stay_and_the_others_are_cut() -> None:
    data = Dataset.from_arrays(COUNTS, test=COUNTS[:9])
    assert [len(getattr(data, split)) for split in SPLITS] == [N - 6, 6, 9]
    assert torch.equal(data.test[:], torch.from_numpy(COUNTS[:9]).float())
    data = Dataset.from_arrays(COUNTS, COUNTS[:4], COUNTS[:2], labels={
        "train": ["b"] * N, "valid": list("abca"), "test": ["c", "a"]
    })  # fmt: skip
    assert [len(getattr(data, split)) for split in SPLITS] == [N, 4, 2]
    assert data.classes == ("a", "b", "c")
    assert data.labels is not None
    assert data.labels["valid"].tolist() == [0, 1, 2, 0]
    assert data.labels["test"].tolist() == [2, 0]


def test_every_part_has_an_example() -> None:
    for count in (3, 4, 7):
        data = Dataset.from_arrays(COUNTS[:count])
        assert all(len(getattr(data, split)) >= 1 for split in SPLITS)


def test_first_takes_labels_along() -> None:
    data = Dataset.from_arrays(COUNTS, labels=np.arange(N)).first(5, 2)
    assert data.labels is not None
    assert (len(data.labels["train"]), len(data.labels["valid"])) == (5, 2)
    torch.testing.assert_close(data.mean, data.train[:].mean(0))


# --- streams --------------------------------------------------------------------------------------


def streamed(array: Any, path: Path, **options: Any) -> Dataset:
    np.save(path / "x.npy", array)
    return build(Raw("x", {"train": NpySource(path / "x.npy")}), most_kept=0, **options)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("array", [BYTES, np.moveaxis(BYTES, 1, -1), REAL, COUNTS])
def test_a_stream_is_the_same_as_in_memory(array: Any, order: Any, tmp_path: Path) -> None:
    stream = streamed(np.asarray(array, order=order), tmp_path)
    kept = Dataset.from_arrays(array)
    assert stream.streamed
    assert not kept.streamed
    assert stream.image_shape == kept.image_shape
    assert torch.equal(stream.mean, kept.mean)
    for split in SPLITS:
        x, y = getattr(stream, split), getattr(kept, split)
        assert isinstance(x, Streamed)
        assert (x.shape, len(x)) == (y.shape, len(y))
        index = torch.tensor([3, 0, 3, len(y) - 1])
        for at in (slice(None), slice(1, 3), slice(4, 2), slice(None, None, 2), index):
            assert torch.equal(x[at], y[at])
    torch.testing.assert_close(mean_of(stream.train), mean_of(kept.train))
    assert torch.equal(stream.first(4, 2).train[:], kept.train[:4])
    generator = torch.Generator()
    index = torch.tensor([5, 2, 2])
    assert torch.equal(stream.train_batch(index, generator), kept.train[index])


def test_draws_of_a_stream_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever parts are read: blocks of four examples, to have several of them."""
    monkeypatch.setattr(dataset_module, "_BLOCK", 4)
    grey = RNG.random((N, D))
    stream = streamed(grey, tmp_path, binarise="dynamic")
    kept = Dataset.from_arrays(grey, binarise="dynamic")
    for split in SPLITS:
        x, y = stream.evaluation(split), kept.evaluation(split)
        assert torch.equal(x[:], y)
        assert set(x[:].unique().tolist()) == {0.0, 1.0}
        assert torch.equal(x[1:3], y[1:3])
        assert torch.equal(x[3:5], y[3:5])
    index = torch.tensor([7, 1])
    one, other = (d.train_batch(index, torch.Generator().manual_seed(1)) for d in (stream, kept))
    assert torch.equal(one, other)


def test_a_stream_reads_what_is_asked_for_alone(tmp_path: Path) -> None:
    """No copy of the whole: after the one look, a batch reads its rows."""
    data = streamed(REAL, tmp_path)
    read: list[int] = []
    source: Any = data.train._source  # type: ignore[union-attr]
    original = source.read

    def counted(at: Any) -> Any:
        values = original(at)
        assert values.base is None  # a copy of those rows, which the map does not outlive
        read.append(len(values))
        return values

    source.read = counted
    data.train_batch(torch.tensor([1, 4, 9]), torch.Generator())
    data.evaluation("valid")[:4]
    assert read == [3, 4]


def test_a_memory_map_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvae_fast.data.own.MOST_KEPT", 0)
    np.save(tmp_path / "x.npy", REAL)
    data = Dataset.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert data.streamed
    monkeypatch.undo()
    assert torch.equal(rows(data), rows(Dataset.from_arrays(REAL)))


def test_sparse_counts_are_dense_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = sparse.random(N, 30, 0.1, "csc", np.float32, rng=1, data_rvs=lambda n: np.full(n, 3))
    kept = Dataset.from_arrays(matrix)
    assert kept.values == "counts"
    assert as_set(rows(kept)) == as_set(torch.from_numpy(matrix.toarray()))
    stream = build(Raw("x", {"train": SparseSource(matrix)}), most_kept=0)
    assert torch.equal(rows(stream), rows(kept))
    assert stream.fingerprint == kept.fingerprint


def test_the_fingerprint_is_of_the_values(tmp_path: Path) -> None:
    data = Dataset.from_arrays(REAL)
    assert data.fingerprint == Dataset.from_arrays(REAL.copy(), seed=3).fingerprint
    assert data.fingerprint == streamed(REAL, tmp_path).fingerprint
    changed = REAL.copy()
    changed[17, 3] += 1e-9
    others = [changed, REAL[:-1], REAL.T, REAL.astype(np.float32), REAL[::-1]]
    found = {Dataset.from_arrays(other).fingerprint for other in others}
    found.add(Dataset.from_arrays(REAL, labels=np.zeros(N, int)).fingerprint)
    assert len(found | {data.fingerprint}) == 7


# --- torch's data sets ----------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset[Any]):
    """Images and labels, read one by one."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        self.asked.append(i)
        return torch.from_numpy(BYTES[i]).float() / 255, int(i % 3)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.from_numpy(COUNTS).float())


def test_a_map_style_set_is_read_by_index() -> None:
    pairs = Pairs()
    data = Dataset.from_arrays(pairs)
    assert data.streamed
    assert data.values == "8bit"
    assert data.labels is not None
    pairs.asked.clear()
    x = data.train_batch(torch.tensor([4, 1]), torch.Generator())
    assert len(pairs.asked) == 2
    assert torch.equal(x, torch.from_numpy(BYTES[pairs.asked]).float().flatten(1) / 255)
    assert data.labels["train"][[4, 1]].tolist() == [i % 3 for i in pairs.asked]


def test_loaders_tensors_and_streams() -> None:
    x, y = torch.from_numpy(COUNTS).float(), torch.arange(N) % 4
    kept = Dataset.from_arrays(COUNTS.astype(np.float32), labels=y)
    for given in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), 5, shuffle=True)):
        data = Dataset.from_arrays(given)
        assert torch.equal(rows(data), rows(kept))
        assert data.labels is not None
        assert kept.labels is not None
        assert torch.equal(data.labels["valid"], kept.labels["valid"])
    for stream in (Stream(), DataLoader(Stream(), 5)):
        assert torch.equal(rows(Dataset.from_arrays(stream)), rows(kept))


# --- what does not fit ----------------------------------------------------------------------------


def _with(value: float) -> Any:
    array = REAL.copy()
    array[11, 2] = value
    return array


def _negative() -> Any:
    array = COUNTS.copy()
    array[40, 6] = -2
    return array


test_what_is_no_data = refusals(
    [
        (lambda: Dataset.from_arrays(_with(np.nan)), ValueError, "got nan in example 11, at 2"),
        (lambda: Dataset.from_arrays(_with(-np.inf)), ValueError, "got -inf in example 11, at 2"),
        (
            lambda: Dataset.from_arrays(_negative()),
            ValueError,
            "counts, >= 0, .* the least is -2, in example 40, at 6",
        ),
        (
            lambda: Dataset.from_arrays(_negative(), values="counts"),
            ValueError,
            "counts must be whole numbers >= 0, got whole numbers from -2",
        ),
        (
            lambda: Dataset.from_arrays(REAL, values="counts"),
            ValueError,
            "counts must be whole numbers >= 0, got values from",
        ),
        (
            lambda: Dataset.from_arrays(COUNTS + 2**25, values="counts"),
            ValueError,
            r"at most 2\*\*24",
        ),
        (lambda: Dataset.from_arrays(COUNTS, values="binary"), ValueError, "must be 0 and 1"),
        (lambda: Dataset.from_arrays(REAL, values="grey"), ValueError, "grey values must lie in"),
        (
            lambda: Dataset.from_arrays(RNG.random((9, 4)), values="8bit"),
            ValueError,
            "256 levels must be whole numbers",
        ),
        (lambda: Dataset.from_arrays(REAL, values="x"), ValueError, "values must be one of"),
        (
            lambda: Dataset.from_arrays(REAL, binarise="dynamic"),
            ValueError,
            "binarise must be none for real numbers, got 'dynamic'",
        ),
        (
            lambda: Dataset.from_arrays(BYTES, binarise="fixed"),
            ValueError,
            "binarise must be one of dynamic, once, none for your own data; got 'fixed'",
        ),
        (
            lambda: Dataset.from_arrays(COUNTS, labels=np.zeros(N - 1, int)),
            ValueError,
            "labels must be as many as the examples, 53 in train; got 52",
        ),
        (
            lambda: Dataset.from_arrays(COUNTS, labels=np.full(N, 0.5)),
            ValueError,
            "labels must be whole numbers, got 0.5",
        ),
        (
            lambda: Dataset.from_arrays(COUNTS, labels={"valid": np.zeros(3, int)}),
            ValueError,
            "labels must be of train, got some of 'valid'",
        ),
        (
            lambda: Dataset.from_arrays(COUNTS, COUNTS[:4], labels=np.zeros(N, int)),
            ValueError,
            "labels must be given for every part or for none; valid has none",
        ),
        (
            lambda: Dataset.from_arrays(COUNTS, COUNTS[:, :3]),
            ValueError,
            r"one shape, got \(7,\) in train and \(3,\) in valid",
        ),
        (lambda: Dataset.from_arrays(REAL * 1e200, values="real"), ValueError, "squares are fini"),
        (lambda: Dataset.from_arrays(COUNTS[:0]), ValueError, "train must hold examples, got none"),
        (lambda: Dataset.from_arrays(COUNTS[:2]), ValueError, "3 examples at least"),
        (lambda: Dataset.from_arrays(COUNTS[0]), ValueError, r"shape \(N, D\), .*, got \(7,\)"),
        (lambda: Dataset.from_arrays(np.zeros((4, 3, 2, 2, 2))), ValueError, "must have shape"),
        (
            lambda: Dataset.from_arrays(np.array([["a"]] * 5)),
            ValueError,
            "numbers, got <U1",
        ),
        (lambda: Dataset.from_arrays([[1, 2], [3]]), ValueError, "train must be an array"),
        (lambda: Dataset.from_arrays("x.npy"), TypeError, "train must be an array.*got str"),
        (lambda: Dataset.from_arrays(None), TypeError, "train must be an array, got None"),
        (lambda: Dataset.from_arrays(COUNTS, split="0.5,0.5"), ValueError, "split must be three"),
        (lambda: Dataset.from_arrays(COUNTS, split="1,0,0"), ValueError, "split must be three"),
    ]
)


def test_once_is_no_way_of_a_stream(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="binarise must be dynamic or none for data that are str"):
        streamed(BYTES, tmp_path, binarise="once")
    kept = Dataset.from_arrays(BYTES, binarise="once")
    assert set(rows(kept).unique().tolist()) == {0.0, 1.0}


def test_a_source_must_read() -> None:
    with pytest.raises(NotImplementedError):
        Source().read(slice(0, 1))


def test_a_long_slice_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of a few rows at a time, and the same numbers."""
    monkeypatch.setattr("dvae_fast.data.examples._BATCH", 8)
    data, kept = streamed(REAL, tmp_path), Dataset.from_arrays(REAL)
    source: Any = data.train._source  # type: ignore[union-attr]
    most = 0
    original = source.read

    def counted(at: Any) -> Any:
        nonlocal most
        values = original(at)
        most = max(most, len(values))
        return values

    source.read = counted
    for at in (slice(None), slice(3, 30), slice(5, 13)):
        assert torch.equal(data.train[at], kept.train[at])
    assert most == 8


@pytest.mark.parametrize("array", [BYTES, REAL, COUNTS.astype(np.float32), COUNTS > 4])
def test_rows_lie_on_end(array: Any) -> None:
    # Those of a table that Pandas or NumPy keeps by columns would be gathered number by number.
    arrays = [np.asarray(part, order="F") for part in (array, array[:9], array[9:20])]
    data, same = (Dataset.from_arrays(*parts) for parts in (arrays, [a.copy("C") for a in arrays]))
    for split in SPLITS:
        assert getattr(data, split).is_contiguous()
        assert torch.equal(getattr(data, split), getattr(same, split))


def test_arrays_in_memory_are_not_shared() -> None:
    array = COUNTS.astype(np.float32)
    data = Dataset.from_arrays(array, array[:5], array[5:9])
    before = data.train[:].clone()
    array[:] = 7
    assert torch.equal(data.train[:], before)
