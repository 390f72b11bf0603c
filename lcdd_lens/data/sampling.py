"""Which rows a training step sees, as a function of (seed, step) alone.

The rows of all epochs form one endless stream, each epoch in an order of its own; step t takes the t-th slice. There is
no state to save: a resumed run asks for the step where it stopped and sees what the uninterrupted run would have seen.
"""

import numpy as np

from lcdd_lens.errors import ConfigError


class BatchSampler:
    """Shuffled batches of constant size over ``n`` rows.

    Every row comes once in each epoch; a batch at an epoch's end is filled up from the next epoch.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"BatchSampler {name} is {value}: expected at least {least}.")
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def indices(self, step: int) -> list[int]:
        """Row indices of one step, counted from 0.

        Raises:
            ConfigError: ``step`` is negative.
        """
        if step < 0:
            raise ConfigError(f"step is {step}: expected 0 or more.")
        first = step * self.batch_size
        places = [divmod(place, self.n) for place in range(first, first + self.batch_size)]
        needed = {epoch for epoch, _ in places}
        self._orders = {epoch: self._orders.get(epoch) or self._order(epoch) for epoch in needed}
        return [self._orders[epoch][offset] for epoch, offset in places]

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(self.n).tolist()
        return order
