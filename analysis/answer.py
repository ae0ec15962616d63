"""A report's words: what a run leaves open and shows, how each number was made, what was asked, and the manifest."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from slime_ray.runs.notes import data_notes
from slime_ray.runs.redaction import redact
from slime_ray.runs.results import Run
from slime_ray.runs.stability_v1 import TOLERANCES

from . import effects, rows, search_table, statistics, tables
from .printing import Sentences, Table, number, one_line
from .rows import LOST, PARTS, basis, decoding_words, is_judged, judge_of, version_of
from .sections import Findings
from .statistics import TOO_FEW

FEWEST_PROMPTS = 20
"""With fewer, a resampled interval is too rough to claim anything by."""
Facts = list[tuple[str, str]]
"""What is told, and what there is to tell."""


def answer(run: Run, main: Table, *, of_design: Sentences = ([], [])) -> Sentences:
    """What the run does not settle, and what it says. of_design: the same of its design, where it has one."""
    frame = main.frame
    open_: list[str] = []
    said: list[str] = []
    lost = run.trials["status"].isin(LOST)
    if not run.manifest.get("finished"):
        open_.append("The run has not finished: this is what there is so far.")
    if lost.any():
        open_.append(
            f"{int(lost.sum())} of {len(run.trials)} trials failed or diverged. They count as stability 0; win rates "
            "are of the seeds that finished."
        )
    judged = is_judged(run)
    # What a league says of its entries stands in its own sentences.
    league = bool((run.manifest.get("experiment") or {}).get("league"))
    if not judged:
        open_.append("Which answers are better: nothing was judged, so there is no win rate.")
    lead = "win_rate" if judged else "preference_accuracy"
    known = frame.dropna(subset=[lead]) if len(frame) else frame
    if len(known):
        if seeds := tables.few_seeds(frame):
            open_.append(
                f"Whether this holds for other seeds: with {seeds} per row it is about these checkpoints only."
            )
        if not league:
            for own in tables.by_start(known):
                (_say_win_rates if judged else _say_accuracy)(run, own, open_, said)
            if judged and not ((known["stability"] >= 0.5) & (known["win_rate_low"] > 0.5)).any():
                said.append("No row both wins with an interval above 50 % and keeps a stability of 0.5 or more.")
    elif len(frame):
        open_.append("No arm and no confirmed winner has a finished trial, so nothing can be compared.")
    open_ += of_design[0]
    said += of_design[1]
    if not league:
        _say_search(run, frame, judged, open_, said)
    # What is said of the rows from each SFT checkpoint may be the same.
    return [unbroken(sentence) for sentence in dict.fromkeys(open_)], [unbroken(text) for text in dict.fromkeys(said)]


def unbroken(sentence: str) -> str:
    """No line break before a percent sign."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def _percent(row: pd.Series, column: str = "win_rate") -> str:
    return f"{100 * row[column]:.1f} %"


def _at_stability(row: pd.Series) -> str:
    return f", at stability {number(row['stability'])}" if pd.notna(row["stability"]) else ""


def _ends(row: pd.Series) -> str:
    low, high = 100 * row["win_rate_low"], 100 * row["win_rate_high"]
    return f"({TOO_FEW})" if pd.isna(low) else f"[{low:.1f}, {high:.1f}]"


def _say_win_rates(run: Run, known: pd.DataFrame, open_: list[str], said: list[str]) -> None:
    best, from_ = known.iloc[0], " from its SFT checkpoint" if tables.START in known else ""
    tied = known[known["win_rate_mark"] == "best"]["label"].tolist()
    if len(tied) > 1:
        open_.append(f"Which of {_list(tied)} wins most: their win rates cannot be told apart on these prompts.")
    covers = (known["win_rate_low"] <= 0.5) & (known["win_rate_high"] >= 0.5)
    # An arm without updates is the SFT checkpoint.
    unclear = known[covers & (known["objective"] != "none")]["label"].tolist()
    if unclear:
        open_.append(f"Whether {_list(unclear)} {'is' if len(unclear) == 1 else 'are'} better or worse than the SFT "
                     "checkpoint: the win interval covers 50 %.")  # fmt: skip
    prompts = int(known["prompts"].max())
    few = prompts < FEWEST_PROMPTS
    if few:
        open_.append(
            f"Everything here: {prompts} prompts were answered and judged; below {FEWEST_PROMPTS} intervals are rough. "
            "See evaluation.prompts, and selection_prompts and data.held_out_pairs beside it."
        )
    # Nor where it is open whether it is better than the SFT checkpoint, which is a row or stands behind all of them.
    shared = len(tied) > 1 or len(known) == 1 or few or best["label"] in unclear
    alone = "" if shared else f", separable from every other row{from_}"
    said.append(
        f"{best['label']} has the highest win rate{from_}: {_percent(best)} {_ends(best)}{alone}{_at_stability(best)} "
        f"({basis(run, best['seeds_finished'], best['prompts'], label=best['label'])})."
    )
    if len(tied) > 1 and known["stability"][known["label"].isin(tied)].notna().any():
        calm = known[known["label"].isin(tied)].sort_values("stability", ascending=False, kind="stable").iloc[0]
        said.append(
            f"Of the rows that cannot be told apart, {calm['label']} is the most stable ({calm['stability']:.2f})."
        )
    worse = known[known["win_rate_high"] < 0.5]
    if len(worse):
        rests = basis(run, int(worse["seeds_finished"].min()), int(worse["prompts"].min()))
        said.append(f"Worse than the baseline on these prompts: {_list(worse['label'].tolist())} (at least {rests}).")


def _say_accuracy(run: Run, known: pd.DataFrame, _open: list[str], said: list[str]) -> None:
    best, from_ = known.iloc[0], " from its SFT checkpoint" if tables.START in known else ""
    pairs = int(run.trials["pairs"].max()) if run.trials["pairs"].notna().any() else 0
    said.append(
        f"{best['label']} has the highest held-out preference accuracy{from_}: {_percent(best, 'preference_accuracy')}"
        f"{_at_stability(best)} ({basis(run, best['seeds_finished'], pairs)}). Accuracy can rise while answers get "
        "worse."
    )


def _say_search(run: Run, frame: pd.DataFrame, judged: bool, open_: list[str], said: list[str]) -> None:
    search = search_table.search_trials(run).frame
    confirmed = frame[frame["phase"] == "confirm"] if len(frame) else frame
    if search.empty:
        return
    front = search[search["on_front"]]["trial_id"].tolist()
    lead = "win_rate" if judged else "preference_accuracy"
    if not len(confirmed):
        open_.append("How good the search's trials are on other prompts and seeds: no winner was confirmed.")
    if front:
        top = search.sort_values(lead, ascending=False, na_position="last", kind="stable").iloc[0]
        number = f", highest {_percent(top, lead)} ({top['trial_id']})" if pd.notna(top[lead]) else ""
        where = "on the selection prompts" if judged else "by held-out accuracy"
        items = search["prompts"].max() if judged else run.trials["pairs"].max()
        rests = f" (a trial: {basis(run, 1, int(items))})" if pd.notna(items) else ""
        said.append(f"Search: {len(front)} of {len(search)} trials on the front{number} {where}{rests}.")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def methods(found: Findings) -> list[str]:
    """Return a note for each estimator that the report uses, after what of the data was not trained on as given."""
    limits = ", ".join(f"{PARTS[name]} {value:.2f}" for name, value in asdict(TOLERANCES).items())
    version = version_of(found.run)
    notes = [
        *map(one_line, data_notes(found.run.manifest.get("data") or {})),
        "Win rate: mean over prompts and seeds of an answer's outcome against the baseline's answer, itself the "
        "mean over both presentation orders of 1 win, 0.5 tie, 0 loss. Prompts without any valid verdict are left out; "
        "missing verdicts are counted in the note, with the win rate if all were losses and if all were wins.",
        f"Interval of a win rate: 95 %, Wilson's score on the effective number of prompts, {statistics.PRIOR} of a "
        "prompt added to wins and to losses in how they scatter. With "
        f"{statistics.FEWEST_SEEDS} or more seeds it is over seeds and prompts, by the two-way analysis below; prompts "
        "that a seed has no verdict for add nothing to its width. With fewer it is of these checkpoints, over prompts, "
        "both orders and all seeds of a prompt kept together.",
        "Separable: the 95 % interval of the paired difference on the same seeds and prompts leaves 0 out: Student's "
        f"t, over prompts, and with {statistics.FEWEST_SEEDS} or more common seeds over seeds and prompts (two-way "
        "analysis of variance, random effects, Satterthwaite's degrees of freedom). Every row is compared with the "
        "best one; nothing is corrected for the number of comparisons.",
        *rows.topic_notes(found.run),
        f"Stability ({version}): S = g / (1 + sum of (x/h)²) with the tolerances h: {limits}; g is 0 for a trial that "
        "failed or diverged, else 1. Mean over all seeds. S is 0.5 when one part is at its tolerance. Its interval, "
        "where pairs were recorded: 95 % percentile bootstrap, S computed anew in every resample of held-out pairs, "
        "prompts and blocks of updates.",
        "K: full-vocabulary KL divergence from the SFT checkpoint per generated token, on the policy's own answers.",
        "σ: standard deviation (n − 1) of the win rate over seeds. Drift: mean log-probability per token of the "
        "held-out chosen completions, minus that of the SFT checkpoint.",
        "The sentinel estimates the parts of stability during training, on a few held-out pairs and prompts; its "
        "alarms are no part of any score.",
    ]
    if len(found.judging.frame):
        notes += [
            "W_AH: Arena-Hard's score, in which a strong verdict counts as three votes. LC: the length-controlled "
            "win rate, the value at equal lengths of a binomial GLM of the outcome on tanh(d/sd), d the answer's "
            "tokens more than the baseline's (Dubois et al. 2024, without terms for model and prompt, and so not "
            "AlpacaEval's number). *: extrapolated, as few answers are near equal length. Their intervals are over "
            "prompts: that of W_AH a rate's, of LC Student's on the log odds with robust errors. Consistent: share of "
            "answers whose two valid verdicts name the same winner, or a tie.",
        ]
    if found.cells:
        notes += [
            "Effect of a cell: its outcomes minus those of the cell that it is compared with, paired by seed and "
            f"prompt. Tests: {'; '.join(effects.TESTS.values())}. Each is corrected by Holm over all comparisons of "
            "its table, in one metric that was declared beforehand; a cell matters where all stay below "
            f"{effects.LEVEL}, with {statistics.FEWEST_SEEDS} seeds or more. One seed decides where leaving it out "
            "changes that.",
            "Seeds that would settle a comparison: at which the t over seeds and the t over seeds and prompts would, "
            "with the variance components seen here, each find a true difference of the size observed in four of "
            "five tries.",
        ]
    if found.factorial is not None and len(found.factorial.frame):
        notes += [
            "Main effect: mean of the cells with a component minus mean of those without. Interaction of two: half "
            "the change that one's presence makes to the effect of the other. Shapley value: exact, over all cells. "
            "All are linear in the cells, and their intervals those of the same sum for each seed and prompt.",
        ]
    if len(found.search_trials.frame):
        notes += [
            "The search is measured on the selection prompts, arms and confirmed winners on the report prompts.",
            "Front: finished search trials that no other finished one equals or beats in all goals and beats in one. "
            "Knee: the trial of the front farthest beyond the line through its two ends, each goal as a share of the "
            "front's range (Das 1999); how sure it is: resamples of prompts, held-out pairs and updates.",
            "Importance: PED-ANOVA (Watanabe et al. 2023), the divergence between a knob's values among the best "
            "trials and among all; its intervals are percentiles over resampled trials.",
            "Hypervolume: what the trials so far dominate above the reference point. Expected best of k trials: "
            "unbiased, without replacement, over the trials at hand (Tang et al. 2020).",
        ]
    return notes


def asked(run: Run) -> Facts:
    """What the run was to do: arms, seeds, search, goals, judge, decoding."""
    manifest = run.manifest
    experiment = manifest.get("experiment") or {}
    arms = [str(arm.get("label", "")) for arm in experiment.get("arms") or [] if isinstance(arm, dict)]
    knobs = [path.rpartition(".")[2] for path in (experiment.get("search") or {}).get("dimensions") or {}]
    budget = experiment.get("budget") or {}
    confirm = budget.get("confirm") or {}
    winners = f"; the best {confirm['best']} confirmed with {confirm.get('seeds')} seeds" if confirm.get("best") else ""
    said = [
        ("arms", ", ".join(arms) or "none"),
        ("seeds", ", ".join(str(seed) for seed in manifest.get("seeds") or []) or "none recorded"),
        ("search", f"{budget.get('trials')} trials over {', '.join(knobs)}{winners}" if knobs else "none"),
        ("goals", ", ".join(f"{way} {goal}" for goal, way in (manifest.get("goals") or {}).items()) or "none recorded"),
        ("judge", judge_of(run)),
        ("decoding", decoding_words(manifest)),
    ]
    return [(key, one_line(value)) for key, value in said]


def facts(run: Run) -> Facts:
    """What the manifest says of when, with what and on what the run was made."""
    manifest, trials = run.manifest, run.trials
    data = manifest.get("data") or {}
    counts = {key: value for key, value in data.items() if isinstance(value, (int, float))}
    skipped = data.get("skipped") or data.get("rows_skipped") or []
    ends = {str(status): int(count) for status, count in trials["status"].value_counts().sort_index().items()}
    truncated = {
        name: ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in numbers.items() if isinstance(value, int))
        for name, numbers in (data.get("truncated") or {}).items()
        if isinstance(numbers, dict)
    }
    said: list[tuple[str, Any]] = [
        ("started", manifest.get("created")),
        ("finished", manifest.get("finished") or "not finished"),
        ("command", " ".join(redact(list(map(str, manifest.get("command") or []))))),
        ("trials", f"{len(trials)}: {', '.join(f'{count} {status}' for status, count in ends.items())}"),
        ("cost", f"{trials['total_seconds'].sum():.0f} trial seconds, {int(trials['tokens'].sum()):,} training tokens"),
        ("slime_ray", manifest.get("slime_ray")),
        ("versions", _words(manifest.get("versions"))),
        ("machine", _words(manifest.get("host"))),
        ("data", _words(counts)),
        ("rows skipped", "; ".join(map(_skipped, skipped)) or "none"),
        *((f"cut, {name}", words) for name, words in truncated.items()),
        ("hashes", _words(manifest.get("hashes"))),
        ("inputs", _words(manifest.get("inputs"))),
        ("fingerprint", manifest.get("fingerprint")),
        ("stability", manifest.get("stability_version")),
    ]  # fmt: skip
    return [(key, one_line(str(value))) for key, value in said if value not in (None, "")]


def _skipped(item: Any) -> str:
    return f"{item.get('count')} {item.get('reason')}" if isinstance(item, dict) else str(item)


def _words(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (mapping or {}).items())
