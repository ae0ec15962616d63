"""The settings of an adapter of peft's that goes on being trained, from its own configuration."""

import json
from pathlib import Path
from typing import Any

READ = {
    "r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora", "lora_dropout": "dropout",
    "target_modules": "targets",
}  # fmt: skip
"""peft's names and ours."""
PASSED = frozenset(
    {
        "base_model_name_or_path", "revision", "auto_mapping", "peft_type", "task_type", "peft_version",
        "inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""What says nothing of what is trained, or is looked at when the adapter is laid on its base."""
FRESH = (True, False, "gaussian", "orthogonal")
"""Ways to begin that leave the base as it is."""


def kept_adapter(source: str) -> dict[str, Any]:
    """Read the settings of `lora: keep`.

    Args:
        source: The adapter's folder.

    Raises:
        ValueError: There is no such adapter, or it trains what these settings do not say. Without a full stop.
    """
    file = Path(source) / "adapter_config.json"
    if not file.is_file():
        raise ValueError(
            f"lora is keep, and model.source {source} is no adapter's folder: it has no {file.name}. Give one "
            "(download an adapter that is on a hub), or the settings of new adapters"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, targets = content.get("peft_type"), content.get("target_modules")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"lora is keep, and {file} cannot be read: {error}. Copy the adapter again") from None
    more = {name: value for name, value in content.items() if value and name not in {*READ, *PASSED}}
    if more.get("bias") == "none":
        del more["bias"]
    if content.get("init_lora_weights", True) in FRESH:
        more.pop("init_lora_weights", None)
    reason = f"it sets {', '.join(sorted(more))}" if more else ""
    if not isinstance(targets, list):
        reason = "its target_modules are no list of layers"
    if kind != "LORA":
        reason = f"it is of type {kind}"
    if reason:
        raise ValueError(
            f"lora is keep, and {file} is of an adapter that cannot go on being trained here: {reason}. Have it merged "
            "instead: give the settings of new adapters"
        )
    values = {ours: content[theirs] for theirs, ours in READ.items() if theirs in content}
    return {**values, "alpha": float(values.get("alpha", 8)), "targets": sorted(targets), "kept": True}
