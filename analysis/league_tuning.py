"""Tables of a league's tuning: what more trials of each entry buy, and how far its winner is from the defaults."""

from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import DEFAULTS
from slime_ray.runs import results

from . import effects, rows, statistics
from .front import expected_best
from .knobs import unit_of
from .league import Standings, is_number, short
from .printing import Column, Table, interval_cells, measure, numbers
from .statistics import Interval

SHOWN = (1, 2, 4, 8, 16, 32)
"""Numbers of tuning trials whose expected best is printed, up to all there are."""
COVERED, ESTIMATED = 5, 2
"""Trials to each of k for the expected best of k to be printed with an interval, and to be printed at all."""


def tuning(found: Standings) -> Table:
    """What more tuning trials buy: the expected best of k on the selection prompts, and the winner as confirmed."""
    lead, trials = found.rate, found.league.trials
    shown = [k for k in SHOWN if ESTIMATED * k <= trials]
    records = []
    for label in found.members:
        values = found.searched(label)
        best = {f"best_of_{k}": best_of(values, k) for k in shown}
        best["confirmed"] = found.interval(found.of_entry(label))
        most = float(values.max()) if len(values) else np.nan
        records.append({"entry": label, **statistics.columns(best), "best_of_all": most})
    frame = pd.DataFrame(records).sort_values("confirmed", ascending=False, na_position="last").reset_index(drop=True)
    return Table(
        frame=frame,
        caption=f"What tuning bought: expected best {unit_of(lead)[0]} of so many of an entry's own trials, as "
        "searched (one seed, selection prompts), and its winner as confirmed.",
        notes=[
            f"An interval (jackknife) covers from {COVERED} trials to each of k on. Without one a value rests on too "
            f"few trials to say how far off it is; below {ESTIMATED} to each none is given. Trials that did not "
            "complete count as the worst that did.",
            "The best of all trials looks better than it is, by luck on one seed and few prompts. Where confirmed "
            "values lie below even the best of 1, the report prompts may be harder. The winner is chosen by all goals "
            "and may lie below the best of all.",
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            *(measure(f"best of {k}", frame, f"best_of_{k}", 1, scale=100, keep=7) for k in shown),
            Column(f"best of all {trials}", numbers(frame, "best_of_all", 1, scale=100), keep=8),
            Column("confirmed [95 %]", interval_cells(frame, "confirmed", 1, scale=100), keep=9),
        ),
    )


def best_of(values: np.ndarray, k: int) -> Interval | None:
    """Return the expected best of `k` of these trials.

    The ends are Student's by the jackknife, which cover 92 to 95 %; percentiles of resampled trials cover less, since
    none holds a better trial than the best. NaN below COVERED trials to each of k, where they cover less.

    Args:
        values: (trials,) of which more is better.
        k: How many of them are drawn.

    Returns:
        The estimate; None below ESTIMATED trials to each of k.
    """
    from scipy.special import stdtrit

    count = len(values)
    if count < ESTIMATED * k:
        return None
    best = float(expected_best(values)[k - 1])
    if count < COVERED * k:
        return Interval(best, np.nan, np.nan)
    without = expected_best(np.stack([np.delete(values, place) for place in range(count)]))[:, k - 1]
    half = float(stdtrit(count - 1, (1 + statistics.CONFIDENCE) / 2) * without.std() * np.sqrt(count - 1))
    return Interval(best, best - half, best + half)


def defaults(found: Standings) -> Table:
    """How far each winner's knobs lie from its objective's defaults, and what these give at its learning rate."""
    notes = {} if found.main.frame.empty else found.main.frame.set_index("label")["note"].to_dict()
    records = []
    for label, member in found.members.items():
        if member.winner is None:
            continue
        chosen = member.trials[member.trials["trial_id"] == member.winner].iloc[0]
        space = member.entry.search.get("dimensions") or {}
        # Behind a bracket a dimension's name says when it exists.
        on_log = {
            name.partition("[")[0]
            for name, dimension in space.items()
            if any("log" in way for way in dimension if dimension[way])
        }
        knobs = [
            _knob(path, value, chosen.get(results.KNOB + path), on_log_scale=path in on_log)
            for path, value in member.entry.defaults.items()
        ]
        one, other = found.of_entry(label), found.of_entry(label, DEFAULTS)
        d = None if one is None or other is None else rows.difference(one, other)
        topics = None if one is None or other is None else rows.shared_topics([one, other], found.topics)
        score = found.steadier(label, label, DEFAULTS)
        records.append(
            {
                "entry": label,
                "knobs": "; ".join(knobs) or "no knobs",
                **statistics.columns(
                    {
                        "tuned": found.interval(one),
                        "defaults": found.interval(other),
                        "difference": None if d is None else effects.interval(d, topics),
                        "stability_difference": None if score is None else effects.interval(score),
                    }
                ),
                "note": str(notes.get(member.winner + DEFAULTS, "")).removeprefix("confirmed").lstrip("; "),
            }
        )
    frame = pd.DataFrame(records, columns=None if records else ["entry"])
    return Table(
        frame=frame,
        caption="Winners beside their objective's defaults, which are run at the winner's learning rate.",
        notes=[
            "knobs: default, then the winner's value; in parentheses their ratio where the knob is searched by its "
            "logarithm, else their difference. difference: winner minus defaults in points, paired by seed and "
            "prompt, one comparison each. Without defaults: the winner has them, or they were not run "
            "(league.defaults)."
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column("knobs", tuple(frame["knobs"]), numeric=False, keep=8),
            Column("tuned % [95 %]", interval_cells(frame, "tuned", 1, scale=100), keep=7),
            Column("defaults % [95 %]", interval_cells(frame, "defaults", 1, scale=100), keep=8),
            Column("difference [95 %]", interval_cells(frame, "difference", 1, scale=100), keep=9),
            Column("S difference [95 %]", interval_cells(frame, "stability_difference"), keep=6),
        )
        if records
        else (),
        remarks=tuple(frame["note"]) if records else (),
    )


def _knob(path: str, default: Any, value: Any, *, on_log_scale: bool) -> str:
    name = path.rpartition(".")[2]
    words = f"{name} {short(default)} to {short(value)}"
    if not (is_number(default) and is_number(value)) or pd.isna(value):
        return words
    if on_log_scale and default > 0 and value > 0:
        return f"{words} (x{value / default:.2g})"
    return f"{words} ({value - default:+.2g})"
