"""What a run does not settle, and what it says, in a few sentences."""

import pandas as pd

from slime_ray.runs.results import Run

from . import search_table, tables
from .printing import Sentences, Table, number
from .rows import LOST, is_judged
from .statistics import TOO_FEW

FEWEST_PROMPTS = 20
"""With fewer, a resampled interval is too rough to claim anything by."""


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
    if not judged:
        open_.append("Which answers are better: nothing was judged, so there is no win rate.")
    lead = "win_rate" if judged else "preference_accuracy"
    known = frame.dropna(subset=[lead]) if len(frame) else frame
    if len(known):
        if seeds := tables.few_seeds(frame):
            open_.append(
                f"Whether this holds for other seeds: with {seeds} per row it is about these checkpoints only."
            )
        (_say_win_rates if judged else _say_accuracy)(known, open_, said)
    elif len(frame):
        open_.append("No arm and no confirmed winner has a finished trial, so nothing can be compared.")
    open_ += of_design[0]
    said += of_design[1]
    _say_search(run, frame, judged, open_, said)
    return [unbroken(sentence) for sentence in open_], [unbroken(sentence) for sentence in said]


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


def _say_win_rates(known: pd.DataFrame, open_: list[str], said: list[str]) -> None:
    best = known.iloc[0]
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
    alone = "" if shared else ", separable from every other row"
    said.append(
        f"{best['label']} has the highest win rate: {_percent(best)} {_ends(best)}{alone}{_at_stability(best)}."
    )
    if len(tied) > 1:
        calm = known[known["label"].isin(tied)].sort_values("stability", ascending=False, kind="stable").iloc[0]
        said.append(
            f"Of the rows that cannot be told apart, {calm['label']} is the most stable ({calm['stability']:.2f})."
        )
    worse = known[known["win_rate_high"] < 0.5]["label"].tolist()
    if worse:
        said.append(f"Worse than the baseline on these prompts: {_list(worse)}.")
    if not ((known["stability"] >= 0.5) & (known["win_rate_low"] > 0.5)).any():
        said.append("No row both wins with an interval above 50 % and keeps a stability of 0.5 or more.")


def _say_accuracy(known: pd.DataFrame, _open: list[str], said: list[str]) -> None:
    best = known.iloc[0]
    said.append(
        f"{best['label']} has the highest held-out preference accuracy: {_percent(best, 'preference_accuracy')}"
        f"{_at_stability(best)}. Accuracy can rise while answers get worse."
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
        said.append(f"Search: {len(front)} of {len(search)} trials on the front{number} {where}.")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
