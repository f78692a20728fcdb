"""What a plan is asked: all that is wrong is named at once."""

from __future__ import annotations

import pytest

from recipes.common.errors import Faults, UserError
from recipes.common.settings import parse
from recipes.planning.settings import Question, Settings, resolve


def asked(words: list[str]) -> Question:
    faults = Faults()
    return resolve(parse(Settings, words, faults=faults), faults)


def test_every_fault_is_named_at_once(tmp_path):
    (tmp_path / "record.json").write_text('{"device": "cpu"}')
    words = ["--model", "rapidbert-bose", "--gpus", "0", "--duration", "8e5"]
    words += ["--tokens-per-second-per-gpu", "0", "--record", str(tmp_path / "record.json")]
    with pytest.raises(UserError) as caught:
        asked(words)
    faults = "\n".join(caught.value.faults)
    for named in ("rapidbert-base?", "--gpus", "8e5", "--tokens-per-second", "record.json"):
        assert named in faults
    assert len(caught.value.faults) == 5
    (tmp_path / "file").touch()
    words = ["--model", "bert-base", "--gpus", "1", "--sequence-length", "1024"]
    words += ["--gpu-memory-gb", "inf", "--tokens-per-second-per-gpu", "inf"]
    words += ["--network-gbps", "inf", "--price-per-gpu-hour", "inf"]
    for target, why in (
        (tmp_path, f"{tmp_path}: is a directory; name a file"),
        (tmp_path / "file" / "plan", f"{tmp_path / 'file'} is a file"),
    ):
        with pytest.raises(UserError) as caught:
            asked([*words, "--json", str(target)])
        assert why in caught.value.faults[4]
        assert "learned positions for 512 tokens" in caught.value.faults[5]
        assert len(caught.value.faults) == 6
