"""The published pretraining run, to the letter: what `recipes/pretrain.py --paper` sets.

One document is one sequence, truncated at 128 tokens; everything else the paper trains with is the
default as well. Not the paper's, and not settable: the tokenizer (theirs is BERT's WordPiece of
30,522 pieces, ours a SentencePiece model trained on the data), and the draws behind a seed, of the
weights, the order and the masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MODELS = ("bert-base", "bert-large", "rapidbert-base", "rapidbert-large")
PEAK_LEARNING_RATE = {"base": 5e-4, "large": 2e-4}
DURATIONS = ("70k-steps", "178k-steps")  # the first is the default
GLOBAL_BATCH = 4096
PRECISION = "bf16"


def settings(model: str) -> dict[str, Any]:
    """Options of `recipes/pretrain.py` for one of MODELS, by name; for others, of rapidbert-base.

    Sources: the paper's section 4 and appendix, its public recipe. BERT's own masking rate is 15%.
    """
    return {
        "documents": "truncate",
        "sequence_length": 128,
        "duration": DURATIONS[0],
        "mask_probability": 0.15 if model.startswith("bert-") else 0.30,
        "learning_rate": PEAK_LEARNING_RATE.get(model.rpartition("-")[2], 5e-4),
        "warmup_fraction": 0.06,
        "final_lr_fraction": 0.02,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "weight_decay": 1e-5,
    }


def faults(options: Any, global_batch: int | None, precision: str | None) -> Iterator[str]:
    """What keeps a run with --paper from being the published one; None: not known yet."""
    if options.model not in MODELS:
        yield f"--paper: the paper trains {', '.join(MODELS)}; not {options.model}"
    if options.minutes is not None:
        yield "--paper: the paper trains for a number of steps; leave out --minutes or --paper"
    for name, published in settings(options.model).items():
        allowed = DURATIONS if name == "duration" else (published,)
        if (given := getattr(options, name)) not in allowed and given is not None:
            wanted = " or ".join(f"{value}" for value in allowed)
            option = f"--{name.replace('_', '-')}"
            yield f"{option} {given}: with --paper it is {wanted}; leave out {option} or --paper"
    if global_batch not in (None, GLOBAL_BATCH):
        yield (
            f"--paper: a global batch of {global_batch:,} sequences, the paper's is "
            f"{GLOBAL_BATCH:,}: set train_batch_size to it, on a number of GPUs that divides it"
        )
    if precision not in (None, PRECISION):
        yield f"--paper: precision {precision}, the paper's is {PRECISION}"
