"""Several runs beside each other: their rows in one table, whether two of them agree, and how manifests differ."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri

from slime_ray.errors import InputError
from slime_ray.runs.results import Run

from . import effects, league_tables, stability, statistics, tables
from .printing import Column, Table, cells, interval_cells, names, numbers, one_line, seeds_column, unit_of
from .rows import (
    METRICS,
    Outcomes,
    baseline_of,
    difference,
    flat,
    is_judged,
    judge_of,
    judged_answers,
    left_out,
    rates_by_label,
    shared_topics,
    topic_notes,
    version_of,
)

Kind = Literal["settings", "data", "measurement", "environment"]
KINDS: dict[str, Kind] = {
    "experiment": "settings",
    "code": "settings",
    "seeds": "settings",
    "sweep_seed": "settings",
    "goals": "settings",
    "hashes": "data",
    "inputs": "data",
    "data": "data",
    "judge": "measurement",
    "baseline": "measurement",
    "decoding": "measurement",
    "stability_version": "measurement",
    "slime_ray": "environment",
    "versions": "environment",
    "host": "environment",
}
"""Entries of a manifest that say what was run, on what, measured how and where; the others say how it went."""
_SAID_ELSEWHERE = {"experiment.name", "experiment.seeds", "experiment.goals"}
ABSENT = "absent"
APART = "no seed in common"


@dataclass(frozen=True)
class ManifestDifference:
    """One entry that two manifests do not share. one, other: as text, `absent` where there is none."""

    kind: Kind
    path: str
    one: str
    other: str


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[ManifestDifference]:
    """Return every entry in which two manifests differ, by KINDS and then by path."""
    left, right = _entries(first), _entries(second)
    paths = sorted(left.keys() | right.keys(), key=lambda path: (list(KINDS).index(path.partition(".")[0]), path))
    entries = [
        ManifestDifference(KINDS[path.partition(".")[0]], path, left.get(path, ABSENT), right.get(path, ABSENT))
        for path in paths
        if path not in _SAID_ELSEWHERE
    ]
    return [difference for difference in entries if difference.one != difference.other]


def _entries(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return every leaf under KINDS by its dotted path. Null counts as absent: a later version adds entries."""
    leaves = flat({key: manifest[key] for key in KINDS if key in manifest})
    return {path: str(value) for path, value in leaves.items() if value is not None and value != {}}


def why_not_comparable(runs: Sequence[Run]) -> list[str]:
    """Give a sentence for each reason why win rates or stabilities of these runs mean different things."""
    hashes = [run.manifest.get("hashes") or {} for run in runs]
    starts = [each.get("sft_checkpoint") or "" for each in hashes]
    conditions: dict[str, list[str]] = {
        "judge": [judge_of(run) for run in runs],
        "baseline": [f"{baseline_of(run)} {start}".strip() for run, start in zip(runs, starts, strict=True)],
        "report prompts": [str(each.get("prompts_report") or "") for each in hashes],
        "held-out pairs": [str(each.get("held_out") or "") for each in hashes],
        "decoding": [str(run.manifest.get("decoding")) for run in runs],
        "version of stability": [version_of(run) for run in runs],
    }
    reasons = []
    for condition, values in conditions.items():
        if len(set(values)) > 1:
            has = (f"{run.path.name} has {value or 'none recorded'}" for run, value in zip(runs, values, strict=True))
            reasons.append(f"{condition}: {', '.join(has)}")
    return reasons


def compare(runs: Sequence[Run]) -> Table:
    """Return the rows of several runs by win rate; of leagues with the same entries these, over checkpoints.

    Where judge, baseline, prompts, decoding or the version of stability are not the same, the caption says so; rows
    of different judges are refused. Raises InputError for that, for fewer than two runs, and for a run given twice.
    """
    folders = [run.path.resolve() for run in runs]
    if len(set(folders)) < len(folders) or len(folders) < 2:
        raise InputError("There is nothing to compare: give the folders of at least two different runs.")
    judges = {judge_of(run): run for run in runs if is_judged(run)}
    if len(judges) > 1:
        runs_by_judge = ", ".join(f"{run.path} by {judge}" for judge, run in judges.items())
        raise InputError(
            f"These runs were judged by {len(judges)} judges ({runs_by_judge}): their win rates cannot stand in one "
            "table. Judge the answers of one again with the other's judge: `slime-ray evaluate` takes checkpoints "
            "and answers."
        )
    mains = [tables.win_rate_stability(run) for run in runs]
    if table := league_tables.leagues_of_runs(runs, mains, _differing(runs)):
        return table
    frames = [main.frame.assign(run=run.path.name) for run, main in zip(runs, mains, strict=True) if len(main.frame)]
    if not frames:
        raise InputError("None of these runs has arms or confirmed winners: there is nothing to compare.")
    lead = "win_rate" if judges else "preference_accuracy"
    frame = pd.concat(frames, ignore_index=True).sort_values(
        [lead, "stability", "run", "label"], ascending=[False, False, True, True], ignore_index=True
    )
    caption = f"{' and '.join(run.path.name for run in runs)}: the rows of {len(runs)} runs in one table."
    for reason in why_not_comparable(runs):
        caption += f" Not the same in all runs: {reason}. Numbers across them do not compare."
    return Table(
        frame=frame[["run", *(name for name in frame.columns if name != "run")]],
        caption=caption,
        notes=[
            "Intervals: as in each run's own report. Nothing is marked: rows of different runs share no correction.",
            *_unequal_seeds(runs),
        ],
        columns=(
            names("run", frame),
            names("label", frame),
            seeds_column(frame, keep=8),
            Column("win rate % [95 %]", interval_cells(frame, "win_rate", 1, scale=100), keep=9),
            Column("stability S [95 %]", cells(frame, stability.stability_cell), keep=9),
            Column("K", numbers(frame, "kl_to_sft", 3), keep=5, words="KL to SFT K"),
            Column("drift", numbers(frame, "chosen_drift", 3, signed=True), keep=6),
            Column("acc. %", numbers(frame, "preference_accuracy", 1, scale=100), keep=6, words="accuracy %"),
        ),
        remarks=tuple(frame["note"]),
    )


def _differing(runs: Sequence[Run]) -> list[str]:
    """Name the settings in which runs differ, and why else numbers would not compare; not the SFT checkpoint."""
    changes = [change for run in runs[1:] for change in differences(runs[0].manifest, run.manifest)]
    settings = dict.fromkeys(change.path for change in changes if change.kind == "settings")
    same = len({baseline_of(run) for run in runs}) == 1
    reasons = (reason for reason in why_not_comparable(runs) if not (same and reason.startswith("baseline:")))
    return [*settings, *reasons]


def _unequal_seeds(runs: Sequence[Run]) -> list[str]:
    """Say which rows have seeds that the same row of another run lacks."""
    notes = []
    trials = pd.concat([run.trials.assign(run=run.path.name) for run in runs])
    for label, label_trials in trials[trials["phase"].isin(["arm", "confirm"])].groupby("label"):
        seeds = {str(name): sorted(set(group)) for name, group in label_trials.groupby("run")["seed"]}
        if words := left_out(seeds):
            notes.append(f"{label}: {words} are not in all of these runs; `verify` leaves them out.")
    return notes


@dataclass(frozen=True)
class Verification:
    """Whether two runs agree: what differs between their manifests, and a row for each label that both have.

    not_comparable: why their numbers mean different things; where there is any reason, they do not agree.
    """

    differences: tuple[ManifestDifference, ...]
    not_comparable: tuple[str, ...]
    table: Table

    @property
    def agree(self) -> bool:
        """Whether every row of both runs is in the other one, and says the same there."""
        return not self.not_comparable and bool(len(self.table.frame)) and bool(self.table.frame["agrees"].all())

    @property
    def identical(self) -> bool:
        """Whether every answer is the same, letter by letter."""
        return self.agree and bool(self.table.frame["same_answers"].eq(1.0).all())

    @property
    def another_start(self) -> bool:
        """Whether their SFT checkpoints were made from the same and have other weights, as on another processor."""
        entries = {item.path: (item.one, item.other) for item in self.differences}
        return ABSENT not in entries.get("hashes.sft_weights", (ABSENT,)) and "hashes.sft_checkpoint" not in entries

    def text(self) -> str:
        """Render for a terminal: what differs, the rows, and the answer."""
        lines = [f"{len(self.differences)} entries of the manifests differ." if self.differences else "Same manifests."]
        for kind, group in groupby(self.differences, key=lambda difference: difference.kind):
            lines += ["", f"{kind}:"]
            lines += [f"  {item.path}: {one_line(item.one)} | {one_line(item.other)}" for item in group]
        lines += ["", self.table.text(), ""]
        lines += [f"Their numbers do not mean the same, {reason}." for reason in self.not_comparable]
        if self.another_start:
            lines.append(
                "Their SFT checkpoints have other weights: what they are made from is rounded otherwise by other "
                "processors and versions, and every trial starts from there."
            )
        verdict = "The numbers agree." if self.agree else "They do not agree."
        return "\n".join([*lines, "Every answer is the same." if self.identical else verdict])

    def json(self) -> str:
        """Render the same for a script."""
        record = {
            "agree": self.agree,
            "identical": self.identical,
            "not_comparable": self.not_comparable,
            "differences": [asdict(difference) for difference in self.differences],
            "rows": json.loads(self.table.frame.to_json(orient="records")),
        }
        return json.dumps(record, indent=1)


def verify(first: Run, second: Run) -> Verification:
    """Compare two runs of the same experiment, row by row.

    Rows are compared on the seeds that both runs have. A row agrees where the interval of the paired difference of its
    win rates (accuracies where nothing was judged; over prompts; from five common seeds on over seeds and prompts)
    covers 0, and its stabilities differ by no more than their intervals' half-widths, added in quadrature. What has no
    interval agrees where it is equal. All intervals are widened for the number of rows (Bonferroni), so that of two
    runs that differ by chance alone at most one pair in twenty disagrees anywhere in win rate. A row that one run lacks
    disagrees, and so does one without a seed in common.
    """
    first, second, unpaired = _on_common_seeds(first, second)
    mains = [tables.win_rate_stability(run).by("label") for run in (first, second)]
    labels = list(dict.fromkeys(label for main in mains for label in main))
    rate, first_outcomes, topics = rates_by_label(first)
    outcomes = first_outcomes, rates_by_label(second)[1]
    confidence = 1 - (1 - statistics.CONFIDENCE) / max(1, len(labels))
    rows = [
        {
            "label": label,
            **_row(label, rate, mains, outcomes, topics, unpaired.get(label, ""), confidence=confidence),
            "same_answers": _same_answers(label, first, second),
        }
        for label in labels
    ]
    frame = pd.DataFrame(rows, columns=None if rows else ["label", "agrees", "same_answers"])
    reasons = tuple(why_not_comparable([first, second]))
    return Verification(
        differences=tuple(differences(first.manifest, second.manifest)),
        not_comparable=reasons,
        table=_verification_table(frame, rate, first, second, confidence, comparable=not reasons),
    )


def _on_common_seeds(first: Run, second: Run) -> tuple[Run, Run, dict[str, str]]:
    """Leave out the trials of a row whose seed the other run's row lacks, and say so by label.

    A row without any seed in common keeps its trials, and is called APART.
    """
    first_seeds, second_seeds = (run.trials.groupby("label")["seed"].unique() for run in (first, second))
    remarks, excluded = {}, set()
    for label in first_seeds.index.intersection(second_seeds.index):
        pair = {"the first run": sorted(first_seeds[label]), "the second run": sorted(second_seeds[label])}
        seeds, other_seeds = map(set, pair.values())
        if not seeds & other_seeds:
            remarks[label] = APART
        elif seeds != other_seeds:
            remarks[label] = f"left out: {left_out(pair)}"
            excluded |= {(label, seed) for seed in seeds ^ other_seeds}
    kept = (~run.trials.set_index(["label", "seed"]).index.isin(list(excluded)) for run in (first, second))
    first, second = (replace(run, trials=run.trials[mask]) for run, mask in zip((first, second), kept, strict=True))
    return first, second, remarks


def _row(
    label: str,
    rate: str,
    mains: Sequence[Mapping[Any, dict[Any, Any]]],
    outcomes: tuple[Mapping[str, Outcomes], Mapping[str, Outcomes]],
    topics: np.ndarray | None,
    unpaired: str,
    *,
    confidence: float,
) -> dict[str, object]:
    first, second = (main.get(label, {}) for main in mains)
    ends = statistics.interval_names(rate, "stability")
    row = {f"{end}_{side}": of.get(end, math.nan) for side, of in enumerate((first, second), 1) for end in ends}
    if not first or not second:
        return row | statistics.columns({"difference": None}) | {"agrees": False, "remark": "in one run alone"}
    pair = [label_outcomes[label] for label_outcomes in outcomes if label in label_outcomes]
    d = difference(*pair) if len(pair) == 2 else None
    shared = None if d is None else shared_topics(pair, topics)
    gap = None if d is None else effects.interval(d, shared, confidence=confidence)
    remarks = []
    if gap is None or math.isnan(gap.low):
        if not np.isclose(first[rate], second[rate], equal_nan=True):
            remarks.append(f"the {METRICS[rate]} differs, without an interval")
    elif d is not None and gap.excludes(0.0):
        # Whether that is no longer seen without some one of its seeds.
        rest = [np.delete(d, seed, axis=0) for seed in range(len(d))] if len(d) >= statistics.FEWEST_SEEDS else []
        decides = any(effects.two_way_p(subset, shared) >= 1 - confidence for subset in rest)
        remarks.append(f"the {METRICS[rate]} differs{effects.ONE_SEED * decides}")
    if not _stabilities_agree(first, second, confidence):
        remarks.append("the stabilities differ")
    if (first["seeds_finished"], first["prompts"]) != (second["seeds_finished"], second["prompts"]):
        remarks.append(f"{first['seeds_finished']} and {second['seeds_finished']} seeds finished")
    agrees = unpaired != APART and not any("differ" in remark for remark in remarks)
    remarks += [unpaired] if unpaired else []
    return row | statistics.columns({"difference": gap}) | {"agrees": agrees, "remark": "; ".join(remarks)}


def _stabilities_agree(first: Mapping[Any, Any], second: Mapping[Any, Any], confidence: float) -> bool:
    """Tell whether two S differ by no more than their half-widths, added in quadrature; without these, not at all."""
    if np.isclose(first["stability"], second["stability"], equal_nan=True):
        return True
    halves = [
        max(row["stability_high"] - row["stability"], row["stability"] - row["stability_low"])
        for row in (first, second)
    ]
    wider = ndtri((1 + confidence) / 2) / ndtri((1 + statistics.CONFIDENCE) / 2)
    return bool(abs(first["stability"] - second["stability"]) <= wider * math.hypot(*halves))


def _same_answers(label: str, first: Run, second: Run) -> float:
    """Return the share of a row's answers to common prompts, turns and seeds that are the same in both runs."""
    keys = ["seed", "prompt_id", "turn"]
    answers = (judged_answers(run) for run in (first, second))
    first_answers, second_answers = (
        rows[rows["label"] == label][[*keys, "answer"]].drop_duplicates(keys) for rows in answers
    )
    both = first_answers.merge(second_answers, on=keys)
    return float((both["answer_x"] == both["answer_y"]).mean()) if len(both) else math.nan


def _verification_table(
    frame: pd.DataFrame, rate: str, first: Run, second: Run, confidence: float, *, comparable: bool
) -> Table:
    def pair(head: str, name: str, digits: int, scale: float = 1.0) -> Column:
        sides = (numbers(frame, f"{name}_{side}", digits, scale=scale) for side in (1, 2))
        return Column(head, tuple(map(" and ".join, zip(*sides, strict=True))))

    # Numbers that do not mean the same neither agree nor disagree.
    words = {True: "yes", False: "no"} if comparable else {}
    return Table(
        frame=frame,
        caption=f"{first.path.name} and {second.path.name}: the rows of both.",
        notes=[
            "difference: paired over prompts, or held-out pairs (and seeds, where five or more are common), "
            f"{100 * confidence:.3g} % intervals, so that all rows together are right 95 times in 100. All numbers are "
            "of the seeds that both runs have.",
            "same answers: share of the answers to the same prompts with the same seeds that are equal.",
            *topic_notes(first),
        ],
        columns=(
            names("label", frame),
            pair(unit_of(rate)[0], rate, 1, 100),
            Column("difference, points", interval_cells(frame, "difference", 1, scale=100)),
            pair("stabilities", "stability", 2),
            Column("same answers %", numbers(frame, "same_answers", 1, scale=100)),
            Column("agrees", tuple(words.get(agrees, "–") for agrees in frame["agrees"]), numeric=False, keep=9),
        )
        if len(frame)
        else (),
        remarks=tuple(frame["remark"]) if len(frame) else (),
    )
