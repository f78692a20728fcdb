"""Words as first pieces of sequences: windows, labels, and one prediction for every word."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from question_scenarios import Words

from model.labels import IGNORED_LABEL
from model.parallel import initialize_parallel
from recipes.common.errors import UserError
from recipes.corpus.tokenizer import open_tokenizer
from recipes.engine.world import World
from recipes.tasks.tagged_sentences import Sentence, Sentences
from recipes.tasks.token_classification import EncodedSentences, encode, notes, tag, unread_tag

ALONE = World(0, 0, 1, torch.device("cpu"), 0, 1, 1)


class Counts:
    """Predicts of each token its id modulo 7, and knows nothing of the rest."""

    def __init__(self, broken: int | None = None):
        self.broken = broken

    def eval(self) -> None: ...

    def train(self) -> None: ...

    def logits(self, ids, offsets, max_length, types):
        assert not types.any()
        scores = torch.nn.functional.one_hot(ids % 7, 7).float()
        scores[ids == self.broken] = torch.nan
        return scores


@pytest.fixture(autouse=True, scope="module")
def one_process() -> None:
    initialize_parallel()


def sentences(lengths):
    return [[f"s{n}w{k}" for k in range(length)] for n, length in enumerate(lengths)]


def made(lengths, max_length=10):
    tokenizer, words = Words(), sentences(lengths)
    flat = [word for each in words for word in each]
    tokenizer.encode_batch([" ".join(each) for each in words])  # ids in the order of the words
    classes = np.array([tokenizer.known[word] % 7 for word in flat])
    return EncodedSentences(tokenizer, words, classes, max_length), classes


LENGTHS = [3, 8, 9, 1, 40, 16, 23]


def test_every_word_is_labelled_once_and_in_the_middle_of_a_window():
    examples, classes = made(LENGTHS)
    assert sorted(np.concatenate(examples.words)) == list(range(sum(LENGTHS)))
    assert examples.split == 4 and examples.lost == 0
    known = examples.sentences
    flat = [word for each in known for word in each]
    of_word = {word: number + 5 for number, word in enumerate(flat)}
    for ids, places, words in zip(examples.ids, examples.places, examples.words, strict=True):
        assert len(ids) <= 10
        assert [ids[place] for place in places] == [of_word[flat[word]] for word in words]
        for place, word in zip(places, words, strict=True):
            # Two words at least on each side, unless the sentence ends there.
            number = np.searchsorted(np.cumsum(LENGTHS), word, side="right")
            begin = sum(LENGTHS[:number])
            assert place - 1 >= min(2, word - begin)
            assert len(ids) - 2 - place >= min(1, begin + LENGTHS[number] - 1 - word)
    assert classes.max() > 0


def test_batches_carry_labels_on_first_pieces_alone():
    examples, classes = made(LENGTHS)
    seen: list[int] = []
    for rank in range(2):
        for batch in examples.training_batches(4, seed=1, epoch=0, rank=rank, world_size=2):
            labelled = batch.labels >= 0
            assert batch.labels.shape == batch.input_ids.shape
            assert torch.equal(batch.labels[labelled], batch.input_ids[labelled] % 7)
            seen += batch.input_ids[labelled].tolist()
            if rank == 0:
                other = list(examples.training_batches(4, seed=1, epoch=0, rank=1, world_size=2))
                assert any(
                    batch.global_losses == int(labelled.sum() + (o.labels >= 0).sum())
                    for o in other
                )
    assert sorted(seen) == list(range(5, 5 + len(classes)))
    empty = examples._labels(np.zeros(0, np.int64), 2)
    assert empty.tolist() == [IGNORED_LABEL]


def test_every_word_gets_one_prediction_whatever_the_windows():
    examples, classes = made(LENGTHS)
    assert np.array_equal(tag(Counts(), examples, 3, ALONE, 0), classes)
    by_sentence = examples.by_sentence(classes)
    assert [len(each) for each in by_sentence] == LENGTHS
    assert [k for each in by_sentence for k in each] == classes.tolist()


def test_ranks_tag_together(monkeypatch):
    examples, classes = made(LENGTHS)
    found: list[list] = []

    def gather(into, mine):
        found.append(mine)
        into[:] = [*found, *[None] * len(into)][: len(into)]
        if len(found) < 2:
            raise InterruptedError  # the other has not come yet

    monkeypatch.setattr(dist, "all_gather_object", gather)
    first, second = (
        replace(ALONE, rank=r, world_size=2, data_parallel_rank=r, data_parallel_size=2)
        for r in range(2)
    )
    with pytest.raises(InterruptedError):
        tag(Counts(), examples, 4, first, 0)
    assert np.array_equal(tag(Counts(), examples, 4, second, 0), classes)


def test_scores_that_are_no_numbers_are_no_tags():
    examples, _ = made([3])
    with pytest.raises(UserError, match="for 1 of 3 words the model computes something else"):
        tag(Counts(broken=6), examples, 4, ALONE, 0)


def test_words_that_the_tokenizer_drops_are_predicted_to_be_outside():
    tokenizer = Words()
    words = [["a", "\x00", "b"], ["\x00"]]
    examples = EncodedSentences(tokenizer, words, np.array([5, 1, 6, 1]), 10)
    assert examples.lost == 2 and len(examples) == 1
    assert tag(Counts(), examples, 4, ALONE, 3).tolist() == [5, 3, 6, 3]
    train = Sentences([Sentence(("a", "b", "c"), ("NN", "VB", "VB"))])
    work = SimpleNamespace(
        settings=SimpleNamespace(max_length=10),
        data=SimpleNamespace(train=train),
        task=SimpleNamespace(labels=("NN", "VB")),
        tokenizer=tokenizer,
    )
    assert unread_tag(work.data) == "VB"
    (said,) = notes(work, "dev", examples)
    assert "of 2 of 4 words the tokenizer keeps nothing" in said and "'VB'" in said
    with pytest.raises(UserError, match="of none of the 1 words"):
        encode(work, Sentences([Sentence(("\x00",), ("NN",))]), True)
    (said,) = notes(work, "train", made([9])[0])
    assert "1 of 1 sentences are longer than 10 tokens" in said


def test_ids_are_those_of_the_text_and_first_pieces_begin_words(finetune_place):
    """The trained tokenizer: words one by one have the same pieces, which its spaces begin."""
    tokenizer = open_tokenizer(finetune_place / "data")
    words = [
        "The",
        "weather",
        "(said",
        "Ångström)",
        "was",
        "quite",
        "🙂",
        "cold,",
        "again",
        "\u200b",
    ]
    examples = EncodedSentences(tokenizer, [words], None, 512)
    (ids,), (places,), (of,) = examples.ids, examples.places, examples.words
    assert ids[1:-1].tolist() == tokenizer.encode(" ".join(words))
    alone = [tokenizer.encode(word) for word in words]
    assert [piece for pieces in alone for piece in pieces] == ids[1:-1].tolist()
    begins = np.cumsum([1, *map(len, alone)])
    expected = {k: int(begins[k]) for k in range(len(words)) if alone[k]}
    for word, place in zip(of.tolist(), places.tolist(), strict=True):
        if tokenizer.shown(int(ids[expected[word]])) == " ":  # a lone space before the first byte
            assert place == expected[word] + 1
        else:
            assert place == expected[word] and tokenizer.begins_word(int(ids[place]))
    assert set(of.tolist()) == set(expected)


def test_a_word_of_white_space_does_not_take_the_next_ones_piece(finetune_place):
    tokenizer = open_tokenizer(finetune_place / "data")
    words = [["a", "\u200b", "\u200b", "report"], ["a", "report"]]
    examples = EncodedSentences(tokenizer, words, np.array([1, 2, 3, 4, 1, 4]), 64)
    assert [each.tolist() for each in examples.words] == [[0, 3], [4, 5]] and examples.lost == 2
    assert np.array_equal(*examples.ids) and np.array_equal(*examples.places)
    (batch,) = examples.evaluation_batches(8)
    assert batch.labels[batch.labels >= 0].tolist() == [1, 4, 1, 4] and batch.global_losses == 4
