"""English text found on every machine with Python: its language reference and its docstrings.

The reference is `pydoc_data.topics`; the docstrings are those of the standard library, parsed from
the source files with `ast`, so that nothing is imported or run. Grammar rules, code, doctests,
signatures and markup are removed, and so is every paragraph seen before: what stays is prose.
A few megabytes, in the same order on every machine with the same Python.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from recipes.common.chunks import chunks
from recipes.common.errors import UserError

DOCUMENT_CHARACTERS = 4000
"""Paragraphs of one module are gathered into documents of about this length."""

# Folders that are not the standard library, or that hold tables and samples without prose.
_SKIPPED_FOLDERS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "encodings",
        "_vendor",
    }
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_UNDERLINE = re.compile(r"^[ \t]*([=*\-~^\"#.+|_])\1{2,}[ \t]*$", re.MULTILINE)
_ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?!?([^`<]+)(?:<[^`]*>)?`")
_FIELD = re.compile(r"^[ \t]*(?::(?:param|type|raises?|returns?|rtype)\b[^:\n]*:|@\w+:)", re.M)
_QUOTED = re.compile(r"(`{1,2}|\*{1,2}|\|)(?=\S)([^`*|\n]+?)(?<=\S)\1")
_BULLET = re.compile(r"^(?:[-*+•]|\d{1,2}[.)])\s+")
_WORD = re.compile(r"[A-Za-z][a-z'’]+\b")
_PUNCTUATION = re.compile(r"[^\w\s.,;:'’\"“”()\-?!]|::|\(\)|_")

_MINIMUM_WORDS = 4
_MINIMUM_WORD_SHARE = 0.6  # of the characters: prose has 0.75 and more, code and tables 0.2 to 0.5
_MAXIMUM_SYMBOL_SHARE = 0.06  # of the characters; operators, brackets and underscores of code


@cache
def python_documents() -> tuple[str, ...]:
    """Read the documents, paragraphs of prose joined by newlines: topics, then modules by path.

    Raises:
        UserError: this Python has neither the topics nor the sources (a stripped installation).
    """
    seen: set[str] = set()
    documents: list[str] = []
    for texts in _sources():
        prose = dict.fromkeys(paragraph for text in texts for paragraph in paragraphs(text))
        fresh = [paragraph for paragraph in prose if paragraph not in seen]
        seen.update(fresh)
        documents += map("\n".join, chunks(fresh, len, size=DOCUMENT_CHARACTERS))
    if not documents:
        raise UserError(
            f"python-docs: this Python has no documentation in {_library()}; give --input"
        )
    return tuple(documents)


def source_bytes() -> int:
    """Sum up the bytes of the source files, which tell one installation from another."""
    return sum(path.stat().st_size for path in _source_files())


def paragraphs(text: str) -> list[str]:
    """Find the prose of a docstring or a page of the reference: one line per paragraph."""
    prose = []
    literal_indent = None  # of the paragraph that announced literal text by "::"
    for block in _BLANK_LINES.split(_UNDERLINE.sub("", inspect.cleandoc(text))):
        block = block.strip("\n")
        indent = len(block) - len(block.lstrip())
        if literal_indent is not None and indent > literal_indent:
            continue
        literal_indent = indent if block.endswith("::") else None
        line = _plain(block)
        if _is_prose(line):
            prose.append(line)
    return prose


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions, in the order of the file."""
    return _docstrings(ast.parse(source))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, _DOCUMENTED) and (docstring := ast.get_docstring(node, clean=False)):
        yield docstring
    # Statements only: `ast.walk` would visit every expression too, at three times the time.
    for block in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, block, ()):
            yield from _docstrings(child)


def _plain(block: str) -> str:
    block = block.strip()
    if block.startswith((">>>", "..", "$ ", "% ")) or "::=" in block:
        return ""
    if ">>>" in block:
        block = block[: block.index(">>>")]
    block = _FIELD.sub("", _ROLE.sub(r"\1", block))
    block = _QUOTED.sub(r"\2", block).replace("::", ":")
    return _BULLET.sub("", " ".join(block.split()))


def _is_prose(line: str) -> bool:
    words = _WORD.findall(line)
    return (
        len(words) >= _MINIMUM_WORDS
        and sum(len(word) + 1 for word in words) >= _MINIMUM_WORD_SHARE * len(line)
        and len(_PUNCTUATION.findall(line)) <= _MAXIMUM_SYMBOL_SHARE * len(line)
    )


def _sources() -> Iterator[list[str]]:
    try:
        from pydoc_data import topics

        yield from ([topics.topics[name]] for name in sorted(topics.topics))
    except ImportError:  # some distributions ship the reference apart
        pass
    for path in _source_files():
        try:
            yield list(docstrings(path.read_text(encoding="utf-8")))
        except (SyntaxError, UnicodeDecodeError):  # templates and files kept broken on purpose
            continue


def _source_files() -> list[Path]:
    library = _library()
    return sorted(
        path
        for path in library.rglob("*.py")
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(library).parts[:-1])
        and path.relative_to(library).parts[0] != "pydoc_data"
    )


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))
