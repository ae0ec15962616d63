"""Splits of preference data that share no prompt: for SFT, for preference training, and held out."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset

from slime_ray.data.forms import Messages
from slime_ray.data.messages import TOOL_FIELDS
from slime_ray.errors import InputError

logger = logging.getLogger(__name__)

_BATCH = 1000


def split_pairs(
    dataset: Dataset, *, sft_fraction: float, held_out_pairs: int, seed: int
) -> tuple[Dataset, Dataset, Dataset]:
    """Split pairs by prompt: `held_out_pairs` first, then `sft_fraction` of the others, then the rest.

    All pairs of one prompt go to the same split, so sizes are as near to those asked for as the groups allow.
    Groups are dealt in the order of a seeded hash of their prompt, and rows stand in that order too: neither
    the assignment nor the order of a split's rows depends on the order of `dataset`.

    Returns:
        Pairs for SFT, for preference training, and held out.

    Raises:
        InputError: too few pairs or too few different prompts for every split to have one.
    """
    pairs, sft_needed = len(dataset), int(sft_fraction > 0)
    most = pairs - 1 - sft_needed
    if held_out_pairs > most:
        way_out = f"at most {most}; {max(1, pairs // 5)} would be a fifth" if most > 0 else "none: add data"
        raise InputError(
            f"There are {pairs} pairs, too few to hold out {held_out_pairs} and train on the others. Lower "
            f"data.held_out_pairs ({way_out}), or give more data."
        )
    groups = _groups(dataset, seed)
    held_out, rest = _take(groups, held_out_pairs)
    remaining = sum(map(len, rest))
    sft, train = _take(rest, round(sft_fraction * remaining) or sft_needed)
    empty = [
        name
        for name, needed, part in (
            ("held-out", held_out_pairs, held_out),
            ("SFT", sft_needed, sft),
            ("preference training", 1, train),
        )
        if needed and not part
    ]
    if empty:
        raise InputError(
            f"{pairs} pairs with {len(groups)} different prompts leave no pair for {' and '.join(empty)}: pairs of one "
            f"prompt stay together. Change data.sft_fraction ({sft_fraction}) or data.held_out_pairs "
            f"({held_out_pairs}), or give data with more prompts."
        )
    parts = [dataset.select([row for group in part for row in group]) for part in (sft, train, held_out)]
    return parts[0], parts[1], parts[2]


def split_prompts(held_out: Dataset, *, selection: int, report: int, seed: int) -> dict[str, Sequence[Messages]]:
    """Return two disjoint sets of prompts: "selection" for the search, "report" for tables.

    They come from `held_out`, and have the sizes asked for where there are enough.
    With fewer prompts both shrink in proportion, each keeping at least one, and a warning tells the sizes.
    The order is that of a seeded hash, so it does not depend on the order of rows.

    Raises:
        InputError: fewer than two different prompts.
    """
    by_hash: dict[str, Messages] = {}
    for row in rows_of(held_out.select_columns("prompt")):
        by_hash.setdefault(_seeded(seed, prompt_hash(row["prompt"])), row["prompt"])
    prompts = [by_hash[key] for key in sorted(by_hash)]
    if len(prompts) < 2:
        raise InputError(
            f"The held-out pairs have {len(prompts)} different prompts, but answers are compared on two disjoint sets "
            "of them. Raise data.held_out_pairs, or give data with more prompts."
        )
    total = selection + report
    if len(prompts) < total:
        requested = selection
        selection = min(max(1, round(len(prompts) * selection / total)), len(prompts) - 1)
        logger.warning(
            "The held-out pairs have %d different prompts, fewer than the %d asked for: %d serve for selection (%d "
            "asked), %d for reports (%d asked). Set evaluation.selection_prompts and evaluation.prompts to what there "
            "is, or raise data.held_out_pairs.",
            len(prompts), total, selection, requested, len(prompts) - selection, report,
        )  # fmt: skip
        report = len(prompts) - selection
    return {"selection": prompts[:selection], "report": prompts[selection : selection + report]}


def prompt_hash(messages: Messages) -> str:
    """16 hexadecimal digits of SHA-256 over the canonical JSON of a prompt: roles, contents and tools."""
    names = ("role", "content", TOOL_FIELDS)
    return _digest(_canonical([{name: message[name] for name in names if name in message} for message in messages]))


def content_hash(dataset: Dataset) -> str:
    """16 hexadecimal digits of SHA-256 over the canonical JSON of every row, in order."""
    digest = hashlib.sha256()
    for row in rows_of(dataset):
        digest.update(_canonical(row))
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _groups(dataset: Dataset, seed: int) -> list[list[int]]:
    """Row numbers by prompt, in seeded order; within a group in the order of the rows' own hashes."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for number, row in enumerate(rows_of(dataset)):
        key = _seeded(seed, prompt_hash(row["prompt"]))
        groups.setdefault(key, []).append((_digest(_canonical(row)), number))
    return [[number for _, number in sorted(groups[key])] for key in sorted(groups)]


def _take(groups: list[list[int]], target: int) -> tuple[list[list[int]], list[list[int]]]:
    """Split groups in two: as near to `target` rows as their order allows, and the rest."""
    first, rest, count = [], [], 0
    for group in groups:
        if count + len(group) <= target:
            first.append(group)
            count += len(group)
        else:
            rest.append(group)
    if rest and count < target:
        nearest = min(rest, key=lambda group: abs(count + len(group) - target))
        if abs(count + len(nearest) - target) < target - count:
            first.append(nearest)
            rest.remove(nearest)
    return first, rest


def rows_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as plain values; through Arrow, which is up to twice as fast as iterating over the data set."""
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        yield from rows_in(table)


def rows_in(table: Any) -> list[dict[str, Any]]:
    """Rows of an Arrow table or batch, their messages without the nulls for what only other messages have."""
    rows: list[dict[str, Any]] = table.to_pylist()
    if TOOL_FIELDS in str(table.schema):
        rows = [{name: _present(cell) for name, cell in row.items()} for row in rows]
    return rows


def _present(cell: Any) -> Any:
    if not isinstance(cell, list):
        return cell
    return [{name: text for name, text in message.items() if text is not None} for message in cell]


def _seeded(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
