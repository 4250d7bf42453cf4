"""What pictures hold: the arrays and labels of a figure, before it becomes pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dvae_fast import plots
from dvae_fast.data.dataset import evenly_spaced
from dvae_fast.plots import _GAP, image_grid, write_figure
from dvae_fast.table_plots import plot_columns

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("matplotlib")

SHAPE = (3, 2)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is written, in order."""
    found: list[Any] = []
    write = write_figure

    def keep(figure: Any, path: Path) -> None:
        found.append(figure)
        write(figure, path)

    monkeypatch.setattr(plots, "write_figure", keep)
    return found


def shown(figure: Any, panel: int = 0) -> np.ndarray[Any, Any]:
    """The array of a panel's image; NaN between the images."""
    return np.asarray(figure.axes[panel].images[0].get_array().filled(np.nan))


def test_a_grid_has_images_row_by_row() -> None:
    images = torch.arange(5 * 6).reshape(5, 6) / 30
    grid = plots.image_grid(images, SHAPE, 3)
    zoom = 56 // 3
    height, width = 3 * zoom + _GAP, 2 * zoom + _GAP
    assert grid.shape == (2 * height + _GAP, 3 * width + _GAP)
    for i in range(5):
        top, left = _GAP + i // 3 * height, _GAP + i % 3 * width
        one = grid[top : top + 3 * zoom : zoom, left : left + 2 * zoom : zoom]
        assert torch.equal(one, images[i].reshape(SHAPE))
    assert bool(grid[:_GAP].isnan().all())
    assert bool(grid[height + _GAP :, 2 * width + _GAP :].isnan().all()), "no sixth"


@pytest.mark.parametrize(("columns", "expected"), [(None, 3), (4, 4), (1, 1)])
def test_samples_have_the_columns_asked_for(
    tmp_path: Path, figures: list[Any], columns: int | None, expected: int
) -> None:
    images = torch.rand(12, 4)
    plots.plot_samples(images, (2, 2), tmp_path / "a.png", columns=columns, title="a title")
    grid = plots.image_grid(images, (2, 2), expected)
    np.testing.assert_array_equal(shown(figures[0]), grid.numpy())
    assert figures[0].axes[0].get_title() == "a title"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_rows_keep_their_order_and_labels(tmp_path: Path, figures: list[Any]) -> None:
    x, noisy, mean = torch.rand(3, 4, 6)
    plots.plot_rows([("x", x), ("5 %", noisy), ("x", mean)], SHAPE, tmp_path / "rows.png")
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["x", "5 %", "x"]
    for i, images in enumerate((x, noisy, mean)):
        expected = plots.image_grid(images, SHAPE, 4)
        np.testing.assert_array_equal(shown(figures[0], i), expected.numpy())
    plots.plot_reconstructions(x, None, mean, SHAPE, tmp_path / "rows.png")
    assert [axes.get_ylabel() for axes in figures[1].axes] == ["$x$", "reconstruction"]


def test_filters_are_scaled_each_by_its_largest_weight(tmp_path: Path, figures: list[Any]) -> None:
    weights = torch.tensor([[-2.0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0.5], [0] * 6])
    plots.plot_filters({"VAE": weights, "DVAE": 3 * weights}, SHAPE, tmp_path / "filters.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["VAE", "DVAE"]
    values = shown(figures[0])
    np.testing.assert_array_equal(shown(figures[0], 1), values)
    assert np.unique(values[~np.isnan(values)]).tolist() == [0, 0.5, 0.75, 1]


def test_nothing_is_made_on_the_default_device(figures: list[Any], tmp_path: Path) -> None:
    """On meta, what is drawn would have no values."""
    images, table = torch.rand(5, 18), torch.randn(20, 3).double()
    counts = table.mul(3).round().abs()
    expected = image_grid(images, (3, 3, 2), 2)
    torch.set_default_device("meta")
    try:
        grid, some = image_grid(images, (3, 3, 2), 2), evenly_spaced(images, 3)
        for values in (table, counts):
            plot_columns(values, values.flip(0), ("a", "b", "c"), tmp_path / "columns.png")
        plots.plot_samples(images, (3, 3, 2), tmp_path / "samples.png")
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(grid, expected, equal_nan=True)
    assert torch.equal(some, images[[0, 1, 3]])
    assert len(figures) == 1
