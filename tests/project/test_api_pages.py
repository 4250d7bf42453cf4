"""The API pages name everything that is public, and nothing that is not there."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS

import dvae_fast

#: what speaks for itself elsewhere, the commands and the papers' tables; and what needs libraries
#: that may not be here
ELSEWHERE = {"cli", "reproduction", "integrations"}

INTEGRATIONS = "dvae_fast.integrations."

_DIRECTIVE = re.compile(r"^\.\. (auto|py:|)(\w+):: +(\S+)$", re.MULTILINE)


def documented() -> list[str]:
    """Full names, as the pages' directives have them."""
    names = []
    for page in sorted((DOCS / "api").glob("*.md")):
        module = "dvae_fast"
        for prefix, kind, name in _DIRECTIVE.findall(page.read_text()):
            if kind == "currentmodule":
                module = name
            elif kind == "module":
                if not name.startswith(INTEGRATIONS):
                    names.append(name)
            elif prefix:
                names.append(f"{module}.{name}")
    return names


def found(name: str) -> Any:
    """What has that full name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(importlib.import_module(module), last)


DOCUMENTED = documented()
PUBLIC = [
    module.name
    for module in pkgutil.iter_modules(dvae_fast.__path__)
    if not module.name.startswith("_") and module.name not in ELSEWHERE
]


@pytest.mark.parametrize("module", ["", *PUBLIC])
def test_whatever_is_public_has_its_place(module: str) -> None:
    full = f"dvae_fast.{module}".rstrip(".")
    here = importlib.import_module(full)
    # The same object under another name will do, but for values such as ("posterior", …).
    objects = {id(found(name)) for name in DOCUMENTED}
    missing = [
        name
        for name in getattr(here, "__all__", [])
        if f"{full}.{name}" not in DOCUMENTED
        and not (callable(getattr(here, name)) and id(getattr(here, name)) in objects)
    ]
    assert not missing, f"{full} has {', '.join(missing)}, of which docs/api/ says nothing"


def test_every_integration_has_its_place() -> None:
    folder = Path(dvae_fast.__file__).parent / "integrations"
    page = (DOCS / "api" / "integrations.md").read_text()
    named = {name for _, kind, name in _DIRECTIVE.findall(page) if kind == "module"}
    assert named == {INTEGRATIONS + path.stem for path in folder.glob("[a-z]*.py")}


def test_nothing_is_there_twice() -> None:
    assert len(DOCUMENTED) == len({*DOCUMENTED})
    assert len(DOCUMENTED) > 150


def test_what_is_named_is_public() -> None:
    for name in DOCUMENTED:
        module, _, last = name.rpartition(".")
        found(name)
        assert not last.startswith("_") or last == "__version__", name
        if (listed := getattr(importlib.import_module(module), "__all__", None)) is not None:
            assert last in listed or module == "dvae_fast", name
