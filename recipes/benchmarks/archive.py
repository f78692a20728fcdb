"""Packs everything that a run of the bench has written into one file, to be taken home."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from recipes.common.files import PARTIAL, why_no_file, write_whole
from recipes.common.locks import LOCK

ENDINGS = (".tar.gz", ".tgz")


def why_no_archive(path: Path) -> str | None:
    """Say what would keep the archive from being written; None where nothing is seen."""
    if not path.name.endswith(ENDINGS):
        return f"must end in {' or '.join(ENDINGS)}"
    return why_no_file(path)


def write_archive(path: Path, directory: Path, *, since: float) -> None:
    """Write what lies in `directory` and is not older, under the directory's own name.

    Args:
        since: seconds since the epoch.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file in sorted(directory.rglob("*")):
            kept = file.is_file() and file.name != LOCK and file.suffix != PARTIAL
            # Some file systems keep whole seconds, rounded down.
            if kept and file.resolve() != path.resolve() and file.stat().st_mtime >= since - 1:
                archive.add(
                    file, arcname=str(Path(directory.resolve().name) / file.relative_to(directory))
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, packed.getvalue())
