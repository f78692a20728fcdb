import numpy as np

from recipes.common.hashing import hash64


def test_hash_is_splitmix64():
    # Test vector of the reference implementation, https://prng.di.unimi.it/splitmix64.c
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hash64(1234567, np.arange(3)).tolist() == expected
