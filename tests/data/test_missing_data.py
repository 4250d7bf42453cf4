"""Data of one's own of which some values are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dvae_fast.data import SPLITS, DataError, Dataset, describe, load_path
from dvae_fast.data.arrays import raw_arrays
from dvae_fast.data.own import build
from dvae_fast.data.sources import blocks

if TYPE_CHECKING:
    from pathlib import Path

N, D = 61, 5
RNG = np.random.default_rng(18)
GONE = RNG.random((N, D)) < 0.3
REAL = RNG.normal(5.0, 3.0, (N, D)) * np.arange(1, D + 1)


def with_gaps(array: Any) -> Any:
    return np.where(GONE.reshape(array.shape), np.nan, array)


def rows(data: Dataset) -> torch.Tensor:
    return torch.cat([getattr(data, split)[:] for split in SPLITS])


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (RNG.integers(0, 2, (N, D)), "binary"),
        (RNG.integers(0, 256, (N, 5, 1)), "8bit"),
        (RNG.integers(0, 256, (N, D)) / 255, "8bit"),
        (RNG.random((N, D)), "grey"),
        (RNG.poisson(9, (N, D)), "counts"),
        (REAL, "real"),
    ],
)
def test_what_is_missing_tells_nothing_of_the_kind(array: Any, kind: str) -> None:
    whole = Dataset.from_arrays(array)
    data = Dataset.from_arrays(with_gaps(array).astype(np.float32), missing="nan")
    assert (data.values, whole.values) == (kind, kind)
    for split in SPLITS:
        x, mask = data.evaluation(split), data.observed(data.evaluation(split)[:])
        assert mask is not None
        assert torch.equal(mask, ~x[:].isnan())
        if kind != "real":
            torch.testing.assert_close(x[:][mask], whole.evaluation(split)[:][mask])
    assert data.share_missing == pytest.approx(GONE.mean())
    assert f"{100 * GONE.mean():.3g} % missing" in describe(data)
    mean = torch.from_numpy(np.nanmean(data.train[:].numpy().astype(float), 0))
    torch.testing.assert_close(data.mean.double(), mean, rtol=1e-5, atol=1e-6)
    assert whole.observed(whole.train[:]) is None


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_columns_are_standardised_by_what_is_there(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = with_gaps(REAL)
    x[:55, 2] = np.nan  # of a column that some blocks have nothing of
    monkeypatch.setattr("dvae_fast.data.sources._BLOCK_BYTES", block * D * 8)
    assert len(list(blocks(raw_arrays({"train": x}, None, "x").parts["train"]))) == -(-N // block)
    data = Dataset.from_arrays(x, x[:3], x[3:5], missing="nan")
    np.testing.assert_allclose(data.scaling.shift, np.nanmean(x, 0), rtol=1e-12)
    np.testing.assert_allclose(data.scaling.scale, np.nanstd(x, 0), rtol=1e-10)
    images = Dataset.from_arrays(x.reshape(N, D, 1), x[:3, :, None], x[:3, :, None], missing="nan")
    np.testing.assert_allclose(images.scaling.shift, [np.nanmean(x)], rtol=1e-12)
    np.testing.assert_allclose(images.scaling.scale, [np.nanstd(x)], rtol=1e-10)
    back = data.scaling.undo(data.train[:]).numpy()
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)
    mask = ~torch.from_numpy(x).isnan()
    logs = np.log(data.scaling.scale)
    assert data.scaling.log_volume(D, mask) == pytest.approx((mask.numpy() * logs).sum() / N)


@pytest.mark.parametrize("binarise", ["dynamic", "once"])
def test_draws_leave_what_is_missing(binarise: str) -> None:
    """And are those of the same data without gaps."""
    grey = RNG.random((N, D))
    x = with_gaps(grey)
    options: Any = {"values": "grey", "binarise": binarise, "seed": 3}
    data = Dataset.from_arrays(x, missing="nan", **options)
    whole = Dataset.from_arrays(grey, **options)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    some = torch.tensor([4, 0, 9])
    pairs = [(d.evaluation("test")[:], d.evaluation("train")[:]) for d in (data, whole)]
    batches = [d.train_batch(some, g) for d, g in zip((data, whole), generators, strict=True)]
    for drawn, full in [*zip(*pairs, strict=True), tuple(batches)]:
        assert bool(drawn.isnan().any())
        there = ~drawn.isnan()
        assert torch.equal(drawn[there], full[there])
    assert torch.equal(batches[0].isnan(), data.train[some].isnan())
    raw = raw_arrays({"train": x, "valid": None, "test": None}, None, "x")
    if binarise == "dynamic":
        stream = build(raw, most_kept=0, missing="nan", **options)
        assert stream.streamed
        for split in SPLITS:
            one, other = (d.evaluation(split)[:] for d in (stream, data))
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_the_first_example_has_a_mean_of_what_is_there() -> None:
    x = with_gaps(REAL)
    data = Dataset.from_arrays(x, missing="nan")
    few = data.first(1, None)
    seen = ~data.train[:1].isnan()
    assert not bool(seen.any(0).all())  # of some column it has no value
    assert not bool(few.mean.isnan().any())
    there = seen.any(0)
    torch.testing.assert_close(few.mean[there], data.train[:1].nanmean(0)[there])
    assert torch.equal(few.mean[~there], data.mean[~there])


def test_blanks_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1.5,NA,2\n,4,\n3,nan,True\n" + "7,8,9\n" * 3)
    with pytest.raises(DataError, match="holds 'True' in row 3"):
        load_path(path, missing="nan")
    path.write_text("1.5,NA,2\n,4,\n3,nan,5.5\n" + "7,8,9\n" * 3)
    data = load_path(path, missing="nan", split="0.4,0.3,0.3")
    assert rows(data).shape == (6, 3)
    assert int(rows(data).isnan().sum()) == 4
    path.write_text("a,yes\n1,True\n0,\n,False\n" + "1,True\n" * 3)
    data = load_path(path, missing="nan", split="0.4,0.3,0.3")
    assert data.values == "binary"
    assert data.columns == ("a", "yes")
    assert int(rows(data).isnan().sum()) == 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((N, D), np.nan), "values must be numbers in training, got NaN alone"),
        (np.where(np.arange(D) == 3, np.nan, REAL), "got NaN alone in column 3: leave it out"),
        (np.where(GONE, np.inf, REAL), "values must be finite numbers, got inf in example"),
        (np.where(GONE, np.nan, -np.ones((N, D))), "the least is -1"),
    ],
)
def test_what_cannot_be_learnt_is_refused(array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(array, missing="nan")


def test_nan_is_refused_unless_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"got nan in example .*; --missing nan \(missing="):
        Dataset.from_arrays(with_gaps(REAL))
    with pytest.raises(ValueError, match="missing must be one of nan; got 'zero'"):
        Dataset.from_arrays(REAL, missing="zero")
    pixels = RNG.random((N, 1, D))
    pixels[:, 0, 2] = np.nan  # no table: nobody can leave a pixel out
    data = Dataset.from_arrays(pixels, missing="nan")
    assert float(data.mean[2]) == pytest.approx(float(data.mean[[0, 1, 3, 4]].mean()), rel=1e-5)
