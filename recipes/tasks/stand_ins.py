"""Eight small tasks in GLUE's folder layout, made from the text that comes with Python. Not GLUE.

Files, columns and names of labels are those of GLUE's downloads, so that the same readers read
them. Labels are balanced and independent of the texts' lengths by construction, and training and
dev examples come from different documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.common.errors import UserError
from recipes.common.files import why_no_directory, write_whole
from recipes.common.json_content import Json
from recipes.common.locks import LOCK, lock
from recipes.tasks.classification_data import STAND_IN_FILE
from recipes.tasks.stand_in_text import SENTENCE_WORDS, Sentence, Text, Words, read_sentences, split

# Makes the text or the two texts of an example from a sentence; for STS-B the class is 0 to 5.
Build = Callable[[Text, Sentence, int], tuple[Words, ...]]


def _acceptability(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    first, *inner, last = sentence.words
    # The ends keep their places: the capital letter and the full stop would tell.
    return ([first, *(inner if label else text.scrambled(inner)), last],)


def _opening(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    return (sentence.words,)


def _inference(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    phrase = text.phrase(sentence)
    return phrase, (phrase, text.foreign_phrase(sentence, phrase), text.scrambled(phrase))[label]


def _answer(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    phrase = text.phrase(sentence)
    asked = text.foreign_phrase(sentence, phrase) if label else phrase
    return ["what", "says", *asked, "?"], phrase


def _entailment(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    phrase = text.phrase(sentence)
    return phrase, text.foreign_phrase(sentence, phrase) if label else phrase


def _duplicate(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    phrase = text.phrase(sentence)
    asked = phrase if label else text.foreign_phrase(sentence, phrase)
    return ["why", *phrase, "?"], ["how", *asked, "?"]


def _paraphrase(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    phrase = text.phrase(sentence)
    return phrase, text.blended(
        phrase, text.foreign_phrase(sentence, phrase), 0.8 if label else 0.2
    )


def _similarity(text: Text, sentence: Sentence, label: int) -> tuple[Words, ...]:
    phrase = text.phrase(sentence)
    return phrase, text.blended(phrase, text.foreign_phrase(sentence, phrase), label / 5)


# Chooses at most so many sentences, each with the class of the example that it becomes.
Choose = Callable[[Text, int, int], list[tuple[Sentence, int]]]


def _dealt(text: Text, count: int, classes: int) -> list[tuple[Sentence, int]]:
    """Deal shuffled sentences to the classes in turn, and once more where they do not suffice."""
    order = text.generator.permutation(len(text.sentences))
    return [(text.sentences[order[k % len(order)]], k % classes) for k in range(count)]


def _dealt_once(text: Text, count: int, classes: int) -> list[tuple[Sentence, int]]:
    """Deal each sentence once, to every class as often: for examples that are whole sentences."""
    return _dealt(text, min(count, len(text.sentences) // classes * classes), classes)


def _matched(text: Text, count: int, classes: int) -> list[tuple[Sentence, int]]:
    """Pair opening (1) and later (0) sentences of the same number of words."""
    by_length: dict[tuple[int, bool], list[Sentence]] = defaultdict(list)
    for index in text.generator.permutation(len(text.sentences)):
        sentence = text.sentences[index]
        by_length[len(sentence.words), sentence.opens].append(sentence)
    pairs = [
        pair
        for length in SENTENCE_WORDS
        for pair in zip(by_length[length, True], by_length[length, False], strict=False)
    ]
    chosen = [pairs[index] for index in text.generator.permutation(len(pairs))[: count // 2]]
    return [
        (sentence, label) for pair in chosen for sentence, label in zip(pair, (1, 0), strict=True)
    ]


@dataclass(frozen=True)
class StandIn:
    """How one task is made and written.

    Attributes:
        labels: names of the classes in the files.
        row: a line's columns, with places for `index`, `label`, `mark`, `first` and `second`.
        header: the first line, None for none.
        build: makes an example's texts of a sentence.
        choose: chooses the sentences.
        made: what the labels mean here.
        dev_row, dev_header: the same for the dev files, where they have other columns.
    """

    labels: tuple[str, ...]
    row: str
    header: str | None
    build: Build
    made: str
    choose: Choose = _dealt
    dev_row: str | None = None
    dev_header: str | None = None


_INFERENCE = ("entailment", "not_entailment")
_MNLI_HEADER = "\t".join(
    ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse")
    + ("sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1")
)
_MNLI_ROW = "{index}\t{index}\t{index}e\tpython\t-\t-\t-\t-\t{first}\t{second}\t{label}"

STAND_INS = {
    "CoLA": StandIn(
        labels=("0", "1"),
        row="python\t{label}\t{mark}\t{first}",
        header=None,
        build=_acceptability,
        choose=_dealt_once,
        made="1: a sentence as written; 0: its inner words in another order.",
    ),
    "SST-2": StandIn(
        labels=("0", "1"),
        row="{first} \t{label}",
        header="sentence\tlabel",
        build=_opening,
        choose=_matched,
        made="1: the sentence opens its paragraph; 0: it is a later one, of the same length.",
    ),
    "MRPC": StandIn(
        labels=("0", "1"),
        row="{label}\t{index}\t{index}\t{first}\t{second}",
        header="\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        build=_paraphrase,
        made="A phrase, and it again with a fifth (1) or four fifths (0) of its words replaced.",
    ),
    "QQP": StandIn(
        labels=("0", "1"),
        row="{index}\t{index}\t{index}\t{first}\t{second}\t{label}",
        header="id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        build=_duplicate,
        made="Why and how, of the same phrase (1) or of one of another document (0).",
    ),
    "STS-B": StandIn(
        labels=("0.000", "1.000", "2.000", "3.000", "4.000", "5.000"),
        row="{index}\tpython\tdocs\t-\t{index}\t-\t-\t{first}\t{second}\t{label}",
        header="index\tgenre\tfilename\tyear\told_index\tsource1\tsource2"
        "\tsentence1\tsentence2\tscore",
        build=_similarity,
        made="A phrase, and it again with score fifths of its words kept, the others replaced.",
    ),
    "MNLI": StandIn(
        labels=("entailment", "neutral", "contradiction"),
        row=f"{_MNLI_ROW}\t{{label}}",
        header=f"{_MNLI_HEADER}\tgold_label",
        build=_inference,
        made="A phrase, and the same (entailment), one of another document (neutral), or its words "
        "in another order (contradiction). Mismatched: documents of the library's last modules.",
        dev_row=_MNLI_ROW + 5 * "\t{label}",
        dev_header=f"{_MNLI_HEADER}\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
    ),
    "QNLI": StandIn(
        labels=_INFERENCE,
        row="{index}\t{first}\t{second}\t{label}",
        header="index\tquestion\tsentence\tlabel",
        build=_answer,
        made="Which phrase is asked for, and that phrase (entailment) or another document's.",
    ),
    "RTE": StandIn(
        labels=_INFERENCE,
        row="{index}\t{first}\t{second}\t{label}",
        header="index\tsentence1\tsentence2\tlabel",
        build=_entailment,
        made="A phrase, and the same (entailment) or one of another document.",
    ),
}

_MADE = """\
STAND-IN, not GLUE: made by recipes/stand_in_tasks.py from the documentation that comes with Python.
"""
_MADE_SO = """\
{made}
Labels are balanced and do not depend on lengths; dev examples come from other documents than
training examples. A demonstration is pretrained on this same text, the dev documents included.
"""


def examples(
    task: StandIn, sentences: Sequence[Sentence], count: int, generator: np.random.Generator
) -> list[tuple[int, tuple[str, ...]]]:
    """Make at most `count` examples (class, texts), shuffled, each class as often as the others.

    A sentence serves again, with a new phrase and a new partner, when there are more examples than
    sentences; for tasks on whole sentences there are then fewer examples.
    """
    text = Text(list(sentences), generator)
    made = [
        (label, tuple(" ".join(words) for words in task.build(text, sentence, label)))
        for sentence, label in task.choose(text, count, len(task.labels))
    ]
    return [made[index] for index in generator.permutation(len(made))]


def write_tasks(
    output: Path, documents: Sequence[str], *, train: int, dev: int, seed: int
) -> dict[str, dict[str, int]]:
    """Write all tasks; the same arguments give the same files.

    Args:
        output: gets a folder per task and the file `STAND_IN`.
        documents: paragraphs on lines, as `python_documents` has them.
        train, dev: examples per set, at most.

    Returns:
        The number of examples by folder and file.

    Raises:
        UserError: `output` has other tasks or is another process's, or the text is too little.
    """
    if refusal := why_no_directory(output):
        raise UserError(f"--output {output}: {refusal}")
    there = {path.name for path in output.iterdir()} - {LOCK} if output.is_dir() else set()
    if there and not (output / STAND_IN_FILE).is_file():
        raise UserError(f"{output}: in use by something else than stand-in tasks")
    parts = split(read_sentences(documents), seed)
    # Drawing a phrase of another document needs another document.
    scarce = [part for part, of in parts.items() if len({s.document for s in of}) < 2]
    if scarce:
        raise UserError(f"too little text: no sentences of two documents for {', '.join(scarce)}")
    output.mkdir(parents=True, exist_ok=True)
    lock(output, "writing stand-in tasks into it")
    # First, so that no interruption leaves tasks that could be taken for GLUE's.
    write_whole(output / STAND_IN_FILE, _MADE.encode())
    counts: dict[str, dict[str, int]] = {}
    for number, (folder, task) in enumerate(STAND_INS.items()):
        (output / folder).mkdir(exist_ok=True)
        made_so = _MADE + _MADE_SO.format(made=task.made)
        write_whole(output / folder / STAND_IN_FILE, made_so.encode())
        files = {"train.tsv": ("train", train), "dev.tsv": ("dev", dev)}
        if folder == "MNLI":
            files = {"train.tsv": ("train", train), "dev_matched.tsv": ("dev", dev)}
            files["dev_mismatched.tsv"] = ("mismatched", dev)
        counts[folder] = {}
        for place, (name, (part, count)) in enumerate(files.items()):
            # A stream per file: a change of one task or size leaves the other files as they are.
            generator = np.random.default_rng((seed, 1, number, place))
            made = examples(task, parts[part], count, generator)
            write_whole(output / folder / name, _tsv(task, made, part).encode())
            counts[folder][name] = len(made)
    return counts


def _tsv(task: StandIn, made: Sequence[tuple[int, tuple[str, ...]]], part: str) -> str:
    header, row = task.header, task.row
    if part != "train":
        header, row = task.dev_header or header, task.dev_row or row
    lines = [] if header is None else [header]
    for index, (label, texts) in enumerate(made):
        fields: Json = dict(zip(("first", "second"), texts, strict=False))
        mark = "" if label else "*"  # CoLA's third column: the linguists' asterisk
        lines.append(row.format(index=index, label=task.labels[label], mark=mark, **fields))
    return "\n".join(lines) + "\n"
