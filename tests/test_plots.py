"""What pictures hold: the arrays and labels of a figure, before it becomes pixels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dvae_fast import plots, table_plots
from dvae_fast._extras import MissingExtraError
from dvae_fast.data.dataset import evenly_spaced
from dvae_fast.plots import _GAP, image_grid
from dvae_fast.table_plots import plot_columns, plot_table_rows

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.text import Text

SHAPE = (3, 2)


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
    tmp_path: Path, columns: int | None, expected: int
) -> None:
    images = torch.rand(12, 4)
    figure = plots.plot_samples(
        images, (2, 2), tmp_path / "a.png", columns=columns, title="a title"
    )
    grid = plots.image_grid(images, (2, 2), expected)
    np.testing.assert_array_equal(shown(figure), grid.numpy())
    assert figure.axes[0].get_title() == "a title"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_rows_keep_their_order_and_labels() -> None:
    x, noisy, mean = torch.rand(3, 4, 6)
    figure = plots.plot_rows([("x", x), ("5 %", noisy), ("x", mean)], SHAPE)
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "5 %", "x"]
    for i, images in enumerate((x, noisy, mean)):
        expected = plots.image_grid(images, SHAPE, 4)
        np.testing.assert_array_equal(shown(figure, i), expected.numpy())
    figure = plots.plot_reconstructions(x, None, mean, SHAPE)
    assert [axes.get_ylabel() for axes in figure.axes] == ["$x$", "reconstruction"]


def test_filters_are_scaled_each_by_its_largest_weight() -> None:
    weights = torch.tensor([[-2.0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0.5], [0] * 6])
    figure = plots.plot_filters({"VAE": weights, "DVAE": 3 * weights}, SHAPE)
    assert [axes.get_title() for axes in figure.axes] == ["VAE", "DVAE"]
    values = shown(figure)
    np.testing.assert_array_equal(shown(figure, 1), values)
    assert np.unique(values[~np.isnan(values)]).tolist() == [0, 0.5, 0.75, 1]


def test_nothing_is_made_on_the_default_device() -> None:
    """On meta, what is drawn would have no values."""
    images, table = torch.rand(5, 18), torch.randn(20, 3).double()
    counts = table.mul(3).round().abs()
    expected = image_grid(images, (3, 3, 2), 2)
    torch.set_default_device("meta")
    try:
        grid, some = image_grid(images, (3, 3, 2), 2), evenly_spaced(images, 3)
        for values in (table, counts):
            plot_columns(values, values.flip(0), ("a", "b", "c"))
        figure = plots.plot_samples(images, (3, 3, 2))
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(grid, expected, equal_nan=True)
    assert torch.equal(some, images[[0, 1, 3]])
    assert len(figure.axes) == 1


# --- figures, and axes of the caller's ------------------------------------------------------------

HISTORY = [{"epoch": i, "train_bound": -9.0 / i, "valid_bound": -9.5 / i} for i in (1, 2, 3)]
X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
SINGLE: dict[str, Any] = {
    "learning_curve": lambda **o: plots.plot_learning_curve(HISTORY, **o),
    "samples": lambda **o: plots.plot_samples(X, SHAPE, **o),
    "bounds": lambda **o: plots.plot_bounds((1, 5, 7), -X[:, :3], X[:, 3:] / 9, **o),
    "ess": lambda **o: plots.plot_ess(9 * X[:, 0], torch.tensor([50] * 4), few=10.0, **o),
    "worst": lambda **o: plots.plot_worst(X, X, ["a", "b", "c", "d"], SHAPE, **o),
}
PANELS: dict[str, Any] = {
    "rows": lambda **o: plots.plot_rows([("x", X), ("y", X)], SHAPE, **o),
    "reconstructions": lambda **o: plots.plot_reconstructions(X, None, X, SHAPE, **o),
    "filters": lambda **o: plots.plot_filters({"a": X, "b": -X}, SHAPE, **o),
    "columns": lambda **o: plot_columns(X[:, :2], X[:, 2:4], ("a", "b"), **o),
    "table_rows": lambda **o: plot_table_rows([("x", X), ("y", X)], **o),
}


def test_every_picture_is_here() -> None:
    names = {name for name in (*plots.__all__, *table_plots.__all__) if name.startswith("plot_")}
    assert names == {f"plot_{name}" for name in (*SINGLE, *PANELS)}


@pytest.mark.parametrize("name", [*SINGLE, *PANELS])
def test_a_figure_is_returned_written_and_shown_by_a_notebook(name: str, tmp_path: Path) -> None:
    draw = (SINGLE | PANELS)[name]
    path = tmp_path / "a.png"
    figure = draw(path=path, title="a title")
    assert isinstance(figure, Figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = figure._repr_png_  # type: ignore[attr-defined]
    assert (shown.func, shown.args) == (plots._encoded, (figure,)), "as the file"
    assert "a title" in [t.get_text() for t in figure.findobj(Text)]
    assert draw().axes, "without a file"
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize("name", SINGLE)
def test_axes_are_drawn_in(name: str) -> None:
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert SINGLE[name](ax=right, title="mine") is figure
    assert figure.axes == [left, right]
    assert not left.has_data()
    assert right.has_data()
    assert right.get_title() == "mine"


@pytest.mark.parametrize("name", PANELS)
def test_panels_take_the_place_of_axes(name: str) -> None:
    figure = Figure(layout="constrained")
    left, right = figure.subfigures(2, 1)[1].subplots(1, 2)
    assert PANELS[name](ax=right) is figure
    added = figure.axes[2:]
    assert len(added) == 2
    assert all(axes.has_data() for axes in added)
    assert not left.has_data()
    figure.draw_without_rendering()
    assert all(axes.get_position().x0 > left.get_position().x1 for axes in added)
    titled = Figure(layout="constrained")
    PANELS[name](ax=titled.add_subplot(), title="mine")
    _, head, *panels = titled.axes
    assert [text.get_text() for text in head.texts] == ["mine"]
    titled.draw_without_rendering()
    assert all(axes.get_position().y1 <= head.get_position().y0 for axes in panels)


def test_what_is_no_subplot_is_refused() -> None:
    figure = Figure()
    placed = figure.add_axes((0.1, 0.1, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"ax must be a subplot, .* placed by hand"):
        PANELS["rows"](ax=placed)
    plots.plot_samples(X, SHAPE, ax=placed)
    for value, kind in ((figure.subplots(1, 2), "ndarray"), (figure, "Figure"), (3, "int")):
        for draw in (SINGLE["ess"], PANELS["filters"]):
            with pytest.raises(TypeError, match=f"ax must be one matplotlib Axes, got {kind}"):
                draw(ax=value)


def test_without_matplotlib_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (SINGLE | PANELS).values():
        with pytest.raises(MissingExtraError) as caught:
            draw()
        said = str(caught.value)
        assert said.startswith("drawing needs the package matplotlib, which is not installed: pip")
        assert "\n" not in said
