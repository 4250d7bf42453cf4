"""The large batches of a GPU: their plan, what happens where it does not fit, and waits. On a CPU,
which is made to follow a GPU's plan."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dvae_fast import functional
from dvae_fast.corruptions import Masking
from dvae_fast.data.given import Given
from dvae_fast.evaluation import (
    batching,
    engine,
    estimate_log_likelihood,
    importance,
    sharing,
    statistics,
)
from dvae_fast.evaluation.batching import Fetch, Limits, fitting, held, out_of_memory, plan
from dvae_fast.evaluation.partial import PartialResults, read_settings
from dvae_fast.evaluation.proposals import Proposal
from dvae_fast.evaluation.target import Evaluated
from dvae_fast.models import LatentVariableModel, TwoLayerModel, make_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dvae_fast.evaluation import EvaluationProgress, LikelihoodEstimate

N, K, Z, D = 11, 23, 3, 9
SEED = 99
FIELDS = (
    "log_likelihood", "standard_error", "ess", "elbo", "pareto_k", "spent", "curve",
    "curve_standard_error",
)  # fmt: skip


def _model(name: str = "iwae", **options: Any) -> LatentVariableModel:
    torch.manual_seed(0)
    corruption = Masking(0.3) if name == "dvae" else None
    return make_model(name, D, Z, (8, 6), corruption=corruption, **options).double()


def _data(n: int = N) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _same(a: LikelihoodEstimate, b: LikelihoodEstimate, tolerance: float = 1e-9) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance, equal_nan=True
        )


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Evaluations follow a GPU's plan: so many rows at once, so many examples a batch."""

    def force(rows: int = 64, examples: int = 4) -> None:
        def planned(total: int, k: int, **rest: Any) -> tuple[int, int, int]:
            return plan(total, k, **rest, rows=rows)

        monkeypatch.setattr(batching, "free_memory", lambda device: 8 << 30)
        monkeypatch.setattr(batching, "_EXAMPLES", examples)
        monkeypatch.setattr(batching, "plan", planned)

    return force


# --- the plan ---------------------------------------------------------------------------------


MNIST = {"row": 2604, "example": 4736}
H200 = 139 << 30


@pytest.mark.parametrize(
    ("examples", "k", "given", "free", "expected"),
    [
        (10_000, 5000, {}, H200, (500, 1667)),
        (1250, 5000, {}, H200, (417, 2500)),  # an eighth
        (10_000, 50, {}, H200, (10_000, 50)),
        (60_000, 50, {}, H200, (20_000, 50)),
        (10_000, 1, {}, H200, (10_000, 1)),
        (10_000, 10**6, {}, H200, (500, 2097)),
        (1, 5000, {}, H200, (1, 5000)),
        (10_000, 5000, {"batch_size": 7}, H200, (7, 5000)),
        (10_000, 5000, {"batch_size": 10**7}, H200, (10**7, 1)),
        (10_000, 5000, {"chunk": 100}, H200, (10_000, 100)),
        (10_000, 5000, {"chunk": 9999}, H200, (209, 5000)),
        (10_000, 5000, {"batch_size": 7, "chunk": 11}, H200, (7, 11)),
        (10_000, 5000, {}, 1 << 30, (500, 358)),
        (10_000, 5000, {"several": 1}, H200, (209, 5000)),
        (10_000, 5000, {}, 1 << 20, (55, 1)),
        (10_000, 5000, {}, 0, (1, 1)),
    ],
)
def test_plans(
    examples: int, k: int, given: dict[str, int], free: int, expected: tuple[int, int]
) -> None:
    assert plan(examples, k, free=free, **MNIST, **given)[:2] == expected


@pytest.mark.parametrize("free", [1 << 22, 1 << 28, 1 << 33, 1 << 40])
@pytest.mark.parametrize(("row", "example"), [(100, 10), (2604, 4736), (300_000, 3), (50, 10**6)])
def test_plans_fit_whatever_the_examples_and_samples(row: int, example: int, free: int) -> None:
    room = min(free // 2, 8 << 30)
    for examples in (1, 13, 1000, 10**5, 10**7):
        for k in (1, 7, 5000, 10**6):
            batch, chunk, rows = plan(examples, k, row=row, example=example, free=free)
            assert batch * chunk <= rows <= batching._ROWS
            assert 1 <= batch <= examples
            assert 1 <= chunk <= k
            assert batch * (example + chunk * row) <= room or batch * chunk == 1
            # No more batches, or chunks, than it takes, and the last is not the odd one out.
            assert -(-examples // batch) * batch - examples < -(-examples // batch)
            assert -(-k // chunk) * chunk - k < -(-k // chunk)


def test_tensors_alive_at_once_are_counted() -> None:
    given = torch.zeros(10_000)

    def call() -> Tensor:
        a = given.view(100, 100).t() + 1  # 40,000 bytes; what it is made of is not counted
        a = a.double()  # 120,000 until the first is gone
        a = a.sum(0)
        return a.add_(torch.zeros(50_000).sum())  # 200,000 and some

    assert 200_000 <= held(call) <= 201_000
    assert held(lambda: given.view(100, 100)[3:]) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("options", [{}, {"fullgraph": True}])
def test_a_compiled_decoder_is_counted_layer_by_layer(options: dict[str, bool]) -> None:
    layers = nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 5))
    decode = torch.compile(layers, **options)
    with torch.no_grad():
        assert held(lambda: decode(torch.zeros(10, 4))) >= 2 * 10 * 1000 * 4


@pytest.mark.parametrize("proposal", ["posterior", "corrupted", "mixture"])
def test_what_a_row_holds(proposal: str) -> None:
    """Measured: hidden layers; logits where they are held; encodings where samples need them."""

    def measure(model: Any, dtype: torch.dtype | None = None) -> tuple[int, int]:
        how = Proposal(proposal, None if proposal == "posterior" else Masking(0.5), 7)
        key, x = torch.tensor([1]), torch.rand(1, 300)
        with torch.no_grad():
            evaluated = Evaluated(model)
            source = importance.ModelSource(evaluated, how, evaluated.like(x), 300, dtype)
            return source.memory(Given(x), key, Limits())

    torch.manual_seed(0)
    model = make_model("iwae", 300, 5, (40, 50)).train()
    example, row = measure(model)
    assert model.training
    copies = 7 if proposal == "mixture" else 1
    assert 300 * 4 * copies <= example <= (300 * 8 + 1000) * copies + 2000
    logits = 300 * 4
    if proposal != "corrupted":
        assert row < logits
    held_row = measure((model.encode, model.decode))[1]
    assert logits <= held_row
    if proposal != "corrupted":  # the decoder's layers are one operator there too
        assert measure(model, torch.bfloat16)[1] < logits / 2


# --- the same numbers -------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "posterior": {},
    "corrupted": {"proposal": "corrupted", "corruption": Masking(0.3)},
    "mixture": {"proposal": "mixture", "corruption": Masking(0.3), "copies": 3},
    "tolerance": {"tolerance": 0.3, "max_k": 500},
    "tolerance, corrupted": {
        "tolerance": 0.3, "max_k": 500, "proposal": "corrupted", "corruption": Masking(0.3),
    },
    "tolerance, mixture": {
        "tolerance": 0.3, "max_k": 500, "proposal": "mixture", "corruption": Masking(0.3),
    },
    "no curve": {"curve": ()},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rows", "examples", "case"),
    [
        *(("iwae", *size, case) for size in ((64, 4), (5, 3)) for case in CASES),
        *(("iwae", 10**6, 512, case) for case in ("posterior", "tolerance, mixture")),
        *(
            (kind, 64, 4, case)
            for kind in ("full", "two layers", "callables")
            for case in ("posterior", "tolerance, mixture")
        ),
    ],
)
def test_large_batches_are_small_ones(
    case: str, kind: str, rows: int, examples: int, as_gpu: Callable[..., None]
) -> None:
    model: Any
    if kind == "full":
        model = _model(covariance="full")
    elif kind == "two layers":
        torch.manual_seed(0)
        model = TwoLayerModel(D, Z, (8,), upper_latent_size=2, upper_hidden_sizes=(6, 5)).double()
    else:
        model = _model()
        model = (model.encode, model.decode) if kind == "callables" else model
    small = estimate_log_likelihood(model, _data(), K, seed=SEED, **CASES[case])
    as_gpu(rows, examples)
    large = estimate_log_likelihood(model, _data(), K, seed=SEED, **CASES[case])
    _same(small, large)
    if "tolerance" in case and kind == "iwae":
        assert len(set(small.spent.tolist())) > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"compile": True}, {}])
def test_large_batches_in_single_precision(
    how: dict[str, Any], as_gpu: Callable[..., None]
) -> None:
    """To the rounding of the matrix products, which is that of 8 bits in bfloat16."""
    model, x = _model().float(), _data().float()
    if "compile" in how:
        model.decoder.trunk = nn.Sequential(*model.decoder.trunk)
    small = estimate_log_likelihood(model, x, K, seed=SEED)
    as_gpu()
    large = estimate_log_likelihood(model, x, K, seed=SEED, **how)
    tolerance = 0.05 if "dtype" in how else 1e-4
    torch.testing.assert_close(
        small.log_likelihood, large.log_likelihood, rtol=tolerance, atol=tolerance
    )
    assert torch.equal(small.spent, large.spent)


# --- memory runs out --------------------------------------------------------------------------


class Small:
    """A model for which memory runs out above some rows, or examples; keeps what it was asked."""

    def __init__(
        self, rows: int = 10**9, examples: int = 10**9, error: Exception | None = None
    ) -> None:
        self.model = _model()
        self.rows, self.examples = rows, examples
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        self.asked: list[int] = []
        self.encoded: list[int] = []

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded.append(len(x))
        if len(x) > self.examples:
            raise self.error
        return self.model.encode(x)

    def decode(self, z: Tensor) -> Any:
        rows = z.shape[:-1].numel()
        self.asked.append(rows)
        if rows > self.rows:
            raise self.error
        return self.model.decode(z)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("aoti_torch_empty_strided( 3, sizes) API call failed at tensor.h, line 90"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 3, 17, 63])
def test_fewer_rows_where_memory_runs_out(
    rows: int, error: Exception | None, as_gpu: Callable[..., None]
) -> None:
    expected = estimate_log_likelihood(_model(), _data(), K, seed=SEED)
    as_gpu(rows=92)
    small = Small(rows, error=error)
    _same(expected, estimate_log_likelihood(small, _data(), K, seed=SEED))
    failed = [n for n in small.asked[2:] if n > rows]  # after the trial
    # It halves, in the first batch, and remembers: 4 · 23 rows at first.
    assert len(failed) <= 8
    assert failed == sorted(failed, reverse=True)
    assert sum(n for n in small.asked if n <= rows) >= N * K


@pytest.mark.parametrize("tolerance", [None, 0.3])
@pytest.mark.parametrize("examples", [1, 2, 3])
def test_fewer_examples_where_memory_runs_out(
    examples: int, tolerance: float | None, as_gpu: Callable[..., None]
) -> None:
    options: dict[str, Any] = {"tolerance": tolerance, "max_k": tolerance and 300}
    expected = estimate_log_likelihood(_model(), _data(), K, seed=SEED, **options)
    as_gpu(rows=92, examples=8)
    small = Small(rows=5, examples=examples)
    _same(expected, estimate_log_likelihood(small, _data(), K, seed=SEED, **options))
    assert sum(n > examples for n in small.encoded) <= 3


def test_memory_may_run_out_in_the_statistics(
    as_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a batch is in them by then: it is evaluated again."""
    expected = estimate_log_likelihood(_model(), _data(), K, seed=SEED)
    as_gpu(rows=50, examples=5)
    monkeypatch.setattr(engine, "PENDING", 4)
    monkeypatch.setattr(engine, "PENDING_CHUNKS", 1)
    original, calls = statistics.ParetoTail.add, []

    def add(self: Any, log_w: Tensor) -> None:
        calls.append(len(log_w))
        if len(log_w) > 1 and len(calls) % 2 == 0:
            raise torch.OutOfMemoryError("no more")
        original(self, log_w)

    monkeypatch.setattr(statistics.ParetoTail, "add", add)
    _same(expected, estimate_log_likelihood(_model(), _data(), K, seed=SEED))
    assert calls[0] > 1
    assert calls[-1] == 1


def test_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small(rows=10)
    _same(
        estimate_log_likelihood(_model(), _data(), K, seed=SEED),
        estimate_log_likelihood(small, _data(), K, seed=SEED),
    )
    assert small.asked[0] == N * K  # no trial there


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("limits", [{"rows": 0}, {"examples": 0}])
def test_nothing_fits(limits: dict[str, int], gpu: bool, as_gpu: Callable[..., None]) -> None:
    if gpu:
        as_gpu()
    with pytest.raises(torch.OutOfMemoryError, match=r"batch_size = 1 and chunk = 1.*Tried to"):
        estimate_log_likelihood(Small(**limits), _data(), K)


@pytest.mark.parametrize("gpu", [False, True])
def test_another_error_is_no_lack_of_memory(gpu: bool, as_gpu: Callable[..., None]) -> None:
    if gpu:
        as_gpu(rows=200)
    small = Small(rows=60, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        estimate_log_likelihood(small, _data(), K)
    assert sum(n > 60 for n in small.asked) == 1


def test_what_is_done_is_kept_when_memory_runs_out_for_good(
    tmp_path: Path, as_gpu: Callable[..., None]
) -> None:
    path = tmp_path / "partial.npz"
    as_gpu(rows=92, examples=4)
    small, settings = Small(), {"seed": SEED}

    def decode(z: Tensor) -> Any:
        if len(small.encoded) > 4:  # the trials, and two batches
            raise torch.OutOfMemoryError("no more")
        return small.decode(z)

    with pytest.raises(torch.OutOfMemoryError, match="batch_size = 1"):
        estimate_log_likelihood((small.encode, decode), _data(), K, partial=path, **settings)
    done = PartialResults(N, path, read_settings(path) or {}).done
    assert 4 <= int(done.sum()) < N
    small.encoded.clear()
    _same(
        estimate_log_likelihood(_model(), _data(), K, seed=SEED),
        estimate_log_likelihood((small.encode, small.decode), _data(), K, **settings),
    )


@pytest.mark.parametrize("gpu", [False, True])
def test_given_sizes_are_kept_and_give_way_with_a_word(
    gpu: bool, as_gpu: Callable[..., None]
) -> None:
    expected = estimate_log_likelihood(_model(), _data(), K, seed=SEED)
    if gpu:
        as_gpu(rows=7)
    small = Small()
    estimate_log_likelihood(small, _data(), K, batch_size=4, chunk=10)
    assert set(small.asked[2 * gpu :]) == {40, 12, 30, 9}
    small = Small(rows=21)
    with pytest.warns(RuntimeWarning, match=r"batch_size = 4, chunk = 10 .*with 20 rows") as told:
        result = estimate_log_likelihood(small, _data(), K, batch_size=4, chunk=10, seed=SEED)
    assert len(told) == 1
    _same(expected, result)


def test_a_batch_of_several_processes_is_not_divided() -> None:
    """The others would wait for the rest of it."""
    limits = Limits(whole=True)
    with pytest.raises(torch.OutOfMemoryError, match="batch_size = 2 and chunk = 1, which is 2"):
        list(fitting([(0, 2)], limits, lambda i, j: Small(examples=1).encode(_data(2))))


def test_a_real_allocation_that_fails() -> None:
    mean = torch.zeros(1, 1, 100_000)
    with pytest.raises(RuntimeError) as lack:
        torch.ops.dvae_fast.sample_latent(mean, mean, 2**31, torch.tensor([1]), 0, 0)
    assert out_of_memory(lack.value)
    with pytest.raises(RuntimeError) as lack:
        torch.empty(2**50)
    assert out_of_memory(lack.value)
    assert not out_of_memory(ValueError("out of memory"))
    assert not out_of_memory(RuntimeError("expected a tensor"))


# --- waits, and what is launched --------------------------------------------------------------

VIEWS = {
    "view", "_unsafe_view", "t", "unsqueeze", "slice", "select", "split", "split_with_sizes",
    "expand", "detach", "unbind", "alias", "transpose", "empty", "_reshape_alias", "diagonal",
}  # fmt: skip
WAITS = {
    "_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select",
    "unique_consecutive", "_unique2",
}  # fmt: skip


class Launched(TorchDispatchMode):
    """Counts the operators that a GPU would get, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("proposal", ["posterior", "corrupted", "mixture"])
def test_nothing_waits_inside_a_batch(
    proposal: str, covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values, where to look at one on the host, or to fetch it, is an error.

    10,000 MNIST examples by 5,000 samples are 20 batches of some 190 operators, each a kernel or a
    few; of 65,536 rows at once they were 770 batches.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(batching, "Fetch", lambda t: t)
    model = make_model("iwae", 784, 50, (200, 200), covariance=covariance).to("meta")
    how = Proposal(proposal, None if proposal == "posterior" else Masking(0.3), 10)
    x = torch.empty(500, 784, device="meta")
    key = torch.empty(1, dtype=torch.int64, device="meta")
    source = importance.ModelSource(Evaluated(model), how, x, 784)
    evaluation = engine.Evaluation(
        source, key, 5000, 5000, None, engine.CURVE, engine.Sizes(500, 1667, 1667 * 500, True),
        sharing.Share(), Limits(),
    )  # fmt: skip
    with torch.no_grad(), Launched() as launched:
        batch = evaluation.batch(Given(x), 0)
    assert batch._fetch.shape == (500, 6 + 2 * len(engine.CURVE))
    assert not launched.counts.keys() & WAITS
    assert launched.counts["linear_log_weights"] == 3
    assert launched.counts["topk"] == 1  # the statistics, once
    if covariance == "diagonal":
        assert launched.counts.total() <= (420 if proposal == "mixture" else 250)
    # What a test without values would not notice.
    with pytest.raises((RuntimeError, NotImplementedError)):
        (x.sum() > 0).item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.cpu()


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_fetched_once_after_the_next_is_launched(
    case: str, as_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = engine.Evaluation.batch

    def batch(self: Any, x: Tensor, first: int) -> Any:
        with Launched() as launched:
            result = original(self, x, first)
        waits = sum(launched.counts[name] for name in WAITS)
        # With a tolerance, once for each time that the samples are doubled.
        assert waits == 0
        events.append("launch")
        return result

    def get(self: Fetch) -> Tensor:
        events.append("fetch")
        return self._from

    as_gpu()
    monkeypatch.setattr(engine.Evaluation, "batch", batch)
    monkeypatch.setattr(Fetch, "get", get)
    told: list[EvaluationProgress] = []

    def progress(state: EvaluationProgress) -> None:
        events.append("tell")
        told.append(state)

    estimate_log_likelihood(_model(), _data(), K, progress=progress, **CASES[case])
    assert events == [
        "launch", "launch", "fetch", "tell", "launch", "fetch", "tell", "fetch", "tell",
    ]  # fmt: skip
    assert [t.examples for t in told] == [4, 8, 11]
    assert {t.total for t in told} == {11}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["progress", "batch"])
def test_what_is_launched_is_kept_when_interrupted(
    where: str,
    error: type[BaseException],
    tmp_path: Path,
    as_gpu: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "partial.npz"
    told: list[int] = []
    original = engine.Evaluation.batch

    def batch(self: Any, x: Tensor, first: int) -> Any:
        if where == "batch" and first == 8:
            raise error
        return original(self, x, first)

    def progress(state: EvaluationProgress) -> None:
        told.append(state.examples)
        if where == "progress":
            raise error

    as_gpu()
    monkeypatch.setattr(engine.Evaluation, "batch", batch)
    with pytest.raises(error):
        estimate_log_likelihood(_model(), _data(), K, seed=SEED, partial=path, progress=progress)
    assert told == [4]
    done = PartialResults(N, path, read_settings(path) or {}).done
    assert done.tolist() == [True] * 8 + [False] * 3
    monkeypatch.setattr(engine.Evaluation, "batch", original)
    whole = estimate_log_likelihood(_model(), _data(), K, seed=SEED, partial=path)
    _same(estimate_log_likelihood(_model(), _data(), K, seed=SEED), whole)
    # All of it is done now: not even a trial.
    monkeypatch.setattr(functional, "sample_latent", lambda *_, **__: pytest.fail("drawn again"))
    _same(whole, estimate_log_likelihood(_model(), _data(), K, seed=SEED, partial=path))


def test_a_lost_gpu_hides_no_error(
    tmp_path: Path, as_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that can no longer be fetched are lost; those before are kept."""
    path, small = tmp_path / "partial.npz", Small()
    as_gpu()
    gone: list[bool] = []
    original = Fetch.get

    def get(self: Fetch) -> Tensor:
        if gone:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return original(self)

    def encode(x: Tensor) -> Any:
        if len(small.encoded) == 4:  # partial's look at the model, the trial, two batches
            gone.append(True)
            raise ValueError("the error")
        return small.encode(x)

    monkeypatch.setattr(Fetch, "get", get)
    with pytest.raises(ValueError, match="the error"):
        estimate_log_likelihood((encode, small.decode), _data(), K, partial=path)
    assert int(PartialResults(N, path, read_settings(path) or {}).done.sum()) == 4


def test_the_tolerance_takes_unsure_examples_together(as_gpu: Callable[..., None]) -> None:
    """One decoding a doubling and chunk, not one for each example."""
    options: dict[str, Any] = {"tolerance": 1e-9, "max_k": 4 * K}
    one, all_ = Small(), Small()
    estimate_log_likelihood(one, _data(), K, seed=SEED, **options)
    as_gpu(rows=10**6, examples=512)
    estimate_log_likelihood(all_, _data(), K, seed=SEED, **options)
    assert one.asked == all_.asked[2:]
    assert all_.asked[2:] == [N * K, N * K, N * K, N * 2 * K]  # the pilot comes first


def test_no_tensor_is_made_on_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back from a GPU is on the host, wherever new tensors would be."""
    monkeypatch.setattr(batching, "free_memory", lambda device: 1 << 30)
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(9, 6), nn.Linear(3, 9)
    model = (lambda x: encoder(x).chunk(2, -1), decoder)
    x, corruption = torch.rand(7, 9).round(), Masking(0.3)

    def estimates() -> list[dict[str, Any]]:
        return [
            vars(estimate_log_likelihood(model, x, 50, seed=3, curve=(1, 7), **options))
            for options in (
                {"tolerance": 0.05},
                {"proposal": "mixture", "corruption": corruption, "copies": 3},
                {"proposal": "corrupted", "corruption": corruption},
            )
        ]

    expected = estimates()
    with torch.device("meta"):
        found = estimates()
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(one[name], value, rtol=0, atol=0, equal_nan=True)
