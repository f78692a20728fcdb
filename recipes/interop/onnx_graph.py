"""ONNX: the whole model with its head as one graph, for ONNX Runtime and what is built on it.

The graph is made by torch's exporter from the classes that transformers uses, which keep the
padding where a graph is made: how many tokens a batch has is not known there, only its shape. Batch
and length are free. Inputs and outputs have the names that readers of BERT expect, and the
tokenizer and `config.json` lie beside the graph.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.pretrained import CONFIG
from recipes.interop import hf_directory
from recipes.interop.comparing import LONGEST, TEXTS, Comparison, largest_difference
from recipes.interop.hf_config import MODELLING_FILE
from recipes.interop.source import Source

FILE = "model.onnx"
TOLERANCE = 1e-4
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""int64 [batch, tokens]."""
_BYTES_IN_ONE_FILE = 2**31 - 2**26
"""More than this the format cannot hold in one file: the weights then lie in `model.onnx.data`."""


class _Graph(nn.Module):
    """A model of transformers with plain tensors going in and coming out."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]):
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return tuple(output[name] for name in self.outputs)


def faults(source: Source) -> Iterator[str]:
    """Yield what transformers has no class for."""
    yield from hf_directory.faults(source)


def notes(source: Source) -> Iterator[str]:
    """Yield the graph's inputs and outputs."""
    tokens = f"{source.config.max_positions} tokens at most"
    free = tokens if source.config.positions == "learned" else "any number of tokens"
    yield (
        f"inputs: {', '.join(INPUTS)}, int64 [batch, tokens], {free}; "
        f"outputs: {', '.join(_outputs(source))}"
    )


def _outputs(source: Source) -> tuple[str, ...]:
    if source.head == "span_classifier":
        return "start_logits", "end_logits"
    return ("last_hidden_state",) if source.head == "none" else ("logits",)


def write(source: Source, directory: Path) -> None:
    """Write `model.onnx`, `config.json` and the tokenizer's files."""
    whole = directory / "transformers"
    whole.mkdir()
    hf_directory.write(source, whole)
    model = hf_directory.load(source, whole)
    # Lengths at which nothing coincides: what is equal in an example counts as the same axis.
    ids = torch.full((3, 17), source.tokenizer.unk_id)
    examples = {name: torch.ones_like(ids) for name in INPUTS} | {"input_ids": ids}
    examples["token_type_ids"] = torch.zeros_like(ids)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        torch.onnx.export(
            _Graph(model, _outputs(source)).eval(),
            (),
            directory / FILE,
            kwargs=examples,
            input_names=INPUTS,
            output_names=_outputs(source),
            dynamic_shapes=dict.fromkeys(INPUTS, free),
            dynamo=True,
            external_data=4 * source.config.parameters() > _BYTES_IN_ONE_FILE,
            verbose=False,
        )
    # The modelling file is what `config.json` names for its own class.
    for name in (CONFIG, MODELLING_FILE, *source.tokenizer.files()):
        if (whole / name).is_file():
            shutil.copyfile(whole / name, directory / name)
    shutil.rmtree(whole)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about packages and itself from the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def compare(source: Source, directory: Path) -> Comparison:
    """Put batches of several shapes through ONNX Runtime and through the training's model.

    They are all texts together, a short one, a long one, and these two together. None has the shape
    of the example that the graph was made from.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / FILE, providers=["CPUExecutionProvider"])
    rows = [source.ids(text, LONGEST) for text in TEXTS]
    shortest, longest = min(rows, key=len), max(rows, key=len)
    batches = [rows, [shortest], [longest], [longest, shortest]]
    differences = []
    for batch in batches:
        ids, mask = source.padded(batch)
        found = run(session, ids, mask)
        if source.head == "masked_lm":
            found = found[..., : source.config.vocab_size]
        per_token = source.head != "classifier"
        expected = source.outputs(ids, mask)
        differences.append(largest_difference(found, expected, mask if per_token else None))
    return Comparison(
        f"{', '.join(_outputs(source))} in ONNX Runtime for {len(batches)} batches of up to "
        f"{len(rows)} texts and {len(longest)} tokens",
        float(torch.tensor(differences).max()),  # NaN if one of them is
        TOLERANCE,
        "the same sums in fp32 in another order",
    )


def run(session: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Compute a batch: outputs as `Source.outputs` has them.

    Args:
        session: an `onnxruntime.InferenceSession`.
        ids, mask: int64 [S, L].
    """
    values = (ids, mask, torch.zeros_like(ids))
    feed = {name: value.numpy() for name, value in zip(INPUTS, values, strict=True)}
    outputs = [torch.from_numpy(each) for each in session.run(None, feed)]
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs, -1)
