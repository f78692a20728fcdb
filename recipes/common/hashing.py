"""Random numbers without a generator's state: hashes of a seed and of a position."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


def hash64(key: np.ndarray | int, counter: np.ndarray | int) -> np.ndarray:
    """Element `counter`, from 0, of the SplitMix64 stream seeded with `key`; both broadcast.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) may be entered at any position, so a hash of a
    hash gives independent streams by name: `hash64(hash64(seed, purpose), position)`.

    Returns:
        uint64 array of the broadcast shape; [1] for two scalars.
    """
    with np.errstate(over="ignore"):
        state = (np.asarray(counter, np.uint64) + np.uint64(1)) * GOLDEN
        state = state + np.asarray(key, np.uint64)
    return mix64(np.atleast_1d(state))


def mix64(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, in place: uint64 array of any shape, returned for convenience."""
    shifted = state >> np.uint64(30)
    state ^= shifted
    state *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(state, np.uint64(27), out=shifted)
    state ^= shifted
    state *= np.uint64(0x94D049BB133111EB)
    np.right_shift(state, np.uint64(31), out=shifted)
    state ^= shifted
    return state
