"""What a plan is asked: all that is wrong is named at once."""

from __future__ import annotations

import json

import pytest
from plan_scenarios import question

from recipes.common.errors import Faults, UserError
from recipes.common.settings import parse
from recipes.planning.settings import Question, Settings, resolve


def asked(words: list[str]) -> Question:
    faults = Faults()
    return resolve(parse(Settings, words, faults=faults), faults)


def test_every_fault_is_named_at_once(tmp_path):
    (tmp_path / "record.json").write_text('{"device": "cpu"}')
    words = ["--model", "rapidbert-bose", "--gpus", "0", "--duration", "8e5"]
    words += ["--gpu", "h1000", "--network-gbps", "0", "--global-batch", "0"]
    with pytest.raises(UserError) as caught:
        asked(words)
    faults = "\n".join(caught.value.faults)
    for named in ("rapidbert-base?", "--gpus", "8e5", "--network-gbps", "mean h100?"):
        assert named in faults
    assert "--global-batch 0: must be a whole number from 1" in faults
    assert len(caught.value.faults) == 6
    (tmp_path / "file").touch()
    words = ["--model", "bert-base", "--sequence-length", "1024", "--tokens", "1e9"]
    words += ["--gpu-memory-gb", "inf", "--duration", "900"]
    words += ["--network-gbps", "inf", "--price-per-gpu-hour", "inf"]
    words += ["--record", str(tmp_path / "record.json")]
    for target, why in (
        (tmp_path, f"{tmp_path}: is a directory; name a file"),
        (tmp_path / "file" / "plan", f"{tmp_path / 'file'} is a file"),
    ):
        with pytest.raises(UserError) as caught:
            asked([*words, "--json", str(target)])
        assert why in caught.value.faults[3]
        assert "learned positions for 512 tokens" in caught.value.faults[4]
        assert "--duration and --tokens: a run has one length" in caught.value.faults[5]
        assert "no record of benchmark.py throughput" in caught.value.faults[6]
        assert len(caught.value.faults) == 7


def test_places_that_a_plan_does_not_write_to_are_refused(tmp_path):
    """They had been passed over, and what was asked for was not there afterwards."""
    with pytest.raises(UserError, match="--json FILE takes a plan; --simulate writes its JSON"):
        asked(["--simulate", "--model", "bert-base", "--json", str(tmp_path / "x.json")])
    with pytest.raises(UserError, match="takes what --simulate draws; --json FILE takes a plan"):
        asked(["--model", "bert-base", "--output", str(tmp_path)])


def test_a_model_is_needed_unless_both_are_simulated(tmp_path):
    with pytest.raises(UserError, match="--model is needed"):
        asked([])
    faults = Faults()
    settings = parse(Settings, ["--simulate", "--output", str(tmp_path / "x")], faults=faults)
    assert resolve(settings, faults, "rapidbert-large").model.name == "rapidbert-large"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; name a directory"):
        asked(["--simulate", "--model", "bert-base", "--output", str(tmp_path / "file")])


def test_options_stand_in_the_place_of_the_tables(tmp_path):
    plain = question(tmp_path)
    assert (plain.gpu.name, plain.memory_gb) == ("NVIDIA H100 80GB HBM3", 80)
    assert [each.sequences // 4096 for each in plain.lengths] == [70_000, 178_000]
    words = ("--gpu-memory-gb", "70", "--network-gbps", "50", "--price-per-gpu-hour", "0")
    other = question(tmp_path, *words, "--global-batch", "8192", "--tokens", "1e10")
    assert other.memory_gb == 70 and other.global_batch == 8192
    assert (other.gpu.network_gbit_per_s, other.gpu.dollars_per_hour) == (50, 0)
    (length,) = other.lengths
    assert length.sequences == 78_125_000 and length.name == "10B tokens"
    (length,) = question(tmp_path, "--duration", "5000").lengths
    assert (length.name, length.sequences) == ("5,000 sequences", 5000)
    own = {"name": "X", "peak_bf16_tflops": 100, "memory_gb": 24, "memory_gb_per_s": 900}
    own |= {"multiprocessors": 80, "nvlink_gb_per_s": 32, "network_gbit_per_s": 25}
    (tmp_path / "own.json").write_text(json.dumps({**own, "dollars_per_hour": 0.5}))
    mine = question(tmp_path, "--gpu", str(tmp_path / "own.json"))
    assert (mine.gpu.name, mine.memory_gb) == ("X", 24)
