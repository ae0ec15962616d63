"""Whether a trial of the search can still be on the front of win rate and stability, from a part of its verdicts."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

NORMAL = 1.96


def beaten_by(win_rate: float, prompts: int, stability: float, others: Iterable[Mapping[str, Any]]) -> str | None:
    """Id of a finished search trial that is at least as stable and wins more, beyond what both samples leave open.

    win_rate: over `prompts` prompts so far. others: rows of trials.parquet; what did not complete beats nobody. The
    difference counts once it is more than 1.96 of its standard errors, with the largest variance that outcomes of these
    means can have, w (1 - w). None where there is no such trial.
    """
    error = _variance(win_rate, prompts)
    for other in others:
        if other["phase"] != "search" or other["status"] != "completed":
            continue
        if other["win_rate"] is None or not other["prompts"]:
            continue
        clear = NORMAL * math.sqrt(error + _variance(other["win_rate"], other["prompts"]))
        if other["stability"] >= stability and other["win_rate"] - win_rate > clear:
            return str(other["trial_id"])
    return None


def _variance(win_rate: float, prompts: int) -> float:
    """Of a mean over so many outcomes. One more outcome of 0.5 on either side keeps it from 0 at rates of 0 and 1."""
    smoothed = (win_rate * prompts + 0.5) / (prompts + 1)
    return smoothed * (1 - smoothed) / prompts
