"""GLUE's metrics, as fractions and correlations: 0.854, not 85.4; and, for scores of one's own, the
root of the mean squared error in the units of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

# scipy.stats and scikit-learn are imported by the metrics that need them: every job of GLUE would
# wait a second for them, and most need neither.


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
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(predictions, labels) else float(spearmanr(predictions, labels)[0])


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return 0.0 if _constant(predictions, labels) else float(pearsonr(predictions, labels)[0])


def _constant(*rows: np.ndarray) -> bool:
    return any(np.ptp(row) == 0 for row in rows)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, labels: np.mean(predictions == labels),
    "f1": _f1,
    "matthews": _matthews,
    "spearman": _spearman,
    "rmse": lambda predictions, labels: np.sqrt(np.mean(np.square(predictions - labels))),
    "pearson": _pearson,
}
