"""Which chips an epoch has, and in which order: a function of the seed and the epoch alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]


def order_of(length: int, most: int, seed: int, epoch: int) -> Order:
    """Return the chips of an epoch, in the order they are taken.

    Where an epoch has not all chips, epochs go through a shuffled row of all by turns, and at its
    end through another one. The epoch that takes from both takes first what it does not have yet:
    so none has a chip twice, and each row goes through all.

    Args:
        length: How many chips there are.
        most: How many an epoch has, from 1 to `length`.
        seed: What the rows are drawn from.
        epoch: From 0; nothing need be known of those before.
    """
    if most == length:
        return _shuffled(length, seed, epoch)
    first, last = epoch * most, (epoch + 1) * most
    before = order = np.zeros(0, dtype=np.int64)
    rows = -(-last // length)
    for row in range(rows):
        before, order = order, _shuffled(length, seed, row)
        shared = row * length % most  # what the epoch on the border has of the row before
        if shared:
            fresh = order[~np.isin(order, before[-shared:])][: most - shared]
            order = np.concatenate([fresh, order[~np.isin(order, fresh)]])
    start = first - (rows - 1) * length
    if start >= 0:
        return order[start : start + most]
    return np.concatenate([before[start:], order[: start + most]])


def _shuffled(length: int, seed: int, row: int) -> Order:
    philox = np.random.Philox(key=[seed, 3], counter=[0, 0, 0, row])
    return np.random.Generator(philox).permutation(length)
