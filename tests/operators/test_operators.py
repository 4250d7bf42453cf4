"""Every operator against the reference in float64, its contract with torch, and its limits."""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from operator_cases import DEVICES, assert_accurate, naming, oracle
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import dvae_fast
from dvae_fast import corruptions, reference
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.checking.cases import (
    MUTATING,
    OPERATORS,
    clone,
    map_tensors,
    run_operator,
    run_reference,
    sample_inputs,
    upcast,
)
from dvae_fast.checking.limits import RELATIVE
from dvae_fast.checking.operands import (
    DTYPES,
    LARGE,
    LONG_ROWS,
    LOW_PRECISION,
    MANY_SAMPLES,
    NO_EXAMPLES,
    ONE_SAMPLE,
    TINY_LATENT,
    Sample,
    named,
)
from dvae_fast.checking.terms import absolute_terms

op: Any = torch.ops.dvae_fast
INF = math.inf
NOISY = ("corrupt", "sample_latent")


#: sizes whose fake kernels are asked
FAKE_SIZES = tuple(map(named, (TINY_LATENT, NO_EXAMPLES)))
#: sizes that are shared among threads
SHARED_SIZES = tuple(map(named, (LARGE, LONG_ROWS)))
#: sizes that float64 runs: rows of a bit less and a bit more than whole packs, and longer than
#: kernels hold; and more samples than a pack
DOUBLE_SIZES = tuple(map(named, (TINY_LATENT, MANY_SAMPLES, LONG_ROWS)))
#: sizes of which bfloat16 runs every case here: rows of whole packs, and of a pack and a bit. The
#: longer rows test_isa.py has, on each level.
LOW_PRECISION_SIZES = tuple(map(named, (ONE_SAMPLE, TINY_LATENT)))


def _is_needed(sample: Sample) -> bool:
    """All on a GPU; else float32 the whole table, and of the others, the same code, some sizes, and
    one layout, which begins amid a pack: how tensors lie is no matter of their dtype, nor what is
    made of no examples, of which the formula is no matter either."""
    if sample.device != "cpu" or sample.dtype == torch.float32:
        return True
    if sample.layout not in ("contiguous", "offset"):
        return False
    if sample.label.startswith(named(NO_EXAMPLES)):
        return sample.dtype == torch.bfloat16 and sample.layout == "contiguous"
    if sample.dtype == torch.float16:  # read and written otherwise, and every value of it below
        return sample.label.startswith(named(TINY_LATENT))
    if sample.dtype == torch.bfloat16:
        return sample.label.startswith(LOW_PRECISION_SIZES)
    if sample.label.startswith(named(LONG_ROWS)) and ("linear" in sample.op or "mlp" in sample.op):
        return "bernoulli" in sample.label  # products take longest, and are no matter of the rest
    return sample.label.startswith(DOUBLE_SIZES)


def _samples(dtypes: list[torch.dtype], operators: tuple[str, ...] = OPERATORS) -> list[Any]:
    return [
        pytest.param(sample, id=str(sample))
        for device in DEVICES
        for dtype in dtypes
        for name in operators
        for sample in sample_inputs(name, dtype, device)
        if _is_needed(sample)
    ]


def _few_samples() -> list[Any]:
    """Per operator one case of each kind: empty, and with examples, not contiguous."""
    chosen = [
        [s for s in sample_inputs(name, torch.float32, device) if part in s.label][-1]
        for device in DEVICES
        for name in OPERATORS
        for part in ("B0", "strided")
    ]
    return [pytest.param(sample, id=str(sample)) for sample in chosen]


def _bits(t: Tensor) -> Tensor:
    """Equal exactly where the values are the same (0 and −0 are) or both NaN."""
    return torch.where(t.isnan(), math.nan, t.double() + 0.0).view(torch.int64)


# --- every case of the table ------------------------------------------------------------------


@pytest.mark.parametrize("sample", _samples(DTYPES))
def test_agrees_with_float64_reference(sample: Sample) -> None:
    """Within the limits of the terms; its inputs are left alone; its fake kernel tells the same."""
    args = sample.args()
    before = clone(args)
    actual = run_operator(sample.op, args)
    _assert_inputs_are_left_alone(sample, args, before, actual)
    # Of the dtypes a wide one in every layout and a narrow one: the rest is the same code.
    narrow = sample.dtype == torch.bfloat16 and sample.layout == "contiguous"
    if (narrow or sample.dtype == torch.float32) and sample.label.startswith(FAKE_SIZES):
        _assert_fake_kernel_tells_the_same(sample, actual)
    sums = accumulation_dtype(sample.dtype)
    for i, (a, (e, t, extra)) in enumerate(zip(actual, oracle(sample), strict=True)):
        assert_accurate(f"{sample} output {i}", a, e, t, sums, extra)


def _assert_inputs_are_left_alone(
    sample: Sample, args: tuple[Any, ...], before: tuple[Any, ...], out: tuple[Tensor, ...]
) -> None:
    unchanged = slice(1, None) if sample.op in MUTATING else slice(None)
    given, kept = (tree_leaves(list(t[unchanged])) for t in (args, before))
    for i, (a, b) in enumerate(zip(given, kept, strict=True)):
        if not isinstance(a, Tensor):
            continue
        assert torch.equal(a, b), f"tensor argument {i} was changed"
        assert all(
            a.untyped_storage().data_ptr() != o.untyped_storage().data_ptr()
            for o in out
            if o.numel() and a.numel()
        ), f"an output shares memory with tensor argument {i}"


@functools.cache
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()  # half of the time of a call


def _assert_fake_kernel_tells_the_same(sample: Sample, real: tuple[Tensor, ...]) -> None:
    """Shape, dtype, device and strides."""
    args = sample.args()
    with _fake_mode() as mode:
        fake = run_operator(sample.op, map_tensors(mode.from_tensor, args))
    for i, (f, r) in enumerate(zip(fake, real, strict=True)):
        assert f.shape == r.shape, f"output {i}: fake shape {f.shape}, real {r.shape}"
        assert f.dtype == r.dtype, f"output {i}: fake dtype {f.dtype}, real {r.dtype}"
        assert f.device == r.device, f"output {i}: fake device {f.device}, real {r.device}"
        # A stride along a dimension of one element, or of no elements at all, means nothing.
        strides = [[t.stride(n) for n in range(r.dim()) if r.shape[n] > 1] for t in (f, r)]
        assert r.numel() == 0 or strides[0] == strides[1], (
            f"output {i}: fake strides {f.stride()}, real {r.stride()}, shape {tuple(r.shape)}"
        )


@pytest.mark.parametrize(
    "sample",
    [s for s in _samples([torch.float32], ("iwae",)) if s.values[0].layout == "contiguous"],
)
def test_iwae_is_consistent_within_itself(sample: Sample) -> None:
    """Stage by stage, without the error of the log-weights that weights inherit.

    The bound and weights are those of the operator's own log-weights, and the gradient is
    multiplier · w̃ · ∂log p of its own weights.
    """
    args = sample.args()
    params, scale, x, log_ratio, likelihood, multiplier = args
    sums = accumulation_dtype(sample.dtype)
    bound, weights, *grads = run_operator("iwae", args)
    log_w = op.log_weights(params, scale, x, log_ratio, likelihood).double()
    (terms,) = absolute_terms("logmeanexp", (log_w,))
    assert_accurate("bound", bound, reference.logmeanexp(log_w), terms, sums)
    top = log_w.amax(-1, keepdim=True)
    expected = torch.softmax(log_w, -1)
    assert_accurate("weights", weights, expected, expected * (1 + (log_w - top).abs()), sums)
    backward = upcast((weights, params, scale, x))
    terms2 = absolute_terms("log_weights_backward", (*backward, likelihood))
    expected2 = run_reference("log_weights_backward", (*backward, likelihood))
    for name, g, e, t in zip(("params", "scale"), grads, expected2, terms2, strict=True):
        factor = abs(multiplier) * t
        assert_accurate(f"gradient of {name}", g, multiplier * e, factor, sums)


@pytest.mark.parametrize("sample", _samples([torch.float32, torch.bfloat16], ("corrupt",)))
def test_discrete_corruption_is_the_same_bits_as_the_reference(sample: Sample) -> None:
    args = sample.args()
    if args[1] == "gaussian":
        return
    (actual,), (expected,) = run_operator("corrupt", args), run_reference("corrupt", args)
    assert torch.equal(actual, expected), f"{int((actual != expected).sum())} elements differ"


TRACED = (
    "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic",
)  # fmt: skip


@pytest.mark.parametrize("sample", _few_samples())
def test_opcheck(sample: Sample) -> None:
    # Of empty operands, of masks, which are one more operand, and of what has no derivative and
    # changes nothing, all but what torch traces, which takes longest and is the same code.
    traced = not (
        "B0" in sample.label or sample.op.startswith("masked_") or "_backward" in sample.op
    )
    tests = TRACED if traced else TRACED[:-1]
    torch.library.opcheck(getattr(op, sample.op).default, sample.args(), test_utils=tests)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATORS)
def test_number_of_threads_does_not_change_the_numbers(name: str, device: str) -> None:
    if device != "cpu":
        pytest.skip("threads are the CPU's")
    threads = torch.get_num_threads()
    every = sample_inputs(name, torch.float32, device)
    # How rows are shared out is no matter of the formula: scales are those of a Gaussian.
    alike = ("discretised_logistic", "negative_binomial")
    chosen = [
        s
        for s in every
        if s.label.startswith(SHARED_SIZES) and not any(a in s.label for a in alike)
    ]
    results = {}
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            results[n] = [run_operator(name, sample.args()) for sample in chosen]
    finally:
        torch.set_num_threads(threads)
    for sample, one, many in zip(chosen, *results.values(), strict=True):
        for i, (a, b) in enumerate(zip(many, one, strict=True)):
            if torch.equal(_bits(a), _bits(b)):
                continue
            label = f"{sample} output {i} on 3 threads"
            assert name not in NOISY, f"{label}: noise depends on the threads"
            terms = absolute_terms(name, upcast(sample.args()))[i]
            assert_accurate(label, a, b, terms, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_calls_from_several_threads_do_not_disturb_each_other(device: str) -> None:
    """As autograd and data loaders make them."""
    samples = [
        s
        for name in OPERATORS
        for s in sample_inputs(name, torch.float32, device)
        if "M2-B3-K7" in s.label
    ]
    alone = [run_operator(s.op, s.args()) for s in samples]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda s: run_operator(s.op, s.args()), samples * 2))
    for sample, out, expected in zip(samples * 2, together, alone * 2, strict=True):
        for i, (a, b) in enumerate(zip(out, expected, strict=True)):
            torch.testing.assert_close(
                a, b, rtol=1e-4, atol=1e-4, msg=naming(f"{sample} output {i}")
            )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [4999, 5000])
def test_thousands_of_samples_keep_their_accuracy(k: int, device: str) -> None:
    g = torch.Generator().manual_seed(3)
    for log_w in (torch.randn(3, k, generator=g) * 5, torch.full((3, k), -87.25)):
        log_w = log_w.to(device)
        (terms,) = absolute_terms("logmeanexp", upcast((log_w,)))
        (expected,) = run_reference("logmeanexp", upcast((log_w,)))
        (bound,) = run_operator("logmeanexp", (log_w,))
        assert_accurate("bound", bound, expected, terms, torch.float32)
        grad = torch.ones(3, device=device)
        (weights,) = run_operator("logmeanexp_backward", (grad, log_w))
        exact = torch.softmax(log_w.double(), -1)
        apart = (log_w - log_w.amax(-1, keepdim=True)).abs()
        assert_accurate("weights", weights, exact, exact * (1 + apart), torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("examples", [1, 2, 9])
def test_iwae_is_the_same_for_few_and_many_examples(
    likelihood: str, examples: int, device: str
) -> None:
    """However rows are shared out, an example's result is the one it has alone."""
    threads = torch.get_num_threads()
    g = torch.Generator().manual_seed(5)
    k, d = 50, 785
    params = torch.randn(9, k, d, generator=g).to(device)
    scale = (torch.rand(9, k, d, generator=g) + 0.5).to(device)
    x = torch.rand(9, d, generator=g).round().to(device)
    log_ratio = torch.randn(9, k, generator=g).to(device)
    full = scale if likelihood == "gaussian" else None
    try:
        torch.set_num_threads(2)
        part = op.iwae(
            params[:examples],
            None if full is None else full[:examples],
            x[:examples],
            log_ratio[:examples],
            likelihood,
            -1.0,
        )
        torch.set_num_threads(1)
        alone = [
            op.iwae(
                params[n : n + 1],
                None if full is None else full[n : n + 1],
                x[n : n + 1],
                log_ratio[n : n + 1],
                likelihood,
                -1.0,
            )
            for n in range(examples)
        ]
    finally:
        torch.set_num_threads(threads)
    for i, together in enumerate(part):
        if together.numel():
            separate = torch.cat([a[i] for a in alone])
            torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MUTATING)
def test_mutating_operator_writes_through_a_transposed_tensor_or_refuses(
    name: str, device: str
) -> None:
    sample = next(s for s in sample_inputs(name, torch.float32, device) if "transposed" in s.label)
    args = sample.args()
    expected = run_reference(name, clone(upcast(args)))[-1]
    try:
        run_operator(name, args)
    except RuntimeError as error:
        refusal = str(error)
    else:
        torch.testing.assert_close(args[0].double(), expected, rtol=1e-3, atol=1e-5)
        return
    assert "contiguous" in refusal


# --- exactness: corruption --------------------------------------------------------------------

SIZES = [1, 63, 64, 65, 785]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_rates_0_and_1_are_exact(d: int, dtype: torch.dtype, device: str) -> None:
    x = torch.rand(7, d, dtype=torch.float64).to(dtype).to(device).requires_grad_()
    ends = {
        corruptions.Masking: torch.zeros_like(x),
        corruptions.BitFlip: 1 - x,
        corruptions.SaltAndPepper: None,
    }
    for seed in range(5):
        for kind, hit in ends.items():
            kept = dvae_fast.corrupt(x, kind(0.0), copies=3, seed=seed)
            assert torch.equal(kept, x.expand(3, 7, d)), f"{kind.__name__}(0) changed x"
            (grad,) = torch.autograd.grad(kept.sum(), x)
            assert torch.equal(grad, torch.full_like(x, 3)), f"{kind.__name__}(0) gradient"
            out = dvae_fast.corrupt(x, kind(1.0), copies=3, seed=seed)
            (grad,) = torch.autograd.grad(out.sum(), x)
            slope = -3 if kind is corruptions.BitFlip else 0
            assert torch.equal(grad, torch.full_like(x, slope)), f"{kind.__name__}(1) gradient"
            if hit is None:
                assert bool(((out == 0) | (out == 1)).all()), "SaltAndPepper(1) kept an element"
            else:
                assert torch.equal(out, hit.expand(3, 7, d)), f"{kind.__name__}(1) kept an element"
        for salt in (0.0, 1.0):
            for rate in (0.5, 1.0):
                out = dvae_fast.corrupt(x, corruptions.SaltAndPepper(rate, salt), seed=seed)
                changed = out[out != x]
                assert bool((changed == salt).all()), f"salt {salt} gave another value"
        assert torch.equal(dvae_fast.corrupt(x, corruptions.AdditiveGaussian(0.0), seed=seed), x)
        assert torch.equal(dvae_fast.corrupt(x, corruptions.Identity(), seed=seed), x)


@pytest.mark.parametrize("device", DEVICES)
def test_rates_0_and_1_per_pixel_are_exact(device: str) -> None:
    d = 785
    rate = (torch.arange(d) % 3 == 0).float().to(device)
    salt = (torch.arange(d) % 2 == 0).float().to(device)
    x = torch.full((5, d), 0.25, device=device)
    assert torch.equal(dvae_fast.corrupt(x, corruptions.Masking(rate), seed=3), x * (1 - rate))
    assert torch.equal(
        dvae_fast.corrupt(x, corruptions.SaltAndPepper(rate, salt), copies=2, seed=3),
        torch.where(rate == 1, salt, x).expand(2, 5, d),
    )
    assert torch.equal(
        dvae_fast.corrupt(x, corruptions.BitFlip(rate), seed=3), torch.where(rate == 1, 1 - x, x)
    )


# --- exactness: bfloat16 and float16 ----------------------------------------------------------


def _every_value(dtype: torch.dtype, device: str) -> Tensor:
    """All 2¹⁶ bit patterns: zeros, denormals, infinities and NaNs among them."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_every_low_precision_value_is_read_and_written(dtype: torch.dtype, device: str) -> None:
    x = _every_value(dtype, device).view(16, -1)
    for corruption in (corruptions.Masking(0.0), corruptions.AdditiveGaussian(0.0)):
        out = dvae_fast.corrupt(x, corruption, seed=1)
        assert torch.equal(_bits(out), _bits(x)), f"{corruption} changed a value"
    seed, rate = torch.tensor([1], device=device), torch.zeros(1, device=device)
    grad = op.corrupt_backward(x.unsqueeze(0), "masking", rate, None, seed, 0, 0)
    assert torch.equal(_bits(grad), _bits(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_results_are_rounded_to_nearest_even(dtype: torch.dtype, device: str) -> None:
    """Into denormals, over to infinity, and at ties."""
    x = _every_value(dtype, device)
    for factor in (1.0, 0.5, 1.5, 1 / 3, 2**-9, 1e-6, 3e4, -0.75):
        grad = x.clone().view(16, -1)
        op.rescale_(grad, torch.tensor(factor, device=device))
        expected = (x.float() * factor).to(dtype).view(16, -1)
        wrong = _bits(grad) != _bits(expected)
        assert not bool(wrong.any()), (
            f"times {factor}: {int(wrong.sum())} wrong, first {x.view(16, -1)[wrong][0].item()} "
            f"gives {grad[wrong][0].item()}, not {expected[wrong][0].item()}"
        )


# --- exactness: limits of the log-weights -----------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits_have_their_limits(dtype: torch.dtype, device: str) -> None:
    cases = [
        # x, logit, log p(x)
        (0.0, -INF, 0.0),
        (1.0, INF, 0.0),
        (1.0, -INF, -INF),
        (0.0, INF, -INF),
        (0.3, INF, -INF),
        (0.3, -INF, -INF),
    ]
    sums = accumulation_dtype(dtype)
    for x, logit, limit in cases:
        for d in (1, 63, 65):
            # One infinite logit in a row of logits that make log p = −log 2 each.
            params = torch.zeros(3, 2, d, dtype=dtype, device=device)
            params[..., d // 2] = logit
            data = torch.full((3, d), x, dtype=sums, device=device)
            log_ratio = params.new_zeros(3, 2, dtype=sums)
            out = op.log_weights(params, None, data, log_ratio, "bernoulli")
            expected = torch.full_like(out, limit - (d - 1) * math.log(2))
            torch.testing.assert_close(out, expected, rtol=2e-6, atol=0)
            grad, _ = op.log_weights_backward(torch.ones_like(out), params, None, data, "bernoulli")
            slope = torch.full((3, 2, d), x - 0.5, dtype=torch.float64, device=device)
            slope[..., d // 2] = x - (logit > 0)
            torch.testing.assert_close(grad.double(), slope, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cause", ["log_ratio", "logits"])
def test_all_weights_zero_give_minus_infinity_and_no_gradient(cause: str, device: str) -> None:
    m, b, k, d = 2, 5, 7, 63
    dead = 3  # this example in every corruption

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        logits = torch.randn(m, b, k, d, generator=g)
        log_ratio = torch.randn(m, b, k, generator=g)
        x = torch.rand(b, d, generator=g).round()
        x[dead, 5] = 1
        if cause == "logits":
            logits[:, dead, :, 5] = -INF
        else:
            log_ratio[:, dead] = -INF
        return logits.to(device).requires_grad_(), x.to(device), log_ratio.to(device)

    for fused in (False, True):
        logits, x, log_ratio = inputs()
        log_ratio.requires_grad_()
        if fused:
            bound = -dvae_fast.iwae_loss(logits, x, log_ratio, reduction="none")
        else:
            bound = dvae_fast.logmeanexp(dvae_fast.log_weights(logits, x, log_ratio))
        assert bool((bound[:, dead] == -INF).all())
        alive = [i for i in range(b) if i != dead]
        assert bool(torch.isfinite(bound[:, alive]).all())
        bound.sum().backward()
        for name, t in (("logits", logits), ("log_ratio", log_ratio)):
            assert t.grad is not None
            assert bool((t.grad[:, dead] == 0).all()), f"gradient of {name} is not 0"
            assert bool((t.grad[:, alive] != 0).any(-1).all()), f"gradient of {name} vanished"
            assert bool(torch.isfinite(t.grad).all())


@pytest.mark.parametrize("device", DEVICES)
def test_one_weight_zero_gets_no_gradient_and_no_weight(device: str) -> None:
    b, k, d = 3, 7, 64
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(b, k, d, generator=g).to(device).requires_grad_()
    x = torch.rand(b, d, generator=g).round().to(device)
    log_ratio = torch.randn(b, k, generator=g).to(device)
    log_ratio[1, 4] = -INF
    dvae_fast.iwae_loss(logits, x, log_ratio, reduction="sum").backward()
    rest = [i for i in range(k) if i != 4]
    others = dvae_fast.iwae_loss(logits[1:2, rest], x[1:2], log_ratio[1:2, rest])
    bound = dvae_fast.iwae_loss(logits[1:2], x[1:2], log_ratio[1:2])
    torch.testing.assert_close(bound, others + math.log(7 / 6))
    assert logits.grad is not None
    assert bool((logits.grad[1, 4] == 0).all())
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logmeanexp_limits(dtype: torch.dtype, device: str) -> None:
    def bound(*w: float) -> float:
        return float(dvae_fast.logmeanexp(torch.tensor([w], dtype=dtype, device=device)))

    assert bound(-INF, -INF, -INF) == -INF
    assert bound(-INF) == -INF
    assert bound(INF, 0.0, -3.0) == INF
    assert math.isnan(bound(math.nan, 0.0, -INF))
    assert math.isnan(bound(-INF, math.nan))
    assert bound(-INF, 2.0) == pytest.approx(2 - math.log(2), rel=1e-6)
    # Far outside the range of exp, and far apart.
    assert bound(-1e5, -1e5) == pytest.approx(-1e5)
    assert bound(1e5, 1e5 + 1) == pytest.approx(1e5 + math.log((1 + math.e) / 2))
    assert bound(0.0, -1e30) == pytest.approx(-math.log(2), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_decoders_keep_their_accuracy(dtype: torch.dtype, device: str) -> None:
    """Rows whose every term is tiny, down to e^−80, or huge: relative to the terms themselves."""
    d = 785
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    for size in (5.0, 10.0, 20.0, 40.0, 80.0):
        x = (torch.arange(d) % 2).to(dtype).to(device).expand(3, d)
        logits = ((2 * x - 1) * size).unsqueeze(1).expand(3, 2, d)
        out = op.log_weights(logits, None, x, x.new_zeros(3, 2), "bernoulli")
        expected = -d * math.log1p(math.exp(-size))
        torch.testing.assert_close(out, torch.full_like(out, expected), rtol=tolerance, atol=0)
    for size in (100.0, 1e4):
        logits = ((2 * x - 1) * size).unsqueeze(1).expand(3, 2, d).contiguous()
        out = op.log_weights(logits, None, x, x.new_zeros(3, 2), "bernoulli")
        assert bool((out <= 0).all())
        assert bool((out >= -1e-40).all())  # e^−100 a term at most
        # One pixel wrong costs its logit, whatever the others say.
        logits[..., 17] = -logits[..., 17]
        out = op.log_weights(logits, None, x, x.new_zeros(3, 2), "bernoulli")
        torch.testing.assert_close(out, torch.full_like(out, -size), rtol=tolerance, atol=0)
        grad, _ = op.log_weights_backward(torch.ones_like(out), logits, None, x, "bernoulli")
        expected_grad = torch.zeros_like(grad)
        expected_grad[..., 17] = 2 * x[:, 17:18] - 1
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-40)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [64, 1920, 1985, 12545])
def test_undecided_decoders_do_not_overflow(d: int, dtype: torch.dtype, device: str) -> None:
    """Logits of 0: Π (1 + e^−|l|) is 2^D, which a kernel that keeps the product must break up."""
    sums = accumulation_dtype(dtype)
    logits = torch.zeros(3, 2, d, dtype=dtype, device=device)
    x, log_ratio = (torch.ones(shape, dtype=sums, device=device) for shape in ((3, d), (3, 2)))
    out = op.log_weights(logits, None, x, log_ratio, "bernoulli")
    expected = torch.full_like(out, 1 - d * math.log(2))
    torch.testing.assert_close(out, expected, rtol=RELATIVE[sums], atol=0)
    bound, *_ = op.iwae(logits, None, x, log_ratio, "bernoulli", 1.0)
    torch.testing.assert_close(bound, expected[:, 0], rtol=RELATIVE[sums], atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_confident_gaussian_keeps_its_accuracy(device: str) -> None:
    d = 785
    for scale in (1e-4, 1e4):
        x = torch.linspace(0, 1, d, device=device).expand(3, d)
        mean = (x + 0.5 * scale).unsqueeze(1).expand(3, 2, d)
        s = torch.tensor(scale, device=device)
        out = op.log_weights(mean, s, x, x.new_zeros(3, 2), "gaussian")
        (expected,) = run_reference(
            "log_weights", upcast((mean, s, x, x.new_zeros(3, 2), "gaussian"))
        )
        terms = d * (0.125 + abs(math.log(scale)) + 0.92)
        assert float((out - expected).abs().max()) <= 2e-6 * terms


# --- NaN --------------------------------------------------------------------------------------


def _poison(t: Tensor, *index: int) -> Tensor:
    out = t.clone()
    out[index] = math.nan
    return out


def _assert_only(row: int, dim: int, clean: Tensor, dirty: Tensor, name: str) -> None:
    """Along `dim`, `dirty` has NaN in `row` and is `clean`, bit for bit, elsewhere."""
    rest = [i for i in range(clean.shape[dim]) if i != row]
    index = torch.tensor(rest, device=clean.device)
    assert torch.equal(
        _bits(clean.index_select(dim, index)), _bits(dirty.index_select(dim, index))
    ), f"{name}: another example changed"
    assert bool(dirty.select(dim, row).isnan().any()), f"{name}: NaN was lost"


@pytest.mark.filterwarnings("ignore:the loss is not finite, and 1 of:RuntimeWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["logits", "x", "log_ratio"])
@pytest.mark.parametrize("fused", [False, True])
def test_nan_stays_in_its_example_bernoulli(
    where: str, fused: bool, dtype: torch.dtype, device: str
) -> None:
    m, b, k, d, row = 2, 5, 7, 65, 3
    g = torch.Generator().manual_seed(2)
    logits, log_ratio = torch.randn(m, b, k, d, generator=g), torch.randn(m, b, k, generator=g)
    x = torch.rand(b, d, generator=g)
    tensors = {"logits": logits.to(dtype), "x": x, "log_ratio": log_ratio}
    index = {"logits": (1, row, 4, 64), "x": (row, 64), "log_ratio": (1, row, 4)}[where]
    out = []
    for inputs in (tensors, {**tensors, where: _poison(tensors[where], *index)}):
        args = {n: t.clone().to(device) for n, t in inputs.items()}
        p = args["logits"].requires_grad_()
        r = args["log_ratio"].requires_grad_()
        if fused:
            loss = dvae_fast.iwae_loss(p, args["x"], r, reduction="none")
        else:
            loss = -dvae_fast.logmeanexp(dvae_fast.log_weights(p, args["x"], r))
        out.append((loss.detach(), *torch.autograd.grad(loss.sum(), (p, r))))
    for name, clean, dirty in zip(("loss", "grad logits", "grad log_ratio"), *out, strict=True):
        _assert_only(row, 1, clean, dirty, name)
        if where != "x":  # x belongs to the example in every corruption, the rest to one
            same = torch.equal(_bits(clean[0]), _bits(dirty[0]))
            assert same, f"{name}: another corruption changed"
    assert bool(out[1][0][1, row].isnan())
    assert bool(out[1][1][1, row].isnan().any(-1).all()), "a sample of the NaN example has none"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("where", ["mean", "scale"])
@pytest.mark.parametrize("fused", [False, True])
def test_nan_stays_in_its_example_gaussian(where: str, fused: bool, device: str) -> None:
    b, k, d, row = 5, 7, 65, 3
    g = torch.Generator().manual_seed(2)
    tensors = {
        "mean": torch.randn(b, k, d, generator=g),
        "scale": torch.rand(b, k, d, generator=g) + 0.5,
    }
    x, log_ratio = torch.rand(b, d, generator=g).to(device), torch.randn(b, k, generator=g)
    out = []
    for inputs in (tensors, {**tensors, where: _poison(tensors[where], row, 4, 64)}):
        p, s = (inputs[n].clone().to(device).requires_grad_() for n in ("mean", "scale"))
        if fused:
            loss = dvae_fast.iwae_loss(
                (p, s), x, log_ratio.to(device), "gaussian", reduction="none"
            )
        else:
            log_w = dvae_fast.log_weights((p, s), x, log_ratio.to(device), "gaussian")
            loss = -dvae_fast.logmeanexp(log_w)
        out.append((loss.detach(), *torch.autograd.grad(loss.sum(), (p, s))))
    for name, clean, dirty in zip(("loss", "grad mean", "grad scale"), *out, strict=True):
        _assert_only(row, 0, clean, dirty, name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("where", ["mean", "log_var"])
def test_nan_stays_in_its_example_latent(where: str, device: str) -> None:
    b, k, z, row = 5, 7, 65, 3
    g = torch.Generator().manual_seed(3)
    tensors = {n: torch.randn(b, z, generator=g) for n in ("mean", "log_var")}
    out = []
    for inputs in (tensors, {**tensors, where: _poison(tensors[where], row, 64)}):
        mean, log_var = (inputs[n].clone().to(device).requires_grad_() for n in ("mean", "log_var"))
        sample, ratio = dvae_fast.sample_latent(mean, log_var, k, seed=1)
        grads = torch.autograd.grad(sample.sum() + ratio.sum(), (mean, log_var))
        other = dvae_fast.latent_log_ratio(sample.detach(), mean.detach(), log_var.detach())
        out.append((sample.detach(), ratio.detach(), *grads, other))
    names = ("z", "log_ratio", "grad mean", "grad log_var", "latent_log_ratio")
    for name, clean, dirty in zip(names, *out, strict=True):
        _assert_only(row, 0, clean, dirty, name)
    assert bool(out[1][1][row].isnan().all())
    assert int(out[1][0].isnan().sum()) == k, "z is NaN where its own element is, no further"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["z", "mean", "log_var"])
def test_nan_stays_in_its_example_mixture(where: str, dtype: torch.dtype, device: str) -> None:
    m, b, k, z, row = 2, 5, 7, 65, 3
    g = torch.Generator().manual_seed(6)
    tensors = {
        n: torch.randn(shape, generator=g).to(dtype)
        for n, shape in {"z": (b, k, z), "mean": (m, b, z), "log_var": (m, b, z)}.items()
    }
    index = (row, 4, 64) if where == "z" else (1, row, 64)
    out = []
    for inputs in (tensors, {**tensors, where: _poison(tensors[where], *index)}):
        args = [t.clone().to(device).requires_grad_() for t in inputs.values()]
        ratio = dvae_fast.mixture_log_ratio(*args)
        out.append((ratio.detach(), *torch.autograd.grad(ratio.sum(), args)))
    names = ("ratio", "grad z", "grad mean", "grad log_var")
    for name, dim, clean, dirty in zip(names, (0, 0, 1, 1), *out, strict=True):
        _assert_only(row, dim, clean, dirty, name)
    nan = out[1][0][row].isnan()
    assert bool(nan[4])
    assert int(nan.sum()) == (1 if where == "z" else k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_component_too_narrow_for_its_inverse_gets_no_gradient(
    dtype: torch.dtype, device: str
) -> None:
    """1/σ is inf, and the weight 0."""
    m, b, k, z = 3, 2, 4, 5
    g = torch.Generator().manual_seed(8)
    shapes = ((b, k, z), (m, b, z), (m, b, z))
    sample, mean, log_var = (torch.randn(s, generator=g).to(dtype).to(device) for s in shapes)
    log_var[1, :, 3] = -2000
    leaves = [t.requires_grad_() for t in (sample, mean, log_var)]
    out = dvae_fast.mixture_log_ratio(*leaves)
    others = [sample, mean[::2], log_var[::2]]
    rest = dvae_fast.mixture_log_ratio(*others) + math.log(3 / 2)
    torch.testing.assert_close(out, rest)
    got = torch.autograd.grad(out.sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(rest.sum(), leaves))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_components_have_their_limits(dtype: torch.dtype, device: str) -> None:
    """A component infinitely far or wide has density 0 and no gradient; the rest stay a mixture."""
    m, b, k, z = 3, 4, 2, 65
    g = torch.Generator().manual_seed(7)
    shapes = ((b, k, z), (m, b, z), (m, b, z))
    sample, mean, log_var = (torch.randn(s, generator=g).to(dtype).to(device) for s in shapes)
    mean[1, 0, 64], mean[1, 1, 0], log_var[1, 2, 7] = INF, -INF, INF
    mean[:, 3, 5] = INF  # all of them
    leaves = [t.requires_grad_() for t in (sample, mean, log_var)]
    out = dvae_fast.mixture_log_ratio(*leaves)
    rest = dvae_fast.mixture_log_ratio(sample, mean[::2], log_var[::2]) + math.log(3 / 2)
    torch.testing.assert_close(out[:3], rest[:3])
    assert bool((out[3] == INF).all())
    grads = torch.autograd.grad(out[:3].sum() + out[3].clamp(max=0).sum(), leaves)
    for name, grad in zip(("z", "mean", "log_var"), grads, strict=True):
        assert bool(torch.isfinite(grad).all()), f"gradient of {name}"
    assert bool((grads[1][1, :3] == 0).all())
    assert bool((grads[2][1, :3] == 0).all())
    assert bool((grads[1][0, :3] != 0).any(-1).all())
    grads = torch.autograd.grad(dvae_fast.mixture_log_ratio(*leaves)[3].sum(), leaves)
    assert all(bool((grad == 0).all()) for grad in grads)
    # z itself infinite, or a variance of 0: no limit, so NaN.
    for t in (sample, log_var):
        with torch.no_grad():
            t[..., 0, 0, 3] = -INF
        assert bool(dvae_fast.mixture_log_ratio(*leaves)[0, 0].isnan())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "corruption",
    [corruptions.Masking(0.5), corruptions.BitFlip(0.5), corruptions.AdditiveGaussian(0.5)],
    ids=repr,
)
def test_nan_stays_in_its_pixel_corrupt(corruption: corruptions.Corruption, device: str) -> None:
    x = torch.rand(5, 65, device=device)
    clean = dvae_fast.corrupt(x, corruption, copies=7, seed=1)
    dirty = dvae_fast.corrupt(_poison(x, 3, 64), corruption, copies=7, seed=1)
    _assert_only(3, 1, clean, dirty, repr(corruption))
    assert bool(dirty.isnan().nonzero()[:, 2].eq(64).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("where", ["hidden", "x"])
def test_nan_stays_in_its_example_linear(where: str, device: str) -> None:
    b, k, h, d, row = 5, 7, 63, 65, 3
    g = torch.Generator().manual_seed(4)
    tensors = {"hidden": torch.randn(b, k, h, generator=g), "x": torch.rand(b, d, generator=g)}
    weight = torch.randn(d, h, generator=g).to(device)
    log_ratio = torch.randn(b, k, generator=g).to(device)
    index = (row, 4, 62) if where == "hidden" else (row, 64)
    out = []
    for inputs in (tensors, {**tensors, where: _poison(tensors[where], *index)}):
        hidden = inputs["hidden"].clone().to(device).requires_grad_()
        log_w = dvae_fast.linear_log_weights(
            hidden, weight, None, inputs["x"].to(device), log_ratio
        )
        log_w.sum().backward()
        assert hidden.grad is not None
        out.append((log_w.detach(), hidden.grad))
    for name, clean, dirty in zip(("log_w", "grad hidden"), *out, strict=True):
        _assert_only(row, 0, clean, dirty, name)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_example_streaming(device: str) -> None:
    g = torch.Generator().manual_seed(5)
    first, second = (torch.randn(5, 7, generator=g).to(device) for _ in range(2))
    for bad_first in (False, True):
        out = []
        for chunks in (
            (first, second),
            (_poison(first, 3, 4), second) if bad_first else (first, _poison(second, 3, 4)),
        ):
            state = reference.lse_init(5, device)
            for chunk in chunks:
                state = op.lse_update(state, chunk)
            out.append(state)
        _assert_only(3, 0, out[0], out[1], "state")
        assert bool(out[1][3, :4].isnan().all()), "every sum of the NaN example is NaN"


# --- streaming logsumexp ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streaming_state_is_the_same_for_any_chunks(dtype: torch.dtype, device: str) -> None:
    g = torch.Generator().manual_seed(6)
    log_w = (torch.randn(7, 65, generator=g) * 30 - 500).to(dtype).to(device)
    log_w[2, :40] = -INF
    log_w[4] = -INF
    w = log_w.double()
    whole = op.lse_update(reference.lse_init(7, device), log_w)
    expected = torch.logsumexp(w, 1)
    torch.testing.assert_close(whole[:, 0] + whole[:, 1].log(), expected, rtol=1e-13, atol=0)
    squares = torch.logsumexp(2 * w, 1)
    torch.testing.assert_close(2 * whole[:, 0] + whole[:, 2].log(), squares, rtol=1e-13, atol=0)
    for size in (1, 2, 7, 50, 64):
        state = reference.lse_init(7, device)
        merged = reference.lse_init(7, device)
        for chunk in log_w.split(size, 1):
            state = op.lse_update(state, chunk)
            alone = op.lse_update(reference.lse_init(7, device), chunk)
            merged = reference.lse_merge(alone, merged)
        for got in (state, merged):
            torch.testing.assert_close(got, whole, rtol=1e-12, atol=0)
    assert bool((whole[:, 4] == 65).all())
    empty = op.lse_update(whole, log_w[:, :0])
    assert torch.equal(_bits(empty), _bits(whole)), "no samples must change nothing"
