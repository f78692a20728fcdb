"""Filling masks: the guesses are the model's own softmax, on the ids a hand would write down."""

from __future__ import annotations

import shutil

import pytest
import torch
from inference_scenarios import TASKS
from preparation_scenarios import prepare
from safetensors.torch import load_file, save_file
from torch import nn

from model.config import ModelConfig
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel
from recipes import fill_mask
from recipes.common.errors import UserError
from recipes.corpus.sentencepiece_training import train_tokenizer
from recipes.corpus.tokenizer import open_tokenizer
from recipes.reporting.masked_words import MASK, fill, held_out_sentences
from recipes.training.export import load_with_tokenizer, write_export

WORDS = "the quick brown fox jumps over a lazy dog while seven clever authors keep writing".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared data with a tokenizer in which every word of `WORDS` is one piece."""
    folder = tmp_path_factory.mktemp("fill_mask")
    lines = [" ".join(WORDS[i % 7 :] + WORDS[: i % 7]) + "." for i in range(400)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    options = ("--vocab-size", "300", "--validation-fraction", "0.1")
    prepare(folder / "text.txt", folder / "data", *options)
    return folder / "data"


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    initialize_parallel()
    torch.manual_seed(0)
    tokenizer = open_tokenizer(data)
    config = ModelConfig(
        "test", num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, initializer_range=0.3
    )
    config = ModelConfig.from_dict({**config.to_dict(), "vocab_size": tokenizer.vocab_size})
    model = RapidBertForMaskedLM(config).eval()
    nn.init.normal_(model.head.decoder_bias)
    state = {name: value.detach() for name, value in model.named_parameters()}
    export = tmp_path_factory.mktemp("run") / "export"
    facts = {"tokenizer": {"fingerprint": tokenizer.fingerprint}}
    write_export(export, state, config, data, facts)
    return model, tokenizer, export


def test_guesses_are_the_softmax_at_the_mask(exported):
    model, tokenizer, _ = exported
    before, after = "the quick", "fox jumps"
    ids = [2, *tokenizer.encode(before), 4, *tokenizer.encode(after), 3]
    offsets = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.no_grad():
        logits = model.logits(torch.tensor(ids), offsets, len(ids))[ids.index(4)]
    shares = logits[: tokenizer.vocab_size].softmax(-1)

    (filled,) = fill(model, tokenizer, [f"{before} {MASK} {after}"], top=4)

    assert [share for _, share in filled.guesses] == pytest.approx(
        shares.topk(4).values.tolist(), rel=1e-4
    )
    best = tokenizer.pieces[int(shares.argmax())]
    assert filled.guesses[0][0] == (best.replace("\u2581", "") or " ")


def test_every_mask_is_filled_and_text_without_one_refused(exported):
    model, tokenizer, _ = exported
    assert len(fill(model, tokenizer, [f"a {MASK} dog {MASK}", f"{MASK} fox"], top=1)) == 3
    with pytest.raises(UserError) as error:
        fill(model, tokenizer, ["a dog", f"a {MASK}", "a fox"], top=1)
    assert len(error.value.faults) == 2


def test_a_loaded_export_is_the_model(exported):
    model, tokenizer, export = exported
    for place in (export, export.parent):
        loaded, _ = load_with_tokenizer(place)
        again = fill(loaded, tokenizer, [f"the {MASK} dog"], top=5)
        assert again == fill(model, tokenizer, [f"the {MASK} dog"], top=5)


def test_held_out_sentences_mask_a_whole_word(exported, data):
    _, tokenizer, _ = exported
    sentences = held_out_sentences(data, tokenizer, 3)
    assert len(sentences) == 3
    for sentence in sentences:
        hidden = [word for word in sentence.rstrip(".").split() if word == MASK]
        assert len(hidden) == 1
        assert all(word in [*WORDS, MASK] for word in sentence.rstrip(".").split())


def test_a_tokenizer_that_keeps_text_is_asked_for_the_word_with_its_space(exported, tmp_path):
    model, folding, _ = exported
    lines = [" ".join(WORDS[i % 7 :] + WORDS[: i % 7]) + "." for i in range(400)]
    size = folding.vocab_size
    exact = train_tokenizer(lines, tmp_path / "t.model", size, normalizer="identity")
    ids = [2, *exact.encode("the quick"), 4, *exact.encode("  fox\tjumps"), 3]
    offsets = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.no_grad():
        logits = model.logits(torch.tensor(ids), offsets, len(ids))[ids.index(4)]

    (filled,) = fill(model, exact, [f"the quick {MASK}  fox\tjumps"], top=1)

    assert filled.guesses[0][1] == pytest.approx(logits[:size].softmax(-1).max().item())


@pytest.mark.parametrize("pieces", [290, 300])
def test_another_models_tokenizer_is_refused(exported, tmp_path, pieces):
    _, tokenizer, export = exported
    shutil.copytree(export, tmp_path / "export")
    _model, same = load_with_tokenizer(tmp_path)
    assert same.fingerprint == tokenizer.fingerprint
    documents = [" ".join(WORDS[::-1]), "some other text with other pieces in it"] * 300
    train_tokenizer(documents, tmp_path / "export" / "tokenizer.model", pieces)
    with pytest.raises(UserError, match="its fingerprint is .*, the weights were trained with"):
        load_with_tokenizer(tmp_path)


def test_a_finetuned_model_is_told_that_it_guesses_no_words(exported, tmp_path):
    shutil.copytree(exported[2], tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    save_file({**load_file(weights), "classifier.weight": torch.zeros(2, 32)}, weights)
    with pytest.raises(UserError, match="finetuned on a task; name the pretrained model"):
        load_with_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["answers", "tags"])
def test_finetuned_models_of_other_kinds_are_told_so_too(models, kind):
    """Not that their weights do not fit."""
    with pytest.raises(UserError, match=f"finetuned on {TASKS[kind]['name']}; name the pretrained"):
        load_with_tokenizer(models / kind)


def test_bytes_of_another_encoding_are_refused(exported):
    model, tokenizer, _ = exported
    sentences = ["the caf\udce9 [MASK]", "none", "the [MASK]"]
    with pytest.raises(UserError) as error:
        fill(model, tokenizer, sentences, 1)
    assert error.value.faults == ("no [MASK] in 'none'", r"not UTF-8: 'the caf\udce9 [MASK]'")


def test_the_command_fills_given_and_held_out_sentences(exported, data, capsys):
    model, tokenizer, export = exported
    assert fill_mask.main(["--checkpoint", str(export), f"the {MASK} dog", "--top", "2"]) == 0
    (filled,) = fill(model, tokenizer, [f"the {MASK} dog"], top=2)
    guesses = "   ".join(f"{word} {share:.0%}" for word, share in filled.guesses)
    assert capsys.readouterr().out == f"the {MASK} dog\n    {guesses}\n"
    options = ["--checkpoint", str(export), "--data", str(data), "--count", "2"]
    assert fill_mask.main(options) == 0
    assert capsys.readouterr().out.splitlines()[::2] == held_out_sentences(data, tokenizer, 2)


def test_the_command_names_all_faults_before_it_loads_the_model(tmp_path):
    command = ["--checkpoint", str(tmp_path / "none")]
    with pytest.raises(UserError) as refused:
        fill_mask.main([*command, "--top", "0", "a dog", f"a {MASK}", "a fox"])
    assert [fault.partition(":")[0] for fault in refused.value.faults] == [
        "--top 0",
        f"no {MASK} in 'a dog'",
        f"no {MASK} in 'a fox'",
    ]
    with pytest.raises(UserError, match="or --data to take held-out ones from"):
        fill_mask.main(command)
    with pytest.raises(UserError, match="--data: not allowed with sentences of your own"):
        fill_mask.main([*command, "--data", str(tmp_path), f"a {MASK}"])
