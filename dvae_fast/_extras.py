"""Optional packages, imported where they are used, with one line of advice where they are not."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["INSTALL", "MissingExtraError", "require"]

_INSTALL = "pip install 'dvae_fast[{}]'"
INSTALL = _INSTALL.format("train")


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names it and the command that helps."""


def require(module: str, package: str, purpose: str, extra: str | None = "train") -> Any:
    """The module, or a MissingExtraError that says which package is missing and how to get it: by
    an extra of this package, or by its own name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks one of its own dependencies is told apart by name.
        name = (error.name or package).partition(".")[0]
        missing = package if name == module.partition(".")[0] else f"{package} (it needs {name})"
        raise MissingExtraError(
            f"{purpose} needs the package {missing}, which is not installed: "
            f"{_INSTALL.format(extra) if extra else f'pip install {package}'}"
        ) from None
