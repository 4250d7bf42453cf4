"""A configuration with what suits the model and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dvae_fast._checks import check_choice
from dvae_fast.corruptions import AdditiveGaussian, Identity, Masking, SaltAndPepper
from dvae_fast.data import (
    BINARISATIONS,
    DATASETS,
    KINDS,
    SPLIT,
    Dataset,
    check_binarise,
    check_missing,
    check_own_binarise,
    check_split,
    load_path,
)
from dvae_fast.likelihoods import NAMED, Bernoulli
from dvae_fast.models import MODELS
from dvae_fast.training.config import DEFAULT_LEVEL, OF_OWN, TrainConfig, no_data

__all__ = ["default_config"]

#: of one's own data, whose best is not known: as many examples in all as of MNIST's
_OWN_EXAMPLES, _OWN_MOST_EPOCHS, _OWN_RATE = 5_000_000, 300, 1e-3


def default_config(model: str = "diwae", data: Any = "digits", **given: Any) -> TrainConfig:
    """A configuration with what suits the model and the data for every field not given.

    Args:
        model: as in :class:`TrainConfig`.
        data: the same; a path is looked at. Or a `Dataset`, or what `Dataset.from_arrays` takes,
            which `train` must be given too.
        given: its other fields; None counts as not given. What suits is the model's own default
            (``samples``: 5 inside the logarithm or for vimco, else 1), and of the data
            ``binarise``, ``epochs`` and ``learning_rate``; ``likelihood`` is gaussian for grey
            values, else bernoulli; of one's own data what suits their kind, see
            `dvae_fast.data.KINDS`. A denoising model's ``corruption`` is of salt and pepper,
            masking for counts, gaussian for any other likelihood but a Bernoulli, at ``level``
            0.05; any other model has none.

    Raises:
        ValueError: naming the field, the rule and the value.
        DataError, MissingExtraError: if one's own data cannot be had, as `load_path`.
    """
    check_choice("model", model, MODELS)
    values = {name: value for name, value in given.items() if value is not None}
    data, values = _named(data, values)
    if not isinstance(data, str) or data not in DATASETS:
        values = _of_own(data, values)
        kind = KINDS[values["values"]]
        if BINARISATIONS[values["binarise"]].grey:
            values.setdefault("likelihood", kind.likelihood)
            if kind.encoder != TrainConfig.encoder:
                values.setdefault("encoder", kind.encoder)
        epochs, rate = _epochs(values.pop("count")), _OWN_RATE
    else:
        named = DATASETS[data]
        values |= {"data": data}
        values.setdefault("binarise", named.binarise)
        check_binarise(data, values["binarise"])
        epochs, rate = named.epochs, named.learning_rate
        if BINARISATIONS[values["binarise"]].grey and KINDS[named.values].step != 1:
            values.setdefault("likelihood", BINARISATIONS[values["binarise"]].likelihood)
    values.setdefault("likelihood", Bernoulli.kernel)
    for name, value in MODELS[model].defaults.items():
        if name not in ("objective", "corruption"):
            values.setdefault(name, value)
    values.setdefault("epochs", epochs)
    values.setdefault("learning_rate", rate)
    suited = _suited(values["likelihood"]) if MODELS[model].denoising else Identity
    values.setdefault("corruption", suited.kind)
    identity = values["corruption"] == Identity.kind
    if identity and values.get("level", 0) != 0:
        raise ValueError(f"level must be 0 without a corruption, got {values['level']!r}")
    values.setdefault("level", 0.0 if identity else DEFAULT_LEVEL)
    return TrainConfig.from_dict({"model": model, **values})


def _suited(likelihood: str) -> Any:
    """The corruption of data that have that likelihood."""
    found = NAMED.get(likelihood)
    if isinstance(found, Bernoulli):
        return SaltAndPepper
    return Masking if found is not None and found.step == 1 else AdditiveGaussian


def _named(data: Any, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Of one of the named sets that is loaded already, its name and how it was loaded."""
    if not isinstance(data, Dataset) or data.name not in DATASETS:
        return data, values
    return data.name, values | {"binarise": data.binarise, "data_seed": data.seed}


def _of_own(data: Any, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what is found out of data of one's own, and how many train."""
    if isinstance(data, Dataset):
        for name in (*OF_OWN, "binarise", "data_seed"):
            if name in values:
                raise ValueError(f"{name} must be left out with a data set, which has its own")
        found, where = data, data.name
        values = values | {"data_seed": data.seed}
    elif not isinstance(data, (str, Path)):
        known = {
            "values": "values", "split": "split", "binarise": "binarise", "data_seed": "seed",
            "missing": "missing",
        }  # fmt: skip
        for name in OF_OWN:
            if name in values and name not in known:
                raise ValueError(f"{name} must be left out with data in Python")
        found = Dataset.from_arrays(
            data, **{argument: values[name] for name, argument in known.items() if name in values}
        )
        where = found.name
    else:
        path = Path(data).expanduser()
        if not path.exists():
            raise ValueError(no_data(str(data)))
        given = {name: values[name] for name in OF_OWN if name in values}
        if "values" in given:
            check_choice("values", given["values"], KINDS)
        check_split(given.get("split", SPLIT))
        check_missing(given.get("missing"))
        check_own_binarise(None, values.get("binarise", "none"))
        found = load_path(
            path, binarise=values.get("binarise"), seed=values.get("data_seed", 0), **given
        )
        where = str(path.resolve())
    return values | {
        "data": where,
        "values": found.values,
        "binarise": found.binarise,
        "fingerprint": found.fingerprint,
        "scaling": found.scaling.to_dict(),
        "missing": found.missing,
        "names": {"columns": list(found.columns), "classes": list(found.classes)},
        "count": len(found.train),
    }


def _epochs(examples: int) -> int:
    return max(1, min(_OWN_MOST_EPOCHS, _OWN_EXAMPLES // examples))
