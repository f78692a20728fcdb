"""Which jobs the whole benchmark has, in which order, and where each starts from."""

from __future__ import annotations

from recipes.tasks.glue_plan import NOT_AFTER_DASHES, plan
from recipes.tasks.glue_tasks import TASKS


def test_all_tasks_and_seeds_with_mnli_first(tmp_path):
    checkpoint, output = tmp_path, tmp_path / "glue"
    jobs = plan(list(TASKS.values()), checkpoint=checkpoint, output=output)
    # facts of the published recipe: five seeds for the three small tasks, four, three, one each
    assert len(jobs) == 1 + 1 + 1 + 5 + 4 + 3 + 5 + 5
    assert jobs[0].name == "mnli-seed17"
    assert {job.name for job in jobs if job.task.name == "sst2"} == {
        "sst2-seed17",
        "sst2-seed18",
        "sst2-seed19",
    }
    for job in jobs:
        start = job.command[job.command.index("--checkpoint") + 1]
        if job.task.name in ("rte", "mrpc", "stsb"):
            assert job.after is jobs[0]
            assert start == str(output / "mnli-seed17")
        else:
            assert job.after is None
            assert start == str(checkpoint)


def test_from_scratch_is_for_what_does_not_start_from_mnli(tmp_path):
    tasks = [TASKS["mnli"], TASKS["rte"], TASKS["cola"]]
    jobs = plan(tasks, checkpoint=tmp_path, output=tmp_path, seeds=1, from_scratch=True)
    scratch = {job.task.name: "--from-scratch" in job.command for job in jobs}
    assert scratch == {"mnli": True, "rte": False, "cola": True}
    (alone,) = plan(
        [TASKS["rte"]], checkpoint=tmp_path, output=tmp_path, seeds=1, from_scratch=True
    )
    assert "--from-scratch" in alone.command


def test_without_mnli_an_earlier_result_of_it_is_the_start(tmp_path):
    start_directory = tmp_path / "base"

    def start() -> str:
        (job,) = plan([TASKS["rte"]], checkpoint=start_directory, output=tmp_path, seeds=1)
        return job.command[job.command.index("--checkpoint") + 1]

    assert start() == str(start_directory)
    (tmp_path / "mnli-seed17").mkdir()
    (tmp_path / "mnli-seed17.json").write_text("{}")
    assert start() == str(tmp_path / "mnli-seed17")


def test_every_option_of_a_job_is_its_own_or_may_be_handed_on(tmp_path):
    """A new option that `plan` writes must not be given twice."""
    jobs = plan([TASKS["cola"]], checkpoint=tmp_path, output=tmp_path, from_scratch=True)
    written = {word for word in jobs[0].options if word.startswith("--")}
    assert written < NOT_AFTER_DASHES.keys()
