import errno
import gzip
import json
import os
import socket
from pathlib import Path

import pytest

from recipes import prepare_data
from recipes.common.errors import UserError
from recipes.common.locks import lock
from recipes.corpus.input_files import Ignored, Layout, find_files, is_output
from recipes.corpus.text_sources import find_inputs


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def names(spans, top):
    return [os.path.relpath(span.name, top) for span in spans]


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "corpus"
    (top / "a").mkdir(parents=True)
    (top / "a" / "one.jsonl").write_text(lines("one"))
    (top / "two.txt").write_text("two")
    return top


def test_a_file_is_read_once_under_the_name_without_a_link(tree):
    (tree / "0-link.jsonl").symlink_to(tree / "a" / "one.jsonl")
    (tree / "z-hard.txt").hardlink_to(tree / "two.txt")
    (tree / "0-directory").symlink_to(tree / "a")
    spans, ignored = find_files(tree, Layout())
    assert names(spans, tree) == ["a/one.jsonl", "two.txt"]
    assert ignored.counts == {
        "another name of a file that is read": {".jsonl": 1, ".txt": 1},
        "a link to a directory that is read anyway": {"directory": 1},
    }


def test_links_to_directories_are_followed_and_loops_end(tree, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "three.txt").write_text("three")
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "a" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to(tree)
    (tree / "self").symlink_to(tree / "self")
    (tree / "gone.jsonl").symlink_to(tmp_path / "nothing")
    spans, ignored = find_files(tree, Layout())
    assert names(spans, tree) == ["a/one.jsonl", "link/deep/three.txt", "two.txt"]
    assert ignored.counts == {
        "a link to nothing": {".jsonl": 1, "no ending": 1},
        "a link to a directory that is read anyway": {"directory": 2},
    }


def test_every_file_is_read_or_counted(tree):
    (tree / "empty.txt").touch()
    (tree / "x.py").write_text("x")
    (tree / "y.tar.gz").write_text("x")
    (tree / "README").write_text("x")
    (tree / ".git").mkdir()
    (tree / ".git" / "config.txt").write_text("x")
    os.mkfifo(tree / "pipe.jsonl")
    spans, ignored = find_files(tree, Layout())
    assert len(spans) == 2
    assert ignored.counts == {
        "empty": {".txt": 1},
        "of another kind": {".py": 1, ".tar.gz": 1, "no ending": 1},
        "hidden": {"directory": 1},
        "not a regular file": {".jsonl": 1},
    }
    assert ignored.total == 6
    assert f"(first: {tree}/README)" in ignored.describe()


def test_many_endings_are_told_in_few_words():
    ignored = Ignored()
    for number in range(12):
        for copy in range(number + 1):
            ignored.add(Path(f"{copy}.e{number}"), "odd")
    assert "12 .e11, 11 .e10" in ignored.describe()
    assert "10 of 4 other endings" in ignored.describe()


@pytest.mark.parametrize("what", ["a", "a/one.jsonl"])
def test_what_may_not_be_read_is_a_fault(tree, monkeypatch, what):
    # Permissions are pretended: the superuser, who may run this, has them all.
    listdir, access = os.listdir, os.access
    closed = str(tree / what)

    def refuse(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != closed and access(path, mode))
    with pytest.raises(UserError, match=f"corpus/{what}: no permission to read it"):
        find_files(tree, Layout())


def test_a_file_under_two_names_is_given_more_than_once(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tree / "a" / "one.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    others = [str(path), "./corpus/a/../a/one.jsonl", "link.jsonl", "hard.jsonl"]
    with pytest.raises(UserError) as caught:
        find_inputs(["corpus", *others])
    assert caught.value.faults == tuple(
        f"{name.removeprefix('./')}: given more than once (also as corpus/a/one.jsonl)"
        for name in others
    )


def test_a_compressed_twin_is_refused_and_another_text_of_that_name_is_not(tree):
    twin = tree / "two.txt.gz"
    twin.write_bytes(gzip.compress(b"another text"))
    assert len(find_inputs([str(tree)]).spans) == 3
    twin.write_bytes(gzip.compress(b"two"))
    with pytest.raises(UserError, match=r"two\.txt\.gz: begins like .*two\.txt: the same text tw"):
        find_inputs([str(tree)])


def test_what_was_written_by_us_is_no_input(tree, tmp_path):
    run = tree / "runs" / "base"
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text(lines("a log"))
    (run / "config.json").write_text("{}")
    other = tree / "finetuned"
    other.mkdir()
    (other / "scores.json").write_text("{}")
    lock(other, "testing")
    spans, ignored = find_files(tree, Layout(), output=tree / "a")
    assert names(spans, tree) == ["two.txt"]
    assert ignored.counts == {
        "the --output": {"directory": 1},
        "written by RapidBERT": {"directory": 2},
    }
    for name in (run, other):
        assert is_output(name)
        with pytest.raises(UserError, match="holds what RapidBERT has written"):
            find_files(name, Layout())
    with pytest.raises(UserError, match="written by RapidBERT itself"):
        find_files(run / "log.jsonl", Layout())
    with pytest.raises(UserError, match="--output .*: is the input .*corpus too"):
        find_files(tree, Layout(), output=tmp_path / "corpus" / "a" / "..")


def test_a_preparation_inside_its_input_is_prepared_once(tree, capsys):
    texts = [f"document number {n} of a corpus" for n in range(40)]
    (tree / "a" / "one.jsonl").write_text(lines(*texts))
    options = ["--input", str(tree), "--workers", "1", "--vocab-size", "290"]
    first, second = (["--output", str(tree / name)] for name in ("first", "second"))
    assert prepare_data.main([*options, *first]) == 0
    assert prepare_data.main([*options, *first]) == 0
    assert "already prepared" in capsys.readouterr().out
    assert prepare_data.main([*options, *second]) == 0
    manifests = [
        json.loads((tree / name / "manifest.json").read_text()) for name in ("first", "second")
    ]
    assert [manifest["source"]["documents"] for manifest in manifests] == [41, 41]
    assert manifests[1]["source"]["files_not_read"] == {"written by RapidBERT": {"directory": 1}}
    with pytest.raises(UserError, match="is the input .* too"):
        prepare_data.main([*options, "--output", str(tree)])


@pytest.mark.parametrize(
    "name, content, kind",
    [
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        ("a.json", '{"text": "half\n{"text": "b"}\n', "jsonl"),
        ("a.jsonl", '\ufeff\n [\n{"text": "a"}]', "json"),
        ("a.json", '[{"text": "a"}, {"text": "b"}]', "json"),
        ("a.json", '{\n  "text": "a"\n}\n', "json"),
        ("a.json", '{"text": "a",\n "id": 1}\n{"text": "b",\n "id": 2}', "json"),
        ("a.CSV", "text\na\n", "csv"),
        ("a.tsv", "text\na\n", "tsv"),
        ("a.text", "a", "text"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_how_a_file_is_read(tmp_path, name, content, kind, ending):
    data = content.encode()
    path = tmp_path / (name + ending)
    path.write_bytes(gzip.compress(data) if ending else data)
    assert [span.kind for span in find_files(path, Layout())[0]] == [kind]


def test_a_format_is_of_all_files(tmp_path):
    (tmp_path / "dump").write_text(lines("a"))
    (tmp_path / "code.py").write_text("print()")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "old.py.gz").write_bytes(gzip.compress(b"import sys"))
    spans, ignored = find_files(tmp_path, Layout("text", "file"))
    assert names(spans, tmp_path) == ["code.py", "dump", "old.py.gz"]
    assert {span.kind for span in spans} == {"text-file"}
    assert ignored.counts == {"no text (with NUL bytes)": {".png": 1}}
    assert find_files(tmp_path / "dump", Layout("jsonl"))[0][0].kind == "jsonl"
    with pytest.raises(UserError, match="dump: not a known kind of file; .* with --format, one of"):
        find_files(tmp_path / "dump", Layout())


def test_a_pipe_cannot_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        find_files(tmp_path / "a.jsonl", Layout())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.txt"))
        with pytest.raises(UserError, match="not a regular file"):
            find_files(tmp_path / "s.txt", Layout())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_that_the_system_fails_to_look_at_is_not_passed_over(tree, monkeypatch, number):
    """A parallel file system in trouble must not shorten the corpus."""
    look = Path.stat

    def failing(path, **options):
        if path.name == "two.txt":
            raise OSError(number, os.strerror(number), str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(UserError, match=f"two.txt: {os.strerror(number)}"):
        find_files(tree, Layout())
