"""A training step of an autoencoder of perceptrons in one operator: `mlp_step_`."""

from __future__ import annotations

import math
from typing import Any

import mlp_loss_cases
import pytest
import torch
from mlp_loss_cases import RELATIVE, SIZES, Sizes, assert_is_rounded, make
from torch import Tensor

from dvae_fast import reference

#: learning_rate, beta1, beta2, epsilon, weight_decay, rule, factor
ADAMS = {
    "adam": (0.01, 0.9, 0.999, 1e-8, 0.0, "adam", 1.0),
    "decay": (0.02, 0.8, 0.99, 1e-3, 0.3, "adam", 1.0),
    "decoupled": (0.02, 0.5, 0.9, 1e-4, 0.3, "decoupled", 1.0),
    "burda": (0.02, 0.8, 0.9, 1e-4, 0.0, "burda", 7.0),
}
# More rows than a tile has, so that gradients are added up from tile to tile.
CASES = [
    *mlp_loss_cases.cases()[::3],
    ("tiles", (Sizes(301, 1, 1, 11, 3, (7,), (6,)), "masking", "elbo", "tanh")),
    ("one tile a thread", (Sizes(67, 1, 1, 330, 3, (90,), (70, 41)), "bit_flip", "elbo", "relu")),
    ("one tile, samples", (Sizes(31, 1, 3, 40, 3, (90,), ()), "gaussian", "iwae", "softplus")),
]


def state_of(args: tuple[Any, ...], steps: float = 4.0) -> list[list[Tensor]]:
    """Means, squares and steps as after some steps; of layers without a bias they are empty."""
    g = torch.Generator().manual_seed(1)
    layers = [*args[8], *args[9]]
    means = [torch.randn(t.shape, generator=g).to(t.dtype) * 0.01 for t in layers]
    squares = [torch.rand(t.shape, generator=g).to(t.dtype) * 1e-3 for t in layers]
    return [means, squares, [torch.tensor(steps) for t in layers if t.numel()]]


def copied(args: Any, dtype: torch.dtype | None = None) -> Any:
    """With tensors of their own, those of layers and states in another dtype."""
    if isinstance(args, (list, tuple)):
        return type(args)(copied(a, dtype) for a in args)
    if not isinstance(args, Tensor):
        return args
    return (
        args.clone() if dtype is None or not args.is_floating_point() else args.to(dtype, copy=True)
    )


def step(
    args: tuple[Any, ...], state: list[list[Tensor]], adam: str, *, bfloat16: bool = False
) -> list[Tensor]:
    """Loss and norm, and what layers and state are then."""
    args, state = copied(args), copied(state)
    results = torch.ops.dvae_fast.mlp_step_(*args, bfloat16, *state, *ADAMS[adam])
    return [*results, *args[8], *args[9], *state[0], *state[1], *state[2]]


def expected(args: tuple[Any, ...], state: list[list[Tensor]], adam: str) -> list[Tensor]:
    """Of the reference in float64."""
    rate = args[2] if args[1] != "gaussian" else args[2].double()  # thresholds are of float32
    x, layers = args[0].double(), [copied(t, torch.float64) for t in args[8:10]]
    state = [copied(state[0], torch.float64), copied(state[1], torch.float64), copied(state[2])]
    told = (args[1], rate, *args[3:8], *layers, *args[10:], False)
    results = reference.mlp_step_(x, *told, *state, *ADAMS[adam])
    return [*results, *layers[0], *layers[1], *state[0], *state[1], *state[2]]


def assert_close(got: list[Tensor], wanted: list[Tensor], dtype: torch.dtype, name: str) -> None:
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape, (name, i)
        if a.numel():
            error = float((a.double() - b).abs().max() / (b.abs().max() + 1e-2))
            assert error <= 2 * RELATIVE[dtype], (name, i, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("number", range(len(CASES)), ids=[name for name, _ in CASES])
def test_is_the_reference(number: int, dtype: torch.dtype) -> None:
    name, case = CASES[number]
    adam = list(ADAMS)[number % len(ADAMS)]
    args = make(*case, dtype)
    state = state_of(args)
    assert_close(step(args, state, adam), expected(args, state, adam), dtype, name)


def test_reference_is_torchs_adam() -> None:
    """Three steps of each, against torch.optim."""
    for name, (rate, beta1, beta2, epsilon, decay, rule, factor) in ADAMS.items():
        if rule == "burda":
            continue  # tests/training/test_burda.py has its code to the letter
        g = torch.Generator().manual_seed(2)
        ours = [torch.randn(n, 3, generator=g).double() for n in (2, 5)]
        theirs = [t.clone().requires_grad_() for t in ours]
        kind = torch.optim.AdamW if rule == "decoupled" else torch.optim.Adam
        options: Any = {"lr": rate, "betas": (beta1, beta2), "eps": epsilon, "weight_decay": decay}
        optimizer = kind(theirs, **options)
        means, squares = ([torch.zeros_like(t) for t in ours] for _ in range(2))
        steps = [torch.zeros(()) for _ in ours]
        for _ in range(3):
            grads = [torch.randn(t.shape, generator=g).double() for t in ours]
            for t, grad in zip(theirs, grads, strict=True):
                t.grad = factor * grad
            optimizer.step()
            reference.adam_(ours, grads, means, squares, steps, *ADAMS[name])
        assert [float(s) for s in steps] == [3, 3]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), msg=name)


@pytest.mark.parametrize("case", [c for n, c in CASES if n.startswith(("tiles", "one tile"))])
def test_a_number_of_threads_has_its_bits_and_others_are_close(case: tuple[Any, ...]) -> None:
    args = make(*case, torch.float64)
    state = state_of(args)
    wanted = expected(args, state, "decay")
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            once = step(args, state, "decay")
            assert all(map(torch.equal, once, step(args, state, "decay")))
            assert_close(once, wanted, torch.float64, str(count))
    finally:
        torch.set_num_threads(before)


def test_products_may_be_rounded() -> None:
    """The gradients of bfloat16's products, by their means, which the squares do not see yet."""
    args = make(SIZES[2], "masking", "iwae", "softplus")
    state = state_of(args, 0.0)
    for tensors in state[:2]:
        for t in tensors:
            t.zero_()
    got, wanted = step(args, state, "adam", bfloat16=True), expected(args, state, "adam")
    count = len(args[8]) + len(args[9])
    means = slice(2 + count, 2 + 2 * count)
    assert_is_rounded((got[0], *got[means]), (wanted[0], *wanted[means]))


def test_a_weight_that_had_no_gradient_for_long_is_right() -> None:
    """Its mean and square are denormal, or 0."""
    args = make(CASES[-2][1][0], "identity", "elbo", "relu")
    state = state_of(args)
    args[0][:, :7] = 0  # the encoder's first columns have no gradient
    state[0][0][:, :7], state[1][0][:, :7] = 1e-42, 0.0
    state[1][0][:, 3:7] = 1e-41
    got, wanted = step(args, state, "adam"), expected(args, state, "adam")
    assert_close(got, wanted, torch.float32, "denormal")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    args = make(SIZES[0], "identity", "iwae", "softplus")
    args[0][2, 3] = value
    loss, norm, weight = step(args, state_of(args), "adam")[:3]
    assert not loss.isfinite()
    assert norm.isnan()
    assert weight.isnan().any()


def _adam_case(dtype: torch.dtype, steps: float = 4.0) -> list[list[Tensor]]:
    """Parameters, gradients, means, squares and steps: of no elements, of one, of many."""
    g = torch.Generator().manual_seed(3)
    shapes = [(5, 3), (), (0,), (331, 211), (17,)]
    of = [[torch.randn(s, generator=g).to(dtype) for s in shapes] for _ in range(4)]
    of[3] = [t.abs() for t in of[3]]
    return [*of, [torch.tensor(steps) for _ in shapes]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("adam", ADAMS)
def test_adam_is_the_reference(adam: str, dtype: torch.dtype) -> None:
    for steps in (0.0, 4.0, 1e6):
        args = _adam_case(dtype, steps)
        args[1][3] = args[1][3].t().contiguous().t()  # a gradient may lie as it likes
        wanted = [copied(part, torch.float64) for part in args[:4]]
        wanted.append(copied(args[4]))
        got = copied(args)
        torch.ops.dvae_fast.adam_(*got, *ADAMS[adam])
        reference.adam_(*wanted, *ADAMS[adam])
        for part, other in zip(got, wanted, strict=True):
            for a, b in zip(part, other, strict=True):
                torch.testing.assert_close(a, b.to(a.dtype))


@pytest.mark.parametrize("adam", ["adam", "burda"])
def test_an_infinite_weight_without_a_gradient_stays(adam: str) -> None:
    case = [[torch.tensor([-math.inf, 2.0])], [torch.zeros(2)], [torch.zeros(2)], [torch.ones(2)],
            [torch.zeros(())]]  # fmt: skip
    for run in (torch.ops.dvae_fast.adam_, reference.adam_):
        got = copied(case)
        run(*got, *ADAMS[adam])
        assert torch.equal(got[0][0], case[0][0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda of: of[1].pop(), "grads must be as many as parameters, 5, got 4"),
        (lambda of: of[4].pop(), "steps must be as many as parameters, 5, got 4"),
        (lambda of: of[1].__setitem__(0, torch.zeros(3, 5)), r"grads must have the shape of"),
        (lambda of: of[1].__setitem__(4, torch.zeros(17).double()), "grads must have dtype Float"),
        (lambda of: of[2].__setitem__(4, torch.zeros(17, 1)), "means must have the shape of"),
        (lambda of: of[0].__setitem__(0, _transposed(of[0][0])), "must be contiguous, got shape"),
        (
            lambda of: [part.__setitem__(4, torch.ones(17).bfloat16()) for part in of[:4]],
            "parameters must be float32 or float64, got BFloat16",
        ),
        (
            lambda of: [part.__setitem__(4, torch.ones(17).long()) for part in of[:4]],
            "parameters must be float32 or float64, got Long",
        ),
    ],
)
def test_adam_refuses_what_is_wrong_and_changes_nothing(change: Any, says: str) -> None:
    args = _adam_case(torch.float32)
    change(args)
    before = copied(args)
    with pytest.raises(RuntimeError, match=says):
        torch.ops.dvae_fast.adam_(*args, *ADAMS["burda"])
    with pytest.raises(RuntimeError, match="rule must be adam, decoupled or burda, got sgd"):
        torch.ops.dvae_fast.adam_(*_adam_case(torch.float32), *ADAMS["burda"][:5], "sgd", 1.0)
    for old, new in zip(before, args, strict=True):
        assert all(map(torch.equal, old, new))


def test_opcheck_of_adam() -> None:
    torch.library.opcheck(
        torch.ops.dvae_fast.adam_.default,
        (*_adam_case(torch.float32), *ADAMS["burda"]),
        test_utils=("test_schema", "test_faketensor"),
    )
    args = make(SIZES[0], "masking", "iwae, dreg", "tanh")
    torch.library.opcheck(
        torch.ops.dvae_fast.mlp_step_.default,
        (*args, False, *state_of(args), *ADAMS["adam"]),
        test_utils=("test_schema", "test_faketensor"),
    )


def _transposed(t: Tensor) -> Tensor:
    return t.t().contiguous().t()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda args, state: state[0].pop(), "means must be as many as parameters, 12, got 11"),
        (
            lambda args, state: state[1].__setitem__(0, torch.zeros(2)),
            "squares must have the shape of",
        ),
        (
            lambda args, state: state[1].__setitem__(0, state[1][0].double()),
            "squares must have dtype Float",
        ),
        (lambda args, state: state[0].__setitem__(0, _transposed(state[0][0])), "contiguous"),
        (lambda args, state: args[8].__setitem__(0, _transposed(args[8][0])), "contiguous"),
        (lambda args, state: state[2].clear(), "steps must be one or more"),
        (lambda args, state: state[2][1].add_(1), "steps must all be alike, got 5"),
        (
            lambda args, state: state[2].__setitem__(1, torch.tensor(4)),
            "steps must be float32 of one",
        ),
        (
            lambda args, state: state[2].__setitem__(1, torch.ones(2)),
            "steps must be float32 of one",
        ),
        (lambda args, state: args.__setitem__(0, torch.zeros(7, 18)), "must have shape"),
    ],
)
def test_refuses_what_is_wrong_and_changes_nothing(change: Any, says: str) -> None:
    args = list(make(SIZES[0], "masking", "iwae", "tanh"))
    state = state_of(tuple(args))
    change(args, state)
    before = copied([args[8], args[9], *state])
    with pytest.raises(RuntimeError, match=says):
        torch.ops.dvae_fast.mlp_step_(*args, False, *state, *ADAMS["adam"])
    for old, new in zip(before, [args[8], args[9], *state], strict=True):
        assert all(map(torch.equal, old, new))
