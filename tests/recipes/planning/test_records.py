"""Which record of throughput is used, and why another one is not."""

from __future__ import annotations

import json

import pytest
from plan_scenarios import write_record

from recipes.common.errors import UserError
from recipes.planning.records import find_record

USUAL = ("rapidbert-base", 128, False)


def test_the_record_of_this_gpu_is_found_among_others(tmp_path):
    assert find_record(None, tmp_path / "none", "NVIDIA H200", *USUAL) is None
    write_record(tmp_path / "throughput_a.json", "NVIDIA A100-SXM4-40GB")
    assert find_record(tmp_path, tmp_path, "NVIDIA H200", *USUAL) is None
    path = write_record(tmp_path / "throughput_b.json", "NVIDIA H200")
    for given in (None, tmp_path, path):
        found = find_record(given, tmp_path, "NVIDIA H200", *USUAL)
        assert found.path == path and found.largest_micro_batch == 2048
        assert [(row.micro_batch, row.accumulation) for row in found.rows] == [
            (512, 8),
            (512, 1),
            (64, 1),
        ]
        assert found.rows[1].slowest == pytest.approx(1.2 * 1.1)
        assert found.rows[0].tokens_per_sequence == 100


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("NVIDIA H100 80GB HBM3", *USUAL), "is of NVIDIA H200, not of NVIDIA H100 80GB HBM3"),
        (("NVIDIA H200", "rapidbert-large", 128, False), "has no row of rapidbert-large"),
        (("NVIDIA H200", "rapidbert-base", 256, False), "has sequences of 128 tokens, not of 256"),
        (("NVIDIA H200", "rapidbert-base", 128, True), "was measured without --recompute"),
    ],
)
def test_a_record_of_something_else_is_refused_if_it_was_named(tmp_path, asked, reason):
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    assert find_record(tmp_path, tmp_path, *asked) is None
    with pytest.raises(UserError) as caught:
        find_record(path, tmp_path, *asked)
    assert reason in str(caught.value)


def test_what_is_no_record_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find_record(tmp_path / "none.json", tmp_path, "NVIDIA H200", *USUAL)
    path = write_record(tmp_path / "throughput.json", "NVIDIA H200")
    whole = json.loads(path.read_text())
    rows = [{**whole["rows"][0], "step_seconds": {}}]
    for content in ("{", "[]", '{"device": "cpu"}', json.dumps({**whole, "rows": rows})):
        path.write_text(content)
        for given in (path, None):
            with pytest.raises(UserError, match="no record of benchmark.py throughput"):
                find_record(given, tmp_path, "NVIDIA H200", *USUAL)


def test_the_records_in_the_repository_are_read():
    """That of the CPU is no GPU's, and stops nobody."""
    from recipes.common.places import ROOT

    results = ROOT / "docs" / "results"
    cpu = find_record(results / "throughput_cpu.json", results, "cpu", "rapidbert-tiny", 128, False)
    assert cpu.rows and cpu.largest_micro_batch is None
