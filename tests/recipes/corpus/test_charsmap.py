import itertools
import re
import string

import pytest
import sentencepiece
from tokenizer_scenarios import sample_texts

from recipes.corpus.charsmap import sequences_pattern
from recipes.corpus.sentencepiece_training import train_tokenizer

MARKS = "\u0301\u0302\u0307\u0323\u0345\u031b\u064e\u3099\u1161\u11a8"
BASES = string.ascii_letters + "αωΩｶかハ각가\u1100\uffa1\u212b\u0627\u0915"


@pytest.mark.parametrize("normalizer", ["nmt_nfkc_cf", "nfkc"])
def test_the_sequences_are_what_sentencepiece_maps_in_one_go(tmp_path, normalizer):
    trained = train_tokenizer(sample_texts(50), tmp_path / "t.model", 300, normalizer=normalizer)
    pattern = re.compile(
        sequences_pattern(trained.description.normalizer_spec.precompiled_charsmap)
    )
    normalize = sentencepiece.SentencePieceNormalizer(
        rule_name=normalizer, add_dummy_prefix=False, escape_whitespaces=False
    ).normalize
    pairs = ["".join(pair) for pair in itertools.product(BASES, MARKS)]
    in_one_go = {pair for pair in pairs if normalize(pair) != "".join(map(normalize, pair))}
    assert 80 < len(in_one_go) < len(pairs) / 2
    assert {pair for pair in pairs if pattern.fullmatch(pair)} == in_one_go
    assert pattern.match("a\u0323\u0302b").end() == 3  # the longest that is there
    assert pattern.match("a\u0302\u0323b").end() == 2
    assert pattern.match("xb") is None
