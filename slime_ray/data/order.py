"""Which examples make which update of a training run: it follows from their number and a seed alone."""

import math
from collections.abc import Iterator

import torch

from slime_ray.config.settings import Schedule


def updates_of(schedule: Schedule, examples: int, per_update: int) -> int:
    """Updates that a schedule asks for with so many examples, `per_update` of them each."""
    if schedule.updates is not None:
        return schedule.updates
    return max(1, round(schedule.epochs * math.ceil(examples / per_update)))


def examples_by_update(
    examples: int, per_update: int, *, seed: int, updates: int, done: int = 0
) -> Iterator[list[int]]:
    """Numbers of the examples of each update after the first `done`: epoch after epoch, each in an order of its own.

    The last update of an epoch holds what is left of the examples.
    """
    per_epoch = math.ceil(examples / per_update)
    epoch, order = -1, list[int]()
    for number in range(done, updates):
        if number // per_epoch != epoch:
            epoch = number // per_epoch
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            order = torch.randperm(examples, generator=generator).tolist()
        start = number % per_epoch * per_update
        yield order[start : start + per_update]
