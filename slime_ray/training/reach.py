"""What the tokens of an experiment ask of a model: ids that it has embeddings for, and positions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from transformers import AutoTokenizer

from slime_ray.data.pairs import ID_COLUMNS, map_pairs
from slime_ray.data.tokenizing import render_prompts
from slime_ray.evaluation.conversations import Prompts
from slime_ray.model.limits import Limits
from slime_ray.runs.results import RETENTION
from slime_ray.training.prompts import PROMPT_SETS, read_prompts

PARTS = ("sft", "train", "held_out")
"""Files of tokenized pairs, as the tokens stage writes them."""


def check_reach(limits: Limits, tokens: Path, *, max_new_tokens: int) -> None:
    """Raise InputError where the tokens, or the longest answers, go beyond a model's ids or positions.

    Args:
        limits: The model's.
        tokens: Folder of the tokens stage.
        max_new_tokens: Length of the longest answer.
    """
    for name in PARTS:
        if (path := tokens / f"{name}.arrow").is_file():
            _check_pairs(limits, path, name, tokens)
    retention = (RETENTION,) if (tokens / f"prompts-{RETENTION}.parquet").is_file() else ()
    for name in (*PROMPT_SETS, *retention):
        prompts = read_prompts(tokens / f"prompts-{name}.parquet")
        for number, ids in enumerate(prompts.token_ids):
            _check_id(limits, max(ids, default=0), f"{name} prompt {number}", tokens)
        if limits.positions is not None:
            for number, length in enumerate(_longest_prompts(prompts, max_new_tokens, tokens)):
                limits.check_answer(length, max_new_tokens, f"{name} prompt {number}")


def _check_pairs(limits: Limits, path: Path, part: str, tokens: Path) -> None:
    table = map_pairs(path)
    columns = {name: table[name] for name in ID_COLUMNS}
    for column in columns.values():
        flat = pc.list_flatten(column)
        largest = pc.max(flat).as_py() if len(flat) else 0
        if largest is not None and largest >= limits.ids:
            rows = pc.list_parent_indices(column.combine_chunks())
            _check_id(limits, largest, f"{part} row {rows[pc.index(flat, largest).as_py()].as_py()}", tokens)
    prompts = pc.list_value_length(columns["prompt_ids"])
    for name in list(columns)[1:]:
        lengths = pc.add(prompts, pc.list_value_length(columns[name]))
        longest = pc.max(lengths).as_py() or 0
        limits.check_length(
            longest,
            f"{part} row {pc.index(lengths, longest).as_py()} ({name.removesuffix('_ids')})",
            f"Set data.max_tokens to {limits.positions} or less.",
        )


def _check_id(limits: Limits, largest: int, place: str, tokens: Path) -> None:
    if largest < limits.ids:
        return
    tokenizer: Any = AutoTokenizer.from_pretrained(tokens / "tokenizer", local_files_only=True)
    limits.check_ids(largest, place, tokenizer.convert_ids_to_tokens(largest))


def _longest_prompts(prompts: Prompts, max_new_tokens: int, tokens: Path) -> Iterator[int]:
    """Tokens that each prompt may come to: a later turn follows on the answers to those before."""
    tokenizer: Any = None
    for ids, messages, later in zip(prompts.token_ids, prompts.messages, prompts.later, strict=True):
        if not later:
            yield len(ids)
            continue
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(tokens / "tokenizer", local_files_only=True)
        conversation = list(messages)
        for question in later:
            conversation += [{"role": "assistant", "content": "?"}, {"role": "user", "content": question}]
        (whole,) = render_prompts(tokenizer, [conversation])
        yield len(whole) + len(later) * max_new_tokens
