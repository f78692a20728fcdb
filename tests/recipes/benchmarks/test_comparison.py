"""The commands of a comparison: valid for the recipes they start, and the same for both models."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.benchmarks.comparison import (
    CPU,
    GPU,
    NOT_AFTER_DASHES,
    Comparison,
    Settings,
    Size,
    commands,
    resolve,
)
from recipes.common.errors import Faults, UserError
from recipes.common.settings import flat, parse, split_rest
from recipes.corpus.preparation_settings import Settings as Preparation
from recipes.tasks import glue_plan
from recipes.training.settings import Settings as PretrainingSettings

ROOT = Path(__file__).resolve().parents[3]


def compared(words: list[str], size: Size = CPU) -> Comparison:
    own, handed_on = split_rest(words)
    faults = Faults()
    return resolve(parse(Settings, own, faults=faults), handed_on, size, faults)


def steps(tmp_path: Path, *words: str, size: Size = CPU) -> list[list[str]]:
    return commands(compared(["--minutes", "2", "--output", str(tmp_path / "run"), *words], size))


def of(recipe: str, commands: list[list[str]]) -> list[list[str]]:
    return [command[2:] for command in commands if Path(command[1]).stem == recipe]


def glue_settings(commands: list[list[str]]) -> tuple[list[glue_plan.Settings], list[list[str]]]:
    """Of the calls of glue.py, and what each hands on to finetune.py."""
    calls = [split_rest(words) for words in of("glue", commands)]
    return [parse(glue_plan.Settings, own) for own, _ in calls], [rest for _, rest in calls]


@pytest.mark.parametrize("size", [CPU, GPU])
def test_both_models_get_the_same_but_for_what_makes_them_different(tmp_path, size):
    made = steps(tmp_path, "--input", "a/b", "--", "--seed", "3", size=size)
    for command in made:
        assert Path(command[1]).is_file()
    (words,) = of("prepare_data", made)
    prepared = parse(Preparation, words)
    assert prepared.text.input == ("a/b",)
    assert prepared.vocabulary.vocab_size == size.vocab_size
    ours, bert = (flat(parse(PretrainingSettings, words)) for words in of("pretrain", made))
    differ = {name for name in ours if ours[name] != bert[name]}
    assert differ == {"model", "output", "mask_probability"}
    assert (ours["mask_probability"], bert["mask_probability"]) == (0.30, 0.15)
    assert ours["minutes"] == 2 and ours["seed"] == 3 and ours["data"] == prepared.output
    assert (ROOT / ours["deepspeed_config"]).is_file()
    # Exports at the shares of the time and at its end, and random weights.
    jobs, handed_on = glue_settings(made)
    starts = [(job.checkpoint.relative_to(tmp_path / "run"), job.from_scratch) for job in jobs]
    for model in size.models:
        assert (Path(model), True) in starts
        assert [(Path(model, part), False) in starts for part in ("at-25", "at-50", "")] == [
            True
        ] * 3
    assert len(jobs) == 8 and len({tuple(words) for words in handed_on}) == 1
    assert all(job.tasks == ("qnli", "cola", "sst2") for job in jobs)


def test_prepared_data_and_real_tasks_are_taken_as_they_are(tmp_path):
    for folder in ("SST-2", "RTE"):
        (tmp_path / "glue" / folder).mkdir(parents=True)
    words = ("--data", str(tmp_path / "data"), "--glue", str(tmp_path / "glue"))
    made = steps(tmp_path, *words)
    assert not of("prepare_data", made) and not of("stand_in_tasks", made)
    jobs, handed_on = glue_settings(made)
    assert all(job.tasks == ("rte", "sst2") for job in jobs)
    assert not any(handed_on)  # Table S1
    only, _ = glue_settings(steps(tmp_path, *words, "--tasks", "sst2"))
    assert all(job.tasks == ("sst2",) for job in only)


def test_every_fault_is_named_at_once(tmp_path):
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    words = ["--minutes", "0", "--seeds", "0", "--data", "d", "--input", "i"]
    words += ["--output", str(tmp_path / "file"), "--glue", str(tmp_path / "glue")]
    with pytest.raises(UserError) as caught:
        compared([*words, "--tasks", "cola", "wnli"])
    faults = "\n".join(caught.value.faults)
    for named in ("--minutes 0", "--seeds 0", "--data", "is a file", "no task wnli", "no cola"):
        assert named in faults
    with pytest.raises(UserError, match="none of MNLI, "):
        compared(["--minutes", "1", "--glue", str(tmp_path)])


@pytest.mark.parametrize("option", NOT_AFTER_DASHES)
def test_what_the_comparison_gives_itself_cannot_be_given_again(option, tmp_path):
    for spelling in (f"{option}=x", option[:2] + option[2:].replace("-", "_")):
        with pytest.raises(UserError, match=f"{option} after --: "):
            steps(tmp_path, "--", "--seed", "3", spelling)


def test_wrong_options_of_pretraining_are_named_before_anything_is_prepared(tmp_path):
    with pytest.raises(UserError) as caught:
        steps(tmp_path, "--seeds", "0", "--", "--seed", "-1", "--eps", "nan")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "--seeds 0",
        "--eps nan",
        "--seed -1",
    ]
    with pytest.raises(UserError, match="did you mean --learning-rate?"):
        steps(tmp_path, "--", "--learning-rat", "1")
