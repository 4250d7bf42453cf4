"""The trainer: exact resumption, randomness of its own, what it keeps, and how it stops."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from interrupts import StopAfter

from dvae_fast.files import CHECKPOINT, CheckpointError, load_tensors
from dvae_fast.models import load_model
from dvae_fast.models.saving import MODEL
from dvae_fast.training import (
    CONFIG,
    METRICS,
    NonFiniteError,
    Progress,
    TrainConfig,
    board,
    default_config,
    kl_weight,
    learning_rate,
    load_config,
    stopping,
    train,
)
from dvae_fast.training.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

N = 1297  # training images of the digits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    old = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(old)


def tiny(**options: Any) -> TrainConfig:
    """M, K, batch and sizes that all differ; batches that do not divide the data: 5 · 237 + 112."""
    values = {"copies": 2, "samples": 3, "batch_size": 237, "latent_size": 4,
              "hidden_sizes": (9, 7), "epochs": 2, "seed": 11}  # fmt: skip
    return default_config(**(values | options))


STEPS = math.ceil(N / 237)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)


def state_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, header = load_tensors(folder / CHECKPOINT)
    for line in header["history"]:
        del line["seconds"], line["examples_per_second"]
    del header["seconds"], header["config"]
    return tensors, header


def assert_same_state(a: Path, b: Path) -> None:
    (tensors, header), (others, other) = state_of(a), state_of(b)
    assert header == other
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


# --- configuration ----------------------------------------------------------------------------


def test_defaults_suit_the_model_and_the_data() -> None:
    c = default_config()
    assert (c.model, c.data, c.binarise, c.likelihood) == (
        "diwae", "digits", "dynamic", "bernoulli",
    )  # fmt: skip
    assert (c.corruption, c.level, c.copies, c.samples) == ("salt_and_pepper", 0.05, 1, 5)
    assert default_config() == TrainConfig()
    assert default_config("dvae").samples == 1
    c = default_config("vae", "mnist")
    assert (c.corruption, c.level, c.samples, c.copies) == ("identity", 0.0, 1, 1)
    c = default_config("diwae", "frey")
    assert (c.binarise, c.likelihood, c.corruption) == ("none", "gaussian", "gaussian")
    assert default_config("diwae", "frey", binarise="once").likelihood == "bernoulli"
    grey = {"binarise": "none", "likelihood": "discretised_logistic"}
    assert default_config("diwae", "mnist", **grey).corruption == "gaussian"
    assert default_config("vae", "frey", likelihood="discretised_logistic").binarise == "none"
    assert [default_config(data=d).learning_rate for d in ("digits", "mnist")] == [3e-3, 1e-3]
    assert default_config(level=None, samples=None) == TrainConfig()
    assert default_config("dvae", objective="ciwae").samples == 5
    assert default_config("iwae", objective="elbo_kl").samples == 1
    assert default_config("vae", estimator="vimco").samples == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "gan"},
         "model must be one of bernoulli, vae, iwae, dvae, diwae, two_layer; got 'gan'"),
        ({"data": "cifar"}, "data must be one of digits, mnist, frey, omniglot, fashion_mnist, "),
        ({"binarise": "x"}, "binarise must be one of dynamic, once, fixed, none; got 'x'"),
        ({"binarise": "fixed"}, "binarise must be one of dynamic, once, none for digits"),
        ({"corruption": "blur"}, "corruption must be one of identity, masking, salt_and_pepper"),
        ({"level": 1.5}, "level does not fit salt_and_pepper: rate must be in [0, 1], got 1.5"),
        ({"corruption": "gaussian", "level": -1.0}, "level does not fit gaussian: std must be"),
        ({"model": "vae", "corruption": "masking"}, "corruption must be identity for vae (only "
                                                    "bernoulli, dvae, diwae, two_layer"),
        ({"gradient": "score", "copies": 2, "objective": "mixture"},
         "objective must be a mean over corruptions for a level learnt by the score function, one"),
        ({"covariance": "full", "objective": "vr"}, "objective must be elbo or iwae with the"),
        ({"gradient": "magic"}, "gradient must be one of pathwise, score, relaxed; got"),
        ({"gradient": "pathwise"}, "gradient does not fit salt_and_pepper 0.05: estimator"),
        ({"gradient": "score"}, "gradient does not fit salt_and_pepper 0.05: copies must be >= 2"),
        ({"gradient": "relaxed", "level": 1.0}, "salt_and_pepper 1: rate must be in (0, 1)"),
        ({"model": "vae", "gradient": "score"}, "gradient does not fit identity 0:"),
        ({"copies": 0}, "copies must be >= 1, got 0"),
        ({"samples": 0}, "samples must be >= 1, got 0"),
        ({"samples": True}, "samples must be an int, got bool"),
        ({"objective": "gan"}, "objective must be one of elbo, elbo_kl, iwae"),
        ({"objective": "vr_max", "estimator": "dreg"}, "estimator must be one of standard, stl for "
                                                       "vr_max"),
        ({"estimator": "reinforce"}, "estimator must be one of standard, stl, dreg, vimco"),
        ({"estimator": "vimco", "samples": 1}, "K must be >= 2 for vimco"),
        ({"beta": 0.5}, "beta must be None unless the objective is ciwae; got 0.5 for iwae"),
        ({"model": "vae", "alpha": 0.5}, "alpha must be None unless the objective is vr"),
        ({"objective": "ciwae", "beta": 2.0}, "beta must be a number, in [0, 1]; got 2.0"),
        ({"free_bits": 0.1}, "free_bits must be 0 unless the objective is elbo_kl"),
        ({"kl_warmup": -1}, "kl_warmup must be an integer >= 0, got -1"),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"latent_size": 0}, "latent_size must be >= 1, got 0"),
        ({"hidden_sizes": (5, 0)}, "hidden_sizes[1] must be >= 1, got 0"),
        ({"decoder_hidden_sizes": (0,)}, "decoder_hidden_sizes[0] must be >= 1, got 0"),
        ({"train_examples": 0}, "train_examples must be an integer >= 1, got 0"),
        ({"valid_examples": 0}, "valid_examples must be an integer >= 1, got 0"),
        ({"activation": "sine"}, "activation must be one of softplus, tanh, relu"),
        ({"likelihood": "cauchy"}, "likelihood must be one of bernoulli, gaussian"),
        ({"likelihood": "negative_binomial", "data": "frey"},
         "likelihood must not be negative_binomial for frey: it is of counts"),
        ({"likelihood": "discretised_logistic", "data": "mnist"},
         "its values are one of 256 grey levels, and the data are binary values; take"),
        ({"likelihood": "discretised_logistic", "binarise": "none"}, "data are grey values in"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number > 0, got nan"),
        ({"lr_schedule": "cosine"}, "lr_schedule must be one of constant, stepwise, stepwise_"),
        ({"seed": -1}, "seed must be an integer from 0 to 9223372036854775807, got -1"),
        ({"data_seed": 2**32}, "data_seed must be an integer from 0 to 4294967295"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"threads": 10**9}, "threads must be <= 1024, got 1000000000"),
    ],
)  # fmt: skip
def test_wrong_fields_name_the_rule(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        default_config(**options)
    assert message in str(caught.value)


def test_configuration_goes_through_json(tmp_path: Path) -> None:
    c = tiny(threads=1, lr_schedule="stepwise", decoder_hidden_sizes=(5,))
    assert TrainConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c
    with pytest.raises(
        ValueError, match=r"an option in the configuration must be one of .*; got 'colour'"
    ):
        TrainConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match=r"one of epochs, .*'epoch'; did you mean 'epochs'"):
        default_config(epoch=1)


def test_numbers_of_numpy_and_whole_rates_are_numbers() -> None:
    given = {"learning_rate": 1, "epochs": np.int64(3), "level": np.float32(0.25)}
    c = default_config(**given, beta=np.float64(0.5), objective="ciwae")
    assert json.loads(json.dumps(c.to_dict())) == c.to_dict()
    assert (c.learning_rate, c.epochs, c.level, c.beta) == (1.0, 3, 0.25, 0.5)
    with pytest.raises(ValueError, match="epochs must be an integer >= 1, got True"):
        default_config(epochs=True)


def test_configuration_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not the folder of a run: it holds no config"):
        load_config(tmp_path)
    (tmp_path / CONFIG).write_text('{"samples": 0}')
    with pytest.raises(
        CheckpointError, match=r"config\.json is not a configuration that fits: samples"
    ):
        load_config(tmp_path)


def test_stepwise_rates_are_those_of_the_paper() -> None:
    c = default_config(epochs=3280, lr_schedule="stepwise", learning_rate=1e-3)
    expected = [1e-3 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(expected) == 3280
    assert [learning_rate(c, e) for e in range(3280)] == pytest.approx(expected, rel=1e-12)
    short = dataclasses.replace(c, epochs=40)
    rates = [learning_rate(short, e) for e in range(40)]
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)
    constant = dataclasses.replace(c, lr_schedule="constant", learning_rate=0.25)
    assert {learning_rate(constant, e) for e in range(3280)} == {0.25}


def test_the_rate_reaches_the_optimiser(tmp_path: Path) -> None:
    c = tiny(lr_schedule="stepwise", epochs=3, learning_rate=0.004)
    history = train(c, tmp_path, tensorboard=False)["history"]
    assert [line["learning_rate"] for line in history] == [learning_rate(c, e) for e in range(3)]
    for epoch in (0, 2):
        run = Run(c, tmp_path, c.load_data())
        before = run.parameters["decoder.output.bias"].detach().clone()
        run.epoch = epoch
        run.start_epoch()
        run.step()
        # Adam's first step is the rate itself, up to its epsilon, wherever there is a gradient.
        moved = (run.parameters["decoder.output.bias"] - before).abs().max().item()
        assert moved == pytest.approx(learning_rate(c, epoch), rel=1e-3)


def test_the_weight_of_the_divergence_rises_over_the_epochs(tmp_path: Path) -> None:
    c = tiny(kl_warmup=4, epochs=6)
    assert [kl_weight(c, e) for e in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert {kl_weight(tiny(), e) for e in range(6)} == {1.0}
    run = Run(c, tmp_path, c.load_data())
    for epoch, expected in ((0, 0.0), (3, 0.75), (5, 1.0)):
        run.epoch = epoch
        run.start_epoch()
        assert run.model.kl_weight == expected


def test_bounds_are_reported_without_the_weight(tmp_path: Path) -> None:
    """The first step's bound is of the same model and noise, whatever its gradient."""
    totals, moved = [], []
    for warmup in (0, 5):
        c = tiny(kl_warmup=warmup, objective="ciwae", estimator="dreg", beta=0.25)
        run = Run(c, tmp_path, c.load_data())
        run.start_epoch()
        run.step()
        totals.append(run.total.item())
        moved.append(run.parameters["encoder.output.weight"].detach())
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    assert not torch.equal(*moved)


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"objective": "elbo_kl", "free_bits": 0.2}, "elbo_kl (free_bits 0.2)"),
        (
            {"objective": "vr", "alpha": -1.0, "estimator": "dreg"},
            "vr (estimator dreg, alpha -1.0)",
        ),
        ({"model": "iwae", "copies": 4, "objective": "piwae"}, "piwae"),
        ({"estimator": "vimco"}, "iwae (estimator vimco)"),
    ],
)
def test_an_objective_is_trained_and_kept(
    options: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    c = tiny(epochs=1, **options)
    metrics = train(c, tmp_path, tensorboard=False)
    assert math.isfinite(metrics["test_bound"])
    assert load_config(tmp_path) == c
    model = load_model(tmp_path)
    assert model.objective == c.make_objective()
    assert str(model.objective) == shown
    assert (model.copies, model.samples) == (c.copies, c.samples)


# --- resuming, bit for bit --------------------------------------------------------------------


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(
    "options, stops",
    [
        ({}, [STEPS + 3]),  # in the middle of the second epoch
        ({"model": "dvae", "binarise": "once", "lr_schedule": "stepwise"}, [1]),
        (
            {"model": "vae", "copies": 1},
            [STEPS],
        ),  # after an epoch's last step, before its validation
        ({"model": "iwae", "copies": 1, "activation": "relu"}, [2, STEPS, 5, 1]),  # again and again
        ({"likelihood": "gaussian", "binarise": "none", "corruption": "gaussian"}, [2 * STEPS + 2]),
        ({"objective": "iwae_joint", "estimator": "dreg", "kl_warmup": 3}, [STEPS + 2]),
        ({"gradient": "score", "encoder": "gru", "covariance": "full"}, [STEPS + 1]),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(
    options: dict[str, Any], stops: list[int], tmp_path: Path
) -> None:
    config = tiny(epochs=4, **options)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = train(config, straight, tensorboard=False)
    done = 0
    for i, stop in enumerate(stops):
        torch.manual_seed(1000 + i)  # what else the process does is of no account
        torch.rand(17)
        part = train(config, broken, resume=i > 0, tensorboard=False, on_progress=StopAfter(stop))
        done += stop
        assert part["status"] == "interrupted"
        assert part["signal"] == signal.SIGINT
        assert "test_bound" not in part
        header = load_tensors(broken / CHECKPOINT)[1]
        examples = (done // STEPS) * N + (done % STEPS) * 237
        assert header["epoch"] * N + header["position"] == examples
    rest = train(config, broken, resume=True, tensorboard=False)
    assert rest["status"] == "finished"
    assert rest["test_bound"] == whole["test_bound"]
    assert rest["best"] == whole["best"]
    assert_same_state(straight, broken)
    a, b = load_model(straight).state_dict(), load_model(broken).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_best_model_from_before_an_interruption_stays_the_best(
    tmp_path: Path, every_step: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "bound", lambda run, *_: -float(run.epoch))  # falls
    config = tiny(epochs=3)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(config, straight, tensorboard=False)
    train(config, broken, tensorboard=False, on_progress=StopAfter(STEPS + 2))
    assert train(config, broken, resume=True, tensorboard=False)["best"]["epoch"] == 1
    assert_same_state(straight, broken)
    a, b = load_model(straight).state_dict(), load_model(broken).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_crash_loses_no_more_than_the_steps_since_the_checkpoint(
    tmp_path: Path, every_step: None
) -> None:
    config = tiny(epochs=3)

    class CrashError(Exception):
        pass

    class Crash(StopAfter):
        def __call__(self, _: object) -> None:
            self.left -= 1
            if self.left == 0:
                raise CrashError

    train(config, tmp_path / "straight", tensorboard=False)
    with pytest.raises(CrashError):
        train(config, tmp_path / "crashed", tensorboard=False, on_progress=Crash(STEPS + 4),
              checkpoint_seconds=0.0)  # fmt: skip
    header = load_tensors(tmp_path / "crashed" / CHECKPOINT)[1]
    assert (header["epoch"], header["position"]) == (1, 3 * 237)
    train(config, tmp_path / "crashed", resume=True, tensorboard=False)
    assert_same_state(tmp_path / "straight", tmp_path / "crashed")


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    train(tiny(epochs=3), tmp_path / "straight", tensorboard=False)
    train(tiny(epochs=2), tmp_path / "longer", tensorboard=False)
    again = train(tiny(epochs=2), tmp_path / "longer", tensorboard=False, resume=True)
    assert again["status"] == "finished"
    assert again["epochs_done"] == 2
    train(tiny(epochs=3), tmp_path / "longer", tensorboard=False, resume=True)
    assert_same_state(tmp_path / "straight", tmp_path / "longer")
    assert load_config(tmp_path / "longer").epochs == 3
    with pytest.raises(ValueError, match="epochs must be >= 3, the epochs done, to resume; got 2"):
        train(tiny(epochs=2), tmp_path / "longer", tensorboard=False, resume=True)


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path, tensorboard=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match="run_dir must not hold a run already, unless"):
        train(tiny(epochs=1), tmp_path, tensorboard=False)
    for other, message in (
        ({"samples": 4}, "samples must be as in the run to resume, 3; got 4"),
        ({"hidden_sizes": (9,)}, r"hidden_sizes must be as in the run to resume, \[9, 7\]; got"),
        ({"seed": 12}, "seed must be as in the run to resume, 11; got 12"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tiny(epochs=1, **other), tmp_path, tensorboard=False, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\.safetensors to resume from"):
        train(tiny(), tmp_path / "nowhere", tensorboard=False, resume=True)


# --- randomness -------------------------------------------------------------------------------


def test_a_run_neither_moves_nor_heeds_the_global_generator(tmp_path: Path) -> None:
    config = tiny()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    train(config, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    train(config, tmp_path / "b", on_epoch=lambda _: torch.manual_seed(3) and None)
    assert_same_state(tmp_path / "a", tmp_path / "b")


def test_the_seed_changes_everything_but_the_data(tmp_path: Path) -> None:
    data = tiny().load_data()
    a, b = (Run(tiny(seed=s), tmp_path, data) for s in (0, 1))
    for run in (a, b):
        run.start_epoch()
    assert not torch.equal(a.permutation, b.permutation)
    assert not torch.equal(a.model.encoder.trunk[0].weight, b.model.encoder.trunk[0].weight)
    assert a.valid_seed != b.valid_seed
    c = tiny(seed=1).load_data()
    assert torch.equal(c.evaluation("test"), data.evaluation("test"))
    d = tiny(data_seed=1).load_data()
    assert not torch.equal(d.test, data.test)


def test_every_epoch_reads_every_example_once(tmp_path: Path) -> None:
    config = tiny()
    run = Run(config, tmp_path, config.load_data())
    orders = []
    for _ in range(2):
        run.start_epoch()
        orders.append(run.permutation)
        while not run.epoch_done():
            run.step()
        run.finish_epoch()
    assert all(torch.equal(order.sort()[0], torch.arange(N)) for order in orders)
    assert not torch.equal(*orders)


def test_a_run_may_take_the_first_examples_alone(tmp_path: Path) -> None:
    whole = tiny(binarise="none").load_data()
    config = tiny(binarise="none", train_examples=250, valid_examples=31, epochs=1)
    data = config.load_data()
    assert torch.equal(data.train, whole.train[:250])
    assert torch.equal(data.valid, whole.valid[:31])
    assert torch.equal(data.test, whole.test)
    torch.testing.assert_close(data.mean, whole.train[:250].mean(0))
    run = Run(config, tmp_path, data)
    run.start_epoch()
    assert torch.equal(run.permutation.sort()[0], torch.arange(250))


# --- what is measured and kept ----------------------------------------------------------------


def test_the_training_bound_is_the_mean_over_examples(tmp_path: Path) -> None:
    """With parameters that do not move, and a last batch smaller than the others."""
    config = tiny(epochs=1, learning_rate=1e-30)
    record = train(config, tmp_path, tensorboard=False)["history"][0]
    run = Run(config, tmp_path, config.load_data())
    run.start_epoch()
    bounds = []
    for index in run.permutation.split(237):
        x = run.data.train_batch(index, run.generator)
        seed = torch.randint(0, 2**63 - 1, (1,), generator=run.generator)
        bounds.append(run.model.bound(x, seed))
    assert len(bounds[-1]) == N % 237 != 0
    assert record["train_bound"] == pytest.approx(torch.cat(bounds).mean().item(), rel=1e-6)


def test_the_best_model_is_kept_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(epochs=2), tmp_path / "two", tensorboard=False)
    after_two = load_tensors(tmp_path / "two" / CHECKPOINT)[0]
    bounds = iter([-30.0, -20.0, -25.0, -28.0, -21.5])
    monkeypatch.setattr(Run, "bound", lambda *_: next(bounds))
    metrics = train(tiny(epochs=4), tmp_path / "four", tensorboard=False)
    assert metrics["best"] == {"epoch": 2, "valid_bound": -20.0}
    assert metrics["test_bound"] == -21.5
    for name, parameter in load_model(tmp_path / "four").state_dict().items():
        assert torch.equal(parameter, after_two[f"model/{name}"]), name
    last = load_tensors(tmp_path / "four" / CHECKPOINT)[0]
    assert not torch.equal(last["model/decoder.output.bias"], last["best/decoder.output.bias"])


def test_reported_bounds_are_those_of_the_model_that_is_kept(tmp_path: Path) -> None:
    config = tiny()
    metrics = train(config, tmp_path, tensorboard=False)
    model, data = load_model(tmp_path), config.load_data()
    for split, value in (
        ("valid", metrics["best"]["valid_bound"]),
        ("test", metrics["test_bound"]),
    ):
        # Another seed: as many nats apart as the noise of M · K samples allows.
        bounds = torch.stack([model.bound(data.evaluation(split), s) for s in range(20)])
        mean, spread = bounds.mean().item(), bounds.mean(1).std().item()
        assert abs(value - mean) < 5 * spread + 1e-3
    assert metrics["best"]["valid_bound"] == max(h["valid_bound"] for h in metrics["history"])


def test_training_improves_the_bound(tmp_path: Path) -> None:
    config = tiny(epochs=8, learning_rate=0.01)
    untrained = Run(config, tmp_path, config.load_data())
    metrics = train(config, tmp_path, tensorboard=False)
    start = untrained.bound("valid", untrained.valid_seed)
    assert metrics["best"]["valid_bound"] > start + 0.5
    assert metrics["history"][-1]["train_bound"] > metrics["history"][0]["train_bound"] + 0.5


def test_metrics_file_is_complete(tmp_path: Path) -> None:
    config = tiny(threads=1)
    epochs: list[dict[str, float]] = []
    metrics = train(config, tmp_path, tensorboard=False, on_epoch=epochs.append)
    assert json.loads((tmp_path / METRICS).read_text()) == metrics
    assert TrainConfig.from_dict(metrics["config"]) == config == load_config(tmp_path)
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["versions"]["threads"] == 1
    assert metrics["history"] == epochs
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert metrics["parameters"] == sum(p.numel() for p in load_model(tmp_path).parameters())
    assert sorted(os.listdir(tmp_path)) == [
        CHECKPOINT, CONFIG, METRICS, "model.safetensors",
    ]  # fmt: skip


def test_progress_counts_up_to_the_end(tmp_path: Path, every_step: None) -> None:
    seen: list[Progress] = []
    train(tiny(), tmp_path, tensorboard=False, on_progress=seen.append)
    assert [p.examples for p in seen] == [
        e * N + min(237 * s, N) for e in range(2) for s in range(1, STEPS + 1)
    ]
    assert all(p.total_examples == 2 * N for p in seen)
    assert [p.epoch for p in seen] == [1] * STEPS + [2] * STEPS
    assert all(math.isfinite(p.bound) and p.examples_per_second > 0 for p in seen)
    assert seen[-1].seconds_left == 0


def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = train(tiny(), tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert {"bound/train", "bound/valid", "learning rate", "examples per second"} <= set(
        tags["scalars"]
    )
    logged = [(e.step, e.value) for e in events.Scalars("bound/valid")]
    assert logged == [
        (line["epoch"], pytest.approx(line["valid_bound"])) for line in metrics["history"]
    ]
    assert {tag.partition("/")[0] for tag in tags["images"]} == {
        "samples", "x, corrupted, reconstructed",
    }  # fmt: skip


def test_tensorboard_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    assert train(tiny(epochs=1), tmp_path)["status"] == "finished"
    assert not list(tmp_path.glob("events*"))


def test_threads_are_set_for_the_run_alone(tmp_path: Path) -> None:
    seen = []
    torch.set_num_threads(1)
    train(tiny(epochs=1, threads=2), tmp_path, tensorboard=False,
          on_epoch=lambda _: seen.append(torch.get_num_threads()))  # fmt: skip
    assert seen == [2]
    assert torch.get_num_threads() == 1


# --- stopping ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_returns(number: signal.Signals, tmp_path: Path) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    calls = []

    def send(_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)

    metrics = train(tiny(), tmp_path, tensorboard=False, on_progress=send)
    assert (metrics["status"], metrics["signal"]) == ("interrupted", number)
    assert len(calls) == 3
    header = load_tensors(tmp_path / CHECKPOINT)[1]
    assert (header["epoch"], header["position"]) == (0, 3 * 237)
    assert json.loads((tmp_path / METRICS).read_text())["status"] == "interrupted"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_too_late_to_interrupt_is_told(tmp_path: Path) -> None:
    """So that the command line does not go on to a long evaluation."""
    config = tiny()

    def send(record: dict[str, float]) -> None:
        if record["epoch"] == config.epochs:
            os.kill(os.getpid(), signal.SIGINT)

    metrics = train(config, tmp_path, tensorboard=False, on_epoch=send)
    assert (metrics["status"], metrics["signal"]) == ("finished", signal.SIGINT)
    assert json.loads((tmp_path / METRICS).read_text())["signal"] == signal.SIGINT


@pytest.mark.usefixtures("every_step")
def test_a_second_signal_interrupts_at_once(tmp_path: Path) -> None:
    def send(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        train(tiny(), tmp_path, tensorboard=False, on_progress=send)
    assert load_tensors(tmp_path / CHECKPOINT)[1]["position"] == 0


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    result = {}
    thread = threading.Thread(
        target=lambda: result.update(train(tiny(epochs=1), tmp_path, tensorboard=False))
    )
    thread.start()
    thread.join()
    assert result["status"] == "finished"


def test_a_bound_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """With a learning rate that sends the parameters to infinity."""
    config = tiny(epochs=1, learning_rate=1e30)
    with pytest.raises(NonFiniteError) as caught:
        train(config, tmp_path, tensorboard=False)
    message = str(caught.value)
    assert "became" in message
    assert "in epoch 1" in message
    assert f"{tmp_path / CHECKPOINT} holds the last state" in message
    assert "smaller learning rate than 1e+30" in message
    saved = load_tensors(tmp_path / CHECKPOINT)[0]
    assert all(bool(t.isfinite().all()) for t in saved.values())


def test_gradient_norms_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, norms = Run.step, []

    def step(run: Run) -> None:
        # Where somebody looks at gradients they are made, and kept.
        hooks = [p.register_hook(lambda grad: None) for p in run.model.parameters()]
        real(run)
        squares = [float(p.grad.double().square().sum()) for p in run.model.parameters()]
        norms.append(math.sqrt(sum(squares)))
        for hook in hooks:
            hook.remove()

    plain = train(tiny(), tmp_path / "plain", tensorboard=False)["history"]
    monkeypatch.setattr(Run, "step", step)
    history = train(tiny(), tmp_path / "looked at", tensorboard=False)["history"]
    assert len(norms) == 2 * STEPS
    for epoch, line in enumerate(history):
        for name in ("gradient_norm", "largest_gradient_norm"):
            assert line[name] == pytest.approx(plain[epoch][name], rel=1e-4)
        of_epoch = norms[epoch * STEPS : (epoch + 1) * STEPS]
        assert line["gradient_norm"] == pytest.approx(sum(of_epoch) / STEPS, rel=1e-5)
        assert line["largest_gradient_norm"] == pytest.approx(max(of_epoch), rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: None
) -> None:
    """Of a bound that is: a hook spoils the third step's."""
    real, steps = Run.step, []

    def step(run: Run) -> None:
        steps.append(1)
        bias = run.parameters["decoder.output.bias"]
        spoil = bias.register_hook(lambda g: g * (math.inf if len(steps) == 3 else 1))
        real(run)
        spoil.remove()

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(NonFiniteError) as caught:
        train(tiny(), tmp_path, tensorboard=False)
    message = str(caught.value)
    assert "a gradient became" in message
    assert "after 711 of 1297 examples" in message
    assert "1 of the epoch's 3 gradients are not finite, the first of step 3" in message
    assert "the largest norm of the others is" in message
    saved = load_tensors(tmp_path / CHECKPOINT)[0]
    assert all(bool(t.isfinite().all()) for t in saved.values())


def test_nothing_that_is_not_finite_is_ever_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: None
) -> None:
    """NaN in a parameter just before a signal: the loss has not shown it yet."""
    real = Run.step
    steps = []

    def step(run: Run) -> None:
        real(run)
        steps.append(1)
        if len(steps) == 2:
            with torch.no_grad():
                run.parameters["decoder.output.bias"][3] = math.nan

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(
        NonFiniteError, match="a parameter became nan in epoch 1, after 474 of 1297"
    ):
        train(tiny(), tmp_path, tensorboard=False, on_progress=StopAfter(2))
    assert load_tensors(tmp_path / CHECKPOINT)[1]["position"] == 0


class Disk:
    """A disk that is full for the writes of a range, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full: range) -> None:
        real, self.writes = os.fsync, 0

        def fsync(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                return real(descriptor)
            self.writes += 1
            if self.writes in full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: None
) -> None:
    disk = Disk(monkeypatch, range(4, 8))
    with pytest.warns(RuntimeWarning, match="No space left on device; the earlier file is intact;"
                      " going on, and trying again later") as caught:  # fmt: skip
        metrics = train(tiny(), tmp_path, tensorboard=False, checkpoint_seconds=0.0)
    assert disk.writes > 12
    assert len(caught) == 4
    assert metrics["status"] == "finished"
    monkeypatch.undo()
    train(tiny(), tmp_path / "straight", tensorboard=False)
    assert_same_state(tmp_path, tmp_path / "straight")
    assert (
        load_model(tmp_path).state_dict().keys()
        == load_model(tmp_path / "straight").state_dict().keys()
    )


def test_a_disk_that_stays_full_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: None
) -> None:
    Disk(monkeypatch, range(6, 1000))
    with (
        pytest.warns(RuntimeWarning, match="trying again later"),
        pytest.raises(CheckpointError, match="No space left on device"),
    ):
        train(tiny(), tmp_path, tensorboard=False, checkpoint_seconds=0.0)
    monkeypatch.undo()
    position = load_tensors(tmp_path / CHECKPOINT)[1]["position"]
    assert 0 < position < N
    assert not list(tmp_path.glob(".*"))
    train(tiny(), tmp_path / "straight", tensorboard=False)
    train(tiny(), tmp_path, tensorboard=False, resume=True)
    assert_same_state(tmp_path, tmp_path / "straight")


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", full)
    with pytest.warns(RuntimeWarning, match="No space left on device.*going on without") as caught:
        metrics = train(tiny(), tmp_path)
    assert metrics["status"] == "finished"
    assert len([w for w in caught if "TensorBoard" in str(w.message)]) == 1


def test_a_log_whose_thread_fails_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real disk without room, from TensorBoard's second write on."""
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    threading_hook = threading.excepthook

    def full(self: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    with pytest.warns(RuntimeWarning, match="No space left on device.*going on without") as caught:
        metrics = train(tiny(), tmp_path)
    assert metrics["status"] == "finished"
    assert len(caught) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is threading_hook


def test_a_default_device_is_of_no_account(tmp_path: Path) -> None:
    train(tiny(), tmp_path / "a", tensorboard=False)
    torch.set_default_device("meta")
    try:
        train(tiny(), tmp_path / "b", tensorboard=False)
    finally:
        torch.set_default_device(None)
    assert_same_state(tmp_path / "a", tmp_path / "b")


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path) -> None:
    train(tiny(), tmp_path, tensorboard=False)
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / MODEL).read_bytes())
    with pytest.raises(CheckpointError, match=f"{CHECKPOINT} is not a run's checkpoint"):
        train(tiny(), tmp_path, resume=True, tensorboard=False)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/run/config\.json"):
        train(tiny(), tmp_path / "file" / "run", tensorboard=False)
