"""One HTML page of the report's sections: tables, text and charts in a single file."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from figures import Chart, Section, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --miss: #c62828; --met: #2e7d32; }
@media (prefers-color-scheme: dark) { :root { --miss: #ff8a80; --met: #81c784; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1160px; padding: 0 1rem;
  background: Canvas; color: CanvasText; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, ul { max-width: 75ch; }
code { background: var(--soft); padding: 0 .25em; border-radius: 3px; overflow-wrap: anywhere; }
nav a { margin-right: 1em; }
.wide { overflow-x: auto; }
td:not(:first-child):not(.text) { white-space: nowrap; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .6em; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .text { text-align: left; }
th { position: sticky; top: 0; background: Canvas; }
figure { margin: 1.5rem 0; }
figure svg { width: 100%; height: auto; display: block; }
.missed { color: var(--miss); font-weight: 600; }
.met { color: var(--met); }
"""


def inline(text: str) -> str:
    """`code` and **strong** of Markdown; the rest escaped."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r'<span class="missed">\1</span>', text)


def paragraphs(text: str) -> str:
    """Paragraphs, and lists of lines that begin with a dash."""
    out = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("- "):
            items = "".join(f"<li>{inline(line[2:])}</li>" for line in block.splitlines())
            out.append(f"<ul>{items}</ul>")
        else:
            out.append(f"<p>{inline(block)}</p>")
    return "\n".join(out)


def rows(of: Table) -> str:
    """A table that scrolls where it is wider than the page."""

    def cells(tag: str, row: list[str]) -> str:
        made = []
        for i, cell in enumerate(row):
            left = of.text and of.head[i] in of.text
            kind = ' class="text"' if left else ' class="met"' if cell == "met" else ""
            made.append(f"<{tag}{kind}>{inline(cell)}</{tag}>")
        return "<tr>" + "".join(made) + "</tr>"

    body = "\n".join(cells("td", row) for row in of.rows)
    return (
        f'<div class="wide"><table><thead>{cells("th", of.head)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page; it needs no other file."""
    parts, links = [], []
    for number, section in enumerate(sections):
        if section.title:
            links.append(f'<a href="#s{number}">{html.escape(section.title)}</a>')
            parts.append(f'<h2 id="s{number}">{html.escape(section.title)}</h2>')
        for part in section.parts:
            if isinstance(part, Table):
                parts.append(rows(part))
            elif isinstance(part, Chart):
                if part.svg:
                    parts.append(f"<figure>{part.svg}</figure>")
            else:
                parts.append(paragraphs(part))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n<nav>{' '.join(links)}</nav>\n{body}\n"
        f"</body></html>\n"
    )
