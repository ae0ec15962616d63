"""Checks of stages: tokens that the model takes, finite numbers, and a saved model that is the trained one."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from transformers import AutoTokenizer

from slime_ray.config.settings import Settings
from slime_ray.data.pairs import ID_COLUMNS, map_pairs
from slime_ray.data.tokenizing import render_prompts
from slime_ray.errors import InputError
from slime_ray.evaluation.conversations import Prompt
from slime_ray.model.limits import Limits
from slime_ray.runs.results import RETENTION
from slime_ray.training.prompts import PROMPT_SETS, read_prompts

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean difference, in nats a token, that rounding may cause. Measured on merged adapters: 1e-6 and 0.008."""
PARTS = ("sft", "train", "held_out")
"""Files of tokenized pairs, as the tokens stage writes them."""


def check_update(step: int, metrics: Mapping[str, float], settings: Settings) -> None:
    """Raise InputError at the first update of SFT whose loss or gradient norm is not finite."""
    broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics.get(name, 0.0))]
    if not broken or settings.sft is None:
        return
    first = f"These are the numbers of the model before any training: check the weights of {settings.model.source}"
    later = f"Lower sft.learning_rate ({settings.sft.learning_rate:g}), or set sft.max_grad_norm"
    raise InputError(
        f"The SFT stage was ended at update {step} and is not kept: {broken[0].replace('_', ' ')} became "
        f"{metrics[broken[0]]}. {first if step <= 1 else later}, and model.dtype ({settings.model.dtype})."
    )


def check_finite(chosen: np.ndarray, rejected: np.ndarray, pairs: str, settings: Settings) -> None:
    """Raise InputError where the model that all trials start from gives log-probabilities that are not finite.

    chosen, rejected: (pairs,) sums or means. pairs: what they were measured on, in words.
    """
    if bad := int((~np.isfinite(chosen + rejected)).sum()):
        raise InputError(
            f"{_start(settings)} gives log-probabilities that are not finite, on {bad} of {len(chosen)} {pairs} pairs. "
            f"{_way_out(settings)}"
        )


def no_answers(settings: Settings) -> InputError:
    """What is wrong with a model whose logits are not numbers while it answers."""
    return InputError(
        f"{_start(settings)} gives logits that are not numbers, so the baseline has no answers. {_way_out(settings)}"
    )


def _start(settings: Settings) -> str:
    return "The SFT checkpoint" if settings.sft else f"model.source {settings.model.source}"


def _way_out(settings: Settings) -> str:
    sft = f"Lower sft.learning_rate ({settings.sft.learning_rate:g}), or check" if settings.sft else "Check"
    return f"{sft} the weights of {settings.model.source} and model.dtype ({settings.model.dtype})."


def check_trained(trained: np.ndarray, settings: Settings) -> None:
    """Raise InputError where a trained model's log-probabilities are not finite, before it is saved."""
    if not np.isfinite(trained).all():
        raise InputError(f"{_start(settings)} gives log-probabilities that are not finite. {_way_out(settings)}")


def check_saved(trained: np.ndarray, saved: np.ndarray, settings: Settings) -> None:
    """Raise InputError where a saved model is not the one that was trained.

    trained, saved: (tokens,) log-probabilities of the same tokens, in nats.
    """
    dtype = settings.model.dtype
    difference, tolerance = float(np.abs(trained - saved).mean()), TOLERANCES[dtype]
    if difference <= tolerance:
        return
    raise InputError(
        f"The model that was saved is not the one that was trained: on {len(trained)} tokens of the training data "
        f"their log-probabilities differ by {difference:.3g} nats a token, where {dtype} allows {tolerance:g}. Nothing "
        "of it is kept. Train other layers (lora.targets), or every weight (lora: null)."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Ids and positions that the tokens ask for


def check_reach(limits: Limits, tokens: Path, *, max_new_tokens: int) -> None:
    """Raise InputError where the tokens, or the longest answers, go beyond a model's ids or positions.

    tokens: folder of the tokens stage. max_new_tokens: length of the longest answer.
    """
    for name in PARTS:
        if (path := tokens / f"{name}.arrow").is_file():
            _check_pairs(limits, path, name, tokens)
    retention = (RETENTION,) if (tokens / f"prompts-{RETENTION}.parquet").is_file() else ()
    for name in (*PROMPT_SETS, *retention):
        prompts = read_prompts(tokens / f"prompts-{name}.parquet")
        for number, prompt in enumerate(prompts):
            _check_id(limits, max(prompt.token_ids, default=0), f"{name} prompt {number}", tokens)
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


def _longest_prompts(prompts: Sequence[Prompt], max_new_tokens: int, tokens: Path) -> Iterator[int]:
    """Tokens that each prompt may come to: a later turn follows on the answers to those before."""
    tokenizer: Any = None
    for prompt in prompts:
        if not prompt.later:
            yield len(prompt.token_ids)
            continue
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(tokens / "tokenizer", local_files_only=True)
        conversation = list(prompt.messages)
        for question in prompt.later:
            conversation += [{"role": "assistant", "content": "?"}, {"role": "user", "content": question}]
        (whole,) = render_prompts(tokenizer, [conversation])
        yield len(whole) + len(prompt.later) * max_new_tokens
