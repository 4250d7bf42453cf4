"""Every option of a model and of a run: in the constructors, the command line and the files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pydoc
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
from refusals import refusals
from typer.testing import CliRunner

from dvae_fast import estimate_log_likelihood, log_weights, sample_latent
from dvae_fast._checks import check_choice
from dvae_fast.cli import app
from dvae_fast.cli.console import busy_hint
from dvae_fast.cli.options import flag, given_values
from dvae_fast.corruptions import Learnable, Masking, SaltAndPepper, corrupt
from dvae_fast.models import DIWAE, DVAE, MODELS, VAE, Autoencoder, ModelConfig, TwoLayerModel
from dvae_fast.models.config import option_kind, options_of
from dvae_fast.objectives import OBJECTIVES, Objective
from dvae_fast.training import TrainConfig, default_config, load_config
from dvae_fast.training.config import OF_OWN

if TYPE_CHECKING:
    from pathlib import Path

M, B, K, Z, D = 2, 6, 3, 4, 20
SHAPE = (5, 4)
ANALYTIC = next(name for name in OBJECTIVES if Objective(name).bound.analytic)

#: a value other than the default for each option of a model, of some model that has it
OTHER: dict[str, Any] = {
    "latent_size": Z,
    "hidden_sizes": (7, 6),
    "decoder_hidden_sizes": (5,),
    "activation": "relu",
    "encoder": "conv",
    "decoder": "mlp",  # the only one by name
    "prior": "mixture",
    "prior_components": 3,
    "context_size": 2,
    "covariance": "full",
    "likelihood": "gaussian",
    "corruption": Masking(0.25),
    "copies": M,
    "samples": K,
    "objective": "elbo",
    "estimator": "stl",
    "outer_samples": 2,
    "reverse": "mlp",  # likewise
    "reverse_hidden_sizes": (6, 5),
    "learn_prior": True,
    "upper_latent_size": 3,
    "upper_hidden_sizes": (8,),
}
#: those of a run
RUN: dict[str, Any] = {
    "model": "dvae",
    "data": "frey",
    "binarise": "once",
    "corruption": "masking",
    "level": 0.2,
    "per_pixel": True,
    "gradient": "score",
    "beta": 0.25,
    "alpha": 0.25,
    "free_bits": 0.5,
    "kl_warmup": 3,
    "context": "labels",
    "train_examples": 40,
    "valid_examples": 30,
    "valid_to_train": 20,
    "epochs": 2,
    "batch_size": 9,
    "learning_rate": 0.5,
    "lr_schedule": "stepwise",
    "optimizer": "burda",
    "order": "file",
    "keep": "last",
    "seed": 5,
    "data_seed": 6,
    "threads": 1,
    "device": "cuda",
    "cuda_graph": True,
    "dtype": "bfloat16",
}
#: what an option cannot be without
WITH: dict[str, dict[str, Any]] = {
    "context_size": {"context": "labels"},
    "gradient": {"copies": 2},
    "beta": {"objective": "ciwae"},
    "alpha": {"objective": "vr"},
    "free_bits": {"objective": ANALYTIC},
    "cuda_graph": {"device": "cuda"},
    "learn_prior": {"model": "bernoulli"},
    "upper_latent_size": {"model": "two_layer"},
    "upper_hidden_sizes": {"model": "two_layer"},
    "binarise": {"data": "digits"},
}


def _fitting(model: type[Autoencoder], name: str) -> Any:
    """The other value, or one that the model takes in its place."""
    if name == "estimator" and model.name in ("bernoulli", "two_layer"):
        return model.defaults.get("estimator", "standard")
    if name == "prior" and model.name == "bernoulli":
        return "standard"
    return OTHER[name]


def _options(model: type[Autoencoder], name: str) -> dict[str, Any]:
    options = {name: _fitting(model, name)}
    return options | ({"image_shape": SHAPE} if name == "encoder" else {})


def test_the_tables_here_are_whole() -> None:
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    assert set(OTHER) == fields
    found = {"fingerprint", "names", "scaling"}  # by looking at the data
    wanted = {f.name for f in dataclasses.fields(TrainConfig)} - fields - found - set(OF_OWN) | {
        "corruption"
    }
    assert set(RUN) == wanted
    assert found == {f.name for f in dataclasses.fields(TrainConfig) if not f.metadata["shown"]}
    assert fields == {name for model in MODELS.values() for name in options_of(model)}
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"].endswith("."), field.name


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_an_option_round_trips(model: type[Autoencoder]) -> None:
    plain = model(D).config()
    for name, field in options_of(model).items():
        torch.manual_seed(1)
        made = model(D, **_options(model, name))
        config = json.loads(json.dumps(made.config()))
        if _fitting(model, name) != model.defaults.get(name, field.default):
            assert config[name] != plain[name], name
        again = Autoencoder.from_config(config)
        assert type(again) is model
        assert again.config() == config, name
        again.load_state_dict(made.state_dict())
        x = torch.rand(B, D).round()
        told = {"context": torch.arange(B) % 2} if name == "context_size" else {}
        assert torch.equal(again.loss(x, 3, **told), made.loss(x, 3, **told)), name


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_signature_and_help_show_the_options(model: type[Autoencoder]) -> None:
    parameters = inspect.signature(model).parameters
    names = list(options_of(model))
    assert list(parameters) == ["data_size", *names, "image_shape", "data_mean"]
    assert parameters["latent_size"].default == model(D).latent_size
    shown = pydoc.render_doc(model, renderer=pydoc.plaintext)
    for name in names:
        assert f"{name}: " in shown
    assert "gru_2d" in shown
    # An instance is called with data.
    assert inspect.signature(model(D)) == inspect.signature(torch.nn.Linear(1, 1))


def test_a_subclass_may_have_a_constructor_of_its_own() -> None:
    class Small(VAE):
        def __init__(self, width: int) -> None:
            super().__init__(D, 2, (width,))

    assert list(inspect.signature(Small).parameters) == ["width"]
    assert Small(3).options.hidden_sizes == (3,)

    class Same(VAE):
        """With a method of its own, say."""

    assert inspect.signature(Same).parameters == inspect.signature(VAE).parameters


def test_by_position_and_by_name() -> None:
    model = VAE(784, 50, (200, 200), samples=K)
    assert (model.latent_size, model.options.hidden_sizes, model.samples) == (50, (200, 200), K)
    again = VAE(data_size=784, hidden_sizes=[200, 200], latent_size=50, samples=K)
    assert again.config() == model.config()


def test_the_number_of_samples_follows_the_objective() -> None:
    assert DIWAE(D, objective="elbo").samples == 1
    assert VAE(D, objective="iwae").samples == 5
    assert VAE(D, estimator="vimco").samples == 5


test_a_wrong_name_is_answered = refusals(
    [
        (
            lambda: DIWAE(D, hiden_sizes=(3,)),
            TypeError,
            "an option of DIWAE must be one of hidden_sizes, .*; got 'hiden_sizes'; "
            "did you mean 'hidden_sizes'?",
        ),
        (lambda: VAE(D, corruption=Masking(0.1)), TypeError, "an option of VAE must be one of"),
        (lambda: TwoLayerModel(D, covariance="full"), TypeError, "an option of TwoLayerModel must"),
        (lambda: VAE(D, 3, (4,), "tanh"), TypeError, "takes data_size, latent_size, hidden_sizes"),
        (lambda: VAE(D, 3, latent_size=4), TypeError, "latent_size must be given once"),
        (
            lambda: VAE(D, encoder="mpl"),
            ValueError,
            "encoder must be one of mlp, .*; got 'mpl'; did you mean 'mlp'?",
        ),
        (
            lambda: VAE(D, encoder="gru2d"),
            ValueError,
            "encoder must be one of gru_2d, gru, .*; got 'gru2d'; did you mean 'gru_2d'?",
        ),
        (lambda: VAE(D, covariance="ful"), ValueError, "did you mean 'full'"),
        (lambda: VAE(D, activation="sofplus"), ValueError, "one of softplus, .*'softplus'"),
        (lambda: VAE(D, likelihood="bernouli"), ValueError, "did you mean 'bernoulli'"),
        (lambda: VAE(D, objective="iwa"), ValueError, "did you mean 'iwae'"),
        (
            lambda: VAE(D, prior="normal"),
            ValueError,
            "prior must be one of standard, mixture, vamp.*'normal'",
        ),
        (lambda: VAE(D, decoder=3), TypeError, "decoder must be a name or a module, got int"),
        (lambda: VAE(D, prior=3), TypeError, "prior must be a name or an object with log_prob"),
        (
            lambda: Autoencoder.from_config({"model": "vea", "data_size": D}),
            ValueError,
            "config's model must be one of vae, .*; got 'vea'; did you mean 'vae'",
        ),
        (
            lambda: TrainConfig.from_dict({"K": 3}),
            ValueError,
            "an option in the configuration must be one of .*; got 'K'",
        ),
        (
            lambda: default_config("vae", learn_prior=True),
            ValueError,
            "learn_prior must be left out for vae, which has none; got True",
        ),
        (
            lambda: default_config("bernoulli", covariance="full"),
            ValueError,
            "covariance must be left out for bernoulli, which has none; got 'full'",
        ),
        (lambda: default_config(encoder=torch.nn.Identity()), ValueError, "encoder must be one of"),
    ]
)


def test_a_wrong_name_of_another_type() -> None:
    for value in (None, 3, ["mlp"], {"a": 1}):
        with pytest.raises(
            ValueError, match=re.escape(f"x must be one of mlp, gru; got {value!r}")
        ):
            check_choice("x", value, ("mlp", "gru"))


# --- runs and the command line --------------------------------------------------------------------


def _run_values() -> list[tuple[str, Any]]:
    return [*((k, v) for k, v in OTHER.items() if k != "corruption"), *RUN.items()]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("name", "value"), _run_values(), ids=lambda v: str(v))
def test_an_option_of_a_run_goes_through_command_line_and_file(
    name: str, value: Any, tmp_path: Path
) -> None:
    together = dict(WITH.get(name, {})) | {name: value}
    config = default_config(**together)
    kind = option_kind(TrainConfig, name)
    assert type(getattr(config, name)) is (tuple if kind == tuple[int, ...] else kind)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert load_config(tmp_path) == config
    if name not in ("decoder", "prior", "reverse"):
        assert config.to_dict()[name] != default_config(**WITH.get(name, {})).to_dict()[name]

    seen: dict[str, Any] = {}
    words = []
    for option, given in together.items():
        words += [flag(option)] if given is True else [flag(option), _text(given)]
    command = next(c for c in app.registered_commands if c.name == "train")
    assert command.callback is not None
    probe = typer.Typer()

    def record(**options: Any) -> None:
        seen.update(options)

    record.__signature__ = inspect.signature(command.callback)  # type: ignore[attr-defined]
    record.__annotations__ = command.callback.__annotations__
    probe.command()(record)
    result = CliRunner().invoke(probe, words)
    assert result.exit_code == 0, result.output
    own = {f.name for f in dataclasses.fields(TrainConfig) if f.metadata["shown"]}
    options = {key: given for key, given in seen.items() if key in own}
    assert own == options.keys()
    assert given_values(TrainConfig, options) == together
    assert default_config(**given_values(TrainConfig, options)) == config


def test_help_shows_every_option_with_its_choices() -> None:
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    for field in dataclasses.fields(TrainConfig):
        if not field.metadata["shown"]:
            assert flag(field.name) not in result.output
            continue
        assert flag(field.name) in result.output
        for choice in field.metadata["choices"] or ():
            assert choice in result.output
    assert "200 for bernoulli" in result.output


def test_what_is_changed_later_is_kept() -> None:
    model = DIWAE(D, Z, (6,))
    model.samples, model.copies, model.corruption = 9, 4, Masking(0.75)
    model.objective = Objective("vr", "stl", alpha=0.25)
    config = model.config()
    assert (config["samples"], config["copies"], config["estimator"]) == (9, 4, "stl")
    again = Autoencoder.from_config(config)
    assert (again.samples, again.copies, again.objective) == (9, 4, model.objective)
    assert repr(again.corruption) == repr(Masking(0.75))


def test_numbers_of_numpy_are_numbers() -> None:
    model = VAE(np.int64(D), np.int32(Z), np.array([6, 5]), samples=np.int64(K))
    assert json.loads(json.dumps(model.config()))["hidden_sizes"] == [6, 5]
    assert type(model.samples) is int
    with pytest.raises(TypeError, match="samples must be an int, got float64"):
        VAE(D, samples=np.float64(3))


def test_numbers_of_numpy_are_numbers_in_functions(tmp_path: Path) -> None:
    x, quarter = torch.rand(B, D), np.float32(0.25)
    corruption = SaltAndPepper(quarter, quarter)
    assert repr(corruption) == repr(SaltAndPepper(0.25, 0.25))
    assert Learnable(Masking(quarter), "relaxed", temperature=quarter).temperature == 0.25
    noisy = corrupt(x, corruption, np.uint8(3), np.int64(5), first_example=np.int32(2))
    assert torch.equal(noisy, corrupt(x, corruption, 3, 5, first_example=2))
    mean = torch.zeros(B, Z)
    z, ratio = sample_latent(mean, mean, np.int16(K), np.uint8(7), first_sample=np.uint8(0))
    assert torch.equal(z, sample_latent(mean, mean, K, 7)[0])
    params = (torch.zeros(B, K, D), np.float16(0.25))
    of_float = log_weights((params[0], 0.25), x, ratio, "gaussian")
    assert torch.equal(log_weights(params, x, ratio, "gaussian"), of_float)
    objective = Objective("ciwae", beta=quarter)
    assert json.loads(json.dumps(objective.to_dict()))["beta"] == 0.25
    model = DVAE(D, Z, (5,), corruption=corruption)
    given: dict[str, Any] = {
        "k": 6,
        "seed": 5,
        "max_k": 9,
        "tolerance": 0.25,
        "copies": 3,
        "batch_size": 2,
    }
    theirs = {k: quarter if k == "tolerance" else np.int64(v) for k, v in given.items()}
    one, other = (
        estimate_log_likelihood(model, x, proposal="mixture", partial=tmp_path / name, **options)
        for name, options in (("a.npz", given), ("b.npz", theirs))
    )
    assert torch.equal(one.log_likelihood, other.log_likelihood)
    assert (type(other.k), type(other.seed)) == (int, int)
    with pytest.raises(TypeError, match="k must be an int, got float32"):
        sample_latent(mean, mean, quarter)
    with pytest.raises(TypeError, match=r"seed must be an int, .*, got float32"):
        sample_latent(mean, mean, K, quarter)


@pytest.mark.parametrize(
    ("threads", "load", "environment", "said"),
    [
        (2, 9.0, {}, True),
        (1, 9.0, {}, False),
        (2, 0.2, {}, False),
        (2, 9.0, {"OMP_WAIT_POLICY": "passive"}, False),
        (2, 9.0, {"GOMP_SPINCOUNT": "1000"}, False),
    ],
)
def test_threads_on_a_busy_machine_are_spoken_of(
    threads: int,
    load: float,
    environment: dict[str, str],
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    hint = busy_hint(threads)
    assert bool(hint) == said
    assert not said or "load 9.0 on 2 cores" in hint
