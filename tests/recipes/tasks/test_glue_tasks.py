import pytest

from recipes.common.errors import UserError
from recipes.tasks.glue_tasks import TASKS, find_task
from recipes.training.schedule import adamw_weight_decay

# Table S1 of the paper, cell by cell: learning rate, betas, epsilon, weight decay, epochs.
TABLE_S1 = {
    "MNLI": (5e-5, (0.9, 0.98), 1e-6, 5e-6, 3),
    "QNLI": (1e-5, (0.9, 0.98), 1e-6, 1e-6, 10),
    "QQP": (3e-5, (0.9, 0.988), 1e-6, 3e-6, 5),
    "RTE": (1e-5, (0.9, 0.98), 1e-6, 1e-5, 3),
    "CoLA": (5e-5, (0.9, 0.98), 1e-6, 5e-6, 10),
    "SST-2": (3e-5, (0.9, 0.988), 1e-6, 3e-6, 3),
    "MRPC": (8e-5, (0.9, 0.98), 1e-6, 8e-6, 10),
}

# Appendix A: training and test examples.
APPENDIX_A = {
    "MNLI": (392_702, 19_643),
    "QNLI": (104_743, 5_463),
    "QQP": (363_846, 390_965),
    "RTE": (2_490, 3_000),
    "CoLA": (8_551, 1_063),
    "SST-2": (67_349, 1_821),
    "MRPC": (3_668, 1_725),
    "STS-B": (5_749, 1_379),
}


@pytest.mark.parametrize("name", TABLE_S1)
def test_hyper_parameters_are_table_s1(name):
    t = find_task(name)
    assert (t.learning_rate, t.betas, t.eps, t.weight_decay, t.epochs) == TABLE_S1[name]


@pytest.mark.parametrize("name", APPENDIX_A)
def test_counts_are_the_appendix(name):
    t = find_task(name)
    assert (t.train_count, sum(t.test_counts.values())) == APPENDIX_A[name]


def test_the_table_holds_the_eight_tasks_under_their_names():
    assert {t.folder for t in TASKS.values()} == set(APPENDIX_A)
    assert all(key == t.name for key, t in TASKS.items())
    assert sum(t.seeds for t in TASKS.values()) == 3 * 1 + 3 * 5 + 4 + 3
    assert {t.name for t in TASKS.values() if t.start == "mnli"} == {"rte", "mrpc", "stsb"}


@pytest.mark.parametrize(("name", "decay"), [("mnli", 0.1), ("rte", 1.0), ("mrpc", 0.1)])
def test_the_decay_is_in_the_published_convention(name, decay):
    t = find_task(name)
    assert adamw_weight_decay(t.weight_decay, t.learning_rate) == pytest.approx(decay)


@pytest.mark.parametrize("spelling", ["sst2", "SST-2", "sst_2", "SST2"])
def test_a_task_is_found_under_every_spelling(spelling):
    assert find_task(spelling) is TASKS["sst2"]


def test_a_task_has_an_output_per_class_and_one_for_scores():
    assert [find_task(n).outputs for n in ("mnli", "cola", "stsb")] == [3, 2, 1]
    assert [find_task(n).score for n in ("mrpc", "cola", "stsb")] == [
        "accuracy",
        "matthews",
        "spearman",
    ]


@pytest.mark.parametrize(("name", "hint"), [("mrcp", "mean mrpc"), ("wnli", "WNLI is left out")])
def test_an_unknown_task_is_told_all_and_the_nearest(name, hint):
    with pytest.raises(UserError, match=hint) as error:
        find_task(name)
    assert all(known in str(error.value) for known in TASKS)


def test_commas_between_tasks_are_told_to_be_spaces():
    with pytest.raises(UserError, match="spaces stand between several: cola rte$"):
        find_task("cola,rte")
