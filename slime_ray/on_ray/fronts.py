"""Which of many results are better than others in several goals at once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

AT_ONCE = 512


def signed(values: Sequence[Sequence[float]], directions: Sequence[str]) -> npt.NDArray[np.float64]:
    """(results, goals), of which higher is better in every goal."""
    signs = [1.0 if direction == "maximize" else -1.0 for direction in directions]
    return np.asarray(values, dtype=float).reshape(len(values), len(signs)) * signs


def dominators(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(results,) how many others dominate each: are at least as good in all goals and better in one.

    points: (results, goals), higher is better.
    """
    found = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(points), AT_ONCE):
        block = points[start : start + AT_ONCE]
        as_good = np.ones((len(block), len(points)), dtype=bool)
        better = np.zeros_like(as_good)
        for goal, own in zip(points.T, block.T, strict=True):
            as_good &= goal >= own[:, None]
            better |= goal > own[:, None]
        found.append(np.count_nonzero(as_good & better, axis=1))
    return np.concatenate(found)
