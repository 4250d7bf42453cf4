"""`TrainingStep`: what loss, backward and the optimizer make, in one operator or by turns."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor, nn

from dvae_fast import ops
from dvae_fast.corruptions import Masking
from dvae_fast.models import DIWAE, DVAE, IWAE, VAE, TwoLayerModel
from dvae_fast.training import TrainingStep
from dvae_fast.training.optimizers import BurdaAdam

if TYPE_CHECKING:
    from collections.abc import Callable

compiled = pytest.mark.skipif(not ops.library_loaded(), reason="no compiled kernels")

B, D, Z = 9, 21, 3
DOUBTED = [5.0]  # that warn, in the data of a Bernoulli likelihood
MODELS: dict[str, Callable[[], Any]] = {
    "vae": lambda: VAE(D, Z, (8, 5)),
    "vae, relu": lambda: VAE(D, Z, (8,), activation="relu", copies=2),
    "dvae": lambda: DVAE(D, Z, (8,), corruption=Masking(torch.rand(D))),
    "diwae": lambda: DIWAE(D, Z, (8, 5), samples=4, copies=3, estimator="dreg"),
    "iwae without layers": lambda: IWAE(D, Z, (), samples=4),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True),
    "adam of a decay": lambda ps: torch.optim.Adam(ps, lr=0.02, weight_decay=0.1, foreach=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.03, betas=(0.7, 0.9), eps=1e-4, foreach=False),
    "adam of a tensor": lambda ps: torch.optim.Adam(ps, lr=torch.tensor(0.01)),
    "burda": lambda ps: BurdaAdam(ps, 0.01, 7),
}


def data(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, D, generator=generator).round().double()


def by_turns(model: Any, optimizer: Any, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    loss = model.loss(x, seed)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    groups = optimizer.param_groups
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return loss.detach(), torch.nn.utils.get_total_norm(grads)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the operator's."""
    from dvae_fast.models import one_pass

    counted: list[int] = []
    run = one_pass.Pass.step

    def step(self: Any, *adam: Any) -> Any:
        counted.append(1)
        return run(self, *adam)

    monkeypatch.setattr(one_pass.Pass, "step", step)
    return counted


@compiled
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_is_the_four_lines(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = calls(monkeypatch)
    model = MODELS[name]().double()
    other = copy.deepcopy(model)
    optimizer, others = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](other.parameters())
    step = TrainingStep(model, optimizer)
    for seed in range(4):
        loss = step(data(seed), seed)
        expected, norm = by_turns(other, others, data(seed), seed)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(step.gradient_norm, norm)
        assert not loss.requires_grad
    assert len(counted) == (4 if kind == "burda" else 3)  # torch's first makes its state
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert p.grad is None
        assert p._version >= 4
    mine, theirs = optimizer.state_dict()["state"], others.state_dict()["state"]
    torch.testing.assert_close(mine, theirs)


@compiled
def test_state_and_rates_are_the_optimizers_own() -> None:
    """Saved half way, loaded into another, at the rates of a scheduler."""
    model = VAE(D, Z, (8,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step, x = TrainingStep(model, optimizer), data().float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scheduler warns where no step was made before its own
        for seed in range(3):
            step(x, seed)
            scheduler.step()
    twin = copy.deepcopy(model)
    again = torch.optim.Adam(twin.parameters(), lr=7.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == 0.1 / 8
    other = TrainingStep(twin, again)
    for seed in range(3, 6):
        assert torch.equal(step(x, seed), other(x, seed))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    optimizer.load_state_dict(copy.deepcopy(again.state_dict()))  # and into the same
    assert torch.equal(step(x, 6), other(x, 6))
    assert all(float(s["step"]) == 7 for s in optimizer.state.values())


class Weighted(VAE):
    """A loss of its own."""

    def loss(self, *args: Any, **options: Any) -> Tensor:
        return 3 * super().loss(*args, **options)


def _frozen(model: Any) -> None:
    model.decoder.output.bias.requires_grad_(False)


def _tied(model: Any) -> None:
    model.decoder.trunk[0].bias = model.encoder.trunk[0].bias


def _hook(model: Any) -> None:
    model.decoder.output.weight.register_hook(lambda grad: 2 * grad)


def _late_hook(model: Any) -> None:
    def double(p: Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(2)

    model.decoder.output.weight.register_post_accumulate_grad_hook(double)


def _module_hook(model: Any) -> None:
    model.decoder.output.register_forward_hook(lambda module, args, out: out * 2)


def _strided(model: Any) -> None:
    weight = model.decoder.output.weight
    weight.data = weight.data.t().contiguous().t()


def _double(model: Any) -> None:
    model.loss = lambda *args, **options: 2 * type(model).loss(model, *args, **options)


CHANGES = (_frozen, _tied, _hook, _late_hook, _module_hook, _strided, _double)


@pytest.mark.parametrize(
    ("kind", "change"), [(Weighted, None), *((k, c) for k in (VAE, Weighted) for c in CHANGES)]
)
def test_other_models_go_by_turns(
    kind: Any, change: Callable[[Any], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _goes_by_turns(kind(D, Z, (8,)), OPTIMIZERS["adam"], monkeypatch, change)


def _groups(ps: Any) -> torch.optim.Optimizer:
    ps = list(ps)
    return torch.optim.Adam([{"params": ps[:2], "lr": 0.1}, {"params": ps[2:]}], lr=0.01)


def _hooked_optimizer(ps: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(ps, lr=0.01)

    def halve(optimizer: Any, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(0.5).add_(p)

    optimizer.register_step_pre_hook(halve)
    return optimizer


def _own_step(make: Callable[..., Any]) -> Callable[[Any], torch.optim.Optimizer]:
    """Adam with a step of its own put in the place of the class's, and a scheduler's around it or
    within it."""

    def made(ps: Any) -> torch.optim.Optimizer:
        optimizer: Any = torch.optim.Adam(ps, lr=0.01)
        make(optimizer)
        return cast("torch.optim.Optimizer", optimizer)

    return made


def _halved_then_scheduled(optimizer: Any) -> None:
    step = type(optimizer).step

    def halved(self: Any, *args: Any) -> Any:
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(0.5).add_(p)
        return step(self, *args)

    optimizer.step = types.MethodType(halved, optimizer)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def _scheduled_then_halved(optimizer: Any) -> None:
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    step = optimizer.step

    @functools.wraps(step)
    def halved(*args: Any) -> Any:
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(0.5).add_(p)
        return step(*args)

    optimizer.step = halved


def _adding_up(optimizer: Any) -> None:
    optimizer.zero_grad = lambda: None


class Ascent(torch.optim.Adam):
    """A step of its own."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.grad.neg_()
        return super().step(closure)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9),
        lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
        lambda ps: torch.optim.Adam(ps, lr=0.01, maximize=True),
        lambda ps: Ascent(ps, lr=0.01),
        lambda ps: torch.optim.Adam(list(ps)[1:], lr=0.01),
        _groups,
        _hooked_optimizer,
        _own_step(_halved_then_scheduled),
        _own_step(_scheduled_then_halved),
        _own_step(_adding_up),
    ],
)
def test_other_optimizers_go_by_turns(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _goes_by_turns(VAE(D, Z, (8,)), make, monkeypatch)


def _strided_state(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = (
                state[name].t().contiguous().t() if state[name].dim() == 2 else state[name]
            )


def _wide_count(optimizer: Any) -> None:
    """As Adam itself makes it where float64 is the default dtype."""
    for state in optimizer.state.values():
        state["step"] = state["step"].double()


@pytest.mark.parametrize("change", [_strided_state, _wide_count])
def test_whatever_state_the_optimizer_takes_is_taken(change: Callable[[Any], None]) -> None:
    model = VAE(D, Z, (8,)).double()
    other = copy.deepcopy(model)
    pairs = [(m, torch.optim.Adam(m.parameters(), lr=0.01)) for m in (model, other)]
    for pair in pairs:
        by_turns(*pair, data(), 0)
        change(pair[1])
    step = TrainingStep(*pairs[0])
    for seed in (1, 2):
        torch.testing.assert_close(step(data(), seed), by_turns(*pairs[1], data(), seed)[0])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    mine, theirs = (o.state_dict()["state"] for _, o in pairs)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", ["narrow", "meta", "inference"])
def test_state_that_the_optimizer_refuses_changes_no_weight(kind: str) -> None:
    model = VAE(D, Z, (8,)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = TrainingStep(model, optimizer)
    step(data(), 0)
    with torch.inference_mode(kind == "inference"):
        for state in optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                t = state[name]
                state[name] = {"narrow": t.float(), "meta": t.to("meta")}.get(kind, t.clone())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        step(data(), 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_anomalies_are_looked_for() -> None:
    """As torch does it: an error in the backward pass, before any step."""
    model = VAE(D, Z, (8,)).double()
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.1))
    step(data(), 0)
    before = copy.deepcopy(model.state_dict())
    x = torch.full((B, D), torch.nan, dtype=torch.float64)
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="nan values"):
            step(x, 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@compiled
@pytest.mark.parametrize("value", DOUBTED)
def test_a_warning_that_is_an_error_changes_nothing(value: float) -> None:
    model = VAE(D, Z, (8,)).double()
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.1))
    step(data(), 0)
    before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    x = data()
    x[0, 0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match=r"support|not observed"):
            step(x, 1)
    after = (model.state_dict(), step.optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with pytest.warns(RuntimeWarning):
        step(x, 1)


def test_other_kinds_of_models_go_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    _goes_by_turns(TwoLayerModel(D, Z, (8,)), OPTIMIZERS["adam"], monkeypatch)


def _goes_by_turns(
    model: Any,
    make: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None] | None = None,
) -> None:
    counted = calls(monkeypatch)
    model = model.double()
    other = copy.deepcopy(model)
    for each in (model, other):
        if change is not None:
            change(each)
    optimizer, others = make(model.parameters()), make(other.parameters())
    step = TrainingStep(model, optimizer)
    for seed in range(3):
        expected, norm = by_turns(other, others, data(), seed)
        torch.testing.assert_close(step(data(), seed), expected)
        torch.testing.assert_close(step.gradient_norm, norm)
    assert not counted
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@compiled
def test_state_that_differs_from_parameter_to_parameter_is_refused_nothing() -> None:
    """One parameter joined later: its bias correction is another."""
    model = VAE(D, Z, (8,)).double()
    other = copy.deepcopy(model)
    pairs = [(m, torch.optim.Adam(m.parameters(), lr=0.01)) for m in (model, other)]
    for m, optimizer in pairs:
        last: Any = m.decoder.output.bias
        last.requires_grad_(False)
        by_turns(m, optimizer, data(), 0)
        last.requires_grad_(True)
        by_turns(m, optimizer, data(), 1)
    step = TrainingStep(*pairs[0])
    for seed in (2, 3):
        torch.testing.assert_close(step(data(), seed), by_turns(*pairs[1], data(), seed)[0])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@compiled
def test_what_is_told_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask, images and a place in the noise."""
    counted = calls(monkeypatch)
    model = DVAE((3, 7), Z, (8,), corruption=Masking(0.3)).double()
    other = copy.deepcopy(model)
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.01))
    others = torch.optim.Adam(other.parameters(), lr=0.01)
    x, mask = data().view(B, 3, 7), data(1).view(B, 3, 7) > 0
    for number, told in enumerate(
        ({}, {"first_example": 4}, {"mask": mask}, {"mask": mask | True})
    ):
        loss = other.loss(x, 5, **told)
        others.zero_grad()
        loss.backward()
        others.step()
        torch.testing.assert_close(step(x, 5, **told), loss.detach())
        assert len(counted) == (0, 1, 1, 2)[number]


@compiled
def test_seed_is_drawn_as_by_a_loss() -> None:
    model = VAE(D, Z, (8,)).double()
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.0))
    for _ in range(3):
        torch.manual_seed(4)
        expected = model.loss(data())
        torch.manual_seed(4)
        torch.testing.assert_close(step(data()), expected.detach())


@compiled
@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ((torch.zeros(B, D + 1).double(),), {}, ValueError),
        ((torch.zeros(B, D),), {}, TypeError),
        ((data(), "a seed"), {}, TypeError),
        ((data(), 1), {"first_example": -1}, ValueError),
        ((data(), 1), {"context": torch.zeros(B, 2)}, ValueError),
        (([1.0],), {}, TypeError),
    ],
)
def test_bad_input_changes_nothing(args: Any, options: Any, error: Any) -> None:
    model = VAE(D, Z, (8,)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = TrainingStep(model, optimizer)
    step(data(), 0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(error):
        step(*args, **options)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


@compiled
def test_graphs_of_the_old_weights_are_refused() -> None:
    """As after any optimizer's step."""
    model = VAE(D, Z, (8,)).double()
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.1))
    step(data(), 0)
    out = model.decode(torch.zeros(2, Z, dtype=torch.float64, requires_grad=True))
    step(data(), 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@compiled
def test_autocast_is_of_the_loss_alone() -> None:
    model = VAE(D, Z, (8,))
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.01))
    plain = VAE(D, Z, (8,))
    plain.load_state_dict(model.state_dict())
    other = TrainingStep(plain, torch.optim.Adam(plain.parameters(), lr=0.01))
    for seed in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(data().float(), seed)
        assert abs(loss / other(data().float(), seed) - 1) < 0.02
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_any_module_with_a_loss_is_trained() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D))

        def loss(self, x: Tensor, seed: Any = None, **told: Any) -> Tensor:
            assert told == {"first_example": 0}
            return (x * self.weight).square().mean()

    model: Any = Own()
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=0.1))
    assert step(torch.ones(B, D)) > step(torch.ones(B, D))
