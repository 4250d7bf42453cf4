"""Models of other libraries, trained by them: their own estimate and the one of docs/libraries.py
agree within two standard errors, by the rule that it states. Skipped without the library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from docs_script import load_script

if TYPE_CHECKING:
    from pathlib import Path

libraries = load_script("libraries")

pytestmark = [pytest.mark.filterwarnings("ignore")]  # the libraries' own

# torch's, which everybody has, is trained less.
STEPS = {"torch": 150}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "torch" else [pytest.mark.library])
        for name in libraries.MODELS
    ],
)
def test_a_trained_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A false alarm in 480 of each, once for a version of the library, for seeds are fixed."""
    try:
        model = libraries.make(name, STEPS.get(name, 400))
    except ImportError as error:
        pytest.skip(str(error))
    found = libraries.compare(model, repeats=1)
    print(libraries.row(model, found))
    assert 0 < found.ours.mean_standard_error < 0.2
    assert found.distance <= libraries.MOST
    # It is trained: better than bits that are drawn for themselves at the data's mean.
    if name not in ("nb", "zinb"):
        known, x = libraries.digits()
        share = known.mean(0).clamp(0.01, 0.99)
        alone = (x * share.log() + (1 - x) * (1 - share).log()).sum(1).mean()
        assert found.ours.mean > float(alone)


def test_a_pair_that_does_not_agree_is_compared_once_more_and_then_counts() -> None:
    """Of estimates that are too far by 0 in the first look, and by 1 in the second."""

    class Estimate:
        def __init__(self, k: int) -> None:
            self.k, self.mean, self.mean_standard_error = k, -5.0, 0.1

    asked: list[tuple[int, int]] = []

    def ours(k: int, seed: int) -> Estimate:
        asked.append((k, seed))
        return Estimate(k)

    for off, ks in ((0.2, {10}), (1.0, {10, 40})):
        asked.clear()
        found = libraries.compare(libraries.Model("one", 10, lambda k, off=off: -5 + off, ours))
        assert {k for k, _ in asked} == ks
        assert found.distance == pytest.approx(off / (0.1 * math.sqrt(2)))
        assert (found.distance > libraries.MOST) == (off > 0.5)


def test_the_page_keeps_the_rows_that_are_not_made_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = f"Before\n{libraries.BEGIN}\n\n{libraries.HEAD}| a, k = 5 | old |\n| b, k = 5 | old |\n"
    text += f"\n{libraries.END}\nAfter\n"
    page.write_text(text)
    libraries.write(page, {"b": "| b, k = 5 | new |", "c": "| c, k = 5 | new |"})
    expected = text.replace("| b, k = 5 | old |", "| b, k = 5 | new |\n| c, k = 5 | new |")
    assert page.read_text() == expected
    found = libraries.PAGE.read_text()
    page.write_text(found)
    libraries.write(page, {})
    assert page.read_text() == found
