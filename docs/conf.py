"""How Sphinx makes the pages of this folder: ``make docs``."""

from __future__ import annotations

import importlib
import re
import warnings
from typing import TYPE_CHECKING, Any

# Pages need no compiled library.
warnings.filterwarnings("ignore", message="dvae_fast: no compiled kernels")

import dvae_fast  # noqa: E402
from dvae_fast import integrations  # noqa: E402

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "dvae_fast"
author = "the dvae_fast authors"
copyright = f"2026, {author}"
version = release = dvae_fast.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["reproduction/*/*"]
# A single backtick is a name of the package, where there is one.
default_role = "py:obj"
highlight_language = "default"
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "dvae_fast"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_show_sphinx = False
pygments_dark_style = "github-dark"

autodoc_default_options = {"members": True}
# Their libraries need not be here: what stands on them is read with stand-ins.
autodoc_mock_imports = ["lightning", "pyro", "pythae", "scvi", "torchmetrics"]
integrations.library = lambda module, *_: importlib.import_module(module)
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_heading_anchors = 4
# Notebooks are shown with the outputs that they are kept with.
nb_execution_mode = "off"
# Attributes of one name in several classes, which `Attributes:` sections refer to.
suppress_warnings = ["ref.python"]

# Code between backticks and a stressed word, which are left as they are; or a star or a bar that
# would begin markup.
_MARKUP = re.compile(r"(``.*?``|`[^`]*`|\*\w+\*)|(?<![^\s'\"(\[{<\-/:])[*|](?=\S)")

# What would begin a list, and is what something is: "Z.", and of an argument "latent: Z.".
_LETTER = re.compile(r"^(\s*[\w*, ]+: |\s*(?=\(?[A-Za-z]))(\(?\w[.)])(?=\s|$)")


def _escape(_app: Sphinx, *about: Any) -> None:
    """Docstrings are plain text, but for blocks of code: (*L, B, Z) and |x| mean themselves."""
    lines: list[str] = about[-1]
    code: int | None = None  # how far the line is indented that a block of code belongs to
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if code is not None and (not line.strip() or indent > code):
            continue
        code = indent if line.rstrip().endswith("::") else None
        line = _MARKUP.sub(lambda found: found[1] or "\\" + found[0], line)
        lines[i] = _LETTER.sub(r"\1\\\2", line)


def _find_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """`Likelihood` in any docstring is the one object of that name."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removesuffix("()")
    python = env.domains.python_domain
    found = [
        (name, entry)
        for name, entry in python.objects.items()
        if name.endswith(f".{target}") and entry.objtype not in ("attribute", "property", "method")
    ]
    if len(found) != 1:
        return None
    from sphinx.util.nodes import make_refnode

    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [content], name)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
    app.connect("missing-reference", _find_by_last_name)
