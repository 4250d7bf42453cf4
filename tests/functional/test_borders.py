"""Inputs at the borders of what the functions take: seeds, layouts, devices, sizes, tracing."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import functional
from dvae_fast.corruptions import AdditiveGaussian, Identity, Masking, rates_from_mean
from dvae_fast.likelihoods import Bernoulli
from dvae_fast.models import DIWAE, VAE

if TYPE_CHECKING:
    from collections.abc import Callable

M, B, K, Z, D, H = 2, 3, 4, 5, 7, 6


def _x() -> Tensor:
    return torch.rand(B, D)


#: of each function: its inputs, a call, and the shapes of its results
FUNCTIONS: dict[str, tuple[Callable[[], tuple[Tensor, ...]], Callable[..., Any], list[Any]]] = {
    "corrupt": (
        lambda: (_x(),), lambda x: dvae_fast.corrupt(x, Masking(0.3), M, 1), [(M, B, D)],
    ),
    "corrupt by a function": (
        lambda: (_x(),), lambda x: dvae_fast.corrupt(x, lambda x: x * 2, M, 1), [(M, B, D)],
    ),
    "sample_latent": (
        lambda: (torch.randn(B, Z), torch.randn(B, Z)),
        lambda m, v: dvae_fast.sample_latent(m, v, K, 1), [(B, K, Z), (B, K)],
    ),
    "latent_log_ratio": (
        lambda: (torch.randn(B, K, Z), torch.randn(B, Z), torch.randn(B, Z)),
        functional.latent_log_ratio, [(B, K)],
    ),
    "mixture_log_ratio": (
        lambda: (torch.randn(B, K, Z), torch.randn(M, B, Z), torch.randn(M, B, Z)),
        functional.mixture_log_ratio, [(B, K)],
    ),
    "log_weights": (
        lambda: (torch.randn(B, K, D), _x(), torch.randn(B, K)), dvae_fast.log_weights, [(B, K)],
    ),
    "log_weights, a number as scale": (
        lambda: (torch.randn(B, K, D), _x(), torch.randn(B, K)),
        lambda p, x, r: dvae_fast.log_weights((p, np.float32(1.5)), x, r, "gaussian"), [(B, K)],
    ),
    "log_weights without a kernel": (
        lambda: (torch.rand(B, K, D), _x(), torch.randn(B, K)),
        lambda p, x, r: dvae_fast.log_weights(p, x, r, Bernoulli(probabilities=True)), [(B, K)],
    ),
    "linear_log_weights": (
        lambda: (torch.randn(B, K, H), torch.randn(D, H), torch.randn(D), _x(), torch.randn(B, K)),
        dvae_fast.linear_log_weights, [(B, K)],
    ),
    "mlp_log_weights": (
        lambda: (torch.randn(B, K, Z), torch.randn(D, Z), _x(), torch.randn(B, K)),
        lambda z, w, x, r: functional.mlp_log_weights(z, [(w, None)], x, r), [(B, K)],
    ),
    "logmeanexp": (lambda: (torch.randn(B, K),), dvae_fast.logmeanexp, [(B,)]),
    "iwae_loss": (
        lambda: (torch.randn(B, K, D), _x(), torch.randn(B, K)), dvae_fast.iwae_loss, [()],
    ),
    "softplus": (lambda: (torch.randn(B, D),), functional.softplus, [(B, D)]),
}  # fmt: skip
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def _shapes(out: Any) -> list[Any]:
    return [tuple(t.shape) for t in (out if isinstance(out, tuple) else (out,))]


@each_function
def test_meta_tensors_have_meta_results(name: str) -> None:
    inputs, call, shapes = FUNCTIONS[name]
    given = [t.to("meta") for t in inputs()]
    out = call(*given)
    assert _shapes(out) == shapes
    assert {t.device.type for t in (out if isinstance(out, tuple) else (out,))} == {"meta"}
    given[0].requires_grad_()
    out = call(*given)
    (grad,) = torch.autograd.grad(
        out[0] if isinstance(out, tuple) else out,
        given[0],
        torch.empty_like(out[0] if isinstance(out, tuple) else out),
    )
    assert grad.is_meta
    assert grad.shape == given[0].shape


@each_function
def test_a_default_device_changes_nothing(name: str) -> None:
    inputs, call, _ = FUNCTIONS[name]
    given = inputs()
    expected = call(*given)
    torch.set_default_device("meta")
    try:
        found = call(*given)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, expected)


def test_identity_may_be_made_on_any_default_device() -> None:
    torch.set_default_device("meta")
    try:
        identity = Identity()
    finally:
        torch.set_default_device(None)
    x = _x()
    assert torch.equal(dvae_fast.corrupt(x, identity, seed=1), x)


def _each_refused(
    name: str, others: Callable[[Tensor], list[tuple[Tensor, str]]], error: type[Exception]
) -> None:
    """Each tensor of a function's in another's place, which is to be refused in such words."""
    inputs, call, _ = FUNCTIONS[name]
    given = inputs()
    for i, t in enumerate(given):
        for other, words in others(t):
            with pytest.raises(error, match=words):
                call(*given[:i], other, *given[i + 1 :])


# torch's own words of its layouts.
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state).*:UserWarning")
@each_function
def test_sparse_and_nested_tensors_are_refused_by_name(name: str) -> None:
    def others(t: Tensor) -> list[tuple[Tensor, str]]:
        if t.dim() < 2:
            return []
        nested = torch.nested.nested_tensor(list(t), layout=torch.jagged)
        dense = r"must be a dense tensor, got .*"
        return [(t.to_sparse(), f"{dense}sparse_coo"), (nested, f"{dense}nested")]

    _each_refused(name, others, ValueError)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@each_function
def test_quantised_tensors_are_refused_by_name(name: str) -> None:
    def others(t: Tensor) -> list[tuple[Tensor, str]]:
        words = r"must (not be quant|be float).*, got .*qint8"
        return [(torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), words)]

    _each_refused(name, others, TypeError)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state).*:UserWarning")
def test_a_nested_seed_is_refused() -> None:
    seed = torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])
    with pytest.raises(TypeError, match=r"seed must be .* of one element, got a nested one"):
        dvae_fast.corrupt(_x(), Masking(0.3), seed=seed)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state).*:UserWarning")
@pytest.mark.parametrize("make", [Masking, AdditiveGaussian, lambda t: rates_from_mean(t, 0.1)])
def test_parameters_of_corruptions_are_dense(make: Callable[[Tensor], object]) -> None:
    t = torch.rand(3, 2)
    nested = torch.nested.nested_tensor(list(t), layout=torch.jagged)
    for other in (t.to_sparse(), t.to_sparse_csr(), nested):
        with pytest.raises(ValueError, match="must be a dense tensor, got"):
            make(other)


@pytest.mark.parametrize(
    "seed, same",
    [
        (2**64 - 1, -1),
        (2**63, -(2**63)),
        (2**63 + 12, torch.tensor([12 - 2**63])),
        (np.uint64(2**64 - 5), -5),
        (np.int32(9), 9),
        (torch.tensor(2**64 - 5, dtype=torch.uint64), -5),
        (torch.tensor([9], dtype=torch.int32), 9),
        (torch.tensor([[200]], dtype=torch.uint8), 200),
    ],
)
def test_a_seed_is_any_64_bits(seed: Any, same: Any) -> None:
    x = _x()
    for draw in (
        lambda s: dvae_fast.corrupt(x, Masking(0.5), seed=s),
        lambda s: dvae_fast.sample_latent(x, x, K, s)[0],
    ):
        assert torch.equal(draw(seed), draw(same))
        assert not torch.equal(draw(seed), draw(77))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: dvae_fast.corrupt(torch.zeros(0, 2**62), Masking(0.1), 8, 1),
            r"x̃ must hold at most 2\*\*59 numbers, got shape \(8, 0, 4611686018427387904\)",
        ),
        (
            lambda: dvae_fast.corrupt(torch.zeros(1).expand(0, 2**40, 2**30), Masking(0.1), seed=1),
            "x̃ must hold at most",
        ),
        (
            lambda: dvae_fast.corrupt(torch.zeros(0, D), Masking(0.1), 2**40, 1),
            r"at most 2\*\*32 copies, got 1099511627776",
        ),
        (
            lambda: dvae_fast.sample_latent(torch.zeros(0, Z), torch.zeros(0, Z), 2**62, 1),
            r"at most 2\*\*32 samples, got 4611686018427387904",
        ),
        (
            lambda: dvae_fast.sample_latent(*[torch.zeros(1).expand(0, 2**40)] * 2, 2**30, 1),
            "z must hold at most",
        ),
        (
            lambda: dvae_fast.sample_latent(
                torch.zeros(0, Z), torch.zeros(0, Z), K, 1, first_example=2**32
            ),
            r"first_example must be <= 2\*\*32 − 1, .* got 4294967296",
        ),
    ],
)
def test_sizes_without_an_index(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_dim_is_any_integer() -> None:
    w = torch.randn(B, K)
    assert torch.equal(dvae_fast.logmeanexp(w, np.int64(0)), dvae_fast.logmeanexp(w, 0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dim must be an int, got bool"):
        dvae_fast.logmeanexp(w, True)


# torch's own doing.
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("grad", [True, False])
def test_networks_are_traced(likelihood: str, grad: bool) -> None:
    """And are read again where dvae_fast's operators are not."""
    model = VAE(D, Z, (H,), likelihood=likelihood)
    for network, size in ((model.encoder, D), (model.decoder, Z)):
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(network, torch.rand(B, size))
        assert "dvae_fast::" not in str(traced.inlined_graph)
        saved = io.BytesIO()
        torch.jit.save(traced, saved)
        saved.seek(0)
        new = torch.rand(M, size)
        torch.testing.assert_close(torch.jit.load(saved)(new), network(new))


# torch.compile's own doing.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [lambda: lambda x: x * 2, lambda: torch.nn.Dropout(0.2)])
def test_a_corruption_of_ones_own_says_why_it_breaks_a_graph(make: Callable[[], Any]) -> None:
    model = DIWAE(D, Z, (H,), corruption=make())
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a corruption of one's own draws"):
        torch.compile(model.loss, backend="aot_eager", fullgraph=True)(_x(), torch.tensor([1]))


@pytest.mark.parametrize("scale", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(), (D,), (B, K, D)])
def test_a_scale_of_an_example_without_any_is_not_looked_at(
    scale: float, shape: tuple[int, ...]
) -> None:
    """log w is log_ratio, and the gradients are 0, whatever the scale."""
    mask = torch.ones(B, D, dtype=torch.bool)
    mask[1] = False
    mean = torch.randn(B, K, D, generator=torch.Generator().manual_seed(4)).requires_grad_()
    x, ratio = torch.rand(B, D), torch.randn(B, K)
    given = torch.full(shape, scale)
    if len(shape) == 3:  # elsewhere one that is
        given[[0, *range(2, B)]] = 0.5
    given.requires_grad_()
    for kind in ("gaussian", "discretised_logistic", "negative_binomial", "laplace"):
        log_w = dvae_fast.log_weights((mean, given), x.round(), ratio, kind, mask)
        assert torch.equal(log_w[1], ratio[1])
        grads = torch.autograd.grad(log_w[1].sum(), [mean, given])
        assert not any(g.any() for g in grads)
