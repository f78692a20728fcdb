import gzip
import json

import pytest
from preparation_scenarios import documents, prepare, stored

from recipes.common.errors import UserError
from recipes.corpus.preparation_checks import odd_results


@pytest.mark.parametrize("count", [500, 20_000])
def test_a_dry_run_names_a_wrong_key_and_the_keys_there_are(tmp_path, count):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"id": "1", "data": {"body": "A text."}}) + "\n"
    path.write_text(line * count)
    with pytest.raises(UserError, match=r"\(first: .*a\.jsonl:1\), it has id, data.body: --text-k"):
        prepare(path, tmp_path / "data", "--dry-run")
    assert prepare(path, tmp_path / "data", "--dry-run", "--text-key", "data.body") == 0
    assert not (tmp_path / "data").exists()


def test_a_key_that_only_the_first_records_lack_is_no_wrong_key(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"header": 1})] * 9 + [
        json.dumps({"text": text}) for text in documents(991)
    ]
    path.write_text("\n".join(lines))
    assert prepare(path, tmp_path / "data", "--dry-run") == 0
    assert prepare(path, tmp_path / "data") == 0


def test_a_dry_run_names_a_missing_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,A text.\n")
    with pytest.raises(UserError, match="no column 'text'; it has id, body"):
        prepare(path, tmp_path / "data", "--dry-run")


def test_ways_to_write_the_same_documents(tmp_path):
    texts = [text.replace(" ", "\n", 1) for text in documents(300)]
    records = [{"id": n, "data": {"text": text}} for n, text in enumerate(texts)]
    rows = ["id,data.text", *(f'{n},"{text}"' for n, text in enumerate(texts))]
    files = {
        "a.json": json.dumps(records, indent=1).encode(),
        "b.json.gz": gzip.compress(json.dumps(records).encode()),
        "c.csv": "\n".join(rows).encode(),
        "d.txt": "\n\n".join(texts).encode(),
    }
    found = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        output = tmp_path / f"of-{name}"
        assert prepare(tmp_path / name, output, "--text-key", "data.text") == 0
        found[name] = [stored(output, split) for split in ("train", "validation")]
    assert all(splits == found["a.json"] for splits in found.values())
    assert sum(map(len, found["a.json"])) == 300


def test_what_a_document_of_plain_text_is_may_be_chosen(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(documents(300)))
    with pytest.raises(UserError, match="1 usable document .* see --documents-per line"):
        prepare(path, tmp_path / "data")
    assert prepare(path, tmp_path / "data", "--documents-per", "line") == 0
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["source"]["documents"] == 300
    assert manifest["options"]["documents_per"] == "line"
    with pytest.raises(UserError, match="documents_per = 'line', now it is 'paragraph'"):
        prepare(path, tmp_path / "data")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(UserError, match="--documents-per file: only for plain text"):
        prepare(tmp_path / "a.jsonl", tmp_path / "other", "--documents-per", "file")


def test_source_code_is_text_when_asked(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for number, text in enumerate(documents(80)):
        (tree / f"{number}.py").write_text(f"def f():\n\n    return {text!r}\n\n\n# end\n")
    with pytest.raises(UserError, match=r"no files to read: 80 not read: of another kind: 80 \.py"):
        prepare(tree, tmp_path / "data")
    options = ["--format", "text", "--documents-per", "file", "--vocab-size", "310"]
    assert prepare(tree, tmp_path / "data", *options) == 0
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["source"]["documents"] == 80
    assert manifest["options"]["format"] == "text"


def split(documents, tokens):
    return {"documents": documents, "tokens": tokens}


@pytest.mark.parametrize(
    "train, validation, fraction, said",
    [
        (split(9900, 2e6), split(100, 2e4), 0.01, []),
        (split(1, 5000), split(1, 5000), 0.01, ["one document of 5,000", "50.00% of the doc"]),
        (split(18467, 1.09e6), split(186, 1.1e4), 0.01, ["documents are short: 59.0 tokens"]),
        (split(990, 1e6), split(10, 1e6), 0.01, ["50.00% of the tokens are held out"]),
        (split(10, 1e6), split(990, 1e6), 0.0, []),
    ],
)
def test_odd_results_are_said(train, validation, fraction, said):
    train["tokens"], validation["tokens"] = int(train["tokens"]), int(validation["tokens"])
    found = list(odd_results({"train": train, "validation": validation}, {"text"}, fraction))
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))
    for sentence in found:
        assert ("blank lines end a document" in sentence) == ("held out" not in sentence)
