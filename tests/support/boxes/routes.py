"""Which experts do the rows of a simulated pass go to? Some more often than others, each layer in its own order."""

from __future__ import annotations

import numpy as np

from nvstreamd.kernels.arrays import Ints

# How uneven: an expert of rank r is wanted with a weight of 1 / (r + FLAT), which gives half of all needs to a quarter
# of 128 experts, about what is told of such models.
FLAT = 12.0


class Routes:
    """Draws `used` of `experts` for a row, without replacement: a race of exponential clocks."""

    def __init__(self, experts: int, used: int, seed: int = 1) -> None:
        self.experts = experts
        self.used = used
        self.seed = seed
        self._random = np.random.default_rng(seed)
        self._orders: dict[int, Ints] = {}

    def drawn(self, layer: int, rows: int) -> Ints:
        """The experts of each row by rank, [rows, used] int32."""
        if layer not in self._orders:
            order = np.random.default_rng([self.seed, layer]).permutation(self.experts)
            self._orders[layer] = order.astype(np.int32)
        ticks = self._random.exponential(size=(rows, self.experts)) * (np.arange(self.experts) + FLAT)
        first = np.argpartition(ticks, self.used, axis=1)[:, : self.used]
        return np.asarray(self._orders[layer][first], np.int32)
