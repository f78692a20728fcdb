"""A WordPiece vocabulary from its vocab.txt through all commands, at the smallest size."""

import json
import shutil

import numpy as np
import pytest
from finetune_scenarios import make_text, write_tasks
from pretrain_scenarios import (
    command_line,
    pretraining,
    run_world,
    settings_of,
    values,
    write_config,
)
from tokenizer_scenarios import SPECIAL_LINES, write_vocabulary
from transformers import AutoTokenizer

from recipes import fill_mask, finetune, prepare_data
from recipes.common.errors import UserError
from recipes.common.settings import parse
from recipes.corpus.token_shards import open_shards
from recipes.corpus.tokenizer import open_tokenizer
from recipes.engine.world import initialize_world, shut_down
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve as resolve_finetuning
from recipes.training.run import resolve

FILES = {"vocab.txt", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`vocab.txt`, `data` encoded with it, and a `run` of four steps on these."""
    folder = tmp_path_factory.mktemp("wordpiece")
    texts = make_text(400)
    write_vocabulary(folder / "vocab.txt", texts)
    (folder / "text.txt").write_text("\n\n".join(texts))
    assert prepare(folder, folder / "data") == 0
    config = write_config(folder, 8, 8)
    arguments = command_line(folder / "data", folder / "run", config, duration="32")
    assert values(run_world(1, pretraining, arguments)) == [0]
    return folder


def prepare(place, output, tokenizer="vocab.txt"):
    words = ["--input", str(place / "text.txt"), "--output", str(output), "--workers", "1"]
    return prepare_data.main([*words, "--tokenizer", str(place / tokenizer)])


def test_the_manifest_knows_kind_and_special_ids(place):
    manifest = json.loads((place / "data" / "manifest.json").read_text())
    lines = (place / "vocab.txt").read_text().split()
    found = manifest["tokenizer"]
    assert found["kind"] == "wordpiece" and found["vocab_size"] == len(lines)
    assert list(found["special_ids"].values()) == list(SPECIAL_LINES.values())
    tokenizer = open_tokenizer(place / "vocab.txt")
    assert found["fingerprint"] == tokenizer.fingerprint
    shards = open_shards(place / "data", "train").shards
    tokens = np.concatenate([shard.tokens for shard in shards])
    assert not np.isin(tokens, [0, 101, 102, 103]).any()
    documents = {line.lower() for line in (place / "text.txt").read_text().split("\n\n")}
    first = tokens[: shards[0].lengths[0]].tolist()
    assert tokenizer.decode(first) in documents
    assert {path.name for path in (place / "data").iterdir()} >= FILES


def test_every_form_of_it_is_the_same_tokenizer(place, capsys):
    for form in ("data/tokenizer.json", "data", "run/export"):
        assert prepare(place, place / "data", form) == 0
        assert "already prepared with these options" in capsys.readouterr().out


def test_the_export_holds_it_as_transformers_reads_it(place):
    export = place / "run" / "export"
    assert {path.name for path in export.iterdir()} >= FILES
    text = "The weather was [MASK] again"
    ours = open_tokenizer(export).encode(text)
    theirs = AutoTokenizer.from_pretrained(export)
    assert theirs(text, split_special_tokens=True)["input_ids"] == [101, *ours, 102]
    assert theirs(text)["input_ids"].count(103) == 1
    config = json.loads((export / "config.json").read_text())
    assert config["pad_token_id"] == 0 and config["rapidbert"]["tokenizer"]["kind"] == "wordpiece"


def test_masked_words_are_guessed(place, capsys):
    assert fill_mask.main(["--checkpoint", str(place / "run"), "the report was [MASK] ."]) == 0
    said = capsys.readouterr().out
    assert "the report was [MASK] .\n" in said and "%" in said


def finetuning(words):
    world = initialize_world()
    finetune.finetune(resolve_finetuning(parse(Settings, words), world.world_size), world)
    shut_down()


def test_a_task_is_finetuned_from_it(place):
    write_tasks(place / "glue")
    words = ["--task", "cola", "--data", str(place / "glue"), "--checkpoint", str(place / "run")]
    words += ["--output", str(place / "scores"), "--epochs", "1", "--save-model"]
    values(run_world(1, finetuning, words))
    assert -1 <= json.loads((place / "scores" / "cola-seed17.json").read_text())["score"] <= 1
    before = open_tokenizer(place / "vocab.txt")
    after = place / "scores" / "cola-seed17" / "export"
    assert open_tokenizer(after).fingerprint == before.fingerprint


def test_data_of_another_tokenizer_are_refused(place, tmp_path):
    lines = (place / "vocab.txt").read_text().split()
    (place / "other.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]))
    with pytest.raises(UserError, match="was started with tokenizer = "):
        prepare(place, place / "data", "other.txt")
    shutil.copytree(place / "data", tmp_path / "data")
    for name, content in open_tokenizer(place / "other.txt").files().items():
        (tmp_path / "data" / name).write_bytes(content)
    config = write_config(tmp_path, 8, 8)
    with pytest.raises(UserError, match="the tokenizer does not match the data"):
        resolve(settings_of(tmp_path / "data", tmp_path / "run", config, duration=32), 1)
