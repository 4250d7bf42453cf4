"""torch.compile and activation checkpointing: no graph break, the numbers of eager mode."""

from __future__ import annotations

import math
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from operator_cases import DEVICES, naming
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor
from torch.utils.checkpoint import checkpoint

import dvae_fast
from dvae_fast import corruptions
from dvae_fast.models import make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# torch.compile's own doing: on meeting an autograd.Function, and on loading its backend.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*should not be instantiated. Methods on autograd functions:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning"),
    # Of the default backend on a GPU, which has TF32 and is not told to use it.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

M, B, K, Z, D, H = 2, 5, 7, 4, 65, 33

HOW = ("iwae_loss", "overwrite", "log_weights", "linear_log_weights")

each_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Step(torch.nn.Module):
    """corrupt → encoder → sample_latent → decoder → bound; `how` chooses the functions."""

    def __init__(
        self,
        corruption: corruptions.Corruption,
        likelihood: str = "bernoulli",
        how: str = "iwae_loss",
        device: str = "cpu",
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.corruption = corruption.to(device)
        self.likelihood, self.how = likelihood, how
        self.encoder = torch.nn.Linear(D, 2 * Z, device=device)
        self.hidden = torch.nn.Linear(Z, H, device=device)
        self.decoder = torch.nn.Linear(H, D, device=device)
        self.log_scale = torch.nn.Parameter(torch.zeros(D, device=device))

    def decode(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(torch.tanh(self.hidden(z)))
        return out

    def forward(self, x: Tensor, seed: int | Tensor | None) -> Tensor:
        noisy = dvae_fast.corrupt(x, self.corruption, M, seed)
        mean, log_var = self.encoder(noisy).chunk(2, -1)
        z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed)
        gaussian = self.likelihood == "gaussian"
        scale = torch.exp(self.log_scale) if gaussian else None
        if self.how == "linear_log_weights":
            log_w = dvae_fast.linear_log_weights(
                torch.tanh(self.hidden(z)),
                self.decoder.weight,
                self.decoder.bias,
                x,
                ratio,
                self.likelihood,
                scale=scale,
            )
            return -dvae_fast.logmeanexp(log_w).mean()
        out = self.decode(z)
        params: Any = (out, scale) if gaussian else out
        if self.how == "log_weights":
            again = dvae_fast.latent_log_ratio(z, mean, log_var)
            mixed = dvae_fast.mixture_log_ratio(z, mean, log_var)
            ratio = (ratio + again + mixed) / 3
            log_w = dvae_fast.log_weights(params, x, ratio, self.likelihood)
            return -dvae_fast.logmeanexp(log_w).mean()
        overwrite = self.how == "overwrite"
        return dvae_fast.iwae_loss(params, x, ratio, self.likelihood, overwrite_params=overwrite)


def _x(device: str, b: int = B) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.rand(b, D, generator=g).round().to(device)


def _seed(value: int, device: str) -> Tensor:
    return torch.tensor([value], device=device)


def _loss_and_grads(
    step: torch.nn.Module, call: Callable[..., Tensor], x: Tensor, seed: Any
) -> dict[str, Tensor]:
    step.zero_grad()
    loss = call(x, seed)
    (2 * loss).backward()
    out = {"loss": loss.detach().clone()}
    for name, p in step.named_parameters():
        if p.grad is not None:
            out[name] = p.grad.clone()
    return out


def _assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, e in expected.items():
        torch.testing.assert_close(got[name], e, rtol=1e-4, atol=1e-5, msg=naming(name))


# Each corruption, likelihood and function once; every pair of them at night.
VARIANTS = [
    (corruptions.AdditiveGaussian(0.3), "gaussian", "iwae_loss"),
    (corruptions.Masking(torch.full((D,), 0.3)), "bernoulli", "overwrite"),
    (corruptions.BitFlip(0.2), "bernoulli", "log_weights"),
    (corruptions.SaltAndPepper(0.4), "gaussian", "linear_log_weights"),
    *(
        pytest.param(*variant, marks=pytest.mark.slow)
        for variant in (
            (corruptions.SaltAndPepper(0.4), "bernoulli", "iwae_loss"),
            (corruptions.Identity(), "gaussian", "log_weights"),
            (corruptions.Masking(0.2), "bernoulli", "linear_log_weights"),
        )
    ),
]


@each_device
@pytest.mark.parametrize(
    ("corruption", "likelihood", "how"), VARIANTS, ids=lambda v: v if isinstance(v, str) else None
)
def test_training_step_is_one_graph_with_the_numbers_of_eager_mode(
    corruption: corruptions.Corruption, likelihood: str, how: str, device: str
) -> None:
    step, x = Step(corruption, likelihood, how, device), _x(device)
    counter: Any = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for value in (1, 2, 3):
        seed = _seed(value, device)
        expected = _loss_and_grads(step, step, x, seed)
        _assert_same(_loss_and_grads(step, compiled, x, seed), expected)
    assert counter.frame_count == 1, f"{counter.frame_count} graphs for three seeds"


#: Compiled in this process, for each of its own would load torch first; without the headers
#: compiled ahead, which pays for many alone; and not optimised.
QUICK = {
    "compile_threads": 1, "cpp_cache_precompile_headers": False,
    "aot_inductor.debug_compile": True,
}  # fmt: skip
#: Torch's own operations as calls, as ours are: no C++ is made.
CALLS = {**QUICK, "fallback_by_default": True}


@each_device
@pytest.mark.parametrize("options", [CALLS, pytest.param(QUICK, marks=pytest.mark.slow)])
def test_inductor(options: dict[str, Any], device: str) -> None:
    """At night with torch's own operations as the C++ that it makes of them."""
    if device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("torch.compile's default backend needs a C++ compiler on the CPU")
    step, x = Step(corruptions.SaltAndPepper(0.4), device=device), _x(device)
    seed = _seed(1, device)
    compiled = torch.compile(step, fullgraph=True)
    expected = _loss_and_grads(step, step, x, seed)
    with inductor.patch(options):
        _assert_same(_loss_and_grads(step, compiled, x, seed), expected)
    other = _loss_and_grads(step, compiled, x, _seed(2, device))
    assert not torch.equal(other["loss"], expected["loss"]), "the seed was baked in"


@each_device
@pytest.mark.parametrize(
    "how",
    ["iwae_loss", *(pytest.param(n, marks=pytest.mark.slow) for n in HOW[2:])],
)
def test_another_batch_size(how: str, device: str) -> None:
    """Dynamic shapes: the numbers are right and the graphs few, whatever the last batch holds."""
    step = Step(corruptions.Masking(0.3), how=how, device=device)
    counter: Any = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for b in (5, 3, 9, 11):
        x, seed = _x(device, b), _seed(b, device)
        expected = _loss_and_grads(step, step, x, seed)
        _assert_same(_loss_and_grads(step, compiled, x, seed), expected)
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for four batch sizes"


@each_device
def test_int_seed_and_no_seed(device: str) -> None:
    """What dynamo makes of them; the graph's own derivatives are those of tensors."""
    step, x = Step(corruptions.Masking(0.3), device=device), _x(device)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for value in (1, 2):
        expected = _loss_and_grads(step, step, x, value)
        _assert_same(_loss_and_grads(step, compiled, x, value), expected)
    # Without a seed torch's generator gives one, anew in each call, in compiled code as well.
    torch.manual_seed(0)
    first, second = compiled(x, None), compiled(x, None)
    torch.manual_seed(0)
    assert torch.equal(compiled(x, None), first)
    assert not torch.equal(first, second)


@each_device
def test_without_grad(device: str) -> None:
    step, x = Step(corruptions.Masking(0.3), device=device), _x(device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        seed = _seed(1, device)
        torch.testing.assert_close(compiled(x, seed), step(x, seed))


@each_device
def test_gradient_to_a_learned_standard_deviation(device: str) -> None:
    std = torch.full((D,), 0.3, device=device, requires_grad=True)
    x = _x(device)

    def call(x: Tensor, std: Tensor, seed: Tensor) -> Tensor:
        return dvae_fast.corrupt(x, corruptions.AdditiveGaussian(std), M, seed).square().sum()

    seed = _seed(1, device)
    (expected,) = torch.autograd.grad(call(x, std, seed), std)
    # The constructor looks at the values of std, so this need not be one graph; but it must be
    # right.
    compiled = torch.compile(call, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(x, std, seed), std)
    torch.testing.assert_close(got, expected)


@each_device
def test_autocast_in_compiled_code(device: str) -> None:
    step, x = Step(corruptions.Masking(0.3), how="linear_log_weights", device=device), _x(device)

    def mixed(x: Tensor, seed: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss: Tensor = step(x, seed)
        return loss

    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager")
    seed = _seed(1, device)
    _assert_same(_loss_and_grads(step, compiled, x, seed), _loss_and_grads(step, mixed, x, seed))


# --- activation checkpointing -----------------------------------------------------------------


@each_device
@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize(
    ("how", "reentrant"),
    [*((how, False) for how in HOW), *((how, True) for how in HOW[:3])],
)
def test_checkpointed_step_has_the_same_gradients(
    how: str, reentrant: bool, seeded: bool, device: str
) -> None:
    """The recomputed forward pass draws the same noise, from the seed or from torch's generator."""
    step, x = Step(corruptions.SaltAndPepper(0.4), how=how, device=device), _x(device)
    seed = _seed(1, device) if seeded else None
    # Reentrant checkpointing takes part in autograd through an input that requires a gradient,
    # which linear_log_weights makes none of for x.
    x = x.requires_grad_(reentrant)
    torch.manual_seed(7)
    expected = _loss_and_grads(step, step, x, seed)
    torch.manual_seed(7)

    def run(x: Tensor, seed: Tensor | None) -> Tensor:
        out: Tensor = checkpoint(step, x, seed, use_reentrant=reentrant)
        return out

    _assert_same(_loss_and_grads(step, run, x, seed), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_overwriting_what_another_operation_saved_is_not_done_when_compiled(backend: str) -> None:
    """Torch's check is not there in a compiled graph, so nothing is overwritten."""
    g = torch.Generator().manual_seed(3)
    leaf = torch.randn(B, K, 65, generator=g, requires_grad=True)
    x, log_ratio = torch.rand(B, 65, generator=g), torch.randn(B, K, generator=g)

    def loss(leaf: Tensor, overwrite: bool) -> Tensor:
        return dvae_fast.iwae_loss(torch.tanh(leaf), x, log_ratio, overwrite_params=overwrite)

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    actual = torch.autograd.grad(compiled(leaf, True), leaf)
    torch.testing.assert_close(actual, torch.autograd.grad(loss(leaf, False), leaf))


@each_device
@pytest.mark.parametrize(
    ("reduction", "backend"),
    [("mean", "eager"), ("sum", "aot_eager"), ("none", "aot_eager")],
)
def test_gradient_of_each_reduction(reduction: str, backend: str, device: str) -> None:
    g = torch.Generator().manual_seed(4)
    params, x = torch.randn(B, K, D, generator=g).to(device), _x(device)
    log_ratio = torch.randn(B, K, generator=g).to(device)
    inputs = (params.requires_grad_(), log_ratio.requires_grad_())
    upstream = torch.linspace(0.5, 2.5, B, device=device)

    def loss(params: Tensor, log_ratio: Tensor) -> Tensor:
        out = dvae_fast.iwae_loss(params, x, log_ratio, reduction=reduction)
        return (out * upstream).sum()

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    torch.testing.assert_close(actual, torch.autograd.grad(loss(*inputs), inputs))


@each_device
def test_checkpointed_decoder_may_be_overwritten(device: str) -> None:
    """A checkpoint around the decoder alone: the loss writes over what it returns."""
    step, x = Step(corruptions.Masking(0.3), device=device), _x(device)
    g = torch.Generator().manual_seed(2)
    z = torch.randn(M, B, K, Z, generator=g).to(device).requires_grad_()
    ratio = torch.randn(M, B, K, generator=g).to(device)
    grads = []
    for decode in (step.decode, lambda z: checkpoint(step.decode, z, use_reentrant=False)):
        loss = dvae_fast.iwae_loss(decode(z), x, ratio, overwrite_params=True)
        grads.append(torch.autograd.grad(loss, (z, step.decoder.weight)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ours", [True, False])
def test_an_evaluation_with_a_compiled_decoder(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """k is no multiple of the chunk: the last one has a shape of its own."""
    model: Any = make_model("iwae", D, Z, (8, 6))
    calls = []
    compilations: list[list[torch.Size]] = []
    original = torch.compile

    def decode(z: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            calls.append(z.shape)
        logits: Tensor = model.decode(z)
        return logits.clamp(-20, 20)

    def counted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        # Its default backend is torch's, and half a minute of C++ where nothing is cached.
        compiled, used = original(function, backend="aot_eager"), []
        compilations.append(used)

        def call(z: Tensor) -> Tensor:
            used.append(z.shape)
            return compiled(z)

        return call

    evaluated = model if ours else (model.encode, decode)
    x = torch.rand(5, D, generator=torch.Generator().manual_seed(1)).round()
    plain = dvae_fast.estimate_log_likelihood(evaluated, x, 23, chunk=10, seed=3)
    called = len(calls)
    monkeypatch.setattr(torch, "compile", counted)
    compiled = dvae_fast.estimate_log_likelihood(evaluated, x, 23, chunk=10, seed=3, compile=True)
    assert len(calls) == called
    # One function that is called, and all that was decoded went through it.
    (used,) = filter(None, compilations)
    assert sum(math.prod(shape[:-1]) for shape in used) == 5 * 23
    assert all(shape[-1] == Z for shape in used)
    torch.testing.assert_close(compiled.log_likelihood, plain.log_likelihood, rtol=1e-5, atol=1e-5)
