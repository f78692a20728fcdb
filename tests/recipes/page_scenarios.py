"""Reads pages of HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """Elements, identifiers, references and text of a page; fails where elements do not nest."""

    def __init__(self, page: bytes):
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.text += " "
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            value = value or ""
            assert not name.startswith("on"), "a page needs no JavaScript"
            self.ids += [value] * (name == "id")
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value))
            if name in ("href", "src", "xlink:href"):
                self.references |= {value[1:]} if value.startswith("#") else set()
                self.addresses += [] if value.startswith("#") else [value]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
