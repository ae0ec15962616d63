"""The front of a search of two goals: which trial is its knee, and how sure that is.

Points are (trials, 2), more is better. The knee is the trial of the front that lies farthest beyond the line through
the front's two ends, each goal as a share of the front's own range (Das 1999; Branke et al. 2004): what is gained in
one goal up to it costs little of the other, and beyond it much. Beside it, what the search found for what it spent:
hypervolume by trials and tokens, and the expected best of k random trials.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from slime_ray.runs import pareto
from slime_ray.runs.results import KNOB, Run

from . import stability, statistics
from .figures import BLUE, ORANGE, WIDTH, new_figure, style
from .knobs import Searched, read
from .printing import (
    Column,
    Table,
    cells,
    empty,
    interval_cells,
    measure,
    number,
    numbers,
    short,
    short_names,
    unit_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 2_000
AT_ONCE = 200_000
"""Trials of all resamples whose fronts are worked out together."""
SHOWN = 0.05
"""A trial that is not on the front is shown if it is the knee in so many resamples."""
REFERENCE = {"win_rate", "stability", "preference_accuracy"}
"""Goals that are at least 0, where the hypervolume starts."""
COVERED = 5
"""Of a fifth of the trials the expected best has an interval that covers; of more it would not."""
DRAWN_ANEW = 1_000


def knees(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the knees of fronts (-1 where no trial lies beyond the line), who is on them, and distances beyond it.

    points: (..., trials, 2); NaN is on no front. The knees are (...,), the others (..., trials); distances are shares
    of the front's range, NaN off the front. Of equally far trials the knee has more of the first goal.
    """
    on_front = pareto.on_front(points)
    of_front = on_front[..., None]
    low = np.where(of_front, points, np.inf).min(axis=-2, keepdims=True)
    high = np.where(of_front, points, -np.inf).max(axis=-2, keepdims=True)
    bends = (high > low).all(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The ends are (0, 1) and (1, 0) here, so the line is x + y = 1.
        beyond = (((points - low) / (high - low)).sum(axis=-1) - 1) / np.sqrt(2)
    distances = np.where(on_front, np.where(bends, beyond, 0.0), np.nan)
    rounded = np.where(on_front, distances.round(12), -np.inf)
    farthest = on_front & (rounded == rounded.max(axis=-1, keepdims=True))
    trial = np.where(farthest, points[..., 0], -np.inf).argmax(axis=-1)
    far = np.take_along_axis(distances, trial[..., None], axis=-1)[..., 0] > 1e-12
    return np.where(far, trial, -1), on_front, distances


@dataclass(frozen=True)
class ResampledFront:
    """The knee over resamples. on_front, is_knee: (trials,) share of the resamples in which each trial is that.

    points: (resamples with a knee, 2) where it lay then.
    """

    on_front: np.ndarray
    is_knee: np.ndarray
    points: np.ndarray


def draw_rates(outcomes: np.ndarray, *, resamples: int = RESAMPLES) -> np.ndarray:
    """Return (resamples, trials) means over resampled prompts, the same for all trials.

    outcomes: (trials, prompts), NaN where a trial has none.
    """
    valid = ~np.isnan(outcomes)
    sums = statistics.resample_sums(np.where(valid, outcomes, 0.0), resamples=resamples)
    counts = statistics.resample_sums(valid.astype(float), resamples=resamples)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def resample(points: np.ndarray, drawn: Mapping[int, np.ndarray]) -> ResampledFront:
    """Resample the knee of (trials, 2) points.

    drawn: by column, (resamples, trials) values of that goal; a goal that is not there stays as measured.
    """
    resamples = len(next(iter(drawn.values())))
    on_front, is_knee, knee_points = np.zeros(len(points)), np.zeros(len(points)), []
    # Some resamples at a time, so that a large search takes no more memory than a small one.
    size = max(1, AT_ONCE // len(points))
    for start in range(0, resamples, size):
        part = slice(start, start + size)
        moved = np.repeat(points[None], min(size, resamples - start), axis=0)
        for goal, values in drawn.items():
            moved[..., goal] = np.where(np.isfinite(points[:, goal]), values[part], np.nan)
        trial, front_of_each, _ = knees(moved)
        with_knee = np.flatnonzero(trial >= 0)
        on_front += front_of_each.sum(axis=0)
        is_knee += np.bincount(trial[with_knee], minlength=len(points))
        knee_points.append(moved[with_knee, trial[with_knee]])
    return ResampledFront(on_front / resamples, is_knee / resamples, np.concatenate(knee_points))


def knee_ends(drawn: ResampledFront) -> np.ndarray:
    """Return (2, 2) lower and upper ends of where the knee lies, by goal, in 95 % of the resamples with a knee."""
    return np.asarray(np.quantile(drawn.points, statistics.TAILS, axis=0))


def outcomes_of(searched: Searched, answers: pd.DataFrame) -> np.ndarray | None:
    """Return (trials, prompts) mean outcomes of each search trial's answers; None where there are none."""
    trial_answers = answers[answers["trial_id"].isin(searched.trials["trial_id"]) & answers["outcome"].notna()]
    if trial_answers.empty:
        return None
    wide = trial_answers.pivot_table(index="trial_id", columns="prompt_id", values="outcome", aggfunc="mean")
    return np.asarray(wide.reindex(searched.trials["trial_id"]).to_numpy(dtype=float))


def front(searched: Searched, run: Run) -> Table:
    """Return the front of two goals from one end to the other, with its knee and how often each trial is that."""
    if len(searched.names) != 2 or not searched.eligible.any():
        return empty("There is no front of two goals.", "trial_id")
    points = np.where(searched.eligible[:, None], searched.goals, np.nan)
    knee, on_front, distances = knees(points)
    frame = searched.trials[["trial_id"]].assign(
        **{goal: points[:, place] * searched.signs[place] for place, goal in enumerate(searched.names)},
        on_front=on_front,
        distance=distances,
        knee=np.arange(len(points)) == knee,
    )
    outcomes = outcomes_of(searched, run.answers) if "win_rate" in searched.names else None
    drawn = {}
    for place, (goal, sign) in enumerate(zip(searched.names, searched.signs, strict=True)):
        if goal == "win_rate" and outcomes is not None:
            drawn[place] = sign * draw_rates(outcomes)
        elif goal == "stability" and (scores := _draw_stabilities(searched, run)) is not None:
            drawn[place] = sign * scores
    names = " and ".join(name.replace("_", " ") for name in searched.names)
    notes = [
        f"Front: completed trials that no other equals or beats in {names} and beats in one. Knee: the trial of the "
        "front that lies farthest beyond the line through its two ends, each goal as a share of the front's range."
    ]
    if drawn:
        shares = resample(points, drawn)
        frame["front_share"], frame["knee_share"] = shares.on_front, shares.is_knee
        frame = frame[frame["on_front"] | (frame["knee_share"] >= SHOWN)]
        notes += _about_resamples(
            searched, shares, fixed_goals=[searched.names[place] for place in {0, 1} - drawn.keys()]
        )
    if outcomes is not None:
        ends = [statistics.win_rate_interval(outcomes[place][None]) for place in frame.index]
        frame["win_rate_low"] = [np.nan if end is None else end.low for end in ends]
        frame["win_rate_high"] = [np.nan if end is None else end.high for end in ends]
    frame = frame[frame["on_front"] | ("knee_share" in frame)]
    frame = frame.sort_values([*searched.names, "trial_id"], ascending=[False, True, True], kind="stable")
    frame = frame.reset_index(drop=True)
    at = frame.loc[frame["knee"], "trial_id"].tolist()
    notes = [*knob_notes(searched, frame.loc[frame["on_front"], "trial_id"]), *notes]
    return Table(
        frame=frame,
        caption=f"The front of the search, on what it was searched on; its knee is {at[0]}."
        if at
        else "The front of the search, on what it was searched on; it has no knee.",
        notes=notes,
        columns=(
            Column("trial", tuple(frame["trial_id"]), numeric=False, keep=10),
            *(
                measure(head, frame, goal, digits, scale=scale, keep=9)
                for goal in searched.names
                for head, scale, digits in [unit_of(goal)]
            ),
            Column("beyond the line", numbers(frame, "distance", 2, signed=True), keep=6),
            *(
                Column(head, numbers(frame, column, 0, scale=100), keep=7)
                for head, column in (("front %", "front_share"), ("knee %", "knee_share"))
                if column in frame
            ),
        ),
        remarks=cells(frame, lambda row: "knee" if row["knee"] else "" if row["on_front"] else "not on the front"),
    )


def knob_notes(searched: Searched, trial_ids: Iterable[str]) -> list[str]:
    """Say what each of these trials set of the searched knobs: `search-0003: beta=0.12 gamma=0.4`."""
    trials = searched.trials.set_index("trial_id")
    values = {name.removeprefix(KNOB): read(trials[name]) for name in map(str, trials) if name.startswith(KNOB)}
    names, notes = short_names(list(values)), []
    for trial in trial_ids:
        row = trials.index.get_loc(trial)
        if knobs := [
            f"{names[path]}={short(column[row])}" for path, column in values.items() if column[row] is not None
        ]:
            notes.append(f"{trial}: {' '.join(knobs)}")
    return notes


def _draw_stabilities(searched: Searched, run: Run) -> np.ndarray | None:
    """Return (resamples, trials) S over resampled pairs, prompts and updates; None if a trial recorded too little."""
    drawn = stability.resampled(run, searched.trials[searched.complete], RESAMPLES)
    missing = np.full(RESAMPLES, np.nan)
    values = [drawn[name].stability if name in drawn else missing for name in searched.trials["trial_id"]]
    return np.stack(values, axis=1) if drawn else None


def _about_resamples(searched: Searched, drawn: ResampledFront, fixed_goals: list[str]) -> list[str]:
    stays = f"; {fixed_goals[0].replace('_', ' ')} stays as measured, so that they are too sure" if fixed_goals else ""
    notes = [
        f"front %, knee %: in how many of {RESAMPLES:,} resamples of what its goals were measured on (selection "
        f"prompts, held-out pairs, updates) a trial is on the front, and is its knee{stays}. Trials off the front are "
        f"listed if they are the knee in {100 * SHOWN:.0f} % or more."
    ]
    if not len(drawn.points):
        return notes
    low, high = knee_ends(drawn)
    ranges = []
    for place, goal in enumerate(searched.names):
        head, scale, digits = unit_of(goal)
        ends = sorted((searched.signs[place] * low[place], searched.signs[place] * high[place]))
        ranges.append(f"{head.removesuffix(' %')} {' to '.join(number(end, digits, scale=scale) for end in ends)}")
    without = 1 - len(drawn.points) / RESAMPLES
    lacks = f"; {100 * without:.0f} % of them have no knee" if without >= 0.005 else ""
    return [
        *notes,
        f"Over the resamples the knee lies at {' and '.join(ranges)} (95 %){lacks}. A trial's knee % is not the chance "
        "that it is the true one: where trials lie close, it is too sure.",
    ]


@dataclass(frozen=True)
class Spent:
    """A search by its first 1, 2, ... trials, in the order in which they were drawn.

    tokens: (trials,) that their training took so far. hypervolume: (trials,) of two goals, None where they have no
    reference point. best: by goal, (trials,) the best so far. expected: by goal, (trials,) expected best of so many of
    them at random; resampled: by goal, (resamples, trials) the same with the trials drawn anew.
    """

    tokens: np.ndarray
    hypervolume: np.ndarray | None
    best: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    resampled: dict[str, np.ndarray]

    @classmethod
    def of(cls, searched: Searched) -> "Spent | None":
        """Collect a search; None where no trial is eligible. The others cost tokens and found nothing."""
        complete = searched.eligible
        if not complete.any():
            return None
        hypervolume = None
        if len(searched.names) == 2 and REFERENCE.issuperset(searched.names) and set(searched.ways) == {"maximize"}:
            hypervolume = hypervolumes(np.where(complete[:, None], searched.goals, 0.0))
        drawn = np.random.default_rng(0).integers(0, len(complete), (DRAWN_ANEW, len(complete)))
        best, expected, resampled = {}, {}, {}
        for place, goal in enumerate(searched.names):
            sign, values = searched.signs[place], searched.goals[:, place]
            values = np.where(complete, values, values[complete].min())
            best[goal] = sign * np.maximum.accumulate(values)
            expected[goal] = sign * expected_best(values)
            resampled[goal] = sign * expected_best(values[drawn])
        tokens = searched.trials["tokens"].fillna(0).to_numpy(dtype=float).cumsum()
        return cls(tokens, hypervolume, best, expected, resampled)


def hypervolumes(points: np.ndarray) -> np.ndarray:
    """Return (trials,) area that the first 1, 2, ... of (trials, 2) points dominate above (0, 0); more is better."""
    points = np.maximum(points, 0.0)
    edges = np.unique(points[:, 0])
    widths = np.diff(edges, prepend=0.0)
    # Over each strip of the first goal stands the most of the second that a trial so far has which reaches it.
    reaches = points[:, :1] >= edges
    heights = np.maximum.accumulate(np.where(reaches, points[:, 1:], 0.0), axis=0)
    return np.asarray(heights @ widths)


def expected_best(values: np.ndarray) -> np.ndarray:
    """Return (..., trials) expected best of k = 1, 2, ... trials, drawn without replacement; more is better.

    The unbiased estimate of what Dodge et al. (2019) define: the i-th smallest of n is the best of k with probability
    C(i-1, k-1) / C(n, k). Drawing with replacement, as they do, comes out too low (Tang et al. 2020).
    """
    trials = values.shape[-1]
    smaller = np.arange(1, trials + 1)
    drawn = np.arange(trials)
    # C(i, k) / C(n, k), the probability that none of k lies above the i-th smallest.
    none_above = np.cumprod(np.maximum(smaller[:, None] - drawn, 0) / (trials - drawn), axis=1)
    return np.asarray(np.sort(values, axis=-1) @ np.diff(none_above, axis=0, prepend=0.0))


def budget_curve(searched: Searched, spent: Spent) -> Table:
    """Return what the first trials found, for 1, 2, 4, ... trials and all of them."""
    count = len(searched.trials)
    rows = sorted({*(2**power for power in range(count.bit_length())), count})
    at = np.array(rows) - 1
    frame = pd.DataFrame({"trials": rows, "tokens": spent.tokens[at]})
    if spent.hypervolume is not None:
        frame["hypervolume"] = spent.hypervolume[at]
    for goal in searched.names:
        frame[f"best_{goal}"] = spent.best[goal][at]
        frame[f"expected_{goal}"] = spent.expected[goal][at]
        ends = np.quantile(spent.resampled[goal][:, at], statistics.TAILS, axis=0)
        few = frame["trials"] <= count / COVERED
        frame[f"expected_{goal}_low"], frame[f"expected_{goal}_high"] = (np.where(few, end, np.nan) for end in ends)
    return Table(
        frame=frame,
        caption=f"What the search found for what it spent: its first trials of {count}.",
        notes=_budget_notes(searched, spent),
        columns=(
            Column("trials", tuple(map(str, rows)), keep=10),
            Column("tokens", tuple(f"{tokens:,.0f}" for tokens in frame["tokens"]), keep=6),
            *((Column("hypervolume", numbers(frame, "hypervolume", 3), keep=9),) if "hypervolume" in frame else ()),
            *(
                Column(
                    f"expected best {head} [95 %]",
                    interval_cells(frame, f"expected_{goal}", digits, scale=scale),
                    keep=8,
                )
                for goal in searched.names
                for head, scale, digits in [unit_of(goal)]
            ),
        ),
    )


def _budget_notes(searched: Searched, spent: Spent) -> list[str]:
    names = [name.replace("_", " ") for name in searched.names]
    kept, breaking = (
        (" and keep the constraints", ", and those that break a constraint,") if searched.constraints else ("", "")
    )
    notes = []
    if spent.hypervolume is None:
        notes.append(
            f"Hypervolume: none, since {' and '.join(names)} are not two goals that are at least 0 and to be maximized."
        )
    else:
        notes.append(
            f"Hypervolume: the area dominated by the trials so far that completed{kept}, above the reference point "
            f"{names[0]} 0, {names[1]} 0; the largest possible is 1."
        )
    return [
        *notes,
        "Expected best: of so many of these trials drawn at random without replacement (Dodge et al. 2019, in the "
        f"unbiased form of Tang et al. 2020). Up to a fifth of the trials with a 95 % percentile interval, the trials "
        f"drawn anew {DRAWN_ANEW:,} times; of more it would be too narrow, since no resample holds a better trial than "
        "the best. It is that of a random search only if the trials were drawn at random.",
        f"Stopped, failed and diverged trials{breaking} count with the tokens they took, and as the worst of the rest.",
    ]


def budget_figure(searched: Searched, spent: Spent) -> "Figure":
    """Draw hypervolume by trials and by tokens, and each goal's best so far and expected best of k trials."""
    from matplotlib.ticker import EngFormatter

    wide = 0 if spent.hypervolume is None else 2
    count = wide + len(searched.names)
    rows = -(-count // 2)
    with style():
        figure, panels = new_figure(WIDTH, 2.4 * rows, nrows=rows, ncols=2, squeeze=False)
        for panel in panels.flat[count:]:
            panel.set_axis_off()
        trials = np.arange(1, len(spent.tokens) + 1)
        if spent.hypervolume is not None:
            by_trials, by_tokens = panels.flat[:2]
            by_trials.step(trials, spent.hypervolume, where="post", color=BLUE)
            by_trials.set_xlabel("trials")
            by_tokens.step([0, *spent.tokens], [0, *spent.hypervolume], where="post", color=BLUE)
            by_tokens.set_xlabel("training tokens")
            by_tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
            for panel in (by_trials, by_tokens):
                panel.set_ylabel("hypervolume")
                panel.set_ylim(bottom=0)
        for goal, panel in zip(searched.names, panels.flat[wide:], strict=False):
            head, scale, _ = unit_of(goal)
            low, high = scale * np.quantile(spent.resampled[goal], statistics.TAILS, axis=0)
            # As in the table: of more trials the interval would be too narrow.
            few = trials <= len(trials) / COVERED
            panel.fill_between(trials[few], low[few], high[few], color=ORANGE, alpha=0.2, linewidth=0)
            panel.plot(trials, scale * spent.expected[goal], "--", color=ORANGE, label="expected of k at random")
            panel.step(trials, scale * spent.best[goal], where="post", color=BLUE, label="best so far, as drawn")
            panel.set_xlabel("trials")
            panel.set_ylabel(f"best {head}")
        for place, panel in enumerate(panels.flat[:count]):
            panel.grid()
            # The lines of all goals are named in the first's panel.
            if place == wide:
                panel.legend(frameon=False, fontsize=7.5, loc="lower right")
    return figure
