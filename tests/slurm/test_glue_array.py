"""The parts of the whole benchmark that jobs of SLURM run, with a script as the finetuning."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from finetune_scenarios import make_place
from glue_scenarios import FAKE, orders, results
from lock_scenarios import held

from recipes.common.errors import UserError
from recipes.common.locks import LOCK

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("place")
    (folder / "fake.py").write_text(FAKE)
    return make_place(folder)


@pytest.fixture
def array(place, tmp_path, monkeypatch):
    """Calls a stage for three tasks; the number is that of the job in the array."""
    spec = importlib.util.spec_from_file_location("glue_array", ROOT / "slurm" / "glue_array.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(stage: str, *tasks: str, number: int = 0) -> int:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        words = [stage, "--checkpoint", str(place / "run"), "--output", str(tmp_path / "out")]
        words += ["--data", str(place / "glue"), "--seeds", "2", "--tasks", *tasks]
        return module.main([*words, "--", "--epochs", "1"], script=place / "fake.py")

    return call


def test_the_arrays_are_the_jobs_that_can_start_and_those_after_mnli(array, capsys, tmp_path):
    assert array("list", "cola", "rte", "mnli") == 0
    assert capsys.readouterr().out == "now 0,1,2\nafter-mnli 3,4\n"
    assert array("list", "cola") == 0
    assert capsys.readouterr().out == "now 0,1\nafter-mnli \n"
    assert not (tmp_path / "out").exists()


def test_tasks_without_data_are_named_when_the_arrays_are_planned(array):
    with pytest.raises(UserError, match="no MRPC in it"):
        array("list", "cola", "mrpc")


def test_jobs_of_an_array_share_the_directory_and_the_report_does_not(array, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with held(output, LOCK):
        assert array("job", "cola", "rte", "mnli", number=1) == 0
        assert list(results(output)) == ["cola-seed17"]
        with pytest.raises(UserError, match="another process is running GLUE's tasks"):
            array("report", "cola", "rte", "mnli")
    # The array itself waits for MNLI.
    assert array("job", "cola", "rte", "mnli", number=3) == 0
    assert results(output)["rte-seed17"]["checkpoint"] == str(output / "mnli-seed17")
    with pytest.raises(UserError, match="job 5: the jobs are numbered 0 to 4"):
        array("job", "cola", "rte", "mnli", number=5)


def test_a_report_names_what_has_not_run_apart_from_what_failed(array, tmp_path, capsys):
    output = tmp_path / "out"
    orders(output, cola_seed18="fail")
    assert array("job", "cola", "mnli", number=1) == 0
    assert array("job", "cola", "mnli", number=2) == 1
    capsys.readouterr()
    assert array("report", "cola", "mnli") == 1
    shown = capsys.readouterr()
    assert "average of 1 task" in shown.out
    not_run, failed = shown.err.splitlines()
    log = output / "logs" / "cola-seed18.log"
    assert failed == f"error: cola-seed18 failed: {log}: error: no such luck"
    result = output / "mnli-seed17.json"
    assert not_run == (
        f"error: mnli-seed17 has not run: {result} is not there, and there is no log of it"
    )
