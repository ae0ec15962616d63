"""The ends of intervals, computed apart from the product: scipy's Student's t, and Wilson's equation solved by bisection."""

import numpy as np
from scipy import optimize, stats
from slime_ray.analysis.statistics import TwoWay


def difference_ends(d: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval over seeds and prompts, with half an item added that differs by 1, and by -1."""
    error, freedom = TwoWay.of(d).error()
    unseen = 2 * 0.5 / d.shape[1] ** 2
    return stats.t.interval(confidence, freedom, loc=d.mean(), scale=np.sqrt(error**2 + unseen))


def score_ends(rate: float, effective: float, freedom: float) -> tuple[float, float]:
    """Solve Wilson's equation for both ends: the rates from which the seen one is t standard errors away."""
    t = stats.t.ppf(0.975, freedom)

    def beyond(at: float) -> float:
        return (rate - at) ** 2 - t**2 * at * (1 - at) / effective

    # Beyond 0 and 1 the right side is negative.
    low = rate if rate == 0 else optimize.brentq(beyond, 0, rate)
    return low, rate if rate == 1 else optimize.brentq(beyond, rate, 1)
