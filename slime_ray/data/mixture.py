"""Several data sets as one: all their pairs, or pairs drawn by weight."""

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, interleave_datasets

from slime_ray.config.settings import Data
from slime_ray.data.preferences import LoadedPreferences, read_preferences, with_same_features


def read_mixture(data: Data) -> tuple[Dataset, dict[str, Any]]:
    """Read the data sets that the settings name, as one.

    Returns:
        The pairs, and what became of the rows as JSON values.

    Raises:
        InputError: one of them cannot be used, as `read_preferences` has it.
    """
    loaded = [
        read_preferences(
            entry.source, split=entry.split or data.split, subset=entry.subset, revision=entry.revision,
            strict=data.strict, metadata=data.metadata,
        )
        for entry in data.sources
    ]  # fmt: skip
    if isinstance(data.train, str):
        return loaded[0].dataset, loaded[0].report.as_dict()
    weights = [entry.weight for entry in data.sources]
    sets = with_same_features([each.dataset for each in loaded])
    mixed = mix_pairs(sets, [weight for weight in weights if weight is not None], seed=data.seed)
    return mixed, _joint_report(data, loaded) | {"pairs_mixed": len(mixed)}


def mix_pairs(sets: list[Dataset], weights: list[float], *, seed: int) -> Dataset:
    """All pairs of all data sets, or with weights those drawn before the first data set is used up.

    Each data set is shuffled before, so that its order does not decide which pairs are left out.
    """
    if not weights:
        return concatenate_datasets(sets)
    return interleave_datasets(
        [each.shuffle(seed=seed) for each in sets],
        probabilities=[weight / sum(weights) for weight in weights],
        seed=seed,
        stopping_strategy="first_exhausted",
    )


def _joint_report(data: Data, loaded: list[LoadedPreferences]) -> dict[str, Any]:
    """What became of the rows of all data sets, as `LoadReport.as_dict` has it of one. Rows have their file's name."""
    reports = [each.report.as_dict() for each in loaded]
    for entry, report in zip(data.sources, reports, strict=True):
        name = Path(entry.source).name if Path(entry.source).is_absolute() else entry.source
        for groups in (report[kind] for kind in ("rows_skipped", "rows_noted", "text_ignored")):
            for group in groups:
                group["rows"] = [f"{name} {row}" for row in group["rows"]]
    joint: dict[str, Any] = {
        "source": data.label,
        "sources": [
            {"source": entry.source, "split": report["split"], "weight": entry.weight, "rows_kept": report["rows_kept"]}
            for entry, report in zip(data.sources, reports, strict=True)
        ],
    }
    for kind in ("rows_read", "rows_kept"):
        joint[kind] = sum(report[kind] for report in reports)
    for kind in ("rows_skipped", "rows_noted", "text_ignored"):
        joint[kind] = [group for report in reports for group in report[kind]]
    joint["columns_ignored"] = sorted({name for report in reports for name in report["columns_ignored"]})
    return joint
