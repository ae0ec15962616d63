"""Rows: the tensors that a forward pass over preference pairs needs, laid out so that nothing is computed twice.

A pair is one segment `[prompt, chosen, rejected]`: the prompt stands once, both completions follow it, and rejected's
positions start again after the prompt. A row holds one or several segments. Which token may see which follows from
`segment`, `branch` and `position`, all three carried explicitly; nothing is inferred from token ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

PADDING, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2


class Pair(Protocol):
    """Token ids of one pair. SFT examples have an empty `rejected_ids`."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def chosen_ids(self) -> Sequence[int]: ...
    @property
    def rejected_ids(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Rows:
    """One batch, every tensor of shape (rows, tokens) unless said.

    input_ids: token ids, padding 0. position: position ids. segment: number of the pair, -1 for padding. branch:
    prompt, chosen, rejected or padding. predict_at: (completion tokens,) where in the flattened rows the state is that
    predicts each completion token; targets: (completion tokens,) those tokens. Completion tokens are in pair order, all
    chosen before all rejected. chosen_lengths, rejected_lengths: (pairs,) tokens per completion.
    shared_prompt: whether chosen and rejected of a pair share a row, which takes a custom attention mask.
    """

    input_ids: torch.Tensor
    position: torch.Tensor
    segment: torch.Tensor
    branch: torch.Tensor
    predict_at: torch.Tensor
    targets: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    shared_prompt: bool

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Rows":
        """The same rows on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking) if torch.is_tensor(value) else value
            for field in fields(self)
            for value in (getattr(self, field.name),)
        }
        return Rows(**moved)

    @property
    def counts(self) -> dict[str, int]:
        """Pairs, chosen tokens and rejected tokens: what an objective's terms are divided by."""
        return {
            "pairs": len(self.chosen_lengths),
            "chosen_tokens": int(self.chosen_lengths.sum()),
            "rejected_tokens": int(self.rejected_lengths.sum()),
        }

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.branch != PADDING).sum())


def pack(pairs: Sequence[Pair], *, row_tokens: int = 0, shared_prompt: bool = True) -> Rows:
    """Lay pairs out in rows.

    row_tokens: segments share a row while they fit into so many tokens (first fit); 0 gives every segment a row of its
    own. shared_prompt: one segment a pair, or, for architectures that take no custom mask, one row a completion.
    """
    if not pairs:
        raise ValueError("pairs is empty: a batch needs at least one pair")
    if not shared_prompt:
        row_tokens = 0
    sequences = _sequences(pairs, shared_prompt)
    rows: list[list[tuple[int, int]]] = []  # per row: (sequence, offset)
    used: list[int] = []
    for index, (_, parts) in enumerate(sequences):
        length = sum(len(ids) for _, ids in parts)
        place = next((row for row, taken in enumerate(used) if taken + length <= row_tokens), None)
        if place is None:
            rows.append([])
            used.append(0)
            place = len(rows) - 1
        rows[place].append((index, used[place]))
        used[place] += length

    width = max(used)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    position = torch.arange(width).repeat(len(rows), 1)
    segment = torch.full((len(rows), width), -1, dtype=torch.long)
    branch = torch.full((len(rows), width), PADDING, dtype=torch.long)
    predictors: dict[tuple[int, int], torch.Tensor] = {}
    for row, members in enumerate(rows):
        for index, offset in members:
            pair, parts = sequences[index]
            prompt_length = len(parts[0][1])
            prompt_end = row * width + offset + prompt_length - 1
            for kind, ids in parts:
                end = offset + len(ids)
                input_ids[row, offset:end] = torch.tensor(ids, dtype=torch.long)
                start_position = 0 if kind == PROMPT else prompt_length
                position[row, offset:end] = torch.arange(start_position, start_position + len(ids))
                segment[row, offset:end] = pair
                branch[row, offset:end] = kind
                if kind != PROMPT and len(ids):
                    # The prompt's last token predicts the first of either completion; then each token its next.
                    before = torch.arange(row * width + offset - 1, row * width + end - 1)
                    before[0] = prompt_end
                    predictors[pair, kind] = before
                offset = end
    order = [(pair, kind) for kind in (CHOSEN, REJECTED) for pair in range(len(pairs)) if (pair, kind) in predictors]
    targets = [pairs[pair].chosen_ids if kind == CHOSEN else pairs[pair].rejected_ids for pair, kind in order]
    return Rows(
        input_ids=input_ids,
        position=position,
        segment=segment,
        branch=branch,
        predict_at=torch.cat([predictors[key] for key in order]),
        targets=torch.tensor([token for ids in targets for token in ids], dtype=torch.long),
        chosen_lengths=torch.tensor([len(pair.chosen_ids) for pair in pairs]),
        rejected_lengths=torch.tensor([len(pair.rejected_ids) for pair in pairs]),
        shared_prompt=shared_prompt,
    )


def _sequences(pairs: Sequence[Pair], shared_prompt: bool) -> list[tuple[int, list[tuple[int, Sequence[int]]]]]:
    """(pair, [(branch, ids), ...]) of every sequence that must be laid out."""
    sequences = []
    for index, pair in enumerate(pairs):
        if not pair.prompt_ids or not pair.chosen_ids:
            raise ValueError(f"pair {index} has an empty prompt or an empty chosen completion")
        prompt, chosen, rejected = (PROMPT, pair.prompt_ids), (CHOSEN, pair.chosen_ids), (REJECTED, pair.rejected_ids)
        if shared_prompt or not pair.rejected_ids:
            sequences.append((index, [prompt, chosen, rejected]))
        else:
            sequences += [(index, [prompt, chosen]), (index, [prompt, rejected])]
    return sequences
