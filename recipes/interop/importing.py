"""Weights of others become an export of ours: `convert_hf.py import`.

An import ends with a check. The same sentences go through the export that was written, as every
later stage reads it, and through an implementation that is not ours in packing and attention:
transformers' own BERT or JinaBERT's definition on the files as they came, or, for RapidBERT's and
MosaicBERT's layout, the padded modelling file on the tensors that our reader found, whose names are
the layout's. A directory that computes something else is not left behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from model.config import ModelConfig, ModelOptions
from model.encoder import RapidBert
from model.foreign import Foreign
from model.masked_lm import RapidBertForMaskedLM
from model.pretrained import CONFIG
from model.weight_files import read_weights
from model.weights import BUFFERS, SAME, Head, State
from recipes.common.errors import Faults, UserError
from recipes.common.files import why_no_directory
from recipes.common.json_content import Json
from recipes.corpus.tokenizer import Tokenizer, open_tokenizer, why_not_of_weights
from recipes.interop import jina_reference
from recipes.interop.comparing import padded
from recipes.interop.hf_config import hf_config, is_plain_bert
from recipes.interop.source import read_any
from recipes.interop.writing import writing

TOLERANCE = 1e-4
"""Largest difference that is rounding, as a share of the largest number compared. Two orders of the
same sums in fp32 differ by some 1e-6; another slope, norm or order of rows by whole numbers."""

SENTENCES = (
    "The committee met on Tuesday and decided nothing.",
    "Water boils at a lower temperature on a high mountain, where the air is thin.",
    "",
    "def area(radius): return 3.14159 * radius ** 2",
    "Grüße aus Köln, 東京 and São Paulo! " * 12,
)
LONGEST = 128
"""Tokens that a sentence of the check is cut to, unless the model has fewer positions."""

Write = Callable[[Path, State, ModelConfig, Path, Json, Head], None]


@dataclass(frozen=True)
class Settings:
    """Make an export of weights that others wrote: MosaicBERT's, Hugging Face's BERT, JinaBERT-v2.

    They are read from safetensors or pytorch_model.bin, of which nothing is executed. The export is
    checked against another implementation before it gets its name.
    """

    input: Path
    """Directory with config.json, the weights and the tokenizer."""
    output: Path
    """Export to write; must not exist."""
    tokenizer: Path | None = None
    """The tokenizer, where --input has none: a directory, or a tokenizer.model, tokenizer.json or
    vocab.txt (MosaicBERT's is bert-base-uncased's)."""


@dataclass(frozen=True)
class ForeignModel:
    """What an import reads, found to fit together."""

    weights: Foreign
    tokenizer: Tokenizer
    config: ModelConfig
    """The model's, with as many pieces as the tokenizer has where the rows allow that."""

    @property
    def head(self) -> Head:
        return "masked_lm" if self.weights.has_masked_lm else "none"


def run(settings: Settings, write: Write) -> int:
    """Read, write, check; returns the exit code.

    Args:
        write: writes an export, as `recipes.training.export.write_export`.

    Raises:
        UserError: all faults of what is read at once, or an export that computes something else;
            then nothing is left behind.
        MachineError: no space; likewise.
    """
    foreign = open_foreign(settings)
    found, output = foreign.weights, settings.output
    print(
        f"{found.directory}: {found.config.name} in the layout of {found.layout}, "
        f"{foreign.config.parameters() / 1e6:.1f}M parameters with a masked-token head"
        + ("" if found.has_masked_lm else ", which is not there: an encoder alone")
        + f"; read from {found.source}"
    )
    if found.left_out:
        print(f"left out, for a head that begins new with every task: {', '.join(found.left_out)}")
    with writing(output), ExitStack() as after:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody has, beside the output: the last step is a rename on one file system.
        work = Path(mkdtemp(prefix=f"{output.name}.", dir=output.parent))
        after.callback(shutil.rmtree, work, ignore_errors=True)
        unchecked, staged = work / "export", work / "tokenizer"
        _stage(foreign.tokenizer, staged)
        state = foreign.weights.state(foreign.head)
        write(unchecked, state, foreign.config, staged, _facts(foreign), foreign.head)
        difference, largest = compare(foreign, unchecked)
        said = f"largest difference {difference:.1e} beside numbers up to {largest:.3g}"
        if not difference <= TOLERANCE * max(1.0, largest):
            raise UserError(
                f"{found.directory}: not imported: the export computes something else than the "
                f"weights do in another implementation ({said})"
            )
        os.replace(unchecked, output)
    what = "logits" if found.has_masked_lm else "hidden states"
    print(f"checked on {len(SENTENCES)} sentences, {what}: {said}")
    print(f"exported to {output}")
    return 0


def open_foreign(settings: Settings) -> ForeignModel:
    """Read and check everything that an import needs, and look at where it writes.

    Raises:
        UserError: all faults at once.
    """
    faults = Faults()
    output = settings.output
    if output.exists() or output.is_symlink():
        faults.append(f"--output {output}: exists; an import replaces nothing, name another")
    elif refusal := why_no_directory(output):
        faults.append(f"--output {output}: {refusal}")
    weights = faults.attempt(lambda: read_any(settings.input))
    at = settings.tokenizer or settings.input
    # A directory of weights that is not there is said once.
    tokenizer = None
    if settings.tokenizer or at.is_dir():
        tokenizer = faults.attempt(lambda: _tokenizer(settings))
    if weights and tokenizer:
        ours = weights.description if weights.layout == "rapidbert" else {}
        rows = weights.config.vocab_size
        faults += why_not_of_weights(tokenizer, rows, ours.get("tokenizer", {}))
    faults.stop()
    assert weights and tokenizer
    return ForeignModel(weights, tokenizer, _with_pieces(weights.config, tokenizer))


def _tokenizer(settings: Settings) -> Tokenizer:
    try:
        return open_tokenizer(settings.tokenizer or settings.input)
    except UserError as error:
        if settings.tokenizer:
            raise
        raise UserError(*error.faults, "another tokenizer is named with --tokenizer") from None


def _with_pieces(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the model with the tokenizer's number of pieces, where the rows behind are padding."""
    exact = replace(config, vocab_size=tokenizer.vocab_size)
    return exact if exact.padded_vocab_size == config.padded_vocab_size else config


def _stage(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer's files where an export is written from."""
    directory.mkdir()
    for name, content in tokenizer.files().items():
        (directory / name).write_bytes(content)


def _facts(foreign: ForeignModel) -> Json:
    """Return what the export says of itself beside the model."""
    found, tokenizer = foreign.weights, foreign.tokenizer
    ours = found.description if found.layout == "rapidbert" else {}
    return {
        **{key: value for key, value in ours.items() if key not in ("model", "tokenizer", "task")},
        "tokenizer": tokenizer.info(),
        "imported_from": {"directory": found.directory.name, "layout": found.layout},
    }


@torch.inference_mode()
def compare(foreign: ForeignModel, export: Path) -> tuple[float, float]:
    """Put sentences through an export and through the weights it is from, in fp32.

    Returns:
        The largest absolute difference, and the largest absolute number.
    """
    ids, mask = _batch(foreign)
    expected = _independent(foreign)(ids, mask)
    options = ModelOptions("sdpa")
    found: Tensor
    if foreign.head == "masked_lm":
        model = RapidBertForMaskedLM.from_pretrained(export, options)
        found = model.logits(ids, attention_mask=mask)
    else:
        found = RapidBert.from_pretrained(export, options)(ids, attention_mask=mask)
    width = foreign.config.vocab_size if foreign.head == "masked_lm" else found.shape[-1]
    real = mask.bool()
    found, expected = found[real][:, :width], expected[real][:, :width]
    if not found.isfinite().all() or not expected.isfinite().all():
        return float("inf"), float("inf")
    return float((found - expected).abs().max()), float(expected.abs().max())


def _batch(foreign: ForeignModel) -> tuple[Tensor, Tensor]:
    """Return the sentences as padded ids and their mask, int64 [S, L]."""
    tokenizer, config = foreign.tokenizer, foreign.config
    longest = min(LONGEST, config.max_positions if config.positions == "learned" else LONGEST)
    rows = []
    for text in SENTENCES:
        words = tokenizer.encode(text)[: longest - 2]
        if len(words) > 3:
            words[2] = tokenizer.mask_id
        rows.append([tokenizer.cls_id, *words, tokenizer.sep_id][:longest])
    return padded(rows, tokenizer.pad_id)


_OF_A_SETTING = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, OSError)
"""What transformers raises of a setting that it does not expect, and of a file that it misses."""


def _independent(foreign: ForeignModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Return another implementation with the weights as they came: ids and mask to its numbers."""
    import transformers

    # It would list what a head less or more leaves over; it has no types here.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs
    found = foreign.weights
    if found.layout == "jinabert":
        return _jinabert(found)
    if found.layout == "bert":
        kind: Any = transformers.BertForMaskedLM if found.has_masked_lm else transformers.BertModel
        extra = {} if found.has_masked_lm else {"add_pooling_layer": False}
        try:
            bert = kind.from_pretrained(found.directory, dtype=torch.float32, **extra).eval()
        except (StrictDataclassError, *_OF_A_SETTING) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{found.directory}: transformers refuses it: {reason}") from None
    else:
        bert = _modelled(found)
    return lambda ids, mask: bert(input_ids=ids, attention_mask=mask)[0]


def _jinabert(found: Foreign) -> Callable[[Tensor, Tensor], Tensor]:
    """Return JinaBERT-v2 by its definition, on the file's tensors before our reader joins any."""
    tensors, _ = read_weights(found.directory, [])
    values = json.loads((found.directory / CONFIG).read_bytes())
    values.setdefault("layer_norm_eps", 1e-12)  # as JinaBERT's own code
    if not any(name.startswith("bert.") for name in tensors):  # saved from the encoder
        tensors = {x if x.startswith("cls.") else f"bert.{x}": t for x, t in tensors.items()}
    for names in SAME.items():  # a tensor with two names may be saved by either
        for name, other in (names, names[::-1]):
            if name in tensors:
                tensors.setdefault(other, tensors[name])

    def numbers(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = jina_reference.hidden_states(tensors, values, ids, mask)
        return jina_reference.logits(tensors, values, hidden) if found.has_masked_lm else hidden

    return numbers


def _modelled(found: Foreign) -> Any:
    """Return the modelling file's model, or transformers' BERT, with weights of our layout."""
    import transformers

    from model.huggingface import modeling_rapidbert as modelling

    config = found.config
    head: Head = "masked_lm" if found.has_masked_lm else "none"
    values = hf_config(config, head, {})
    if is_plain_bert(config):
        family: Any = transformers
        settings: Any = transformers.BertConfig(**values)
        names = ("BertForMaskedLM", "BertModel")
    else:
        family = modelling
        settings = modelling.RapidBertConfig(**values)
        names = ("RapidBertForMaskedLM", "RapidBertModel")
    model = getattr(family, names[0 if found.has_masked_lm else 1])(settings)
    second = {ours: theirs for theirs, ours in SAME.items()}
    tensors = dict(found.tensors)
    for name, other in second.items():
        if name in tensors:
            tensors[other] = tensors[name]
    if not found.has_masked_lm:
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    missing, _ = model.load_state_dict(tensors, strict=False)
    lacking = [x for x in missing if not x.endswith(BUFFERS) and "pooler" not in x]
    assert not lacking, lacking
    return model.eval()
