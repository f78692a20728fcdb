"""Text that tokenizers are trained on in tests."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SYLLABLES = ["ka", "lo", "mi", "ren", "su", "ta", "vo", "zin", "pel", "dor"]


def sample_texts(count=400):
    words = random.Random(0)
    return [
        " ".join("".join(words.choices(SYLLABLES, k=words.randint(1, 4))) for _ in range(40)) + "."
        for _ in range(count)
    ]


ODD_TEXTS = json.loads((Path(__file__).parent / "corpus" / "odd_texts.json").read_text())
"""Scripts, marks, emoji, control characters, special pieces and byte pieces typed by a user."""

SPECIAL_LINES = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
"""Where bert-base-uncased has them."""


def write_vocabulary(path: Path, texts: list[str], size: int = 420, *, cased: bool = False) -> Path:
    """A WordPiece vocabulary of BERT's layout, trained on texts, as vocab.txt."""
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    unused = [f"[unused{n}]" for n in range(99)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size - 104, show_progress=False, continuing_subword_prefix="##"
    )
    model.train_from_iterator(texts, trainer)
    found = model.get_vocab()
    lines = sorted(found, key=found.__getitem__)
    special = list(SPECIAL_LINES)
    path.write_text("\n".join([special[0], *unused, *special[1:], *lines]) + "\n")
    return path
