"""Rows: the tensors that a forward pass over preference pairs needs, laid out so that nothing is computed twice.

A pair is one segment `[prompt, chosen, rejected]`: the prompt stands once, both completions follow it, and rejected's
positions start again after the prompt. A row holds as many segments as its token budget takes, end to end and without
padding. Which token may see which follows from the lengths of the segments, never from token ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import torch


class PairTokens(Protocol):
    """Token ids of one pair. SFT examples have an empty `rejected_ids`."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def chosen_ids(self) -> Sequence[int]: ...
    @property
    def rejected_ids(self) -> Sequence[int]: ...


class Segment(NamedTuple):
    """Lengths in tokens of one pair's parts, in the order in which they lie in the row."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Spans:
    """The sequences of a packed row as variable-length attention takes them, two for a pair.

    The first is prompt and chosen. The second is rejected, whose keys are those of the prompt and its own; its queries
    are fewer than its keys, and a causal mask is aligned to the ends of both.

    keys: (keys,) places in the row, sequence after sequence; a prompt stands twice. cu_q, cu_k: (sequences + 1,) int32,
    where each sequence's queries and keys start, and their sum. max_q, max_k: tokens of the longest.
    """

    keys: torch.Tensor
    cu_q: torch.Tensor
    cu_k: torch.Tensor
    max_q: int
    max_k: int

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Spans":
        """The sequences of these pairs, on the CPU."""
        keys: list[int] = []
        queries, ends, start = [0], [0], 0
        for prompt, chosen, rejected in segments:
            middle = start + prompt + chosen
            queries.append(prompt + chosen)
            keys += range(start, middle)
            ends.append(len(keys))
            if rejected:
                queries.append(rejected)
                keys += [*range(start, start + prompt), *range(middle, middle + rejected)]
                ends.append(len(keys))
            start = middle + rejected
        return cls(
            keys=torch.tensor(keys),
            cu_q=torch.tensor(list(accumulate(queries)), dtype=torch.int32),
            cu_k=torch.tensor(ends, dtype=torch.int32),
            max_q=max(queries),
            max_k=max(end - before for before, end in pairwise(ends)),
        )

    def to(self, device: torch.device | str) -> "Spans":
        """The same sequences on another device."""
        keys, cu_q, cu_k = (copy_to(tensor, device) for tensor in (self.keys, self.cu_q, self.cu_k))
        return replace(self, keys=keys, cu_q=cu_q, cu_k=cu_k)


@dataclass(frozen=True)
class Rows:
    """One micro-batch.

    input_ids, position: (rows, tokens) token ids and position ids. segments: the pairs that lie end to end in the one
    row of a packed micro-batch; empty where every sequence has a row of its own, padded on the right with
    its last token. spans: the sequences in that one row; None where there are no segments.
    predict_at: (completion tokens,) where in the flattened rows the state is that predicts each completion token;
    targets: (completion tokens,) those tokens. Completion tokens are in pair order, all chosen before all rejected.
    chosen_lengths, rejected_lengths: (pairs,) tokens per completion, always on the CPU, where they are checked. counts:
    pairs, chosen tokens and rejected tokens, which an objective's terms are divided by. real_tokens: those that
    are not padding.
    """

    input_ids: torch.Tensor
    position: torch.Tensor
    segments: tuple[Segment, ...]
    spans: Spans | None
    predict_at: torch.Tensor
    targets: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    counts: Mapping[str, int]
    real_tokens: int

    def to(self, device: torch.device | str) -> "Rows":
        """The same rows on another device, all but the lengths, which become quick to copy there."""
        return replace(
            self,
            input_ids=copy_to(self.input_ids, device),
            position=copy_to(self.position, device),
            spans=self.spans and self.spans.to(device),
            predict_at=copy_to(self.predict_at, device),
            targets=copy_to(self.targets, device),
            chosen_lengths=pinned(self.chosen_lengths, device),
            rejected_lengths=pinned(self.rejected_lengths, device),
        )


def pinned(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor in memory from which a copy to a GPU need not be waited for."""
    return tensor.pin_memory() if torch.device(device).type == "cuda" and not tensor.is_cuda else tensor


def copy_to(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on another device. Nothing waits for a copy from the CPU to a GPU."""
    return pinned(tensor, device).to(device, non_blocking=torch.device(device).type == "cuda")


def row_length(pair: PairTokens) -> int:
    """Tokens of a row that the pair takes."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def fill_rows(pairs: Sequence[PairTokens], *, row_tokens: int, shared_prompt: bool = True) -> list[list[int]]:
    """Divide pairs into micro-batches of at most `row_tokens` tokens; returns the indices of each one's pairs.

    Longest first, each into the first micro-batch that still takes it. Where sequences have rows of their own
    (`shared_prompt` false) padding counts. A pair that is longer than `row_tokens` by itself is one alone.
    """
    if not shared_prompt:
        return _fill_padded(pairs, row_tokens)
    lengths = [row_length(pair) for pair in pairs]
    filled: list[list[int]] = []
    free_tokens: list[int] = []
    for index in sorted(range(len(pairs)), key=lambda index: -lengths[index]):
        place = next((row for row, space in enumerate(free_tokens) if lengths[index] <= space), len(free_tokens))
        if place == len(free_tokens):
            filled.append([])
            free_tokens.append(row_tokens)
        filled[place].append(index)
        free_tokens[place] -= lengths[index]
    return filled


def _fill_padded(pairs: Sequence[PairTokens], row_tokens: int) -> list[list[int]]:
    """Runs of pairs in order of their longer sequence, each padded to the length of its first."""
    longest = [len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    filled: list[list[int]] = []
    width = sequences = 0
    for index in sorted(range(len(pairs)), key=lambda index: -longest[index]):
        more = 1 if not pairs[index].rejected_ids else 2
        if not filled or width * (sequences + more) > row_tokens:
            filled.append([])
            width, sequences = longest[index], 0
        filled[-1].append(index)
        sequences += more
    return filled


def pack(pairs: Sequence[PairTokens], *, shared_prompt: bool = True) -> Rows:
    """Lay pairs out as one row without padding, or, for architectures that cannot share prompts, one row a sequence.

    Raises ValueError for no pairs, and for a pair with an empty prompt or an empty chosen completion.
    """
    if not pairs:
        raise ValueError("pairs is empty: a batch needs at least one pair")
    for index, pair in enumerate(pairs):
        if not len(pair.prompt_ids) or not len(pair.chosen_ids):
            raise ValueError(f"pair {index} has an empty prompt or an empty chosen completion")
    segments = tuple(Segment(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs)
    completions = [*(pair.chosen_ids for pair in pairs), *(pair.rejected_ids for pair in pairs)]
    chosen, rejected = [segment.chosen for segment in segments], [segment.rejected for segment in segments]
    layout = _one_row(pairs, segments) if shared_prompt else _row_each(pairs)
    return Rows(
        segments=segments if shared_prompt else (),
        spans=Spans.of(segments) if shared_prompt else None,
        targets=torch.tensor([token for ids in completions for token in ids]),
        chosen_lengths=torch.tensor(chosen),
        rejected_lengths=torch.tensor(rejected),
        counts={"pairs": len(pairs), "chosen_tokens": sum(chosen), "rejected_tokens": sum(rejected)},
        **layout,
    )


def _one_row(pairs: Sequence[PairTokens], segments: Sequence[Segment]) -> dict[str, Any]:
    ids: list[int] = []
    position: list[int] = []
    before: tuple[list[int], list[int]] = ([], [])  # of chosen and of rejected tokens: the place that predicts them
    for pair, (prompt, chosen, rejected) in zip(pairs, segments, strict=True):
        start = len(ids)
        ids += [*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids]
        position += [*range(prompt + chosen), *range(prompt, prompt + rejected)]
        # The prompt's last token predicts the first token of either completion; then each token its next.
        last, end = start + prompt - 1, start + prompt + chosen
        before[0].extend(range(last, end - 1))
        if rejected:
            before[1].extend([last, *range(end, end + rejected - 1)])
    return {
        "input_ids": torch.tensor([ids]),
        "position": torch.tensor([position]),
        "predict_at": torch.tensor([*before[0], *before[1]]),
        "real_tokens": len(ids),
    }


def _row_each(pairs: Sequence[PairTokens]) -> dict[str, Any]:
    sequences = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    sequences += [(pair.prompt_ids, pair.rejected_ids) for pair in pairs if len(pair.rejected_ids)]
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    predict_at: list[int] = []
    for row, (prompt, completion) in enumerate(sequences):
        ids = torch.tensor([*prompt, *completion])
        input_ids[row, : len(ids)] = ids
        # A padding token's embedding may be all zeros, where some norms have no gradient.
        input_ids[row, len(ids) :] = ids[-1]
        first = row * width + len(prompt) - 1
        predict_at.extend(range(first, first + len(completion)))
    return {
        "input_ids": input_ids,
        "position": torch.arange(width).expand(len(sequences), width),
        "predict_at": torch.tensor(predict_at),
        "real_tokens": sum(len(prompt) + len(completion) for prompt, completion in sequences),
    }
