import math

import numpy as np
import pytest

from recipes.corpus.preparation_manifest import entropy_nats


def test_entropy_of_known_distributions():
    assert entropy_nats([5, 0, 5]) == pytest.approx(math.log(2))
    assert entropy_nats(np.array([0, 9])) == 0
    assert entropy_nats([1] * 100) == pytest.approx(math.log(100))
