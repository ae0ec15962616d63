"""All the data of one experiment, split: demonstrations, training pairs, held-out pairs, and two sets of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from slime_ray.config.evaluation import Evaluation
from slime_ray.config.settings import Data
from slime_ray.data.forms import Messages
from slime_ray.data.mixture import read_mixture
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
    prompts: dict[str, Sequence[Messages]]
    read: dict[str, Any]


def load_corpus(data: Data, evaluation: Evaluation) -> Corpus:
    """Load and split what the settings name. Raises InputError for data that cannot be used or is too little."""
    return _embedded(data, evaluation) if data.task else _preferences(data, evaluation)


def _embedded(data: Data, evaluation: Evaluation) -> Corpus:
    task = load_task(str(data.task))
    sft = task.sft_examples(data.sft_examples or EMBEDDED_SFT_EXAMPLES, seed=data.seed)
    train = task.pairs(data.pairs or EMBEDDED_PAIRS, split="train", seed=data.seed)
    held_out = task.pairs(data.held_out_pairs, split="held_out", seed=data.seed)
    prompts: dict[str, Sequence[Messages]] = {
        "selection": list(task.prompts(evaluation.selection_prompts, purpose="selection", seed=data.seed)["prompt"]),
        "report": list(task.prompts(evaluation.prompts, purpose="report", seed=data.seed)["prompt"]),
    }
    read = {"rows_read": len(sft) + len(train) + len(held_out), "skipped": []}
    return Corpus(sft, train, held_out, prompts, read)


def _preferences(data: Data, evaluation: Evaluation) -> Corpus:
    pairs, read = read_mixture(data)
    splits = split_pairs(pairs, sft_fraction=data.sft_fraction, held_out_pairs=data.held_out_pairs, seed=data.seed)
    prompts = split_prompts(
        splits.held_out, selection=evaluation.selection_prompts, report=evaluation.prompts, seed=data.seed
    )
    return Corpus(
        sft=_at_most(splits.sft, data.sft_examples),
        train=_at_most(splits.train, data.pairs),
        held_out=splits.held_out,
        prompts={"selection": prompts.selection, "report": prompts.report},
        read=read,
    )


def _at_most(dataset: Dataset, rows: int | None) -> Dataset:
    return dataset if rows is None else dataset.select(range(min(rows, len(dataset))))
