"""The published pretraining run, to the letter: what `recipes/pretrain.py --paper` sets.

One document is one sequence, truncated at 128 tokens; everything else the paper trains with is the
default as well. Not the paper's, and not settable: the tokenizer (theirs is BERT's WordPiece of
30,522 pieces, ours a SentencePiece model trained on the data), and the draws behind a seed, of the
weights, the order and the masks.
"""

from __future__ import annotations

from collections.abc import Iterator

from recipes.common.settings import flat, option
from recipes.training.settings import Identity

MODELS = ("bert-base", "bert-large", "rapidbert-base", "rapidbert-large")
PEAK_LEARNING_RATE = {"base": 5e-4, "large": 2e-4}
DURATIONS = ("70k-steps", "178k-steps")  # the first is the default
GLOBAL_BATCH = 4096
PRECISION = "bf16"


def published(model: str) -> Identity:
    """Return the paper's settings for one of MODELS; for others, those of rapidbert-base.

    Sources: the paper's section 4 and appendix, its public recipe. BERT's own masking rate is 15%.
    """
    return Identity(
        model,
        documents="truncate",
        sequence_length=128,
        duration=DURATIONS[0],
        mask_probability=0.15 if model.startswith("bert-") else 0.30,
        learning_rate=PEAK_LEARNING_RATE.get(model.rpartition("-")[2], 5e-4),
        warmup_fraction=0.06,
        final_lr_fraction=0.02,
        beta1=0.9,
        beta2=0.98,
        eps=1e-6,
        weight_decay=1e-5,
    )


NOT_THE_PAPERS = ("model", "minutes", "seed", "tensor_parallel")
"""Fields of the identity that are no value of the paper's; MODELS says which models are."""


def faults(given: Identity, global_batch: int | None, precision: str | None) -> Iterator[str]:
    """Yield what keeps a run with --paper from being the published one; None: not known yet."""
    if given.model is not None and given.model not in MODELS:
        yield f"--paper: the paper trains {', '.join(MODELS)}; not {given.model}"
    if given.minutes is not None:
        yield "--paper: the paper trains for a number of steps; leave out --minutes or --paper"
    papers = flat(published(given.model or MODELS[0]))
    for name, value in flat(given).items():
        allowed = DURATIONS if name == "duration" else (papers[name],)
        if name in NOT_THE_PAPERS or value is None or value in allowed:
            continue
        wanted = " or ".join(map(str, allowed))
        yield (
            f"{option(name)} {value}: with --paper it is {wanted}; "
            f"leave out {option(name)} or --paper"
        )
    if global_batch not in (None, GLOBAL_BATCH):
        yield (
            f"--paper: a global batch of {global_batch:,} sequences, the paper's is "
            f"{GLOBAL_BATCH:,}: set train_batch_size to it, on a number of GPUs that divides it"
        )
    if precision not in (None, PRECISION):
        yield f"--paper: precision {precision}, the paper's is {PRECISION}"
