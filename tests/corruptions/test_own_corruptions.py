"""Corruptions of one's own: functions, modules, and subclasses of `Corruption`."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from refusals import assert_refused
from torch import Tensor, nn
from torch.nn import functional as F

import dvae_fast
from dvae_fast import corruptions
from dvae_fast.corruptions import Compose, Corruption, FunctionCorruption, Learnable, Masking
from dvae_fast.data import load_dataset
from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.models import DIWAE, DVAE
from dvae_fast.training import default_config
from dvae_fast.training.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

M, B, K, Z, D = 3, 5, 2, 4, 11
SEED = 123
#: of a z test: a false alarm in 1.7 million
SIGMAS = 5.0


class Fog(Corruption):
    """Writes to what it is given; no parameter, no density."""

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x.mul_(torch.rand(x.shape, generator=generator, dtype=x.dtype))


class Drop(Corruption, nn.Module):
    """Masking with a rate to learn, in the simple form."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.logit(torch.tensor(rate)))

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        kept = torch.rand(x.shape, generator=generator) >= torch.sigmoid(self.logit)
        return x * kept

    def log_prob(self, noisy: Tensor, x: Tensor) -> Tensor:
        hit, kept = F.logsigmoid(self.logit), F.logsigmoid(-self.logit)
        none = torch.full_like(noisy, -math.inf)
        both = torch.logaddexp(
            torch.where(noisy == 0, hit, none), torch.where(noisy == x, kept, none)
        )
        return both.sum(-1)


class Shift(Corruption):
    """In the full form: adds the number of the example and of the copy."""

    def draw(
        self, x: Tensor, copies: int, key: Tensor, first_example: int, first_copy: int
    ) -> Tensor:
        example = torch.arange(first_example, first_example + len(x)).view(1, -1, 1)
        copy = torch.arange(first_copy, first_copy + copies).view(-1, 1, 1)
        return x + example + 100 * copy


def one_number(x: Tensor) -> Tensor:
    """Noise that all examples of a call share."""
    return x + torch.randn(()).to(x.dtype)


def noise(x: Tensor) -> Tensor:
    return x.add_(torch.randn_like(x))


#: what `corrupt` may be given that is none of its own, and x̃ of which depends on the seed
OWN: dict[str, Callable[[], Any]] = {
    "class": Fog,
    "class with a density": lambda: Drop(0.4),
    "module": lambda: nn.Dropout(0.4),
    "module in place": lambda: nn.Dropout(0.4, inplace=True),
    "modules": lambda: nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.3)),
    "function of x": lambda: noise,
    "one number": lambda: one_number,
    "function and generator": lambda: lambda x, g: x + torch.rand(x.shape, generator=g).to(x.dtype),
    "written in C": lambda: torch.bernoulli,
    "partial": lambda: functools.partial(F.dropout, p=0.4),
    "optional second argument": lambda: F.dropout,
    "composed": lambda: Compose(Masking(0.2), Fog(), nn.Dropout(0.2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(B, D), (B, 1, 28, 28), (1, 3)])
@pytest.mark.parametrize("name", OWN)
def test_anything_of_ones_own_corrupts(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    own = OWN[name]()
    x = torch.rand(shape).to(dtype)
    before, state = x.clone(), torch.get_rng_state()
    noisy = dvae_fast.corrupt(x, own, M, SEED)
    assert torch.equal(x, before), "x is the target and must not change"
    assert torch.equal(torch.get_rng_state(), state), "torch's generator must be put back"
    assert noisy.shape == (M, *shape)
    assert noisy.dtype == dtype
    torch.rand(7)  # the seed is all that counts
    assert torch.equal(dvae_fast.corrupt(x, own, M, SEED), noisy)
    # Copy m is the same whatever is drawn beside it.
    assert torch.equal(dvae_fast.corrupt(x, own, seed=SEED), noisy[0])
    assert torch.equal(dvae_fast.corrupt(x, own, 1, SEED, first_copy=M - 1), noisy[M - 1 :])
    if math.prod(shape) > 10:
        assert not torch.equal(noisy[0], noisy[1])
        assert not torch.equal(dvae_fast.corrupt(x, own, M, SEED + 1), noisy)
        other = dvae_fast.corrupt(x, own, M, SEED, first_example=B)  # another process's part
        assert not torch.equal(other, noisy)
    assert torch.equal(x, before)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "read from NumPy"])
def test_x_of_any_layout_stays(layout: str) -> None:
    x = {
        "expanded": torch.rand(1, D).expand(B, D),
        "transposed": torch.rand(D, B).t(),
        "read from NumPy": torch.from_numpy(np.random.default_rng(0).random((B, D))),
    }[layout]
    before = x.clone()
    noisy = dvae_fast.corrupt(x, noise, M, SEED)
    assert torch.equal(x, before)
    assert torch.equal(noisy, dvae_fast.corrupt(before, noise, M, SEED))
    assert dvae_fast.corrupt(x[:0], noise, M, SEED).shape == (M, 0, D)


def test_a_module_sees_the_shape_of_the_images() -> None:
    x = torch.ones(B, 3, 4, 6)
    noisy = dvae_fast.corrupt(x, nn.Dropout2d(0.5), M, SEED)
    whole = noisy.flatten(3)
    assert torch.equal(whole, whole[..., :1].expand_as(whole)), "channels are dropped whole"


def test_dropout_in_either_mode() -> None:
    x = torch.ones(50, D)
    dropout = nn.Dropout(0.1)
    noisy = dvae_fast.corrupt(x, dropout, M, SEED)
    assert {round(v, 5) for v in noisy.unique().tolist()} == {0.0, round(1 / 0.9, 5)}
    share = float((noisy == 0).float().mean())
    assert share == pytest.approx(0.1, abs=SIGMAS * math.sqrt(0.1 * 0.9 / noisy.numel()))
    dropout.eval()
    assert torch.equal(dvae_fast.corrupt(x, dropout, M, SEED), x.expand(M, -1, -1))
    model = DVAE(D, Z, (6,), corruption=nn.Dropout(0.1), copies=M)
    assert "FunctionCorruption" in repr(model.corruption)
    loss = model.loss(x, SEED)
    assert torch.equal(model.loss(x, SEED), loss)
    model.eval()
    assert not torch.equal(model.loss(x, SEED), loss)


@pytest.mark.parametrize("own", [nn.Dropout(0.5), Drop(0.5)], ids=["module", "class"])
def test_copies_and_seeds_are_independent(own: Any) -> None:
    """Pairs of masks of rate ½ agree in half of the places: `SIGMAS` standard errors each."""
    n = 4000
    x = torch.ones(n, D)
    masks = [
        dvae_fast.corrupt(x, own, M, seed) == 0
        for seed in (SEED, SEED + 2**32, SEED ^ 2**63 - 1, -1, 2**62)
    ]
    drawn = [copy for mask in masks for copy in mask]
    error = math.sqrt(0.25 / (n * D))
    for i, a in enumerate(drawn):
        assert float(a.float().mean()) == pytest.approx(0.5, abs=SIGMAS * error)
        for b in drawn[:i]:
            agree = float((a == b).float().mean())
            assert agree == pytest.approx(0.5, abs=SIGMAS * error)


def test_copies_are_independent_where_the_examples_are_not() -> None:
    x = torch.zeros(B, D)
    drawn = dvae_fast.corrupt(x, one_number, 400, SEED)
    assert torch.equal(drawn, drawn[:, :1, :1].expand_as(drawn))
    numbers = drawn[:, 0, 0]
    assert numbers.unique().numel() == 400
    neighbours = float((numbers[1:] * numbers[:-1]).mean())
    assert abs(neighbours) < SIGMAS / math.sqrt(399)
    assert abs(float(numbers.mean())) < SIGMAS / math.sqrt(400)


def test_the_full_form_and_batch_by_batch() -> None:
    """A full `draw` knows which example it has; a simple one knows where its batch begins."""
    x = torch.rand(B, D)
    whole = dvae_fast.corrupt(x, Shift(), M, SEED)
    parts = [
        dvae_fast.corrupt(x[i : i + 2], Shift(), M, SEED, first_example=i) for i in range(0, B, 2)
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
    first = dvae_fast.corrupt(x[:2], Fog(), M, SEED)
    second = dvae_fast.corrupt(x[2:4], Fog(), M, SEED, first_example=2)
    assert torch.equal(second, dvae_fast.corrupt(x[2:4], Fog(), M, SEED, first_example=2))
    assert not torch.equal(second / x[2:4], first / x[:2])
    composed = dvae_fast.corrupt(x, Compose(Masking(0.3), Shift()), M, SEED)
    masked = dvae_fast.corrupt(x, Masking(0.3), M, SEED)
    key = torch.tensor([SEED])
    shifted = [Shift().draw(copy, 1, key, 0, m) for m, copy in enumerate(masked)]
    assert torch.equal(composed, torch.cat(shifted))


def test_a_subclass_calls_its_parents_draw() -> None:
    class Thicker(Fog):
        def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
            return super().draw(super().draw(x, generator), generator)

    x = torch.rand(B, D)
    noisy = dvae_fast.corrupt(x, Thicker(), M, SEED)
    assert noisy.shape == (M, B, D)
    assert bool((noisy <= dvae_fast.corrupt(x, Fog(), M, SEED)).all())
    assert Fog().draw(x.clone(), torch.Generator().manual_seed(1)).shape == (B, D)


# --- gradients --------------------------------------------------------------------------------


def test_what_is_differentiable_is_differentiated() -> None:
    class Fade(nn.Module, Corruption):
        def __init__(self) -> None:
            super().__init__()
            self.strength = nn.Parameter(torch.tensor(0.5))

        def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
            return x * (1 - self.strength * torch.rand(x.shape, generator=generator))

    fade, x = Fade(), torch.rand(B, D, requires_grad=True)
    noisy = dvae_fast.corrupt(x, fade, M, SEED)
    grads = torch.autograd.grad(noisy.sum(), (fade.strength, x))
    torch.testing.assert_close(grads[0], ((noisy - x) / 0.5).sum().detach())
    torch.testing.assert_close(grads[1], (noisy / x).sum(0).detach())
    assert not fade.scores
    model = DVAE(D, Z, (6,), corruption=fade)
    model.loss(torch.rand(B, D), SEED).backward()
    assert fade.strength.grad is not None
    assert float(fade.strength.grad.abs()) > 0
    assert "corruption.strength" in dict(model.named_parameters())


def test_the_score_functions_gradient_is_unbiased() -> None:
    """Of E[(Σ x̃)²] for two pixels, by hand: with q = 1 − rate, q (a² + b²) + 2 q² a b."""
    drop, n = Drop(0.3), 20_000
    x = torch.tensor([[0.7, 1.3]]).expand(n, 2)
    noisy = dvae_fast.corrupt(x, drop, M, SEED)
    assert not noisy.requires_grad
    per_copy = noisy.sum(-1).square()
    q = (1 - torch.sigmoid(drop.logit)).double()
    a, b = 0.7, 1.3
    (expected,) = torch.autograd.grad(q * (a * a + b * b) + 2 * q * q * a * b, drop.logit)
    # The gradients of parts of the data, for their spread.
    grads = torch.stack(
        [
            torch.autograd.grad(
                corruptions.score_function_surrogate(loss, drop.log_prob(part, x[:100])), drop.logit
            )[0]
            for part, loss in zip(noisy.split(100, 1), per_copy.split(100, 1), strict=True)
        ]
    ).double()
    error = float(grads.std() / math.sqrt(len(grads)))
    assert float(grads.mean()) == pytest.approx(float(expected), abs=SIGMAS * error)
    assert error < 0.05 * abs(float(expected))


@pytest.mark.parametrize("kind", [DVAE, DIWAE])
def test_a_density_in_a_model_is_what_learnable_masking_is(kind: Any) -> None:
    """The same model's mean gradient over many seeds, by one's own class and by the built-in: of
    75 seeds each, so Student's t of 148 degrees, a false alarm in 600,000."""
    x = (torch.rand(40, D) < 0.5).float().repeat(4, 1)
    means, errors = [], []
    for corruption, name in ((Drop(0.3), "logit"), (Learnable(Masking(0.3)), "unconstrained")):
        torch.manual_seed(1)
        model = kind(D, Z, (6,), corruption=corruption, copies=M)
        parameter = getattr(corruption, name)
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.mul_(3)
        found = torch.stack(
            [torch.autograd.grad(model.loss(x, seed), parameter)[0] for seed in range(75)]
        )
        means.append(float(found.mean()))
        errors.append(float(found.std()) / math.sqrt(len(found)))
    assert abs(means[0]) > SIGMAS * errors[0], "a gradient there is"
    assert means[0] == pytest.approx(means[1], abs=SIGMAS * math.hypot(*errors))


@pytest.mark.parametrize("own", ["class", "class with a density", "module", "function of x"])
@pytest.mark.parametrize("kind", [DVAE, DIWAE])
def test_models_and_the_evaluator_take_it(kind: Any, own: str) -> None:
    model = kind(D, Z, (6,), corruption=OWN[own](), copies=M, samples=K)
    x = (torch.rand(B, D) < 0.5).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = model.loss(x, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < sum(losses[:10])
    torch.testing.assert_close(-model.bound(x, SEED).mean(), model.loss(x, SEED).detach())
    for proposal in ("corrupted", "mixture"):
        found = estimate_log_likelihood(model, x, k=20, proposal=proposal, seed=SEED)
        again = estimate_log_likelihood(model, x, k=20, proposal=proposal, seed=SEED)
        assert bool(found.log_likelihood.isfinite().all())
        assert torch.equal(found.log_likelihood, again.log_likelihood)


@pytest.mark.parametrize("own", [Fog, lambda: nn.Dropout(0.3)], ids=["class", "module"])
def test_a_training_step_with_it_is_reproducible(own: Callable[[], Any], tmp_path: Path) -> None:
    config = default_config(
        "dvae",
        copies=2,
        samples=1,
        batch_size=237,
        latent_size=Z,
        hidden_sizes=(9, 7),
        epochs=1,
        seed=11,
    )
    found = []
    for twin in range(2):
        run = Run(config, tmp_path, load_dataset("digits"))
        before = run.model.decoder.output.weight.detach().clone()
        run.model.corruption = corruptions.as_corruption(own())
        run.start_epoch()
        for _ in range(2):
            torch.rand(twin + 1)  # torch's generator, anywhere
            run.step()
        assert bool(run.gradient_norms[:2].isfinite().all())
        weight = run.model.decoder.output.weight.detach()
        assert not torch.equal(weight, before)
        found.append(weight)
    assert torch.equal(*found)


def test_the_documents_example_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "corruptions.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["noisy"].shape == (3, 5, 11)
    assert names["same"].shape == (5, 11)
    assert "corruption.strength" in dict(names["model"].named_parameters())


# --- bad input --------------------------------------------------------------------------------


def _double(x: Tensor) -> Tensor:
    return x.double()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: dvae_fast.corrupt(x, "salt-and-peper"),
            TypeError,
            r"a corruption's name must be one of salt_and_pepper, .*masking.*'salt-and-peper'; did "
            r"you mean 'salt_and_pepper'\?, as in make_corruption\(name, level\); .*got str",
        ),
        (
            lambda x: dvae_fast.corrupt(x, 0.3),
            TypeError,
            "corruption must be an object .*got float",
        ),
        (lambda x: dvae_fast.corrupt(x, Fog), TypeError, "corruption must be .*, got type"),
        (
            lambda x: dvae_fast.corrupt(x, Corruption()),
            TypeError,
            "your own that has a draw.*got C",
        ),
        (
            lambda x: dvae_fast.corrupt(x, lambda: 3),
            TypeError,
            r"of x or of .*got <lambda> of \(\)",
        ),
        (
            lambda x: dvae_fast.corrupt(x, lambda a, b, c: a),
            TypeError,
            r"must be a function of x or of \(x, generator\), got <lambda> of \(a, b, c\)",
        ),
        (lambda x: dvae_fast.corrupt(x, _double), TypeError, "_double must return torch.float32"),
        (
            lambda x: dvae_fast.corrupt(x, lambda x: None),
            TypeError,
            "return a tensor, got NoneType",
        ),
        (
            lambda x: dvae_fast.corrupt(x, nn.Flatten(0)),
            ValueError,
            rf"Flatten must return the shape it is given, \({B}, {D}\), got \({B * D},\)",
        ),
        (
            lambda x: dvae_fast.corrupt(x, nn.Linear(D, 2)),
            ValueError,
            rf"Linear must return the shape it is given, \({B}, {D}\), got \({B}, 2\)",
        ),
        (
            lambda x: DVAE(D, corruption=Drop(0.3)),
            ValueError,
            "copies must be >= 2 for a rate learnt by the score function, .*; got 1",
        ),
        (
            lambda x: DVAE(D, corruption=Drop(0.3), copies=2, objective="mixture"),
            ValueError,
            "objective must be a mean over corruptions .*; got mixture",
        ),
        (
            lambda x: Compose(Drop(0.3), Masking(0.1)),
            ValueError,
            r"parts must not learn by the score function, .*; got Drop\(\)",
        ),
        (
            lambda x: type("Odd", (Corruption,), {"draw": lambda self, x, a, b: x}),
            TypeError,
            r"draw of Odd must take \(x, generator\), or \(x, copies, key, first_example, ",
        ),
    ],
)
def test_wrong_arguments(
    call: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    x = torch.rand(B, D)
    assert_refused(lambda: call(x), error, message)


def test_a_function_that_raises_puts_the_generator_back() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no fog today")

    x = torch.rand(B, D)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no fog today"):
        dvae_fast.corrupt(x, FunctionCorruption(broken), seed=SEED)
    assert torch.equal(torch.get_rng_state(), state)
