"""GLUE's metrics, as fractions and correlations: 0.854, not 85.4; and, for scores of one's own, the
root of the mean squared error in the units of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics


def compute(names: Iterable[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of one set.

    Where a metric is undefined it is 0, as for a model that has learnt nothing: correlations of
    constant predictions or labels, and F1 where class 1 is neither predicted nor there.

    Args:
        names: keys of METRICS.
        predictions, labels: [N] class indices; scores for the correlations.

    Raises:
        ValueError: no examples, different lengths, a prediction, label or metric that is no
            number, or F1 of more than two classes.
    """
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"predictions of shape {predictions.shape} and labels of shape {labels.shape} are not "
            "two rows of the same length, at least 1"
        )
    bad = int(np.sum(~np.isfinite(predictions))) + int(np.sum(~np.isfinite(labels)))
    if bad:
        raise ValueError(f"{bad} of {len(labels)} predictions and labels are not finite")
    found = {name: float(METRICS[name](predictions, labels)) for name in names}
    if broken := [f"{name} {value}" for name, value in found.items() if not np.isfinite(value)]:
        raise ValueError(f"{', '.join(broken)}: not finite, although the predictions are")
    return found


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(sklearn_metrics.f1_score(labels, predictions, zero_division=0.0))


def _correlation(
    correlate: Callable[..., tuple[float, float]], predictions: np.ndarray, labels: np.ndarray
) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return correlate(predictions, labels)[0]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, labels: sklearn_metrics.accuracy_score(labels, predictions),
    "f1": _f1,
    "matthews": lambda predictions, labels: sklearn_metrics.matthews_corrcoef(labels, predictions),
    "spearman": lambda predictions, labels: _correlation(stats.spearmanr, predictions, labels),
    "rmse": lambda predictions, labels: np.sqrt(np.mean(np.square(predictions - labels))),
    "pearson": lambda predictions, labels: _correlation(stats.pearsonr, predictions, labels),
}
