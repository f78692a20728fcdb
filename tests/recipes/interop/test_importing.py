"""Imports of what others saved, and back again, against transformers and the padded formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain_bert import PaddedBatch, PlainRapidBERT, randomise
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import foreign
from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import read_export
from model.weights import gather_state
from recipes import convert_hf, fill_mask, finetune
from recipes.common.errors import MachineError, UserError
from recipes.common.settings import parse
from recipes.corpus.sentencepiece_training import MIN_VOCAB_SIZE, train_tokenizer
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer
from recipes.interop import importing
from recipes.interop.importing import Settings
from recipes.tasks.classifier import build_model
from recipes.tasks.finetuning import resolve
from recipes.training.export import load_with_tokenizer, write_export

PIECES = MIN_VOCAB_SIZE + 28  # 290, and 320 rows
SIZES: dict[str, Any] = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
)
MOSAICBERT = SIZES | dict(
    model_type="bert",
    alibi_starting_size=512,
    hidden_act="gelu",
    position_embedding_type="absolute",
    attention_probs_dropout_prob=0.1,
    hidden_dropout_prob=0.1,
    vocab_size=PIECES,
)
JINABERT = SIZES | dict(
    model_type="bert",
    _name_or_path="jinaai/jina-bert-implementation",
    position_embedding_type="alibi",
    feed_forward_type="geglu",
    emb_pooler="mean",
    hidden_act="gelu",
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=8192,
    vocab_size=320,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [" ".join(a + b + c for a in letters for c in "aei") for b in letters]
    made = train_tokenizer(texts, directory / "tokenizer.model", PIECES)
    (directory / "tokenizer.vocab").write_text(made.vocabulary(), "utf-8")
    return made


@pytest.fixture(scope="module")
def plain() -> PlainRapidBERT:
    model = PlainRapidBERT(layers=2, hidden=24, heads=3, ffn=40, vocab=320)
    randomise(model)
    return model.eval()


def hf_bert(directory: Path, tokenizer: Tokenizer, kind: str = "BertForMaskedLM") -> Any:
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=40, **SIZES
    )
    model = getattr(transformers, kind)(config)
    randomise(model)
    model.eval().save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(tokenizer.proto)
    return model


def published(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: x.clone() for name, x in tensors.items()}, directory / "model.safetensors")
    (directory / "tokenizer.model").write_bytes(tokenizer.proto)
    return directory


def apart(public: dict[str, Tensor]) -> dict[str, Tensor]:
    """JinaBERT's names: query, key and value are three tensors."""
    tensors = {}
    for name, tensor in public.items():
        if "Wqkv" in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[name.replace("Wqkv", part)] = rows
        else:
            tensors[name] = tensor
    return tensors


def imported(source: Path, output: Path) -> Path:
    assert importing.run(Settings(source, output), write_export) == 0
    return output


def logits_of(export: Path, batch: PaddedBatch) -> Tensor:
    model, _ = load_with_tokenizer(export)
    return model.logits(**batch.packed_inputs)[:, :PIECES]


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_bert_comes_in_and_leaves_as_it_was(form, tokenizer, tmp_path, capsys):
    theirs = hf_bert(tmp_path / "bert", tokenizer)
    if form == "bin":
        file = tmp_path / "bert" / "model.safetensors"
        torch.save(load_file(file), tmp_path / "bert" / "pytorch_model.bin")
        file.unlink()
    export = imported(tmp_path / "bert", tmp_path / "export")
    said = capsys.readouterr().out
    assert "bert-2x24 in the layout of bert" in said and "checked on 5 sentences, logits" in said
    batch = PaddedBatch.random([9, 4, 1], PIECES)
    expected = batch.pack(theirs(**batch.padded_inputs).logits)
    torch.testing.assert_close(logits_of(export, batch), expected, rtol=0, atol=1e-5)
    again = transformers.BertForMaskedLM.from_pretrained(export)
    assert type(again) is transformers.BertForMaskedLM
    back = batch.pack(again(**batch.padded_inputs).logits)
    assert (back.softmax(-1)[:, PIECES:] == 0).all()
    torch.testing.assert_close(back[:, :PIECES], expected, rtol=0, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "export"]


def test_an_encoder_alone(tokenizer, tmp_path, capsys):
    theirs = hf_bert(tmp_path / "bert", tokenizer, "BertModel")
    export = imported(tmp_path / "bert", tmp_path / "export")
    said = capsys.readouterr().out
    assert "an encoder alone" in said and "hidden states: largest difference" in said
    assert "left out, for a head that begins new with every task: bert.pooler.dense.bias" in said
    again = transformers.BertModel.from_pretrained(export, add_pooling_layer=False)
    batch = PaddedBatch.random([9, 4], PIECES)
    found, expected = (
        batch.pack(x(**batch.padded_inputs).last_hidden_state) for x in (again, theirs)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["mosaicbert", "jinabert"])
def test_rapidbert_in_two_published_layouts(layout, plain, tokenizer, tmp_path):
    tensors = plain.state_dict()
    source = tmp_path / layout
    if layout == "mosaicbert":
        published(source, MOSAICBERT, tensors, tokenizer)
    else:
        published(source, JINABERT, apart(tensors), tokenizer)
    export = imported(source, tmp_path / "export")
    batch = PaddedBatch.random([9, 4, 1], PIECES)
    expected = batch.pack(plain(**batch.padded_inputs))[:, :PIECES]
    torch.testing.assert_close(logits_of(export, batch), expected, rtol=0, atol=1e-5)
    auto = transformers.AutoModelForMaskedLM.from_pretrained(export, trust_remote_code=True).eval()
    back = batch.pack(auto(**batch.padded_inputs).logits)[:, :PIECES]
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-5)
    # An export that is imported is the same file again, whichever layout it came in.
    again = imported(export, tmp_path / "again")
    tensors = load_file(export / "model.safetensors")
    jina = imported(
        published(tmp_path / "jina", JINABERT, apart(tensors), tokenizer), tmp_path / "from-jina"
    )
    bytes_of = {(x / "model.safetensors").read_bytes() for x in (export, again, jina)}
    assert len(bytes_of) == 1


def test_an_export_for_jinabert_comes_back_and_leaves_as_the_same_bytes(plain, tokenizer, tmp_path):
    source = published(tmp_path / "source", MOSAICBERT, plain.state_dict(), tokenizer)
    export = imported(source, tmp_path / "export")
    files = []
    for number in (1, 2):
        jina = tmp_path / f"jina-{number}"
        words = ["export", "--format", "jina", "--input", str(export), "--output", str(jina)]
        assert convert_hf.main(words) == 0
        export = imported(jina, tmp_path / f"export-{number}")
        files.append((jina / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    ours = [tmp_path / name / "model.safetensors" for name in ("export", "export-1", "export-2")]
    assert len({path.read_bytes() for path in ours}) == 1


def test_an_export_of_an_older_version_becomes_one_of_today(tokenizer, tmp_path):
    config = ModelConfig("odd", 2, 24, 3, 40, vocab_size=PIECES)
    model = RapidBertForMaskedLM(config)
    write_export(
        tmp_path / "new",
        gather_state(model),
        config,
        tokenizer.path.parent,
        {"sequence_length": 77, "tokenizer": {"fingerprint": tokenizer.fingerprint}},
    )
    whole = json.loads((tmp_path / "new" / "config.json").read_bytes())
    old = published(
        tmp_path / "old",
        whole["rapidbert"],
        load_file(tmp_path / "new" / "model.safetensors"),
        tokenizer,
    )
    again = json.loads((imported(old, tmp_path / "again") / "config.json").read_bytes())
    assert again["rapidbert"]["sequence_length"] == 77
    assert again["auto_map"] == whole["auto_map"]
    twice = json.loads(
        (imported(tmp_path / "again", tmp_path / "twice") / "config.json").read_bytes()
    )
    assert twice["rapidbert"] == again["rapidbert"] | {
        "imported_from": {"directory": "again", "layout": "rapidbert"}
    }


def test_the_other_commands_take_it_as_a_checkpoint(finetune_place, tmp_path, capsys):
    tokenizer = open_tokenizer(finetune_place / "data")
    hf_bert(tmp_path / "bert", tokenizer)
    export = imported(tmp_path / "bert", tmp_path / "export")
    assert fill_mask.main(["--checkpoint", str(export), "the weather was [MASK] again"]) == 0
    assert "the weather was [MASK] again\n    " in capsys.readouterr().out
    words = ["--task", "rte", "--data", str(finetune_place / "glue"), "--checkpoint", str(export)]
    words += ["--output", str(tmp_path / "glue"), "--epochs", "1"]
    words += ["--max-length", "32"]
    work = resolve(parse(finetune.Settings, words), 1)
    encoder = dict(build_model(work).named_parameters())
    assert work.config.name == "bert-2x24"
    for name, tensor in read_export(export).state("none").items():
        assert torch.equal(encoder[name], tensor), name


def refusal(settings: Settings) -> list[str]:
    with pytest.raises(UserError) as error:
        importing.run(settings, write_export)
    return list(error.value.faults)


def test_everything_is_refused_at_once_and_nothing_is_written(tokenizer, tmp_path):
    source, output = tmp_path / "bert", tmp_path / "export"
    hf_bert(source, tokenizer)
    (source / "tokenizer.model").unlink()
    (source / "model.safetensors").write_bytes(b"damaged")
    output.mkdir()
    exists, damaged, nothing, way_out = refusal(Settings(source, output))
    assert exists == f"--output {output}: exists; an import replaces nothing, name another"
    assert "model.safetensors: damaged" in damaged
    assert nothing.startswith(f"{source}: no tokenizer there: tokenizer.model, tokenizer.json")
    assert "named with --tokenizer" in way_out
    assert list(output.iterdir()) == []


def test_a_tokenizer_of_other_weights_is_refused_and_one_beside_them_taken(tokenizer, tmp_path):
    source = tmp_path / "bert"
    hf_bert(source, tokenizer)
    (source / "tokenizer.model").unlink()
    beside = Settings(source, tmp_path / "export", tokenizer.path.parent)
    assert importing.run(beside, write_export) == 0
    config = json.loads((source / "config.json").read_bytes()) | {"vocab_size": PIECES - 1}
    (source / "config.json").write_text(json.dumps(config))
    (said,) = refusal(Settings(source, tmp_path / "other", tokenizer.path.parent))
    assert f"290 pieces, and the embeddings have {PIECES - 1} rows" in said


def test_an_export_with_another_tokenizer_of_as_many_pieces_is_refused(plain, tokenizer, tmp_path):
    source = published(tmp_path / "source", MOSAICBERT, plain.state_dict(), tokenizer)
    export = imported(source, tmp_path / "export")
    letters = "zyxwvutsrqponmlkjihgfedcba"
    texts = [" ".join(a + b + c for a in letters for c in "oub") for b in letters]
    (tmp_path / "other").mkdir()
    other = train_tokenizer(texts, tmp_path / "other" / "tokenizer.model", PIECES)
    assert other.vocab_size == tokenizer.vocab_size
    (said,) = refusal(Settings(export, tmp_path / "again", tmp_path / "other"))
    assert f"its fingerprint is {other.fingerprint}, the weights were trained with " in said
    assert tokenizer.fingerprint in said


@pytest.mark.parametrize(("padding", "refused"), [(127, False), (128, True)])
def test_more_rows_than_padding_adds_are_another_tokenizers(padding, refused, tokenizer, tmp_path):
    config = transformers.BertConfig(
        vocab_size=PIECES + padding, max_position_embeddings=40, **SIZES
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.model").write_bytes(tokenizer.proto)
    settings = Settings(tmp_path / "bert", tmp_path / "export")
    if not refused:
        assert importing.run(settings, write_export) == 0
        return
    (said,) = refusal(settings)
    assert "290 pieces, and the embeddings have 418 rows" in said


def test_a_tokenizer_beside_the_output_survives(tokenizer, tmp_path):
    hf_bert(tmp_path / "source", tokenizer)
    own = tmp_path / "bert.tokenizer"
    own.mkdir()
    (tmp_path / "source" / "tokenizer.model").rename(own / "tokenizer.model")
    (tmp_path / "bert.unchecked").mkdir()
    assert importing.run(Settings(tmp_path / "source", tmp_path / "bert", own), write_export) == 0
    assert (own / "tokenizer.model").read_bytes() == tokenizer.proto
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["bert", "bert.tokenizer", "bert.unchecked", "source"]
    assert (tmp_path / "bert").stat().st_mode == own.stat().st_mode


def test_an_export_that_computes_something_else_is_not_left_behind(plain, tokenizer, tmp_path):
    """A writer that mixes up gate and value, which fit each other's place."""
    source = published(tmp_path / "source", MOSAICBERT, plain.state_dict(), tokenizer)

    def mixed_up(final: Path, state: dict[str, Tensor], *rest: Any) -> None:
        name = "encoder.layers.1.mlp.linear_in.weight"
        gate, value = state[name].chunk(2)
        write_export(final, {**state, name: torch.cat([value, gate])}, *rest)

    with pytest.raises(UserError, match="not imported: the export computes something else") as e:
        importing.run(Settings(source, tmp_path / "export"), mixed_up)
    assert "largest difference" in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("head", ["masked_lm", "none"])
def test_a_reader_that_mixes_up_query_and_key_of_jinabert_is_found_out(
    head, plain, tokenizer, tmp_path, monkeypatch
):
    """They fit each other's place, and what is written is what was read."""
    tensors = apart(plain.state_dict())
    if head == "none":
        tensors = {name.removeprefix("bert."): x for name, x in tensors.items() if "bert." in name}
    source = published(tmp_path / "source", JINABERT, tensors, tokenizer)
    normalised = foreign._normalised

    def mixed_up(*read: Any) -> dict[str, Tensor]:
        found = normalised(*read)
        for name in [name for name in found if ".Wqkv." in name]:
            query, key, value = found[name].chunk(3)
            found[name] = torch.cat([key, query, value])
        return found

    imported(source, tmp_path / "right")
    monkeypatch.setattr(foreign, "_normalised", mixed_up)
    (said,) = refusal(Settings(source, tmp_path / "export"))
    assert "not imported: the export computes something else" in said
    assert not (tmp_path / "export").exists()


def test_a_full_disk_is_the_machines_and_leaves_nothing(tokenizer, tmp_path):
    hf_bert(tmp_path / "bert", tokenizer)

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    with pytest.raises(MachineError, match="out: I/O error: No space left on device"):
        importing.run(Settings(tmp_path / "bert", tmp_path / "out"), full)
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


@pytest.mark.parametrize("setting", [{"id2label": 3}, {"num_labels": "x"}])
def test_a_setting_that_transformers_does_not_expect_is_said(tokenizer, tmp_path, setting):
    hf_bert(tmp_path / "bert", tokenizer)
    config = tmp_path / "bert" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    (said,) = refusal(Settings(tmp_path / "bert", tmp_path / "out"))
    assert said.startswith(f"{tmp_path / 'bert'}: transformers refuses it: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_file_that_transformers_misses_is_not_taken_for_a_full_disk(
    tokenizer, tmp_path, monkeypatch
):
    hf_bert(tmp_path / "bert", tokenizer)

    def missing(*_: Any, **__: Any) -> None:
        raise OSError("no file named model.safetensors")  # theirs have no errno

    monkeypatch.setattr(transformers.BertForMaskedLM, "from_pretrained", missing)
    (said,) = refusal(Settings(tmp_path / "bert", tmp_path / "out"))
    assert said.endswith("bert: transformers refuses it: no file named model.safetensors")
