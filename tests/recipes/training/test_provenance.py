"""Where a result comes from."""

from __future__ import annotations

import subprocess

import pytest

from recipes.training import provenance


def test_the_revision_stays_that_of_the_start(monkeypatch):
    """An export after days names the code that runs, not what was committed meanwhile."""
    before = provenance.git_revision()
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert provenance.git_revision() == before


def git(directory, *words):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(directory), *author, *words], check=True, capture_output=True)


def test_a_copy_without_git_is_unknown_even_within_another_repository(tmp_path, monkeypatch):
    revision = provenance.git_revision.__wrapped__
    copy = tmp_path / "outer" / "copy"
    (copy / "model").mkdir(parents=True)
    (copy / "model" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(provenance, "ROOT", copy)
    assert revision() == "unknown"
    for directory in (copy.parent, copy):
        git(directory, "init")
        git(directory, "add", ".")
        git(directory, "commit", "-m", "all")
        if directory != copy:
            assert revision() == "unknown"
    assert len(revision()) == 40
    (copy / "model" / "a.py").write_text("a = 2\n")
    assert revision().endswith("+changes")


def test_the_checksum_of_the_sources_is_of_their_names_and_contents(tmp_path):
    found = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        folder = tmp_path / f"{name}{text}" / "recipes" / "inner"
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(text)
        before = provenance.sources_sha256(tmp_path / f"{name}{text}")
        (folder / "notes.txt").write_text("no source")
        assert provenance.sources_sha256(tmp_path / f"{name}{text}") == before
        found.add(before)
    assert len(found) == 3


def test_the_driver_is_asked_of_the_system(tmp_path, monkeypatch):
    def asked(*words, **_):
        return subprocess.CompletedProcess(words, 0, stdout="535.1\n535.1\n")

    monkeypatch.setattr(provenance.subprocess, "run", asked)
    assert provenance.driver_version(tmp_path) == "535.1"
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    assert provenance.driver_version(tmp_path) == "580.65.06"
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("570.86.15\n")
    assert provenance.driver_version(tmp_path) == "570.86.15"


def test_a_driver_that_nothing_tells_is_unknown(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(provenance.subprocess, "run", missing)
    assert provenance.driver_version(tmp_path) == "unknown"
