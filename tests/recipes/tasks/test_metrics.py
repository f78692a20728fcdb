import ast
import math
from pathlib import Path

import numpy as np
import pytest

from recipes.tasks.metrics import METRICS, compute

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
LABELS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_accuracy_f1_and_matthews_follow_from_the_confusion_counts():
    tp, fp, fn, tn = 3, 1, 2, 4
    found = compute(("accuracy", "f1", "matthews"), PREDICTIONS, LABELS)
    assert found["accuracy"] == pytest.approx((tp + tn) / 10)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / spread)


def test_f1_is_that_of_class_1():
    found = compute(("f1",), 1 - PREDICTIONS, 1 - LABELS)
    assert found["f1"] == pytest.approx(2 * 4 / (2 * 4 + 2 + 1))


def test_accuracy_counts_three_classes():
    labels = np.array([0, 1, 2, 2])
    assert compute(("accuracy",), np.array([0, 2, 2, 1]), labels) == {"accuracy": 0.5}


def test_pearson_is_covariance_over_deviations():
    x, y = np.array([1.0, 2.0, 4.0, 5.0]), np.array([2.0, 1.0, 3.0, 6.0])
    # Means 3 and 3: deviations (-2, -1, 1, 2) and (-1, -2, 0, 3).
    assert compute(("pearson",), x, y)["pearson"] == pytest.approx(10 / math.sqrt(10 * 14))


def test_spearman_is_one_minus_the_rank_differences():
    x, y = np.array([0.1, 0.2, 0.3, 7.0, 8.0]), np.array([10.0, 30.0, 20.0, 40.0, 50.0])
    # Ranks 1 2 3 4 5 and 1 3 2 4 5: squared differences sum to 2; 1 - 6·2 / (5·24).
    assert compute(("spearman",), x, y)["spearman"] == pytest.approx(0.9)


def test_spearman_gives_ties_their_mean_rank():
    # Ranks 1.5 1.5 3 and 1 2 3: deviations (-.5, -.5, 1) and (-1, 0, 1).
    found = compute(("spearman",), np.array([2.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    assert found["spearman"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["f1", "matthews", "spearman", "pearson"])
def test_constant_predictions_score_0(name):
    constant = np.zeros(10, dtype=LABELS.dtype)
    assert compute((name,), constant, LABELS) == {name: 0.0}


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_score_1_or_no_error_as_a_plain_float(name):
    found = compute((name,), LABELS, LABELS)[name]
    assert type(found) is float
    assert found == pytest.approx(0.0 if name == "rmse" else 1.0)


def test_rmse_is_in_the_units_of_the_labels():
    x, y = np.array([1e5, 2e5, 4e5]), np.array([1e5, 2.3e5, 3.6e5])
    # Errors 0, 3e4 and 4e4: squares 25e8, over 3.
    assert compute(("rmse",), x, y)["rmse"] == pytest.approx(math.sqrt(25e8 / 3))


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        (np.zeros(2), np.zeros(3), "same length"),
        (np.zeros((3, 1)), np.zeros((3, 1)), "same length"),
        (np.zeros(0), np.zeros(0), "at least 1"),
        (np.array([1.0, math.nan, math.inf]), np.zeros(3), "2 of 3"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        compute(("pearson",), predictions, labels)


def test_no_job_waits_for_the_metrics_libraries_of_others():
    """They take a second or more to import; functions import them."""
    for path in (Path(__file__).parents[3] / "recipes" / "tasks").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", ())]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"scipy", "seqeval", "sklearn"}, (
                path
            )
