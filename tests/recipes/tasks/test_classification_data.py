"""Every layout of GLUE with its quirks, in files small enough to check by eye."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from recipes.common.errors import UserError
from recipes.tasks.classification_data import load_task
from recipes.tasks.glue_tasks import find_task

RTE_HEADER = "index\tsentence1\tsentence2\tlabel"
MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def write_rte(folder: Path) -> None:
    write(folder / "train.tsv", RTE_HEADER, "0\ta\tb\tentailment", "1\tc\td\tnot_entailment")
    write(folder / "dev.tsv", RTE_HEADER, "0\te\tf\tnot_entailment")
    write(folder / "test.tsv", "index\tsentence1\tsentence2", "1\ti\tj", "0\tg\th")


def rte_splits() -> datasets.DatasetDict:
    """What `write_rte` writes, as the hub has it."""
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "not_entailment"]),
            "idx": datasets.Value("int32"),
        }
    )

    def split(*rows):
        columns = zip(*rows, strict=True)
        return datasets.Dataset.from_dict(
            dict(zip(features, map(list, columns), strict=True)), features=features
        )

    return datasets.DatasetDict(
        train=split(("a", "b", 0, 0), ("c", "d", 1, 1)),
        validation=split(("e", "f", 1, 0)),
        test=split(("i", "j", -1, 1), ("g", "h", -1, 0)),
    )


def write_parquet(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, split in rte_splits().items():
        for shard in range(len(split)):
            part = split.shard(len(split), shard)
            part.to_parquet(str(folder / f"{name}-{shard:05}-of-{len(split):05}.parquet"))


def faults(call, *args, **kwargs) -> list[str]:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return list(error.value.faults)


@pytest.mark.parametrize("layout", ["tsv", "tsv folder", "parquet", "saved", "saved root", "hub"])
def test_rte_is_the_same_in_every_layout(tmp_path, monkeypatch, layout):
    source: Path | None = tmp_path
    match layout:
        case "tsv":
            write_rte(tmp_path / "RTE")
        case "tsv folder":
            write_rte(tmp_path)
        case "parquet":
            write_parquet(tmp_path / "rte")
        case "saved":
            rte_splits().save_to_disk(str(tmp_path / "rte"))
        case "saved root":
            rte_splits().save_to_disk(str(tmp_path))
        case "hub":
            source = None
            hub = {("nyu-mll/glue", "rte"): rte_splits()}
            monkeypatch.setattr(datasets, "load_dataset", lambda *name: hub[name])
    data = load_task(find_task("rte"), source, with_test=True)

    assert (data.train.first, data.train.second) == (["a", "c"], ["b", "d"])
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [0, 1]
    assert list(data.dev) == ["dev"]
    assert data.dev["dev"].first == ["e"]
    assert data.dev["dev"].labels.tolist() == [1]
    # The server numbers test examples by their index, not by their place in the file.
    assert (data.test["test"].first, data.test["test"].second) == (["g", "i"], ["h", "j"])
    assert data.test["test"].labels is None
    assert data.labels == ("entailment", "not_entailment")
    assert not data.stand_in
    assert data.notes == [
        "RTE, train set: 2 instead of GLUE's 2,490 examples",
        "RTE, dev set: 1 instead of GLUE's 277 examples",
        "RTE, test set: 2 instead of GLUE's 3,000 examples",
    ]


def test_tests_are_read_only_when_asked_for(tmp_path):
    write_rte(tmp_path)
    (tmp_path / "test.tsv").unlink()
    assert load_task(find_task("rte"), tmp_path).test == {}
    (fault,) = faults(load_task, find_task("rte"), tmp_path, with_test=True)
    assert fault == f"{tmp_path / 'test.tsv'}: missing; the directory has dev.tsv, train.tsv"


def test_cola_has_no_header_but_in_its_test_set(tmp_path):
    write(tmp_path / "CoLA/train.tsv", "gj04\t1\t\tHe left.", "gj04\t0\t*\tHim left.")
    write(tmp_path / "CoLA/dev.tsv", "bc01\t1\t\tThey left.")
    write(tmp_path / "CoLA/test.tsv", "index\tsentence", "0\tWho left?")
    data = load_task(find_task("cola"), tmp_path, with_test=True)
    assert data.train.first == ["He left.", "Him left."]
    assert data.train.second is None
    assert data.train.labels.tolist() == [1, 0]
    assert data.dev["dev"].first == ["They left."]
    assert data.test["test"].first == ["Who left?"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_a_line_and_quotes_are_characters(tmp_path, end):
    odd = ['"an open quote', "a \x0b b\x85c\u2028d\re", 'say ""this""', "  blanks  "]
    rows = [f"{text}\t{i % 2}" for i, text in enumerate(odd)]
    write(tmp_path / "SST-2/train.tsv", "sentence\tlabel", *rows, "", end=end)
    write(tmp_path / "SST-2/dev.tsv", "sentence\tlabel", *rows, end=end)
    data = load_task(find_task("sst2"), tmp_path)
    assert data.train.first == odd
    assert data.dev["dev"].first == odd
    assert data.train.labels.tolist() == [0, 1, 0, 1]


def test_mnli_has_two_dev_sets_and_its_label_last(tmp_path):
    def row(i, one, two, *labels):
        return "\t".join([str(i), "p", "q", "genre", "(", "(", "(", "(", one, two, *labels])

    folder = tmp_path / "MNLI"
    annotators = "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
    write(
        folder / "train.tsv",
        MNLI_HEADER + "\tlabel1\tgold_label",
        row(0, "a", "b", "neutral", "contradiction"),
        row(1, "c", "d", "neutral", "entailment"),
    )
    for i, name in enumerate(("matched", "mismatched")):
        gold = ["neutral"] * 5 + ["entailment"]
        write(folder / f"dev_{name}.tsv", MNLI_HEADER + annotators, row(0, name, "x", *gold))
        write(folder / f"test_{name}.tsv", MNLI_HEADER, row(0, name, f"t{i}"))
    data = load_task(find_task("mnli"), tmp_path, with_test=True)
    assert (data.train.first, data.train.second) == (["a", "c"], ["b", "d"])
    assert data.train.labels.tolist() == [2, 0]
    assert {name: s.first for name, s in data.dev.items()} == {
        "matched": ["matched"],
        "mismatched": ["mismatched"],
    }
    assert data.dev["mismatched"].labels.tolist() == [0]
    assert data.test["mismatched"].second == ["t1"]
    assert "MNLI, dev mismatched set: 1 instead of GLUE's 9,832 examples" in data.notes


def test_qqp_keeps_empty_questions_and_counts_short_lines(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    rows = [f"{i}\t1\t2\tq{i}?\t\t{i % 2}" for i in range(199)]
    write(tmp_path / "QQP/train.tsv", header, *rows[:50], "50\t1\t2\tcut", *rows[50:])
    write(tmp_path / "QQP/dev.tsv", header, rows[1])
    write(tmp_path / "QQP/test.tsv", "id\tquestion1\tquestion2", "0\tx\t")
    data = load_task(find_task("qqp"), tmp_path, with_test=True)
    assert data.train.first == [f"q{i}?" for i in range(199)]
    assert set(data.train.second) == {""}
    assert data.notes[0] == (
        f"{tmp_path / 'QQP/train.tsv'}:52: 4 columns, not 6; 1 of 200 records cannot be used "
        "and were skipped"
    )
    assert data.test["test"].second == [""]


MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def test_mrpc_begins_with_a_byte_order_mark(tmp_path):
    write(tmp_path / "MRPC/train.tsv", MRPC_HEADER, "1\t7\t8\ta\tb", end="\r\n")
    write(tmp_path / "MRPC/dev.tsv", MRPC_HEADER, "0\t9\t10\tc\td", end="\r\n")
    data = load_task(find_task("mrpc"), tmp_path)
    assert (data.train.first, data.train.second) == (["a"], ["b"])
    assert (data.train.labels.tolist(), data.dev["dev"].labels.tolist()) == ([1], [0])


def test_mrpc_as_its_authors_distribute_it_is_divided_by_glues_list(tmp_path):
    rows = ["1\t7\t8\ta\tb", "0\t9\t10\tc\td", "1\t8\t7\te\tf"]
    write(tmp_path / "MRPC/msr_paraphrase_train.txt", MRPC_HEADER, *rows, end="\r\n")
    write(tmp_path / "MRPC/dev_ids.tsv", "9\t10", "3\t4")
    data = load_task(find_task("mrpc"), tmp_path)
    assert data.train.first == ["a", "e"]
    assert data.dev["dev"].first == ["c"]


def test_stsb_has_scores(tmp_path):
    header = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    )
    row = "0\tmain\tMSRvid\t2012\t1\tnone\tnone\t"
    write(tmp_path / "STS-B/train.tsv", header, row + "a\tb\t3.800", row + "c\td\t5")
    write(tmp_path / "STS-B/dev.tsv", header, row + "e\tf\t0.25")
    data = load_task(find_task("stsb"), tmp_path)
    assert data.labels is None
    assert data.train.labels.dtype == np.float32
    np.testing.assert_array_equal(data.train.labels, np.float32([3.8, 5.0]))
    write(tmp_path / "STS-B/dev.tsv", header, row + "e\tf\t5.25")
    (fault,) = faults(load_task, find_task("stsb"), tmp_path)
    assert "dev.tsv:2: label '5.25' is not from 0 to 5; 1 of 1" in fault


def test_qnli_pairs_a_question_with_a_sentence(tmp_path):
    header = "index\tquestion\tsentence\tlabel"
    for name in ("train", "dev"):
        write(tmp_path / f"QNLI/{name}.tsv", header, "0\tWho?\tHe.\tnot_entailment")
    data = load_task(find_task("qnli"), tmp_path)
    assert (data.train.first, data.train.second) == (["Who?"], ["He."])
    assert data.train.labels.tolist() == [1]


def test_stand_ins_are_named_and_their_counts_are_their_own(tmp_path):
    write_rte(tmp_path / "RTE")
    write(tmp_path / "STAND_IN", "Pairs of sentences", "from the manual.")
    data = load_task(find_task("rte"), tmp_path)
    assert data.stand_in
    assert data.notes == ["stand-in data, not GLUE's RTE: Pairs of sentences from the manual."]
    (tmp_path / "STAND_IN").rename(tmp_path / "RTE/STAND_IN")
    assert load_task(find_task("rte"), tmp_path / "RTE").stand_in


def test_all_faults_of_a_task_come_at_once(tmp_path):
    write(tmp_path / "RTE/train.tsv", RTE_HEADER, "0\ta\tb\tneutral")
    write(tmp_path / "RTE/dev.tsv", "index\tquestion\tsentence\tlabel", "0\ta\tb\tentailment")
    train, dev = faults(load_task, find_task("rte"), tmp_path)
    assert train == (
        f"{tmp_path / 'RTE/train.tsv'}:2: label 'neutral' is none of 'entailment', "
        "'not_entailment'; 1 of 1 records cannot be used, more than 1%"
    )
    assert dev == (
        f"{tmp_path / 'RTE/dev.tsv'}: no column 'sentence1', 'sentence2'; "
        "there are 'index', 'question', 'sentence', 'label'"
    )


def test_another_tasks_dev_set_with_the_same_columns_is_refused(tmp_path):
    """WNLI's columns are RTE's, but its labels are numbers."""
    write_rte(tmp_path)
    write(tmp_path / "dev.tsv", RTE_HEADER, "0\ta\tb\t1")
    (fault,) = faults(load_task, find_task("rte"), tmp_path)
    assert "label '1' is none of 'entailment', 'not_entailment'" in fault


@pytest.mark.parametrize("content", [b"", b"\n", b"index\tsentence1\tsentence2\tlabel\n"])
def test_a_file_without_examples_is_refused(tmp_path, content):
    write_rte(tmp_path)
    (tmp_path / "dev.tsv").write_bytes(content)
    assert faults(load_task, find_task("rte"), tmp_path) == [
        f"{tmp_path / 'dev.tsv'}: no examples in it"
    ]


def test_a_hundredth_of_bad_records_is_tolerated_and_no_more(tmp_path):
    write_rte(tmp_path)
    good = ["0\ta\tb\tentailment"] * 99
    write(tmp_path / "train.tsv", RTE_HEADER, *good, "0\ta\tb\t")
    assert len(load_task(find_task("rte"), tmp_path).train) == 99
    write(tmp_path / "train.tsv", RTE_HEADER, *good[1:], "0\ta\tb\t")
    (fault,) = faults(load_task, find_task("rte"), tmp_path)
    assert fault == (
        f"{tmp_path / 'train.tsv'}:100: no label; 1 of 99 records cannot be used, more than 1%"
    )


def test_bytes_that_are_no_text_are_counted(tmp_path):
    write_rte(tmp_path)
    with (tmp_path / "train.tsv").open("ab") as file:
        file.write(b"0\ta\tb\tentailment\n" * 200 + b"0\t\xff\tb\tentailment\n")
    data = load_task(find_task("rte"), tmp_path)
    assert len(data.train) == 202
    assert ":204: not UTF-8, save it as UTF-8; 1 of 203 records" in data.notes[0]


def test_a_test_set_must_be_whole(tmp_path):
    write_rte(tmp_path)
    rows = [f"{i}\ta\tb" for i in range(500)]
    write(tmp_path / "test.tsv", "index\tsentence1\tsentence2", *rows, "500\ta")
    (fault,) = faults(load_task, find_task("rte"), tmp_path, with_test=True)
    assert "1 of 501 records cannot be used, and a test set needs all" in fault


def test_test_sets_with_other_indices_stay_in_the_order_of_the_file(tmp_path):
    write_rte(tmp_path)
    write(tmp_path / "test.tsv", "index\tsentence1\tsentence2", "9\ti\tj", "4\tg\th")
    data = load_task(find_task("rte"), tmp_path, with_test=True)
    assert data.test["test"].first == ["i", "g"]
    assert any("indices are not 0, 1, 2" in note for note in data.notes)


def test_tables_of_another_task_are_told_by_their_label_names(tmp_path):
    write_parquet(tmp_path)
    fault, _ = faults(load_task, find_task("mrpc"), tmp_path)
    assert "labels entailment, not_entailment are not MRPC's, not_equivalent, equivalent" in fault
    fault, _ = faults(load_task, find_task("stsb"), tmp_path)
    assert "are not STS-B's, scores" in fault
    fault, _ = faults(load_task, find_task("cola"), tmp_path)
    assert "no column 'sentence'; there are 'sentence1', 'sentence2', 'label', 'idx'" in fault


def test_unlabelled_records_of_a_table_are_no_training_data(tmp_path):
    splits = rte_splits()
    splits["train"] = splits["test"]
    splits.save_to_disk(str(tmp_path))
    (fault,) = faults(load_task, find_task("rte"), tmp_path)
    assert "train:1: label '-1' is none of" in fault


def test_an_incomplete_parquet_copy_is_refused(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 cut short")
    train, dev = faults(load_task, find_task("rte"), tmp_path)
    assert train == f"{tmp_path}: 1 files train*.parquet, their names say 2"
    assert dev.startswith(f"{tmp_path / 'validation-00000-of-00001.parquet'}: cannot be read")


def test_a_missing_split_is_named_beside_those_there(tmp_path):
    splits = rte_splits()
    del splits["validation"]
    splits.save_to_disk(str(tmp_path))
    assert faults(load_task, find_task("rte"), tmp_path) == [
        f"{tmp_path}: no split 'validation'; there are train, test"
    ]


def test_a_directory_without_the_task_says_what_was_looked_for(tmp_path):
    (tmp_path / "CoLA").mkdir()
    (fault,) = faults(load_task, find_task("rte"), tmp_path)
    assert fault.startswith(f"{tmp_path}: no RTE in it: neither RTE/train.tsv")
    assert faults(load_task, find_task("rte"), tmp_path / "x") == [
        f"{tmp_path / 'x'}: no such directory"
    ]


def test_an_unreachable_hub_is_one_message(monkeypatch):
    def unreachable(*name):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    (fault,) = faults(load_task, find_task("rte"), None)
    assert fault.startswith("nyu-mll/glue, rte: cannot be loaded from the hub: no route")
