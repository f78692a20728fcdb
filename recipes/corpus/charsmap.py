"""SentencePiece's character map: which sequences of characters it makes one character of.

The map is a list of strings and what becomes of them; at every place of a text the longest string
that is there counts. It is stored as a double-array trie over UTF-8 (Darts; Aoe, 1989): a little-
endian u32 with the size of the trie in bytes, its units (u32 each), then the replacements.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from functools import cache

import numpy as np


@cache
def sequences_pattern(charsmap: bytes) -> str:
    """Return a regular expression of the strings of several characters, longer ones first.

    They are 220,000 in SentencePiece's maps, but of few kinds: a base with one or two marks, the
    parts of a Korean syllable. Bases that the same marks may follow are one class of characters.
    """
    bases: dict[str, set[str]] = defaultdict(set)  # by what may follow
    for followed_by, firsts in _by_first_character(charsmap):
        for rest in followed_by:
            bases[rest].update(firsts)
    rests: dict[frozenset[str], list[str]] = defaultdict(list)
    for rest, found in bases.items():
        rests[frozenset(found)].append(rest)
    longest = max(map(len, bases), default=0)
    groups = [
        f"[{_class(characters)}](?:{'|'.join(map(re.escape, sorted(fitting)))})"
        for length in range(longest, 0, -1)
        for characters, all_rests in sorted(rests.items(), key=lambda item: min(item[1]))
        if (fitting := [rest for rest in all_rests if len(rest) == length])
    ]
    return "|".join(groups)


def _class(characters: frozenset[str]) -> str:
    """Return the inside of a class of characters, neighbours as a range."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(
        re.escape(chr(first)) + (f"-{re.escape(chr(last))}" if last > first else "")
        for first, last in ranges
    )


def _by_first_character(charsmap: bytes) -> list[tuple[list[str], list[str]]]:
    """Return first characters, those together that the same rests may follow, with these."""
    size = struct.unpack_from("<I", charsmap)[0]
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    offsets = (units >> 10) << ((units & 512) >> 6)
    labels = units & 0x800000FF
    ends = ((units >> 8) & 1).astype(bool)
    children = _children(offsets, labels)
    known: dict[int, frozenset[bytes]] = {}

    def rests(node: int) -> frozenset[bytes]:
        if node not in known:
            own = [b""] if ends[node] else []
            behind = [bytes([b]) + rest for b, to in children[node] for rest in rests(to)]
            known[node] = frozenset(own + behind)
        return known[node]

    found: dict[frozenset[bytes], list[str]] = defaultdict(list)
    unfinished = [(bytes([byte]), node) for byte, node in children[0]]
    while unfinished:
        start, node = unfinished.pop()
        if len(start) == _utf8_length(start[0]):
            found[rests(node)].append(start.decode())
        else:
            unfinished += [(start + bytes([byte]), to) for byte, to in children[node]]
    return [([r.decode() for r in of if r], firsts) for of, firsts in found.items()]


def _children(offsets: np.ndarray, labels: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """Return the byte and the number of each child by the number of a node, from the root 0 on."""
    children: dict[int, list[tuple[int, int]]] = {0: []}
    codes = np.arange(1, 256)
    level = np.array([0])
    while len(level):
        there = (level ^ offsets[level])[:, None] ^ codes  # [nodes, 255]
        inside = there < len(labels)
        inside &= labels[np.where(inside, there, 0)] == codes
        rows, columns = np.nonzero(inside)
        nodes = there[rows, columns]
        for parent, code, node in zip(
            level[rows].tolist(), codes[columns].tolist(), nodes.tolist(), strict=True
        ):
            children[parent].append((code, node))
        # Equal endings share their nodes.
        new = sorted(set(nodes.tolist()) - children.keys())
        children |= {node: [] for node in new}
        level = np.array(new, np.int64)
    return children


def _utf8_length(first: int) -> int:
    """Count the bytes of a character by its first one."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
