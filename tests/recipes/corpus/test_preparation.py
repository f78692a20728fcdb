from preparation_scenarios import documents

from recipes.corpus.held_out import HeldOut, document_hash
from recipes.corpus.preparation import sample
from recipes.corpus.text_records import Skipped
from recipes.corpus.text_sources import find_inputs, portions


def test_the_tokenizer_sees_all_of_the_input_but_not_what_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.corpus.text_sources.MIN_PORTION_BYTES", 4096)
    (tmp_path / "a.txt").write_text("\n\n".join(documents(3000)))
    cut = portions(find_inputs([str(tmp_path)]).spans, 6)
    assert len(cut) > 4
    below = 2**64 // 10
    everything = list(sample(cut, "text", 10**9, HeldOut(below)))
    assert sorted(everything) == sorted(t for t in documents(3000) if document_hash(t) >= below)
    some = list(sample(cut, "text", 60_000, HeldOut(below)))
    assert 45_000 <= sum(map(len, some)) < 60_000 + 200 * len(cut)
    for portion in cut:
        assert len(set(some) & set(portion.documents("text", Skipped()))) > 10
