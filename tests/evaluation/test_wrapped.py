"""Wrapped models: of data parallel processes and compiled ones, whatever evaluates them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dvae_fast
from dvae_fast import estimate_from_log_weights, estimate_log_likelihood
from dvae_fast.evaluation import annealed_importance_sampling, bidirectional_monte_carlo
from dvae_fast.models import load_model, make_model, save_model
from dvae_fast.training.run import mean_bound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

B, D, Z, C, K, SEED = 5, 12, 3, 2, 20, 6
SHORT: dict[str, Any] = {"chains": 2, "temperatures": 3, "leapfrog": 1, "seed": SEED}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _data() -> tuple[Tensor, Tensor]:
    return torch.rand(B, D, generator=torch.Generator().manual_seed(1)).round(), torch.arange(B) % C


WRAPPERS: dict[str, Any] = {
    "data parallel": DistributedDataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "the other way": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("how", WRAPPERS)
def test_the_model_inside_is_evaluated(how: str, context: bool) -> None:
    torch.manual_seed(2)
    model = make_model("iwae", D, Z, (6,), context_size=C if context else 0)
    x, y = _data()
    given: dict[str, Any] = {"context": y} if context else {}
    wrapped = WRAPPERS[how](model)

    def log_weights(of: Any) -> Any:
        def function(x: Tensor, k: int, seed: int, *told: Tensor) -> Tensor:
            assert not model.training
            inner = of.module if isinstance(of, DistributedDataParallel) else of
            numbers = [nn.functional.one_hot(t, C).float() for t in told]
            mean, log_var = getattr(inner, "module", inner).encode(x, *numbers)
            z, ratio = dvae_fast.sample_latent(mean, log_var, k, seed)
            params = getattr(inner, "module", inner).decode(z, *(t.unsqueeze(1) for t in numbers))
            return dvae_fast.log_weights(params, x, ratio)

        return function

    calls: list[Any] = [
        lambda m: estimate_log_likelihood(m, x, K, seed=SEED, **given).log_likelihood,
        lambda m: annealed_importance_sampling(m, x, **SHORT, **given).log_likelihood,
        lambda m: (
            estimate_from_log_weights(log_weights(m), x, K, seed=SEED, **given).log_likelihood
        ),
        lambda m: torch.tensor(mean_bound(m, x, SEED, 3, **given)),
    ]
    if not context:
        calls.append(lambda m: bidirectional_monte_carlo(m, 2, **SHORT).lower)
    for call in calls:
        torch.testing.assert_close(call(wrapped), call(model))
    assert model.training


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("how", WRAPPERS)
def test_the_model_inside_is_saved(how: str, tmp_path: Path) -> None:
    model = make_model("iwae", D, Z, (6,))
    x, _ = _data()
    assert save_model(tmp_path / "it", WRAPPERS[how](model)) == save_model(tmp_path / "as", model)
    assert torch.equal(load_model(tmp_path / "it").bound(x, SEED), model.bound(x, SEED))
    with pytest.raises(TypeError, match=r"model must be a model of this package, got PosixPath"):
        save_model(model, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["softplus", "elu"])
def test_a_decoder_compiled_with_a_context(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = _data()
    model = make_model("iwae", D, Z, (6,), context_size=C, activation=activation)
    expected = estimate_log_likelihood(model, x, K, context=y, seed=SEED)
    compile_, compiled = torch.compile, []

    def eager(module: Any, **options: Any) -> Any:
        compiled.append(module)
        return compile_(module, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    found = estimate_log_likelihood(model, x, K, context=y, seed=SEED, compile=True)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    assert compiled
