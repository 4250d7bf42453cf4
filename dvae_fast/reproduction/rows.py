"""The rows of two published tables: what each trains, what was published, and what is a guess.

MNIST and Frey Face: Im, Ahn, Memisevic, Bengio, "Denoising Criterion for Variational
Auto-Encoding Framework" (arXiv 1511.06406), and the code released with it. Dynamically binarised
MNIST: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders" (arXiv 1509.00519), and the
code released with it. ``docs/reproduction.md`` tells the protocols apart.
"""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvae_fast.training import TrainConfig, default_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["FIGURES", "ROWS", "SCALES", "TABLES", "Published", "Row", "Scale", "select"]

#: what a run measures on the test set, in nats, lower is better; by its key in a result
FIGURES = {
    "own": "own bound",
    "clean": "one sample, clean x",
    "ten": "ten samples, clean x",
    "nll": "NLL",
}
#: the tables, by the key that rows name
TABLES = {
    "mnist": "MNIST, fixed binarisation (arXiv 1511.06406)",
    "burda": "MNIST, dynamic binarisation (arXiv 1509.00519)",
    "burda-exact": "MNIST, dynamic binarisation, as the code of arXiv 1509.00519 has it",
    "frey": "Frey Face (arXiv 1511.06406)",
    "omniglot": "OMNIGLOT, drawn anew at each reading or once (no published figure compares)",
}


#: those whose published figures are likelihoods
_BY_LIKELIHOOD = ("burda", "burda-exact")


@dataclass(frozen=True)
class Published:
    """A published figure in nats, lower is better.

    Attributes:
        value: it.
        error: its standard error, if that was given.
        unsaid: what its source leaves unsaid about it.
    """

    value: float
    error: float | None = None
    unsaid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: what `select` finds it by.
        about: what is particular to it.
        table: one of `TABLES`.
        settings: for `dvae_fast.training.default_config`, at full scale.
        published: None where this project knows of no figure.
        guesses: what the sources leave unsaid of the training, and is chosen here.
        baseline: the row that it is compared with, seed by seed.
        evaluated_on: the binarisation of the test set; None for that of training.
    """

    name: str
    about: str
    table: str
    settings: Mapping[str, Any]
    published: Published | None = None
    guesses: tuple[str, ...] = ()
    baseline: str | None = None
    evaluated_on: str | None = None

    @property
    def protocol(self) -> str:
        """Whether the sources tell all of it, or what is a guess."""
        unsaid = self.guesses + (self.published.unsaid if self.published else ())
        return f"guess: {'; '.join(unsaid)}" if unsaid else "known"

    @property
    def comparable(self) -> str:
        """Which of `FIGURES` the published one is nearest to."""
        if self.table in _BY_LIKELIHOOD:
            return "nll"
        return "own" if self.settings["model"] in ("iwae", "diwae") else "clean"

    def config(
        self,
        scale: Scale,
        seed: int,
        epochs: int | None,
        device: str,
        dtype: str = TrainConfig.dtype,
    ) -> TrainConfig:
        """What the trainer is given.

        Args:
            scale: its epochs, rates and data take the place of the row's.
            seed: of the run; the split and fixed draws are the same for all.
            epochs: in the place of both; None for the scale's.
            device: ``cpu``, where a run has one thread, or ``cuda``, where it replays CUDA graphs.
            dtype: of matrix products in training.

        Raises:
            ValueError: naming the field, the rule and the value.
        """
        cuda = device != "cpu"
        given = {**self.settings, **scale.training}
        if epochs is not None:
            given["epochs"] = epochs
        return default_config(
            **given,
            seed=seed,
            device=device,
            dtype=dtype,
            cuda_graph=cuda,
            threads=None if cuda else 1,
        )


@dataclass(frozen=True)
class Scale:
    """How much is spent on a table.

    Attributes:
        about: the same in words.
        rows: names or globs of the rows that are run where none are asked for.
        seeds: of each row.
        k, examples: as for `dvae_fast.reproduction.runs.Run`.
        training: what differs from `Row.settings`, for every row alike.
    """

    about: str
    rows: tuple[str, ...]
    seeds: int
    k: int
    examples: int | None
    training: Mapping[str, Any] = field(default_factory=dict)


# --- the rows -----------------------------------------------------------------------------------


def _sizes(latent: int, hidden: int) -> dict[str, Any]:
    """Two hidden layers from the data to the latents, and one back."""
    return {
        "latent_size": latent,
        "hidden_sizes": (hidden, hidden),
        "decoder_hidden_sizes": (hidden,),
    }


_RELEASED = {"batch_size": 100, "activation": "softplus"}
_MNIST = {
    **_RELEASED,
    "data": "mnist",
    "binarise": "fixed",
    **_sizes(50, 200),
    "learning_rate": 1e-3,
    "lr_schedule": "stepwise",
    "epochs": 5000,
}
_FREY = {
    **_RELEASED,
    "data": "frey",
    **_sizes(10, 100),
    "learning_rate": 2e-3,
    "epochs": 3000,
}
_OMNIGLOT = {**_MNIST, "data": "omniglot"}
_BURDA = {
    "model": "iwae",
    "data": "mnist",
    "binarise": "dynamic",
    "latent_size": 50,
    "hidden_sizes": (200, 200),
    "activation": "tanh",
    "batch_size": 20,
    "learning_rate": 1e-3,
    "lr_schedule": "stepwise",
    "epochs": 3280,
}

# As github.com/yburda/iwae has it: the first 59,600 images, in the file's order, its own Adam.
_BURDA_EXACT = {
    **_BURDA,
    "lr_schedule": "stepwise_rounded",
    "optimizer": "burda",
    "order": "file",
    "keep": "last",
    "valid_to_train": 9600,
}
#: of its models by stochastic layers, what differs, and the published figures by k
_BURDA_LAYERS: dict[int, dict[str, tuple[dict[str, Any], dict[int, float]]]] = {
    1: {
        "vae": ({"model": "vae"}, {1: 86.76, 5: 86.47, 50: 86.35}),
        "iwae": ({"model": "iwae"}, {5: 85.54, 50: 84.78}),
    },
    2: {
        "vae": (
            {"model": "two_layer", "objective": "elbo", "latent_size": 100},
            {1: 85.33, 5: 85.01, 50: 84.78},
        ),
        "iwae": ({"model": "two_layer", "latent_size": 100}, {5: 83.89, 50: 82.90}),
    },
}

_LEVELS = (5, 10, 15)  # per cent
_UNSAID = ("the figure's K and evaluation",)
_PUBLISHED = {
    "dvae-k1-5": Published(94.32, 0.12, ("the figure's noise level, K and evaluation",)),
    "dvae-gru-k1-5": Published(94.30, 0.09, _UNSAID),
    "diwae-gru-k5-10": Published(92.84, 0.07, _UNSAID),
    "vae-augmented-k1": Published(93.88, 0.08, _UNSAID),
    "iwae-augmented-k5": Published(92.51, 0.07, _UNSAID),
    "burda-k1": Published(86.76),
    "burda-k5": Published(85.54),
    "burda-k50": Published(84.78),
}
#: variants of the plain rows: what they change, and what of that is a guess
_KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gru": (
        "a GRU reads the rows",
        {"encoder": "gru"},
        ("the encoder's sizes and order",),
    ),
    "pixel": (
        "rates proportional to the mean image",
        {"per_pixel": True},
        ("how rates follow the mean image",),
    ),
    "copies": ("two corruptions of each image", {"copies": 2}, ()),
    "learnt": (
        "the rate learnt from there on (score function, M = 2)",
        {"gradient": "score", "copies": 2},
        ("how the rate is learnt, which the paper leaves open",),
    ),
    "released": (
        "P(1) = p², P(0) = p(1 − p)",
        {"corruption": "salt_and_pepper_released"},
        (),
    ),
    "augmented": (
        "images drawn anew at each reading",
        {"binarise": "dynamic"},
        ("the test set's binarisation",),
    ),
}


def _mnist_row(
    model: str, K: int, *, level: int = 0, kind: str = "", baseline: str | None = None
) -> Row:
    """A row of MNIST; `level` in per cent, `kind` one of `_KINDS` or none."""
    name = "-".join(part for part in (model, kind, f"k{K}", f"{level or ''}") if part)
    about = f"{model.upper()}, K = {K}" + f", {level} % noise" * bool(level)
    settings = {**_MNIST, "model": model, "samples": K} | ({"level": level / 100} if level else {})
    guesses: tuple[str, ...] = ()
    if kind:
        words, changes, unsaid = _KINDS[kind]
        about, settings, guesses = f"{about}, {words}", settings | changes, unsaid
    # Evaluated on one test set, whatever it is trained on.
    return Row(
        name,
        about,
        "mnist",
        settings,
        _PUBLISHED.get(name),
        guesses,
        baseline,
        evaluated_on="fixed",
    )


def _mnist_rows() -> Iterator[Row]:
    for kind in ("", "gru"):
        for model, K in (("vae", 1), ("vae", 5), ("iwae", 5)):
            plain = _mnist_row(model, K, kind=kind)
            yield plain
            for level in _LEVELS:
                yield _mnist_row("d" + model, K, level=level, kind=kind, baseline=plain.name)
    for model, K, kind in (("dvae", 1, "pixel"), ("diwae", 5, "pixel"), ("dvae", 1, "released")):
        for level in _LEVELS:
            usual = f"{model}-k{K}-{level}"
            yield _mnist_row(model, K, level=level, kind=kind, baseline=usual)
    # What is learnt by the score function has two copies; so has what it is compared with.
    yield _mnist_row("dvae", 1, level=5, kind="copies", baseline="dvae-k1-5")
    yield _mnist_row("dvae", 1, level=5, kind="learnt", baseline="dvae-copies-k1-5")
    for model, K in (("vae", 1), ("iwae", 5)):
        yield _mnist_row(model, K, kind="augmented", baseline=f"{model}-k{K}")


def _burda_rows() -> Iterator[Row]:
    for K in (1, 5, 50):
        name, about = f"burda-k{K}", f"IWAE, K = {K}, one stochastic layer"
        yield Row(name, about, "burda", {**_BURDA, "samples": K}, _PUBLISHED[name])


def _burda_exact_rows() -> Iterator[Row]:
    for layers, models in _BURDA_LAYERS.items():
        for model, (settings, published) in models.items():
            for k, figure in published.items():
                name = "-".join(["burda-exact", *["2"] * (layers == 2), model, f"k{k}"])
                kind = "VAE or IWAE" if k == 1 else model.upper()  # which are the same
                about = f"{kind}, K = {k}, {'one' if layers == 1 else 'two'} stochastic layer"
                yield Row(
                    name,
                    about + "s" * (layers == 2),
                    "burda-exact",
                    {**_BURDA_EXACT, **settings, "samples": k},
                    Published(figure),
                )


def _frey_rows() -> Iterator[Row]:
    guesses = ("a test set outside the training set", "a constant learning rate")
    yield Row("frey-vae", "VAE, Gaussian likelihood", "frey", {**_FREY, "model": "vae"},
              guesses=guesses)  # fmt: skip
    yield Row(
        "frey-dvae",
        "DVAE, Gaussian noise of standard deviation 0.025",
        "frey",
        {**_FREY, "model": "dvae", "corruption": "gaussian", "level": 0.025},
        guesses=guesses,
        baseline="frey-vae",
    )


def _omniglot_rows() -> Iterator[Row]:
    """The network and noise of MNIST; both binarisations are tested on the same draw."""
    for way, words in (("dynamic", "drawn anew at each reading"), ("once", "drawn once")):
        for model, K in (("vae", 1), ("iwae", 5)):
            name = "-".join(["omniglot", *["once"] * (way == "once"), f"{model}-k{K}"])
            settings = {**_OMNIGLOT, "binarise": way, "model": model, "samples": K}
            yield Row(name, f"{model.upper()}, K = {K}, {words}", "omniglot", settings)
            yield Row(
                f"{name.replace(model, 'd' + model)}-5",
                f"D{model.upper()}, K = {K}, 5 % noise, {words}",
                "omniglot",
                settings | {"model": "d" + model, "level": 0.05},
                baseline=name,
            )


_ALL = (_mnist_rows, _burda_rows, _burda_exact_rows, _frey_rows, _omniglot_rows)
#: every row by its name, in the order of the tables
ROWS = {row.name: row for rows in _ALL for row in rows()}

# The steps would be at a tenth of the rate for two thirds of them.
_FEW_UPDATES = {"learning_rate": 1e-3, "lr_schedule": "constant"}

SCALES = {
    "small": Scale(
        "some half an hour on two cores (estimated)",
        rows=(
            "vae-k1", "dvae-k1-*", "iwae-k5", "diwae-k5-5", "diwae-k5-10", "*-augmented-*",
            "dvae-pixel-k1-5", "vae-gru-k1", "dvae-gru-k1-5", "diwae-gru-k5-10",
        ),
        seeds=3,
        k=1000,
        examples=1000,
        # Most rows are past their best epoch by then.
        training={"epochs": 250, "train_examples": 2000, "valid_examples": 1000, **_FEW_UPDATES},
    ),
    "check": Scale(
        "what --check runs, seconds of training",
        rows=("vae-k1", "diwae-k5-5"),
        seeds=1,
        k=100,
        examples=500,
        training={"epochs": 40, "train_examples": 1000, "valid_examples": 500, **_FEW_UPDATES},
    ),
    "full": Scale("the sources' protocol", rows=("*",), seeds=3, k=5000, examples=None),
}  # fmt: skip


def select(patterns: Iterable[str]) -> list[Row]:
    """The rows that a name or a glob matches, in the order of the tables.

    Raises:
        ValueError: if one matches none; the message has the nearest names.
    """
    found: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(ROWS, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, ROWS, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "--list shows them"
            raise ValueError(f"rows must be names or globs of rows; {pattern!r} is of none: {hint}")
        found.update(matching)
    return [row for row in ROWS.values() if row.name in found]
