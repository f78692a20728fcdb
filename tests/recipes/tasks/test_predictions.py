import numpy as np
import pytest

from recipes.tasks.glue_tasks import TASKS, find_task
from recipes.tasks.predictions import write_predictions


def written(tmp_path, name, split, predictions):
    path = write_predictions(
        tmp_path / "new" / "server", find_task(name), split, np.array(predictions)
    )
    return path.name, path.read_bytes().decode()


@pytest.mark.parametrize(
    ("name", "split", "predictions", "file", "rows"),
    [
        ("mnli", "matched", [2, 0], "MNLI-m.tsv", ["contradiction", "entailment"]),
        ("mnli", "mismatched", [1], "MNLI-mm.tsv", ["neutral"]),
        ("rte", "test", [1, 0], "RTE.tsv", ["not_entailment", "entailment"]),
        ("qnli", "test", [0], "QNLI.tsv", ["entailment"]),
        ("qqp", "test", [1, 0], "QQP.tsv", ["1", "0"]),
        ("cola", "test", [0, 1], "CoLA.tsv", ["0", "1"]),
        ("stsb", "test", [-0.2, 3.14159, 5.5], "STS-B.tsv", ["0.000", "3.142", "5.000"]),
    ],
)
def test_files_are_those_of_the_server(tmp_path, name, split, predictions, file, rows):
    lines = ["index\tprediction", *(f"{i}\t{row}" for i, row in enumerate(rows))]
    assert written(tmp_path, name, split, predictions) == (file, "\n".join(lines) + "\n")
    assert [path.name for path in (tmp_path / "new" / "server").iterdir()] == [file]


def test_every_test_set_has_a_file_of_its_own():
    files = [file for t in TASKS.values() for file in t.server_files.values()]
    assert len(set(files)) == 9
    assert all(t.server_files.keys() == t.test_counts.keys() for t in TASKS.values())


@pytest.mark.parametrize(
    ("name", "split", "predictions", "message"),
    [
        ("mnli", "test", [0], "no test set 'test', but matched, mismatched"),
        ("rte", "test", [0, 2], "other than 0 to 1"),
        ("rte", "test", [0, -1], "other than 0 to 1"),
        ("stsb", "test", [0.0, float("nan")], "not finite"),
    ],
)
def test_what_the_server_would_refuse_is_refused(tmp_path, name, split, predictions, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path, name, split, predictions)
    assert not list(tmp_path.iterdir())
