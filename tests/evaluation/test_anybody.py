"""Models of anybody's: what decode is given and may return, dtypes, modes, wrappers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from linear_gaussian import LinearDecoder, draw_data, exact_log_likelihood, linear_gaussian
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dvae_fast
from dvae_fast.corruptions import Masking
from dvae_fast.evaluation import (
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    estimate_log_likelihood,
)
from dvae_fast.likelihoods import Bernoulli
from dvae_fast.models import make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

N, K, Z, D, SEED = 7, 13, 2, 12, 5
SHORT: dict[str, Any] = {"chains": 3, "temperatures": 4, "leapfrog": 2, "seed": SEED}


def _binary(n: int = N, d: int = D) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1)).round()


class Pair(nn.Module):
    """q(z|x) by one layer, and a decoder that is given."""

    def __init__(self, decoder: nn.Module, size: int = D, images: bool = False) -> None:
        super().__init__()
        self.images = images
        self.encoder = nn.Linear(size, 2 * Z)
        self.decoder = decoder
        self.seen: list[tuple[int, ...]] = []

    def encode(self, x: Tensor) -> Any:
        assert (x.dim() == 4) == self.images
        return self.encoder(x.flatten(1)).chunk(2, -1)

    def decode(self, z: Tensor) -> Any:
        self.seen.append(tuple(z.shape))
        return self.decoder(z)


def _expected(model: Pair, x: Tensor, p: Callable[[Tensor], Any], k: int = K) -> Tensor:
    """log 1/K Σ w by torch.distributions: p of rows (R, Z)."""
    with torch.no_grad():
        model.eval()
        z, ratio = dvae_fast.sample_latent(*model.encode(x), k, SEED)
        flat = x.flatten(1).repeat_interleave(k, 0)
        log_p = p(z.flatten(0, 1)).log_prob(flat).sum(-1)
        return torch.logsumexp(log_p.view(len(x), k).double() + ratio, 1) - math.log(k)


def _bernoulli(decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    return lambda z: torch.distributions.Bernoulli(logits=decode(z).flatten(1), validate_args=False)


# --- rows -------------------------------------------------------------------------------------


def _normed(width: int) -> nn.Module:
    """A batch norm of that many features, whose statistics are none of the data's."""
    decoder = nn.Sequential(
        nn.Linear(Z, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, D)
    )
    norm = decoder[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = torch.randn(width)
    norm.running_var = torch.rand(width) + 0.5
    return decoder


@pytest.mark.parametrize("how", ["methods", "pair", "hook"])
@pytest.mark.parametrize("width", [K, 5, N * K])
def test_batch_norm_of_a_decoder_sees_features(width: int, how: str) -> None:
    """Width K too, where samples could be taken for features."""
    model = Pair(_normed(width))
    if how == "hook":  # so that the last layer is not taken with the likelihood
        model.decoder[-1].register_forward_hook(lambda *_: None)  # type: ignore[index]
    x = _binary()
    given: Any = model if how == "methods" else (model.encode, model.decoder)
    for chunk in (K, 5):
        found = estimate_log_likelihood(given, x, K, chunk=chunk, seed=SEED)
        expected = _expected(model, x, _bernoulli(model.decoder))
        torch.testing.assert_close(found.log_likelihood, expected, rtol=1e-5, atol=1e-5)
    assert all(len(shape) == 2 for shape in model.seen)


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Linear(Z, 3 * 2 * 3), nn.Unflatten(1, (3, 2, 3)), nn.BatchNorm2d(3), nn.ReLU(),
        nn.ConvTranspose2d(3, 1, 2, stride=2),
    )  # fmt: skip


def test_images_of_a_convolutional_model() -> None:
    """x and the decoder's logits as (B, 1, 4, 6), by importance sampling and by both of AIS."""
    model = Pair(_convolutions(), 24, images=True)
    x = _binary(N, 24).view(N, 1, 4, 6)
    found = estimate_log_likelihood(model, x, K, seed=SEED)
    expected = _expected(model, x, _bernoulli(model.decoder))
    torch.testing.assert_close(found.log_likelihood, expected, rtol=1e-5, atol=1e-5)
    assert found.data_size == 24
    annealed = annealed_importance_sampling(model, x, **{**SHORT, "chains": 50})
    assert abs(annealed.mean - expected.mean()) < 1
    both = bidirectional_monte_carlo(model, 3, latent_size=Z, **SHORT)
    assert both.x.shape == (3, 1, 4, 6)
    assert both.forward.data_size == 24


def test_a_decoder_of_samples_says_so() -> None:
    model, x = Pair(nn.Linear(Z, D)), _binary()
    plain = estimate_log_likelihood(model, x, K, seed=SEED)
    model.takes_samples = True  # type: ignore[assignment]
    model.seen.clear()
    same = estimate_log_likelihood(model, x, K, seed=SEED)
    assert {len(shape) for shape in model.seen} == {3}
    torch.testing.assert_close(plain.log_likelihood, same.log_likelihood, rtol=1e-6, atol=1e-6)

    def decode(z: Tensor) -> Tensor:
        assert z.dim() == 3
        return model.decoder(z)  # type: ignore[no-any-return]

    decode.takes_samples = True  # type: ignore[attr-defined]
    same = estimate_log_likelihood((model.encode, decode), x, K, seed=SEED)
    torch.testing.assert_close(plain.log_likelihood, same.log_likelihood, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "decode",
    [
        lambda z: torch.zeros(len(z), D + 1) + z[:, :1],
        lambda z: torch.zeros(len(z) + 1, D) + z[:1, :1],
        lambda z: torch.zeros(D) + z[0, 0],
        lambda z: (z[:, :1] * torch.ones(D)).T,
        lambda z: z[:, :1],
    ],
)
def test_a_decoder_of_another_shape(decode: Any) -> None:
    encode = lambda x: (x[:, :Z], x[:, :Z] - 1)
    message = r"decode must return logits of shape \(\d+,\) and then D = 12 elements, for z of"
    with pytest.raises(ValueError, match=message):
        estimate_log_likelihood((encode, decode), _binary(), K)
    with pytest.raises(ValueError, match=message):
        annealed_importance_sampling((encode, decode), _binary(), **SHORT)


@pytest.mark.parametrize(
    "scale",
    [
        lambda z: 0.7,
        lambda z: np.float32(0.7),
        lambda z: torch.tensor(0.7),
        lambda z: torch.full((1,), 0.7),
        lambda z: torch.full((D,), 0.7),
        lambda z: torch.full((1, D), 0.7),
        lambda z: torch.full((3, 4), 0.7),
        lambda z: torch.full((len(z), 1), 0.7),
        lambda z: torch.full((len(z), 3, 4), 0.7),
    ],
)
def test_scales_of_any_shape(scale: Any) -> None:
    """D examples in bidirectional sampling, so that rows could be taken for dimensions."""
    weight = torch.randn(Z, D)
    model = Pair(nn.Identity())
    model.decode = lambda z: (z @ weight, scale(z))  # type: ignore[method-assign]
    x = torch.randn(N, D)
    found = estimate_log_likelihood(model, x, K, likelihood="gaussian", seed=SEED)
    expected = _expected(model, x, lambda z: torch.distributions.Normal(z @ weight, 0.7))
    torch.testing.assert_close(found.log_likelihood, expected, rtol=1e-5, atol=1e-5)
    both = bidirectional_monte_carlo(model, D, latent_size=Z, likelihood="gaussian", **SHORT)
    same = bidirectional_monte_carlo(
        (model.encode, lambda z: (z @ weight, torch.full((len(z), D), 0.7))), D, latent_size=Z,
        likelihood="gaussian", **SHORT,
    )  # fmt: skip
    torch.testing.assert_close(both.x, same.x)
    torch.testing.assert_close(both.lower, same.lower, rtol=1e-5, atol=1e-3)


# --- the likelihood ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["importance", "ais"])
def test_the_support_is_checked_whatever_the_method(method: str) -> None:
    model = make_model("vae", D, Z, (4,))
    x = 2 * _binary() - 1
    call: Any = annealed_importance_sampling if method == "ais" else estimate_log_likelihood
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], the support of the bernoulli"):
        call(model, x)
    counts = make_model("vae", D, Z, (4,), likelihood="negative_binomial")
    with pytest.raises(ValueError, match=r"x must (lie in|hold)"):
        annealed_importance_sampling(counts, x + 0.5, **SHORT)


@pytest.mark.parametrize(
    "likelihood", [torch.distributions.Normal, torch.distributions.Bernoulli, 3, nn.BCELoss()]
)
def test_a_likelihood_that_is_none_is_refused(likelihood: Any) -> None:
    model = Pair(nn.Linear(Z, D))
    object.__setattr__(model, "likelihood", likelihood)
    for call in (
        lambda: estimate_log_likelihood(model, _binary(), K),
        lambda: annealed_importance_sampling(model, _binary(), **SHORT),
        lambda: bidirectional_monte_carlo(model, 2, latent_size=Z, **SHORT),
    ):
        with pytest.raises(TypeError, match=r"model\.likelihood must be a string or a Likelihood"):
            call()


# --- dtypes -----------------------------------------------------------------------------------


def test_x_is_not_rounded_to_the_models_dtype() -> None:
    """Grey levels k/255, which bfloat16 has not: a bin of 1/255 would be missed."""
    torch.manual_seed(1)
    model = make_model("vae", D, Z, (6,), likelihood="discretised_logistic").bfloat16()
    g = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (N, D), generator=g).float() / 255
    found = estimate_log_likelihood(model, x, K, seed=SEED)
    with torch.no_grad():
        z, ratio = dvae_fast.sample_latent(*model.encode(x.bfloat16()), K, SEED)
        mean, scale = (t.float() for t in model.decode(z))
        log_w = dvae_fast.log_weights(
            (mean, scale), x, ratio.float(), likelihood="discretised_logistic"
        )
    expected = torch.logsumexp(log_w.double(), 1) - math.log(K)
    torch.testing.assert_close(found.log_likelihood, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("first", ["counter", "double"])
def test_a_parameter_of_another_dtype_says_nothing(first: str) -> None:
    plain = Pair(nn.Sequential(nn.Linear(Z, 5), nn.Tanh(), nn.Linear(5, D)))
    x = _binary()
    expected = estimate_log_likelihood(plain, x, K, seed=SEED)
    odd = Pair(plain.decoder)
    modules = dict(plain._modules)
    odd._modules.clear()
    value = torch.tensor([3]) if first == "counter" else torch.tensor([2.0], dtype=torch.float64)
    odd.first = nn.Parameter(value, requires_grad=False)
    odd._modules.update(modules)
    found = estimate_log_likelihood(odd, x, K, seed=SEED)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    annealed_importance_sampling(odd, x, **SHORT)
    assert bidirectional_monte_carlo(odd, 3, latent_size=Z, **SHORT).x.dtype == torch.float32


def test_callables_in_float64_without_parameters() -> None:
    """Bidirectional sampling does not know their dtype: the answer is the linear-Gaussian one.

    5 standard errors of a mean of 40: a false alarm in 30,000 by Student's t."""
    model = linear_gaussian("iwae", orthogonal=True, widen=1.5)
    decoder, encoder = model.decoder, model.encoder
    weight, bias = (t.detach().numpy() for t in decoder.parameters())

    class Hidden:
        """What holds the tensors out of sight."""

        __slots__ = ("call",)

        def __init__(self, call: Any) -> None:
            self.call = call

        def __call__(self, t: Tensor) -> Any:
            return self.call(t)

    def decode(z: Tensor) -> Any:
        return z @ torch.from_numpy(weight).T + torch.from_numpy(bias), 0.7

    both = bidirectional_monte_carlo(
        (Hidden(lambda x: encoder(x)), Hidden(decode)), 40, latent_size=2, likelihood="gaussian",
        **{**SHORT, "chains": 20},
    )  # fmt: skip
    assert both.x.dtype == torch.float64
    error = both.lower - exact_log_likelihood(model, both.x)
    assert abs(float(error.mean())) < 5 * both.forward.mean_standard_error + 0.01


# --- modes and wrappers -----------------------------------------------------------------------


class Wrapped(nn.Module):
    """As DistributedDataParallel wraps: the model is `module`, without its methods."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(
    ("how", "own"),
    [("wrapper", True), ("wrapper", False), ("data parallel", True), ("compiled", True)],
)
def test_wrappers(how: str, own: bool) -> None:
    model: Any = make_model("vae", D, Z, (4,)) if own else Pair(nn.Linear(Z, D))
    x = _binary()
    expected = estimate_log_likelihood(model, x, K, seed=SEED)
    wrapped: Any = {
        "wrapper": lambda: Wrapped(Wrapped(model)),
        "data parallel": lambda: nn.DataParallel(model),
        "compiled": lambda: torch.compile(model),
    }[how]()
    found = estimate_log_likelihood(wrapped, x, K, seed=SEED)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    if own:
        assert len(bidirectional_monte_carlo(wrapped, 2, **SHORT).x) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
@pytest.mark.parametrize("how", ["frozen", "scripted", "exported"])
def test_exported_and_frozen_modules(how: str) -> None:
    decoder = nn.Sequential(nn.Linear(Z, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, D))
    model, x = Pair(decoder), _binary()
    expected = estimate_log_likelihood(model, x, K, seed=SEED).log_likelihood
    decoder.eval()
    rows = torch.export.Dim("rows")
    changed: Any
    if how == "exported":
        program = torch.export.export(decoder, (torch.zeros(3, Z),), dynamic_shapes=({0: rows},))
        changed = program.module()
    else:
        changed = torch.jit.script(decoder)
        changed = torch.jit.freeze(changed) if how == "frozen" else changed
    for given in (Pair(changed), (model.encode, changed)):
        if isinstance(given, Pair):
            given.encoder = model.encoder
        found = estimate_log_likelihood(given, x, K, seed=SEED)
        torch.testing.assert_close(found.log_likelihood, expected)
        annealed_importance_sampling(given, x, **SHORT)
        assert found.remarks == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_exported_in_training_mode_is_named() -> None:
    decoder = nn.Sequential(nn.Linear(Z, 5), nn.Dropout(0.5), nn.Linear(5, D)).train()
    rows = torch.export.Dim("rows")
    program = torch.export.export(decoder, (torch.zeros(3, Z),), dynamic_shapes=({0: rows},))
    estimate = estimate_log_likelihood(Pair(program.module()), _binary(), K, seed=SEED)
    assert any("was exported in training mode" in text for text in estimate.warnings())


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        torch.manual_seed(3)
        frozen = make_model("vae", D, Z, (4,))
    torch.manual_seed(3)
    model = make_model("vae", D, Z, (4,))
    x = _binary()
    expected = annealed_importance_sampling(model, x, **SHORT)
    held = dict(frozen.named_parameters())
    found = annealed_importance_sampling(frozen, x, **SHORT)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    assert all(p is held[name] for name, p in frozen.named_parameters())
    with torch.inference_mode():
        both = bidirectional_monte_carlo(frozen, 3, **SHORT)
    torch.testing.assert_close(both.lower, bidirectional_monte_carlo(model, 3, **SHORT).lower)


def test_numbers_of_numpy() -> None:
    model, x = make_model("vae", D, Z, (4,)), _binary()
    i, f = np.int64, np.float32
    expected = estimate_log_likelihood(
        model, x, K, tolerance=0.5, max_k=50, curve=(1, 5), batch_size=3, chunk=4, seed=SEED,
        first_example=2,
    )  # fmt: skip
    found = estimate_log_likelihood(
        model, x, i(K), tolerance=f(0.5), max_k=np.int32(50), curve=np.array([1, 5]),
        batch_size=i(3), chunk=np.uint8(4), seed=i(SEED), first_example=i(2),
    )  # fmt: skip
    assert torch.equal(found.log_likelihood, expected.log_likelihood)
    assert type(found.k) is int
    given = {name: i(value) for name, value in SHORT.items()}
    one = annealed_importance_sampling(model, x, **given, batch_size=i(3), step_size=f(0.5))
    other = annealed_importance_sampling(model, x, **SHORT, batch_size=3, step_size=0.5)
    torch.testing.assert_close(one.log_likelihood, other.log_likelihood)
    assert bidirectional_monte_carlo(model, i(2), latent_size=i(Z), **given).x.shape == (2, D)
    scaled = estimate_log_likelihood(
        Pair(nn.Linear(Z, D)), x, K, likelihood="gaussian", scale=f(0.5), seed=SEED
    )
    assert bool(scaled.log_likelihood.isfinite().all())


def test_nothing_is_made_on_the_default_device() -> None:
    model, x = make_model("vae", D, Z, (4,)), _binary()
    expected = (
        annealed_importance_sampling(model, x, **SHORT),
        bidirectional_monte_carlo(model, 3, **SHORT),
    )
    torch.set_default_device("meta")
    try:
        ais, both = (
            annealed_importance_sampling(model, x, **SHORT),
            bidirectional_monte_carlo(model, 3, **SHORT),
        )
        estimate = estimate_log_likelihood(model, x, K, tolerance=0.1, max_k=40, seed=SEED)
        estimate.summary()
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(ais.log_likelihood, expected[0].log_likelihood)
    torch.testing.assert_close(both.upper, expected[1].upper)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["meta", "sparse", "nested"])
def test_tensors_that_are_not_plain(kind: str) -> None:
    x = {
        "meta": lambda: torch.ones(N, D, device="meta"),
        "sparse": lambda: torch.ones(N, D).to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
    }[kind]()
    with pytest.raises((TypeError, ValueError), match=r"x must (be a dense tensor|hold values)"):
        estimate_log_likelihood(make_model("vae", D, Z, (4,)), x, K)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A real group, of this process alone."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
def test_data_parallel_models(group: None) -> None:
    """Ours and anybody's: evaluated as what is inside, and trained by what the wrapper calls."""
    x = _binary()
    options: dict[str, Any] = {"corruption": Masking(0.2), "copies": 2}
    for model in (make_model("dvae", D, Z, (4,), **options), Pair(nn.Linear(Z, D))):
        wrapped = DistributedDataParallel(model)
        found, expected = (
            estimate_log_likelihood(m, x, K, seed=SEED).log_likelihood for m in (wrapped, model)
        )
        assert torch.equal(found, expected)
        annealed = annealed_importance_sampling(wrapped, x, **SHORT)
        again = annealed_importance_sampling(model, x, **SHORT)
        assert torch.equal(annealed.log_likelihood, again.log_likelihood)
    ours = make_model("dvae", D, Z, (4,), **options)
    DistributedDataParallel(ours)(x, SEED).backward()
    found_grads = [p.grad for p in ours.parameters()]
    expected_grads = torch.autograd.grad(ours.loss(x, SEED), list(ours.parameters()))
    for one, other in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other)
    # A decoder alone, and the loss outside of it.
    decoder = DistributedDataParallel(nn.Linear(Z, D))
    z, ratio = dvae_fast.sample_latent(torch.zeros(N, Z), torch.zeros(N, Z), K, SEED)
    dvae_fast.iwae_loss(decoder(z), x, ratio).backward()
    plain = [p.grad for p in decoder.parameters()]
    for p in decoder.parameters():
        p.grad = None
    dvae_fast.iwae_loss(decoder.module(z), x, ratio).backward()
    for one, p in zip(plain, decoder.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad)


def test_a_model_without_values() -> None:
    model = make_model("vae", D, Z, (4,)).to("meta")
    for call in (
        lambda: estimate_log_likelihood(model, _binary(), K),
        lambda: annealed_importance_sampling(model, _binary(), **SHORT),
        lambda: bidirectional_monte_carlo(model, 3, **SHORT),
    ):
        with pytest.raises(ValueError, match="model must hold values to be evaluated, got param"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_functions_of_any_dtype_make_data_in_it(dtype: torch.dtype) -> None:
    weight = torch.ones(5, Z, dtype=dtype)
    pair = (lambda x: (x @ weight, 0 * (x @ weight)), lambda z: z @ weight.mT)
    assert bidirectional_monte_carlo(pair, 3, latent_size=Z, **SHORT).x.dtype == dtype


def test_probabilities_for_logits_are_told_by_the_estimate() -> None:
    decoder = nn.Sequential(nn.Linear(Z, 30), nn.ReLU(), nn.Linear(30, D), nn.Sigmoid())
    model, x = Pair(decoder), _binary()
    told = estimate_log_likelihood(model, x, K, seed=SEED)
    assert any("probabilities=True" in text for text in told.warnings())
    assert any("probabilities=True" in text for text in told.summary()["warnings"])
    annealed = annealed_importance_sampling(model, x, **SHORT)
    assert any("probabilities=True" in text for text in annealed.warnings())
    right = estimate_log_likelihood(
        model, x, K, likelihood=Bernoulli(probabilities=True), seed=SEED
    )
    assert not any("probabilities" in text for text in right.warnings())
    logits = Pair(decoder[:-1])
    logits.encoder = model.encoder
    fine = estimate_log_likelihood(logits, x, K, seed=SEED)
    assert fine.remarks == ()
    torch.testing.assert_close(right.log_likelihood, fine.log_likelihood, rtol=1e-4, atol=1e-4)


def test_grey_pixels_of_a_bernoulli_are_told_by_the_estimate() -> None:
    model, x = make_model("vae", D, Z, (4,)), _binary()
    assert estimate_log_likelihood(model, x, K, seed=SEED).remarks == ()
    x[2, 3] = 0.25
    for estimate in (
        estimate_log_likelihood(model, x, K, seed=SEED),
        annealed_importance_sampling(model, x, **SHORT),
    ):
        assert any("1 of the 84 values of x lie between 0 and 1" in w for w in estimate.warnings())
    gaussian = make_model("vae", D, Z, (4,), likelihood="gaussian")
    assert estimate_log_likelihood(gaussian, x, K, seed=SEED).remarks == ()


def test_the_decoder_of_the_oracle_by_rows() -> None:
    """5 standard errors of the mean, a false alarm in 2 million."""
    model = linear_gaussian("iwae", widen=1.5)
    assert isinstance(model.decoder, LinearDecoder)
    x = draw_data(model, 200)

    def decode(z: Tensor) -> Any:
        assert z.dim() == 2
        return model.decoder(z)

    estimate = estimate_log_likelihood(
        (model.encode, decode), x, 500, likelihood="gaussian", seed=SEED
    )
    exact = exact_log_likelihood(model, x)
    error = estimate.mean - estimate.mean_bias - float(exact.mean())
    assert abs(error) < 5 * estimate.mean_standard_error
