"""Text that tokenizers are trained on in tests."""

import random

SYLLABLES = ["ka", "lo", "mi", "ren", "su", "ta", "vo", "zin", "pel", "dor"]


def sample_texts(count=400):
    words = random.Random(0)
    return [
        " ".join("".join(words.choices(SYLLABLES, k=words.randint(1, 4))) for _ in range(40)) + "."
        for _ in range(count)
    ]
