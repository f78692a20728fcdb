"""The benchmarks' records as parts of a page: shown, missing, of other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from recipes.benchmarks.record_sections import SHOWN, record_sections

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"


def body(directory: Path) -> str:
    [section] = record_sections(directory)
    return section.body


def test_what_was_measured_is_shown_and_the_rest_is_asked_for(tmp_path):
    shutil.copy(RESULTS / "peers_cpu.json", tmp_path)
    text = body(tmp_path)
    assert text.count("<svg") == 1 and "TOY SIZE" in text and "HF ModernBERT" in text
    assert text.count("Not measured") == len(SHOWN) - 1
    assert "Figure S2" in text and "Figure S4" in text
    assert f"python recipes/benchmark.py glu --output {tmp_path}" in text


def test_a_record_of_a_gpu_goes_before_one_of_the_processor(tmp_path):
    content = json.loads((RESULTS / "peers_cpu.json").read_text())
    for name, device in (("peers_cpu", "cpu"), ("peers", "NVIDIA H200")):
        changed = content | {"device": device, "size": "full"}
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    assert "NVIDIA H200, 20" in body(tmp_path) and "EPYC" not in body(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"contenders": {"a": {"ratio": 1}}}'])
def test_a_record_that_cannot_be_shown_is_named(tmp_path, content):
    (tmp_path / "peers.json").write_text(content)
    text = body(tmp_path)
    assert f"{tmp_path}/peers.json: cannot be shown" in text
    assert text.count("Not measured") == len(SHOWN) - 1
