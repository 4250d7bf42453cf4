"""What the tests of likelihoods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def _validation() -> Iterator[None]:
    """Values are looked at, too."""
    import dvae_fast  # not before tests/conftest.py has started its server

    old = dvae_fast.set_validation(True)
    yield
    dvae_fast.set_validation(old)
