"""The noise: known answers, the pinned mapping, what it may depend on, and its statistics.

Statistical tests state their false-alarm rate: the chance that correct code fails them under an
arbitrary seed. The seeds here are fixed, so a pass is a pass for good.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import DEVICES
from scipy import stats
from torch import Tensor

import dvae_fast
from dvae_fast import corruptions
from dvae_fast.checking.operands import DTYPES
from dvae_fast.noise import philox, uniform_bits

op: Any = torch.ops.dvae_fast

SIZES = [1, 63, 64, 65, 785]
#: Chance of a false alarm of each comparison below.
ALARM = 1e-7
#: |N(0, 1)| exceeds this with probability ALARM.
SIGMAS = float(stats.norm.isf(ALARM / 2))

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# --- an independent statement of the mapping, in Python's integers ----------------------------


def philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF,
        ]  # fmt: skip
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def word(seed: int, stream: int, copy: int, example: int, sample: int, element: int) -> int:
    """The 32 random bits of one element."""
    counter = [(element // 64) * 16 + element % 16, sample, example, stream | copy << 8]
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    return philox4x32_10(counter, key)[(element % 64) // 16]


def normal(seed: int, stream: int, copy: int, example: int, sample: int, element: int) -> float:
    """Box–Muller on words (0, 1) or (2, 3): elements e and e + 16 share a pair."""
    index = (seed, stream, copy, example, sample)
    second = (element % 32) // 16
    w0, w1 = word(*index, element - 16 * second), word(*index, element + 16 * (1 - second))
    radius = math.sqrt(-2 * math.log((w0 + 0.5) / 2**32))
    angle = 2 * math.pi * w1 / 2**32
    return radius * (math.sin(angle) if second else math.cos(angle))


# --- known answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_python_philox_known_answers(counter: str, key: str, answer: str) -> None:
    assert philox4x32_10(_words(counter), _words(key)) == _words(answer)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_reference_philox_known_answers(counter: str, key: str, answer: str, device: str) -> None:
    low, high = _words(key)
    c0, c1, c2, c3 = (torch.tensor(w, device=device) for w in _words(counter))
    seed = torch.tensor(_signed(high << 32 | low), device=device)
    assert [int(w) for w in philox((c0, c1, c2, c3), seed)] == _words(answer)


# --- the mapping ------------------------------------------------------------------------------

SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("d", SIZES)
def test_mask_follows_the_mapping(d: int, seed: int, device: str) -> None:
    rate, copies, b, first_example = 0.37, 3, 2, 1000
    x = torch.full((b, d), 0.25, device=device)
    elements = range(d) if d < 100 else [0, 15, 16, 63, 64, 500, d - 1]
    out = op.corrupt(
        x,
        "masking",
        torch.tensor(rate, device=device),
        None,
        torch.tensor([seed], device=device),
        copies,
        first_example,
        7,
    ).cpu()
    threshold = round(float(np.float32(rate)) * 2**24)
    for m in range(copies):
        for i in range(b):
            for e in elements:
                bits = word(seed, 0, 0, first_example + i, 7 + m, e) >> 8
                expected = 0.0 if bits < threshold else 0.25
                assert float(out[m, i, e]) == expected, f"copy {m}, example {i}, element {e}"


@pytest.mark.parametrize("device", DEVICES)
def test_salt_and_bit_flip_follow_the_mapping(device: str) -> None:
    rate, salt, d, seed = 0.6, 0.3, 65, 17
    x = torch.full((2, d), 0.25, device=device)
    rates = torch.tensor(rate, device=device), torch.tensor(salt, device=device)
    key = torch.tensor([seed], device=device)
    noisy = op.corrupt(x, "salt_and_pepper", *rates, key, 1, 0, 0).cpu()
    flipped = op.corrupt(x, "bit_flip", rates[0], None, key, 1, 0, 0).cpu()
    hit = round(float(np.float32(rate)) * 2**24)
    one = round(float(np.float32(rate) * np.float32(salt)) * 2**24)
    for i in range(2):
        for e in range(d):
            bits = word(seed, 0, 0, i, 0, e) >> 8
            assert float(noisy[0, i, e]) == (1.0 if bits < one else 0.0 if bits < hit else 0.25)
            assert float(flipped[0, i, e]) == (0.75 if bits < hit else 0.25)


@pytest.mark.parametrize("device", DEVICES)
def test_large_indices_follow_the_mapping(device: str) -> None:
    """Given and samples fill their 32-bit words, copies the 24 bits beside the stream."""
    x, seed = torch.full((2, 65), 0.25, device=device), torch.tensor([6], device=device)
    rate = torch.tensor(0.5, device=device)
    for first_example, first_copy in ((2**31 - 1, 2**31 - 2), (2**32 - 2, 2**32 - 3)):
        out = op.corrupt(x, "masking", rate, None, seed, 3, first_example, first_copy).cpu()
        for m in range(3):
            for i in range(2):
                for e in (0, 31, 64):
                    bits = word(6, 0, 0, first_example + i, first_copy + m, e) >> 8
                    assert float(out[m, i, e]) == (0.0 if bits < 2**23 else 0.25)
    zero = torch.zeros(300, 1, 2, dtype=torch.float64, device=device)
    z, _ = op.sample_latent(zero, zero, 2, seed, 2**32 - 1, 2**32 - 2)
    for m in (0, 1, 255, 256, 299):
        for s in range(2):
            expected = normal(6, 1, m, 2**32 - 1, 2**32 - 2 + s, 1)
            assert float(z[m, 0, s, 1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, -1, 0x299F31D0A4093822])
@pytest.mark.parametrize("z", [1, 2, 50, 65])
def test_latent_normals_follow_the_mapping(
    z: int, seed: int, dtype: torch.dtype, device: str
) -> None:
    copies, b, k, first_example, first_sample = 3, 2, 4, 9, 100
    zero = torch.zeros(copies, b, z, dtype=dtype, device=device)
    out, _ = op.sample_latent(
        zero, zero, k, torch.tensor([seed], device=device), first_example, first_sample
    )
    got, expected = [], []
    for m in range(copies):
        for i in range(b):
            for s in range(k):
                for e in range(0, z, 7):
                    got.append(float(out[m, i, s, e]))
                    expected.append(normal(seed, 1, m, first_example + i, first_sample + s, e))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=6 * tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_corruption_follows_the_mapping(device: str) -> None:
    x = torch.zeros(2, 65, dtype=torch.float64, device=device)
    std = torch.tensor(1.0, dtype=torch.float64, device=device)
    out = op.corrupt(x, "gaussian", std, None, torch.tensor([5], device=device), 3, 4, 6)
    for m in range(3):
        for i in range(2):
            for e in (0, 15, 16, 31, 32, 48, 63, 64):
                expected = normal(5, 0, 0, 4 + i, 6 + m, e)
                assert float(out[m, i, e]) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_normals_at_the_ends_of_the_words(device: str) -> None:
    """The largest, smallest and most cancelling results Box–Muller has are found and compared.

    u near 1 (w near 2³²) makes tiny radii, u near 0 large ones; θ near multiples of π/2 makes a
    cosine or sine near 0. Errors are relative to the radius.
    """
    zero = torch.zeros(1, 100, 785, device=device)
    seed = torch.tensor([3], device=device)
    out, _ = op.sample_latent(zero, zero, 20, seed, 0, 0)
    exact, _ = op.sample_latent(zero.double(), zero.double(), 20, seed, 0, 0)
    # Elements e and e + 16 share their radius, sqrt(n_e² + n_{e + 16}²).
    pairs = exact[..., :768].unflatten(-1, (-1, 2, 16))
    radius = pairs.square().sum(-2, keepdim=True).sqrt().expand_as(pairs).flatten(-3)
    relative = (out[..., :768] - exact[..., :768]).abs() / radius
    error, at = float(relative.max()), float(radius.flatten()[int(relative.flatten().argmax())])
    smallest, largest = float(radius.min()), float(radius.max())
    assert smallest < 3e-3, "1.5 million normals should hold a tiny radius"
    assert largest > 5
    assert error <= 2e-6, f"error {error:.3g} of the radius, where that is {at:.3g}"


# --- what the numbers depend on, and on nothing else ------------------------------------------

CORRUPTIONS = [
    corruptions.Masking(0.3),
    corruptions.SaltAndPepper(0.4, 0.3),
    corruptions.BitFlip(0.3),
    corruptions.AdditiveGaussian(0.7),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=repr)
@pytest.mark.parametrize("d", SIZES)
def test_corruption_is_the_same_for_any_batches(
    d: int, corruption: corruptions.Corruption, device: str
) -> None:
    x = torch.rand(13, d, device=device)
    whole = dvae_fast.corrupt(x, corruption, copies=3, seed=8)
    for size in (1, 5):
        parts = [
            dvae_fast.corrupt(part, corruption, copies=3, seed=8, first_example=i * size)
            for i, part in enumerate(x.split(size))
        ]
        assert torch.equal(torch.cat(parts, 1), whole), f"batches of {size} differ"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=repr)
def test_copies_do_not_depend_on_how_many_there_are(
    corruption: corruptions.Corruption, device: str
) -> None:
    x = torch.rand(5, 65, device=device)
    seven = dvae_fast.corrupt(x, corruption, copies=7, seed=8)
    assert torch.equal(dvae_fast.corrupt(x, corruption, copies=2, seed=8), seven[:2])
    assert torch.equal(dvae_fast.corrupt(x, corruption, seed=8), seven[0])
    seed = torch.tensor([8], device=device)
    c = corruption.to(device)
    later = op.corrupt(x, c.kind, c.parameter, c.salt, seed, 4, 0, 3)
    assert torch.equal(later, seven[3:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("z", [1, 2, 50, 65])
def test_latents_are_the_same_for_any_batches_and_chunks(z: int, device: str) -> None:
    m, b, k = 3, 7, 11
    g = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(m, b, z, generator=g).to(device) for _ in range(2))
    whole_z, whole_r = dvae_fast.sample_latent(mean, log_var, k, seed=8)
    for size in (1, 3):
        parts = [
            dvae_fast.sample_latent(
                mean[:, i : i + size], log_var[:, i : i + size], k, seed=8, first_example=i
            )
            for i in range(0, b, size)
        ]
        assert torch.equal(torch.cat([p[0] for p in parts], 1), whole_z)
        assert torch.equal(torch.cat([p[1] for p in parts], 1), whole_r)
    for size in (1, 4):
        parts = [
            dvae_fast.sample_latent(mean, log_var, min(size, k - i), seed=8, first_sample=i)
            for i in range(0, k, size)
        ]
        assert torch.equal(torch.cat([p[0] for p in parts], 2), whole_z)
        assert torch.equal(torch.cat([p[1] for p in parts], 2), whole_r)
    # Corruption 0 of many has the numbers of one alone.
    alone, _ = dvae_fast.sample_latent(mean[0], log_var[0], k, seed=8)
    assert torch.equal(alone, whole_z[0])
    # A longer latent begins with the numbers of a shorter one.
    if z > 1:
        short, _ = dvae_fast.sample_latent(mean[..., :1], log_var[..., :1], k, seed=8)
        assert torch.equal(short[..., 0], whole_z[..., 0])


@pytest.mark.parametrize("device", DEVICES)
def test_mask_does_not_depend_on_dtype(device: str) -> None:
    for corruption in CORRUPTIONS[:3]:
        masks = []
        for dtype in DTYPES:
            x = torch.full((5, 785), 0.25, dtype=dtype, device=device)
            masks.append(dvae_fast.corrupt(x, corruption, copies=2, seed=1) != x)
        assert all(torch.equal(masks[0], mask) for mask in masks[1:])


@pytest.mark.parametrize("device", DEVICES)
def test_normals_of_all_dtypes_are_the_same_up_to_rounding(device: str) -> None:
    draws = []
    for dtype in DTYPES:
        zero = torch.zeros(5, 65, dtype=dtype, device=device)
        draws.append(dvae_fast.sample_latent(zero, zero, 7, seed=1)[0].double())
    for dtype, draw in zip(DTYPES, draws, strict=True):
        torch.testing.assert_close(draw, draws[1], rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_backward_sees_the_noise_of_forward(device: str) -> None:
    x = torch.full((5, 65), 0.25, device=device, requires_grad=True)
    out = dvae_fast.corrupt(x, corruptions.Masking(0.5), copies=7, seed=4, first_example=3)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, (out.detach() != 0).sum(0).float())


@pytest.mark.parametrize("device", DEVICES)
def test_every_index_changes_the_numbers(device: str) -> None:
    """No two draws that differ in one index share more words than chance allows.

    Of 785 words of 32 bits an unrelated pair shares one with probability 2e-7.
    """

    def draw(seed: int = 1, stream: int = 0, example: int = 2, sample: int = 3) -> Tensor:
        s, e, k, key = (torch.tensor(i, device=device) for i in (stream, example, sample, seed))
        return uniform_bits(s, e, k, 785, key)

    first = draw()
    others = {
        "seed": draw(seed=2),
        "high word of the seed": draw(seed=1 + (1 << 32)),
        "stream": draw(stream=1),
        "copy": draw(stream=256),
        "example": draw(example=3),
        "sample": draw(sample=4),
        "example and sample swapped": draw(example=3, sample=2),
    }
    for name, other in others.items():
        assert int((first == other).sum()) == 0, f"{name} does not change every element"
    assert first.unique().numel() == 785


@pytest.mark.parametrize("device", DEVICES)
def test_corruption_and_latents_of_one_seed_do_not_share_numbers(device: str) -> None:
    zero = torch.zeros(5, 65, device=device)
    corrupted = dvae_fast.corrupt(zero, corruptions.AdditiveGaussian(1.0), seed=1)
    z, _ = dvae_fast.sample_latent(zero, zero, 1, seed=1)
    assert float((corrupted - z[:, 0]).abs().min()) > 0


@pytest.mark.parametrize("device", DEVICES)
def test_manual_seed_governs(device: str) -> None:
    x = torch.rand(5, 65, device=device)

    def draw() -> tuple[Tensor, ...]:
        noisy = dvae_fast.corrupt(x, corruptions.AdditiveGaussian(1.0), copies=2)
        return (noisy, *dvae_fast.sample_latent(x, x, 7))

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    again = draw()
    torch.manual_seed(4)
    other = draw()
    for a, b, c, d in zip(first, again, second, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert not torch.equal(a, d)


@pytest.mark.parametrize("device", DEVICES)
def test_seed_as_int_and_tensor_is_the_same(device: str) -> None:
    x = torch.rand(5, 65, device=device)
    state = torch.get_rng_state()
    for seed in (0, -1, 2**63 - 1, -(2**63)):
        expected = dvae_fast.corrupt(x, corruptions.Masking(0.5), seed=seed)
        for shape in ((), (1,), (1, 1)):
            tensor = torch.full(shape, seed, dtype=torch.int64)
            for key in (tensor, tensor.to(device)):
                got = dvae_fast.corrupt(x, corruptions.Masking(0.5), seed=key)
                assert torch.equal(got, expected)
    assert torch.equal(state, torch.get_rng_state()), "a given seed must not touch the generator"


# --- statistics -------------------------------------------------------------------------------


def _binomial(name: str, hits: int, n: int, p: float) -> None:
    """False alarm: ALARM (two-sided exact test)."""
    probability = stats.binomtest(hits, n, p).pvalue
    found = f"{hits} of {n}, expected {p * n:.0f}, p = {probability:.2g}"
    assert probability > ALARM, f"{name}: {found}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rate", [0.001, 0.05, 0.25, 0.5, 0.9, 0.999])
def test_rates(rate: float, device: str) -> None:
    """Six comparisons of ALARM each."""
    x = torch.full((200, 785), 0.25, device=device)
    n = 10 * x.numel()

    def count(out: Tensor, value: float) -> int:
        return int((out == value).sum())

    masked = dvae_fast.corrupt(x, corruptions.Masking(rate), copies=10, seed=1)
    _binomial("masking", count(masked, 0), n, rate)
    flipped = dvae_fast.corrupt(x, corruptions.BitFlip(rate), copies=10, seed=2)
    _binomial("bit flip", count(flipped, 0.75), n, rate)
    noisy = dvae_fast.corrupt(x, corruptions.SaltAndPepper(rate, 0.2), copies=10, seed=3)
    _binomial("salt", count(noisy, 1), n, 0.2 * rate)
    _binomial("pepper", count(noisy, 0), n, 0.8 * rate)
    released = dvae_fast.corrupt(x, corruptions.SaltAndPepper.as_released(rate), copies=10, seed=4)
    _binomial("released, P(1) = p²", count(released, 1), n, rate**2)
    _binomial("released, P(0) = p(1 − p)", count(released, 0), n, rate * (1 - rate))


@pytest.mark.parametrize("device", DEVICES)
def test_rates_per_pixel(device: str) -> None:
    """65 comparisons of ALARM each: 6.5e-6 in all."""
    rate = torch.linspace(0.01, 0.99, 65, device=device)
    x = torch.full((5000, 65), 0.25, device=device)
    hits = (dvae_fast.corrupt(x, corruptions.Masking(rate), seed=5) == 0).sum(0)
    for e in range(65):
        _binomial(f"element {e}", int(hits[e]), 5000, float(rate[e]))


def _bits(n: int, size: int, device: str) -> np.ndarray[Any, Any]:
    example = torch.arange(n, device=device)
    zero = torch.zeros_like(example)
    return uniform_bits(zero, example, zero, size, torch.tensor(9, device=device)).cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
def test_uniform_bits_chi_squared(device: str) -> None:
    """Each byte of the words over its 256 values: four comparisons of ALARM each."""
    bits = _bits(400, 785, device)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits.ravel() >> shift) & 255, minlength=256)
        probability = stats.chisquare(counts).pvalue
        assert probability > ALARM, f"bits {shift} to {shift + 7}: p = {probability:.2g}"


@pytest.mark.parametrize("device", DEVICES)
def test_uniform_bits_pairs_chi_squared(device: str) -> None:
    """The top four bits of neighbours, lanes, blocks and examples: four of ALARM each."""
    top = _bits(400, 784, device) >> 28
    pairs = {
        "element and next": (top[:, :-1], top[:, 1:]),
        "word and next of a counter": (top[:, :-16], top[:, 16:]),
        "block and next": (top[:, :-64], top[:, 64:]),
        "example and next": (top[:-1], top[1:]),
    }
    for name, (a, b) in pairs.items():
        # Pairs overlap; the contingency statistic of a chain's transitions is chi-squared still.
        counts = np.bincount((16 * a + b).ravel(), minlength=256).reshape(16, 16)
        probability = stats.chi2_contingency(counts).pvalue
        assert probability > ALARM, f"{name}: p = {probability:.2g}"


def _latents(device: str) -> Tensor:
    """(copies 3, examples 40, samples 30, 65) normals, 234,000 in all."""
    zero = torch.zeros(3, 40, 65, device=device)
    return dvae_fast.sample_latent(zero, zero, 30, seed=7)[0].double().cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_normal_moments(device: str) -> None:
    """Mean, variance, third and fourth moment within SIGMAS standard errors: four of ALARM."""
    z = _latents(device).flatten()
    n = z.numel()
    # Var of z, z², z³, z⁴ under N(0, 1): 1, 2, 15, 96.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (float(z.pow(power).mean()) - expected) / math.sqrt(variance / n)
        assert abs(error) < SIGMAS, f"E z^{power} is {error:.1f} standard errors off"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", ["latents", "corruption"])
def test_normal_kolmogorov_smirnov(source: str, device: str) -> None:
    """One comparison of ALARM."""
    if source == "latents":
        z = _latents(device).flatten()
    else:
        x = torch.zeros(40, 785, device=device)
        noise = dvae_fast.corrupt(x, corruptions.AdditiveGaussian(1.0), copies=7, seed=3)
        z = noise.cpu().flatten()
    probability = stats.kstest(z.numpy(), "norm").pvalue
    assert probability > ALARM, f"p = {probability:.2g}"


@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_corruption_has_its_standard_deviation(device: str) -> None:
    """65 comparisons of ALARM each: 6.5e-6 in all."""
    std = torch.linspace(0.1, 3, 65, device=device)
    x = torch.full((5000, 65), 0.25, device=device)
    noise = dvae_fast.corrupt(x, corruptions.AdditiveGaussian(std), seed=3) - x
    # Σ (n/std)² over 5000 draws is chi-squared.
    total = (noise / std).double().square().sum(0).cpu().numpy()
    tails = np.minimum(stats.chi2.cdf(total, 5000), stats.chi2.sf(total, 5000))
    assert float(tails.min()) > ALARM / 2, f"element {int(tails.argmin())}: p = {tails.min():.2g}"


@pytest.mark.parametrize("device", DEVICES)
def test_normals_are_independent(device: str) -> None:
    """Correlations of z, and of z², along every index: ten comparisons of ALARM each.

    Box–Muller's two results share a radius, so squares would show a wrong pairing.
    """
    z = _latents(device)
    pairs = {
        "neighbours": (z[..., :-1], z[..., 1:]),
        "Box–Muller's pair": (z[..., :16], z[..., 16:32]),
        "samples": (z[:, :, :-1], z[:, :, 1:]),
        "examples": (z[:, :-1], z[:, 1:]),
        "copies": (z[:-1], z[1:]),
    }
    for name, (a, b) in pairs.items():
        for power, variance in ((1, 1), (2, 2)):
            u, v = a.pow(power).flatten(), b.pow(power).flatten()
            mean = 0 if power == 1 else 1
            correlation = float(((u - mean) * (v - mean)).mean()) / variance
            error = correlation * math.sqrt(u.numel())
            assert abs(error) < SIGMAS, f"{name}, power {power}: {error:.1f} standard errors"


@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_independent(device: str) -> None:
    """Agreement of masks between neighbours, copies and examples: five of ALARM each."""
    x = torch.ones(40, 785, device=device)
    mask = dvae_fast.corrupt(x, corruptions.Masking(0.3), copies=7, seed=2).cpu() == 0
    pairs = {
        "neighbours": (mask[..., :-1], mask[..., 1:]),
        "lanes": (mask[..., :-16], mask[..., 16:]),
        "blocks": (mask[..., :-64], mask[..., 64:]),
        "copies": (mask[:-1], mask[1:]),
        "examples": (mask[:, :-1], mask[:, 1:]),
    }
    for name, (a, b) in pairs.items():
        # (a − p)(b − p) has mean 0 and variance (p (1 − p))², and is uncorrelated between pairs.
        product = (a.double() - 0.3) * (b.double() - 0.3)
        error = float(product.mean()) / (0.3 * 0.7) * math.sqrt(product.numel())
        assert abs(error) < SIGMAS, f"{name}: {error:.1f} standard errors"


# --- the compiled core over NumPy arrays ------------------------------------------------------


def _core() -> Any:
    try:
        return importlib.import_module("dvae_fast._core")
    except ImportError as error:
        pytest.skip(f"dvae_fast._core is not built: {error}")
