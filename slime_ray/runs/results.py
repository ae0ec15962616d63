"""A run's files: atomic writing, and reading. Imports neither torch nor ray.

    trials/<trial_id>/trial.json, answers.parquet, curves.parquet, pairs.parquet    by the trial; trial.json last
    trials/<trial_id>/verdicts.parquet, verdicts.parquet    the single verdicts, where a panel of judges gave them
    trials.parquet, answers.parquet, curves.parquet, pairs.parquet                  all trials together
    manifest.json                                                                   what was run, with what, on what

`trial.json` marks a trial as finished: a folder without a whole one is a trial that was interrupted.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from slime_ray.config.metrics import METRICS
from slime_ray.errors import InputError
from slime_ray.runs import files
from slime_ray.runs.redaction import redact, redact_sentence
from slime_ray.runs.schema import (
    ANSWER_SCHEMA,
    LATER,
    LATER_FILES,
    OPTIONAL_FILES,
    READABLE,
    RENAMED,
    RUN_SCHEMA,
    SCHEMAS,
    TRIAL_SCHEMA,
    VERDICT_SCHEMA,
)
from slime_ray.runs.stability_v1 import STABILITY_VERSION

CHECKPOINTS = "resume"
"""Folder, in a trial's own, of what it goes on from after an interruption."""
MODEL = "checkpoint"
"""Folder, in a trial's own, of the trained model: its adapter, or all of it."""
HEAVY = (CHECKPOINTS, MODEL)
"""Folders that nobody needs who reads results."""
JUDGING = "judging.json"
"""File, in a trial's own, of what its judge took."""
RETENTION = "retention"
"""Prompt set of the answers that `evaluation.retention` asks for, which `load` keeps apart."""
START_COLUMNS = ("status", "started", "total_seconds")
"""Columns that tell a trial from one of the same id that ran before."""
CLONE = re.compile(r"(.+)-clone-(\d+)")
"""Id of a trial that a person added, with the trial's that it was made from and its number."""
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


def is_clone(trial_id: str) -> bool:
    """Whether a trial is one that a person added."""
    return CLONE.fullmatch(trial_id) is not None


def trial_row(**columns: Any) -> dict[str, Any]:
    """A row of trials.parquet: `columns` over nulls. Raises KeyError for a column that the schema does not have."""
    unknown = set(columns) - set(TRIAL_SCHEMA.names)
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    row = dict.fromkeys(TRIAL_SCHEMA.names) | {"stability_version": STABILITY_VERSION, "workers": 1} | columns
    return {name: _json(value) if isinstance(value, (dict, list)) else value for name, value in row.items()}


def write_trial(run: Path, *, row: Mapping[str, Any], **tables: Sequence[Mapping[str, Any]]) -> None:
    """Write one finished trial. Once this returns it counts as finished; before, it does not exist.

    tables: rows of its other files, by their names in SCHEMAS.
    """
    if isinstance(row.get("reason"), str):
        row = {**row, "reason": redact_sentence(row["reason"])}
    folder = run / "trials" / str(row["trial_id"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS.keys() - {"trials"} | tables.keys():
        if (rows := tables.get(name, ())) or name not in OPTIONAL_FILES:
            _write_table(folder / f"{name}.parquet", rows, SCHEMAS[name])
    files.write(folder / "trial.json", json.dumps({name: _finite(value) for name, value in row.items()}, indent=1))


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
            row = {RENAMED.get(name, name): value for name, value in row.items()}
        whole = row["trial_id"] == folder.name and isinstance(json.loads(row["overrides"] or "{}"), dict)
        texts = all(isinstance(row[name], str | None) for name in ("phase", "label", "status"))
        numbers = all(isinstance(row.get(name), int | float | None) for name in METRICS)
        return row if whole and texts and numbers else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Make it readable, or copy the run again.") from None


def consolidate(run: Path) -> None:
    """Rewrite the run's parquet files from its finished trials. Raises InputError where one is damaged."""
    tables = _merge_trials(run, finished_trials(run))
    # The trials' own come last: who is cut off in between leaves a trial out, and none without its answers.
    for name in (*tables.keys() - {"trials"}, "trials"):
        if len(tables[name]) or name not in OPTIONAL_FILES:
            _replace_table(run / f"{name}.parquet", tables[name])


def _merge_trials(run: Path, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, pa.Table]:
    """Merge the files of a run's finished trials into one table each."""
    paths = sorted({path for row in rows.values() for path in json.loads(row["overrides"] or "{}")})
    knobs = {path: [json.loads(row["overrides"] or "{}").get(path) for row in rows.values()] for path in paths}
    schema = TRIAL_SCHEMA
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows.values()] for name in TRIAL_SCHEMA.names}
    for path, values in knobs.items():
        numbers = all(value is None or type(value) in (int, float) for value in values)
        columns[KNOB + path] = values if numbers else [None if value is None else _json(value) for value in values]
        schema = schema.append(pa.field(KNOB + path, pa.float64() if numbers else pa.string()))
    try:
        tables = {"trials": pa.table(columns, schema=schema)}
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(f"{run / 'trials'}: a trial.json holds {str(error).splitlines()[0]}. {_WAY_OUT}") from None
    for name in SCHEMAS.keys() - {"trials"}:
        files = [run / "trials" / trial_id / f"{name}.parquet" for trial_id in rows]
        if name in OPTIONAL_FILES:
            files = [file for file in files if file.exists()]
        if name in LATER_FILES and not any(file.exists() for file in files):
            files = []
        parts = [_read_trial(file, SCHEMAS[name]) for file in files]
        tables[name] = pa.concat_tables(parts) if parts else SCHEMAS[name].empty_table()
    return tables


_WAY_OUT = "Copy it again, or delete its folder and give the sweep once more with --resume to repeat this trial."


def _read_parquet(file: Path, schema: pa.Schema | None = None) -> pa.Table:
    if file.is_dir():
        # Arrow would take it for a table in parts, and an empty one at that.
        raise IsADirectoryError(f"{file} is a folder")
    return pq.read_table(file, schema=schema)


def has_curve(trial: Path, metric: str) -> bool:
    """Whether the curves in a finished trial's folder have a metric; False where they cannot be read."""
    try:
        return metric in _read_parquet(trial / "curves.parquet", SCHEMAS["curves"])["metric"].unique().to_pylist()
    except (OSError, pa.ArrowException):
        return False


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
    files.write(run / "manifest.json", text, private="://***" in text)


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
            kind_name = "a list" if kind is list else "a mapping"
            raise InputError(f"{file}: {path} should be {kind_name}, not {value!r:.40}. Copy the run again.")
    return manifest


_MANIFEST_KINDS = {
    **dict.fromkeys(("versions", "host", "experiment", "goals", "hashes", "inputs", "code", "decoding", "data"), dict),
    **dict.fromkeys(("experiment.search", "experiment.search.dimensions", "experiment.league"), dict),
    **dict.fromkeys(("experiment.budget", "experiment.budget.confirm", "data.truncated"), dict),
    **dict.fromkeys(
        ("seeds", "failed_trials", "experiment.arms", "experiment.constraints", "data.skipped", "data.rows_skipped"),
        list,
    ),
}
"""What readers of a manifest take apart, outer entries first; any of it may be absent."""


def load(run: str | Path) -> Run:
    """Read a run. Raises InputError where there is none, where nothing has finished, or where a file is damaged."""
    run = Path(run)
    manifest = read_manifest(run)
    rows = finished_trials(run)
    has_trials = bool(rows) or ((run / "trials").is_dir() and not (run / "trials.parquet").exists())
    if has_trials and not all((run / f"{name}.parquet").exists() for name in SCHEMAS.keys() - OPTIONAL_FILES):
        tables = _merge_trials(run, rows)
    else:
        tables = {name: read_table(run, name) for name in SCHEMAS}
        table_rows = {row["trial_id"]: row for row in tables["trials"].select(["trial_id", *START_COLUMNS]).to_pylist()}
        # A sweep that was killed had trials finish, or run again, since it last wrote these files.
        if any(
            name not in table_rows or any(table_rows[name][column] != row.get(column) for column in START_COLUMNS)
            for name, row in rows.items()
        ):
            tables = _merge_trials(run, rows)
    frames = {name: _frame(table) for name, table in tables.items()}
    answers = frames["answers"].fillna({"turn": 1})
    is_retention = answers["prompt_set"] == RETENTION
    frames |= {"answers": answers[~is_retention].reset_index(drop=True), RETENTION: answers[is_retention]}
    if frames["trials"].empty:
        raise InputError(f"{run}: no trial has finished yet, so there is nothing to report.")
    return Run(path=run, manifest=manifest, **frames)


def read_table(run: Path, name: str) -> pa.Table:
    """Read one of a run's tables, in this version's columns. Raises InputError where it is missing or damaged."""
    file, schema = run / f"{name}.parquet", SCHEMAS[name]
    if name in LATER_FILES and not file.exists():
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
        table = table.rename_columns([RENAMED.get(column, column) for column in table.column_names])
    for later in LATER & set(schema.names) - set(table.column_names):
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
    return frame.astype({field.name: "boolean" for field in table.schema if field.type == pa.bool_()})


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
