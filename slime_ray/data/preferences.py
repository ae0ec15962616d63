"""Preference data of every known form, checked row by row. Nothing is dropped in silence."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets

from slime_ray.data.columns import renaming, untrained_text
from slime_ray.data.forms import COLUMNS, KNOWN_FORMS, PROMPT_COLUMN_DIFFERS, TOOLS, BadRow, Pair, pair_from_row
from slime_ray.data.messages import TOOL_FIELDS
from slime_ray.data.sources import open_source, unknown_form
from slime_ray.errors import InputError

logger = logging.getLogger(__name__)

LISTED_ROWS = 20

_CHUNK = 1000
_FIELDS = {"role": Value("string"), "content": Value("string")}
_FEATURES = Features({name: [_FIELDS] for name in COLUMNS})
_TOOL_FEATURES = Features({name: [{**_FIELDS, TOOL_FIELDS: Value("string")}] for name in COLUMNS})


@dataclass
class SkippedRows:
    """Rows that share one reason: how many, and the first 20 of them.

    A row is named as a reader finds it: "line 7" (from 1) of a JSON-lines file, "row 6" (from 0) of anything
    else, with the file's name before it where a folder holds several. `example` quotes the first row, where that helps.
    """

    reason: str
    example: str = ""
    count: int = 0
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.rows) else ""
        example = f"; the first: {self.example!r}" if self.example else ""
        return f"{self.count} {self.reason} ({', '.join(self.rows)}{more}{example})"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values, for a run's manifest."""
        example = {"example": self.example} if self.example else {}
        return {"reason": self.reason, "count": self.count, "rows": list(self.rows), **example}


class RowTally:
    """Counts rows by reason."""

    def __init__(self) -> None:
        self._groups: dict[str, SkippedRows] = {}

    def add(self, reason: str, row: str, example: str = "") -> None:
        """Count a row. row: its place, as `SkippedRows` has it."""
        group = self._groups.setdefault(reason, SkippedRows(reason, example))
        group.count += 1
        if len(group.rows) < LISTED_ROWS:
            group.rows += (row,)

    def result(self) -> tuple[SkippedRows, ...]:
        """Every reason, the most frequent first."""
        return tuple(sorted(self._groups.values(), key=lambda group: -group.count))


@dataclass(frozen=True)
class LoadReport:
    """What became of the rows. `noted` ones were odd but kept.

    `columns_ignored` are the columns besides prompt, chosen and rejected. `text_ignored` counts rows by those of these
    columns, and by those fields of messages, that hold something to read and may not be metadata.
    """

    source: str
    split: str
    rows_read: int
    skipped: tuple[SkippedRows, ...]
    noted: tuple[SkippedRows, ...]
    columns_ignored: tuple[str, ...]
    text_ignored: tuple[SkippedRows, ...]

    @property
    def rows_skipped(self) -> int:
        return sum(group.count for group in self.skipped)

    @property
    def rows_kept(self) -> int:
        return self.rows_read - self.rows_skipped

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values, for a run's manifest."""
        return {
            "source": self.source,
            "split": self.split,
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "rows_skipped": [group.as_dict() for group in self.skipped],
            "rows_noted": [group.as_dict() for group in self.noted],
            "columns_ignored": list(self.columns_ignored),
            "text_ignored": [group.as_dict() for group in self.text_ignored],
        }


@dataclass(frozen=True)
class LoadedPreferences:
    """`dataset` has the columns prompt, chosen, rejected, each a list of messages as `messages.Message` has them."""

    dataset: Dataset
    report: LoadReport


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    strict: bool = False,
    metadata: Collection[str] = (),
) -> LoadedPreferences:
    """Read and check preference data, and report what was skipped and why.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file; a folder of such files or one that `save_to_disk`
            wrote; or a data set on the Hugging Face Hub, `owner/name`. The forms are those of `forms.KNOWN_FORMS`.
        split: which split. A single file is the split `train`.
        subset: the data set's configuration on the Hub, where it has several.
        revision: branch, tag or commit on the Hub.
        strict: refuse data with unusable rows, or with text besides the three columns, instead of one warning.
        metadata: names of further columns, and of fields of messages, that hold no text to train on.

    Raises:
        InputError: nothing there, no such split, no known form or no usable row; with `strict`, a bad row.
    """
    skipped, noted, ignored_text = RowTally(), RowTally(), RowTally()
    columns: set[Any] = set()
    chunks: list[Dataset] = []
    pairs: list[Pair] = []
    read = 0
    for place, row in open_source(source, split=split, subset=subset, revision=revision):
        read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, Mapping):
                raise BadRow("not an object with columns")
            columns.update(row)
            pair = pair_from_row({**row, TOOLS: None} if TOOLS in metadata else row)
        except BadRow as reason:
            skipped.add(str(reason), place)
            continue
        for note in pair.notes:
            noted.add(note, place)
        for name in untrained_text(row, pair, metadata):
            ignored_text.add(name, place)
        pairs.append(pair)
        if len(pairs) == _CHUNK:
            chunks.append(_dataset(pairs))
            pairs = []
    ignored = tuple(sorted(str(name) for name in columns - {*COLUMNS, *({TOOLS} - {*metadata})}))
    report = LoadReport(str(source), split, read, skipped.result(), noted.result(), ignored, ignored_text.result())
    _check(report, columns, strict=strict)
    if pairs:
        chunks.append(_dataset(pairs))
    return LoadedPreferences(concatenate_datasets(with_same_features(chunks)), report)


def _check(report: LoadReport, columns: Iterable[Any], *, strict: bool) -> None:
    """Say what was skipped, or refuse."""
    source, summary = report.source, "; ".join(map(str, report.skipped))
    if not report.rows_read:
        raise InputError(f"{source}: there are no rows in it. Give data with at least a few preference pairs.")
    if not report.rows_kept:
        if not {"chosen", "rejected"} <= set(columns) and columns:
            raise unknown_form(source, columns)
        rename = renaming(columns)
        hint = f" There is no column prompt. {rename}." if " to prompt" in rename else ""
        raise InputError(
            f"{source}: none of its {report.rows_read} rows can be used: {summary}.{hint} The known forms are "
            f"{KNOWN_FORMS}."
        )
    counts = f"{report.rows_skipped} of {report.rows_read} rows"
    if report.skipped and strict:
        raise InputError(
            f"{source}: {counts} cannot be used: {summary}. Mend or remove them, or set strict to false to skip them."
        )
    ignored_text = [*report.text_ignored, *(group for group in report.noted if group.reason == PROMPT_COLUMN_DIFFERS)]
    if ignored_text and strict:
        raise InputError(
            f"{source}: it has rows with text that nothing is trained on, besides prompt, chosen and rejected and role "
            f"and content of messages: {'; '.join(map(str, ignored_text))}. Write it into the messages or remove it, "
            "name what is no text to train on in data.metadata, or set data.strict to false."
        )
    if report.skipped:
        logger.warning("%s: skipped %s: %s", source, counts, summary)
    if report.text_ignored:
        logger.warning(
            "%s: rows with text that nothing is trained on: %s", source, "; ".join(map(str, report.text_ignored))
        )
    if report.noted:
        logger.warning("%s: kept, but odd: %s", source, "; ".join(map(str, report.noted)))


def _dataset(pairs: list[Pair]) -> Dataset:
    columns = {name: [getattr(pair, name) for pair in pairs] for name in COLUMNS}
    tools = any(TOOL_FIELDS in message for column in columns.values() for part in column for message in part)
    return Dataset.from_dict(columns, features=_TOOL_FEATURES if tools else _FEATURES)


def with_same_features(sets: list[Dataset]) -> list[Dataset]:
    """The data sets with tools in the messages of all, if there are some in one of them."""
    if all(each.features == _FEATURES for each in sets):
        return sets
    return [Dataset.from_dict({name: list(each[name]) for name in COLUMNS}, features=_TOOL_FEATURES) for each in sets]
