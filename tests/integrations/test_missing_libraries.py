"""A library that is missing, too old or broken is one line; none is imported unasked."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import types
from typing import Any

import pytest

from dvae_fast._extras import MissingExtraError
from dvae_fast.integrations import library

LIBRARIES = {
    "lightning": "lightning", "torchmetrics": "torchmetrics", "pyro": "pyro-ppl",
    "pythae": "pythae", "scvi": "scvi-tools",
}  # fmt: skip


def _forget(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known in list(sys.modules):
        if known.partition(".")[0] == name or known == f"dvae_fast.integrations.{name}":
            monkeypatch.delitem(sys.modules, known)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, name)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(f"dvae_fast.integrations.{name}")
    assert str(caught.value) == (
        f"dvae_fast.integrations.{name} needs the package {LIBRARIES[name]}, which is not "
        f"installed: pip install {LIBRARIES[name]}"
    )


def test_an_old_one_says_which_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "old_library", types.ModuleType("old_library"))
    versions = {"old-library": "1.9.10.post2"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    assert library("old_library", "old-library", "1.9.2") is sys.modules["old_library"]
    with pytest.raises(MissingExtraError) as caught:
        library("old_library", "old-library", "1.10")
    assert str(caught.value) == (
        "dvae_fast.integrations.old_library needs old-library 1.10 or newer, got 1.9.10.post2: "
        "pip install -U 'old-library>=1.10'"
    )


def test_a_broken_one_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("compiled for\nanother torch")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match="cannot import old-library: compiled for another"):
        library("old_library", "old-library", "1.10")


@pytest.mark.process
def test_nothing_is_imported_unasked() -> None:
    """Nor what only a command, a picture or a table needs, the table of cases, and torch's
    compiler, which takes as long to load as torch itself."""
    unasked = (
        *LIBRARIES, "pytorch_lightning", "matplotlib", "pandas", "sklearn", "scipy", "tensorboard",
        "typer", "rich", "safetensors", "pooch", "anndata", "h5py", "PIL",
        "torch._dynamo", "dvae_fast.checking",
    )  # fmt: skip
    code = (
        "import sys, torch; before = {*sys.modules}; import dvae_fast; "
        f"print([n for n in {unasked!r} if n in sys.modules and n not in before]); "
        "dvae_fast.check"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
