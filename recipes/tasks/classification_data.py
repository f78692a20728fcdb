"""What a finetuning run reads: GLUE from the hub and from copies of it.

    the hub                  `nyu-mll/glue` through `datasets`
    DIR/RTE/train.tsv ...    the classic GLUE folders
    DIR/rte/*.parquet        a copy of the hub's repository
    DIR/rte/                 what `save_to_disk` wrote

DIR may also be the task's own folder. Anybody's own files are read by `own_data.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow

from recipes.common.errors import UserError
from recipes.tasks.example_files import (
    Examples,
    ExampleSet,
    Reading,
    class_index,
    naming,
    no_columns,
    read_tsv,
    score_within,
)
from recipes.tasks.glue_tasks import Task

HUB_DATASET = "nyu-mll/glue"
STAND_IN_FILE = "STAND_IN"  # in a directory of data that only has GLUE's form: how it was made


Set = TypeVar("Set", bound=ExampleSet)


@dataclass
class TaskData(Generic[Set]):
    """All that a finetuning run reads.

    Attributes:
        train: the training set, in the order of its file.
        dev: by name: `dev`, or `matched` and `mismatched` for MNLI.
        test: likewise, `test` in place of `dev`; empty unless it was asked for.
        labels: names by class index; None for a regression.
        notes: what a reader of the scores should know: skipped records, unexpected counts.
        stand_in: the data only has GLUE's form, and scores on it are not GLUE's.
    """

    train: Set
    dev: dict[str, Set]
    test: dict[str, Set]
    labels: tuple[str, ...] | None
    notes: list[str] = field(default_factory=list)
    stand_in: bool = False


def load_task(
    task: Task, source: str | Path | None, *, with_test: bool = False
) -> TaskData[Examples]:
    """Read a GLUE task.

    Args:
        source: a directory in one of the layouts above, the task's own folder included; None for
            the hub.
        with_test: read the test sets too, in the order in which the GLUE server numbers them.

    Raises:
        UserError: every set that is missing, empty, damaged, or another task's.
    """
    notes: list[str] = []
    read_set, directories = _open_source(task, source)
    wanted = {("train", "train"): task.train_count}
    wanted |= {("dev", name): count for name, count in task.dev_counts.items()}
    if with_test:
        wanted |= {("test", name): count for name, count in task.test_counts.items()}

    sets: dict[tuple[str, str], Examples] = {}
    faults: list[str] = []
    for part, name in wanted:
        try:
            sets[part, name] = read_set(part, name, notes)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)

    made = next((path for d in directories if (path := d / STAND_IN_FILE).is_file()), None)
    if made:
        told = " ".join(made.read_text(encoding="utf-8", errors="replace").split())
        notes.insert(0, f"stand-in data, not GLUE's {task.folder}: {told}")
    else:
        notes += [
            f"{task.folder}, {name if part == name else f'{part} {name}'} set: "
            f"{len(sets[part, name]):,} instead of GLUE's {count:,} examples"
            for (part, name), count in wanted.items()
            if len(sets[part, name]) != count
        ]
    return TaskData(
        train=sets["train", "train"],
        dev={name: sets["dev", name] for name in task.dev_counts},
        test={name: sets["test", name] for name in task.test_counts} if with_test else {},
        labels=task.labels,
        notes=notes,
        stand_in=made is not None,
    )


def find_task_data(task: Task, source: Path) -> None:
    """See whether a directory has a task's data, without reading it.

    Raises:
        UserError: there is none, or classic files of it are missing.
    """
    _, directories = _open_source(task, source)
    directory = directories[-1]
    if any(directory.glob("*.parquet")) or (directory / "dataset_dict.json").is_file():
        return
    wanted = [("train", "train"), *(("dev", name) for name in task.dev_counts)]
    paths = [_tsv_path(task, directory, part, name)[0] for part, name in wanted]
    if missing := [f"{path}: missing" for path in paths if not path.is_file()]:
        raise UserError(*missing)


# Reads one set: ("train", "train"), ("dev", "dev"), ("dev", "matched"), ... and adds to the notes.
_SetReader = Callable[[str, str, list[str]], Examples]
# An Arrow table of a split of the hub's, and its `datasets.Features`.
_SplitLoader = Callable[[str], tuple[pyarrow.Table, Any]]

_PAIR = ("sentence1", "sentence2")
# Text and label columns of the classic files, whose names are not always the hub's.
_TSV_COLUMNS = {
    "mnli": (_PAIR, "gold_label"),
    "qnli": (("question", "sentence"), "label"),
    "qqp": (("question1", "question2"), "is_duplicate"),
    "rte": (_PAIR, "label"),
    "cola": (("sentence",), "label"),
    "sst2": (("sentence",), "label"),
    "mrpc": (("#1 String", "#2 String"), "Quality"),
    "stsb": (_PAIR, "score"),
}
_COLA_HEADER = ("source", "label", "annotation", "sentence")  # its labelled files have no header


def _open_source(task: Task, source: str | Path | None) -> tuple[_SetReader, list[Path]]:
    """Return a reader of the task's sets, and the directories that may say they are stand-ins."""
    if source is None:
        return _table_reader(task, f"{HUB_DATASET}, {task.name}", _from_hub(task)), []
    root = Path(source)
    if not root.is_dir():
        raise UserError(f"{root}: no such directory")
    for directory in (root / task.folder, root / task.name, root):
        if (directory / "dataset_dict.json").is_file():
            reader = _table_reader(task, str(directory), _from_saved(directory))
        elif any(directory.glob("*.parquet")):
            reader = _table_reader(task, str(directory), _from_parquet(directory))
        elif any(directory.glob("*.tsv")) or any(directory.glob("msr_paraphrase_*.txt")):
            reader = _tsv_reader(task, directory)
        else:
            continue
        return reader, [root, directory]
    raise UserError(
        f"{root}: no {task.folder} in it: neither {task.folder}/train.tsv, nor "
        f"{task.name}/train*.parquet, nor {task.name}/dataset_dict.json"
    )


def _new_reading(task: Task, part: str, name: str, *, by_name: bool) -> Reading:
    """Begin a set whose labels are names, or else indices: taking both lets in other tasks."""
    if part == "test":
        return Reading(name, _server_index)
    if task.labels is None:
        return Reading(name, score_within(*task.score_range))
    written = task.labels if by_name else map(str, range(task.outputs))
    return Reading(name, class_index({label: i for i, label in enumerate(written)}))


def _server_index(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"index {value!r} is not a number") from None


def _finished(task: Task, part: str, reading: Reading, notes: list[str]) -> Examples:
    if part != "test":
        reading.check(notes)
        return reading.examples(np.int64 if task.labels else np.float32)
    reading.check(notes, tolerated=0)
    order = np.argsort(reading.labels, kind="stable")
    if np.array_equal(np.array(reading.labels)[order], np.arange(len(order))):
        reading.texts = [reading.texts[i] for i in order]
    else:
        notes.append(f"{reading.name}: indices are not 0, 1, 2 ...; the order of the file is taken")
    return reading.examples(None)


def _tsv_reader(task: Task, directory: Path) -> _SetReader:
    texts, label = _TSV_COLUMNS[task.name]
    index = "id" if task.name == "qqp" else "index"

    def read(part: str, name: str, notes: list[str]) -> Examples:
        path, keep = _tsv_path(task, directory, part, name)
        header = _COLA_HEADER if task.name == "cola" and part != "test" else None
        reading = _new_reading(task, part, str(path), by_name=task.labels_by_name)
        if not path.is_file():
            raise UserError(f"{path}: missing; the directory has {_files(directory)}")
        with naming(path):
            read_tsv(path, (*texts, index if part == "test" else label), reading, header, keep)
        return _finished(task, part, reading, notes)

    return read


def _tsv_path(
    task: Task, directory: Path, part: str, name: str
) -> tuple[Path, Callable[[Sequence[str]], bool] | None]:
    """Return a set's file, and which of its lines are the set's; None for all."""
    path = directory / (f"{part}.tsv" if name == part else f"{part}_{name}.tsv")
    if task.name == "mrpc" and part != "test" and not path.is_file():
        return _mrpc_original(directory, part)
    return path, None


def _mrpc_original(
    directory: Path, part: str
) -> tuple[Path, Callable[[Sequence[str]], bool] | None]:
    """MRPC as its authors give it away: one training file, and GLUE's list of the dev pairs."""
    path, ids = directory / "msr_paraphrase_train.txt", directory / "dev_ids.tsv"
    if not path.is_file() or not ids.is_file():
        return directory / f"{part}.tsv", None
    with naming(ids):
        pairs = {tuple(line.split("\t")) for line in ids.read_text("utf-8-sig").splitlines()}
    return path, lambda fields: (tuple(fields[1:3]) in pairs) == (part == "dev")


def _files(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir() if path.is_file()))


def _table_reader(task: Task, origin: str, load: _SplitLoader) -> _SetReader:
    """Return a reader of tables that have the hub's splits and columns."""

    def read(part: str, name: str, notes: list[str]) -> Examples:
        split = "validation" if part == "dev" else part
        split = split if name == part else f"{split}_{name}"
        label = "idx" if part == "test" else "label"
        columns = (*task.text_columns, label)
        reading = _new_reading(task, part, f"{origin}, {split}", by_name=False)
        with naming(origin):
            table, features = load(split)
            missing = [column for column in columns if column not in table.column_names]
            if missing:
                raise UserError(f"{reading.name}: {no_columns(missing, table.column_names)}")
            if len(set(table.column_names)) < len(table.column_names):
                raise UserError(
                    f"{reading.name}: several columns of one name: {table.column_names}"
                )
            names = getattr(features[label], "names", None)
            if names and tuple(names) != task.labels:
                own = ", ".join(task.labels) if task.labels else "scores"
                raise UserError(
                    f"{reading.name}: labels {', '.join(names)} are not {task.folder}'s, {own}"
                )
            values = [table.column(column).to_pylist() for column in columns]
        for number, record in enumerate(zip(*values, strict=True), 1):
            reading.add(number, record)
        return _finished(task, part, reading, notes)

    return read


def _from_hub(task: Task) -> _SplitLoader:
    import datasets  # seconds to import

    try:
        found = datasets.load_dataset(HUB_DATASET, task.name)
    except Exception as error:  # the loader passes on what dozens of libraries raise
        raise UserError(
            f"{HUB_DATASET}, {task.name}: cannot be loaded from the hub: {error}; without a "
            "network, name a directory that holds a copy"
        ) from error
    return _from_splits(HUB_DATASET, found)


def _from_saved(directory: Path) -> _SplitLoader:
    import datasets

    try:
        found = datasets.load_from_disk(str(directory))
    except Exception as error:  # likewise
        raise UserError(f"{directory}: cannot be read: {error}") from error
    return _from_splits(str(directory), found)


def _from_splits(origin: str, found: Any) -> _SplitLoader:
    def load(split: str) -> tuple[pyarrow.Table, Any]:
        if split not in found:
            raise UserError(f"{origin}: no split {split!r}; there are {', '.join(found)}")
        return found[split].with_format("arrow")[:], found[split].features

    return load


def _from_parquet(directory: Path) -> _SplitLoader:
    import datasets
    import pyarrow.parquet

    def load(split: str) -> tuple[pyarrow.Table, Any]:
        named = re.compile(rf"{split}(-\d+-of-(\d+))?\.parquet")
        shards = [found for path in directory.iterdir() if (found := named.fullmatch(path.name))]
        if not shards:
            raise UserError(
                f"{directory}: no {split}*.parquet; the directory has {_files(directory)}"
            )
        whole = int(shards[0][2] or 1)
        if len(shards) != whole:
            raise UserError(
                f"{directory}: {len(shards)} files {split}*.parquet, their names say {whole}"
            )
        tables = []
        for name in sorted(shard[0] for shard in shards):
            with naming(directory / name):
                tables.append(pyarrow.parquet.read_table(directory / name))
        table = pyarrow.concat_tables(tables)
        return table, datasets.Features.from_arrow_schema(table.schema)

    return load
