"""What a trial and the one who runs it say to each other."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from slime_ray.errors import RunError, SlimeRayError


@dataclass(frozen=True)
class Command:
    """What a trial has to do, as the answer to its report, and why, as a sentence.

    stop: end training here and record what has been reached; with `measure`, answers are generated and judged too.
    pause: write a checkpoint and leave without a result, to go on another time. preempt: the same, since the node is
    about to be taken away.
    """

    kind: Literal["stop", "pause", "preempt"]
    reason: str
    measure: bool = False


Report = Callable[[Mapping[str, Any]], Command | None]
"""Told how things get on; may answer with an order. Called by rank 0 only."""


ESTIMATED = ("win_rate", "stability")
"""The goals that the sentinel estimates during training; the others are measured on the held-out pairs."""


def evaluations(curves: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """What a trial reported at each of its evaluations, by step, from its rows of curves.parquet."""
    metrics: dict[int, dict[str, float]] = {}
    for row in curves:
        if row["source"] == "held_out" or (row["source"] == "sentinel" and row["metric"] in ESTIMATED):
            metrics.setdefault(row["step"], {})[row["metric"]] = row["value"]
    return dict(sorted(metrics.items()))


class Paused(RunError):
    """A trial left on a command, with a checkpoint where the disk took one."""

    def __init__(self, order: Command):
        # Another rank makes it anew of these arguments.
        super().__init__(order)
        self.order = order

    def __str__(self) -> str:
        return self.order.reason


def pause_for(error: SlimeRayError) -> Paused:
    """Turn what ended judging into a pause: nothing is wrong with the trial, and it can be resumed."""
    return error if isinstance(error, Paused) else Paused(Command("pause", str(error)))


def judging(report: Report) -> Callable[[int, int], None]:
    """Report how many verdicts there are. Raises Paused where the answer is an order to leave."""

    def progress(done: int, of: int) -> None:
        order = report({"doing": "judging", "step": done, "updates": of})
        if order is not None and order.kind != "stop":
            raise Paused(order)

    return progress


@contextmanager
def interrupts(handle: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `handle`, in the main thread, instead of ending the process."""

    def handler(number: int, frame: FrameType | None) -> None:
        handle()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def ending() -> AbstractContextManager[None]:
    """Have Ctrl-C and SIGTERM raise KeyboardInterrupt, so that nothing half-made stays behind."""

    def handle() -> None:
        raise KeyboardInterrupt

    return interrupts(handle)
