"""Sentences about data and model, from the facts that a run's manifest keeps. Nothing heavy is imported here."""

from collections.abc import Iterable, Mapping
from typing import Any

LISTED = 3
"""Rows that are named on a line; the manifest has more."""
PARTS = {
    "sft": "SFT examples",
    "train": "training pairs",
    "held_out": "held-out pairs",
    "selection_prompts": "selection prompts",
    "report_prompts": "report prompts",
}


def data_lines(data: Mapping[str, Any]) -> list[str]:
    """What of the data is not trained on as it was given, a line each.

    data: as the manifest keeps it; one of an earlier version has less in it.
    """
    lines = []
    if skipped := _groups(data.get("rows_skipped")):
        count = sum(group["count"] for group in skipped)
        lines.append(f"Data: {count} of {data.get('rows_read')} rows are left out: {_words(skipped)}.")
    if noted := _groups(data.get("rows_noted")):
        lines.append(f"Data: rows that are odd but kept: {_words(noted)}.")
    if ignored := _groups(data.get("text_ignored")):
        lines.append(
            f"Data: rows with text that nothing is trained on: {_words(ignored)}. Write it into the messages, or name "
            "what is no text to train on in data.metadata."
        )
    named = {group["reason"].removeprefix("with a column ") for group in ignored}
    columns = data.get("columns_ignored")
    if columns := [str(name) for name in columns if name not in named] if isinstance(columns, list) else []:
        lines.append(f"Data: other columns are not read: {', '.join(columns)}.")
    for part, report in (data.get("truncated") or {}).items():
        if isinstance(report, Mapping):
            lines += _of_part(PARTS.get(part, str(part)), report)
    return lines


def _of_part(part: str, report: Mapping[str, Any]) -> list[str]:
    lines = []
    of = f"of {report.get('rows_read')} {part}"
    if report.get("rows_dropped"):
        why = f": {_words(groups)}." if (groups := _groups(report.get("dropped"))) else "; manifest.json says which."
        lines.append(f"Data: {report['rows_dropped']} {of} are left out{why}")
    if changed := _groups(report.get("changed")):
        lines.append(f"Data: {of} some are changed: {_words(changed)}.")
    return lines


def _groups(value: Any) -> list[Mapping[str, Any]]:
    """The groups of rows in a list of the manifest; whatever else stands there is passed over."""
    groups = value if isinstance(value, list) else []
    return [
        group
        for group in groups
        if isinstance(group, Mapping) and isinstance(group.get("count"), int) and isinstance(group.get("reason"), str)
    ]


def _words(groups: Iterable[Mapping[str, Any]]) -> str:
    return "; ".join(map(_group, groups))


def _group(group: Mapping[str, Any]) -> str:
    rows = [str(row) for row in group["rows"]] if isinstance(group.get("rows"), list) else []
    more = ", ..." if group["count"] > LISTED and rows else ""
    example = f"; the first: {group['example']!r}" if group.get("example") else ""
    return f"{group['count']} {group['reason']} ({', '.join(rows[:LISTED])}{more}{example})"


NAMED = 6
"""Layers without adapters that are named."""


def model_lines(data: Mapping[str, Any]) -> list[str]:
    """What a user should know of the model, its adapters and its dropout. data: as the manifest keeps it."""
    lines = [f"Model: {note}" for note in data.get("model_notes", ())]
    lines += [_adapter_line(stage, found) for stage, found in (data.get("adapters") or {}).items()]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in (data.get("dropout") or {}).items())
    if rates and data.get("dropout_on"):
        lines.append(f"Dropout of the model's configuration ({rates}) is on in training: losses depend on the draw.")
    elif rates:
        lines.append(
            f"Dropout of the model's configuration ({rates}) is off in training; model.dropout: true keeps it."
        )
    return lines


def _adapter_line(stage: str, found: Mapping[str, Any]) -> str:
    missed, outside = found["not_adapted"], ""
    if found["outside"]:
        outside = f" {found['outside']} layers of these names outside it, where no text passes, have none."
    if not missed:
        return f"Adapters ({stage}) are on all linear weights of the decoder.{outside}"
    names = [f"{name} ({share:.1%})" for name, share in missed.items()]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    way = (
        f"set {stage}.dropout to 0"
        if found["barred_by_dropout"]
        else f"name them in {stage}.targets, or give all-linear"
    )
    absent = f" No layer is called {', '.join(found['unmatched_targets'])}." if found["unmatched_targets"] else ""
    return (
        f"Adapters ({stage}) are on {found['share']:.1%} of the decoder's linear weights. None on "
        f"{', '.join(names[:NAMED])}{more}: {way}.{absent}{outside}"
    )
