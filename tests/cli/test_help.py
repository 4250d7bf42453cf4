"""What ``--help`` shows in terminals of any width, and what a shell completes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from dvae_fast import cli
from dvae_fast.cli.options import completing
from dvae_fast.models.config import GROUPS
from dvae_fast.objectives import OBJECTIVES

COMMANDS = ("train", "evaluate", "sample", "reproduce", "info", "check")


def shown(width: int, *arguments: str) -> str:
    result = CliRunner().invoke(cli.app, [*arguments, "--help"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    return result.output


def _plain(text: str) -> str:
    """Without breaks of lines: a long word is cut in narrow terminals."""
    return re.sub(r"\s|\\\n", "", text)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_fits_every_terminal(command: tuple[str, ...]) -> None:
    wide = _plain(shown(200, *command))
    for width in (80, 60, 30):
        text = shown(width, *command)
        # What is to be typed is never cut: an option, or a word of the example.
        over = [line for line in text.splitlines() if len(line) >= width]
        assert not [line for line in over if len(line.split()) > 1], (width, over)
        assert not over or width < 60
        assert _plain(text) == wide
    assert max(map(len, shown(300, *command).splitlines())) <= 100


def test_options_are_in_their_groups() -> None:
    lines = shown(80, "train").splitlines()
    titles = [line for line in lines if line in (*GROUPS, "Options", "Example")]
    assert titles == [*GROUPS, "Options", "Example"]

    def group(option: str) -> str:
        (at,) = (i for i, line in enumerate(lines) if re.match(rf"  (-\w, )?{option}(,| |$)", line))
        return [line for line in lines[:at] if line in GROUPS][-1]

    for option, expected in (
        ("--data", "Data"), ("--binarise", "Data"), ("--model", "Model"), ("--prior", "Model"),
        ("--level", "Model"), ("--objective", "Objective"), ("--samples", "Objective"),
        ("--kl-warmup", "Objective"), ("--epochs", "Training"), ("--device", "Training"),
        ("--run-dir", "Output"), ("--quiet", "Output"),
    ):  # fmt: skip
        assert group(option) == expected, option
    assert lines[lines.index("Model") + 1].startswith("  --model NAME")
    assert lines[lines.index("Data") + 1].startswith("  --data TEXT")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_is_one_that_would_run(command: str) -> None:
    """Its options are there, whatever they then find."""
    text = shown(80, command)
    example = re.sub(r"\s*\\\n\s*", " ", text.partition("\nExample\n")[2]).strip()
    program, name, *words = example.split()
    assert (program, name) == ("dvae-fast", command)
    known = {flag for p in _commands()[command].params for flag in (*p.opts, *p.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


def _commands() -> Any:
    root: Any = get_command(cli.app)
    return root.commands


def test_kinds_and_defaults_are_told() -> None:
    text = shown(80, "evaluate")
    assert re.search(r"-k, --k N +Importance samples", text)
    assert re.search(r"--tolerance NUMBER ", text)
    assert re.search(r"--out PATH ", text)
    assert re.search(r"--split NAME +One of train, valid, test. Default: test.", text)
    assert re.search(r"--compile +Run", text), "a switch takes nothing"
    assert re.search(r"--rows NAME ", shown(80, "reproduce"))


def test_without_a_terminal_nothing_is_bold() -> None:
    assert "\x1b" not in shown(80, "train")


def test_choices_are_completed() -> None:
    assert completing(OBJECTIVES)("iwa") == ["iwae", "iwae_joint"]
    assert completing(OBJECTIVES)("x") == []
    for words, expected in (
        ("dvae-fast ev", "evaluate"),
        ("dvae-fast train --obj", "--objective"),
        ("dvae-fast train --objective iwae_", "iwae_joint"),
        ("dvae-fast evaluate --proposal mi", "mixture"),
        ("dvae-fast reproduce --scale f", "full"),
    ):
        environment = {
            "_DVAE_FAST_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }  # fmt: skip
        result = CliRunner().invoke(cli.app, [], env=environment, prog_name="dvae-fast")
        assert expected in result.output.split(), (words, result.output)
    for shell in ("bash", "zsh", "fish"):
        environment = {"_DVAE_FAST_COMPLETE": f"source_{shell}"}
        result = CliRunner().invoke(cli.app, [], env=environment, prog_name="dvae-fast")
        assert "_DVAE_FAST_COMPLETE" in result.output
