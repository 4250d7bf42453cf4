"""The pages and examples: where they are, and the code in them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: read by people: what GitHub shows and what Sphinx makes
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("api/*.md"), *ROOT.glob("examples/*.md")]
)

# A block of a language, or one in a comment, which is run and not shown.
_BLOCK = re.compile(r"^```(.*?)\n(.*?)^```$|^<!-- python\n(.*?)^-->$", re.DOTALL | re.MULTILINE)
_QUICK = re.compile(r"^<!-- quick: (.+) -> (.+) -->$", re.MULTILINE)
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"^(```+)[^\n]*\n.*?^\1", re.DOTALL | re.MULTILINE)
_NEEDS = re.compile(r"^<!-- needs: ([\w, ]+) -->$", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks(text: str) -> list[str]:
    blocks = _BLOCK.findall(text)
    return [hidden or shown for language, shown, hidden in blocks if hidden or language == "python"]


def needed(text: str) -> list[str]:
    """Libraries without which the page's code is left out."""
    return [name.strip() for found in _NEEDS.findall(text) for name in found.split(",")]


def quick(text: str) -> str:
    """The page with the small settings of its comments, `<!-- quick: range(20) -> range(2) -->`."""
    changes = _QUICK.findall(text)
    text = _QUICK.sub("", text)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def commands(text: str) -> list[str]:
    """Lines of the page's sh blocks, joined where they go on."""
    joined = "\n".join(_SHELL.findall(text)).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def prose(text: str) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", text)


def load_path(path: Path) -> Any:
    """A file of Python that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
