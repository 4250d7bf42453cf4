"""`DVAE_FAST_SAMPLE=n`: of a test of many cases, every n-th, for machines that are had for minutes.

Cases in float64 and float16 come last then: a run that is cut short has tried the others. Without
it, nothing is changed.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

#: cases up to which a test is run whole
WHOLE = 24


def _sample() -> int:
    text = os.environ.get("DVAE_FAST_SAMPLE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise pytest.UsageError(f"DVAE_FAST_SAMPLE must be an integer >= 1, got {text!r}")
    return int(text)


def _is_late(item: Any) -> bool:
    return "float64" in item.name or "float16" in item.name.replace("bfloat16", "")


@pytest.hookimpl(trylast=True)  # of what -k has selected
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    every = _sample()
    if every == 1:
        return
    counts: dict[Any, int] = {}
    for item in items:
        counts[_test(item)] = counts.get(_test(item), 0) + 1
    kept, left_out, seen = [], [], dict.fromkeys(counts, 0)
    for item in items:
        number, seen[_test(item)] = seen[_test(item)], seen[_test(item)] + 1
        whole = counts[_test(item)] <= WHOLE
        (kept if whole or number % every == 0 else left_out).append(item)
    items[:] = sorted(kept, key=_is_late)
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def _test(item: Any) -> tuple[str, str]:
    """The function that it is a case of."""
    return item.nodeid.partition("::")[0], getattr(item, "originalname", item.name)
