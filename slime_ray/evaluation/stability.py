"""The measured parts of stability-v1; their tolerances and the score stand in `slime_ray.runs.stability_v1`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slime_ray.data.packing import fill_rows, pack, row_length
from slime_ray.data.pairs import TokenPair
from slime_ray.evaluation.held_out import HeldOut
from slime_ray.evaluation.verdicts import FAILED
from slime_ray.model.logprobs import Policy, kl_divergence
from slime_ray.model.memory import in_rows_that_fit
from slime_ray.runs.stability_v1 import spike_flags
from slime_ray.world import World

if TYPE_CHECKING:
    from slime_ray.evaluation.generate import Answer

REPETITION_LIMIT = 0.5


def unlearning(before: HeldOut, after: HeldOut) -> float:
    """U, nat/token: mean over pairs of max(0, lbar_w(0) - lbar_w(theta))."""
    return float(np.maximum(0.0, before.chosen_means - after.chosen_means).mean())


def rejected_collapse(before: HeldOut, after: HeldOut) -> float:
    """C, share of rejected tokens whose probability fell more than tenfold."""
    return float(collapsed_tokens(before, after).sum() / after.rejected_lengths.sum())


def collapsed_tokens(before: HeldOut, after: HeldOut) -> np.ndarray:
    """(pairs,) how many such tokens each rejected completion has."""
    starts = np.cumsum(after.rejected_lengths) - after.rejected_lengths
    fallen = (after.rejected - before.rejected < -math.log(10)).astype(int)
    return np.asarray(np.add.reduceat(fallen, starts))


def entropy_shift(before: HeldOut, after: HeldOut) -> float:
    """H, abs(ln(Hbar(theta) / Hbar(0))) at the held-out chosen positions; infinite when one of them is 0."""
    old, new = float(before.entropy.mean()), float(after.entropy.mean())
    if old == new:
        return 0.0
    return abs(math.log(new / old)) if old > 0 and new > 0 else math.inf


def kl_to_reference(
    policy: Policy, reference: Policy | None, samples: Sequence[TokenPair], *, row_tokens: int
) -> float:
    """K, nat/token: full-vocabulary KL(policy || reference) per generated token, on the policy's own samples.

    samples: prompts with the policy's answers as chosen completions. reference: None for an adapted model, which is its
    own reference with the adapters switched off. The ranks of a process group divide the rows among themselves.
    """
    shared = policy.shares_prompts
    policy.eval()

    def measure(members: Sequence[int]) -> tuple[float, int]:
        rows = pack([samples[i] for i in members], shared_prompt=shared).to(policy.device)
        hidden = policy.hidden(rows)
        with _reference_of(policy, reference) as reference_policy:
            reference_hidden = reference_policy.hidden(rows)
        total = 0.0
        for piece, reference_piece in zip(policy.pieces(hidden), policy.pieces(reference_hidden), strict=True):
            logits = policy.logits(piece)
            with _reference_of(policy, reference) as reference_policy:
                reference_logits = reference_policy.logits(reference_piece)
            total += float(kl_divergence(logits, reference_logits).double().sum())
        return total, len(hidden)

    def measure_all(row_tokens: int) -> list[tuple[float, int]]:
        return World.current().share(fill_rows(samples, row_tokens=row_tokens, shared_prompt=shared), measure)

    with torch.no_grad():
        measured = in_rows_that_fit(measure_all, row_tokens, longest=max(map(row_length, samples), default=1))
    totals, tokens = zip(*measured, strict=True)
    return math.fsum(totals) / sum(tokens)


@contextmanager
def _reference_of(policy: Policy, reference: Policy | None) -> Iterator[Policy]:
    if reference is not None:
        yield reference
        return
    lm: Any = policy.lm
    with lm.disable_adapter():
        yield policy


def sequence_repetition(token_ids: Sequence[int]) -> float:
    """seq-rep-4 (Welleck et al. 2020): 1 - unique 4-grams / 4-grams, so 0 without any repetition."""
    grams = [tuple(token_ids[start : start + 4]) for start in range(len(token_ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def broken_reason(answer: "Answer", *, markers: Sequence[str] = (), format_ok: bool | None = None) -> str | None:
    """The first reason for which an answer counts as broken, or None.

    markers: texts of the chat template that must not appear in an answer. format_ok: what the task's own check said,
    if it has one.
    """
    if answer.text.strip() == FAILED:
        return "failed_generation"
    if not answer.text.strip():
        return "empty"
    if not answer.stopped:
        return "no_stop"
    if sequence_repetition(answer.token_ids) > REPETITION_LIMIT:
        return "repetition"
    if answer.leaked or any(marker in answer.text for marker in markers):
        return "leaked_tokens"
    if answer.text.count("```") % 2:
        return "open_fence"
    if format_ok is False:
        return "format"
    return None


def broken_outputs(broken: Sequence[bool], baseline_broken: Sequence[bool]) -> float:
    """B, by how much the share of broken answers grew: max(0, b(theta) - b(0))."""
    return max(0.0, float(np.mean(broken)) - float(np.mean(baseline_broken)))


def length_shift(tokens: Sequence[int], baseline_tokens: Sequence[int]) -> float:
    """L, abs(mean over prompts of ln(length(theta) / length(0))), lengths in tokens; an empty answer counts as one."""
    return abs(float(length_log_ratios(tokens, baseline_tokens).mean()))


def length_log_ratios(tokens: Sequence[int], baseline_tokens: Sequence[int]) -> np.ndarray:
    """(prompts,) ln(length(theta) / length(0))."""
    new, old = np.maximum(1, np.asarray(tokens)), np.maximum(1, np.asarray(baseline_tokens))
    return np.asarray(np.log(new / old))


def training_spikes(losses: Sequence[float], grad_norms: Sequence[float]) -> float:
    """T, share of the updates after the first 20 that are spikes (`spike_flags`); 0 for a run no longer than that."""
    flags = spike_flags(losses, grad_norms)
    return float(flags.mean()) if flags.size else 0.0


def pair_rows(before: HeldOut, after: HeldOut, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of pairs.parquet: what U, C and H are made of, pair by pair; `about` holds the trial's columns."""
    columns = {
        "chosen_tokens": after.chosen_lengths,
        "rejected_tokens": after.rejected_lengths,
        "chosen_logp0": before.chosen_means,
        "chosen_logp": after.chosen_means,
        "rejected_logp0": before.rejected_means,
        "rejected_logp": after.rejected_means,
        "rejected_collapsed": collapsed_tokens(before, after),
        "entropy0": before.entropy_means,
        "entropy": after.entropy_means,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{**about, "pair": pair, **dict(zip(columns, row, strict=True))} for pair, row in enumerate(values)]
