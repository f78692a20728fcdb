"""A directory of transformers: what a run exports, and `convert_hf.py export --format hf`.

The latter is for exports of older versions and for checkpoints of a run that goes on. Its check
loads the directory as a stranger would, by transformers' Auto classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.pretrained import WEIGHTS
from model.weights import (
    BERT_DECODER_BIAS,
    DECODER_BIAS,
    NEVER_PREDICTED,
    Head,
    State,
    to_public,
)
from recipes.common.errors import UserError
from recipes.common.files import write_whole
from recipes.common.settings import shorten
from recipes.corpus.tokenizer import Tokenizer
from recipes.interop.card_facts import gather
from recipes.interop.comparing import LONGEST, TEXTS, Comparison, largest_difference
from recipes.interop.hf_config import MODELLING_FILE, hf_config, hf_files, is_plain_bert
from recipes.interop.model_card import CARD, model_card
from recipes.interop.source import Source

TOLERANCE = 1e-5

AUTO_CLASSES: dict[Head, str] = {
    "masked_lm": "AutoModelForMaskedLM",
    "classifier": "AutoModelForSequenceClassification",
    "token_classifier": "AutoModelForTokenClassification",
    "span_classifier": "AutoModelForQuestionAnswering",
    "none": "AutoModel",
}


def write_directory(
    directory: Path,
    state: State,
    config: ModelConfig,
    tokenizer: Tokenizer,
    description: Mapping[str, Any],
    head: Head,
    *,
    called: Path,
    data: Path,
) -> None:
    """Write all files of an export.

    Args:
        directory: is there and empty.
        state: whole weights, as our model names them.
        description: what the export says of itself.
        called: the export's own name; beside it are the records for the model card.
        data: directory that the tokenizer is from.

    Raises:
        OSError, safetensors.SafetensorError: the file system's own (full, read-only).
    """
    facts = dict(description)
    longest = config.max_positions if config.positions == "learned" else None
    files = hf_files(config, head, facts) | tokenizer.files(longest)
    save_file(published(state, config, head), str(directory / WEIGHTS), metadata={"format": "pt"})
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_whole(directory / name, content)
    card = gather(called, config, head, facts, data, directory / WEIGHTS)
    write_whole(directory / CARD, model_card(card).encode())


def published(state: State, config: ModelConfig, head: Head) -> State:
    """Return the tensors of the file. Rows that only pad the vocabulary are never predicted."""
    public = {name: value.contiguous() for name, value in to_public(state, config, head).items()}
    if DECODER_BIAS in public:
        bias = public.pop(DECODER_BIAS).clone()
        bias[config.vocab_size :] = NEVER_PREDICTED
        public[BERT_DECODER_BIAS if is_plain_bert(config) else DECODER_BIAS] = bias
    return public


def faults(source: Source) -> Iterator[str]:
    """Yield what transformers has no class for."""
    try:
        hf_config(source.config, source.head, source.description)
    except ValueError as error:
        yield str(error)


def notes(source: Source) -> Iterator[str]:
    """Yield what the user should know: here nothing, all of the model goes along."""
    yield from ()


def write(source: Source, directory: Path) -> None:
    """Write the directory, with the records of the run beside the source in its model card."""
    description = {key: value for key, value in source.description.items() if key != "model"}
    write_directory(
        directory,
        source.weights.state(source.head),
        source.config,
        source.tokenizer,
        description,
        source.head,
        called=source.weights.directory,
        data=source.data or source.tokenizer.path.parent,
    )


def load(source: Source, directory: Path) -> nn.Module:
    """Load the model as a stranger would, by its Auto class.

    Raises:
        UserError: tensors are missing or too many.
    """
    import transformers

    # Code that is run is our own, just written; BERT comes without any.
    ours = (directory / MODELLING_FILE).is_file()
    auto = getattr(transformers, AUTO_CLASSES[source.head])
    model: nn.Module
    model, info = auto.from_pretrained(
        directory,
        trust_remote_code=ours,
        output_loading_info=True,
        # transformers' own BERT makes a pooler wherever it is not told.
        **({} if ours or source.head != "none" else {"add_pooling_layer": False}),
    )
    if amiss := [f"{kind}: {', '.join(map(str, sorted(x)))}" for kind, x in info.items() if x]:
        raise UserError(f"transformers does not load all of what was written: {'; '.join(amiss)}")
    return model.eval()


@torch.inference_mode()
def compare(source: Source, directory: Path) -> Comparison:
    """Load model and tokenizer by the Auto classes, and put texts through both models.

    Raises:
        UserError: tensors are missing or too many, or the tokenizer gives other ids.
    """
    model = load(source, directory)
    faults = _other_ids(source, directory)
    if faults:
        raise UserError(*faults)
    ids, mask = source.padded([source.ids(text, LONGEST) for text in TEXTS])
    found = numbers(model(input_ids=ids, attention_mask=mask), source)
    per_token = source.head != "classifier"
    difference = largest_difference(found, source.outputs(ids, mask), mask if per_token else None)
    return Comparison(
        f"{'ids are equal; ' if _has_tokenizer(directory) else ''}outputs of "
        f"{type(model).__name__} for {len(TEXTS)} texts",
        difference,
        TOLERANCE,
        "the same sums in fp32 in another order",
    )


def numbers(output: Any, source: Source) -> Tensor:
    """Take from an output of transformers what `Source.outputs` is."""
    if source.head == "none":
        hidden: Tensor = output.last_hidden_state
        return hidden
    if source.head == "span_classifier":
        return torch.stack([output.start_logits, output.end_logits], -1)
    logits: Tensor = output.logits
    return logits[..., : source.config.vocab_size] if source.head == "masked_lm" else logits


def _has_tokenizer(directory: Path) -> bool:
    return (directory / "tokenizer.json").is_file()


def _other_ids(source: Source, directory: Path) -> list[str]:
    """Return the texts that AutoTokenizer cuts into other pieces than the training did."""
    import transformers

    if not _has_tokenizer(directory):
        return []
    code = (directory / MODELLING_FILE).is_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=code)
    # A [MASK] that was typed is text here, as in the training; a pipeline takes it for the piece.
    found = {text: tokenizer(text, split_special_tokens=True)["input_ids"] for text in TEXTS}
    return [
        f"transformers cuts {shorten(text)} into the pieces {ids}, the training into {ours}"
        for text, ids in found.items()
        if ids != (ours := source.all_ids(text))
    ]
