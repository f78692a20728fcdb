"""Sentence vectors, trained by pairs and measured without a head."""

from __future__ import annotations

from model.config import ModelOptions
from model.sentence_encoder import RapidBertForSentenceEmbedding
from recipes.engine.world import World
from recipes.tasks.classification_batches import EncodedExamples, PackedExamples
from recipes.tasks.classification_data import TaskData
from recipes.tasks.evaluation import cut_note, evaluation_batch
from recipes.tasks.finetune_settings import Checks, OwnData, Settings
from recipes.tasks.pair_batches import EncodedPairs
from recipes.tasks.pair_data import TextSet, load_pairs
from recipes.tasks.similarity import distinct_texts, embed, similarity_metrics
from recipes.tasks.work import Finetuning, Measured


class EncodedTexts(EncodedExamples):
    """The different texts of a set that is measured, and the set."""

    def __init__(self, work: Finetuning, pairs: TextSet):
        self.pairs = pairs
        texts, _ = distinct_texts(pairs)
        length = work.settings.max_length
        super().__init__(work.tokenizer, texts, None, None, max_length=length)


def columns(own: OwnData) -> Checks:
    """Want two or three columns of texts, and maybe one of scores."""
    given = len(own.text_columns)
    return [
        (
            2 <= given <= 3,
            f"--text-columns: {given} given; name those of anchor and positive, and a third one "
            "for a hard negative if there is one",
        ),
        (len(own.label_column) <= 1, "--label-column: one column of scores at most"),
    ]


def load(settings: Settings) -> TaskData[TextSet]:
    """Read both files of one's own (see `load_pairs`)."""
    own = settings.own_data
    return load_pairs(
        *own.files,
        text_columns=own.text_columns,
        score_column=own.label_column[0] if own.label_column else None,
    )


def metrics(data: TaskData[TextSet]) -> tuple[str, ...]:
    """Name what the development set is measured by, the score first."""
    scored = data.dev["dev"].scores is not None
    return ("spearman", "pearson") if scored else ("accuracy_at_1",)


def build(work: Finetuning, options: ModelOptions) -> RapidBertForSentenceEmbedding:
    """Build the encoder alone."""
    return RapidBertForSentenceEmbedding(work.config, options)


def encode(work: Finetuning, texts: TextSet, training: bool) -> PackedExamples:
    """Encode records for the loss, or the different texts of a set that is measured."""
    if training:
        return EncodedPairs(work.tokenizer, texts.columns, work.settings.max_length)
    return EncodedTexts(work, texts)


def notes(work: Finetuning, name: str, of: EncodedPairs | EncodedTexts) -> list[str]:
    """Say how many texts of a set are cut."""
    return cut_note(name, of.cut, f"{len(of.ids):,} texts", work.settings.max_length, of.longest)


def why_not(work: Finetuning) -> list[str]:
    """Refuse batches in which an anchor has nothing to choose from."""
    columns, records = len(work.data.train.columns), len(work.data.train)
    batch = min(work.task.batch_size, records)
    candidates = batch * (columns - 1)
    if candidates > 1:
        return []
    cure = "--batch-size 2 is the smallest" if records > 1 else "the training set needs another"
    return [
        f"a batch of {batch} pair has {batch} x {columns - 1} = {candidates} text to choose from, "
        f"its own positive: the loss would be 0 whatever the model computes; {cure}"
    ]


def measure(
    model: RapidBertForSentenceEmbedding, work: Finetuning, examples: EncodedTexts, world: World
) -> Measured:
    """Measure correlations with the scores, or how often positives are found, on every rank."""
    vectors = embed(model, examples, evaluation_batch(examples.max_length, world), world)
    return Measured(similarity_metrics(examples.pairs, vectors))
