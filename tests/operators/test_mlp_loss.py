"""The loss of an autoencoder of perceptrons and its gradients in one pass: `mlp_loss`."""

from __future__ import annotations

import math
from typing import Any

import mlp_loss_cases
import pytest
import torch
from mlp_loss_cases import SIZES, assert_is, assert_is_rounded, expected, make, run
from torch import Tensor

import dvae_fast  # noqa: F401  (registers the operator)

CASES = mlp_loss_cases.cases()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_is_the_reference(name: str, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    args = make(*case, dtype)
    assert_is(run(args), expected(args), name)


def test_a_number_of_threads_has_its_bits_and_others_are_close() -> None:
    """Also with more threads than rows, and than there are cores."""
    args = make(SIZES[2], "masking", "iwae", "tanh", torch.float64)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            once = run(args)
            for a, b in zip(once, run(args), strict=True):
                assert torch.equal(a, b)
            assert_is(once, expected(args), str(count))
    finally:
        torch.set_num_threads(before)


def test_rows_of_bfloat16_are_whatever_comes_with_them() -> None:
    """Examples that are not finite leave others' gradients alone, and are seen in their own."""
    args = make(SIZES[2], "masking", "iwae", "softplus")
    x = args[0]
    x[5, 2] = math.nan
    loss, *gradients = run(args, bfloat16=True)
    assert loss.isnan()
    assert gradients[0].isnan().any()
    x[5, 2] = 1.0
    assert_is_rounded(run(args, bfloat16=True), expected(args))
    strided = torch.stack((x, torch.full_like(x, math.nan)), -1)[..., 0]
    again = run((strided, *args[1:]), bfloat16=True)
    assert all(map(torch.equal, run(args, bfloat16=True), again))


def test_doubles_are_not_rounded() -> None:
    args = make(SIZES[0], "masking", "iwae", "softplus", torch.float64)
    assert all(map(torch.equal, run(args, bfloat16=True), run(args)))


def test_samples_of_next_to_no_weight_are_right() -> None:
    """Weights so small that what they hand on is denormal."""
    args = make(SIZES[3], "identity", "iwae", "softplus")
    args[9][0].mul_(40)
    assert_is(run(args), expected(args))
    # The caller's arithmetic is as it was.
    assert torch.tensor(1e-30) * torch.tensor(1e-12) > 0


def test_parts_of_a_batch_add_up_to_it() -> None:
    args = make(SIZES[0], "salt_and_pepper", "iwae", "softplus", torch.float64)
    whole, x = run(args), args[0]
    parts = [
        (len(x[rows]) / len(x), run((x[rows], *args[1:7], args[7] + rows.start, *args[8:])))
        for rows in (slice(0, 2), slice(2, len(x)))
    ]
    for i, t in enumerate(whole):
        total = sum(share * part[i] for share, part in parts)
        torch.testing.assert_close(total, t, rtol=1e-9, atol=1e-12)


def test_strided_layers_and_data_are_those_in_order() -> None:
    args = make(SIZES[0], "gaussian", "elbo", "relu")

    def strided(t: Tensor) -> Tensor:
        return torch.stack((t, torch.full_like(t, math.nan)), -1)[..., 0]

    spread = (
        strided(args[0]), *args[1:8], *([strided(t) for t in ts] for ts in args[8:10]), *args[10:],
    )  # fmt: skip
    for a, b in zip(run(spread), run(args), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    """In the loss, and in the gradients of what it went through."""
    args = make(SIZES[0], "identity", "iwae", "softplus")
    args[0][2, 3] = value
    loss, *gradients = run(args)
    assert not loss.isfinite()
    assert gradients[0].isnan().any()


def test_a_relu_that_is_off_stops_what_is_not_finite() -> None:
    """As torch has it: 0 and not 0 · inf."""
    args = make(SIZES[2], "masking", "iwae", "relu")
    x, rates, encoder = args[0], args[2], args[8]
    rates.fill_(1.0)  # the encoder sees none of it
    x[1, 4] = math.inf
    encoder[1][0], encoder[1][1] = -1.0, 1.0
    got, wanted = run(args), expected(args)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    of_bias = got[2]
    assert of_bias[0] == 0
    assert of_bias[1].isnan()


def test_opcheck() -> None:
    args = make(SIZES[0], "masking", "iwae, dreg", "tanh")
    torch.library.opcheck(
        torch.ops.dvae_fast.mlp_loss.default,
        args,
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, torch.zeros(7, 18), "must have shape"),
        (0, torch.zeros(0, 19), "must be >= 1"),
        (5, 0, "must be >= 1"),
        (8, [], "weights and biases in turn"),
        (10, "gelu", "activation must be"),
        (11, "gaussian", "must have no scale"),
    ],
)
def test_refuses_what_is_wrong(at: int, value: Any, says: str) -> None:
    args = list(make(SIZES[0], "masking", "iwae", "tanh"))
    args[at] = value
    with pytest.raises(RuntimeError, match=says):
        run(tuple(args))
