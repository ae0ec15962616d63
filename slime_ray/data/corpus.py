"""All the data of one experiment, split: demonstrations, training pairs, held-out pairs, and two sets of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, interleave_datasets

from slime_ray.config.evaluation import Evaluation
from slime_ray.config.settings import Data
from slime_ray.data.forms import Messages
from slime_ray.data.preferences import read_preferences, with_same_features
from slime_ray.data.splits import split_pairs, split_prompts
from slime_ray.data.tasks import load_task

EMBEDDED_SFT_EXAMPLES = 6000
EMBEDDED_PAIRS = 1024


@dataclass(frozen=True)
class Corpus:
    """No prompt is in two of the parts, but that the prompts to answer come from the held-out pairs.

    sft: demonstrations with the columns prompt and chosen. train, held_out: pairs with the columns prompt, chosen and
    rejected. prompts: "selection" guides a search, "report" makes the tables. read: what became of the rows, for the
    manifest.
    """

    sft: Dataset
    train: Dataset
    held_out: Dataset
    prompts: Mapping[str, Sequence[Messages]]
    read: dict[str, Any]


def load_corpus(data: Data, evaluation: Evaluation) -> Corpus:
    """Load and split what the settings name. Raises InputError for data that cannot be used or is too little."""
    return _embedded(data, evaluation) if data.task else _preferences(data, evaluation)


def _embedded(data: Data, evaluation: Evaluation) -> Corpus:
    task = load_task(str(data.task))
    sft = task.sft_examples(data.sft_examples or EMBEDDED_SFT_EXAMPLES, seed=data.seed)
    train = task.pairs(data.pairs or EMBEDDED_PAIRS, split="train", seed=data.seed)
    held_out = task.pairs(data.held_out_pairs, split="held_out", seed=data.seed)
    sizes: dict[Any, int] = {"selection": evaluation.selection_prompts, "report": evaluation.prompts}
    prompts = {name: list(task.prompts(size, purpose=name, seed=data.seed)["prompt"]) for name, size in sizes.items()}
    read = {"rows_read": len(sft) + len(train) + len(held_out), "skipped": []}
    return Corpus(sft, train, held_out, prompts, read)


def _preferences(data: Data, evaluation: Evaluation) -> Corpus:
    pairs, read = read_mixture(data)
    sft, train, held_out = split_pairs(
        pairs, sft_fraction=data.sft_fraction, held_out_pairs=data.held_out_pairs, seed=data.seed
    )
    prompts = split_prompts(held_out, selection=evaluation.selection_prompts, report=evaluation.prompts, seed=data.seed)
    return Corpus(_at_most(sft, data.sft_examples), _at_most(train, data.pairs), held_out, prompts, read)


def _at_most(dataset: Dataset, rows: int | None) -> Dataset:
    return dataset if rows is None else dataset.select(range(min(rows, len(dataset))))


def read_mixture(data: Data) -> tuple[Dataset, dict[str, Any]]:
    """Read the data sets that the settings name, as one: all their pairs, or pairs drawn by weight.

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
    sets = with_same_features([each.dataset for each in loaded])
    weights = [entry.weight for entry in data.sources if entry.weight is not None]
    if weights:
        mixed = interleave_datasets(
            # Shuffled, so that the order of a data set does not decide which of its pairs are left out.
            [each.shuffle(seed=data.seed) for each in sets],
            probabilities=[weight / sum(weights) for weight in weights],
            seed=data.seed,
            stopping_strategy="first_exhausted",
        )
    else:
        mixed = concatenate_datasets(sets)
    return mixed, _joint_report(data, [each.report.as_dict() for each in loaded]) | {"pairs_mixed": len(mixed)}


def _joint_report(data: Data, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of the rows of all data sets, as `LoadReport.as_dict` has it of one. Rows have their file's name."""
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
