"""What every export to other software does: all faults first, a check, and a name only after it."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
from export_scenarios import BERT, RAPIDBERT, make_export
from safetensors import SafetensorError

from recipes.common.errors import MachineError, UserError
from recipes.convert_hf import main
from recipes.interop import exporting, jina


@pytest.fixture(scope="module")
def place(finetune_place, tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("run"), finetune_place / "data", RAPIDBERT)


def export(place, output, format_="jina") -> int:
    return main(
        ["export", "--input", str(place), "--output", str(output), "--format", format_],
    )


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_copy_that_agrees_gets_its_name(place, tmp_path, capsys):
    assert export(place, tmp_path / "out") == 0
    assert left(tmp_path) == ["out"]
    said = capsys.readouterr().out
    assert "rapidbert-tiny, 0." in said and "largest difference" in said
    assert said.endswith(f"exported to {tmp_path / 'out'}\n")


def test_a_neighbour_of_a_temporary_files_name_survives(place, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("kept")
    assert export(place, tmp_path / "out") == 0
    assert left(tmp_path) == ["out", "out.partial"]
    assert (tmp_path / "out.partial" / "mine").read_text() == "kept"
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "out.partial").stat().st_mode


@pytest.mark.parametrize("format_", ["hf", "jina"])
@pytest.mark.parametrize("name", ["hidden_size", "ffn_size", "vocab_size"])
def test_weights_of_other_sizes_than_the_settings_say_are_refused(place, tmp_path, name, format_):
    damaged = shutil.copytree(place, tmp_path / "damaged")
    settings = json.loads((damaged / "export" / "config.json").read_text())
    settings["rapidbert"]["model"][name] *= 2
    (damaged / "export" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"do not fit the model: .* is \[\d+, \d+\], (the|not)"):
        export(damaged, tmp_path / "out", format_)
    assert left(tmp_path) == ["damaged"]


@pytest.mark.parametrize("wrong", ["heads", "gate", "NaN"])
def test_a_copy_that_computes_something_else_is_not_left_behind(
    place, tmp_path, monkeypatch, wrong
):
    values, tensors = jina.config_values, jina.tensors
    gated = "bert.encoder.layer.1.mlp.gated_layers.weight"

    def other_tensors(source):
        found = tensors(source)
        swapped = found[gated].roll(RAPIDBERT.ffn_size, 0)
        return {**found, gated: swapped if wrong == "gate" else swapped * float("nan")}

    if wrong == "heads":  # and with their number, the slopes
        monkeypatch.setattr(
            jina, "config_values", lambda source: {**values(source), "num_attention_heads": 6}
        )
    else:
        monkeypatch.setattr(jina, "tensors", other_tensors)
    with pytest.raises(UserError, match="not exported: what was written computes something else"):
        export(place, tmp_path / "out")
    assert not left(tmp_path)


def test_all_faults_are_said_at_once_and_nothing_is_written(place, finetune_place, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError) as error:
        export(tmp_path / "none", tmp_path / "there")
    exists, nothing = error.value.faults
    assert (
        exists == f"--output {tmp_path / 'there'}: exists; an export replaces nothing, name another"
    )
    assert "no such directory" in nothing
    learned = make_export(tmp_path / "bert", finetune_place / "data", BERT, "classifier")
    with pytest.raises(UserError) as error:
        export(learned, tmp_path / "out")
    assert [fault.partition(",")[0] for fault in error.value.faults] == [
        "bert-tiny has learned positions",
        f"{learned}: a finetuned head",
    ]
    assert left(tmp_path) == ["bert", "there"]


def test_a_tokenizer_of_other_weights_is_refused(place, finetune_place, tmp_path):
    other = make_export(tmp_path / "run", finetune_place / "data", RAPIDBERT)
    described = (other / "export" / "config.json").read_text()
    (other / "export" / "config.json").write_text(described.replace('"fingerprint": "', "&f00"))
    with pytest.raises(UserError, match="damaged export"):
        export(other, tmp_path / "out")
    (other / "export" / "config.json").write_text(
        described.replace('"fingerprint": "', '"fingerprint": "f00')
    )
    with pytest.raises(UserError, match="its fingerprint is .*, the weights were trained with f00"):
        export(other, tmp_path / "out")


def test_packages_that_are_missing_are_named_before_any_work(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(exporting, "find_spec", asked.append)  # which returns None
    with pytest.raises(UserError) as error:
        export(tmp_path / "none", tmp_path / "out", "gguf")
    assert error.value.faults[0] == (
        "--format gguf needs gguf, xllamacpp: pip install -e '.[convert]'"
    )
    assert asked == ["gguf", "xllamacpp"]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "weights"), "weights: No space left"),
        (OSError("9216 requested and 512 written"), "9216 requested and 512 written"),
        (SafetensorError("I/O error: No space left on device"), "out: I/O error: No space left"),
    ],
)
def test_a_full_disk_is_the_machines_and_leaves_nothing(
    place, tmp_path, monkeypatch, refusal, said
):
    def full(*_, **__):
        raise refusal

    monkeypatch.setattr(jina, "save_file", full)
    with pytest.raises(MachineError, match=said):
        export(place, tmp_path / "out")
    assert not left(tmp_path)
