"""predict.py against the model called text by text, on every way in and out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inference_scenarios import LABELS, texts

from model.classifier import RapidBertForSequenceClassification
from model.span_classifier import RapidBertForQuestionAnswering
from model.token_classifier import RapidBertForTokenClassification
from recipes.common.errors import UserError
from recipes.corpus.tokenizer import open_tokenizer
from recipes.inference import computing
from recipes.inference.outputs import written
from recipes.predict import main


def scores(export: Path, examples: list[tuple[str, ...]], max_length: int) -> np.ndarray:
    """Logits, one example after the other, each a padded batch of its own."""
    model = RapidBertForSequenceClassification.from_pretrained(export)
    tokenizer = open_tokenizer(export)
    rows = []
    for example in examples:
        ids, types = [tokenizer.cls_id], [0]
        for number, text in enumerate(example):
            part = [*tokenizer.encode(text), tokenizer.sep_id]
            ids += part
            types += [number] * len(part)
        assert len(ids) <= max_length
        with torch.no_grad():
            logits = model.logits(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        rows.append(logits[0].numpy())
    return np.stack(rows)


def shares(export: Path, examples: list[tuple[str, ...]], max_length: int = 64) -> np.ndarray:
    return torch.from_numpy(scores(export, examples, max_length)).softmax(-1).numpy()


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def stdin(monkeypatch):
    """Puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


@pytest.fixture
def use(models, tmp_path):
    """Runs predict.py on a model and an input; returns its status and what it wrote."""

    def run(model: str, source: Path | str, *more: str, output: str = "out.jsonl"):
        out = tmp_path / output
        status = main(
            ["--checkpoint", str(models / model), "--input", str(source), "--output", str(out)]
            + list(more)
        )
        assert not list(tmp_path.glob("*.partial"))
        return status, read(out) if out.suffix == ".jsonl" else out.read_text("utf-8")

    return run


def test_every_text_gets_the_softmax_of_its_logits_in_the_order_of_the_input(
    models, use, tmp_path, monkeypatch, capsys
):
    """Over several chunks and batches of other lengths."""
    monkeypatch.setattr(computing, "CHUNK_RECORDS", 17)
    monkeypatch.setitem(computing.PLACES, "cpu", 100)
    given = [*texts(40), "", "Ünïcode \u2028 is no end of a line"]
    (tmp_path / "in.txt").write_bytes("\n".join(given).encode())
    status, rows = use("single", tmp_path / "in.txt")
    assert status == 0 and [row["text"] for row in rows] == given
    expected = shares(models / "single" / "export", [(text,) for text in given])
    assert len({row["prediction"] for row in rows}) > 1  # classes are told apart
    for row, of_row in zip(rows, expected, strict=True):
        assert list(row["probabilities"]) == list(LABELS)
        np.testing.assert_allclose(list(row["probabilities"].values()), of_row, atol=1e-6)
        assert row["prediction"] == LABELS[of_row.argmax()]
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert capsys.readouterr().err == ""  # no terminal, nothing wrong


def test_pairs_keep_their_other_columns(models, use, tmp_path):
    pairs = list(zip(texts(9), texts(9, seed=1), strict=True))
    lines = [json.dumps({"id": i, "b": b, "a": a}) for i, (a, b) in enumerate(pairs)]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    short = [(" ".join(a.split()[:7]), " ".join(b.split()[:7])) for a, b in pairs]
    _, rows = use("pair", tmp_path / "in.jsonl.gz", "--max-length", "256")
    expected = shares(models / "pair" / "export", pairs, 256)
    assert [row["id"] for row in rows] == list(range(9))
    found = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    lines = [json.dumps({"premise": a, "claim": b}) for a, b in short]
    (tmp_path / "named.jsonl").write_text("\n".join(lines))
    columns = ["--text-columns", "premise", "claim"]
    _, rows = use("pair", tmp_path / "named.jsonl", *columns, "--max-length", "64")
    expected = shares(models / "pair" / "export", short)
    found = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_regression_gives_numbers(models, use, tmp_path):
    given = texts(5)
    (tmp_path / "in.tsv").write_text("".join(f"{t}\n" for t in ["text", *given]))
    status, rows = use("score", tmp_path / "in.tsv")
    expected = scores(models / "score" / "export", [(text,) for text in given], 64)[:, 0]
    assert status == 0 and [set(row) for row in rows] == [{"text", "prediction"}] * 5
    np.testing.assert_allclose([row["prediction"] for row in rows], expected, atol=1e-5)


def test_every_likely_label_is_given(models, use, tmp_path):
    """Each label's probability is a logistic function of its logit alone."""
    given = texts(30)
    (tmp_path / "in.txt").write_text("\n".join(given))
    _, rows = use("several", tmp_path / "in.txt")
    logits = scores(models / "several" / "export", [(text,) for text in given], 64)
    expected = torch.from_numpy(logits).sigmoid().numpy()
    found = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    likely = [[name for name, p in zip(LABELS, of, strict=True) if p > 0.5] for of in expected]
    assert [row["prediction"] for row in rows] == likely
    assert len({len(names) for names in likely}) > 1


def test_every_word_gets_a_tag(models, use, tmp_path):
    """Of a text that fits, what the model gives for the first pieces of the padded batch."""
    long = " ".join(texts(12))
    given = ["the weather was  fine", "", "a \u200b report", long]
    (tmp_path / "in.txt").write_bytes("\n".join(given).encode())
    status, rows = use("tags", tmp_path / "in.txt")
    assert status == 0 and [row["words"] for row in rows] == [text.split() for text in given]
    assert all(len(row["prediction"]) == len(row["words"]) for row in rows)
    assert rows[2]["prediction"][1] == "O" and rows[2]["probabilities"][1] is None
    export = models / "tags" / "export"
    model = RapidBertForTokenClassification.from_pretrained(export)
    tokenizer = open_tokenizer(export)
    pieces = [tokenizer.encode(word) for word in given[0].split()]
    ids = [tokenizer.cls_id, *(piece for word in pieces for piece in word), tokenizer.sep_id]
    assert len(ids) <= 16
    with torch.no_grad():
        shares = model.logits(torch.tensor([ids]))[0].softmax(-1)
    place, expected = 1, []
    for word in pieces:
        lone = tokenizer.shown(word[0]) == " "  # the space before a word that has no such piece
        expected.append(shares[place + lone])
        place += len(word)
    names = ("O", "B-X", "I-X")
    assert rows[0]["prediction"] == [names[int(each.argmax())] for each in expected]
    maxima = [float(each.max()) for each in expected]
    np.testing.assert_allclose(rows[0]["probabilities"], maxima, atol=1e-6)
    assert len({tag for row in rows for tag in row["prediction"]}) > 1
    _, table = use("tags", tmp_path / "in.txt", output="out.csv")
    first = next(csv.DictReader(io.StringIO(table, newline="")))
    assert json.loads(first["prediction"]) == rows[0]["prediction"]


def test_csv_has_a_column_per_class(models, use, tmp_path):
    given = [*texts(3), 'a "quoted", text\nof two lines']
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["nr", "text"], *([i, t] for i, t in enumerate(given))])
    status, written = use("single", tmp_path / "in.csv", output="out.csv")
    rows = list(csv.DictReader(io.StringIO(written, newline="")))
    assert status == 0 and [row["text"] for row in rows] == given
    expected = shares(models / "single" / "export", [(text,) for text in given])
    names = [f"probabilities.{label}" for label in LABELS]
    assert list(rows[0]) == ["nr", "text", "prediction", *names, "error"]
    found = [[float(row[name]) for name in names] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert {row["error"] for row in rows} == {""}


def test_questions_get_the_best_span_of_their_text(models, use, tmp_path):
    """Every span of up to 30 tokens is looked at, one question after the other."""
    export = models / "answers" / "export"
    model = RapidBertForQuestionAnswering.from_pretrained(export)
    tokenizer = open_tokenizer(export)
    asked = [
        (" ".join(q.split()[:3]), " ".join(c.split()[:7]))
        for q, c in zip(texts(8), texts(8, 1), strict=True)
    ]
    lines = [json.dumps({"nr": i, "question": q, "context": c}) for i, (q, c) in enumerate(asked)]
    long = " ".join(texts(40))
    lines.append(json.dumps({"nr": 8, "question": "the", "context": long}))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    status, rows = use("answers", tmp_path / "in.jsonl")
    assert status == 0 and [row["nr"] for row in rows] == list(range(9))
    for row, (question, context) in zip(rows, asked, strict=False):
        before = [tokenizer.cls_id, *tokenizer.encode(question), tokenizer.sep_id]
        ids, places = tokenizer.encode_with_offsets(context)
        whole = torch.tensor([[*before, *ids, tokenizer.sep_id]])
        types = torch.tensor([[0] * len(before) + [1] * (len(ids) + 1)])
        with torch.no_grad():
            logits = model.logits(whole, token_type_ids=types)[0, len(before) : -1].tolist()
        spans = {
            (i, j): logits[i][0] + logits[j][1]
            for i in range(len(ids))
            for j in range(i, min(i + 30, len(ids)))
        }
        i, j = max(spans, key=lambda span: spans[span])
        assert row["prediction"] == context[places[i][0] : places[j][1]].strip()
    assert rows[8]["prediction"] and rows[8]["prediction"] in long  # read in windows
    assert all(0 < row["probability"] <= 1 for row in rows)


def test_standard_input_is_lines_or_json_lines(models, stdin, capsysbinary):
    call = ["--checkpoint", str(models / "single"), "--input", "-"]
    given = texts(3)
    stdin("\n".join(given).encode())
    assert main(call) == 0
    as_lines, said = capsysbinary.readouterr()
    assert said == b"standard input: a text per line (--format)\n"
    rows = [json.loads(line) for line in as_lines.splitlines()]
    assert [row["text"] for row in rows] == given
    stdin("\n".join(json.dumps({"text": text}) for text in given).encode())
    assert main(call) == 0
    as_json, said = capsysbinary.readouterr()
    assert said == b"standard input: JSON Lines (--format)\n" and as_json == as_lines
    stdin(b'{"text": "a brace begins this text"}\n')
    assert main([*call, "--format", "text"]) == 0
    [row] = map(json.loads, capsysbinary.readouterr().out.splitlines())
    assert row["text"] == '{"text": "a brace begins this text"}'
    stdin(b"text,nr\n" + given[0].encode() + b",5\n")
    assert main([*call, "--format", "csv"]) == 0
    [row] = map(json.loads, capsysbinary.readouterr().out.splitlines())
    assert row["nr"] == "5" and row["probabilities"] == pytest.approx(rows[0]["probabilities"])


def test_records_that_cannot_be_used_keep_their_place(models, use, tmp_path, capsys):
    good = json.dumps({"id": 1, "text": "a warm report"}).encode()
    lines = [good, b"{not json", b"", b'{"id": 2}', b'{"id": 3, "text": 5}', b'"text"', good]
    lines += [
        b'{"text": "a\xff"}',
        b'{"id": 4, "text": "x", "prediction": 1}',
        b'{"text": "\\ud800"}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    status, rows = use("single", path)
    assert status == 1
    assert rows[0] == rows[5] and rows[0]["id"] == 1 and "error" not in rows[0]
    assert [row["error"].removeprefix(f"{path}:") for row in rows if "error" in row] == [
        "2: not a JSON object",
        "4: no column 'text'; there are 'id'",
        "5: 5 is no text",
        "6: not a JSON object",
        "8: not Unicode, save it as UTF-8",
        "9: column 'prediction' has the name of one that is computed; rename it",
        "10: not Unicode, save it as UTF-8",
    ]
    assert [row.get("id") for row in rows] == [1, None, 2, 3, None, 1, None, 4, None]
    said = capsys.readouterr().err
    assert said == (
        '7 of 9 records could not be used; their "error" says why; the first: '
        f"{path}:2: not a JSON object\n"
    )


def test_a_table_says_what_it_has_no_place_for(use, tmp_path):
    rows = [{"text": "a"}, {"text": "b", "more": {"x": 1}}, {"text": "c"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, written = use("single", tmp_path / "in.jsonl", output="out.csv")
    found = list(csv.DictReader(io.StringIO(written)))
    assert status == 1 and [row["text"] for row in found] == ["a", "b", "c"]
    assert "'more' is not in the first record" in found[1]["error"] and not found[1]["prediction"]
    assert found[2]["prediction"]


def test_an_empty_input_gives_an_empty_output(use, tmp_path, capsys):
    (tmp_path / "in.txt").write_bytes(b"")
    assert use("single", tmp_path / "in.txt") == (0, [])
    assert capsys.readouterr().err == "the input is empty, and so is the output\n"
    _, written = use("score", tmp_path / "in.txt", output="out.csv")
    assert written == "prediction,error\n"


def test_longer_texts_are_cut_and_said(models, use, tmp_path, capsys):
    text = texts(1)[0]
    (tmp_path / "in.txt").write_text(" ".join([text] * 20) + "\n" + text + "\n")
    use("single", tmp_path / "in.txt")
    said = capsys.readouterr().err
    assert said == "1 of 2 texts were cut to 64 tokens (--max-length)\n"


def test_faults_come_all_at_once_before_any_work(models, tmp_path):
    call = ["--checkpoint", str(models / "pretrained"), "--input", str(tmp_path / "none.csv")]
    with pytest.raises(UserError) as found:
        main([*call, "--output", str(tmp_path / "out.xml"), "--max-length", "5"])
    said = "\n".join(found.value.faults)
    for fault in (
        "a pretrained model, which has learnt no task yet; recipes/finetune.py teaches it one",
        "none.csv: no such file",
        "out.xml: written are .jsonl and .csv",
        "--max-length 5: must be a whole number from 8",
    ):
        assert fault in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "more", "fault"),
    [
        ("in.csv", "id,sentence\n1,x\n", [], "no column 'text'; there are 'id', 'sentence'"),
        ("in.jsonl", '{"sentence": "x"}', [], "no column 'text'; there are 'sentence'"),
        ("in.jsonl", '{"text": "x", "error": 1}', [], "'error' has the name of one that is"),
        ("in.csv", 'text\n"never ends\n', [], "cannot be read"),
        ("in.csv", "text,text\na,b\n", [], "2 columns are named 'text'"),
        ("in.odt", "x", [], "of no known kind"),
        ("in.csv", "text\nx\n", ["--text-columns", "a", "b"], "was learnt from 1: text"),
        ("in.txt.gz", "not compressed", [], "cannot be read"),
        ("in.txt", "x\n", ["--text-columns", "body"], "body: lines of text have none"),
    ],
)
def test_an_input_that_is_not_what_it_should_be_leaves_nothing(
    models, tmp_path, name, content, more, fault
):
    path, out = tmp_path / name, tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=fault):
        main(
            ["--checkpoint", str(models / "single"), "--input", str(path), "--output", str(out)]
            + more
        )
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_lines_are_no_pairs(models, use, tmp_path):
    (tmp_path / "in.txt").write_text("x\n")
    with pytest.raises(UserError, match="lines of text, and the model takes a and b"):
        use("pair", tmp_path / "in.txt")


def test_what_breaks_off_leaves_what_was_there(models, use, tmp_path, monkeypatch):
    monkeypatch.setattr(computing, "CHUNK_RECORDS", 2)
    (tmp_path / "in.csv").write_text('text\na\nb\nc\n"d\n')
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="in.csv:5: cannot be read"):
        use("single", tmp_path / "in.csv")
    assert (tmp_path / "out.jsonl").read_text() == "{}\n"
    assert not list(tmp_path.glob("*.partial"))


def test_the_input_is_not_replaced_under_any_of_its_names(models, tmp_path, monkeypatch):
    """The same path, another spelling, a link to it, and a second name of the file."""
    source = tmp_path / "in.csv"
    source.write_text("text\nfine\n")
    (tmp_path / "link.csv").symlink_to("in.csv")
    (tmp_path / "second.csv").hardlink_to(source)
    monkeypatch.chdir(tmp_path)
    command = ["--checkpoint", str(models / "single"), "--input", "in.csv", "--output"]
    for output in (str(source), "./in.csv", "link.csv", "second.csv"):
        with pytest.raises(UserError, match="is the input, which it would replace"):
            main([*command, output])
    assert source.read_text() == "text\nfine\n"
    assert main([*command, "new/place/out.csv"]) == 0 and Path("new/place/out.csv").is_file()


def test_two_processes_do_not_write_one_output(models, tmp_path):
    (tmp_path / "in.txt").write_text("fine\n")
    command = ["--checkpoint", str(models / "single"), "--input", str(tmp_path / "in.txt")]
    with written(tmp_path / "out.jsonl") as other:
        other.write(b"{}\n")
        with pytest.raises(UserError, match="another process is writing it right now"):
            main([*command, "--output", str(tmp_path / "out.jsonl")])
    assert (tmp_path / "out.jsonl").read_text() == "{}\n"


def test_all_that_an_export_says_wrongly_of_its_task_is_named(models, tmp_path):
    """Each of them was a traceback, or a column of the output that was there twice."""
    export = shutil.copytree(models / "single" / "export", tmp_path / "export")
    config = json.loads((export / "config.json").read_text())
    wrong = {"labels": ["a", "a", None], "text_columns": 3, "max_length": -5}
    config["rapidbert"]["task"] |= wrong
    (export / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        main(["--checkpoint", str(export), "--input", "-"])
    assert [fault.partition("config.json: ")[2] for fault in error.value.faults] == [
        "labels are ['a', 'a', None], not names of which each is there once",
        "text_columns are 3, no names",
        "max_length is -5: must be a whole number from 8 to 65,536",
    ]
