"""A run's files: their schema, atomic writing, and reading. Imports neither torch nor ray.

    trials/<trial_id>/trial.json, answers.parquet, curves.parquet    written by the trial; trial.json last
    trials.parquet, answers.parquet, curves.parquet                  all trials together
    manifest.json                                                    what was run, with what, on what

`trial.json` marks a trial as finished: a folder without it is a trial that was interrupted.
"""

import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from slime_ray.errors import InputError
from slime_ray.stability_v1 import STABILITY_VERSION

RUN_SCHEMA = "run-v1"

_TEXT, _NUMBER, _COUNT, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()

TRIAL_SCHEMA = pa.schema(
    {
        "trial_id": _TEXT,
        "phase": _TEXT,  # arm, search or confirm
        "label": _TEXT,  # the row of the table that it belongs to
        "seed": _COUNT,
        "status": _TEXT,  # completed, stopped, diverged or failed
        "reason": _TEXT,  # one sentence for anything but completed
        "objective": _TEXT,
        "settings": _TEXT,  # JSON: what this trial set over base, by path
        "config": _TEXT,  # JSON: its complete settings
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
        "healthy": _FLAG,  # g
        "chosen_drift": _NUMBER,  # nat/token, signed
        "rejected_drift": _NUMBER,  # nat/token, signed
        "preference_accuracy": _NUMBER,  # share of held-out pairs
        "mean_margin": _NUMBER,  # nat/token
        "format_valid": _NUMBER,  # share of answers; null without a check
        "pairs": _COUNT,  # held-out pairs
        "updates": _COUNT,
        "tokens": _COUNT,  # training tokens that were not padding
        "train_seconds": _NUMBER,
        "evaluation_seconds": _NUMBER,
        "total_seconds": _NUMBER,
        "started": _TEXT,  # ISO 8601, UTC
        "host": _TEXT,
        "workers": _COUNT,
    }
)
ANSWER_SCHEMA = pa.schema(
    {
        "trial_id": _TEXT,
        "label": _TEXT,
        "phase": _TEXT,
        "seed": _COUNT,
        "prompt_set": _TEXT,
        "prompt_id": _TEXT,
        "prompt": _TEXT,  # JSON: the messages
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
        "source": _TEXT,  # train or held_out
        "metric": _TEXT,
        "value": _NUMBER,
    }
)
SCHEMAS = {"trials": TRIAL_SCHEMA, "answers": ANSWER_SCHEMA, "curves": CURVE_SCHEMA}
KNOB = "knob."
"""Prefix of the columns that hold what trials set, by path."""


@dataclass(frozen=True)
class Run:
    """One run's results as tidy frames, with its manifest."""

    path: Path
    trials: pd.DataFrame
    answers: pd.DataFrame
    curves: pd.DataFrame
    manifest: dict[str, Any]


def trial_row(**columns: Any) -> dict[str, Any]:
    """A row of trials.parquet: `columns` over nulls. Raises KeyError for a column that the schema does not have."""
    unknown = set(columns) - set(TRIAL_SCHEMA.names)
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    row = dict.fromkeys(TRIAL_SCHEMA.names) | {"stability_version": STABILITY_VERSION, "workers": 1} | columns
    return {name: _json(value) if isinstance(value, (dict, list)) else value for name, value in row.items()}


def write_trial(
    run: Path, *, row: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]]
) -> None:
    """Write one finished trial. Once this returns it counts as finished; before, it does not exist."""
    folder = run / "trials" / str(row["trial_id"])
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "answers.parquet", answers, ANSWER_SCHEMA)
    _write_table(folder / "curves.parquet", curves, CURVE_SCHEMA)
    _write_text(folder / "trial.json", json.dumps({name: _finite(value) for name, value in row.items()}, indent=1))


def finished_trials(run: Path) -> dict[str, dict[str, Any]]:
    """Rows of the trials that have finished, by id."""
    rows = {}
    for file in sorted((run / "trials").glob("*/trial.json")):
        rows[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def consolidate(run: Path) -> None:
    """Rewrite the run's three parquet files from its finished trials."""
    rows = finished_trials(run)
    paths = sorted({path for row in rows.values() for path in json.loads(row["settings"] or "{}")})
    knobs = {path: [json.loads(row["settings"] or "{}").get(path) for row in rows.values()] for path in paths}
    schema = TRIAL_SCHEMA
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows.values()] for name in TRIAL_SCHEMA.names}
    for path, values in knobs.items():
        numbers = all(value is None or type(value) in (int, float) for value in values)
        columns[KNOB + path] = values if numbers else [None if value is None else _json(value) for value in values]
        schema = schema.append(pa.field(KNOB + path, _NUMBER if numbers else _TEXT))
    _replace_table(run / "trials.parquet", pa.table(columns, schema=schema))
    for name in ("answers", "curves"):
        files = [run / "trials" / trial_id / f"{name}.parquet" for trial_id in rows]
        tables = [pq.read_table(file, schema=SCHEMAS[name]) for file in files if file.is_file()]
        _replace_table(run / f"{name}.parquet", pa.concat_tables(tables) if tables else SCHEMAS[name].empty_table())


def write_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json; values under keys that look like secrets are masked."""
    _write_text(run / "manifest.json", json.dumps(redact(manifest), indent=1, ensure_ascii=False, default=str))


def read_manifest(run: Path) -> dict[str, Any]:
    """Read manifest.json. Raises InputError where `run` is no run of ours."""
    if not run.is_dir():
        raise InputError(f"{run}: there is no such run. Give the folder that a sweep wrote.")
    file = run / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{run} is not a run: it has no manifest.json. Give the folder that a sweep wrote.") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}. Copy the run again.") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != RUN_SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{file} has the schema {found!r}; this version reads {RUN_SCHEMA!r}.")
    return manifest


def load(run: str | Path) -> Run:
    """Read a run. Raises InputError where there is none, where nothing has finished, or where a file is damaged."""
    run = Path(run)
    manifest = read_manifest(run)
    if not (run / "trials.parquet").is_file() and (run / "trials").is_dir():
        consolidate(run)
    frames = {}
    for name in SCHEMAS:
        file = run / f"{name}.parquet"
        try:
            frames[name] = pq.read_table(file).to_pandas()
        except FileNotFoundError:
            raise InputError(
                f"{run}: {file.name} is missing. No trial has finished yet, or the copy is incomplete."
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}. Copy the run again.") from None
        missing = set(SCHEMAS[name].names) - set(frames[name].columns)
        if missing:
            raise InputError(f"{file} lacks the columns {', '.join(sorted(missing))}: it is not a file of this schema.")
    if frames["trials"].empty:
        raise InputError(f"{run}: no trial has finished yet, so there is nothing to report.")
    return Run(path=run, manifest=manifest, **frames)


_SECRET = re.compile(r"(?:^|_)(?:token|secret|password|passwd|api_?key|credential)s?$", re.IGNORECASE)
_MASK = "***"


def redact(value: Any) -> Any:
    """`value` with everything masked that stands under a key that names a secret (token, password, api_key, ...)."""
    if isinstance(value, Mapping):
        return {
            key: _MASK if isinstance(item, str) and _SECRET.search(str(key)) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


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
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
