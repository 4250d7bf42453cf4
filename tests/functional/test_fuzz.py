"""Random calls against plain PyTorch in float64: 300 in CI, 20,000 at night scale."""

from __future__ import annotations

import fuzz
import pytest
import torch

# torch's own doing, at the first jvp and the first compilation.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # What losses say of operands that random calls have: levels rounded to 16 bits, and logits that
    # may all be probabilities.
    pytest.mark.filterwarnings("ignore:the loss is (not )?finite:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The decoder's outputs, taken for logits:RuntimeWarning"),
]


def _findings(cases: range) -> list[str]:
    found = []
    for case in cases:
        try:
            fuzz.check(case)
        except fuzz.Finding as finding:
            found.append(str(finding))
    return found


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_random_calls(first: int) -> None:
    assert _findings(range(first, first + 50)) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(150, 20_000, 1500))
def test_many_random_calls(first: int) -> None:
    assert _findings(range(first, first + 1500)) == []


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.nn.functional.logsigmoid
    monkeypatch.setattr(fuzz.F, "logsigmoid", lambda x: right(x) * (1 + 1e-3))
    assert len(_findings(range(1, 100))) > 10
    monkeypatch.undo()


def test_the_ledger_is_what_torch_does() -> None:
    """A finding that torch no longer has is to be taken from the ledger."""
    x = torch.rand(1, 3).expand(4, 3)
    with pytest.raises(RuntimeError) as raised:
        torch.func.jvp(torch.sin, (x,), (torch.rand(4, 3),))
    assert any(known in str(raised.value) for known in fuzz.LEDGER)
