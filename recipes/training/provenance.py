"""What computed a result: versions of the software, and the revision of this repository."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "triton")


def versions() -> dict[str, str]:
    """Return the versions of what computes, and of CUDA and NCCL where there are any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]  # torch has no types here
        found["nccl"] = ".".join(map(str, nccl))
    return found


@functools.cache
def git_revision() -> str:
    """Return the commit of this repository, with `+changes` on a dirty tree.

    "unknown" outside of git. It is the commit at the first call: what is committed while a run
    goes on is not what it runs.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
