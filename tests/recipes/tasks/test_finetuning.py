"""What a finetuning resolves to, when it is done already, and everything that is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from recipes.common.errors import Faults, UserError
from recipes.common.settings import parse
from recipes.tasks.classifier import build_model
from recipes.tasks.evaluation import chance_of_classes
from recipes.tasks.finetune_result import is_done
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import Finetuning, resolve
from recipes.tasks.glue_tasks import TASKS
from recipes.tasks.kinds import KINDS


def resolved(place: Path, output: Path, *more: str, world_size: int = 1) -> Finetuning:
    """CoLA, unless `more` says otherwise."""
    named = ["--checkpoint", str(place / "run"), "--output", str(output)]
    data = [] if "--train-file" in more else ["--task", "cola", "--data", str(place / "glue")]
    refused = Faults()
    settings = parse(Settings, [*named, *data, *more], faults=refused)
    return resolve(settings, world_size, refused)


def faults(place: Path, *more: str, world_size: int = 1) -> list[str]:
    with pytest.raises(UserError) as error:
        resolved(place, place / "refused", *more, world_size=world_size)
    assert not (place / "refused").exists()
    return list(error.value.faults)


def test_a_task_is_its_row_of_the_table_but_for_what_is_given(finetune_place, tmp_path):
    work = resolved(finetune_place, tmp_path, "--epochs", "2")
    cola = TASKS["cola"]
    assert work.identity["learning_rate"] == cola.learning_rate
    assert (work.identity["epochs"], cola.epochs) == (2, 10)
    assert not work.saves_model
    assert resolved(finetune_place, tmp_path, "--task", "MNLI").saves_model
    few = resolved(finetune_place, tmp_path, "--max-train", "7")
    assert len(few.data.train) == few.identity["train_examples"] == 7
    assert few.data.notes[-2:] == [
        "trained on the first 7 of 192 examples",
        "a batch of 32 examples: all 7 there are make one",
    ]


@pytest.mark.parametrize("task", ["mrpc", "stsb", "rte"])
def test_a_start_other_than_the_published_one_is_said(finetune_place, tmp_path, task):
    (tmp_path / "glue" / "MRPC").mkdir(parents=True)
    for part in ("train", "dev"):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\ta\tb"]
        (tmp_path / "glue" / "MRPC" / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    data = tmp_path if task == "mrpc" else finetune_place
    named = ["--task", task, "--data", str(data / "glue")]
    (note,) = resolved(finetune_place, tmp_path, *named).start_notes
    folder = TASKS[task].folder
    assert f"starts {folder} from MNLI's finetuned model, this one from a model that is not" in note
    start = tmp_path / "mnli"
    shutil.copytree(finetune_place / "run", start)
    description = json.loads((start / "export" / "config.json").read_text())
    description["rapidbert"]["task"] = {"name": "mnli"}
    (start / "export" / "config.json").write_text(json.dumps(description))
    named += ["--checkpoint", str(start)]
    assert not resolved(finetune_place, tmp_path, *named).start_notes
    (note,) = resolved(finetune_place, tmp_path, *named, "--from-scratch").start_notes
    assert "this one from random weights" in note


def test_other_tasks_start_as_published(finetune_place, tmp_path):
    assert not resolved(finetune_place, tmp_path).start_notes


def test_done_is_a_result_of_the_same_work_with_all_that_is_asked_for(finetune_place, tmp_path):
    work = resolved(finetune_place, tmp_path)
    assert not is_done(work)
    work.result.write_text("{}")
    assert not is_done(work)
    work.result.write_text(json.dumps({"settings": work.identity, "test_examples_sha256": None}))
    assert is_done(work)
    older = {name: value for name, value in work.identity.items() if name != "deepspeed"}
    work.result.write_text(json.dumps({"settings": older, "test_examples_sha256": None}))
    assert is_done(work), "a result that does not say what is compared since"
    work.result.write_text(json.dumps({"settings": work.identity, "test_examples_sha256": None}))
    rounding = tmp_path / "rounding.json"
    rounding.write_text('{"communication_data_type": "bf16"}')
    for more in (
        ["--deepspeed-config", str(rounding)],
        ["--epochs", "9"],
        ["--batch-size", "8"],
        ["--max-length", "64"],
        ["--max-train", "191"],
        ["--from-scratch"],
        ["--checkpoint", str(finetune_place / "calm")],  # the same weights, another model
        ["--save-model"],
        ["--predict-test"],
    ):
        assert not is_done(resolved(finetune_place, tmp_path, *more)), more
    other = tmp_path / "glue"
    shutil.copytree(finetune_place / "glue", other)
    assert is_done(resolved(finetune_place, tmp_path, "--data", str(other))), "a copy, elsewhere"
    dev = (other / "CoLA" / "dev.tsv").read_text().splitlines()
    relabelled = dev[0].replace("\t1\t", "\t0\t") if "\t1\t" in dev[0] else "src\t1\t\tanother"
    (other / "CoLA" / "dev.tsv").write_text("\n".join([relabelled, *dev[1:]]) + "\n")
    assert not is_done(resolved(finetune_place, tmp_path, "--data", str(other)))


def test_the_command_line_has_the_kinds_of_the_table():
    assert get_args(get_type_hints(Settings)["kind"]) == tuple(KINDS)


def test_all_faults_at_once(finetune_place):
    found = faults(finetune_place, "--task", "rtee", "--epochs", "0", "--seed", "-1")
    assert len(found) == 3 and any("did you mean rte?" in fault for fault in found)
    (fault,) = faults(finetune_place, world_size=64)
    assert fault.startswith("a batch of 32 examples on 64 processes: at most 32")
    found = faults(finetune_place, "--data", str(finetune_place), "--epochs", "0")
    assert len(found) == 2 and any("no CoLA in it" in fault for fault in found)
    found = faults(finetune_place, "--data", str(finetune_place), "--checkpoint", "nowhere")
    assert any("no CoLA in it" in fault for fault in found)
    assert any("nowhere: no export there: no such directory" in fault for fault in found)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("--train-file x.csv", "--train-file and --dev-file belong together"),
        ("--train-file x.csv --dev-file x.csv --label-column a", "--text-columns: name one"),
        ("--train-file x.csv --task SST-2", "--task SST-2 is a GLUE task"),
        ("--train-file x.csv --task a/b", "--task a/b: as the name of a file"),
        ("--train-file x.csv --predict-test", "--predict-test is for GLUE tasks"),
        ("--regression", "--regression is for your own data"),
        ("--label-column x", "--label-column is for your own data"),
        ("--max-length 7", "--max-length 7: must be a whole number from 8 to 65,536"),
    ],
)
def test_options_that_do_not_fit_together(finetune_place, options, fault):
    assert any(found.startswith(fault) for found in faults(finetune_place, *options.split()))


def test_a_task_or_files_must_be_named(finetune_place):
    options = ["--checkpoint", str(finetune_place / "run"), "--output", str(finetune_place / "o")]
    with pytest.raises(UserError, match="give --task, or --train-file and --dev-file"):
        resolve(parse(Settings, options), 1)


def test_what_the_model_and_the_processes_cannot_do_is_refused_together(
    finetune_place, monkeypatch
):
    monkeypatch.setattr(ModelConfig, "why_not_length", lambda self, tokens: f"{tokens} are many")
    words = ("--batch-size", "2", "--max-length", "99")
    assert faults(finetune_place, *words, world_size=3) == [
        "a batch of 2 examples on 3 processes: at most 2 can share it",
        "--max-length 99: 99 are many",
    ]


def test_a_start_is_not_overwritten(finetune_place, tmp_path):
    start = tmp_path / "cola-seed17"
    shutil.copytree(finetune_place / "run", start)
    with pytest.raises(UserError, match="would overwrite it"):
        resolved(finetune_place, tmp_path, "--checkpoint", str(start))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "damaged export"),
        ("pickle", "damaged export"),
        ("pickle by its name", "what pytorch_model.bin may hold is never unpickled"),
        ("missing", "model.safetensors is missing; a run writes its export/ when"),
        ("fingerprint", "its fingerprint is [0-9a-f]{64}, the weights were trained with 0{64}"),
        ("pieces", "tokenizer.model: 300 pieces, the model has 290"),
        ("layers", r"weights do not fit the model: missing bert\.encoder\.layer\.1\."),
    ],
)
def test_a_damaged_start_is_refused(finetune_place, tmp_path, damage, message):
    export = tmp_path / "export"
    shutil.copytree(finetune_place / "run" / "export", export)
    weights, config = export / "model.safetensors", export / "config.json"
    description = json.loads(config.read_text())
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "pickle":
            weights.write_bytes(pickle.dumps({"bert": Trap(tmp_path / "sprung")}))
        case "pickle by its name":
            weights.unlink()
            (export / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        case "missing":
            weights.unlink()
        case "fingerprint":
            description["rapidbert"]["tokenizer"]["fingerprint"] = "0" * 64
        case "pieces":
            description["rapidbert"]["model"]["vocab_size"] = 290
        case "layers":
            description["rapidbert"]["model"]["num_layers"] = 2
    config.write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        resolved(finetune_place, tmp_path / "o", "--checkpoint", str(tmp_path))
    assert not (tmp_path / "sprung").exists(), "weights are never unpickled"


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_weights_of_other_shapes_are_refused_with_both(finetune_place, tmp_path):
    shutil.copytree(finetune_place / "run" / "export", tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    state = load_file(weights)
    state["bert.embeddings.word_embeddings.weight"] = torch.zeros(200, 32)
    save_file(state, weights)
    work = resolved(finetune_place, tmp_path / "o", "--checkpoint", str(tmp_path))
    with pytest.raises(UserError, match=r"word_embeddings.weight is \[200, 32\], .* \[320, 32\]"):
        build_model(work)


def test_chance_is_the_best_constant_answer(finetune_place, tmp_path):
    """Counted in the files of the development sets, whose columns are known here."""

    def last_column(name: str) -> list[str]:
        lines = (finetune_place / "glue" / name).read_text().splitlines()[1:]
        return [line.split("\t")[-1] for line in lines]

    def chance(task: str):
        return chance_of_classes(resolved(finetune_place, tmp_path, "--task", task))

    matched, mismatched = (
        last_column(f"MNLI/dev_{name}.tsv") for name in ("matched", "mismatched")
    )
    shares = {
        label: (matched.count(label) / len(matched), mismatched.count(label) / len(mismatched))
        for label in set(matched)
    }
    most = max(shares.values(), key=sum)
    found = chance("mnli")
    assert (found["matched"]["accuracy"], found["mismatched"]["accuracy"]) == pytest.approx(most)
    rte = last_column("RTE/dev.tsv")
    assert chance("rte") == {"dev": {"accuracy": max(rte.count(x) for x in set(rte)) / len(rte)}}
    assert chance("cola") == {"dev": {"matthews": 0.0}}
    assert chance("stsb") == {"dev": {"spearman": 0.0, "pearson": 0.0}}
