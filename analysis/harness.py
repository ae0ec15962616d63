"""Two models' samples of lm-evaluation-harness, compared document by document.

With `--log_samples` it writes `samples_TASK_DATE.jsonl`, one JSON object for each document and filter of answers, with
hashes of the document, the prompt and the target, and the document's value of every metric.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.errors import InputError

from . import statistics
from .printing import Column, Table, interval_cells, names, numbers
from .rows import reading

_NAME = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")
_HASHES = {"doc_hash": "document", "prompt_hash": "prompt", "target_hash": "target"}
POOLED = "mean of tasks"
"""Row of the mean over tasks."""

Metric = tuple[str, str]
"""Name of a metric, and of the filter of answers."""
Samples = dict[Any, tuple[dict[str, Any], dict[Metric, float]]]
"""Hashes and values of each document by its id."""


def are_samples(path: Path) -> bool:
    """Tell whether this is a file of samples, or a folder (not of a run) with any in or below it."""
    if path.is_dir():
        return not (path / "manifest.json").exists() and any(_files(path))
    return path.is_file() and path.suffix == ".jsonl"


def compare_samples(paths: Sequence[Path]) -> Table:
    """Return the second model's values minus the first's, by task and metric, and as the mean over tasks.

    Args:
        paths: Two files or folders of samples.

    Returns:
        A table; in `frame` values are as the harness has them, intervals 95 % over documents.

    Raises:
        InputError: A file cannot be read, or the two do not hold the same prompts and metrics.
    """
    if len(paths) != 2:
        raise InputError(f"{len(paths)} paths were given. Samples of lm-evaluation-harness are compared two by two.")
    first, second = map(_read, paths)
    tasks = sorted(first.keys() & second.keys())
    if not tasks:
        raise InputError(
            f"{paths[0]} has samples of {', '.join(sorted(first))}, and {paths[1]} of {', '.join(sorted(second))}. "
            "Give samples of the same tasks."
        )
    rows: list[dict[str, Any]] = []
    changes: dict[Metric, list[np.ndarray]] = {}
    for task in tasks:
        _refuse_others(task, first[task], second[task], paths)
        shared = sorted(first[task].keys() & second[task].keys(), key=str)
        for metric in _metrics(first[task]):
            pairs = np.array(
                [[samples[task][name][1].get(metric, math.nan) for name in shared] for samples in (first, second)]
            )
            pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
            if pairs.size:
                left_out = sum(len(samples[task]) - pairs.shape[1] for samples in (first, second))
                shares = bool(((pairs >= 0) & (pairs <= 1)).all())
                change = pairs[1] - pairs[0]
                changes.setdefault(metric, []).append(change)
                rows.append(_row(task, metric, pairs.shape[1], left_out, pairs.mean(axis=1), shares, [change]))
    for metric in sorted(changes):
        # Of a metric that several tasks have, the mean over tasks.
        of_tasks = pd.DataFrame([row for row in rows if (row["metric"], row["filter"]) == metric])
        if len(of_tasks) > 1:
            documents, left_out = (int(of_tasks[name].sum()) for name in ("documents", "left_out"))
            means, shares = of_tasks[["first", "second"]].mean(), bool(of_tasks["shares"].all())
            rows.append(_row(POOLED, metric, documents, left_out, means, shares, changes[metric]))
    notes = [
        "change: the second minus the first, paired by document, with its 95 % interval over documents (Student's t). "
        "Whether more is better depends on the metric. An interval that covers 0 does not show that nothing was lost.",
        f"{POOLED}: every task counts the same; its interval is over the documents of these tasks, not over tasks.",
    ]
    if unshared_tasks := sorted(first.keys() ^ second.keys()):
        notes.append(f"Of one model alone, and left out: {', '.join(unshared_tasks)}.")
    if any(math.isnan(row["change_low"]) for row in rows):
        notes.append("Without ends: fewer than 3 documents, or the same change in all, of values that are no shares.")
    caption = f"{paths[1]} against {paths[0]}: samples of lm-evaluation-harness."
    if not rows:
        raise InputError(f"{caption} No metric has a number for each document, so there is nothing to compare.")
    frame = pd.DataFrame(rows)
    return Table(
        frame=frame,
        caption=caption,
        notes=notes,
        columns=(
            names("task", frame),
            names("metric", frame),
            names("filter", frame, keep=9),
            Column("documents", numbers(frame, "documents", 0), keep=8),
            Column("left out", numbers(frame, "left_out", 0), keep=7),
            Column("first", numbers(frame, "first", 4), keep=6),
            Column("second", numbers(frame, "second", 4), keep=6),
            Column("change [95 %]", interval_cells(frame, "change", 4, signed=True), keep=9),
        ),
    )


def _files(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("samples_*.jsonl")) if _NAME.fullmatch(file.name))


def _read(path: Path) -> dict[str, Samples]:
    """Read samples by task."""
    files = [path] if path.is_file() else list(_files(path))
    if not files:
        raise InputError(f"{path} has no file samples_*.jsonl. Give what `lm_eval --log_samples` wrote.")
    samples_by_task: dict[str, Samples] = {}
    for file in files:
        match = _NAME.fullmatch(file.name)
        task = match["task"] if match else file.stem
        if task in samples_by_task:
            raise InputError(f"{path} has several files of samples of {task}. Give one file, or a folder with one.")
        samples_by_task[task] = _read_file(file)
    return samples_by_task


def _read_file(file: Path) -> Samples:
    samples: Samples = {}
    counts: Counter[Any] = Counter()
    with reading(str(file), "Copy it again."):
        lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, filter_name, metrics = row["doc_id"], str(row["filter"]), row["metrics"]
            hashes = {key: row[key] for key in _HASHES}
            values = {(str(metric), filter_name): _value(row[metric]) for metric in metrics}
            counts[name, filter_name] += 1
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{file}:{number}: {type(error).__name__}: {error}. A sample has doc_id, filter, metrics with their "
                f"values, {', '.join(_HASHES)}: write it again with lm-evaluation-harness 0.4.5 or later."
            ) from None
        if counts[name, filter_name] > 1:
            raise InputError(
                f"{file}:{number}: document {name} is there twice with the filter {filter_name}. Keep one."
            )
        samples.setdefault(name, (hashes, {}))[1].update(values)
    if not samples:
        raise InputError(f"{file} is empty. Give samples of lm-evaluation-harness.")
    return samples


def _value(value: Any) -> float:
    """Return a document's value of a metric; NaN for one of all documents together, such as a perplexity."""
    return float(value) if isinstance(value, (bool, int, float)) else math.nan


def _metrics(samples: Samples) -> list[Metric]:
    return sorted({metric for _, values in samples.values() for metric in values})


def _refuse_others(task: str, first: Samples, second: Samples, paths: Sequence[Path]) -> None:
    """Raise InputError where two models were not asked or measured alike."""
    metrics = [
        {f"{metric} ({filter_name})" for metric, filter_name in _metrics(samples)} for samples in (first, second)
    ]
    if different := sorted(metrics[0] ^ metrics[1]):
        raise InputError(f"{task}: only one of {paths[0]} and {paths[1]} has {', '.join(different)}. Use one version.")
    shared = first.keys() & second.keys()
    if not shared:
        raise InputError(f"{task}: {paths[0]} and {paths[1]} have no document in common. Give samples of the same.")
    for key, word in _HASHES.items():
        if count := sum(first[name][0][key] != second[name][0][key] for name in shared):
            raise InputError(
                f"{task}: {count} of {len(shared)} documents have another {word} in {paths[1]} than in {paths[0]}. "
                "Evaluate both with the same version, few-shot examples and chat template."
            )


def _row(
    task: str, metric: Metric, documents: int, left_out: int, means: Any, shares: bool, changes: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Build a row. means: of the first and the second. changes: of the documents of each task in the row."""
    return {
        "task": task,
        "metric": metric[0],
        "filter": metric[1],
        "documents": documents,
        "left_out": left_out,
        **dict(zip(("first", "second"), map(float, means), strict=True)),
        "shares": shares,
        **statistics.columns({"change": _mean_of_tasks(changes, shares=shares)}),
    }


def _mean_of_tasks(changes: Sequence[np.ndarray], *, shares: bool) -> statistics.Interval:
    """Return the mean over tasks of the mean over documents, with Student's interval (Satterthwaite's degrees).

    shares: whether values are from 0 to 1, so that documents that all agree leave room, as in `difference_interval`.
    """
    value = float(np.mean([change.mean() for change in changes]))
    sizes = np.array([len(change) for change in changes])
    if sizes.min() < statistics.FEWEST_UNITS:
        return statistics.Interval(value, math.nan, math.nan)
    variances = np.array([change.var(ddof=1) for change in changes]) / sizes
    variances += 2 * statistics.PRIOR / sizes**2 * shares
    if not variances.any():
        return statistics.Interval(value, math.nan, math.nan)
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    most = 1.0 if shares else math.inf
    change = statistics.student_interval(value, math.sqrt(variances.sum()) / len(changes), freedom)
    return change.within(-most, most)
