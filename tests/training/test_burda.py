"""The protocol of Burda's code: its Adam, rates, batches, images, and the last epoch kept."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from interrupts import StopAfter

from dvae_fast.data import Dataset, load_dataset
from dvae_fast.files import load_tensors
from dvae_fast.models import load_model
from dvae_fast.reproduction.rows import ROWS, SCALES
from dvae_fast.training import OptionError, default_config, learning_rate, stopping, train
from dvae_fast.training.optimizers import OPTIMIZERS, BurdaAdam, make_optimizer
from dvae_fast.training.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dvae_fast.training import TrainConfig

PROTOCOL = {"optimizer": "burda", "order": "file", "keep": "last", "binarise": "dynamic",
            "lr_schedule": "stepwise_rounded"}  # fmt: skip


def tiny(**options: Any) -> TrainConfig:
    values = {"samples": 3, "batch_size": 237, "latent_size": 4, "hidden_sizes": (9, 7),
              "epochs": 4, "seed": 11, "threads": 1, "model": "iwae"}  # fmt: skip
    return default_config(**(values | PROTOCOL | options))


def transcribed(
    start: NDArray[Any], gradients: list[NDArray[Any]], rates: list[float]
) -> list[NDArray[Any]]:
    """optimizers.py of github.com/yburda/iwae in NumPy: the parameter after each update.

    There the gradient is of the bound, which rises, and every update of a Theano function is made
    of what the shared variables held before the call.
    """
    beta_1, beta_2 = 0.99, 0.999
    param, first, second = start.copy(), np.zeros_like(start), np.ones_like(start)
    timestep, after = 1.0, []
    for grad, rate in zip(gradients, rates, strict=True):
        alpha = rate * np.sqrt(1 - beta_2**timestep) / (1 - beta_1**timestep)
        updates = {
            "timestep": timestep + 1,
            "first": beta_1 * first + (1 - beta_1) * grad,
            "second": beta_2 * second + (1 - beta_2) * np.square(grad),
            "param": param + alpha * first / (np.sqrt(second) + 1e-4),
        }
        timestep, first, second = updates["timestep"], updates["first"], updates["second"]
        param = updates["param"]
        after.append(param)
    return after


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("on_device", [False, True])
def test_the_update_is_that_of_the_code(dtype: torch.dtype, on_device: bool) -> None:
    random, steps, examples = np.random.default_rng(3), 40, 7
    shapes = [(3, 5), (5,), ()]
    starts = [random.normal(size=shape) for shape in shapes]
    # From far below ε to far above it, so that where ε stands shows.
    of_sum = [[random.normal(size=s) * 10.0 ** random.integers(-6, 3) for s in shapes]
              for _ in range(steps)]  # fmt: skip
    rates = [0.1 if i < 25 else 0.072 for i in range(steps)]
    params = [torch.tensor(s, dtype=dtype, requires_grad=True) for s in starts]
    optimizer = BurdaAdam(params, rates[0], examples, on_device=on_device)
    expected = [transcribed(start, [g[i] for g in of_sum], rates) for i, start in enumerate(starts)]
    tolerance = 1e-6 if on_device or dtype == torch.float32 else 1e-13  # of rates in float32
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = torch.tensor(rates[t]) if on_device else rates[t]
        for p, g in zip(params, of_sum[t], strict=True):
            p.grad = torch.tensor(-g / examples, dtype=dtype)  # of the mean loss
        optimizer.step()
        for p, start, want in zip(params, starts, expected, strict=True):
            error = np.abs(p.detach().numpy() - want[t]).max()
            assert error <= tolerance * (np.abs(want[t] - start).max() + np.abs(start).max()), t
    assert (
        min(np.abs(want[-1] - start).max() for start, want in zip(starts, expected, strict=True))
        > 0.01
    )
    # The first step moves nothing: the moments before it are zero.
    assert np.array_equal(expected[0][0], starts[0])


def test_a_parameter_without_a_gradient_stays() -> None:
    moving, still = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = BurdaAdam([moving, still], 0.1, 5)
    for _ in range(3):
        moving.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert torch.equal(still, torch.ones(3))
    assert (moving < 1).all()
    assert torch.equal(optimizer.state[still]["exp_avg_sq"], torch.ones(3))
    # What joins later has steps of its own, and the first of them moves nothing.
    alone = torch.ones(3, requires_grad=True)
    other = BurdaAdam([alone], 0.1, 5)
    for _ in range(4):
        moving.grad, still.grad, alone.grad = (torch.full((3,), 2.0) for _ in range(3))
        optimizer.step()
        other.step()
        torch.testing.assert_close(still, alone)
    assert [float(optimizer.state[p]["step"]) for p in (moving, still)] == [7, 4]


def test_a_group_may_join_and_what_is_wrong_is_refused() -> None:
    first, late = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = BurdaAdam([first], 0.1, 5)
    optimizer.add_param_group({"params": [late], "lr": 0.2})
    for _ in range(3):
        for p in (first, late):
            p.grad = torch.full((3,), 2.0)
        optimizer.step()
    torch.testing.assert_close(1 - late, 2 * (1 - first))
    twins = [p.detach().clone().requires_grad_() for p in (first, late)]
    other = BurdaAdam([{"params": twins[:1], "lr": 0.1}, {"params": twins[1:], "lr": 0.2}], 0.1, 5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (first * late).sum()
        loss.backward()
        return loss.detach()

    (twins[0] * twins[1]).sum().backward()
    expected = (twins[0] * twins[1]).sum().detach()
    assert torch.equal(optimizer.step(closure), expected)
    assert other.step() is None
    assert torch.equal(first, twins[0])
    assert torch.equal(late, twins[1])
    before = first.clone()
    table = torch.ones(4, 3, requires_grad=True)
    optimizer.add_param_group({"params": [table]})
    table.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (4, 3), check_invariants=True)
    with pytest.raises(RuntimeError, match="gradients must be dense for Burda's Adam"):
        optimizer.step()
    assert torch.equal(first, before)


@pytest.mark.parametrize("layout", ["plain", "transposed", "bfloat16"])
def test_parameters_and_gradients_may_lie_as_they_like(layout: str) -> None:
    """Transposed or of 16 bits torch's operators do what one of ours does otherwise."""
    g = torch.Generator().manual_seed(5)
    start, rates = torch.randn(37, 2001, generator=g), (0.1, 0.05, 0.1)
    grads = [torch.randn(2001, 37, generator=g).t() for _ in rates]
    expected = transcribed(start.double().numpy(), [-5 * t.double().numpy() for t in grads],
                           [*rates])  # fmt: skip
    given = start.t().contiguous().t() if layout == "transposed" else start.clone()
    given = (given.bfloat16() if layout == "bfloat16" else given).requires_grad_()
    optimizer = BurdaAdam([given], 0.0, 5)
    for rate, grad, wanted in zip(rates, grads, expected, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        given.grad = grad.to(given.dtype)
        version = given._version
        optimizer.step()
        assert given._version > version
        tolerance = 0.05 if layout == "bfloat16" else 1e-6
        torch.testing.assert_close(
            given.detach().double(), torch.from_numpy(wanted), rtol=tolerance, atol=tolerance
        )


def test_rates_and_epochs_are_those_of_the_code() -> None:
    c = tiny(epochs=3280, learning_rate=1e-3)
    expected = [
        1e-4 * round(10.0 ** (1 - (i - 1) / 7.0), 1)
        for i in range(1, 9)
        for _ in range(3 ** (i - 1))
    ]
    rates = [learning_rate(c, epoch) for epoch in range(3280)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert len(set(rates)) == 8
    short = tiny(epochs=40, learning_rate=1e-3)
    assert {learning_rate(short, e) for e in range(40)} <= set(rates)


def test_batches_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    c = tiny()
    run = Run(c, tmp_path, c.load_data())
    read: list[torch.Tensor] = []
    images = type(run.images)
    run.images = _recording(run.images, read)
    for _ in range(2):
        run.start_epoch()
        while not run.epoch_done():
            run.step()
        run.finish_epoch()
    assert isinstance(run.images, images)
    n = len(run.data.train)
    assert torch.equal(torch.cat(read), torch.arange(n).repeat(2))
    assert [len(index) for index in read[:6]] == [237] * 5 + [n - 5 * 237]
    # and drawn anew at each reading
    first, second = (run.images.train_batch(torch.arange(9), run.generator) for _ in range(2))
    assert not torch.equal(first, second)


def _recording(data: Dataset, read: list[torch.Tensor]) -> Dataset:
    plain = data.train_batch

    def train_batch(index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        read.append(index)
        return plain(index, generator)

    object.__setattr__(data, "train_batch", train_batch)
    return data


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_epoch_is_kept_and_a_stopped_run_ends_the_same(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Best in the second epoch, and worse after it.
    monkeypatch.setattr(Run, "bound", lambda run, *_: -1.0 - abs(run.epoch - 1))
    c = tiny(dtype=dtype)
    metrics = train(c, tmp_path / "whole", tensorboard=False)
    bounds = [line["valid_bound"] for line in metrics["history"]]
    assert bounds == [-2, -1, -2, -3]
    assert metrics["best"] == {"epoch": 4, "valid_bound": -3}
    best = train(tiny(dtype=dtype, keep="best"), tmp_path / "best", tensorboard=False)["best"]
    assert best == {"epoch": 2, "valid_bound": -1}
    tensors, _ = load_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    kept = load_model(tmp_path / "whole").state_dict()
    assert all(torch.equal(kept[name], tensors[f"model/{name}"]) for name in kept)
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)
    stopped = train(c, tmp_path / "stopped", tensorboard=False, on_progress=StopAfter(9))
    assert stopped["status"] == "interrupted"
    again = train(c, tmp_path / "stopped", resume=True, tensorboard=False)
    wanted = [line["train_bound"] for line in metrics["history"]]
    assert [line["train_bound"] for line in again["history"]] == wanted
    others, _ = load_tensors(tmp_path / "stopped" / "checkpoint.safetensors")
    assert others.keys() == tensors.keys()
    assert all(torch.equal(others[name], tensors[name]) for name in tensors)
    steps = {float(t) for name, t in tensors.items() if name.endswith("/step")}
    assert steps == {6 * 4}


def test_the_first_59600_images_of_mnist_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sixty, ten = np.zeros((60000, 28, 28), np.uint8), np.zeros((10000, 28, 28), np.uint8)
    numbers = np.arange(60000)
    sixty[:, 0, 0], sixty[:, 0, 1] = numbers // 256, numbers % 256
    labels = {
        "train_labels": (numbers % 10).astype(np.uint8),
        "test_labels": np.zeros(10000, np.uint8),
    }
    np.savez(tmp_path / "mnist.npz", train_images=sixty, test_images=ten, **labels)
    monkeypatch.setenv("DVAE_FAST_DATA", str(tmp_path))
    config = ROWS["burda-exact-vae-k1"].config(SCALES["full"], 0, None, "cpu")
    data = config.load_data()
    for part, expected in ((data.train, numbers[:59600]), (data.valid, numbers[59600:])):
        found = (part[:, 0] * 255).round() * 256 + (part[:, 1] * 255).round()
        assert np.array_equal(found.numpy(), expected)
    assert data.labels is not None
    assert np.array_equal(data.labels["train"].numpy(), numbers[:59600] % 10)
    assert np.array_equal(data.labels["valid"].numpy(), numbers[59600:] % 10)
    assert float(data.mean[0]) == pytest.approx((numbers[:59600] // 256).mean() / 255, rel=1e-6)


def test_validation_images_are_moved_or_the_number_refused() -> None:
    data = load_dataset("digits")
    moved = data.moved(150)
    assert torch.equal(moved.train, torch.cat([data.train, data.valid[:150]]))
    assert torch.equal(moved.valid, data.valid[150:])
    assert torch.equal(moved.test, data.test)
    assert data.moved(0) is data
    some = tiny(valid_to_train=150, train_examples=1300, valid_examples=7).load_data()
    assert (len(some.train), len(some.valid)) == (1300, 7)
    assert torch.equal(some.train[1297:], data.valid[:3])
    message = "valid_to_train does not fit: so many of digits's 200 validation examples must leave"
    with pytest.raises(OptionError, match=message):
        tiny(valid_to_train=200).load_data()
    with pytest.raises(ValueError, match="valid_to_train must be an integer >= 0, got -1"):
        tiny(valid_to_train=-1)
    own = Dataset.from_arrays(np.eye(20, 6), binarise="none").moved(1)
    assert (len(own.train), len(own.valid)) == (17, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adam, burda; got 'sgd'"),
        ({"order": "random"}, "order must be one of shuffled, file; got 'random'"),
        ({"keep": "first"}, "keep must be one of best, last; got 'first'"),
    ],
)
def test_wrong_names_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_rows_have_the_protocol_and_the_published_figures() -> None:
    rows = {name: row for name, row in ROWS.items() if row.table == "burda-exact"}
    figures = {name.removeprefix("burda-exact-"): row.published.value
               for name, row in rows.items() if row.published}  # fmt: skip
    assert figures == {
        "vae-k1": 86.76, "vae-k5": 86.47, "vae-k50": 86.35, "iwae-k5": 85.54, "iwae-k50": 84.78,
        "2-vae-k1": 85.33, "2-vae-k5": 85.01, "2-vae-k50": 84.78, "2-iwae-k5": 83.89,
        "2-iwae-k50": 82.90,
    }  # fmt: skip
    for row in rows.values():
        c = row.config(SCALES["full"], 0, None, "cpu")
        assert {name: getattr(c, name) for name in PROTOCOL} == PROTOCOL
        assert (c.batch_size, c.epochs, c.learning_rate) == (20, 3280, 1e-3)
        assert (c.valid_to_train, c.activation, row.comparable) == (9600, "tanh", "nll")
    two = rows["burda-exact-2-vae-k5"].config(SCALES["full"], 0, None, "cpu")
    assert (two.model, two.objective, two.samples) == ("two_layer", "elbo", 5)
    assert (two.latent_size, two.upper_latent_size) == (100, 50)
    assert (two.hidden_sizes, two.upper_hidden_sizes) == ((200, 200), (100, 100))


def test_every_optimiser_is_made_for_graphs_too() -> None:
    for name in OPTIMIZERS:
        p = torch.ones(2, requires_grad=True)
        made = make_optimizer(name, [p], 0.5, 3)
        assert made.param_groups[0]["lr"] == 0.5
        assert not made.param_groups[0]["capturable"]
