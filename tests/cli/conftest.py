"""What every test of the command line has: pictures that are not drawn, or coarse ones."""

from __future__ import annotations

import pytest


@pytest.fixture
def drawn() -> None:
    """For a test that looks at the pixels."""


@pytest.fixture(autouse=True)
def _quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not of the package before tests/conftest.py has started its server.
    from command_line import undrawn

    from dvae_fast import plots

    if "drawn" in request.fixturenames:
        monkeypatch.setattr(plots, "_DPI", 20)
    else:
        undrawn(monkeypatch)
