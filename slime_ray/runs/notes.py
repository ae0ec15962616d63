"""Notes on data and model for progress and reports, from what a run's manifest keeps. Imports nothing heavy."""

from collections.abc import Iterable, Mapping
from typing import Any

MOST_EXAMPLES = 3
"""Rows that are named on a line; the manifest has more."""
MOST_LAYERS = 6
"""Layers without adapters that are named."""
PARTS = {
    "sft": "SFT examples",
    "train": "training pairs",
    "held_out": "held-out pairs",
    "selection_prompts": "selection prompts",
    "report_prompts": "report prompts",
}


def data_notes(data: Mapping[str, Any]) -> list[str]:
    """Say what of the data is not trained on as it is, a line each.

    data: as the manifest keeps it; one of an earlier version has less in it.
    """
    notes = []
    if skipped_rows := _groups(data.get("rows_skipped")):
        count = sum(group["count"] for group in skipped_rows)
        notes.append(f"{count} of {data.get('rows_read')} rows are left out: {_words(skipped_rows)}.")
    mixed_pairs, usable_pairs = data.get("pairs_mixed"), data.get("rows_kept")
    if isinstance(mixed_pairs, int) and isinstance(usable_pairs, int) and mixed_pairs < usable_pairs:
        notes.append(
            f"{mixed_pairs} of {usable_pairs} pairs are drawn by the weights of data.train, the others are left out."
        )
    if odd_rows := _groups(data.get("rows_noted")):
        notes.append(f"rows that are odd but kept: {_words(odd_rows)}.")
    ignored_text = _groups(data.get("text_ignored"))
    if ignored_text:
        notes.append(
            f"rows with text that nothing is trained on: {_words(ignored_text)}. Write it into the messages, or name "
            "what is no text to train on in data.metadata."
        )
    columns = data.get("columns_ignored")
    ignored_columns = {group["reason"].removeprefix("with a column ") for group in ignored_text}
    if columns := [str(name) for name in columns if name not in ignored_columns] if isinstance(columns, list) else []:
        notes.append(f"other columns are not read: {', '.join(columns)}.")
    for part, report in (data.get("truncated") or {}).items():
        if not isinstance(report, Mapping):
            continue
        rows = f"of {report.get('rows_read')} {PARTS.get(part, part)}"
        if report.get("rows_dropped"):
            dropped_rows = _groups(report.get("dropped"))
            reason = f": {_words(dropped_rows)}." if dropped_rows else "; manifest.json says which."
            notes.append(f"{report['rows_dropped']} {rows} are left out{reason}")
        if changed_rows := _groups(report.get("changed")):
            notes.append(f"{rows} some are changed: {_words(changed_rows)}.")
    return [f"Data: {note}" for note in notes]


def _groups(value: Any) -> list[Mapping[str, Any]]:
    """The groups of rows in a list of the manifest; whatever else is there is passed over."""
    kinds = {"count": int, "reason": str}
    return [
        group
        for group in (value if isinstance(value, list) else [])
        if isinstance(group, Mapping) and all(isinstance(group.get(key), kind) for key, kind in kinds.items())
    ]


def _words(groups: Iterable[Mapping[str, Any]]) -> str:
    words = []
    for group in groups:
        rows = [str(row) for row in group["rows"]] if isinstance(group.get("rows"), list) else []
        more = ", ..." if group["count"] > MOST_EXAMPLES and rows else ""
        example = f"; the first: {group['example']!r}" if group.get("example") else ""
        words.append(f"{group['count']} {group['reason']} ({', '.join(rows[:MOST_EXAMPLES])}{more}{example})")
    return "; ".join(words)


def model_notes(data: Mapping[str, Any]) -> list[str]:
    """Say what a user should know of the model, its adapters and its dropout. data: as the manifest keeps it."""
    notes = [f"Model: {note}" for note in data.get("model_notes", ())]
    notes += [_adapter_note(stage, adapters) for stage, adapters in (data.get("adapters") or {}).items()]
    if rates := ", ".join(f"{name} {rate:g}" for name, rate in (data.get("dropout") or {}).items()):
        state = (
            "on in training: losses depend on the draw"
            if data.get("dropout_on")
            else "off in training; model.dropout: true keeps it"
        )
        notes.append(f"Dropout of the model's configuration ({rates}) is {state}.")
    return notes


def _adapter_note(stage: str, adapters: Mapping[str, Any]) -> str:
    bare_layers, outside = adapters["not_adapted"], ""
    if adapters["outside"]:
        outside = f" {adapters['outside']} layers of these names outside it, where no text passes, have none."
    if not bare_layers:
        return f"Adapters ({stage}) are on all linear weights of the decoder.{outside}"
    names = [f"{name} ({share:.1%})" for name, share in bare_layers.items()]
    more = f" and {len(names) - MOST_LAYERS} more" if len(names) > MOST_LAYERS else ""
    targets = f"name them in {stage}.targets, or give all-linear"
    way = f"set {stage}.dropout to 0" if adapters["barred_by_dropout"] else targets
    absent = f" No layer is called {', '.join(adapters['unmatched_targets'])}." if adapters["unmatched_targets"] else ""
    return (
        f"Adapters ({stage}) are on {adapters['share']:.1%} of the decoder's linear weights. None on "
        f"{', '.join(names[:MOST_LAYERS])}{more}: {way}.{absent}{outside}"
    )
