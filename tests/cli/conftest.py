"""What every test of the command line has: pictures that are quick to write."""

from __future__ import annotations

import pytest

from dvae_fast import plots


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_DPI", 20)
