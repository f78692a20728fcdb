"""Pages of HTML: one file each, with its style and its figures inside, without any JavaScript.

Text becomes `Markup` in this file alone, and is escaped as it does: names of runs, labels and paths
are somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, NewType
from xml.etree import ElementTree

from matplotlib.figure import Figure

from recipes.common.tables import Rows
from recipes.reporting.figures import svg_of

Markup = NewType("Markup", str)
"""HTML; what it shows is escaped."""

NOTHING = Markup("")
_STYLE = Path(__file__).with_name("page.css")
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"[-+~±$]?\d[\d.,]*(e[-+]?\d+)?%?( ?[a-zµ]{1,3}(\d\d[a-z])?)?")
"""A cell that is read as a number: 1,234, $2.50, 12.3%, 5e-05, 3m07s."""


class Section(NamedTuple):
    """A part of a page, with a heading and a place in the list of contents."""

    title: str
    body: Markup


class Tile(NamedTuple):
    """A number that matters: what it is, its value, and what to compare it with."""

    label: str
    value: str
    note: str = ""


def joined(*parts: Markup) -> Markup:
    """Return the parts one after the other."""
    return Markup("\n".join(part for part in parts if part))


def paragraph(text: str, kind: str = "") -> Markup:
    """Return a paragraph; `kind` is `lead`, `warning` or plain."""
    return Markup(f"<p{_class(kind)}>{escape(text)}</p>")


def subheading(text: str) -> Markup:
    """Return a heading within a section."""
    return Markup(f"<h3>{escape(text)}</h3>")


def command(line: str) -> Markup:
    """Return a line to type."""
    return Markup(f"<p><code>{escape(line)}</code></p>")


def listed(items: Sequence[str]) -> Markup:
    """Return a list of sentences; nothing without any."""
    if not items:
        return NOTHING
    return Markup(f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>")


def tiles(numbers: Sequence[Tile]) -> Markup:
    """Return the numbers that matter, large."""
    parts = []
    for tile in numbers:
        note = f"<small>{escape(tile.note)}</small>" if tile.note else ""
        value = f"<dd>{escape(tile.value)}{note}</dd>"
        parts.append(f"<div><dt>{escape(tile.label)}</dt>{value}</div>")
    return Markup(f'<dl class="tiles">{"".join(parts)}</dl>')


def table(rows: Rows, caption: str = "") -> Markup:
    """Return a table; columns of numbers stand to the right.

    Args:
        rows: cells of text, the first row the header, the first column what a row is about.
    """
    header, *body = rows
    columns = list(zip(*body, strict=True)) if body else [() for _ in header]
    kinds = ["" if number == 0 else _kind_of(column) for number, column in enumerate(columns)]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{escape(cell)}</th>'
        for cell, kind in zip(header, kinds, strict=True)
    )
    lines = []
    for first, *others in body:
        cells = (
            f"<td{_class(kind)}>{escape(cell)}</td>"
            for cell, kind in zip(others, kinds[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>')
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    inside = f"{said}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return Markup(f'<div class="scroll"><table>{inside}</table></div>')


def folded(summary: str, body: Markup) -> Markup:
    """Return something that a reader unfolds."""
    return Markup(f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>")


def drawing(figure: Figure, caption: str, key: str) -> Markup:
    """Return a figure with its caption.

    Args:
        key: sets the names inside it apart from those of the page's other figures.
    """
    svg = _inline(svg_of(figure), caption, key)
    return Markup(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")


def document(
    title: str, lead: str, first: Markup, sections: Sequence[Section], footer: str = ""
) -> bytes:
    """Return a whole page.

    Args:
        lead: the sentence under the title.
        first: what the first screen shows.
        footer: how the page came about.
    """
    links = " ".join(
        f'<a href="#part-{number}">{escape(section.title)}</a>'
        for number, section in enumerate(sections, 1)
    )
    parts = "\n".join(
        f'<section id="part-{number}">\n<h2>{escape(section.title)}</h2>\n{section.body}\n'
        "</section>"
        for number, section in enumerate(sections, 1)
    )
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{_STYLE.read_text("utf-8")}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{paragraph(lead, "lead")}
{first}
<nav aria-label="Contents">{links}</nav>
</header>
<main>
{parts}
</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""
    return text.encode("utf-8", "replace")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _kind_of(column: Sequence[str]) -> str:
    """Return `number` for a column of numbers, some of which may be missing in a few words."""
    others = [cell for cell in column if not _NUMBER.fullmatch(cell)]
    wordy = any(len(cell) > 16 or any(map(str.isdigit, cell)) for cell in others)
    if len(others) < len(column) and not wordy:
        return "number"
    return "long" if any(len(cell) > 40 for cell in column) else ""


def _inline(svg: bytes, caption: str, key: str) -> str:
    """Return the SVG element for a page, its identifiers numbered anew behind `key`."""
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    names = {
        name: f"{key}-{number}"
        for number, name in enumerate(each.get("id", "") for each in root.iter())
        if name
    }
    for each in root.iter():
        for attribute, value in each.attrib.items():
            if attribute == "id":
                each.set(attribute, names[value])
            elif attribute == f"{{{_XLINK}}}href" and value.startswith("#"):
                each.set(attribute, f"#{names[value[1:]]}")
            elif found := _REFERENCE.fullmatch(value):
                each.set(attribute, f"url(#{names[found[1]]})")
            elif attribute == "style" and "url(#" in value:
                each.set(attribute, _REFERENCE.sub(lambda m: f"url(#{names[m[1]]})", value))
    root.set("role", "img")
    root.set("aria-label", caption)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")
