"""Which trials a row of a table stands for, and by whom they were judged. Result frames in, frames and arrays out."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.design import FEWEST_SEEDS
from slime_ray.config.metrics import Constraint, violation
from slime_ray.errors import InputError
from slime_ray.runs import results

from . import effects
from .effects import ONE_SEED
from .statistics import Interval

PARTS = {
    "unlearning": "U",
    "rejected_collapse": "C",
    "entropy_shift": "H",
    "broken_outputs": "B",
    "length_shift": "L",
    "training_spikes": "T",
}
"""The scored parts of stability: column in trials.parquet -> letter."""
PART_WORDS = {name: f"{name.replace('_', ' ')} {letter}" for name, letter in PARTS.items()}
"""Their heads on the page."""
METRICS = {"win_rate": "win rate", "preference_accuracy": "held-out accuracy", "stability": "stability S"}
FINISHED = "completed"
MEASURED = (FINISHED, "stopped")
"""How trials end that have a policy whose answers were judged. To leave out what was stopped would flatter its row."""
LOST = ("failed", "diverged")
"""How trials end that count as stability 0 and have no win rate."""

Outcomes = tuple[list[int], np.ndarray]
"""Seeds, and their (seeds, prompts) outcomes."""


@contextmanager
def reading(name: str, way_out: str) -> Iterator[None]:
    """Raise InputError for a file that cannot be read, or holds something else. name: as the message begins."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0].rstrip(".")
        raise InputError(f"{name} cannot be read: {reason}. {way_out}") from None


def is_judged(run: results.Run) -> bool:
    """Tell whether a judge compared answers in this run."""
    return run.manifest.get("judge") not in (None, "", "none") or bool(run.trials["win_rate"].notna().any())


def judged_trials(run: results.Run) -> pd.DataFrame:
    """Return the trials whose answers a judge compared, whatever it made of them."""
    return run.trials[run.trials["status"].isin(MEASURED) & (run.trials["judge"].fillna("none") != "none")]


def judge_of(run: results.Run) -> str:
    """Name the judge whose verdicts the run holds. Raises InputError where there are several: no table mixes them."""
    first = judged_trials(run).groupby("judge", sort=True)["trial_id"].first()
    if len(first) > 1:
        examples = ", ".join(f"{trial_id} by {judge}" for judge, trial_id in first.items())
        raise InputError(
            f"{run.path} holds verdicts of {len(first)} judges ({examples}): their win rates cannot stand in one "
            "table. Judge all of its answers with one of them, or run what another judge is to say under another "
            "--name."
        )
    return str(first.index[0]) if len(first) else str(run.manifest.get("judge") or "none")


def of_label(run: results.Run, frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """Return the rows of a result frame that a row of the table stands for.

    A confirmed winner has its search trial's label, but not its phase; search trials stand only in a run without both
    arms and confirmed winners.
    """
    in_table = frame["phase"].isin(["arm", "confirm"])
    if not run.trials["phase"].isin(["arm", "confirm"]).any():
        in_table = ~in_table
    return frame[in_table & (frame["label"] == label)]


def _measured(run: results.Run, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a result frame that are of a measured arm or confirmed winner."""
    measured = run.trials[run.trials["phase"].isin(["arm", "confirm"]) & run.trials["status"].isin(MEASURED)]
    return frame[frame["trial_id"].isin(measured["trial_id"])]


def judged_answers(run: results.Run) -> pd.DataFrame:
    """Return the answers to the report prompts of every measured arm and confirmed winner."""
    return _measured(run, run.answers[run.answers["prompt_set"] == "report"])


def judged_verdicts(run: results.Run) -> pd.DataFrame:
    """Return the single verdicts of a panel on those answers; none where no panel judged."""
    return _measured(run, run.verdicts[run.verdicts["prompt_set"] == "report"])


def outcomes_by_label(run: results.Run) -> dict[str, Outcomes]:
    """Return the outcomes of every arm and confirmed winner, prompts in the same order."""
    # Several answers to one prompt are averaged: the prompt is what the bootstrap draws.
    return _by_label(judged_answers(run), "prompt_id", "outcome")


def accuracies_by_label(run: results.Run) -> dict[str, Outcomes]:
    """Return each held-out pair's accuracy by label: 1 if chosen has the higher mean log-probability, 0.5 for a tie."""
    pairs = _measured(run, run.pairs)
    right = np.sign(pairs["chosen_logp"] - pairs["rejected_logp"]) / 2 + 0.5
    return _by_label(pairs.assign(right=right), "pair", "right")


def rates_by_label(run: results.Run, *, accuracy: bool = False) -> tuple[str, dict[str, Outcomes], np.ndarray | None]:
    """Return what rates a run's rows, the outcomes of that by label, and the topics of its prompts, if any.

    It is the win rate; the held-out accuracy where that is asked for, or nothing was judged.
    """
    if accuracy or not is_judged(run):
        return "preference_accuracy", accuracies_by_label(run), None
    return "win_rate", outcomes_by_label(run), topics_by_prompt(run)


def retention_by_label(run: results.Run) -> dict[str, Outcomes]:
    """Return scores on the retention prompts minus the SFT checkpoint's, by label; NaN where one has none."""
    answers = _measured(run, run.retention)
    return _by_label(answers.assign(change=answers["score"] - answers["baseline_score"]), "prompt_id", "change")


def _by_label(frame: pd.DataFrame, item: str, value: str) -> dict[str, Outcomes]:
    """Return means of a column by label, seed and item; items in the same order for all."""
    if frame.empty:
        return {}
    wide = frame.pivot_table(index=["label", "seed"], columns=item, values=value, aggfunc="mean", dropna=False)
    return {
        str(label): (rows.index.get_level_values("seed").tolist(), rows.to_numpy(dtype=float))
        for label, rows in wide.dropna(how="all").groupby(level="label")
    }


def stabilities_by_label(trials: pd.DataFrame) -> dict[str, Outcomes]:
    """Return S by label; a trial that failed or diverged counts as 0, however far it got."""
    scores = trials.assign(score=trials["stability"].where(~trials["status"].isin(LOST), 0.0))
    scores = scores.dropna(subset=["score"]).sort_values("seed")
    return {
        str(label): (group["seed"].tolist(), group["score"].to_numpy(dtype=float))
        for label, group in scores.groupby("label")
    }


FEWEST_TOPICS = 5
"""Topics that prompts are grouped by: fewer say too little of how topics differ."""


def topics_by_prompt(run: results.Run, prompts: pd.Index | None = None) -> np.ndarray | None:
    """Return (prompts,) topic numbers of these prompts, or of all in the order of `outcomes_by_label`.

    None where some prompt has no category, or where there are fewer topics than FEWEST_TOPICS.
    """
    answers = judged_answers(run)
    if answers.empty or "category" not in answers or answers["category"].isna().any():
        return None
    names = answers.groupby("prompt_id", sort=True)["category"].first()
    codes = pd.Series(pd.factorize(names, sort=True)[0], index=names.index)
    if codes.nunique() < FEWEST_TOPICS:
        return None
    return (codes if prompts is None else codes.loc[prompts]).to_numpy()


def topic_notes(run: results.Run) -> list[str]:
    """Say what the topics of the prompts do to intervals; empty where prompts have none."""
    answers = judged_answers(run)
    topics = answers["category"].dropna().nunique() if "category" in answers else 0
    if topics_by_prompt(run) is not None:
        return [
            f"Prompts come in {topics} topics, which are the units of win rates, their differences and tests: a method "
            "that is good at one topic is good at many prompts. Intervals of W_AH, LC and SC take prompts as units."
        ]
    few = f"Prompts come in {topics} topics: intervals are of these topics only (from {FEWEST_TOPICS} on over topics)."
    return [few] * (topics > 1)


def shared_items(outcomes: Sequence[Outcomes]) -> np.ndarray:
    """Return (items,) which items all rows have, with all seeds that they share."""
    seeds = set.intersection(*(set(seeds) for seeds, _ in outcomes))
    complete = [~np.isnan(values[[seed in seeds for seed in row_seeds]]).any(axis=0) for row_seeds, values in outcomes]
    return np.asarray(np.all(complete, axis=0))


def shared_topics(outcomes: Sequence[Outcomes], topics: np.ndarray | None) -> np.ndarray | None:
    """Return the topics of the `shared_items`; None without topics."""
    return None if topics is None else topics[shared_items(outcomes)]


def on_common_seeds(outcomes: Sequence[Outcomes]) -> tuple[list[int], np.ndarray]:
    """Return the seeds that all rows have, and (rows, seeds, ...) outcomes; items that a row lacks stay NaN."""
    seeds = sorted(set.intersection(*(set(seeds) for seeds, _ in outcomes)))
    return seeds, np.stack([values[[row_seeds.index(seed) for seed in seeds]] for row_seeds, values in outcomes])


def common(outcomes: Sequence[Outcomes]) -> tuple[list[int], np.ndarray]:
    """Return `on_common_seeds` without the items that a row lacks with one of the seeds."""
    seeds, values = on_common_seeds(outcomes)
    if values.ndim == 3 and values.size:
        values = values[:, :, shared_items(outcomes)]
    return seeds, values


def difference(outcomes: Outcomes, reference: Outcomes) -> np.ndarray | None:
    """Return the outcomes of one row minus those of another, on the seeds and items that both have.

    Returns:
        (seeds, items) or (seeds,); None where they have nothing in common, or were asked other numbers of items.
    """
    if outcomes[1].shape[1:] != reference[1].shape[1:]:
        return None
    _, (first, second) = common([outcomes, reference])
    return first - second if first.size else None


def draw(row: Outcomes, reference: Outcomes | None = None) -> np.ndarray:
    """Return what one checkpoint says of a row, or of a row minus another on the seeds that both have."""
    if reference is None:
        return np.asarray(row[1].mean(axis=0))
    _, (first, second) = on_common_seeds([row, reference])
    return np.asarray((first - second).mean(axis=0)) if len(first) else np.full(first.shape[1:], np.nan)


def difference_interval(
    outcomes: Outcomes | None, reference: Outcomes | None, topics: np.ndarray | None = None, **confidence: float
) -> Interval | None:
    """Return the interval of `difference`; None where there is none. confidence: where it is another than usual."""
    if outcomes is None or reference is None or (d := difference(outcomes, reference)) is None:
        return None
    return effects.interval(d, shared_topics([outcomes, reference], topics), **confidence)


def few_seeds(counts: Iterable[int]) -> str:
    """Say how many seeds the rows with too few of them have; empty where all with any have FEWEST_SEEDS or more."""
    seeds = sorted({int(count) for count in counts if 0 < count < FEWEST_SEEDS})
    return " to ".join(map(str, seeds[:1] + seeds[1:][-1:])) + f" seed{'s' * (seeds[-1] > 1)}" if seeds else ""


def few_seeds_notes(counts: Iterable[int]) -> list[str]:
    """Say what a table with so few seeds cannot say; empty where all rows have enough."""
    seeds = few_seeds(counts)
    return [
        f"These checkpoints only: {seeds} per row cannot say how a method does over other seeds. Intervals of fewer "
        f"than {FEWEST_SEEDS} are over prompts. Give {FEWEST_SEEDS} seeds or more."
    ] * bool(seeds)


def seeds_behind_claims(verdicts: pd.Series, seeds: pd.Series) -> list[str]:
    """Say what so few seeds cannot show of the claims of a table; empty where it has none."""
    notes = []
    if verdicts.str.endswith(ONE_SEED).any():
        notes.append(f'"{ONE_SEED[2:]}": without some one of its seeds the verdict would be another one.')
    if verdicts.str.startswith("matters").any():
        count = int(seeds[seeds >= FEWEST_SEEDS].min())
        notes.append(
            f"What breaks rarely cannot be seen: where none of {count} seeds broke, up to "
            f"{100 * (1 - 0.05 ** (1 / count)):.0f} % of others still may (95 %)."
        )
    return notes


def left_out(seeds: Mapping[str, Sequence[int]]) -> str:
    """Name the seeds that a comparison of these rows leaves out, as not all have them. seeds: by row."""
    shared = set.intersection(*map(set, seeds.values()))
    rest = {name: [str(seed) for seed in row_seeds if seed not in shared] for name, row_seeds in seeds.items()}
    return " and ".join(
        f"seed{'s' * (len(row_seeds) > 1)} {', '.join(row_seeds)} of {name}"
        for name, row_seeds in rest.items()
        if row_seeds
    )


def left_out_notes(seeds: Mapping[str, Sequence[int]]) -> list[str]:
    """Say which seeds a table's comparisons may leave out; empty where all rows have the same. seeds: by row."""
    words = left_out(seeds) if seeds else ""
    return [f"Rows are compared on the seeds that both have. Not common to all: {words}."] if words else []


START = "sft"
"""Of the main table's frame: the SFT checkpoint of a row's trials, where rows start from several."""


def starts_of(groups: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return what tells the SFT checkpoints of rows apart.

    Another checkpoint has other weights and other answers. Where a row's trials have recorded none, failed early or are
    of an earlier version, all settings that it can follow from tell it.
    """
    keys = {label: _checkpoint_settings(trials["settings"].iloc[0]) for label, trials in groups.items()}
    recorded = {
        label: str(checkpoints.iloc[0])
        for label, trials in groups.items()
        if "sft_checkpoint" in trials and len(checkpoints := trials["sft_checkpoint"].dropna())
    }
    same = {keys[label]: checkpoint for label, checkpoint in recorded.items()}
    return {label: recorded.get(label, same.get(key, key)) for label, key in keys.items()}


def _checkpoint_settings(settings: Any) -> str:
    """Return the settings that a trial's SFT checkpoint can follow from, without adapters trained on it."""
    if not isinstance(settings, str):
        return ""
    record = json.loads(settings)
    model, sft = dict(record.get("model") or {}), record.get("sft")
    lora = model.pop("lora", None)
    if sft:
        sft = sft | {"lora": lora if sft.get("lora") == "same" else sft.get("lora")}
    return json.dumps([sft, model, record.get("data")], sort_keys=True)


def by_start(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Split the table by SFT checkpoint: only rows from the same one can be compared."""
    return [group for _, group in frame.groupby(START, sort=False)] if START in frame else [frame]


def constraints_of(manifest: Mapping[str, Any]) -> tuple[Constraint, ...]:
    """Return what winners of a run's searches had to keep."""
    return tuple(map(Constraint.parse, (manifest.get("experiment") or {}).get("constraints") or ()))


def keeping(run: results.Run, trials: pd.DataFrame) -> pd.DataFrame:
    """Return those trials that keep the constraints of their search."""
    limits = constraints_of(run.manifest)
    return trials[[violation(row, limits) == 0 for row in trials.to_dict("records")]] if limits else trials


def name_of(run: results.Run) -> str:
    """Return what the run is called."""
    return str(run.manifest.get("name", run.path.name))


def version_of(run: results.Run) -> str:
    """Return the version of stability that scored the run."""
    return str(run.manifest.get("stability_version") or run.trials["stability_version"].iloc[0])


def baseline_of(run: results.Run) -> str:
    """Name whose answers the policies' are compared with."""
    return str(run.manifest.get("baseline") or "the SFT checkpoint")


def basis(run: results.Run, seeds: int, items: int, *, label: str | None = None) -> str:
    """Say what a claim rests on: seeds, prompts, judges with their repeats, and of one row its verdicts.

    items: prompts, or pairs where nothing was judged; 0 for a claim of what a seed has one number of.
    """
    of_seeds = f"{seeds} seeds" if seeds != 1 else "1 seed"
    if not items:
        return of_seeds
    if not is_judged(run):
        return f"{of_seeds}, {items:,} held-out pairs"
    words = f"{of_seeds}, {items:,} prompts, judge {judge_of(run)}"
    by_panel = judged_verdicts(run)
    if len(by_panel):
        repeats = int(by_panel["repeat"].max())
        words += (
            f" ({by_panel['judge'].nunique()} judges, {f'up to {repeats} repeats' if repeats > 1 else 'no repeats'})"
        )
    if label is None:
        return words
    single = by_panel if len(by_panel) else judged_answers(run)
    verdicts = single.loc[single["label"] == label, ["verdict_ab", "verdict_ba"]].count().sum()
    return f"{words}, {verdicts:,} verdicts"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Flatten settings by path: lists of labelled mappings, too, other lists and empty mappings within are values."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "label" in item for item in value):
        value = {item["label"]: {key: item[key] for key in item if key != "label"} for item in value}
    if not isinstance(value, Mapping) or (path and not value):
        return {path: value}
    inner = [flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
    return {place: leaf for each in inner for place, leaf in each.items()}


def decoding_words(manifest: Mapping[str, Any]) -> str:
    """Describe the decoding settings in one phrase."""
    decoding = dict(manifest.get("decoding") or {})
    by_category = decoding.pop("temperatures", {})
    words = [f"{name} {value}" for name, value in decoding.items() if value is not None]
    words += [f"temperature {value} for {category}" for category, value in by_category.items()]
    return ", ".join(words) or "not recorded"
