"""A decoder of linear layers, all of them in row tiles: `functional.mlp_log_weights`."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dvae_fast
from dvae_fast import functional, reference
from dvae_fast.checking.terms import rounded_intermediates
from dvae_fast.data.given import Given
from dvae_fast.evaluation import Evaluated
from dvae_fast.models import MLP, Softplus

op: Any = torch.ops.dvae_fast
M, B, K, Z, D = 2, 5, 7, 4, 9
ACTIVATIONS = tuple(functional.DENSE_ACTIVATIONS)
#: of the layers; the last but one crosses a tile of rows in every dtype
SIZES = ((1, 1), (4, 785), (3, 63, 1), (5, 9, 13, 65), (50, 64, 200, 784), (6, 1000, 17))
ROWS = {(50, 64, 200, 784): (3, 131)}

Layers = list[tuple[Tensor, Tensor | None]]


def made(
    sizes: tuple[int, ...], dtype: torch.dtype, likelihood: str, n: int, k: int
) -> tuple[Tensor, Layers, Tensor | None, Tensor, Tensor]:
    g = torch.Generator().manual_seed(sum(sizes) + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    # Every other layer without a bias.
    layers: Layers = [
        (normal(o, i) * i**-0.5, normal(o) if at % 2 == 0 else None)
        for at, (i, o) in enumerate(itertools.pairwise(sizes))
    ]
    u = torch.rand(n, sizes[-1], generator=g).to(dtype)
    scale = None if likelihood == "bernoulli" else normal(sizes[-1]).exp()
    return normal(n, k, sizes[0]), layers, scale, u.round(), normal(n, k)


def arguments(layers: Layers, z: Tensor, activation: str) -> tuple[Any, ...]:
    none = z.new_empty(0)
    return (
        z,
        [weight for weight, _ in layers],
        [none if bias is None else bias for _, bias in layers],
        activation,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_is_the_reference(
    sizes: tuple[int, ...], activation: str, likelihood: str, dtype: torch.dtype
) -> None:
    n, k = ROWS.get(sizes, (B, K))
    z, layers, scale, x, ratio = made(sizes, dtype, likelihood, n, k)
    got = functional.mlp_log_weights(
        z, layers, x, ratio, likelihood, activation=activation, scale=scale
    )
    exact: Layers = [(w.double(), None if b is None else b.double()) for w, b in layers]
    s = None if scale is None else scale.double()
    rest = (s, x.double(), ratio.double(), likelihood)
    expected = reference.mlp_log_weights(*arguments(exact, z.double(), activation), *rest)
    # About Σ of the absolute terms of the density.
    terms = expected.abs() + ratio.abs() + 2 * sizes[-1]
    worst = float(((got.double() - expected).abs() / terms).max())
    assert worst <= (2e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("shape", [(0, K), (B, 0)])
def test_nothing_to_do(shape: tuple[int, int]) -> None:
    z, layers, _, x, ratio = made((Z, 6, D), torch.float32, "bernoulli", *shape)
    out = op.mlp_log_weights(*arguments(layers, z, "tanh"), None, x, ratio, "bernoulli")
    assert out.shape == shape


def test_a_row_is_the_same_whatever_comes_with_it() -> None:
    """Bit by bit, whichever tile and thread it falls to."""
    z, layers, _, x, ratio = made((Z, 30, 500), torch.float32, "bernoulli", 1, 997)
    every = functional.mlp_log_weights(z, layers, x, ratio)
    for begin, end in ((0, 1), (5, 12), (100, 997), (996, 997)):
        part = functional.mlp_log_weights(z[:, begin:end], layers, x, ratio[:, begin:end])
        assert torch.equal(part, every[:, begin:end])


def test_leading_dimensions_and_strides() -> None:
    z, layers, _, x, ratio = made((Z, 6, D), torch.float64, "bernoulli", M * B, K)
    expected = functional.mlp_log_weights(z, layers, x, ratio).view(M, B, K)
    strided = z.transpose(1, 2).contiguous().transpose(1, 2).view(M, B, K, Z)
    weights: Layers = [(w.t().contiguous().t(), b) for w, b in layers]
    got = functional.mlp_log_weights(strided, weights, x.view(M, B, D), ratio.view(M, B, K))
    assert torch.equal(got, expected)


def test_not_finite_values() -> None:
    """A NaN in a latent reaches its own row alone; an infinite activation is no NaN."""
    z, layers, _, x, ratio = made((Z, 6, D), torch.float32, "bernoulli", B, K)
    z[1, 2, 3] = float("nan")
    for activation in ACTIVATIONS:
        out = functional.mlp_log_weights(z, layers, x, ratio, activation=activation)
        expected = torch.zeros(B, K, dtype=torch.bool)
        expected[1, 2] = True
        assert torch.equal(out.isnan(), expected)
    ones: Layers = [(torch.full((1, 1), 1.0), None), (torch.full((1, 1), 1.0), None)]
    wide = torch.tensor([3e38, -3e38]).view(1, 2, 1)
    one = torch.ones(1, 1)
    for activation, last in (("softplus", 0.0), ("relu", 0.0), ("tanh", -1.0)):
        logits = torch.tensor([1.0 if activation == "tanh" else 3e38, last])
        out = functional.mlp_log_weights(wide, ones, one, torch.zeros(1, 2), activation=activation)
        torch.testing.assert_close(out[0], nn.functional.logsigmoid(logits))


def rounded(layers: Layers, dtype: torch.dtype) -> Layers:
    return [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in layers]


@pytest.mark.parametrize("how", ["gradient", "float16", "autocast"])
def test_elsewhere_the_layers_run_one_after_another(how: str) -> None:
    z, layers, _, x, ratio = made((Z, 6, 5, D), torch.float32, "bernoulli", B, K)
    expected = functional.mlp_log_weights(z, layers, x, ratio)
    if how == "gradient":
        weight = layers[0][0].requires_grad_()
        got = functional.mlp_log_weights(z, layers, x, ratio)
        (grad,) = torch.autograd.grad(got.sum(), weight)
        assert float(grad.abs().max()) > 0
        torch.testing.assert_close(got, expected)
    elif how == "float16":
        got = functional.mlp_log_weights(z.half(), rounded(layers, torch.half), x, ratio)
        torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)
        assert not torch.equal(got, expected)
    else:
        with torch.autocast("cpu", torch.float16):
            got = functional.mlp_log_weights(z, layers, x, ratio)
            again = functional.mlp_log_weights(z.half(), layers, x, ratio)
        torch.testing.assert_close(again, got)
        torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)
        assert not torch.equal(got, expected)


# --- bfloat16 ---------------------------------------------------------------------------------

#: broken tiles, panels and steps along the sum
BFLOAT16_SIZES = (
    *((1, 1), (3, 17), (17, 33, 3), (33, 50, 1, 31), (50, 200, 200, 784), (200, 16, 65)),
)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("sizes", BFLOAT16_SIZES, ids=str)
def test_bfloat16_is_the_reference_of_rounded_activations(
    sizes: tuple[int, ...], likelihood: str
) -> None:
    n, k = (3, 31) if sizes[-1] < 784 else (1, 67)
    z, layers, scale, x, ratio = made(sizes, torch.float32, likelihood, n, k)
    z, layers = z.bfloat16(), rounded(layers, torch.bfloat16)
    for activation in ACTIVATIONS:
        got = functional.mlp_log_weights(
            z, layers, x, ratio, likelihood, activation=activation, scale=scale
        )
        assert got.dtype == torch.float32
        h, exact = z.double(), rounded(layers, torch.double)
        for weight, bias in exact[:-1]:
            h = nn.functional.linear(h, weight, bias)
            h = reference.DENSE_ACTIVATIONS[activation](h).bfloat16().double()
        s = None if scale is None else scale.double()
        rest = (s, x.double(), ratio.double(), likelihood)
        expected = reference.linear_log_weights(h, *exact[-1], *rest)
        args = (*arguments(exact, z.double(), activation), *rest)
        (moved,) = rounded_intermediates("mlp_log_weights", args, torch.bfloat16)
        # Without instructions for it nothing is rounded; with them a sum's last bit may decide
        # which way one is.
        part = 0.05 if dvae_fast.build_info()["bfloat16"] else 1.0
        allowed = 2e-6 * (expected.abs() + ratio.abs() + 2 * sizes[-1]) + part * moved
        assert bool(((got.double() - expected).abs() <= allowed).all())


def test_bfloat16_of_autocast_of_parts_and_of_threads_is_the_same_bits() -> None:
    z, layers, _, x, ratio = made((7, 33, 200, 65), torch.float32, "bernoulli", 3, 331)
    half = rounded(layers, torch.bfloat16)
    every = functional.mlp_log_weights(z.bfloat16(), half, x, ratio)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(functional.mlp_log_weights(z, layers, x, ratio), every)
    strided = z.bfloat16().transpose(0, 1).contiguous().transpose(0, 1)
    weights: Layers = [(w.t().contiguous().t(), b) for w, b in half]
    assert torch.equal(functional.mlp_log_weights(strided, weights, x, ratio), every)
    for begin, end in ((0, 1), (17, 50), (330, 331)):
        part = functional.mlp_log_weights(z.bfloat16()[:, begin:end], half, x, ratio[:, begin:end])
        assert torch.equal(part, every[:, begin:end])
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            assert torch.equal(functional.mlp_log_weights(z.bfloat16(), half, x, ratio), every)
        finally:
            torch.set_num_threads(threads)


def test_bfloat16_of_one_layer_is_linear_log_weights() -> None:
    z, layers, _, x, ratio = made((17, 33), torch.bfloat16, "bernoulli", B, K)
    x, ratio = x.float(), ratio.float()
    whole = functional.mlp_log_weights(z, layers, x, ratio)
    assert torch.equal(functional.linear_log_weights(z, *layers[0], x, ratio), whole)


def test_bfloat16_that_is_not_finite_or_not_observed() -> None:
    z, layers, _, x, ratio = made((Z, 33, 17, D), torch.bfloat16, "bernoulli", B, K)
    x, ratio = x.float(), ratio.float()
    whole = functional.mlp_log_weights(z, layers, x, ratio)
    nan, infinite = z.clone(), z.clone()
    nan[1, 2, 3] = float("nan")
    infinite[1, 2] = torch.tensor([0.0, 0.0, 0.0, float("inf")])
    for given in (nan, infinite):
        out = functional.mlp_log_weights(given, layers, x, ratio)
        out[1, 2] = whole[1, 2]
        assert torch.equal(out, whole)
    for shape in ((0, K), (B, 0)):
        none = z[: shape[0], : shape[1]]
        rest = (None, x[: shape[0]], ratio[: shape[0], : shape[1]], "bernoulli")
        assert op.mlp_log_weights(*arguments(layers, none, "relu"), *rest).shape == shape
    mask = torch.rand(B, D, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0], mask[1] = True, False
    out = functional.mlp_log_weights(z, layers, x, ratio, mask=mask)
    assert torch.equal(out[0], whole[0])
    assert torch.equal(out[1], ratio[1])
    seen = mask[2]
    weight, bias = layers[-1]
    cut: Layers = [*layers[:-1], (weight[seen], None if bias is None else bias[seen])]
    alone = functional.mlp_log_weights(z[2:3], cut, x[2:3, seen], ratio[2:3])
    torch.testing.assert_close(out[2:3], alone, rtol=1e-6, atol=1e-5)


def test_opcheck() -> None:
    z, layers, scale, x, ratio = made((Z, 6, D), torch.float32, "gaussian", B, K)
    args = (*arguments(layers, z, "relu"), scale, x, ratio, "gaussian")
    torch.library.opcheck(op.mlp_log_weights.default, args)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"z": torch.zeros(K, Z)}, ValueError, ("z", "(*L, B, K, Z)", "(7, 4)")),
        ({"z": torch.zeros(B, K, Z, dtype=torch.int64)}, TypeError, ("z", "float32", "int64")),
        ({"layers": []}, ValueError, ("layers", "at least one", "none")),
        (
            {"layers": [(torch.zeros(6, 3), None)]},
            ValueError,
            ("weight of layer 0", "I = 4 as in z", "(6, 3)"),
        ),
        (
            {"layers": [(torch.zeros(6, Z), None), (torch.zeros(D, 5), None)]},
            ValueError,
            ("weight of layer 1", "I = 6 as in layer 0", "(9, 5)"),
        ),
        (
            {"layers": [(torch.zeros(D, Z), torch.zeros(8))]},
            ValueError,
            ("bias of layer 0", "(9,)", "(8,)"),
        ),
        (
            {"layers": [(torch.zeros(D, Z).double(), None)]},
            TypeError,
            ("weight of layer 0", "torch.float32", "torch.float64"),
        ),
        ({"layers": [torch.zeros(D, Z)]}, TypeError, ("layers", "(weight, bias)", "Tensor at 0")),
        ({"activation": []}, ValueError, ("activation", "softplus, relu, tanh", "[]")),
        ({"activation": "gelu"}, ValueError, ("activation", "relu, softplus, tanh", "'gelu'")),
        ({"x": torch.zeros(B, 8)}, ValueError, ("x", "(5, 9)", "(5, 8)")),
        ({"log_ratio": torch.zeros(B)}, ValueError, ("log_ratio", "(5, 7)", "(5,)")),
        ({"scale": 1.0}, ValueError, ("scale", "None for a Bernoulli", "1.0")),
        ({"likelihood": "gaussian"}, ValueError, ("scale", "must be given", "None")),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_argument(change: dict[str, Any], error: type[Exception], words: tuple[str]) -> None:
    z, layers, _, x, ratio = made((Z, 6, D), torch.float32, "bernoulli", B, K)
    valid = {"z": z, "layers": layers, "x": x, "log_ratio": ratio}
    with pytest.raises(error) as raised:
        functional.mlp_log_weights(**{**valid, **change})
    for word in words:
        assert word in str(raised.value)


OPERANDS: dict[str, tuple[int, Any, str]] = {
    "no layers": (1, [], "got 0 and 1"),
    "a bias too many": (2, [torch.zeros(D), torch.zeros(D)], "got 1 and 2"),
    "weight of other width": (1, [torch.zeros(D, 3)], "weight must have shape (any, 4)"),
    "bias of other length": (2, [torch.zeros(8)], "bias must have shape (9)"),
    "float16": (0, torch.zeros(B, K, Z).half(), "float32, float64 or bfloat16"),
    "z of other dtype": (0, torch.zeros(B, K, Z).bfloat16(), "weight must have dtype BFloat16"),
    "activation": (3, "gelu", "activation must be none, softplus, relu or tanh, got gelu"),
    "x narrower": (5, torch.zeros(B, 8), "x must have shape"),
    "log_ratio of other rows": (6, torch.zeros(B, 3), "log_ratio must have shape"),
    "scale an element": (4, torch.ones(B, K, D), "scale must not be given"),
}


@pytest.mark.skipif(not dvae_fast.ops.library_loaded(), reason="of the compiled operator")
@pytest.mark.parametrize("case", OPERANDS)
def test_the_operator_refuses_what_does_not_fit(case: str) -> None:
    at, value, message = OPERANDS[case]
    args: list[Any] = [
        *(torch.zeros(B, K, Z), [torch.zeros(D, Z)], [torch.zeros(D)], "relu", None),
        *(torch.zeros(B, D), torch.zeros(B, K), "bernoulli"),
    ]
    args[at] = value
    with pytest.raises(RuntimeError, match=re.escape(message)):
        op.mlp_log_weights(*args)


# --- who uses it ------------------------------------------------------------------------------


def decoder(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


PLAIN = {
    "softplus": lambda: decoder(nn.Linear(Z, 6), Softplus(), nn.Linear(6, D)),
    "torch's softplus": lambda: decoder(nn.Linear(Z, 6), nn.Softplus(), nn.Linear(6, D)),
    "relu": lambda: decoder(*MLP((Z, 6, 5), "relu"), nn.Linear(5, D, bias=False)),
    "tanh": lambda: decoder(*MLP((Z, 6, 5), "tanh"), nn.Linear(5, D)),
    "one layer": lambda: decoder(nn.Linear(Z, D)),
}


class Quantised(Tensor):
    """A weight that is more than its numbers."""


def quantised(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    return layer


OTHER = {
    "weights of a class of their own": lambda: decoder(
        quantised(nn.Linear(Z, 6)), nn.ReLU(), nn.Linear(6, D)
    ),
    "gelu": lambda: decoder(nn.Linear(Z, 6), nn.GELU(), nn.Linear(6, D)),
    "two activations": lambda: decoder(
        *(nn.Linear(Z, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, D))
    ),
    "no activation": lambda: decoder(nn.Linear(Z, 6), nn.Linear(6, D)),
    "dropout": lambda: decoder(nn.Linear(Z, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, D)),
    "a steeper softplus": lambda: decoder(nn.Linear(Z, 6), nn.Softplus(2), nn.Linear(6, D)),
    "an early threshold": lambda: decoder(nn.Linear(Z, 6), nn.Softplus(1, 2), nn.Linear(6, D)),
    "a hook on a layer": lambda: decoder(hooked(nn.Linear(Z, 6)), nn.ReLU(), nn.Linear(6, D)),
    "a hook on an activation": lambda: decoder(nn.Linear(Z, 6), hooked(nn.ReLU()), nn.Linear(6, D)),
    "normalised weights": lambda: decoder(
        nn.utils.parametrizations.weight_norm(nn.Linear(Z, 6)), nn.ReLU(), nn.Linear(6, D)
    ),
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_judging_takes_plain_layers_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    decode = {**PLAIN, **OTHER}[name]()
    calls = []
    whole = functional.mlp_log_weights
    monkeypatch.setattr(
        functional, "mlp_log_weights", lambda *a, **k: calls.append(1) or whole(*a, **k)
    )
    z, _, _, x, ratio = made((Z, D), torch.float32, "bernoulli", B, K)
    evaluated = Evaluated((lambda x: (x, x), decode))
    with torch.no_grad(), evaluated.evaluating():
        got = evaluated.log_weights(z, Given(x), ratio)
        expected = reference.log_weights(decode(z), None, x, ratio, "bernoulli")
    torch.testing.assert_close(got, expected)
    assert bool(calls) == (name in PLAIN)
