"""The model card, `README.md` of an export: what the run's records say, and nothing else.

The head is the Hub's metadata. A licence nobody but the owner can choose, so its place is left open
and the page says so. The part between the two marks is written again when GLUE's scores are there;
what somebody has written elsewhere stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.pretrained import WEIGHTS
from recipes.common.files import write_whole
from recipes.common.json_content import at, finite
from recipes.common.tables import markdown
from recipes.interop.card_facts import CardFacts, glue_scores
from recipes.interop.hf_config import ENCODERS, is_plain_bert

CARD = "README.md"
BEGIN, END = "<!-- scores: written by RapidBERT -->", "<!-- end of scores -->"
PIPELINES = {
    "masked_lm": ("fill-mask", "transformers"),
    "classifier": ("text-classification", "transformers"),
    "token_classifier": ("token-classification", "transformers"),
    "span_classifier": ("question-answering", "transformers"),
    "none": ("sentence-similarity", "sentence-transformers"),
}
"""The Hub's name of what a model with this head is for, and of the library that loads it."""
CURVE_POINTS = 8


def model_card(facts: CardFacts) -> str:
    """Write the whole card, in Markdown."""
    sections = [
        _title(facts),
        _model(facts),
        _data(facts),
        _training(facts),
        f"{BEGIN}\n{scores(facts.glue)}{END}\n" if facts.head == "masked_lm" else "",
        _task(facts),
        _cost(facts),
        _use(facts),
        _limits(facts),
        _made_with(facts),
    ]
    return _head(facts) + "\n" + "\n".join(section for section in sections if section)


def with_scores(card: str, glue: Mapping[str, Sequence[tuple[float, str]]]) -> str | None:
    """The card with these scores; None where somebody has taken the place for them away."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{scores(glue)}{end}{after}" if end else None


def refresh_scores(export: Path, results: Path) -> str | None:
    """Write GLUE's scores into the card of the export that they began from.

    Returns what to tell the user; None where there is nothing to write.
    """
    card = export / CARD
    glue = glue_scores(results, export / WEIGHTS)
    if not glue or not card.is_file():
        return None
    renewed = with_scores(card.read_text("utf-8"), glue)
    if renewed is None:
        return f"{card}: the place for the scores is gone; it stays as it is"
    write_whole(card, renewed.encode())
    return f"{card}: has the scores"


def scores(glue: Mapping[str, Sequence[tuple[float, str]]]) -> str:
    """A section with the mean of each task over its seeds; nothing where there is no score."""
    if not glue:
        return ""
    rows = [
        (
            task,
            f"{100 * sum(score for score, _ in seeds) / len(seeds):.1f}",
            seeds[0][1],
            len(seeds),
        )
        for task, seeds in glue.items()
    ]
    table = _table(("task", "score", "metric", "seeds"), rows)
    return f"## GLUE\n\nDevelopment sets, mean over the seeds, times 100.\n\n{table}\n"


def _head(facts: CardFacts) -> str:
    pipeline, library = PIPELINES[facts.head]
    tags = ["rapidbert", "bert", "encoder"]
    tags += ["alibi"] if facts.config.positions == "alibi" else []
    tags += ["feature-extraction"] if facts.head == "none" else []
    lines = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {pipeline}",
        "# license: the owner's to choose, one of https://hf.co/docs/hub/repositories-licenses",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    if hub := [name for name in _inputs(facts) if re.fullmatch(r"[\w.-]+/[\w.-]+", name)]:
        lines += ["datasets:", *(f"- {name}" for name in hub)]
    return "\n".join([*lines, "---", ""])


def _title(facts: CardFacts) -> str:
    name, imported = facts.config.name, facts.description.get("imported_from")
    title, what = name, "A masked language model"
    if facts.task:
        title, what = (
            f"{name}, finetuned on {facts.task.get('name', 'a task')}",
            "A model finetuned",
        )
    elif facts.head == "none":
        what = "An encoder"
    if imported:
        said = f"{what}, of weights in the layout of {imported['layout']} that others have trained."
        license = "it is that of these weights; whoever publishes them again writes it"
    else:
        said = f"{what} {'with' if facts.task else 'trained with'} RapidBERT."
        license = (
            "whoever publishes this model chooses it, with an eye on the text it was trained on, "
            "and writes it"
        )
    return (
        f"# {title}\n\n{said} This page was written from the records that lay beside it.\n\n"
        f"> **License: not named yet**; {license} into the head of this file.\n"
    )


def _model(facts: CardFacts) -> str:
    config = facts.config
    feed_forward = "standard" if config.feed_forward == "standard" else "gated (GEGLU)"
    positions = "ALiBi" if config.positions == "alibi" else f"{config.max_positions:,}, learned"
    tokenizer = at(facts.description, "tokenizer") or {}
    case = None
    if isinstance(folded := tokenizer.get("lower_case"), bool):
        case = "taken for the same" if folded else "told apart"
    rows = [
        (
            "layers, hidden size, heads",
            _sizes(config.num_layers, config.hidden_size, config.num_heads),
        ),
        ("feed-forward", f"{feed_forward}, {config.ffn_size:,} wide"),
        ("positions", positions),
        ("parameters", f"{facts.parameters:,}" if facts.parameters else None),
        ("vocabulary", f"{config.vocab_size:,} pieces"),
        ("normalization of text", tokenizer.get("normalizer")),
        ("upper and lower case", case),
    ]
    return "## Model\n\n" + _facts_table(rows)


def _data(facts: CardFacts) -> str:
    split, held_out = (
        at(facts.manifest, f"splits.{name}") or {} for name in ("train", "validation")
    )
    rows = [
        ("from", ", ".join(_inputs(facts))),
        ("documents", _count(split.get("documents"))),
        ("tokens", _count(split.get("tokens") or at(facts.record, "data.train_tokens"))),
        ("held out", _count(held_out.get("documents"), " documents")),
    ]
    table = _facts_table(rows)
    return f"## Training text\n\n{table}" if table else ""


def _inputs(facts: CardFacts) -> list[str]:
    """Names of the inputs; of paths only the last part, which says nothing about the machine."""
    found = at(facts.manifest, "options.input")
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    return [Path(name).name if _is_path(name) else name for name in names]


def _is_path(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1


def _training(facts: CardFacts) -> str:
    run, progress = facts.record.get("run") or {}, facts.progress
    start = facts.description.get("started_from") or {}
    rows = [
        ("began from", _start(start)),
        ("its embeddings", start.get("embeddings")),
        ("steps", _count(progress.get("step"))),
        ("sequences", _count(progress.get("sequences"))),
        ("tokens", _count(progress.get("tokens"))),
        ("tokens of a sequence", _count(facts.description.get("sequence_length"))),
        ("global batch", _count(facts.record.get("global_batch"), " sequences")),
        (
            "masked",
            f"{run['mask_probability']:.0%} of tokens" if "mask_probability" in run else None,
        ),
        ("peak learning rate", f"{run['learning_rate']:g}" if run.get("learning_rate") else None),
        ("precision", facts.record.get("precision")),
        ("seed", _count(run.get("seed"))),
    ]
    table = _facts_table(rows) if facts.head == "masked_lm" or progress else ""
    if not table:
        return ""
    return f"## Pretraining\n\n{table}" + (_curve(facts) if facts.head == "masked_lm" else "")


def _curve(facts: CardFacts) -> str:
    trained = [record for record in facts.log if finite(record.get("loss/train")) is not None]
    evaluated = [record for record in facts.log if finite(record.get("loss/eval")) is not None]
    points = _spread(evaluated or trained)
    if not points:
        return ""
    loss_at = {record["step"]: record["loss/train"] for record in trained}
    rows = [
        (
            _count(record["step"]),
            _count(record.get("sequences")),
            _shown(loss_at.get(record["step"])),
            _shown(record.get("loss/eval")),
            _shown(record.get("accuracy/eval"), "{:.1%}"),
        )
        for record in points
    ]
    heads = ("step", "sequences", "training loss", "held-out loss", "masked tokens right")
    said = "Losses in nats per masked token; of the held-out text, 15% of the tokens are masked."
    return f"\n{said}\n\n{_table(heads, rows)}"


def _spread(records: Sequence[Any]) -> list[Any]:
    """At most so many of them, evenly, with the first and the last."""
    last = len(records) - 1
    if last < CURVE_POINTS:
        return list(records)
    return [records[round(i * last / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]


def _task(facts: CardFacts) -> str:
    task = facts.task
    if not task:
        return ""
    labels, columns = task.get("labels"), task.get("text_columns") or ()
    rows = [
        ("task", task.get("name")),
        ("labels", ", ".join(map(str, labels)) if labels else None),
        ("input", ", ".join(map(str, columns))),
        ("began from", _start({**task, "sha256": task.get("checkpoint_sha256")})),
        ("examples to learn from", _count(task.get("train_examples"))),
        ("tokens of an example", _count(task.get("max_length"))),
        ("seed", _count(task.get("seed"))),
    ]
    measured = [
        (name, metric, _shown(value))
        for name, metrics in (task.get("metrics") or {}).items()
        for metric, value in metrics.items()
    ]
    text = "## Task\n\n" + _facts_table(rows)
    if measured:
        text += f"\nAfter the last epoch:\n\n{_table(('set', 'metric', 'value'), measured)}"
    if task.get("stand_in"):
        text += "\nThe data only has GLUE's form; these are no GLUE scores.\n"
    return text


def _start(start: Mapping[str, Any]) -> str | None:
    """Say what weights a training began from, by their checksum: paths are this machine's."""
    if start.get("from_scratch"):
        return "random weights"
    digest, layout = start.get("sha256"), start.get("layout")
    layout = f", in the layout of {layout}" if layout else ""
    return f"weights with SHA-256 `{digest}`{layout}" if digest else None


def _cost(facts: CardFacts) -> str:
    if facts.head != "masked_lm":
        return ""
    device, count = facts.record.get("device"), facts.record.get("world_size", 0)
    seconds = facts.progress.get("seconds", 0.0)
    on_gpu = device not in (None, "cpu")
    priced = [r["cost/dollars"] for r in facts.log if finite(r.get("cost/dollars")) is not None]
    spent = facts.progress.get("gpu_seconds") if on_gpu else None
    hours = (spent or seconds * count) / 3600  # earlier versions' exports do not say what was spent
    rows = [
        ("device", f"{count} x {device}" if device and count else None),
        ("GPU hours" if on_gpu else "process hours", f"{hours:,.3g}" if hours else None),
        ("dollars", f"{priced[-1]:,.2f}" if priced and on_gpu else None),
    ]
    table = _facts_table(rows)
    return f"## Cost\n\n{table}" if table and device else ""


def _use(facts: CardFacts) -> str:
    return "## Use\n\n" + "\n".join(_snippets(facts))


# transformers 5 has no pipeline that answers questions.
_ANSWER = """With transformers; PATH is this directory, or its name on the Hub:

```python
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForQuestionAnswering.from_pretrained("PATH"{remote})
given = tokenizer("Who wrote it?", "She wrote it.", return_tensors="pt")
scores = model(**given)
first, last = scores.start_logits.argmax(), scores.end_logits.argmax()
print(tokenizer.decode(given["input_ids"][0, first : last + 1]))
```
"""


def _snippets(facts: CardFacts) -> Iterator[str]:
    pipeline, _ = PIPELINES[facts.head]
    remote = "" if is_plain_bert(facts.config) else ", trust_remote_code=True"
    if facts.head == "span_classifier":
        yield _ANSWER.format(remote=remote)
    elif facts.head != "none":
        example = {
            "fill-mask": '"The capital of France is [MASK]."',
        }.get(pipeline, '"A text."')
        if len(facts.task.get("text_columns") or ()) == 2 and pipeline == "text-classification":
            example = '{"text": "The first text.", "text_pair": "The second one."}'
        yield (
            "With transformers; PATH is this directory, or its name on the Hub:\n\n```python\n"
            "from transformers import pipeline\n\n"
            f'use = pipeline("{pipeline}", model="PATH"{remote})\nprint(use({example}))\n```\n'
        )
    if facts.head in ENCODERS:
        yield (
            "As vectors of texts, with sentence-transformers:\n\n```python\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("PATH"{remote})\n'
            'vectors = model.encode(["A text.", "Another one."])\n```\n'
        )
    command = {
        "masked_lm": 'fill_mask.py --checkpoint PATH "The capital of France is [MASK]."',
        "none": "embed.py --checkpoint PATH --input texts.txt --output vectors.npy",
    }.get(facts.head, "predict.py --checkpoint PATH --input new.jsonl --output answers.jsonl")
    yield f"With RapidBERT, from its repository:\n\n```bash\npython recipes/{command}\n```\n"


def _limits(facts: CardFacts) -> str:
    said = []
    length = facts.task.get("max_length") or facts.description.get("sequence_length")
    if facts.config.positions == "learned":
        said.append(f"Longer inputs than {facts.config.max_positions:,} tokens cannot be computed.")
    if length:
        said.append(
            f"It was trained on at most {length:,} tokens; on longer inputs it is untested."
        )
    if at(facts.description, "tokenizer.lower_case"):
        said.append("It does not see upper and lower case.")
    if facts.head == "masked_lm":
        said.append(
            "It was trained to predict masked words; for a task of its own it is finetuned."
        )
    if facts.task.get("labels"):
        said.append("It answers with one of its labels, whatever it is asked.")
    said.append("What its training text holds, errors and prejudice included, it may have learnt.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in said)


def _made_with(facts: CardFacts) -> str:
    versions = facts.record.get("versions") or {}
    revision = facts.description.get("git_revision")
    rows = [("RapidBERT, git revision", None if revision == "unknown" else revision)]
    rows += [(name, version) for name, version in versions.items()]
    table = _facts_table(rows)
    return f"## Made with\n\n{table}" if table else ""


def _facts_table(rows: Sequence[tuple[str, str | None]]) -> str:
    """Lines for what is known; nothing where nothing is."""
    known = [row for row in rows if row[1]]
    return _table(("", ""), known) if known else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table without line ends in its cells, which have a meaning there."""
    cells = [[" ".join(str(cell).split()) for cell in row] for row in (heads, *rows)]
    return f"{markdown(cells)}\n"


def _sizes(*numbers: int) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _count(value: object, unit: str = "") -> str | None:
    return f"{value:,}{unit}" if isinstance(value, int) else None


def _shown(value: object, form: str = "{:.4g}") -> str:
    return form.format(value) if finite(value) is not None else ""
