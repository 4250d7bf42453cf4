"""Wrong arguments: each raises before any work, naming the argument, the rule and the value.

One row per rule and function: the argument replaced in a call that is otherwise right, the
exception, and what its message must hold.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import corruptions, likelihoods
from dvae_fast._checks import _validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

M, B, K, Z, D, H = 2, 5, 7, 4, 9, 6

op: Any = torch.ops.dvae_fast


@pytest.fixture
def validation() -> Iterator[None]:
    """Checks of values switched on for one test."""
    old = dvae_fast.set_validation(True)
    yield
    dvae_fast.set_validation(old)


def _valid(function: str) -> dict[str, Any]:
    """Arguments that are right, fresh each time."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    x, log_ratio = torch.rand(B, D, generator=g), normal(M, B, K)
    decoder = {"x": x, "log_ratio": log_ratio}
    gaussian = {"params": (normal(M, B, K, D), torch.ones(D)), **decoder, "likelihood": "gaussian"}
    linear = {"hidden": normal(M, B, K, H), "weight": normal(D, H), "bias": normal(D), **decoder}
    valid: dict[str, dict[str, Any]] = {
        "corrupt": {"x": x, "corruption": corruptions.Masking(0.5), "copies": M},
        "sample_latent": {"mean": normal(M, B, Z), "log_var": normal(M, B, Z), "k": K},
        "latent_log_ratio": {
            "z": normal(M, B, K, Z), "mean": normal(M, B, Z), "log_var": normal(M, B, Z),
        },
        "mixture_log_ratio": {
            "z": normal(B, K, Z), "mean": normal(M, B, Z), "log_var": normal(M, B, Z),
        },
        "log_weights": {"params": normal(M, B, K, D), **decoder},
        "iwae_loss": {"params": normal(M, B, K, D), **decoder},
        "log_weights-gaussian": gaussian,
        "iwae_loss-gaussian": gaussian,
        "logmeanexp": {"log_w": normal(M, B, K)},
        "linear_log_weights": linear,
        "linear_log_weights-gaussian": {
            **linear, "likelihood": "gaussian", "scale": torch.ones(D),
        },
    }  # fmt: skip
    return valid[function]


def _call(function: str, arguments: dict[str, Any]) -> Any:
    return getattr(dvae_fast, function.split("-")[0])(**arguments)


@dataclass(frozen=True)
class Row:
    function: str
    arguments: dict[str, Any]
    error: type[Exception]
    words: tuple[str, ...]
    """argument, rule, actual value: each must stand in the message"""

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={_show(value)}" for name, value in self.arguments.items())
        return f"{self.function}({shown})"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype)[6:]}{list(value.shape)}{value.device}"
    if isinstance(value, tuple):
        return f"({', '.join(_show(v) for v in value)})"
    return type(value).__name__ if isinstance(value, corruptions.Corruption) else repr(value)


def _seed_rows(function: str) -> Iterator[Row]:
    too_large = 2**64
    yield Row(function, {"seed": 1.5}, TypeError, ("seed", "int", "float"))
    yield Row(function, {"seed": "1"}, TypeError, ("seed", "int", "str"))
    yield Row(function, {"seed": True}, TypeError, ("seed", "int", "bool"))
    yield Row(function, {"seed": too_large}, ValueError, ("seed", "64 bits", f"{too_large}"))
    yield Row(function, {"seed": -(2**63) - 1}, ValueError, ("seed", "64 bits", f"{-(2**63) - 1}"))
    yield Row(function, {"seed": torch.tensor([1, 2])}, TypeError, ("seed", "one element", "(2,)"))
    yield Row(
        function, {"seed": torch.tensor([1.0])}, TypeError, ("seed", "integer", "torch.float32")
    )
    yield Row(
        function, {"seed": torch.tensor([True])}, TypeError, ("seed", "integer", "torch.bool")
    )


def _count_rows(function: str, name: str, lower: int) -> Iterator[Row]:
    """An argument that must be an int >= lower."""
    yield Row(function, {name: lower - 1}, ValueError, (name, f">= {lower}", f"got {lower - 1}"))
    yield Row(function, {name: -7}, ValueError, (name, f">= {lower}", "got -7"))
    yield Row(function, {name: 2.0}, TypeError, (name, "int", "float"))
    yield Row(function, {name: True}, TypeError, (name, "int", "bool"))
    yield Row(function, {name: "3"}, TypeError, (name, "int", "str"))


def _index_rows(function: str, name: str) -> Iterator[Row]:
    """An index in the noise: an int that fits the 32 bits of a counter's word."""
    yield from _count_rows(function, name, 0)
    yield Row(function, {name: 2**32}, ValueError, (name, "32", f"{2**32}"))
    yield Row(function, {name: 2**32 - 1}, ValueError, (name, "2**32", f"{2**32 - 1}"))


def _float_rows(function: str, name: str, *, pair: bool = False) -> Iterator[Row]:
    """An argument that must be a floating-point tensor."""
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64):
        t = torch.zeros_like(_first(function, name), dtype=dtype)
        value: Any = (t, 1.0) if pair else t
        yield Row(function, {name: value}, TypeError, (name, "float32", str(dtype)))
    value = ([[1.0]], 1.0) if pair else [[1.0]]
    yield Row(function, {name: value}, TypeError, (name, "tensor", "list"))
    if not pair:
        yield Row(function, {name: None}, TypeError, (name, "tensor", "NoneType"))


def _first(function: str, name: str) -> Tensor:
    value = _valid(function)[name]
    t = value[0] if isinstance(value, tuple) else value
    assert isinstance(t, Tensor)
    return t


def _meta(function: str, name: str, other: str) -> Row:
    """An argument on another device."""
    t = _first(function, name).to("meta")
    return Row(function, {name: t}, ValueError, (name, f"device of {other}", "cpu", "meta"))


def _rows() -> Iterator[Row]:
    shape: tuple[int, ...]
    f = "corrupt"
    yield from _float_rows(f, "x")
    yield Row(f, {"x": torch.tensor(1.0)}, ValueError, ("x", "at least one dimension", "scalar"))
    for value, got in ((0.5, "float"), ("masking", "str"), (None, "NoneType")):
        yield Row(f, {"corruption": value}, TypeError, ("corruption", "dvae_fast.corruptions", got))
    yield Row(
        f,
        {"corruption": corruptions.Corruption()},
        TypeError,
        ("corruption", "dvae_fast.corruptions", "Corruption"),
    )
    yield Row(
        f,
        {"corruption": corruptions.Masking},
        TypeError,
        ("corruption", "dvae_fast.corruptions", "type"),
    )
    for wrong in (
        corruptions.Masking(torch.full((8,), 0.5)),
        corruptions.AdditiveGaussian(torch.full((8,), 0.5)),
        corruptions.BitFlip(torch.full((B, D), 0.5)),
    ):
        got = str(tuple(wrong.parameter.shape))
        yield Row(
            f,
            {"corruption": wrong},
            ValueError,
            ("corruption", "parameter", "1 element or one per data dimension (9)", got),
        )
    yield Row(
        f,
        {"corruption": corruptions.SaltAndPepper(torch.full((D,), 0.5), torch.full((8,), 0.5))},
        ValueError,
        ("corruption", "salt", "1 element or one per data dimension (9)", "(8,)"),
    )
    yield from _count_rows(f, "copies", 1)
    yield from _index_rows(f, "first_example")
    yield from _seed_rows(f)

    f = "sample_latent"
    yield from _float_rows(f, "mean")
    yield from _float_rows(f, "log_var")
    yield Row(f, {"mean": torch.zeros(Z)}, ValueError, ("mean", "(*L, B, Z)", "(4,)"))
    yield Row(
        f, {"log_var": torch.zeros(M, B, 3)}, ValueError, ("log_var", "(2, 5, 4)", "(2, 5, 3)")
    )
    yield Row(f, {"log_var": torch.zeros(B, Z)}, ValueError, ("log_var", "(2, 5, 4)", "(5, 4)"))
    yield Row(
        f,
        {"log_var": torch.zeros(M, B, Z, dtype=torch.float64)},
        TypeError,
        ("log_var", "mean's dtype", "torch.float32", "torch.float64"),
    )
    yield _meta(f, "log_var", "mean")
    yield from _count_rows(f, "k", 1)
    yield Row(f, {"k": None}, TypeError, ("k", "int", "NoneType"))
    yield from _index_rows(f, "first_example")
    yield from _index_rows(f, "first_sample")
    yield from _seed_rows(f)

    f = "latent_log_ratio"
    yield from _float_rows(f, "z")
    yield from _float_rows(f, "mean")
    yield from _float_rows(f, "log_var")
    for shape in ((M, B, K, 3), (B, K, Z), (M, 3, K, Z), (Z,), ()):
        yield Row(f, {"z": torch.zeros(shape)}, ValueError, ("z", "(*L, B, K, Z)", f"got {shape}"))
    yield Row(f, {"log_var": torch.zeros(M, B, 3)}, ValueError, ("log_var", "(2, 5, 3)"))
    yield _meta(f, "z", "mean")
    yield _meta(f, "log_var", "mean")

    f = "mixture_log_ratio"
    yield from _float_rows(f, "z")
    yield from _float_rows(f, "mean")
    yield from _float_rows(f, "log_var")
    for shape in ((B, K, 3), (3, K, Z), (M, K, B, Z), (K, Z), ()):
        rule = ("z", "(*L, B, K, Z)", "B = 5", "Z = 4", f"got {shape}")
        yield Row(f, {"z": torch.zeros(shape)}, ValueError, rule)
    for shape in ((B, Z), (0, B, Z), (3, M, B, Z)):
        t = torch.zeros(shape)
        rule = ("mean", "(M, B, Z)", "M >= 1", f"got {shape}")
        yield Row(f, {"mean": t, "log_var": t}, ValueError, rule)
    yield Row(f, {"log_var": torch.zeros(3, B, Z)}, ValueError, ("log_var", "(3, 5, 4)"))
    yield Row(
        f,
        {"log_var": torch.zeros(M, B, Z, dtype=torch.float64)},
        TypeError,
        ("log_var", "mean's dtype", "torch.float32", "torch.float64"),
    )
    yield _meta(f, "z", "mean")
    yield _meta(f, "log_var", "mean")

    for f in ("log_weights", "iwae_loss"):
        yield from _float_rows(f, "params")
        yield Row(
            f,
            {"params": (torch.zeros(M, B, K, D), 1.0)},
            TypeError,
            ("params", "logits for a Bernoulli", "tuple"),
        )
        for shape in ((), (D,), (K, D)):
            yield Row(
                f,
                {"params": torch.zeros(shape)},
                ValueError,
                ("params", "(*L, B, K, D)", f"got {shape}"),
            )
        yield Row(
            f,
            {"params": torch.zeros(M, B, 0, D), "log_ratio": torch.zeros(M, B, 0)},
            ValueError,
            ("params", "K >= 1", "(2, 5, 0, 9)"),
        )
        for shape in ((B, 8), (3, D), (D,), (B, K, D), (3, B, D), (1, D)):
            yield Row(
                f, {"x": torch.zeros(shape)}, ValueError, ("x", "(B, D) = (5, 9)", f"got {shape}")
            )
        yield Row(f, {"x": None}, TypeError, ("x", "tensor", "NoneType"))
        yield Row(f, {"x": [[0.0]]}, TypeError, ("x", "tensor", "list"))
        yield Row(
            f, {"x": torch.zeros(B, D, dtype=torch.complex64)}, TypeError, ("x", "torch.complex64")
        )
        yield _meta(f, "x", "params")
        for shape in ((M, B), (B, K), (M, B, 8), (M, B, K, 1)):
            yield Row(
                f,
                {"log_ratio": torch.zeros(shape)},
                ValueError,
                ("log_ratio", "(*L, B, K) = (2, 5, 7)", f"got {shape}"),
            )
        yield Row(f, {"log_ratio": 0.0}, TypeError, ("log_ratio", "tensor", "float"))
        yield Row(
            f,
            {"log_ratio": torch.zeros(M, B, K, dtype=torch.int64)},
            TypeError,
            ("log_ratio", "floating", "torch.int64"),
        )
        yield _meta(f, "log_ratio", "params")
        yield Row(
            f,
            {"likelihood": "bernouli"},
            ValueError,
            ("likelihood", "bernoulli, gaussian", "'bernouli'"),
        )
        yield Row(f, {"likelihood": None}, TypeError, ("likelihood", "Likelihood", "NoneType"))
        yield Row(
            f,
            {"likelihood": likelihoods.Bernoulli},
            TypeError,
            ("likelihood", "Likelihood", "class Bernoulli"),
        )

        f = f"{f}-gaussian"
        mean = torch.zeros(M, B, K, D)
        yield from _float_rows(f, "params", pair=True)
        yield Row(f, {"params": mean}, TypeError, ("params", "(mean, scale)", "Tensor"))
        yield Row(f, {"params": (mean,)}, TypeError, ("params", "(mean, scale)", "1"))
        yield Row(f, {"params": (mean, mean, mean)}, TypeError, ("params", "(mean, scale)", "3"))
        for number in (0.0, -1.5, 0, math.nan, math.inf):
            yield Row(f, {"params": (mean, number)}, ValueError, ("scale", "> 0", f"got {number}"))
        for value, got in (("1", "str"), (True, "bool"), (None, "NoneType")):
            yield Row(f, {"params": (mean, value)}, TypeError, ("scale", "number", got))
        yield Row(f, {"params": (mean, torch.tensor(-0.5))}, ValueError, ("scale", "> 0", "-0.5"))
        low = torch.ones(D)
        low[3] = 0
        yield Row(f, {"params": (mean, low)}, ValueError, ("scale", "> 0", "minimum of 0"))
        for shape in ((8,), (K, 8), (3, K, D), (M, 3, K, D), (1, M, B, K, D)):
            yield Row(
                f,
                {"params": (mean, torch.ones(shape))},
                ValueError,
                ("scale", "(2, 5, 7, 9)", f"got {shape}"),
            )
        yield Row(
            f,
            {"params": (mean, torch.ones(D, dtype=torch.int64))},
            TypeError,
            ("scale", "float32", "torch.int64"),
        )
        yield Row(
            f,
            {"params": (mean, torch.ones(D, device="meta"))},
            ValueError,
            ("scale", "device of", "cpu", "meta"),
        )
    for value in ("average", None, "MEAN"):
        yield Row(
            "iwae_loss",
            {"reduction": value},
            ValueError,
            ("reduction", "must be one of", repr(value)),
        )

    f = "logmeanexp"
    yield from _float_rows(f, "log_w")
    for dim in (3, -4, 100):
        yield Row(f, {"dim": dim}, ValueError, ("dim", "(2, 5, 7)", f"got {dim}"))
    yield Row(f, {"dim": 1.0}, TypeError, ("dim", "int", "float"))
    yield Row(f, {"log_w": torch.tensor(1.0)}, ValueError, ("dim", "log_w", "()"))
    yield Row(f, {"log_w": torch.zeros(M, 0)}, ValueError, ("log_w", "K >= 1", "(2, 0)"))
    yield Row(f, {"log_w": torch.zeros(0, 3), "dim": 0}, ValueError, ("log_w", "K >= 1", "(0, 3)"))

    f = "linear_log_weights"
    yield from _float_rows(f, "hidden")
    yield from _float_rows(f, "weight")
    for shape in ((), (H,), (K, H)):
        yield Row(
            f,
            {"hidden": torch.zeros(shape)},
            ValueError,
            ("hidden", "(*L, B, K, H)", f"got {shape}"),
        )
    for shape in ((H, D), (D,), (D, H, 1)):
        yield Row(
            f,
            {"weight": torch.zeros(shape)},
            ValueError,
            ("weight", "(D, H)", "H = 6", f"got {shape}"),
        )
    yield Row(f, {"bias": torch.zeros(8)}, ValueError, ("bias", "(D,) = (9,)", "got (8,)"))
    yield Row(f, {"bias": torch.zeros(D, 1)}, ValueError, ("bias", "(D,) = (9,)", "got (9, 1)"))
    yield Row(
        f,
        {"bias": torch.zeros(D, dtype=torch.int64)},
        TypeError,
        ("bias", "float32", "torch.int64"),
    )
    for name, shape in (("weight", (D, H)), ("bias", (D,))):
        yield Row(
            f,
            {name: torch.zeros(shape, dtype=torch.float64)},
            TypeError,
            (name, "hidden's dtype", "torch.float32", "torch.float64"),
        )
        yield _meta(f, name, "hidden")
    yield Row(
        f,
        {"hidden": torch.zeros(M, B, 0, H), "log_ratio": torch.zeros(M, B, 0)},
        ValueError,
        ("hidden", "K >= 1", "(2, 5, 0, 6)"),
    )
    for shape in ((B, 8), (3, D), (D,)):
        yield Row(f, {"x": torch.zeros(shape)}, ValueError, ("x", "(5, 9)", f"got {shape}"))
    yield Row(f, {"x": torch.zeros(B, D, requires_grad=True)}, ValueError, ("x", "gradient"))
    yield _meta(f, "x", "hidden")
    yield Row(
        f, {"log_ratio": torch.zeros(M, B)}, ValueError, ("log_ratio", "(2, 5, 7)", "got (2, 5)")
    )
    yield _meta(f, "log_ratio", "hidden")
    yield Row(f, {"scale": 1.0}, ValueError, ("scale", "None for a Bernoulli", "1.0"))
    yield Row(
        f, {"likelihood": "gauss"}, ValueError, ("likelihood", "gaussian, bernoulli", "'gauss'")
    )

    f = "linear_log_weights-gaussian"
    yield Row(f, {"scale": None}, ValueError, ("scale", "Gaussian", "None"))
    yield Row(f, {"scale": -2.0}, ValueError, ("scale", "> 0", "got -2"))
    yield Row(f, {"scale": torch.zeros(D)}, ValueError, ("scale", "> 0", "minimum of 0"))
    yield Row(
        f,
        {"scale": torch.ones(M, B, K, D)},
        ValueError,
        ("scale", "1 or D = 9 elements", "(2, 5, 7, 9)"),
    )
    yield Row(
        f, {"scale": torch.ones(K, D)}, ValueError, ("scale", "1 or D = 9 elements", "(7, 9)")
    )
    yield Row(f, {"scale": torch.ones(8)}, ValueError, ("scale", "9", "got (8,)"))
    yield Row(f, {"scale": "1"}, TypeError, ("scale", "number", "str"))


ROWS = list(_rows())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_wrong_argument(row: Row) -> None:
    arguments = {**_valid(row.function), **row.arguments}
    inputs = [t for t in _tensors(arguments) if t.device.type != "meta"]
    before, state = [t.detach().clone() for t in inputs], torch.get_rng_state()
    with pytest.raises(row.error) as caught:
        _call(row.function, arguments)
    message = str(caught.value)
    for word in row.words:
        assert re.search(rf"(?<!\w){re.escape(word)}", message), f"no {word!r} in: {message}"
    for t, b in zip(inputs, before, strict=True):
        assert torch.equal(t, b), "an input was changed"
    assert torch.equal(torch.get_rng_state(), state), "a seed was drawn before the error"


@pytest.mark.parametrize("function", sorted({row.function for row in ROWS}))
def test_the_calls_are_right_otherwise(function: str) -> None:
    _call(function, _valid(function))


# --- corruptions ------------------------------------------------------------------------------

RATES: dict[str, Callable[[Any], Any]] = {
    "Masking": corruptions.Masking,
    "BitFlip": corruptions.BitFlip,
    "SaltAndPepper": corruptions.SaltAndPepper,
    "as_released": corruptions.SaltAndPepper.as_released,
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [-0.1, 1.5, 2, math.nan, math.inf, -math.inf])
def test_rate_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\], got {value:g}"):
        RATES[name](value)
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\], got {value:g}"):
        RATES[name](torch.tensor(float(value)))


@pytest.mark.parametrize("name", RATES)
def test_rate_tensor_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got values from -0.5 to 0.7"):
        RATES[name](torch.tensor([0.1, -0.5, 0.7]))


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(
    ("value", "got"),
    [("0.5", "str"), (True, "bool"), (None, "NoneType"), ([0.5], "list"),
     (torch.tensor([1]), "torch.int64"), (torch.tensor([True]), "torch.bool")],
)  # fmt: skip
def test_rate_of_wrong_type(name: str, value: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"rate must be a float or .*, got {got}"):
        RATES[name](value)


def test_salt_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"salt must be in \[0, 1\], got 1.5"):
        corruptions.SaltAndPepper(0.5, 1.5)
    with pytest.raises(TypeError, match=r"salt must be a float .*, got str"):
        corruptions.SaltAndPepper(0.5, "0.5")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_std_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=f"std must be finite and >= 0, got {value:g}"):
        corruptions.AdditiveGaussian(value)
    with pytest.raises(ValueError, match="std must be finite and >= 0, got values from"):
        corruptions.AdditiveGaussian(torch.tensor([1.0, value]))


def test_std_of_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"std must be a float .*, got torch.int64"):
        corruptions.AdditiveGaussian(torch.tensor([1]))


def test_unknown_corruption_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"corruption must be one of identity, .*gaussian; got 'x'"
    ):
        corruptions.make_corruption("x", 0.5)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 7"):
        corruptions.make_corruption("masking", 7)


# --- checks of values, when switched on -------------------------------------------------------


@pytest.mark.parametrize("function", ["log_weights", "iwae_loss", "linear_log_weights"])
@pytest.mark.parametrize("value", [-0.25, 1.5, math.inf])
@pytest.mark.usefixtures("validation")
def test_x_outside_the_support(function: str, value: float) -> None:
    arguments = _valid(function)
    arguments["x"] = torch.full((B, D), 0.5)
    arguments["x"][2, 3] = value
    low, high = min(value, 0.5), max(value, 0.5)
    with pytest.raises(
        ValueError, match=rf"x must lie in \[0, 1\].*bernoulli.*from {low:g} to {high:g}"
    ):
        _call(function, arguments)
    gaussian = _valid(f"{function}-gaussian")
    gaussian["x"] = arguments["x"]
    if math.isfinite(value):
        _call(f"{function}-gaussian", gaussian)  # any real number is in a Gaussian's support
        return
    with pytest.raises(ValueError, match=r"x must lie in the support of the gaussian .* got inf"):
        _call(f"{function}-gaussian", gaussian)


@pytest.mark.usefixtures("validation")
def test_nan_is_not_outside_the_support() -> None:
    arguments = _valid("log_weights")
    arguments["x"][2, 3] = math.nan
    out = _call("log_weights", arguments)
    assert bool(out[:, 2].isnan().all())


@pytest.mark.parametrize("function", ["log_weights-gaussian", "iwae_loss-gaussian"])
@pytest.mark.usefixtures("validation")
def test_full_scale_not_positive(function: str) -> None:
    arguments = _valid(function)
    scale = torch.ones(M, B, K, D)
    scale[1, 2, 3, 4] = -0.25
    arguments["params"] = (arguments["params"][0], scale)
    with pytest.raises(ValueError, match=r"scale must be > 0, got a minimum of -0.25"):
        _call(function, arguments)


def test_values_are_looked_at_by_losses_alone_by_default() -> None:
    assert _validate is False
    for function in ("log_weights", "iwae_loss"):
        arguments = _valid(function)
        arguments["x"][2, 3] = 1.5
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _call(function, arguments)
        assert len(said) == (function == "iwae_loss")


def test_set_validation_returns_the_old_value() -> None:
    old = dvae_fast.set_validation(True)
    try:
        assert dvae_fast.set_validation(False) is True
        assert dvae_fast.set_validation(True) is False
    finally:
        dvae_fast.set_validation(old)


# --- the operators themselves -----------------------------------------------------------------
#
# torch.ops.dvae_fast is called without the public functions' checks by exported graphs; a wrong
# operand must be refused there too, never read past its end.

_SEED = torch.tensor([1])
_T = torch.zeros

OPERANDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "x narrower than params": (
        "log_weights", (_T(10, 7, 9), None, _T(5, 8), _T(10, 7), "bernoulli")),
    "rows no multiple of the examples": (
        "log_weights", (_T(10, 7, 9), None, _T(3, 9), _T(10, 7), "bernoulli")),
    "log_ratio of other samples": (
        "log_weights", (_T(10, 7, 9), None, _T(5, 9), _T(10, 6), "bernoulli")),
    "unknown likelihood": (
        "log_weights", (_T(10, 7, 9), None, _T(5, 9), _T(10, 7), "bernouli")),
    "scale of other size": (
        "log_weights", (_T(10, 7, 9), torch.ones(8), _T(5, 9), _T(10, 7), "gaussian")),
    "iwae: x narrower": (
        "iwae", (_T(10, 7, 9), None, _T(5, 8), _T(10, 7), "bernoulli", 1.0)),
    "iwae: log_ratio of other rows": (
        "iwae", (_T(10, 7, 9), None, _T(5, 9), _T(9, 7), "bernoulli", 1.0)),
    "gradient of other rows": (
        "log_weights_backward", (_T(9, 7), _T(10, 7, 9), None, _T(5, 9), "bernoulli")),
    "rate of other size": ("corrupt", (_T(5, 9), "masking", _T(8), None, _SEED, 2, 0, 0)),
    "unknown corruption": ("corrupt", (_T(5, 9), "maskin", _T(1), None, _SEED, 2, 0, 0)),
    "salt of other size": (
        "corrupt", (_T(5, 9), "salt_and_pepper", _T(1), _T(8), _SEED, 2, 0, 0)),
    "two seeds": ("corrupt", (_T(5, 9), "masking", _T(1), None, torch.tensor([1, 2]), 2, 0, 0)),
    "log_var of other size": ("sample_latent", (_T(2, 5, 4), _T(2, 5, 3), 7, _SEED, 0, 0)),
    "grad_z of other samples": (
        "sample_latent_backward",
        (_T(2, 5, 6, 4), _T(2, 5, 7), _T(2, 5, 4), _T(2, 5, 4), 7, _SEED, 0, 0)),
    "z of other size": ("latent_log_ratio", (_T(10, 7, 3), _T(10, 4), _T(10, 4))),
    "z of other examples": ("mixture_log_ratio", (_T(9, 7, 4), _T(2, 10, 4), _T(2, 10, 4))),
    "no components": ("mixture_log_ratio", (_T(10, 7, 4), _T(0, 10, 4), _T(0, 10, 4))),
    "log_var of other components": (
        "mixture_log_ratio", (_T(10, 7, 4), _T(2, 10, 4), _T(3, 10, 4))),
    "weights of other components": (
        "mixture_log_ratio_backward",
        (_T(10, 7), _T(10, 7, 3), _T(10, 7, 4), _T(2, 10, 4), _T(2, 10, 4))),
    "gradient of other bounds": ("logmeanexp_backward", (_T(4), _T(5, 7))),
    "factor of other rows": ("rescale_", (_T(5, 7), _T(4))),
    "state of other examples": ("lse_update", (_T(4, 5, dtype=torch.float64), _T(5, 7))),
    "weight of other width": (
        "linear_log_weights",
        (_T(10, 7, 6), _T(9, 5), None, None, _T(5, 9), _T(10, 7), "bernoulli")),
    "linear: x narrower": (
        "linear_log_weights",
        (_T(10, 7, 6), _T(9, 6), None, None, _T(5, 8), _T(10, 7), "bernoulli")),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERANDS)
def test_operator_refuses_operands_that_do_not_fit(case: str) -> None:
    name, args = OPERANDS[case]
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        getattr(op, name)(*args)


def test_a_rate_is_made_whatever_the_default_device() -> None:
    x = torch.rand(3, 7)
    expected = dvae_fast.corrupt(x, dvae_fast.corruptions.SaltAndPepper(0.3), copies=2, seed=1)
    torch.set_default_device("meta")
    try:
        found = dvae_fast.corrupt(x, dvae_fast.corruptions.SaltAndPepper(0.3), copies=2, seed=1)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
