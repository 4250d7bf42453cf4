"""Options of the command line, made from the fields of a configuration."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvae_fast.models import MODELS
from dvae_fast.models.config import GROUPS, option_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["completing", "flag", "given_values", "shown", "with_options"]


def flag(name: str) -> str:
    """A field's option: ``--hidden-sizes``."""
    return f"--{name.replace('_', '-')}"


def completing(choices: Collection[str]) -> Callable[[str], list[str]]:
    """For the shell's completion: those that begin as what is typed."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def shown(panel: str, help: str, *names: str, choices: Collection[str] | None = None) -> Any:
    """What `typer.Option` makes of an option, under the heading `panel`; its `names` where they are
    not those of the parameter. A name of `choices` is completed by the shell."""
    more: dict[str, Any] = {}
    if choices is not None:
        more = {"autocompletion": completing(choices), "metavar": "NAME"}
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def with_options(command: Callable[..., None], config: type, *first: str) -> Callable[..., None]:
    """`command` with an option for each field of the dataclass `config`, None where not given.

    It must take them by ``**options``, besides options of its own. They are in the order of their
    groups, the `first` before the others of theirs.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    fields = [field for field in dataclasses.fields(config) if field.metadata["shown"]]
    fields.sort(key=lambda f: (GROUPS.index(f.metadata["group"]), f.name not in first))
    parameters = [_parameter(config, field) for field in fields]
    parameters += [
        p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(config: type, field: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = option_kind(config, field.name)
    names = [flag(field.name)]
    if kind is bool:
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    elif field.metadata["short"]:
        names.append(field.metadata["short"])
    sizes, choices = kind == tuple[int, ...], field.metadata["choices"]
    info = typer.Option(
        *names,
        help=_help(field),
        metavar="SIZES" if sizes else "NAME" if choices else None,
        rich_help_panel=field.metadata["group"],
        autocompletion=completing(choices) if choices else None,
        show_default=False,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(str if sizes else kind) | None, info],
    )


def _help(field: dataclasses.Field[Any]) -> str:
    parts = [field.metadata["help"]]
    if choices := field.metadata["choices"]:
        parts.append(f"One of {', '.join(choices)}.")
    if field.default is not None and "Default" not in parts[0] and field.default is not False:
        defaults = [_shown(field.default)]
        for name, model in MODELS.items():
            if field.name in model.defaults:
                defaults.append(f"{_shown(model.defaults[field.name])} for {name}")
        parts.append(f"Default: {'; '.join(defaults)}.")
    return " ".join(parts)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def given_values(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line, by field.

    Raises:
        ValueError: if sizes are not integers separated by commas.
    """
    values = {}
    for name, value in options.items():
        if value is None:
            continue
        sizes = option_kind(config, name) == tuple[int, ...]
        values[name] = _sizes(flag(name), value) if sizes else value
    return values


def _sizes(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            f"{option} must be sizes separated by commas, such as 200,200; got {text!r}"
        ) from None
