"""What models' methods say of inputs that are none, and what they take of inference mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from refusals import assert_refused
from torch import Tensor, nn

from dvae_fast import VAE, Masking
from dvae_fast.models import make_model

if TYPE_CHECKING:
    from collections.abc import Callable

B, D, Z, C = 3, 6, 2, 4

#: what is no tensor, and what a message calls it
NONE = {
    "list": [0.5] * D, "ndarray": np.zeros((B, D), np.float32), "NoneType": None, "str": "x",
    "int": 3, "float": 0.5, "complex": 1j, "dict": {}, "tuple": (1.0, 2.0),
}  # fmt: skip


def _model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    upper = {"upper_latent_size": 2, "upper_hidden_sizes": (3,)} if name == "two_layer" else {}
    return make_model(name, D, latent_size=Z, hidden_sizes=(5,), **upper, **options)


def _inputs(model: Any) -> dict[str, tuple[str, tuple[int, ...], Callable[[Any], Any]]]:
    """Methods: the argument, a shape that it may have, and a call with it."""
    return {
        "loss": ("x", (B, D), lambda t: model.loss(t, 1)),
        "bound": ("x", (B, D), lambda t: model.bound(t, 1)),
        "encode": ("x", (B, D), model.encode),
        "decode": ("z", (B, Z), model.decode),
        "flatten": ("x", (B, D), model.flatten),
        "unflatten": ("x", (B, D), model.unflatten),
        "reconstruct": ("x", (B, D), model.reconstruct),
        "log_prior": ("z", (B, Z), model.log_prior),
        "log_ratio_above": ("z", (B, 2, Z), lambda t: model.log_ratio_above(t, 1)),
    }


METHODS = tuple(_inputs(_model("vae")))


@pytest.mark.parametrize("name", ["vae", "bernoulli", "two_layer"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_input_that_is_none(name: str, method: str) -> None:
    argument, shape, call = _inputs(_model(name))[method]
    assert call(torch.zeros(shape)) is not None
    for kind, wrong in NONE.items():
        assert_refused(
            lambda wrong=wrong: call(wrong),
            TypeError,
            rf"^{argument} must be a tensor, got {kind}$",
        )
    assert_refused(
        lambda: call(torch.zeros(shape).to_sparse()), ValueError, rf"^{argument} must be a dense"
    )
    nested = torch.nested.nested_tensor([torch.zeros(shape[1:])] * 2)
    assert_refused(lambda: call(nested), ValueError, rf"^{argument} must be a dense tensor, got a")
    if method not in ("flatten", "unflatten"):
        for wrong_dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
            t = torch.zeros(shape).to(wrong_dtype)
            assert_refused(
                lambda t=t: call(t),
                TypeError,
                rf"^{argument} must be float32, .*got {wrong_dtype}$",
            )


@pytest.mark.parametrize("name", ["vae", "bernoulli", "two_layer"])
@pytest.mark.parametrize("method", ["loss", "encode", "decode"])
def test_another_shape_dtype_or_device(name: str, method: str) -> None:
    argument, shape, call = _inputs(_model(name))[method]
    t = torch.zeros(shape)
    rule = rf"^{argument} must have shape \(.*, (D|Z)\) with (D|Z) = {shape[-1]}"
    for other in (t[:, 1:], torch.zeros(()), torch.zeros(0), t.T.contiguous()):
        assert_refused(
            lambda other=other: call(other), ValueError, rule + rf".*, got {_shown(other)}$"
        )
    message = rf"^{argument} must have the model's dtype, torch.float32, got torch.float64$"
    assert_refused(lambda: call(t.double()), TypeError, message)
    message = rf"^{argument} must be on the model's device, cpu, got meta$"
    assert_refused(lambda: call(t.to("meta")), ValueError, message)


def _shown(t: Tensor) -> str:
    return str(tuple(t.shape)).replace("(", r"\(").replace(")", r"\)")


def test_any_leading_dimensions_are_an_input() -> None:
    model = _model("vae")
    x, z = torch.rand(2, 0, B, D).round(), torch.randn(4, B, 2, Z)
    assert model.encode(x)[0].shape == (2, 0, B, Z)
    assert model.encode(x[0, 0, 0] if len(x[0]) else torch.zeros(D))[0].shape == (Z,)
    assert model.decode(z).shape == (4, B, 2, D)


def test_modules_of_ones_own_take_what_they_take() -> None:
    """A decoder that computes in bfloat16, and an encoder whose first parameter counts."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(Z, D, dtype=torch.bfloat16)

        def forward(self, z: Tensor) -> Tensor:
            out: Tensor = self.layer(z.bfloat16())
            return out

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
            self.layer = nn.Linear(D, 2 * Z)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_var = self.layer(x).chunk(2, -1)
            return mean, log_var

    model = VAE(D, Z, (5,), encoder=Counting(), decoder=Half())
    loss = model.loss(torch.rand(B, D).round(), 1)
    loss.backward()
    assert bool(loss.isfinite())


@pytest.mark.parametrize("wrong", [3, 0.5, [1.0], "c", {}, np.zeros((B, C))])
def test_a_context_that_is_none(wrong: Any) -> None:
    x, z = torch.zeros(B, D), torch.zeros(B, Z)
    without, model = _model("vae"), _model("vae", context_size=C)
    kind = type(wrong).__name__
    for call in (without.encode, without.decode):
        t = x if call == without.encode else z
        message = rf"^context must be None for a model without a context_size, got {kind}$"
        assert_refused(lambda call=call, t=t: call(t, wrong), ValueError, message)
    for call in (lambda: model.encode(x, wrong), lambda: model.decode(z, wrong)):
        assert_refused(call, TypeError, rf"^context must be a tensor, got {kind}$")
    too_few = torch.zeros(B, C - 1)
    for call in (lambda: model.encode(x, too_few), lambda: model.decode(z, too_few)):
        assert_refused(call, ValueError, rf"^context must have shape \(\.\.\., C\) with C = {C}")
    assert model.encode(x, torch.zeros(1, C))[0].shape == (B, Z)


def test_the_posterior_of_log_weights() -> None:
    model, x = _model("vae"), torch.zeros(B, D)
    mean, spread = (t.detach() for t in model.encode(x))
    assert model.log_weights(x, mean, spread, 3, 1).shape == (B, 3)
    for kind, wrong in NONE.items():
        for name in ("x", "mean", "spread"):
            given = {"x": x, "mean": mean, "spread": spread, name: wrong}
            assert_refused(
                lambda given=given: model.log_weights(**given, k=3),
                TypeError,
                rf"^{name} must be a tensor, got {kind}$",
            )
    message = r"^spread must have mean's dtype, torch.float32, got torch.float64$"
    assert_refused(lambda: model.log_weights(x, mean, spread.double(), 3), TypeError, message)
    message = r"^x must have shape \(B, D\), got \(6,\)$"
    assert_refused(lambda: model.log_weights(x[0], mean, spread, 3), ValueError, message)


@pytest.mark.parametrize(
    "name, options",
    [
        ("vae", {}), ("diwae", {"corruption": Masking(0.3), "copies": 2}), ("bernoulli", {}),
        ("two_layer", {}), ("vae", {"context_size": C, "prior": "mixture"}),
        ("vae", {"covariance": "full"}),
    ],
)  # fmt: skip
def test_data_of_inference_mode(name: str, options: dict[str, Any]) -> None:
    """The loss and its gradients are those of ordinary data, with a mask and a context too."""
    model = _model(name, **options)
    g = torch.Generator().manual_seed(3)
    x = torch.rand(B, D, generator=g).round()
    mask = torch.rand(B, D, generator=g) > 0.3
    more = {"context": torch.rand(B, C, generator=g)} if options.get("context_size") else {}
    for told in ({}, {"mask": mask}):
        found = []
        for mode in (False, True):
            with torch.inference_mode(mode):
                data = [t.clone() for t in (x, *told.values(), *more.values())]
            given = dict(zip((*told, *more), data[1:], strict=True))
            model.zero_grad()
            loss = model.loss(data[0], 1, **given)
            loss.backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            found.append([loss.detach(), *(g.clone() for g in grads)])
        assert len(found[0]) == len(found[1]) > 1
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
    with torch.inference_mode():
        z = torch.randn(B, Z)
    out = model.decode(z, *(t for t in more.values()))
    assert out.requires_grad
