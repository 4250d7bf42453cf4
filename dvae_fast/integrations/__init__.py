"""Other libraries' models, trainers and metrics: one module a library, imported only by who asks.

`lightning`, `torchmetrics`, `pyro`, `scvi` and `pythae`. Where the library is missing, or of a
version that is too old, importing the module says so in one line.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from dvae_fast._extras import MissingExtraError, require

__all__ = ["library"]


def library(module: str, package: str, least: str) -> Any:
    """The module of a library.

    Args:
        module: what is imported.
        package: what pip installs.
        least: the oldest version that will do.

    Raises:
        MissingExtraError: if it is not installed, is older, or cannot be imported.
    """
    top = module.partition(".")[0]
    purpose = f"dvae_fast.integrations.{top}"
    try:
        found = require(module, package, purpose, extra=None)
    except MissingExtraError:
        raise
    except Exception as error:  # whatever a library that does not fit raises at its import
        said = " ".join(str(error).split()) or type(error).__name__
        raise MissingExtraError(f"{purpose} cannot import {package}: {said}") from error
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # by another name: lightning's, say
        version = getattr(found, "__version__", least)
    if _numbers(version) < _numbers(least):
        raise MissingExtraError(
            f"{purpose} needs {package} {least} or newer, got {version}: "
            f"pip install -U '{package}>={least}'"
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
