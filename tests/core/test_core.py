"""The compiled core over NumPy arrays (`dvae_fast._core`): known answers, NumPy, the reference."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from dvae_fast import likelihoods, noise, reference
from dvae_fast.checking.likelihoods import LIKELIHOODS as ROWS
from dvae_fast.checking.likelihoods import elements

_core = pytest.importorskip(
    "dvae_fast._core",
    reason="dvae_fast._core is not built: DVAE_FAST_CORE=1 python setup.py build_ext --inplace",
    exc_type=ModuleNotFoundError,
)

Array = NDArray[Any]

# --- build information ------------------------------------------------------------------------


def test_build_information() -> None:
    assert set(_core.build) == {"compiler", "cxx_standard"}
    assert _core.build["compiler"] == _core.compiler
    assert _core.compiler.split()[0] in ("GCC", "Clang")
    assert _core.build["cxx_standard"] >= 17


def test_isas_begin_with_base_and_hold_the_one_in_use() -> None:
    isas = _core.isas()
    assert isas == ["base", "avx2", "avx512", "avx512bf16", "amx"][: len(isas)]
    assert _core.isa() in isas
    if "DVAE_FAST_ISA" not in os.environ:
        assert _core.isa() == isas[-1] or (isas[-1], _core.isa()) == ("avx512bf16", "avx512")


def _isa_with(level: str) -> subprocess.CompletedProcess[str]:
    # The file alone: the package would load torch.
    folder = str(Path(_core.__file__).parent)
    program = f"import sys; sys.path.insert(0, {folder!r}); import _core; print(_core.isa())"
    environment = {**os.environ, "DVAE_FAST_ISA": level}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("level", _core.isas())
def test_environment_chooses_the_isa(level: str) -> None:
    assert _isa_with(level).stdout.strip() == level


def test_unknown_isa_is_refused_and_the_known_ones_named() -> None:
    error = _isa_with("sse9").stderr
    assert "RuntimeError: DVAE_FAST_ISA must be one of" in error
    assert ", ".join(_core.isas()) in error
    assert "'sse9'" in error


def test_module_needs_no_torch() -> None:
    folder = str(Path(_core.__file__).parent)
    program = (
        f"import sys; sys.path.insert(0, {folder!r}); import _core; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
    assert Path(_core.__file__).name.endswith(str(sysconfig.get_config_var("EXT_SUFFIX")))


# --- noise ------------------------------------------------------------------------------------

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def _seed(key: tuple[int, int]) -> int:
    seed = key[1] << 32 | key[0]
    return seed - 2**64 if seed >= 2**63 else seed


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    words = _core.philox(np.array(counter, np.uint32), _seed(key))
    assert words.dtype == np.uint32
    assert words.tolist() == list(answer)


def test_philox_is_the_references_in_any_shape_and_layout() -> None:
    g = np.random.default_rng(1)
    counter = g.integers(0, 2**32, (5, 3, 4), dtype=np.uint32)
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822):
        words = _core.philox(counter, seed)
        c = [torch.from_numpy(counter[..., i].astype(np.int64)) for i in range(4)]
        expected = noise.philox((c[0], c[1], c[2], c[3]), torch.tensor(seed))
        assert np.array_equal(words, torch.stack(expected, -1).numpy())
        strided = np.repeat(counter, 2, axis=1)[:, ::2]
        assert not strided.flags.c_contiguous
        assert np.array_equal(_core.philox(strided, seed), words)
    assert _core.philox(counter[:0], 1).shape == (0, 3, 4)


# (stream, copy, example, sample): every index alone, and the largest there are.
INDICES = [
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (1, 5, 0, 0),
    (0, 0, 1000, 0),
    (0, 0, 0, 4999),
    (1, 2**24 - 1, 2**32 - 1, 2**32 - 1),
]


def _index(index: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream, copy, example, sample = index
    return torch.tensor(stream | copy << 8), torch.tensor(example), torch.tensor(sample)


@pytest.mark.parametrize("seed", [0, -1, 2**40 + 3, -(2**63)])
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("size", [0, 1, 15, 63, 64, 65, 785])
def test_words_are_the_references(size: int, index: tuple[int, ...], seed: int) -> None:
    words = _core.uniform_bits(*index, size, seed)
    assert words.dtype == np.uint32
    expected = noise.uniform_bits(*_index(index), size, torch.tensor(seed))
    assert np.array_equal(words, expected.numpy())


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 785])
def test_normals_are_the_references(size: int, index: tuple[int, ...]) -> None:
    expected = noise.standard_normal(*_index(index), size, torch.tensor(-3), torch.float64).numpy()
    single = _core.standard_normal(*index, size, -3)
    double = _core.standard_normal(*index, size, -3, np.float64)
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    assert single.shape == double.shape == (size,)
    np.testing.assert_allclose(double, expected, rtol=1e-13, atol=1e-14)
    # 4e-7 of the radius, which is at most √(2 · 33 ln 2).
    np.testing.assert_allclose(single, expected, rtol=4e-7, atol=4e-7 * math.sqrt(66 * math.log(2)))


def test_normals_are_normal() -> None:
    """One comparison of false-alarm rate 1e-7."""
    draws = _core.standard_normal(1, 0, 0, 0, 100_000, 11)
    assert stats.kstest(draws, "norm").pvalue > 1e-7


def test_pinned_words_and_normals() -> None:
    """The mapping's own known answers: a change of these changes every published number."""
    words = _core.uniform_bits(0, 0, 2, 3, 785, 1)
    assert words[[0, 1, 16, 63, 64, 784]].tolist() == PINNED_WORDS
    normals = _core.standard_normal(1, 2, 3, 4, 785, -5, "float64")
    np.testing.assert_allclose(normals[[0, 1, 16, 63, 64, 784]], PINNED_NORMALS, rtol=1e-14)


PINNED_WORDS = [0xEAACA1BE, 0x8237B9AE, 0x67AEFAD0, 0xDE4FB141, 0x68A97A92, 0xBED377C9]
PINNED_NORMALS = [
    -0.458054671803341,
    0.23142872603944997,
    0.4845128496128665,
    -1.0972298352678514,
    -0.24127851385709788,
    0.75147781511293609,
]


def test_thresholds() -> None:
    p = np.concatenate(
        [
            np.array([0, 1, 0.5, 2**-24, 2**-25, 3 * 2**-25, 5 * 2**-25, 1 - 2**-24], np.float32),
            np.random.default_rng(2).random(1000, dtype=np.float32),
        ]
    )
    thresholds = _core.threshold(p)
    assert thresholds.dtype == np.int32
    assert thresholds[:2].tolist() == [0, 2**24]
    assert np.array_equal(thresholds, np.rint(p.astype(np.float64) * 2**24))
    assert np.array_equal(thresholds, noise.threshold(torch.from_numpy(p)).numpy())
    ends = np.array([0, 2**32 - 1], np.uint32)
    assert _core.uniform24(ends).tolist() == [0, 2**24 - 1]
    # Exact at the ends: rate 0 hits not even the smallest, rate 1 even the largest.
    assert not (_core.uniform24(ends) < thresholds[0]).any()
    assert (_core.uniform24(ends) < thresholds[1]).all()


# --- functions of one element -----------------------------------------------------------------


def _floats(low: float, high: float) -> Array:
    """Floats over many magnitudes between the bounds, and evenly spaced ones."""
    g = np.random.default_rng(3)
    x = np.concatenate([g.uniform(low, high, 20_000), np.exp(g.uniform(-80, 80, 20_000))])
    x = np.concatenate([x, -x]).astype(np.float32)
    return np.asarray(x[(x >= low) & (x <= high)])


def _ulps(got: Array, exact: Array) -> Array:
    unit = np.spacing(np.maximum(np.abs(exact), 2.0**-126).astype(np.float32)).astype(np.float64)
    return np.asarray(np.abs(got - exact) / unit)


FUNCTIONS = [
    ("exp", np.exp, -103.0, 88.7, 2.0),
    ("exp_nonpositive", np.exp, -87.3, 0.0, 2.0),
    ("log", np.log, 1e-37, 3e38, 2.0),
    ("log1p", np.log1p, -0.999, 3e38, 2.0),
    ("softplus", lambda x: np.logaddexp(0, x), -87.3, 3e38, 2.0),
    ("sigmoid", special.expit, -87.3, 3e38, 3.0),
]


@pytest.mark.parametrize(("name", "exact", "low", "high", "limit"), FUNCTIONS)
def test_functions_agree_with_numpy(
    name: str, exact: Any, low: float, high: float, limit: float
) -> None:
    function = getattr(_core, name)
    x = _floats(low, high)
    assert x.size > 10_000
    y = function(x)
    assert y.dtype == np.float32
    worst = int(np.argmax(_ulps(y, exact(x.astype(np.float64)))))
    error = _ulps(y, exact(x.astype(np.float64)))[worst]
    assert error <= limit, f"{error:.2f} ulp at {x[worst]!r}"
    wide = x.astype(np.float64)
    np.testing.assert_allclose(function(wide), exact(wide), rtol=4e-15, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_at_special_values(dtype: Any) -> None:
    inf, nan = math.inf, math.nan
    cases: dict[str, list[tuple[float, float]]] = {
        "exp": [(0, 1), (inf, inf), (-inf, 0), (1000, inf), (-1000, 0)],
        "exp_nonpositive": [(0, 1), (-inf, 0), (-1000, 0)],
        "log": [(1, 0), (0, -inf), (-0.0, -inf), (inf, inf), (-1, nan), (-inf, nan)],
        "log1p": [(0, 0), (-1, -inf), (inf, inf), (-2, nan)],
        "softplus": [(inf, inf), (-inf, 0)],
        "sigmoid": [(0, 0.5), (inf, 1), (-inf, 0)],
    }
    for name, values in cases.items():
        x, expected = np.array([*values, (nan, nan)], dtype).T
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(getattr(_core, name)(np.ascontiguousarray(x)), expected)


@pytest.mark.parametrize("name", ["exp", "log1p", "sigmoid"])
def test_functions_keep_shapes_and_inputs(name: str) -> None:
    function = getattr(_core, name)
    x = np.linspace(-0.5, 2, 3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6)
    view = x.transpose(2, 0, 1)[::2]
    before = x.copy()
    assert np.array_equal(function(view), function(np.ascontiguousarray(view)))
    assert function(view).shape == (3, 3, 4)
    assert function(np.array(0.5, np.float32)).shape == ()
    assert function(x[:0]).shape == (0, 4, 6)
    assert np.array_equal(x, before)


def test_sincos_turn() -> None:
    g = np.random.default_rng(4)
    v = np.concatenate([g.integers(0, 2**32, 20_000), np.arange(8) << 29, [1, 2**32 - 1]])
    v = v.astype(np.uint32)
    # Folded to a quarter turn in integers: NumPy's argument must not be rounded near a zero.
    signed = v.astype(np.int32).astype(np.int64)
    quarter = np.where(signed > 2**30, 2**31 - signed, signed)
    quarter = np.where(signed < -(2**30), -(2**31) - signed, quarter)
    sine = np.sin(quarter * (np.pi / 2**31))
    cosine = np.where(np.abs(signed) > 2**30, -1, 1) * np.cos(quarter * (np.pi / 2**31))
    s, c = _core.sincos_turn(v)
    assert s.dtype == c.dtype == np.float32
    assert _ulps(s, sine).max() <= 3
    # cos of a quarter turn: NumPy's 6e-17 is 0.
    assert np.abs(c - cosine).max() <= 2e-7
    assert c[v == 1 << 30] == 0
    s, c = _core.sincos_turn(v, "float64")
    np.testing.assert_allclose(s, sine, rtol=0, atol=1e-15)
    np.testing.assert_allclose(c, cosine, rtol=0, atol=1e-15)


def test_log_uniform() -> None:
    g = np.random.default_rng(5)
    w = np.concatenate([g.integers(0, 2**32, 20_000), np.arange(300), 2**32 - 1 - np.arange(300)])
    exact = np.where(w < 2**31, np.log((w + 0.5) / 2**32), np.log1p(-(2.0**32 - 0.5 - w) / 2**32))
    got = _core.log_uniform(w.astype(np.uint32))
    assert (got < 0).all()
    assert _ulps(got, exact).max() <= 3.5


# --- 16-bit floats ----------------------------------------------------------------------------

ALL = np.arange(65536, dtype=np.uint16)


def test_half_is_numpys() -> None:
    values = _core.half_to_float(ALL)
    assert np.array_equal(values, ALL.view(np.float16).astype(np.float32), equal_nan=True)
    number = ~np.isnan(values)
    assert np.array_equal(_core.float_to_half(values)[number], ALL[number])
    assert np.isnan(_core.half_to_float(_core.float_to_half(values))[~number]).all()


def test_bfloat16_is_torchs() -> None:
    values = _core.bfloat16_to_float(ALL)
    assert np.array_equal(values.view(np.uint32), ALL.astype(np.uint32) << 16)
    number = ~np.isnan(values)
    assert np.array_equal(_core.float_to_bfloat16(values)[number], ALL[number])
    assert np.isnan(_core.bfloat16_to_float(_core.float_to_bfloat16(values))[~number]).all()


def test_rounding_is_numpys_and_torchs() -> None:
    bits = np.random.default_rng(6).integers(0, 2**32, 200_000, dtype=np.uint32)
    # Every tie between neighbouring values, and the floats beside it.
    half = (ALL[:0x7BFF].view(np.float16).astype(np.float64) + ALL[1:0x7C00].view(np.float16)) / 2
    ties = np.concatenate(
        [half.astype(np.float32).view(np.uint32), ALL.astype(np.uint32) << 16 | 0x8000]
    )
    x = np.concatenate([bits, ties - 1, ties, ties + 1]).view(np.float32)
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        assert np.array_equal(_core.float_to_half(x), x.astype(np.float16).view(np.uint16))
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(_core.float_to_bfloat16(x), expected)


# --- likelihoods ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", likelihoods.FUSED)
def test_densities_and_derivatives(kind: str, dtype: Any) -> None:
    """Against the class: its derivatives are tested in tests/likelihoods, its densities against
    scipy below and in test_discrete_likelihoods.py."""
    arrays = [a.numpy().astype(dtype) for a in elements(kind, 455, 7)]
    got = getattr(_core, kind)(*arrays)
    *params, x = (torch.from_numpy(a).double() for a in arrays)
    scale = params[1] if len(params) == 2 else None
    expected = (
        likelihoods.LIKELIHOODS[kind].log_prob(tuple(params), x),
        *likelihoods.LIKELIHOODS[kind].derivatives(tuple(params), x),
    )
    terms = ROWS[kind].terms(params[0], scale, x)[: len(expected)]
    for a, e, t in zip(got, expected, terms, strict=True):
        assert a.dtype == dtype
        error = np.abs(a - e.numpy()) / (np.finfo(dtype).eps * t.numpy())
        assert error.max() <= ROWS[kind].roundings


def test_gaussian_density_is_scipys() -> None:
    mean, scale, x = (t.numpy() for t in elements("gaussian", 455, 8))
    density, _, _ = _core.gaussian(mean, scale, x)
    terms, _, _ = ROWS["gaussian"].terms(*map(torch.from_numpy, (mean, scale, x)))
    error = np.abs(density - stats.norm.logpdf(x, mean, scale))
    assert (error <= ROWS["gaussian"].roundings * np.finfo(np.float64).eps * terms.numpy()).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_limits(dtype: Any) -> None:
    inf, nan = math.inf, math.nan
    rows = [  # logit, x, log p, derivative
        (inf, 1, 0, 0),
        (-inf, 0, 0, 0),
        (inf, 0, -inf, -1),
        (-inf, 1, -inf, 1),
        (inf, 0.25, -inf, -0.75),
        (nan, 0, nan, nan),
        (nan, 1, nan, nan),
        (1, nan, nan, nan),
    ]
    logits, x, density, derivative = (np.array(c, dtype) for c in zip(*rows, strict=True))
    got = _core.bernoulli(logits, x)
    np.testing.assert_array_equal(got[0], density)
    np.testing.assert_array_equal(got[1], derivative)


def test_gaussian_limits() -> None:
    nan = math.nan
    mean, scale, x = np.array(
        [[math.inf, -math.inf, nan, 0, 0], [1, 1, 1, nan, 1], [0, 0, 0, 0, nan]]
    )
    density, _, _ = _core.gaussian(mean, scale, x)
    np.testing.assert_array_equal(density, [-math.inf, -math.inf, nan, nan, nan])


# --- logsumexp --------------------------------------------------------------------------------


def _empty(rows: int) -> Array:
    return np.asarray(reference.lse_init(rows).numpy())


def _states(log_w: Array) -> Array:
    m = log_w.max(-1, keepdims=True)
    e = np.exp(log_w - m)
    count = np.full(m.shape, log_w.shape[-1])
    parts = (m, e.sum(-1, keepdims=True), (e * e).sum(-1, keepdims=True))
    return np.concatenate([*parts, log_w.sum(-1, keepdims=True), count], -1)


def test_logsumexp_push_is_the_sum() -> None:
    log_w = np.random.default_rng(9).uniform(-200, -80, (7, 65))
    pushed = _core.logsumexp_push(_empty(7), log_w)
    np.testing.assert_allclose(pushed, _states(log_w), rtol=1e-13)
    bound = pushed[:, 0] + np.log(pushed[:, 1] / pushed[:, 4])
    np.testing.assert_allclose(bound, special.logsumexp(log_w, -1) - math.log(65), rtol=1e-15)
    assert np.array_equal(_core.logsumexp_push(pushed, log_w[:, :0]), pushed)
    # A state of one row, and rows of many dimensions.
    assert np.array_equal(_core.logsumexp_push(_empty(1)[0], log_w[0]), pushed[0])
    deep = _core.logsumexp_push(_empty(6).reshape(2, 3, 5), log_w[:6].reshape(2, 3, 65))
    assert np.array_equal(deep.reshape(6, 5), pushed[:6])


def test_logsumexp_merge_is_the_references() -> None:
    log_w = np.random.default_rng(10).uniform(-200, -80, (7, 65))
    for cut in (0, 1, 33, 64, 65):
        a = _core.logsumexp_push(_empty(7), log_w[:, :cut])
        b = _core.logsumexp_push(_empty(7), log_w[:, cut:])
        for merged in (_core.logsumexp_merge(a, b), _core.logsumexp_merge(b, a)):
            np.testing.assert_allclose(merged, _states(log_w), rtol=1e-13)
        expected = reference.lse_merge(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        np.testing.assert_allclose(_core.logsumexp_merge(a, b), expected, rtol=1e-15)


def test_logsumexp_of_zero_weights_and_nan() -> None:
    inf, nan = math.inf, math.nan
    log_w = np.array([[-inf, -inf], [-inf, -3], [-3, -inf], [nan, -3], [-3, nan], [-inf, nan]])
    state = _core.logsumexp_push(_empty(6), log_w)
    with np.errstate(divide="ignore"):
        bound = state[:, 0] + np.log(state[:, 1] / state[:, 4])
    half = -3 - math.log(2)
    np.testing.assert_allclose(bound, [-inf, half, half, nan, nan, nan], rtol=1e-15)
    # NaN stays with its own row, whatever is merged later.
    later = _core.logsumexp_merge(state, _core.logsumexp_push(_empty(6), np.full((6, 2), -1.0)))
    assert np.isnan(later[:, 1]).tolist() == [False, False, False, True, True, True]
    assert (later[:, 4] == 4).all()


# --- errors -----------------------------------------------------------------------------------

F32, F64, U32 = np.zeros(3, np.float32), np.zeros(3), np.zeros(4, np.uint32)
BITS = (0, 0, 0, 0, 3, 0)


def _bits(position: int, value: Any) -> tuple[Any, ...]:
    return (*BITS[:position], value, *BITS[position + 1 :])


ERRORS: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("philox", (U32[:3], 0), ValueError,
     r"counter must have a last dimension of 4, got shape \(3,\)"),
    ("philox", (np.array(0, np.uint32), 0), ValueError, r"counter must .* got shape \(\)"),
    ("philox", (U32.astype(np.int32), 0), TypeError,
     "counter must be of dtype uint32, got int32"),
    ("philox", (U32.astype(">u4"), 0), TypeError, "counter must be of dtype uint32, got >u4"),
    ("philox", ([0, 0, 0, 0], 0), TypeError,
     "counter must be a NumPy array of uint32, got an instance of list"),
    ("philox", (U32[0], 0), TypeError,
     "counter must be a NumPy array of uint32, got an instance of uint32"),
    ("philox", (U32, 2**63), ValueError,
     r"seed must be in \[-92.*, 92.*\], got 9223372036854775808"),
    ("philox", (U32, -(2**63) - 1), ValueError, "seed must be in .* got -9223372036854775809"),
    ("philox", (U32, 0.5), TypeError, "seed must be an integer, got 0.5"),
    ("uniform_bits", _bits(0, 256), ValueError, r"stream must be in \[0, 255\], got 256"),
    ("uniform_bits", _bits(1, 1 << 24), ValueError,
     r"copy must be in \[0, 16777215\], got 16777216"),
    ("uniform_bits", _bits(2, -1), ValueError, r"example must be in \[0, 4294967295\], got -1"),
    ("uniform_bits", _bits(3, 1 << 32), ValueError,
     r"sample must be in \[0, 4294967295\], got 4294967296"),
    ("uniform_bits", _bits(4, -3), ValueError, "size must be in .*, got -3"),
    ("uniform_bits", _bits(4, "3"), TypeError, "size must be an integer, got '3'"),
    ("standard_normal", (*BITS, "int32"), TypeError,
     "dtype must be float32 or float64, got 'int32'"),
    ("standard_normal", (*BITS, "real"), TypeError, "dtype must be float32 or float64, got 'real'"),
    ("threshold", (F32 + np.float32(1.5),), ValueError, r"p must be in \[0, 1\], got 1.5"),
    ("threshold", (F32 * np.nan,), ValueError, r"p must be in \[0, 1\], got nan"),
    ("threshold", (F64,), TypeError, "p must be of dtype float32, got float64"),
    ("uniform24", (F32,), TypeError, "words must be of dtype uint32, got float32"),
    ("exp", (F32.astype(np.float16),), TypeError,
     "x must be a NumPy array of float32 or float64, got float16"),
    ("log", (1.0,), TypeError,
     "x must be a NumPy array of float32 or float64, got an instance of float"),
    ("sincos_turn", (U32, np.int8), TypeError, "dtype must be float32 or float64, got"),
    ("half_to_float", (U32,), TypeError, "bits must be of dtype uint16, got uint32"),
    ("float_to_half", (F64,), TypeError, "x must be of dtype float32, got float64"),
    ("bernoulli", (F32, F64), TypeError, "x must be of dtype float32, got float64"),
    ("bernoulli", (F32, F32[:2]), ValueError,
     r"x must have the shape of logits, \(3,\), got \(2,\)"),
    ("gaussian", (F64, F64[:2], F64), ValueError,
     r"scale must have the shape of mean, \(3,\), got \(2,\)"),
    ("gaussian", (F64, F64, F32), TypeError, "x must be of dtype float64, got float32"),
    ("logsumexp_push", (F64, F64), ValueError,
     r"state must have a last dimension of 5, got shape \(3,\)"),
    ("logsumexp_push", (np.zeros((3, 5)), np.zeros((2, 4))), ValueError,
     r"log_w must have the shape of state but for the last dimension, \(3, 5\), got \(2, 4\)"),
    ("logsumexp_merge", (np.zeros((3, 5)), np.zeros((2, 5))), ValueError,
     r"b must have the shape of a, \(3, 5\), got \(2, 5\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "kind", "message"), ERRORS)
def test_errors_name_argument_rule_and_value(
    name: str, arguments: tuple[Any, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        getattr(_core, name)(*arguments)
