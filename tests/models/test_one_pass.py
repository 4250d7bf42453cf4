"""The loss of a model of perceptrons in one pass: when it is, and that it is what it was."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

from dvae_fast import ops
from dvae_fast.corruptions import AdditiveGaussian, FunctionCorruption, Learnable, Masking
from dvae_fast.models import DIWAE, DVAE, IWAE, VAE, Autoencoder
from dvae_fast.objectives import Objective
from dvae_fast.training import TrainingStep

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not ops.library_loaded(), reason="no compiled kernels")

B, D, Z = 9, 21, 3
MODELS: dict[str, Callable[[], Any]] = {
    "vae": lambda: VAE(D, Z, (8, 5)),
    "vae of copies": lambda: VAE(D, Z, (8,), copies=2, samples=3),
    "vae, elbo_kl": lambda: VAE(D, Z, (8,), objective="elbo_kl", samples=2),
    "vae, stl": lambda: VAE(D, Z, (8,), samples=2, estimator="stl"),
    "iwae, relu": lambda: IWAE(D, Z, (8,), samples=5, activation="relu"),
    "iwae without layers": lambda: IWAE(D, Z, (), samples=4),
    "dvae, gaussian noise": lambda: DVAE(D, Z, (8, 5), corruption=AdditiveGaussian(0.3), copies=2),
    "diwae, a rate a pixel": lambda: DIWAE(
        D, Z, (8, 5), corruption=Masking(torch.rand(D)), samples=4, copies=3
    ),
    "diwae, dreg": lambda: DIWAE(D, Z, (8, 5), samples=4, estimator="dreg", activation="tanh"),
    "diwae, stl": lambda: DIWAE(D, Z, (8,), samples=4, estimator="stl"),
}


def data(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, D, generator=generator).round().to(dtype)


def is_one_pass(loss: Tensor) -> bool:
    return "OnePass" in type(loss.grad_fn).__name__


def by_layer(model: Any, x: Tensor, seed: int, first_example: int = 0) -> Tensor:
    loss = Autoencoder._loss(model, x, torch.tensor([seed]), first_example)
    assert not is_one_pass(loss)
    return loss


def gradients(loss: Tensor, model: nn.Module, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(model.parameters()), **options)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_layer_by_layer(name: str) -> None:
    model, x = MODELS[name]().double(), data()
    loss, expected = model.loss(x, 3, first_example=2), by_layer(model, x, 3, 2)
    assert is_one_pass(loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model))


def test_weight_of_the_divergence() -> None:
    model, x = VAE(D, Z, (8,), samples=2).double(), data()
    model.kl_weight = 0.4
    loss = model.loss(x, 3)
    assert is_one_pass(loss)
    torch.testing.assert_close(gradients(loss, model), gradients(by_layer(model, x, 3), model))
    inside = IWAE(D, Z, (8,), samples=2).double()
    inside.kl_weight = 0.4
    assert not is_one_pass(inside.loss(x, 3))


def test_upstream_gradients_scale_it() -> None:
    model, x = DIWAE(D, Z, (8,), samples=2).double(), data()
    once = gradients(model.loss(x, 3), model)
    loss = model.loss(x, 3)
    for got, g in zip(gradients(-2.5 * loss, model, retain_graph=True), once, strict=True):
        torch.testing.assert_close(got, -2.5 * g)
    # The graph was kept: the same again, and many at once.
    torch.testing.assert_close(gradients(loss, model, retain_graph=True), once)
    many = torch.autograd.grad(
        loss, list(model.parameters()), torch.tensor([1.0, 3.0]).double(), is_grads_batched=True
    )
    for got, g in zip(many, once, strict=True):
        torch.testing.assert_close(got, torch.stack((g, 3 * g)))


def test_gradients_add_up_in_parameters_and_are_their_own() -> None:
    model, x = DIWAE(D, Z, (8,), samples=2), data(torch.float32)
    model.loss(x, 3).backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.loss(x, 3).backward()
    for p, g in zip(model.parameters(), once, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, 2 * g)


def test_a_second_backward_of_one_graph_is_an_error_in_words() -> None:
    model, x = VAE(D, Z, (8,)), data(torch.float32)
    loss = model.loss(x, 3)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_second_derivatives() -> None:
    """Of the gradients' squares, as layer by layer."""
    model, x = DIWAE(D, Z, (4,), samples=2).double(), data()

    def second(loss: Tensor) -> tuple[Tensor, ...]:
        first = gradients(loss, model, create_graph=True)
        square = torch.stack([g.square().sum() for g in first]).sum()
        return gradients(square, model, allow_unused=True)

    for a, b in zip(second(model.loss(x, 3)), second(by_layer(model, x, 3)), strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_of_what_two_layers_share() -> None:
    for share in ("module", "parameter"):
        model, x = VAE(D, Z, (8, 8)).double(), data()
        if share == "module":
            model.decoder.trunk[2] = model.encoder.trunk[2]
        else:
            model.decoder.trunk[2].weight = model.encoder.trunk[2].weight
        loss, expected = model.loss(x, 3), by_layer(model, x, 3)
        assert is_one_pass(loss)
        got = gradients(loss, model, create_graph=True)
        wanted = gradients(expected, model, create_graph=True)
        torch.testing.assert_close(got, wanted)
        again, as_wanted = (
            gradients(torch.stack([g.square().sum() for g in first]).sum(), model)
            for first in (got, wanted)
        )
        torch.testing.assert_close(again, as_wanted)


def test_second_derivatives_are_of_the_loss_that_was_asked_for() -> None:
    """By the parameters given then, and the weight of the divergence that the model had then."""
    model, x = VAE(D, Z, (8,)).double(), data()
    model.kl_weight = 0.3
    given = {name: nn.Parameter(1.1 * p.detach()) for name, p in model.named_parameters()}
    loss = torch.func.functional_call(model, given, (x, 3))
    assert is_one_pass(loss)
    model.kl_weight = 1.0
    got = torch.autograd.grad(loss, list(given.values()), create_graph=True)
    model.load_state_dict(given)
    model.kl_weight = 0.3
    torch.testing.assert_close(got, gradients(by_layer(model, x, 3), model))


@pytest.mark.parametrize("name", ["x", "seed"])
def test_second_derivatives_of_what_was_written_to_are_refused(name: str) -> None:
    model, x, seed = DVAE(D, Z, (8,)).double(), data(), torch.tensor([3])
    loss = model.loss(x, seed)
    (x if name == "x" else seed).add_(1)
    gradients(loss, model, retain_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} must not be written to"):
        gradients(loss, model, create_graph=True)


def test_a_loss_gone_back_through_holds_no_data() -> None:
    model, x = DVAE(D, Z, (8,)), data(torch.float32)
    held, loss = weakref.ref(x), model.loss(x, 3)
    loss.backward()
    del x
    gc.collect()
    assert held() is None
    assert loss.isfinite()


def test_modes() -> None:
    """A default device changes nothing; who asks to see each function does."""
    model, x, seed = VAE(D, Z, (8,)), data(torch.float32), torch.tensor([3])
    expected, called = model.loss(x, seed), []
    with torch.device("meta"):
        assert torch.equal(model.loss(x, seed), expected)

    class Sees(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    with Sees():
        model.loss(x, seed)
    assert called.count(nn.functional.linear) == 4


def test_frozen_parameters_get_none() -> None:
    model, x = DIWAE(D, Z, (8,), samples=2), data(torch.float32)
    model.decoder.requires_grad_(False)
    loss = model.loss(x, 3)
    assert is_one_pass(loss)
    loss.backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    model.requires_grad_(False)
    assert model.loss(x, 3).grad_fn is None


def _hook(module: nn.Module, *_: Any) -> None:
    module.called = getattr(module, "called", 0) + 1  # type: ignore[assignment]


def _draw(model: Any) -> None:
    model.corruption = Masking(0.1)
    model.corruption.draw = lambda x, copies, *_: x.expand(copies, *x.shape)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a hook on a layer": lambda m: m.encoder.trunk[0].register_forward_hook(_hook),
    "a hook on an activation": lambda m: m.decoder.trunk[1].register_forward_hook(_hook),
    "a hook on a gradient": lambda m: m.decoder.output.register_full_backward_hook(lambda *_: None),
    "a hook on the encoder": lambda m: m.encoder.register_forward_pre_hook(_hook),
    "a layer of one's own": lambda m: setattr(m.decoder, "output", nn.Sequential(nn.Linear(8, D))),
    "another activation": lambda m: m.encoder.trunk.__setitem__(1, nn.GELU()),
    "two activations": lambda m: m.encoder.trunk.__setitem__(1, nn.Tanh()),
    "dropout": lambda m: m.encoder.trunk.append(nn.Dropout(0.5)),
    "a parametrisation": lambda m: parametrizations.weight_norm(m.encoder.trunk[0]),
    "an encoder of one's own": lambda m: setattr(m, "encoder", nn.Linear(D, 2 * Z)),
    "a corruption of one's own": lambda m: setattr(
        m, "corruption", FunctionCorruption(nn.Dropout(0.2))
    ),
    "a rate that is learnt": lambda m: setattr(m, "corruption", Learnable(AdditiveGaussian(0.2))),
    "a forward of one's own": lambda m: setattr(
        m.encoder.output, "forward", lambda t: nn.functional.linear(t, m.encoder.output.weight)
    ),
    "a draw of one's own": _draw,
    "one bias for all": lambda m: setattr(m.encoder.trunk[0], "bias", nn.Parameter(torch.zeros(1))),
    "decode of one's own": lambda m: setattr(m, "decode", lambda z: m.decoder(z)),
    "hidden layers' call of one's own": lambda m: setattr(
        m.decoder, "hidden", lambda z, _: m.decoder.trunk(z)
    ),
    "another bound": lambda m: setattr(m, "objective", Objective("ciwae", beta=0.3)),
    "free bits": lambda m: setattr(m, "objective", Objective("elbo_kl", free_bits=0.1)),
    "a joint bound": lambda m: setattr(m, "objective", Objective("iwae_joint")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_it_does_not_know_goes_layer_by_layer(name: str) -> None:
    model, x = DIWAE(D, Z, (8,), samples=2), data(torch.float32)
    assert is_one_pass(model.loss(x, 3))
    CHANGES[name](model)
    if "encoder of" in name:  # two tensors, as an encoder returns them
        layer = model.encoder
        model.encoder = type("Own", (nn.Module,), {"forward": lambda s, t: layer(t).chunk(2, -1)})()
    loss = model.loss(x, 3)
    assert not is_one_pass(loss)
    loss.backward()


def test_what_changes_later_is_seen() -> None:
    """Where a network has been looked at before."""
    model, x = VAE(D, Z, (8,)).double(), data()
    model.encoder.trunk[1], model.decoder.trunk[1] = nn.Softplus(), nn.Softplus()
    assert is_one_pass(model.loss(x, 3))
    layer = model.decoder.trunk[0]
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    model.encoder.trunk[0] = nn.Linear(D, 9, bias=False).double()
    model.encoder.output = nn.Linear(9, 2 * Z).double()
    loss = model.loss(x, 3)
    assert is_one_pass(loss)
    torch.testing.assert_close(loss, by_layer(model, x, 3))
    torch.testing.assert_close(gradients(loss, model), gradients(by_layer(model, x, 3), model))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not is_one_pass(model.loss(x, 3))
    handle.remove()
    assert is_one_pass(model.loss(x, 3))
    model.decoder.trunk[1].beta = 2
    assert not is_one_pass(model.loss(x, 3))
    model.decoder.trunk[1].beta = 1
    assert is_one_pass(model.float().loss(x.float(), 3))


def _bias_in_the_place_of_none(layer: nn.Module) -> None:
    del layer.bias
    layer.register_buffer("bias", torch.randn(8).double())


# Of a linear layer without a bias, each after a loss in one pass.
HIDDEN: dict[str, Callable[[nn.Module], Any]] = {
    "a buffer for the bias": _bias_in_the_place_of_none,
    "an attribute before the bias": lambda layer: layer.__dict__.update(
        bias=torch.ones(8).double()
    ),
    "an attribute before the weight": lambda layer: layer.__dict__.update(
        weight=torch.ones(8, D).double()
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_stands_before_a_parameter_later_is_seen(name: str) -> None:
    model, x = VAE(D, Z, (8,)).double(), data()
    model.encoder.trunk[0] = nn.Linear(D, 8, bias=False).double()
    before = model.loss(x, 3)
    assert is_one_pass(before)
    HIDDEN[name](model.encoder.trunk[0])
    loss = model.loss(x, 3)
    assert loss != before
    torch.testing.assert_close(loss, by_layer(model, x, 3))


def test_a_bias_that_is_gone_later_is_an_error() -> None:
    model, x = VAE(D, Z, (8,)).double(), data()
    model.encoder.output = nn.Linear(8, 2 * Z, bias=False).double()
    assert is_one_pass(model.loss(x, 3))
    del model.encoder.output.bias
    with pytest.raises(AttributeError, match="bias"):
        model.loss(x, 3)


def test_parameters_may_be_swapped_after_a_loss() -> None:
    model, x = VAE(D, Z, (8,)).double(), data()
    before, layer = model.loss(x, 3), model.encoder.trunk[0]
    del before
    gc.collect()
    other = nn.Parameter(torch.ones_like(layer.weight))
    torch.utils.swap_tensors(layer.weight, other)
    loss = model.loss(x, 3)
    assert is_one_pass(loss)
    torch.testing.assert_close(loss, by_layer(model, x, 3))


# What may hold the model that holds it.
HOLDERS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: None,
    "a layer's hook": lambda m: m.encoder.trunk[0].register_forward_hook(lambda *_: m and None),
    "a gradient's hook": lambda m: m.decoder.output.weight.register_hook(lambda g: m and g),
    "an attribute": lambda m: m.encoder.trunk.__dict__.update(owner=m),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_loss_keeps_no_model(name: str) -> None:
    model, x = VAE(D, Z, (8,)), data(torch.float32)
    HOLDERS[name](model)
    model.loss(x, 3).backward()
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("name", MODELS)
def test_under_autocast_it_is_no_further_from_the_truth_than_layer_by_layer(name: str) -> None:
    model, x = MODELS[name](), data(torch.float32)
    exact = MODELS[name]().double()
    exact.load_state_dict(model.state_dict())
    truth = gradients(by_layer(exact, x.double(), 3), exact)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, 3)
        ours, theirs = gradients(loss, model), gradients(by_layer(model, x, 3), model)
    assert is_one_pass(loss)
    assert loss.dtype == torch.float32

    def error(got: Any) -> float:
        differences = [(a - b).double().norm() for a, b in zip(got, truth, strict=True)]
        return float(torch.stack(differences).norm())

    assert error(ours) <= 1.5 * error(theirs)


def test_hooks_are_called() -> None:
    model, x = DIWAE(D, Z, (8,), samples=2), data(torch.float32)
    layer = model.encoder.trunk[0]
    handle = layer.register_forward_hook(_hook)
    model.loss(x, 3).backward()
    assert layer.called == 1
    handle.remove()
    assert is_one_pass(model.loss(x, 3))


def test_not_where_gradients_are_not_asked_for_or_asked_for_otherwise() -> None:
    model, x = DIWAE(D, Z, (8,), samples=2), data(torch.float32)
    with torch.no_grad():
        assert model.loss(x, 3).grad_fn is None
    assert not is_one_pass(model.loss(x.clone().requires_grad_(), 3))
    with torch.autocast("cpu", torch.float16):
        assert not is_one_pass(model.loss(x, 3))
    parameters = dict(model.named_parameters())

    def of(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (x, 3))

    by_transform = torch.func.grad(of)(parameters)
    model.loss(x, 3).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(by_transform[name], p.grad)
    mask = torch.ones(B, D, dtype=torch.bool)
    mask[2, 3] = False
    assert not is_one_pass(model.loss(x, 3, mask=mask))
    conditional = DIWAE(D, Z, (8,), context_size=2)
    assert not is_one_pass(conditional.loss(x, 3, context=torch.zeros(B, dtype=torch.int64)))


def test_a_subclass_that_changes_a_step_is_asked() -> None:
    class Own(DIWAE):
        def encode(self, x: Tensor, context: Tensor | None = None) -> Any:
            mean, log_var = super().encode(x, context)
            return mean, log_var - 1

    class AlsoOwn(DIWAE):
        def _encoded_noisy(self, *args: Any) -> Any:
            noisy, (mean, log_var) = super()._encoded_noisy(*args)
            return noisy, (mean, log_var - 1)

    class Same(DIWAE):
        pass

    x = data(torch.float32)
    assert not is_one_pass(Own(D, Z, (8,)).loss(x, 3))
    assert not is_one_pass(AlsoOwn(D, Z, (8,)).loss(x, 3))
    assert is_one_pass(Same(D, Z, (8,)).loss(x, 3))


def test_errors_are_those_of_the_usual_way() -> None:
    model, x = DIWAE(D, Z, (8,)), data(torch.float32)
    with pytest.raises(ValueError, match="first_example must"):
        model.loss(x, 3, first_example=-1)
    model.corruption = Masking(torch.rand(D + 1))
    with pytest.raises(ValueError, match="one per data dimension"):
        model.loss(x, 3)
    model = DIWAE(D, Z, (8,))
    model.decoder.output = nn.Linear(8, D - 1)
    with pytest.raises(ValueError, match=r"x must have shape \(B, D\)"):
        model.loss(x, 3)
    model = DIWAE(D, Z, (8,))
    model.samples = 0
    with pytest.raises(ValueError, match="k must"):
        model.loss(x, 3)
    model = DIWAE(D, Z, (8,))
    model.likelihood = torch.distributions.Normal
    with pytest.raises(TypeError, match="likelihood must be a string or a Likelihood"):
        model.loss(x, 3)
    with pytest.raises(TypeError, match="likelihood must be a string or a Likelihood"):
        TrainingStep(model, torch.optim.Adam(model.parameters()))(x, 3)
    model.likelihood = "bernoulli"  # what it is called will do
    assert model.loss(x, 3).isfinite()


def test_data_outside_the_likelihoods_range_are_named() -> None:
    model, x = DIWAE(D, Z, (8,)), data(torch.float32)
    x[1, 2] = torch.inf
    with pytest.warns(RuntimeWarning, match="the loss is not finite"):
        model.loss(x, 3)


def test_trains() -> None:
    """The loss falls as it does layer by layer, to rounding."""
    x = data(torch.float32)
    ends = []
    for way in (True, False):
        torch.manual_seed(0)
        model = DIWAE(D, Z, (8,), samples=3)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(60):
            optimizer.zero_grad()
            loss = model.loss(x, step) if way else by_layer(model, x, step)
            loss.backward()
            optimizer.step()
        ends.append(model.bound(x, 1).mean().item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)
    assert ends[0] > -0.65 * D
