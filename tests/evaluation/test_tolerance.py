"""Samples by tolerance: unbiased, whatever the pilot says; and examples evaluated in parts."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from linear_gaussian import draw_data, exact_log_likelihood, linear_gaussian
from torch import Tensor

from dvae_fast.corruptions import AdditiveGaussian
from dvae_fast.evaluation import (
    PROPOSALS,
    LikelihoodEstimate,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    estimate_log_likelihood,
    importance_expectation,
)
from dvae_fast.evaluation.statistics import samples_wanted

if TYPE_CHECKING:
    from dvae_fast.models import LatentVariableModel

SEED = 3


def _shifted(name: str = "iwae", **options: Any) -> LatentVariableModel:
    """q is the posterior, wider by 1.2 and beside it by 0.25, so that weights vary."""
    model = linear_gaussian(name, orthogonal=True, widen=1.44, **options)
    plain = model.encoder.forward

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = plain(x)
        return mean + 0.25, log_var

    model.encoder.forward = forward  # type: ignore[method-assign]
    return model


def _z_score(values: Tensor) -> float:
    return float(values.mean() / values.std()) * math.sqrt(len(values))


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_weights_are_unbiased_under_a_tolerance(proposal: str) -> None:
    """E p̂ = p, and elbo and curve are those of a fixed k: |z| < 4.5 of 4 numbers each, a false
    alarm in 12,000 all together. Stopping on the samples that are kept, which is no matter of the
    proposal, would fail by far on the most examples."""
    model = _shifted("dvae", corruption=AdditiveGaussian(0.1))
    x = draw_data(model, 2500 if proposal == "posterior" else 800)
    exact = exact_log_likelihood(model, x)
    options: dict[str, Any] = {"proposal": proposal, "copies": 3, "curve": (1, 5)}
    estimate = estimate_log_likelihood(model, x, 12, tolerance=0.2, max_k=96, seed=1, **options)
    assert len(set(estimate.spent.tolist())) >= 3
    assert abs(_z_score((estimate.log_likelihood - exact).exp() - 1)) < 4.5
    fixed = estimate_log_likelihood(model, x, 48, seed=2, **options)
    for found, expected in (
        (estimate.elbo, fixed.elbo),
        (estimate.curve[:, 0], fixed.curve[:, 0]),
        (estimate.curve[:, 1], fixed.curve[:, 1]),
    ):
        assert abs(_z_score(found - expected)) < 4.5


def _coverage(sets: int, examples: int, k: int, tolerance: float) -> tuple[float, float]:
    """Of 95 % intervals of a data set's mean, and of those by its noise alone."""
    model = _shifted()
    covered, by_noise = 0, 0
    x = draw_data(model, sets * examples)
    exact = exact_log_likelihood(model, x).view(sets, examples).mean(1)
    for i, rows in enumerate(x.view(sets, examples, -1)):
        estimate = estimate_log_likelihood(model, rows, k, tolerance=tolerance, curve=(), seed=i)
        error = abs(estimate.mean - float(exact[i]))
        noise = float(estimate.standard_error.square().sum().sqrt()) / examples
        covered += error < 1.96 * estimate.mean_standard_error
        by_noise += error < 1.96 * noise
    return covered / sets, by_noise / sets


def test_the_mean_is_covered_under_a_tolerance() -> None:
    """The bias is above the noise here, which alone covers some 0.7. With it 0.95 at least: a
    false alarm, 4 standard deviations of a binomial below, in 15,000 or so."""
    sets = 60
    covered, by_noise = _coverage(sets, 400, 20, 0.2)
    lowest = 0.95 - 4 * math.sqrt(0.95 * 0.05 / sets)
    assert by_noise < lowest - 0.05
    assert covered >= lowest


@pytest.mark.slow
def test_the_mean_of_many_examples_is_covered_under_a_tolerance() -> None:
    """Of 2,000 examples: the bias is 0.57 of the noise, which alone covers 0.91 of all sets, and a
    little more of these; with it all are covered. Of an interval that covers 0.97, fewer than 0.93
    of 200 would be a false alarm in 900, of one that covers 0.99 in 400 million."""
    covered, by_noise = _coverage(200, 2000, 200, 0.045)
    assert by_noise < covered
    assert covered >= 0.93


def test_the_error_of_a_tolerance_is_that_of_noise_and_bias() -> None:
    model = _shifted()
    x = draw_data(model, 9)
    fixed = estimate_log_likelihood(model, x, 40, seed=SEED)
    given = estimate_log_likelihood(model, x, 40, tolerance=5.0, max_k=40, seed=SEED)
    assert torch.equal(given.log_likelihood, fixed.log_likelihood)
    assert (fixed.tolerance, given.tolerance) == (None, 5.0)
    assert given.mean_standard_error == fixed.mean_standard_error - fixed.mean_bias
    assert given.summary()["standard_error"] == given.mean_standard_error
    assert given.mean_bias == fixed.mean_bias
    with pytest.raises(ValueError, match="estimates must have one tolerance"):
        LikelihoodEstimate.concat([fixed, dataclasses.replace(given, first_example=9)])


def test_samples_wanted() -> None:
    """Doubled until error and effective samples are enough, by 25 % more than they seem to take."""
    # Of 100 weights, of which n are 1 and the others 0: ess n, error √(1/n − 1/100).
    states = [[0.0, n, n, -1.0, 100.0] for n in (100, 50, 5)]
    states += [[math.nan] * 4 + [100.0], [-math.inf, 0.0, 0.0, -math.inf, 100.0]]
    state = torch.tensor(states, dtype=torch.float64)
    # 1.25 · 0.01 / 0.01 = 1.25 → 2; ess: 10/5 = 2; 1.25 · 0.19 / 0.01 = 23.75 → 32.
    assert samples_wanted(state, 0.1, 100, 10**6) == [100, 200, 3200, 100, 10**6]
    assert samples_wanted(state, 0.1, 100, 150) == [100, 150, 150, 100, 150]
    assert samples_wanted(state, 9.0, 100, 10**6) == [100, 100, 200, 100, 10**6]
    assert samples_wanted(state, 9.0, 50, 10**6) == [50, 50, 200, 50, 10**6]


def test_a_pilot_shares_no_noise_with_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvae_fast.models import posterior

    keys: dict[int, list[int]] = {}
    original = posterior.functional.sample_latent

    def noted(mean: Tensor, log_var: Tensor, k: int, key: Tensor, **at: int) -> Any:
        keys.setdefault(int(key), []).append(k)
        return original(mean, log_var, k, key, **at)

    monkeypatch.setattr(posterior.functional, "sample_latent", noted)
    model = _shifted()
    estimate_log_likelihood(
        model, draw_data(model, 4), 30, tolerance=1e-3, max_k=60, seed=SEED, batch_size=4, chunk=30
    )
    assert len(keys) == 2
    assert sum(keys.pop(SEED)) == 30 + 4 * 30
    assert list(keys.values()) == [[30]]


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_tolerance_goes_on_from_a_file(proposal: str, tmp_path: Any) -> None:
    """The pilot and the samples of what is left are those of one evaluation."""
    model = _shifted("dvae", corruption=AdditiveGaussian(0.1))
    x = draw_data(model, 20)
    options: dict[str, Any] = {"tolerance": 0.15, "max_k": 160, "seed": SEED, "batch_size": 4}
    options |= {"proposal": proposal, "copies": 3, "curve": (5,)}
    whole = estimate_log_likelihood(model, x, 20, **options)
    assert len(set(whole.spent.tolist())) >= 2

    def stop(state: Any) -> None:
        if state.examples >= 8:
            raise KeyboardInterrupt

    file = tmp_path / "partial.npz"
    with pytest.raises(KeyboardInterrupt):
        estimate_log_likelihood(model, x, 20, partial=file, progress=stop, **options)
    again = estimate_log_likelihood(model, x, 20, partial=file, **options)
    for field in dataclasses.fields(whole):
        value, expected = getattr(again, field.name), getattr(whole, field.name)
        if isinstance(expected, Tensor):
            assert torch.equal(value.nan_to_num(9.0), expected.nan_to_num(9.0)), field.name
    assert again.mean_standard_error == whole.mean_standard_error
    with pytest.raises(ValueError, match=r"the tolerance of .* is 0.15, not 0.2"):
        estimate_log_likelihood(model, x, 20, partial=file, **options | {"tolerance": 0.2})


# --- in parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"proposal": "corrupted"}, {"tolerance": 0.05}])
def test_parts_with_their_index_are_the_whole(options: dict[str, Any]) -> None:
    model = _shifted("dvae", corruption=AdditiveGaussian(0.1))
    x = draw_data(model, 11)
    whole = estimate_log_likelihood(model, x, 23, seed=SEED, **options)
    parts = [
        estimate_log_likelihood(model, part, 23, seed=SEED, first_example=first, **options)
        for first, part in ((0, x[:4]), (4, x[4:5]), (5, x[5:]))
    ]
    joined = LikelihoodEstimate.concat(iter(parts))
    for field in dataclasses.fields(whole):
        value, expected = getattr(joined, field.name), getattr(whole, field.name)
        if isinstance(expected, Tensor):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
        else:
            assert value == expected, field.name
    # Without it the first examples of each would have the same noise.
    again = estimate_log_likelihood(model, x[4:], 23, seed=SEED, **options)
    assert float((again.log_likelihood[1:] - whole.log_likelihood[5:]).abs().min()) > 1e-9


def test_annealing_has_the_index_too() -> None:
    model = _shifted()
    x = draw_data(model, 5)
    short: dict[str, Any] = {"chains": 3, "temperatures": 4, "leapfrog": 2, "seed": SEED}
    whole = annealed_importance_sampling(model, x, **short)
    part = annealed_importance_sampling(model, x[2:], first_example=2, **short)
    torch.testing.assert_close(part.log_likelihood, whole.log_likelihood[2:])
    assert part.first_example == 2


def test_parts_that_do_not_go_together() -> None:
    model = _shifted()
    x = draw_data(model, 3)
    first, same, other_seed, other_k = (
        estimate_log_likelihood(model, x, k, seed=seed, first_example=at)
        for k, seed, at in ((5, 1, 0), (5, 1, 0), (5, 2, 3), (6, 1, 3))
    )
    with pytest.raises(ValueError, match="first_example must be 3 at 1, got 0"):
        LikelihoodEstimate.concat([first, same])
    with pytest.raises(ValueError, match="estimates must have one seed, got 1 and, at 1, 2"):
        LikelihoodEstimate.concat([first, other_seed])
    with pytest.raises(ValueError, match="estimates must have one k, got 5 and, at 1, 6"):
        LikelihoodEstimate.concat([first, other_k])
    with pytest.raises(ValueError, match="estimates must hold one at least, got none"):
        LikelihoodEstimate.concat([])
    with pytest.raises(ValueError, match="first_example must be >= 0, got -1"):
        estimate_log_likelihood(model, x, 5, first_example=-1)
    with pytest.raises(ValueError, match=r"first_example must be <= 2\*\*32 − 3"):
        estimate_log_likelihood(model, x, 5, first_example=2**32)


# --- what is said of an estimate --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 5000.0])
def test_a_posterior_collapsed_to_the_prior_is_no_warning(
    dtype: torch.dtype, offset: float
) -> None:
    """Weights that are equal, or are to float32's rounding, also where log p is large."""
    logits = torch.linspace(-1, 1, 9, dtype=dtype)
    noise = 1e-6 if dtype == torch.float32 else 0.0

    def decode(z: Tensor) -> Tensor:
        return logits + noise * z[:, :1] + 0 * z[:, :1] - offset

    estimate = estimate_log_likelihood(
        (lambda x: (0 * x[:, :2], 0 * x[:, :2]), decode), torch.ones(5, 9, dtype=dtype), 300,
        seed=SEED,
    )  # fmt: skip
    assert float((estimate.ess / 300).min()) > 0.999
    assert estimate.warnings() == []
    assert estimate.summary()["pareto_k_above_0.7"] == 0
    few = estimate_log_likelihood(
        (lambda x: (0 * x[:, :2], 0 * x[:, :2]), decode), torch.ones(5, 9, dtype=dtype), 4,
        seed=SEED,
    )  # fmt: skip
    assert few.warnings() == []


def test_one_weight_above_equal_ones_is_a_warning() -> None:
    log_w = torch.zeros(1, 500, dtype=torch.float64)
    log_w[0, 77] = 9.0
    x = torch.ones(1, 3, dtype=torch.float64)
    drawn = iter(log_w[0].split(500))

    def decode(z: Tensor) -> Tensor:
        # log p of three ones is −3 log(1 + e^−l): a lone sample that explains x.
        return torch.where(next(drawn)[:, None] > 0, 30.0, -5.0).expand(-1, 3).double()

    estimate = estimate_log_likelihood(
        (lambda x: (0 * x[:, :2], 0 * x[:, :2]), decode), x, 500, chunk=500, seed=SEED
    )
    assert float(estimate.ess) < 10
    assert len(estimate.warnings()) >= 2


def test_the_bias_of_the_mean_is_estimated_and_told() -> None:
    """Against the exact answer: 4.5 standard errors of the difference, a false alarm in 100,000.
    At many examples it is above the standard error, and the raw mean misses."""
    model = _shifted()
    x = draw_data(model, 4000)
    exact = float(exact_log_likelihood(model, x).mean())
    many = estimate_log_likelihood(model, x, 30, seed=SEED)
    few = estimate_log_likelihood(model, x[:20], 30, seed=SEED)
    torch.testing.assert_close(many.bias, -0.5 * many.standard_error.square() * 30 / 29)
    assert many.mean_bias < -2 * many.mean_standard_error
    assert many.mean < exact - 2 * many.mean_standard_error
    # To a fifth of it, for what the delta method leaves out.
    slack = 4.5 * many.mean_standard_error + 0.2 * abs(many.mean_bias)
    assert abs(many.mean - many.mean_bias - exact) < slack
    (text,) = [text for text in many.warnings() if "nats below log p(x) on average" in text]
    assert f"{many.mean_standard_error:.2g}" in text
    assert not any("on average" in text for text in few.warnings())
    assert many.summary()["bias"] == many.mean_bias


def test_an_estimate_in_reverse_is_biased_upwards() -> None:
    both = bidirectional_monte_carlo(_shifted(), 5, chains=4, temperatures=3, leapfrog=2, seed=SEED)
    torch.testing.assert_close(
        both.reverse.bias, 0.5 * both.reverse.standard_error.square() * 4 / 3
    )
    assert both.forward.mean_bias < 0 < both.reverse.mean_bias


def test_the_curve_says_its_groups() -> None:
    model = _shifted()
    x = draw_data(model, 6)
    estimate = estimate_log_likelihood(model, x, 47, curve=(1, 5, 30), seed=SEED)
    assert estimate.curve_groups is not None
    assert estimate.curve_groups.tolist() == [[47, 9, 1, 1]] * 6
    assert estimate.summary()["bound_groups"] == {"1": 47, "5": 9, "30": 1, "47": 1}
    more = estimate_log_likelihood(
        model, x, 20, curve=(5, 40), tolerance=0.12, max_k=160, seed=SEED
    )
    assert more.curve_groups is not None
    assert more.curve_groups[:, 0].tolist() == (more.spent // 5).tolist()
    assert len(set(more.spent.tolist())) > 1


def test_an_estimate_is_read_back_without_its_code(tmp_path: Any) -> None:
    """By torch.load's weights_only, its default."""
    model = _shifted()
    x = draw_data(model, 3)
    short: dict[str, Any] = {"chains": 3, "temperatures": 4, "leapfrog": 2, "seed": SEED}
    estimates = (
        estimate_log_likelihood(model, x, 9, seed=SEED),
        annealed_importance_sampling(model, x, **short),
        bidirectional_monte_carlo(model, 3, **short),
    )
    expectation = importance_expectation(model, x, lambda z: z, 9, seed=SEED)
    torch.save(expectation, tmp_path / "expectation.pt")
    assert torch.equal(torch.load(tmp_path / "expectation.pt").value, expectation.value)
    for estimate in estimates:
        torch.save(estimate, tmp_path / "estimate.pt")
        again = torch.load(tmp_path / "estimate.pt", weights_only=True)
        assert type(again) is type(estimate)
        assert again.summary() == estimate.summary()
