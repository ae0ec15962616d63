"""A run's files: their schema, atomic writing, and reading. Imports neither torch nor ray.

    trials/<trial_id>/trial.json, answers.parquet, curves.parquet, pairs.parquet    by the trial; trial.json last
    trials/<trial_id>/verdicts.parquet, verdicts.parquet    the single verdicts, where a panel of judges gave them
    trials.parquet, answers.parquet, curves.parquet, pairs.parquet                  all trials together
    manifest.json                                                                   what was run, with what, on what

`trial.json` marks a trial as finished: a folder without a whole one is a trial that was interrupted.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from slime_ray.errors import InputError
from slime_ray.runs import files
from slime_ray.runs.redaction import redact, redact_sentence
from slime_ray.runs.stability_v1 import STABILITY_VERSION

RUN_SCHEMA = "run-v2"
READABLE = ("run-v1", RUN_SCHEMA)
_RENAMED = {"settings": "overrides", "config": "settings"}
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
ANSWER_SCHEMA = pa.schema(
    {
        "trial_id": _TEXT,
        "label": _TEXT,
        "phase": _TEXT,
        "seed": _COUNT,
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
        "trial_id": _TEXT,
        "label": _TEXT,
        "phase": _TEXT,
        "seed": _COUNT,
        "step": _COUNT,
        "source": _TEXT,  # train, held_out or sentinel
        "metric": _TEXT,
        "value": _NUMBER,
    }
)
PAIR_SCHEMA = pa.schema(
    {
        "trial_id": _TEXT,
        "label": _TEXT,
        "phase": _TEXT,
        "seed": _COUNT,
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
        "trial_id": _TEXT,
        "label": _TEXT,
        "phase": _TEXT,
        "seed": _COUNT,
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
_OPTIONAL_FILES = {"verdicts"}
"""Files that are written only where there is something to write."""
_LATER_FILES = {"pairs", *_OPTIONAL_FILES}
"""Files that runs of an earlier version lack; they are read as empty."""
_LATER = {
    "attempts",
    "lost_seconds",
    "alarm",
    "turn",
    "category",
    "planned_updates",
    "kept_update",
    "row_tokens",
    "retention",
}
"""Columns that runs of an earlier version lack; they are read as null, but `turn` as 1."""
CHECKPOINTS = "resume"
"""Folder, in a trial's own, of what it goes on from after an interruption."""
MODEL = "checkpoint"
"""Folder, in a trial's own, of the trained model: its adapter, or all of it."""
JUDGING = "judging.json"
"""File, in a trial's own, of what its judge took."""
RETENTION = "retention"
"""Prompt set of the answers that `evaluation.retention` asks for, which `load` keeps apart."""
KNOB = "knob."
"""Prefix of the columns that hold what trials set, by path."""


@dataclass(frozen=True)
class Run:
    """One run's results as tidy frames, with its manifest. retention: answers to the retention prompts."""

    path: Path
    trials: pd.DataFrame
    answers: pd.DataFrame
    curves: pd.DataFrame
    pairs: pd.DataFrame
    manifest: dict[str, Any]
    retention: pd.DataFrame = field(default_factory=ANSWER_SCHEMA.empty_table().to_pandas)
    verdicts: pd.DataFrame = field(default_factory=VERDICT_SCHEMA.empty_table().to_pandas)
    """One row a verdict of a panel's judge; empty where one judge gave them, which are in `answers`."""


def trial_row(**columns: Any) -> dict[str, Any]:
    """A row of trials.parquet: `columns` over nulls. Raises KeyError for a column that the schema does not have."""
    unknown = set(columns) - set(TRIAL_SCHEMA.names)
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    row = dict.fromkeys(TRIAL_SCHEMA.names) | {"stability_version": STABILITY_VERSION, "workers": 1} | columns
    return {name: _json(value) if isinstance(value, (dict, list)) else value for name, value in row.items()}


def write_trial(
    run: Path,
    *,
    row: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]] = (),
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write one finished trial. Once this returns it counts as finished; before, it does not exist."""
    if isinstance(row.get("reason"), str):
        row = {**row, "reason": redact_sentence(row["reason"])}
    folder = run / "trials" / str(row["trial_id"])
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "answers.parquet", answers, ANSWER_SCHEMA)
    _write_table(folder / "curves.parquet", curves, CURVE_SCHEMA)
    _write_table(folder / "pairs.parquet", pairs, PAIR_SCHEMA)
    if verdicts:
        _write_table(folder / "verdicts.parquet", verdicts, VERDICT_SCHEMA)
    write_text(folder / "trial.json", json.dumps({name: _finite(value) for name, value in row.items()}, indent=1))


def finished_trials(run: Path) -> dict[str, dict[str, Any]]:
    """Rows of the trials that have finished, by id. A damaged `trial.json` marks nothing: its trial can run again."""
    paths = sorted((run / "trials").glob("*/trial.json"))
    rows = {path.parent.name: finished_trial(path.parent) for path in paths}
    return {trial_id: row for trial_id, row in rows.items() if row is not None}


def finished_trial(folder: Path) -> dict[str, Any] | None:
    """The row of the trial whose folder this is, if it has finished. Raises InputError where that cannot be told."""
    file = folder / "trial.json"
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        if "config" in row:
            row = {_RENAMED.get(name, name): value for name, value in row.items()}
        whole = row["trial_id"] == folder.name and isinstance(json.loads(row["overrides"] or "{}"), dict)
        texts = all(isinstance(row[name], str | None) for name in ("phase", "label", "status"))
        return row if whole and texts else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Make it readable, or copy the run again.") from None


def consolidate(run: Path) -> None:
    """Rewrite the run's parquet files from its finished trials. Raises InputError where one is damaged."""
    tables = _together(run, finished_trials(run))
    # The trials' own come last: who is cut off in between leaves a trial out, and none without its answers.
    for name in (*tables.keys() - {"trials"}, "trials"):
        if len(tables[name]) or name not in _OPTIONAL_FILES:
            _replace_table(run / f"{name}.parquet", tables[name])


def _together(run: Path, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, pa.Table]:
    """The tables of a run, from the folders of its finished trials."""
    paths = sorted({path for row in rows.values() for path in json.loads(row["overrides"] or "{}")})
    knobs = {path: [json.loads(row["overrides"] or "{}").get(path) for row in rows.values()] for path in paths}
    schema = TRIAL_SCHEMA
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows.values()] for name in TRIAL_SCHEMA.names}
    for path, values in knobs.items():
        numbers = all(value is None or type(value) in (int, float) for value in values)
        columns[KNOB + path] = values if numbers else [None if value is None else _json(value) for value in values]
        schema = schema.append(pa.field(KNOB + path, _NUMBER if numbers else _TEXT))
    try:
        together = {"trials": pa.table(columns, schema=schema)}
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(f"{run / 'trials'}: a trial.json holds {str(error).splitlines()[0]}. {_WAY_OUT}") from None
    for name in SCHEMAS.keys() - {"trials"}:
        files = [run / "trials" / trial_id / f"{name}.parquet" for trial_id in rows]
        if name in _OPTIONAL_FILES:
            files = [file for file in files if file.exists()]
        if name in _LATER_FILES and not any(file.exists() for file in files):
            files = []
        tables = [_read_trial(file, SCHEMAS[name]) for file in files]
        together[name] = pa.concat_tables(tables) if tables else SCHEMAS[name].empty_table()
    return together


_WAY_OUT = "Copy it again, or delete its folder and give the sweep once more with --resume to repeat this trial."


def _read_parquet(file: Path, schema: pa.Schema | None = None) -> pa.Table:
    if file.is_dir():
        # Arrow would take it for a table in parts, and an empty one at that.
        raise IsADirectoryError(f"{file} is a folder")
    return pq.read_table(file, schema=schema)


def _read_trial(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = _read_parquet(file, schema)
    except FileNotFoundError:
        raise InputError(f"{file} is missing, of a trial that has finished. {_WAY_OUT}") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}. {_WAY_OUT}") from None
    if table.column("trial_id").unique().to_pylist() not in ([], [file.parent.name]):
        raise InputError(f"{file} is another trial's. {_WAY_OUT}")
    return table


def write_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json with secrets masked, for its owner alone where there was an address with a user."""
    text = json.dumps(redact(manifest), indent=1, ensure_ascii=False, default=str)
    write_text(run / "manifest.json", text, private="://***" in text)


def read_manifest(run: Path) -> dict[str, Any]:
    """Read manifest.json. Raises InputError where `run` is no run of ours."""
    if not run.is_dir():
        raise InputError(f"{run}: there is no such run. Give the folder that a sweep wrote.")
    file = run / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{run} is not a run: it has no manifest.json. Give the folder that a sweep wrote.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}. Copy the run again.") from None
    if not isinstance(manifest, dict) or manifest.get("schema") not in READABLE:
        schema = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{file} has the schema {schema!r}; this version reads {RUN_SCHEMA!r}.")
    for path, kind in _MANIFEST_KINDS.items():
        value: Any = manifest
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, kind):
            should = "a list" if kind is list else "a mapping"
            raise InputError(f"{file}: {path} should be {should}, not {value!r:.40}. Copy the run again.")
    return manifest


_MANIFEST_KINDS = {
    **dict.fromkeys(("versions", "host", "experiment", "goals", "hashes", "inputs", "code", "decoding", "data"), dict),
    **dict.fromkeys(("experiment.search", "experiment.search.dimensions", "experiment.league"), dict),
    **dict.fromkeys(("experiment.budget", "experiment.budget.confirm", "data.truncated"), dict),
    **dict.fromkeys(("seeds", "failed_trials", "experiment.arms", "data.skipped", "data.rows_skipped"), list),
}
"""What readers of a manifest take apart, outer entries first; any of it may be absent."""


def load(run: str | Path) -> Run:
    """Read a run. Raises InputError where there is none, where nothing has finished, or where a file is damaged."""
    run = Path(run)
    manifest = read_manifest(run)
    rows = finished_trials(run)
    begun = bool(rows) or ((run / "trials").is_dir() and not (run / "trials.parquet").exists())
    if begun and not all((run / f"{name}.parquet").exists() for name in SCHEMAS.keys() - _OPTIONAL_FILES):
        tables = _together(run, rows)
    else:
        tables = {name: read_table(run, name) for name in SCHEMAS}
        # A sweep that was killed had trials finish since it last wrote these files.
        if not rows.keys() <= set(tables["trials"]["trial_id"].to_pylist()):
            tables = _together(run, rows)
    frames = {name: _frame(table) for name, table in tables.items()}
    answers = frames["answers"].fillna({"turn": 1})
    kept = answers["prompt_set"] == RETENTION
    frames |= {"answers": answers[~kept].reset_index(drop=True), RETENTION: answers[kept]}
    if frames["trials"].empty:
        raise InputError(f"{run}: no trial has finished yet, so there is nothing to report.")
    return Run(path=run, manifest=manifest, **frames)


def read_table(run: Path, name: str) -> pa.Table:
    """Read one of a run's tables, in this version's columns. Raises InputError where it is missing or damaged."""
    file, schema = run / f"{name}.parquet", SCHEMAS[name]
    if name in _LATER_FILES and not file.exists():
        return schema.empty_table()
    try:
        table = _read_parquet(file)
    except FileNotFoundError:
        raise InputError(
            f"{run}: {file.name} is missing. No trial has finished yet, or the copy is incomplete."
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}. Copy the run again.") from None
    if name == "trials" and "config" in table.column_names:
        table = table.rename_columns([_RENAMED.get(column, column) for column in table.column_names])
    for later in _LATER & set(schema.names) - set(table.column_names):
        table = table.append_column(later, pa.nulls(len(table), schema.field(later).type))
    missing = set(schema.names) - set(table.column_names)
    if missing:
        raise InputError(f"{file} lacks the columns {', '.join(sorted(missing))}: it is not a file of this schema.")
    fields = [schema.field(field.name) if field.name in schema.names else field for field in table.schema]
    try:
        return table.cast(pa.schema(fields))
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(f"{file}: {str(error).splitlines()[0]}: it is not a file of this schema.") from None


def _frame(table: pa.Table) -> pd.DataFrame:
    """Numbers, and counts with unknown ones, as float64; flags as `boolean`, which None does not turn into objects."""
    frame = table.to_pandas(ignore_metadata=True)
    return frame.astype({field.name: "boolean" for field in table.schema if field.type == _FLAG})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN; an unknown number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    rows = list(rows)
    columns = {
        name: [_json(row[name]) if isinstance(row[name], (dict, list)) else row[name] for row in rows]
        for name in schema.names
    }
    _replace_table(path, pa.table(columns, schema=schema))


def _replace_table(path: Path, table: pa.Table) -> None:
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd")
    files.write(path, content.getvalue())


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a text file, in UTF-8, whole or not at all. private: nobody but its owner may read it."""
    files.write(path, text, private=private)


def write_new(path: Path, text: str) -> bool:
    """Write a text file, whole, unless there is one of this name. Returns whether it was written."""
    partial = files.partial_name(path)
    try:
        write_text(partial, text)
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without links.
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        partial.unlink(missing_ok=True)
    return True
