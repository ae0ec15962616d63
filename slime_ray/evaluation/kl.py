"""Full-vocabulary divergence of a policy from the SFT checkpoint: part K of stability-v1, shown and not scored."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from slime_ray.data.packing import fill_rows, pack, row_length
from slime_ray.data.pairs import TokenPair
from slime_ray.model.logprobs import Policy, kl_divergence
from slime_ray.model.memory import in_rows_that_fit
from slime_ray.world import World


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
        with _reference_of(policy, reference) as other:
            other_hidden = other.hidden(rows)
        total = 0.0
        for piece, other_piece in zip(policy.pieces(hidden), policy.pieces(other_hidden), strict=True):
            logits = policy.logits(piece)
            with _reference_of(policy, reference) as other:
                other_logits = other.logits(other_piece)
            total += float(kl_divergence(logits, other_logits).double().sum())
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
