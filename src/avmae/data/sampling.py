"""Which clips make up each batch, as a function of seed and epoch alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from avmae.errors import InputError


@dataclass(frozen=True)
class Request:
    """One reading of one clip: all that a worker needs to know, so that it does not matter how many share it."""

    index: int  # of the clip in its part of the data set
    seed: tuple[int, ...] = (0,)  # of the reading's random choices
    segment: int = 0  # of the clip, at test time
    scored: bool = True  # False for repetitions that only fill the last batch


class TrainSampler(Sampler[list[Request]]):
    """Batches of a new permutation each epoch; what does not fill a last batch is left out.

    A batch of all processes is cut into contiguous parts, one a process: 2 processes with b clips each see what
    1 process with 2b clips sees.

    `batch_size` counts the clips of a process, `start` the batches of the first epoch that were already seen. With
    `weights` an epoch is as many clips drawn by them instead, some of them several times, each in a window of its own.

    Raises:
        InputError: fewer clips than one batch of all processes.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        start: int = 0,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if clips < batch_size * world:
            raise InputError(
                f"{clips} training clips do not fill one batch of {batch_size} clips x {world} processes; "
                f"lower data.batch_size to {max(1, clips // world)}"
            )
        self.clips, self.batch_size, self.seed, self.rank, self.world = clips, batch_size, seed, rank, world
        self.epoch, self.start, self.weights = epoch, start, weights

    @property
    def sampler(self) -> "TrainSampler":
        """Itself: Lightning tells the epoch to the sampler of a batch sampler, not to the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Advance to a later epoch; Lightning calls this before each."""
        if epoch > self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.clips // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[Request]]:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            order = rng.permutation(self.clips)
        else:
            order = rng.choice(self.clips, self.clips, p=self.weights / self.weights.sum())
        for batch in range(self.start, len(self)):
            first = (batch * self.world + self.rank) * self.batch_size
            numbers = order[first : first + self.batch_size].tolist()
            places = [()] * len(numbers) if self.weights is None else [(first + n,) for n in range(len(numbers))]
            yield [Request(i, (self.seed, epoch, i, *place)) for i, place in zip(numbers, places, strict=True)]


def balancing_weights(labels: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Of each clip the sum over its labels of 1 / (clips that have it + 0.01), as CAV-MAE draws them; 0 without any."""
    counts = Counter(chain(*labels))
    return np.array([sum(1 / (counts[label] + 0.01) for label in own) for own in labels], np.float64)


class EvalSampler(Sampler[list[Request]]):
    """Every segment of every clip once, clip by clip, in batches of one size on every process.

    The end is filled with repetitions that are not scored: the number and shape of batches is the same on all
    processes, as collective operations and compiled models want it.

    Readings are seeded by the run's seed and the window.
    """

    def __init__(self, clips: int, segments: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.clips, self.segments, self.batch_size, self.seed = clips, segments, batch_size, seed
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.clips * self.segments // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Request]]:
        windows = self.clips * self.segments
        for batch in range(len(self)):
            first = (batch * self.world + self.rank) * self.batch_size
            yield [
                Request(n % windows // self.segments, (self.seed, n % windows), n % self.segments, n < windows)
                for n in range(first, first + self.batch_size)
            ]
