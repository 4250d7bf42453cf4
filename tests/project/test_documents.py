"""The documents: their code runs, their commands have those options, their links lead on."""

from __future__ import annotations

import re
import shlex
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from documents import DOCS, PAGES, ROOT, commands, name_of, needed, prose, python_blocks, quick

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {name_of(page): page.read_text() for page in PAGES}
WITH_CODE = [name for name, text in TEXTS.items() if python_blocks(text)]


# --- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.library] if needed(TEXTS[name]) else [])
        for name in WITH_CODE
    ],
)
def test_its_blocks_run_one_after_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in needed(TEXTS[name]):
        warnings.simplefilter("ignore")  # the libraries' own; pytest puts the filters back
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in python_blocks(quick(TEXTS[name])):
        exec(compile(block, name, "exec"), names)


def test_pages_with_code_are_found() -> None:
    assert {"README.md", "docs/tour.md", "docs/likelihoods.md", "docs/data.md"} <= {*WITH_CODE}


# --- commands -------------------------------------------------------------------------------------

ALL_COMMANDS = [(name, line) for name, text in TEXTS.items() for line in commands(text)]
OURS = re.compile(r"^(?:dvae-fast|torchrun .*?-m dvae_fast) +(?P<rest>.*)$")


def test_commands_have_the_options_that_are_named() -> None:
    from dvae_fast.cli import app

    group: Any = typer.main.get_command(app)
    seen = set()
    for name, line in ALL_COMMANDS:
        if not (found := OURS.match(line)):
            continue
        command, *arguments = shlex.split(found["rest"], comments=True)
        assert command in group.commands, f"{name}: {line}"
        try:
            group.commands[command].make_context(command, arguments)
        except Exception as error:
            pytest.fail(f"{name}: {line}: {error}")
        seen.add(command)
    assert seen >= {"train", "evaluate", "sample", "reproduce", "info", "check"}


def test_targets_and_scripts_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    seen = 0
    for name, line in ALL_COMMANDS:
        first, *rest = shlex.split(line, comments=True) or [""]
        if first == "make":
            seen += 1
            assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE), f"{name}: {line}"
        for word in (first, *rest):
            if re.fullmatch(r"(scripts|docs|examples|benchmarks)/[\w/]+\.(py|sh)", word):
                seen += 1
                assert (ROOT / word).is_file(), f"{name}: {line}"
    assert seen > 5


# --- links ----------------------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^()\s]+)\)")


def anchors(text: str) -> set[str]:
    """Those of the headings, as GitHub and MyST make them."""
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_its_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(prose(TEXTS[name])):
        if "://" in link:
            assert link.startswith("https://"), link
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name}: {link}"
        assert target.is_relative_to(ROOT), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name}: {link}"


def test_every_page_is_in_the_book() -> None:
    for index, folder in (("index.md", DOCS), ("api/index.md", DOCS / "api")):
        text = (DOCS / index).read_text()
        trees = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
        lines = {line for tree in trees for line in tree.splitlines()}
        listed = {line for line in lines if line and not line.startswith(":")}
        pages = {path.stem for path in (*folder.glob("*.md"), *folder.glob("*.ipynb"))} - {"index"}
        assert pages <= listed, sorted(pages - listed)
        assert listed <= pages | {"api/index"}, sorted(listed - pages)


def test_pictures_have_a_text_in_their_place() -> None:
    seen = 0
    for name, text in TEXTS.items():
        for alternative, place in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", text):
            seen += 1
            assert len(alternative.split()) > 1, f"{name}: {place}"
    assert seen > 5


# --- numbers --------------------------------------------------------------------------------------


def test_ratios_of_the_readme_are_measured() -> None:
    results = (ROOT / "benchmarks" / "report" / "RESULTS.md").read_text()
    measured = [float(number) for number in re.findall(r"\| (\d+\.\d+)×? \(", results)]
    table = (ROOT / "README.md").read_text().split("## How fast")[1].split("\n## ")[0]
    cells = [cell for row in table.splitlines() for cell in row.split("|")[2:]]
    ratios = re.findall(r"(\d+(?:\.\d+)?)×", " ".join(cells))
    assert ratios
    for ratio in ratios:
        digits = len(ratio.partition(".")[2])
        near = 0.5 * 10**-digits + 1e-9
        assert any(abs(float(ratio) - other) <= near for other in measured), ratio
