"""Effects in a full 2^k design: main effects, interactions, and exact Shapley values, as weights over its cells.

All of them are linear in the cells. Applied to outcomes of shape (cells, seeds, prompts) they give one value per seed
and prompt, of which the interval is that of any difference: nothing is approximated, and pairing is kept.
"""

from collections.abc import Sequence
from itertools import combinations
from math import factorial

import numpy as np

Present = frozenset[str]
"""The components that a cell has."""


def cells_of(components: Sequence[str]) -> list[Present]:
    """All 2^k cells: without any component first, with all of them last."""
    return [frozenset(some) for size in range(len(components) + 1) for some in combinations(components, size)]


def effect_weights(components: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
    """(cells,) weights of every main effect and interaction, in the order of `cells_of`, main effects first.

    The standard contrasts: the product of a cell's signs (1 present, -1 absent) over the effect's components, over
    2^(k-1). A main effect is the mean of the cells with the component minus the mean of those without; an interaction
    of two is half the difference between the effect of one with the other present and with it absent, and so on.
    """
    cells = cells_of(components)
    return {
        effect: np.array([(-1) ** len(set(effect) - cell) for cell in cells]) / 2 ** (len(components) - 1)
        for size in range(1, len(components) + 1)
        for effect in combinations(components, size)
    }


def shapley_weights(components: Sequence[str]) -> dict[str, np.ndarray]:
    """(cells,) weights of each component's Shapley value, in the order of `cells_of`; they add up to `total_weights`.

    The mean, over all orders in which components may be added, of what the component adds when its turn comes
    (Shapley 1953): with |S| of k components there before, |S|! (k - |S| - 1)! of the k! orders.
    """
    k, cells = len(components), cells_of(components)
    share = [factorial(size) * factorial(k - size - 1) / factorial(k) for size in range(k)]
    return {
        component: np.array([share[len(cell) - 1] if component in cell else -share[len(cell)] for cell in cells])
        for component in components
    }


def total_weights(components: Sequence[str]) -> np.ndarray:
    """(cells,) weights of the total effect: all components minus none."""
    weights = np.zeros(2 ** len(components))
    weights[-1], weights[0] = 1.0, -1.0
    return weights


def contrast(weights: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """(seeds, prompts) or (seeds,) values of an effect from the outcomes of all cells, (cells, ...)."""
    return np.tensordot(weights, outcomes, axes=1)
