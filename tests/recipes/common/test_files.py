from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing

import pytest

from recipes.common import files
from recipes.common.errors import UserError
from recipes.common.files import PartialFile, sha256, why_no_directory, why_no_file, write_whole


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recipes.common.files.os.fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        write_whole(path, b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]


def test_a_partial_file_has_its_name_only_when_it_is_published(tmp_path):
    path = tmp_path / "a.bin"
    file = PartialFile(path)
    file.write(b"one ")
    file.write(memoryview(b"two"))
    file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin.partial"]
    file.publish()
    file.discard()  # too late to take anything away
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"one two"
    assert sha256(path) == sha256(path, sync=True) == hashlib.sha256(b"one two").hexdigest()


def test_a_discarded_file_leaves_nothing(tmp_path):
    file = PartialFile(tmp_path / "a.bin")
    file.write(b"one")
    file.discard()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    assert why_no_directory(tmp_path / "new" / "one") is None
    assert why_no_directory(tmp_path / "file") == "is a file; name a directory"
    assert why_no_directory(tmp_path / "file" / "in") == f"{tmp_path / 'file'} is a file"
    assert why_no_file(tmp_path / "file") is None and why_no_file(tmp_path / "new") is None
    assert why_no_file(tmp_path) == "is a directory; name a file"


def test_a_file_has_one_writer(tmp_path):
    """Two had mixed their bytes under one name; a lock is of the open file, so that one process
    that opens it twice is refused as two are."""
    path = tmp_path / "a.bin"
    first = PartialFile(path)
    first.write(b"first")
    with pytest.raises(UserError, match="a.bin: another process is writing it right now"):
        PartialFile(path)
    first.close()  # it has no name yet
    with pytest.raises(UserError, match="another process"):
        PartialFile(path)
    first.publish()
    second = PartialFile(path)
    first.discard()  # what has the partial name now is the second's
    second.write(b"second")
    second.close()
    second.publish()
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_has_left_is_not_part_of_the_next(tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(b"longer than what comes")
    write_whole(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def write_often(path, byte: bytes) -> None:
    for _ in range(15):
        write_whole(path, byte * 200_000)


def test_writers_of_a_small_file_wait_for_each_other(tmp_path):
    path = tmp_path / "a.bin"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path, byte)) for byte in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 200_000, b"b" * 200_000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_never_ends_keeps_no_other_waiting_for_ever(tmp_path, monkeypatch):
    """As one that is suspended, or whose node died with the lock of a network file system."""
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.05)
    suspended = PartialFile(path)
    with pytest.raises(OSError, match="another process has been .* remove a.bin.partial") as error:
        write_whole(path, b"new")
    assert error.value.filename == str(path) and path.read_bytes() == b"old"
    (tmp_path / "a.bin.partial").unlink()  # as it is told
    write_whole(path, b"new")
    third = PartialFile(path)
    suspended.write(b"suspended")  # it goes on, and spoils nothing of those that came behind it
    with pytest.raises(FileNotFoundError, match="removed while it was written"):
        suspended.publish()
    suspended.discard()
    assert path.read_bytes() == b"new"
    third.publish()
    assert path.read_bytes() == b""


def test_without_locks_a_file_is_written_all_the_same(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    write_whole(tmp_path / "a.bin", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_that_is_published_while_the_next_is_opened_is_not_written_again(
    tmp_path, monkeypatch
):
    """Between the opening and the lock the first got its name: its bytes are not the second's."""
    path, lock = tmp_path / "a.bin", fcntl.flock
    first = PartialFile(path)
    first.write(b"first")
    first.close()

    def late(*arguments: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.publish()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    second = PartialFile(path)
    assert path.read_bytes() == b"first"
    second.discard()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
