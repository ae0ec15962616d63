"""The columns of a run's files: of what type each is, its unit, and when it is null."""

import pyarrow as pa

RUN_SCHEMA = "run-v2"
READABLE = ("run-v1", RUN_SCHEMA)
RENAMED = {"settings": "overrides", "config": "settings"}
"""Columns of run-v1, and what they are called now."""

_TEXT, _NUMBER, _COUNT, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()

TRIAL_SCHEMA = pa.schema(
    {
        "trial_id": _TEXT,
        "phase": _TEXT,  # arm, search or confirm
        "label": _TEXT,  # the row of the table that it belongs to
        "seed": _COUNT,
        "status": _TEXT,  # completed, stopped, diverged or failed
        "reason": _TEXT,  # one sentence for anything but completed
        "alarm": _TEXT,  # the sentinel's first, with its step; null where there was none
        "objective": _TEXT,
        "overrides": _TEXT,  # JSON: what this trial set over base, by path
        "settings": _TEXT,  # JSON: its complete settings
        "config_hash": _TEXT,
        "sft_checkpoint": _TEXT,  # hash of the weights that it starts from; null where it failed before
        "prompt_set": _TEXT,  # selection or report
        "judge": _TEXT,
        "stability_version": _TEXT,
        "win_rate": _NUMBER,  # share, against the baseline's answers; null where nothing was judged
        "prompts": _COUNT,  # prompts with a valid verdict
        "stability": _NUMBER,  # S; 0 for failed and diverged trials
        "unlearning": _NUMBER,  # U, nat/token
        "rejected_collapse": _NUMBER,  # C, share of rejected tokens
        "entropy_shift": _NUMBER,  # H, absolute log ratio
        "broken_outputs": _NUMBER,  # B, share of answers
        "length_shift": _NUMBER,  # L, absolute log ratio
        "training_spikes": _NUMBER,  # T, share of updates
        "kl_to_sft": _NUMBER,  # K, nat/token, not scored
        "retention": _NUMBER,  # mean score on the retention prompts minus the SFT checkpoint's; null without any
        "healthy": _FLAG,  # g
        "chosen_drift": _NUMBER,  # nat/token, signed
        "rejected_drift": _NUMBER,  # nat/token, signed
        "preference_accuracy": _NUMBER,  # share of held-out pairs
        "mean_margin": _NUMBER,  # nat/token
        "format_valid": _NUMBER,  # share of answers; null without a check
        "pairs": _COUNT,  # held-out pairs
        "updates": _COUNT,
        "kept_update": _COUNT,  # whose weights were measured and saved: the last one, or as training.keep chose
        "planned_updates": _COUNT,  # what it would have made had nothing stopped it
        "tokens": _COUNT,  # training tokens that were not padding
        "row_tokens": _COUNT,  # budget of a row at the end of training; below data.row_tokens where memory ran out
        "train_seconds": _NUMBER,
        "evaluation_seconds": _NUMBER,
        "total_seconds": _NUMBER,
        "started": _TEXT,  # ISO 8601, UTC
        "host": _TEXT,
        "workers": _COUNT,
        "attempts": _COUNT,  # starts, the one that finished included
        "lost_seconds": _NUMBER,  # worker-seconds that were computed twice, since a process was lost
    }
)
_TRIAL = {"trial_id": _TEXT, "label": _TEXT, "phase": _TEXT, "seed": _COUNT}
"""Columns, as in trials.parquet, by which rows of the other files name their trial."""
ANSWER_SCHEMA = pa.schema(
    {
        **_TRIAL,
        "prompt_set": _TEXT,  # selection, report or retention; of the last, score and baseline_score are the scorer's
        "prompt_id": _TEXT,
        "turn": _COUNT,  # of the conversation, from 1; the turns of a prompt share its prompt_id
        "category": _TEXT,  # of the question, where it came from a file that has any
        "prompt": _TEXT,  # JSON: the messages, with the policy's own answers to earlier turns
        "answer": _TEXT,
        "answer_tokens": _COUNT,
        "baseline_answer": _TEXT,
        "baseline_tokens": _COUNT,
        "verdict_ab": _TEXT,  # Arena-Hard's label with the policy's answer shown as A; null is invalid
        "verdict_ba": _TEXT,  # the same with it shown as B
        "outcome": _NUMBER,  # mean over both orders of 1 win, 0.5 tie, 0 loss for the policy
        "score": _NUMBER,  # the judge's own score, where it has one
        "baseline_score": _NUMBER,
        "broken": _FLAG,
        "broken_reason": _TEXT,
        "baseline_broken": _FLAG,
    }
)
CURVE_SCHEMA = pa.schema(
    {
        **_TRIAL,
        "step": _COUNT,
        "source": _TEXT,  # train, held_out or sentinel
        "metric": _TEXT,
        "value": _NUMBER,
    }
)
PAIR_SCHEMA = pa.schema(
    {
        **_TRIAL,
        "pair": _COUNT,  # place among the held-out pairs, from 0, the same in every trial of a run
        "chosen_tokens": _COUNT,
        "rejected_tokens": _COUNT,
        "chosen_logp0": _NUMBER,  # mean over the completion, nat/token, under the SFT checkpoint
        "chosen_logp": _NUMBER,  # the same under the trained policy
        "rejected_logp0": _NUMBER,
        "rejected_logp": _NUMBER,
        "rejected_collapsed": _COUNT,  # rejected tokens whose probability fell more than tenfold
        "entropy0": _NUMBER,  # mean next-token entropy at the chosen positions, nat, under the SFT checkpoint
        "entropy": _NUMBER,
    }
)
VERDICT_SCHEMA = pa.schema(
    {
        **_TRIAL,
        "prompt_set": _TEXT,
        "prompt_id": _TEXT,
        "turn": _COUNT,
        "judge": _TEXT,  # one of the panel
        "repeat": _COUNT,  # from 1
        "verdict_ab": _TEXT,  # these as in answers.parquet, which has the panel's outcome
        "verdict_ba": _TEXT,
        "outcome": _NUMBER,
        "score": _NUMBER,
        "baseline_score": _NUMBER,
    }
)
SCHEMAS = {
    "trials": TRIAL_SCHEMA,
    "answers": ANSWER_SCHEMA,
    "curves": CURVE_SCHEMA,
    "pairs": PAIR_SCHEMA,
    "verdicts": VERDICT_SCHEMA,
}
OPTIONAL_FILES = {"verdicts"}
"""Files that are written only where there is something to write."""
LATER_FILES = {"pairs", *OPTIONAL_FILES}
"""Files that runs of an earlier version lack; they are read as empty."""
LATER = {
    "attempts",
    "lost_seconds",
    "alarm",
    "turn",
    "category",
    "planned_updates",
    "kept_update",
    "row_tokens",
    "retention",
    "sft_checkpoint",
}
"""Columns that runs of an earlier version lack; they are read as null, but `turn` as 1."""
