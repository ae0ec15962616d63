"""Log-probabilities of completion tokens, computed only where one is predicted and never as a whole logit matrix."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from slime_ray.data.packing import Rows
from slime_ray.model.attention import attention_mask

CHUNK_LOGITS = 2**24
"""Logits alive at a time: positions per chunk times vocabulary (64 MiB of float32)."""


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities (nats) of the completion tokens of a batch, in pair order.

    chosen, rejected: (tokens,) float32 or wider. chosen_lengths, rejected_lengths: (pairs,). chosen_entropy: (tokens,)
    entropy in nats of the next-token distribution at the chosen positions, where it was asked for.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    chosen_entropy: torch.Tensor | None = None


class Policy(nn.Module):
    """A causal language model seen as what preference training needs: rows in, token log-probabilities out."""

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm

    def forward(self, rows: Rows, *, entropy: bool = False) -> TokenLogps:
        """Log-probabilities of the completion tokens of `rows`.

        entropy: also measure the entropy at chosen positions; for evaluation, without gradients.
        """
        hidden = self.hidden(rows)
        split = int(rows.chosen_lengths.sum())
        logps, entropies = [], []
        start = 0
        for piece in self.pieces(hidden):
            targets = rows.targets[start : start + len(piece)]
            if torch.is_grad_enabled() and len(piece) < len(hidden):
                # Recomputing a piece's logits in the backward pass keeps one piece alive instead of all of them.
                logps.append(checkpoint(self._target_logps, piece, targets, use_reentrant=False))
            else:
                logits = self.logits(piece)
                logps.append(_gather_logps(logits, targets))
                if entropy and start < split:
                    entropies.append(_entropy(logits))
            start += len(piece)
        every = torch.cat(logps)
        return TokenLogps(
            chosen=every[:split],
            rejected=every[split:],
            chosen_lengths=rows.chosen_lengths,
            rejected_lengths=rows.rejected_lengths,
            chosen_entropy=torch.cat(entropies)[:split] if entropies else None,
        )

    def hidden(self, rows: Rows) -> torch.Tensor:
        """(completion tokens, hidden size): the last hidden states that predict the completion tokens."""
        lm = self.causal_lm
        inputs: dict[str, Any] = {"input_ids": rows.input_ids, "use_cache": False}
        if rows.shared_prompt:
            inputs |= {"attention_mask": attention_mask(rows, self.config), "position_ids": rows.position}
        states = lm.get_decoder()(**inputs).last_hidden_state
        return states.flatten(0, 1).index_select(0, rows.predict_at)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(positions, vocabulary) next-token logits in at least float32, soft-capped where the model is."""
        logits = self.causal_lm.get_output_embeddings()(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def config(self) -> Any:
        """The configuration of the text model."""
        return self.causal_lm.config.get_text_config()

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, below adapters."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    def _target_logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _gather_logps(self.logits(hidden), targets)

    def pieces(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """`hidden` cut so that the logits of one piece stay within CHUNK_LOGITS."""
        return iter(hidden.split(max(1, CHUNK_LOGITS // self.config.vocab_size)))


def _gather_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(positions,) log-probabilities of the targets."""
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """(positions,) entropy in nats of softmax(logits)."""
    logp = logits.log_softmax(1)
    return -(logp.exp() * logp).sum(1)


def kl_divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(positions,) KL(softmax(logits) || softmax(reference)) over the whole vocabulary, in nats."""
    logp, other = logits.log_softmax(1), reference.log_softmax(1)
    return (logp.exp() * (logp - other)).sum(1)
