"""Pages: everything inside, everything escaped, names inside figures that do not collide."""

from __future__ import annotations

import re

from page_scenarios import Outline

from recipes.reporting.figures import panels
from recipes.reporting.html_page import (
    Section,
    Tile,
    command,
    document,
    drawing,
    folded,
    joined,
    listed,
    paragraph,
    subheading,
    table,
    tiles,
)

HOSTILE = """</style><script>alert("1")</script><img src=x onerror='a'> & $x$ _b"""


def hostile_page() -> bytes:
    figures = []
    for key in ("one", "two"):
        figure, [[axes]] = panels(1, 1, HOSTILE.replace("$", ""), size=(4, 3))
        axes.plot([0, 1], [0, 1])
        axes.fill_between([0, 1], [0, 1], hatch="///")
        figures.append(drawing(figure, HOSTILE, key))
    body = joined(
        *figures,
        table([("a", HOSTILE), (HOSTILE, HOSTILE)], HOSTILE),
        listed([HOSTILE]),
        paragraph(HOSTILE),
        command(HOSTILE),
        folded(HOSTILE, subheading(HOSTILE)),
    )
    tile = Tile(HOSTILE, HOSTILE, HOSTILE)
    return document(HOSTILE, HOSTILE, tiles([tile]), [Section(HOSTILE, body)], HOSTILE)


def test_a_page_runs_and_loads_nothing_whatever_somebody_wrote_and_is_made_again():
    made = hostile_page()
    page = Outline(made)
    assert not {"script", "img", "link", "iframe", "object"} & page.elements
    assert page.text.count(HOSTILE) >= 14
    assert page.addresses == []
    assert b"url(http" not in made and b"@import" not in made
    # The names inside one figure are not those of another.
    assert len(page.ids) == len(set(page.ids))
    assert page.references and page.references <= set(page.ids)
    assert hostile_page() == made


def test_numbers_stand_to_the_right_and_words_to_the_left():
    rows = [
        ("name", "score", "cost", "time", "device", "rate"),
        ("a", "83.4", "$1,234.50", "3m07s", "2 × cpu", "5e-05"),
        ("b", "9", "not published", "42s", "8 × A100", "0.0004"),
    ]
    kinds = re.findall(r'<th scope="col"( class="number")?>(\w+)', table(rows))
    assert [name for right, name in kinds if right] == ["score", "cost", "time", "rate"]
