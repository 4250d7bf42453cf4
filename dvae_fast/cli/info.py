"""``dvae-fast info``."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from dvae_fast._extras import INSTALL
from dvae_fast.cli.console import two_columns
from dvae_fast.cli.outlet import new_console

__all__ = ["info_command"]


def info_command() -> None:
    """Versions, backends, the instruction set in use, and what is missing."""
    from dvae_fast._build import build_info

    console = new_console()
    info = dict(build_info())
    missing = [*info.pop("missing", []), *_missing_extras()]
    rows = [(_label(name), _shown(value)) for name, value in info.items()]
    data = os.environ.get("DVAE_FAST_DATA")
    rows.append(("data folder", data or "DVAE_FAST_DATA is not set: digits, and MNIST by download"))
    console.print(two_columns(rows, "This installation"))
    for sentence in missing:
        console.print(f"• {sentence}", soft_wrap=True, markup=False)
    if not missing:
        console.print("Nothing is missing.")


#: optional packages beyond the two this module needs: what imports, what installs, what for
_EXTRAS = (
    ("safetensors", "safetensors", "saving and reading runs"),
    ("sklearn", "scikit-learn", "the data set 'digits'"),
    ("matplotlib", "matplotlib", "pictures"),
    ("tensorboard", "tensorboard", "TensorBoard's events"),
    ("pooch", "pooch", "downloading MNIST"),
)


def _missing_extras() -> list[str]:
    return [
        f"The package {package}, for {purpose}: {INSTALL}"
        for module, package, purpose in _EXTRAS
        if importlib.util.find_spec(module) is None
    ]


def _label(name: str) -> str:
    return name if name == "dvae_fast" else name.replace("_", " ")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
