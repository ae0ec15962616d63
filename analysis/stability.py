"""Stability and its parts: intervals from the pairs, answers and curves of a row's trials, and their table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.runs import results
from slime_ray.runs.stability_v1 import TOLERANCES, StabilityParts, damage, spike_flags

from . import rows, statistics
from .printing import Column, Table, cells, empty, interval_cells, join_words, number, numbers, with_interval
from .rows import PARTS, name_of, version_of

PAIR_DRAWS, STEP_DRAWS, UNSEEN_DRAWS = 1, 2, 3
"""Seeds of the resampling of pairs, of steps and of what was not seen, apart from that of prompts, which is 0."""
SIZES = ("entropy_shift", "broken_outputs", "length_shift")
"""The parts that are sizes of a shift with a sign."""
SPIKING = ("loss", "grad_norm")
"""The curves that part T is of."""
DIGITS = {"training_spikes": 3}
"""T's tolerance is 0.01: with two digits a share that halves S and one that costs nothing could look the same."""
TITLES = ("label", "phase", "seeds_finished", "seeds")


@dataclass(frozen=True)
class ResampledStability:
    """Stability and its parts in every resample of one trial's pairs, prompts and steps. Each (resamples,).

    quiet: whether its training had no spike. S then has none either, whatever may not have been seen: of a few hundred
    updates that alone could be all of T's tolerance. sizes: of the parts that are sizes of a shift, with what chance
    adds to them.
    """

    parts: dict[str, np.ndarray]
    quiet: bool
    sizes: dict[str, np.ndarray]

    @property
    def stability(self) -> np.ndarray:
        """S of every resample."""
        values: dict[str, Any] = self.parts | ({"training_spikes": 0.0} if self.quiet else {})
        return np.asarray(1 / (1 + sum(damage(StabilityParts(**values)).values())))


def resampled(run: results.Run, trials: pd.DataFrame, resamples: int) -> dict[str, ResampledStability]:
    """Resample stability and its parts by trial, over its pairs, prompts and steps.

    Empty where a trial has none recorded. Pairs, prompts and (in blocks) steps are drawn with replacement,
    independently of each other; the trials share the draws of pairs and of prompts.
    """
    names = trials["trial_id"].tolist()
    pairs, answers, curves = (
        frame[frame["trial_id"].isin(names)]
        for frame in (run.pairs, run.answers, run.curves[run.curves["metric"].isin(SPIKING)])
    )
    if pairs.empty or answers.empty:
        return {}
    by_pairs, by_prompts = _of_pairs(pairs, resamples), _of_prompts(answers, resamples)
    if any(name not in by_pairs or name not in by_prompts for name in names):
        return {}
    # Grouped once: a search of the whole table for each of a thousand trials takes longer than all else.
    curves = curves[curves["source"] == "train"].sort_values("step", kind="stable")
    series = curves.groupby(["trial_id", "metric"])["value"].agg(list).to_dict()
    losses, norms = ([series.get((name, metric), []) for name in names] for metric in SPIKING)
    spikes = [_spikes(*pair, place, resamples) for place, pair in enumerate(zip(losses, norms, strict=True))]
    resampled_trials = {}
    for name, (steps, quiet) in zip(names, spikes, strict=True):
        (of_pairs, of_tokens), (of_prompts, of_answers) = by_pairs[name], by_prompts[name]
        parts = of_pairs | of_prompts | {"training_spikes": steps}
        resampled_trials[name] = ResampledStability(parts, quiet, of_tokens | of_answers)
    return resampled_trials


def intervals(
    run: results.Run, trials: pd.DataFrame, *, resamples: int = statistics.RESAMPLES
) -> dict[str, statistics.Interval]:
    """Return intervals of `stability` and of each part, over the pairs, prompts and steps of one row's trials.

    S is computed in every resample and averaged over seeds as in the table: a trial that failed or diverged is 0 there.
    Empty where a trial has no recorded pairs or answers, or nothing was measured.
    """
    lost = trials["status"].isin(rows.LOST)
    scored = trials[~lost & trials["stability"].notna()]
    by_trial = resampled(run, scored, resamples)
    if not by_trial:
        return {}
    scored_trials = by_trial.values()
    means = {name: np.mean([trial.parts[name] for trial in scored_trials], axis=0) for name in rows.PARTS}
    means["stability"] = sum(trial.stability for trial in scored_trials) / (len(by_trial) + int(lost.sum()))
    # Without what chance adds a size seems less than it may be: its upper end is that of the sizes as drawn.
    above = means | {name: np.mean([trial.sizes[name] for trial in scored_trials], axis=0) for name in SIZES}
    values = {name: scored[name].mean() for name in rows.PARTS}
    values["stability"] = trials["stability"].where(~lost, 0.0).mean()
    pairs, prompts = (
        frame.loc[frame["trial_id"].isin(by_trial), column].nunique()
        for frame, column in ((run.pairs, "pair"), (run.answers, "prompt_id"))
    )
    units = dict.fromkeys(("unlearning", "rejected_collapse", "entropy_shift"), pairs)
    units |= dict.fromkeys(("broken_outputs", "length_shift"), prompts)
    # Updates, the units of T, are not counted here.
    few = min(pairs, prompts)
    intervals_by_part = {}
    for name, value in values.items():
        low = statistics.interval(value, means[name], units=units.get(name, few)).low
        high = statistics.interval(value, above[name], units=units.get(name, few)).high
        intervals_by_part[name] = statistics.Interval(
            float(value), float(np.minimum(low, value)), float(np.maximum(high, value))
        )
    return intervals_by_part


def _shift(signed: np.ndarray) -> np.ndarray:
    """Return (resamples,) sizes of a signed shift, less what chance adds to its square in sample and resample."""
    return np.asarray(np.sqrt(np.maximum(signed**2 - 2 * signed.var(), 0.0)))


def _unseen(part: int, resamples: int) -> np.ndarray:
    """Return (resamples,) how many more items each resample has of a share's count: none seen is not none there."""
    return np.random.default_rng([UNSEEN_DRAWS, part]).poisson(statistics.PRIOR, resamples)


ByTrial = dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]
"""By trial, each (resamples,): its parts, and those of them that are sizes with what chance adds to them."""


def _of_pairs(pairs: pd.DataFrame, resamples: int) -> ByTrial:
    """Resample parts U, C and H."""
    columns: dict[str, np.ndarray | pd.Series] = {
        "pairs": np.ones(len(pairs)),
        "lost": np.maximum(0.0, pairs["chosen_logp0"] - pairs["chosen_logp"]),
        "collapsed": pairs["rejected_collapsed"],
        "rejected": pairs["rejected_tokens"],
        "entropy0": pairs["chosen_tokens"] * pairs["entropy0"],
        "entropy_change": pairs["chosen_tokens"] * (pairs["entropy"] - pairs["entropy0"]),
    }
    drawn = _resampled_sums(columns, pairs["trial_id"], pairs["pair"], seed=PAIR_DRAWS, resamples=resamples)
    unseen = _unseen(0, resamples) * pairs["rejected_tokens"].mean()
    parts_by_trial = {}
    for trial_id, sums in drawn.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            # log(entropy / entropy0), and 0 to the last digit where nothing changed.
            # No entropy before and after is no shift.
            shift = np.nan_to_num(np.log1p(sums["entropy_change"] / sums["entropy0"]), nan=0.0)
        parts = {
            "unlearning": sums["lost"] / sums["pairs"],
            "rejected_collapse": np.minimum((sums["collapsed"] + unseen) / sums["rejected"], 1.0),
            "entropy_shift": _shift(shift),
        }
        parts_by_trial[trial_id] = parts, {"entropy_shift": np.abs(shift)}
    return parts_by_trial


def _of_prompts(answers: pd.DataFrame, resamples: int) -> ByTrial:
    """Resample parts B and L."""
    new, old = (answers[name].clip(lower=1) for name in ("answer_tokens", "baseline_tokens"))
    columns: dict[str, np.ndarray | pd.Series] = {
        "answers": np.ones(len(answers)),
        "broken": answers["broken"].astype(float) - answers["baseline_broken"].astype(float),
        "longer": np.log(new / old),
    }
    drawn = _resampled_sums(columns, answers["trial_id"], answers["prompt_id"], seed=0, resamples=resamples)
    unseen = _unseen(1, resamples) - _unseen(2, resamples)
    parts_by_trial = {}
    for trial_id, sums in drawn.items():
        # Where another seed answered more prompts, a resample may hold none of this one's.
        count = np.maximum(sums["answers"], 1.0)
        broken, longer = (sums["broken"] + unseen) / count, sums["longer"] / count
        parts = {
            "broken_outputs": np.minimum(np.where(broken > 0, _shift(broken), 0.0), 1.0),
            "length_shift": _shift(longer),
        }
        parts_by_trial[trial_id] = parts, {"broken_outputs": broken.clip(0.0, 1.0), "length_shift": np.abs(longer)}
    return parts_by_trial


def _resampled_sums(
    columns: Mapping[str, np.ndarray | pd.Series], trials: pd.Series, items: pd.Series, *, seed: int, resamples: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return sums of each column over the resampled items, by trial; an item that a trial lacks adds nothing."""
    (of_trial, ids), (of_item, names) = pd.factorize(trials), pd.factorize(items, sort=True)
    cell, cells = of_trial * len(names) + of_item, len(ids) * len(names)
    values = np.stack([np.bincount(cell, column, cells) for column in columns.values()])
    values = values.reshape(len(columns), len(ids), len(names))
    sums = statistics.resample_sums(values, seed=seed, resamples=resamples)
    return {
        str(trial_id): {name: sums[:, place, row] for place, name in enumerate(columns)}
        for row, trial_id in enumerate(ids)
    }


def _spikes(losses: list[float], norms: list[float], place: int, resamples: int) -> tuple[np.ndarray, bool]:
    """Resample part T in blocks of steps; say also whether no step spiked. place: the trial's among its row's.

    Spikes come in runs, so that single steps are not independent: circular blocks of about the cube root of the number
    of steps are drawn (Politis and Romano 1992).
    """
    flags = spike_flags(losses, norms)
    if not len(flags):
        return np.zeros(resamples), True
    length = max(1, round(len(flags) ** (1 / 3)))
    rng = np.random.default_rng([STEP_DRAWS, place])
    starts = rng.integers(0, len(flags), (resamples, round(len(flags) / length)))
    sums = np.concatenate([[0], np.cumsum(np.concatenate([flags, flags[: length - 1]]))])
    spikes = (sums[length:] - sums[:-length])[starts].mean(axis=1) / length
    return np.minimum(spikes + _unseen(3 + place, resamples) / len(flags), 1.0), not flags.any()


def damage_shares(trials: pd.DataFrame) -> dict[str, float]:
    """Return each part's share of what the trials of a row lost to all parts; NaN where they lost nothing."""
    parts = trials[[*PARTS]].to_numpy(dtype=float)
    measured = np.isfinite(parts).all(axis=1) & ~trials["status"].isin(rows.LOST).to_numpy()
    # What failed or diverged lost nothing to a part.
    values: Any = dict(zip(PARTS, np.where(measured[:, None], parts, 0.0).T, strict=True))
    added = damage(StabilityParts(**values))
    losses = {name: float(np.mean(value / (1 + sum(added.values())))) for name, value in added.items()}
    total = sum(losses.values())
    return {name: loss / total if total else float("nan") for name, loss in losses.items()}


DAMAGE = "parts of the damage"
"""Head on the page of the parts' shares."""


def part_columns(frame: pd.DataFrame, *, keep: int) -> list[Column]:
    """Return a column of each part, called by its letter; on the page it has small bars, see `_bars`."""
    return [
        Column(
            letter,
            numbers(frame, name, DIGITS.get(name, 2)),
            keep=keep,
            words=rows.PART_WORDS[name],
            group=DAMAGE,
            bars=_bars(frame, name),
        )
        for name, letter in rows.PARTS.items()
    ]


def _bars(frame: pd.DataFrame, name: str) -> tuple[float, ...]:
    """Divide what S lost among the parts by their shares of the damage: a row that lost nothing has no bars."""
    return tuple(frame[f"{name}_share"] * (1 - frame["stability"]))


def stability_cell(row: pd.Series) -> str:
    """Write S with its interval; where it has none, with its lowest and highest seed."""
    low, high, mean = (number(row[name]) for name in ("stability_min", "stability_max", "stability"))
    if pd.notna(row["stability_low"]):
        return with_interval(row, "stability")
    return mean if low == high == mean else f"{mean} ({low}–{high})"


def stability_parts(run: results.Run, main: Table) -> Table:
    """Return the parts of S of each row; in `frame`, `<part>_low` and `_high` are the ends of its interval."""
    if main.frame.empty:
        return empty("This run has no arms and no winner.")
    ends = statistics.interval_names("stability", *PARTS)
    shares = [f"{name}_share" for name in PARTS]
    frame = main.frame[[*TITLES, "stability_min", "stability_max", *ends, *shares]].copy()
    tolerances = asdict(TOLERANCES)
    lowest, highest = numbers(frame, "stability_min"), numbers(frame, "stability_max")
    return Table(
        frame=frame,
        caption=f"{name_of(run)}: stability and its parts by {version_of(run)}, S = g / (1 + sum of (x/h)²), with "
        "tolerances h: " + ", ".join(f"{letter} {tolerances[name]:.2f}" for name, letter in PARTS.items()) + ".",
        notes=[
            "Each part with its 95 % interval where pairs were recorded: percentile bootstrap, "
            f"{statistics.RESAMPLES:,} resamples, over held-out pairs (U, C, H), prompts (B, L) and blocks of updates "
            "(T); S: all three together. Intervals are of these checkpoints, parts are means over measured seeds.",
            "No part is below 0, so an interval that begins at 0 says that nothing but chance may have been seen. What "
            "chance adds to H, B and L is taken out of S and of their lower ends; C, B and T allow for what was not "
            "seen. The interval of S is of these trainings: one without any spike counts as such.",
            "U % to T %: the part's share of the damage, the sum of (x/h)²; small bars on the page: the same share of "
            "1 - S. seeds: the lowest and the highest S.",
        ],
        columns=(
            Column("label", tuple(frame["label"]), numeric=False, keep=10),
            Column("S", cells(frame, stability_cell), keep=3, words="stability S"),
            Column("seeds", tuple(map("–".join, zip(lowest, highest, strict=True))), keep=2),
            *(column for name in PARTS for column in _part_and_share(frame, name)),
        ),
    )


def _part_and_share(frame: pd.DataFrame, name: str) -> tuple[Column, Column]:
    letter, words, shares = PARTS[name], rows.PART_WORDS[name], f"{name}_share"
    of_damage: dict[str, Any] = {"words": f"{words}, % of the damage", "group": DAMAGE, "bars": _bars(frame, name)}
    return (
        Column(letter, interval_cells(frame, name, DIGITS.get(name, 2)), keep=8, words=words),
        Column(f"{letter} %", numbers(frame, shares, 0, scale=100), keep=1, **of_damage),
    )


def ties(run: results.Run, main_rows: pd.DataFrame, *, judged: bool) -> list[str]:
    """Say where S rests on too few answers, and which rows of the main table its intervals do not tell apart."""
    # An arm without updates is the SFT checkpoint, whose S is 1.
    scored = main_rows[(main_rows["objective"] != "none") & main_rows["stability"].notna()]
    scored = scored.sort_values("stability", ascending=False, kind="stable")
    answers = rows.judged_answers(run)
    answers = answers[answers["label"].isin(scored["label"])]
    if answers.empty:
        return []
    count = int(answers.groupby("trial_id")["prompt_id"].nunique().min())
    scores = [statistics.Interval(*ends) for ends in scored[statistics.interval_names("stability")].to_numpy(float)]
    # A row without an interval is not told apart, either.
    apart = [statistics.independent_difference(scores[0], score).excludes(0.0) for score in scores]
    tied, open_ = scored["label"][~np.array(apart)], []
    if len(tied) > 1:
        open_.append(
            f"Which of {join_words(tied)} is the most stable: no interval of S tells them apart ({count} answers of "
            "each trial)."
        )
    if count < statistics.FEWEST_PROMPTS and not judged:
        open_.append(
            f"How stable the rows are: S rests on {count} answers of each trial; below {statistics.FEWEST_PROMPTS} S "
            "and its interval are rough. See evaluation.prompts."
        )
    return open_
