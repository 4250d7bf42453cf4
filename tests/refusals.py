"""Tests of wrong arguments, made from tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def assert_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """`call` raises `error`, with `message`, a regular expression, in what it says."""
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)


def refusals(
    cases: Sequence[tuple[Callable[[], Any], type[Exception], str]],
) -> Callable[..., None]:
    """A test of calls, each with what it raises and a regular expression of what that says."""

    @pytest.mark.parametrize("call, error, message", cases)
    def test(call: Callable[[], Any], error: type[Exception], message: str) -> None:
        assert_refused(call, error, message)

    return test
