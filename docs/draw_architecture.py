"""Draws docs/architecture.png: the chapters, their files, and which chapter imports which.

    python docs/draw_architecture.py

The picture is made from the imports in the source, so it shows what is and not what was meant.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.png"
CHAPTERS = {
    "commands": "what a user types",
    "benchmarks": "one file per measurement",
    "reporting": "runs → tables, figures, pages",
    "inference": "texts → predictions, vectors",
    "tasks": "labelled data → batches → scores",
    "planning": "memory and time of a run, foretold",
    "training": "settings, step, schedule, checkpoints, log",
    "engine": "process groups, DeepSpeed JSON, batch plan",
    "interop": "exports for and weights from other software",
    "corpus": "text → tokenizer → shards → masked batches",
    "common": "settings, errors, files, locks, processes",
    "model": "the library: padding → attention → layer → heads → loss",
}
"""From the top of the house to its ground; imports point downwards."""


def chapter_of(path: Path) -> str:
    """The chapter that a source file belongs to."""
    top, *rest = path.relative_to(ROOT).parts
    if top == "model":
        return "model"
    return rest[0] if len(rest) > 1 else "commands"


def sources() -> dict[str, list[Path]]:
    """The files of each chapter, without the empty `__init__.py`."""
    files: dict[str, list[Path]] = {chapter: [] for chapter in CHAPTERS}
    for folder in ("model", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                files[chapter_of(path)].append(path)
    return files


def imports(files: dict[str, list[Path]]) -> Counter[tuple[str, str]]:
    """How many files of one chapter import something of another."""
    found: Counter[tuple[str, str]] = Counter()
    for chapter, paths in files.items():
        for path in paths:
            targets = set()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    parts = node.module.split(".")
                    if parts[0] == "model":
                        targets.add("model")
                    elif parts[0] == "recipes":
                        inside = [parts[1]] if len(parts) > 1 else [n.name for n in node.names]
                        targets |= {name if name in CHAPTERS else "commands" for name in inside}
            found.update((chapter, target) for target in targets - {chapter})
    return found


def shown() -> str:
    """What the picture shows, as text: it is written into the picture, for a test to compare."""
    files = sources()
    lines = [f"{c}: {' '.join(p.stem for p in paths)}" for c, paths in files.items()]
    return "\n".join([*lines, *(f"{a} -> {b}" for a, b in sorted(imports(files)))])


def draw(path: Path = PICTURE) -> None:
    """Writes the picture."""
    files = sources()
    height = 1.08
    figure, axes = plt.subplots(figsize=(12, 11))
    place = {chapter: -number * 1.36 for number, chapter in enumerate(CHAPTERS)}
    for chapter, y in place.items():
        axes.add_patch(
            FancyBboxPatch(
                (0, y),
                8.2,
                height,
                boxstyle="round,pad=0.05",
                facecolor="#f4f4f0",
                edgecolor="#444",
            )
        )
        axes.text(0.1, y + 0.86, chapter, weight="bold", size=12, va="center")
        axes.text(2.0, y + 0.86, CHAPTERS[chapter], size=10, va="center", color="#333")
        names = ", ".join(
            p.stem
            if p.parent.name in CHAPTERS or p.parent.name == "recipes"
            else f"{p.parent.name}/{p.stem}"
            for p in files[chapter]
        )
        axes.text(
            0.1, y + 0.6, _wrapped(names), size=7.5, va="top", linespacing=1.1, family="monospace"
        )
    order = list(CHAPTERS)
    for (source, target), count in sorted(imports(files).items()):
        steps = order.index(target) - order.index(source)
        axes.add_patch(
            FancyArrowPatch(
                (8.27, place[source] + 0.5),
                (8.27, place[target] + 0.5),
                connectionstyle=f"arc3,rad={-0.55 + 0.03 * abs(steps)}",
                arrowstyle="-|>",
                mutation_scale=11,
                linewidth=0.5 + 0.16 * count,
                color="#3366aa" if steps > 0 else "#cc2222",
                alpha=0.6,
            )
        )
    axes.text(
        8.4,
        1.25,
        "arrows: imports, the wider the more files\n(a red one would point upwards)",
        size=9,
    )
    axes.set_xlim(-0.2, 10.6)
    axes.set_ylim(min(place.values()) - 0.2, 1.7)
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": "", "Description": shown()})
    plt.close(figure)


def _wrapped(names: str, width: int = 112) -> str:
    lines, line = [], ""
    for name in names.split(", "):
        if len(line) + len(name) > width:
            lines.append(line)
            line = ""
        line += f"{name}  "
    return "\n".join([*lines, line])


if __name__ == "__main__":
    draw()
    print(PICTURE)
