"""The command line within the process of the tests."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
from sklearn import datasets
from typer import testing
from typer.testing import CliRunner

from dvae_fast import cli, plots

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

# Unpacked for each data set that is made of them.
datasets.load_digits = functools.cache(datasets.load_digits)
# Made anew of every option of every command for each call, it takes longest of most.
testing._get_command = functools.cache(testing._get_command)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def ok(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(message: str, *arguments: str | Path) -> None:
    """Exit code 2, one line, which says so."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("dvae-fast: ")
    assert message in result.output
    assert result.output.count("\n") == 1
    assert isinstance(result.exception, SystemExit)


def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich wraps and colours by the terminal; a fixed one makes the output the same everywhere."""
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and what is written is the head of a PNG: pixels take longest, and what
    they are tests/test_plots.py has."""
    monkeypatch.setattr(plots, "_encoded", lambda *_: b"\x89PNG\r\n\x1a\n" + bytes(1000))


def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest of a command."""
    monkeypatch.setattr(cli.train, "run_pictures", lambda *_: [])
    monkeypatch.setattr(cli.results, "evaluation_pictures", lambda *_: None)


def trained_run(factory: pytest.TempPathFactory, *options: str) -> Path:
    """The folder of a run of these options, without pictures."""
    folder = factory.mktemp("run") / "it"
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        ok("train", *options, "--run-dir", folder)
    return folder
