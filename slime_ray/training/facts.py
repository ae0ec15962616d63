"""What a run tells about its model, from the facts that its manifest keeps. Nothing heavy is imported here."""

from collections.abc import Mapping
from typing import Any

NAMED = 6
"""Layers without adapters that are named."""


def model_lines(data: Mapping[str, Any]) -> list[str]:
    """What a user should know of the model, its adapters and its dropout. data: as the manifest keeps it."""
    lines = [f"Model: {note}" for note in data.get("model_notes", ())]
    lines += [_adapters(stage, found) for stage, found in (data.get("adapters") or {}).items()]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in (data.get("dropout") or {}).items())
    if rates and data.get("dropout_on"):
        lines.append(f"Dropout of the model's configuration ({rates}) is on in training: losses depend on the draw.")
    elif rates:
        lines.append(
            f"Dropout of the model's configuration ({rates}) is off in training; model.dropout: true keeps it."
        )
    return lines


def _adapters(stage: str, found: Mapping[str, Any]) -> str:
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
