"""Log-probabilities of completion tokens, computed only where one is predicted and never as a whole logit matrix."""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from slime_ray.data.packing import Rows
from slime_ray.errors import InputError
from slime_ray.model.attention import ROW_ATTENTION, Kernel, RowLayout, local_setting
from slime_ray.model.decoder import decoder_of
from slime_ray.model.fused_ops import fuse
from slime_ray.model.head import Head, logit_cap, logit_scale
from slime_ray.model.limits import Limits, limits_of
from slime_ray.model.probe import probe, why_not_padded

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**28}
"""Logits alive at a time, positions times vocabulary, by device: 32 MiB and 1 GiB of float32."""
CACHED_LOGITS = {"cpu": 2**24, "cuda": 0}
"""Logits on top of those that a trained head keeps for its backward pass: 64 MiB. On a GPU memory is dearer."""

EXACT_ARCHITECTURES = frozenset({"gemma3_text", "llama", "mistral", "qwen2", "qwen3"})
"""Model types whose packed rows are tested to equal separate sequences to the last bits of float64."""

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger(__name__)


def _in_policy_dtype(
    method: Callable[Concatenate["Policy", P], T],
) -> Callable[Concatenate["Policy", P], T]:
    """Have a method of `Policy` compute under the policy's own autocast, or under none, whoever calls it."""

    @functools.wraps(method)
    def run(self: "Policy", *arguments: P.args, **options: P.kwargs) -> T:
        autocast = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            return method(self, *arguments, **options)

    return run


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities (nats) of the completion tokens of a batch, in pair order.

    chosen, rejected: (tokens,) float32 or wider. chosen_lengths, rejected_lengths: (pairs,). Where statistics were
    asked for, of the next-token distribution at the chosen positions: chosen_entropy: (tokens,) in nats;
    chosen_top_probability: (tokens,) the probability of the likeliest token.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    chosen_entropy: torch.Tensor | None = None
    chosen_top_probability: torch.Tensor | None = None


class Policy(nn.Module):
    """A causal language model seen as what preference training needs: rows in, token log-probabilities out.

    lm: a transformers causal language model, with or without peft's adapters; its attention implementation becomes
    `ROW_ATTENTION` where the architecture takes one, and its plain low-rank layers compute in fewer passes. kernel: how
    attention over packed rows is computed. fused: whether elementwise work is compiled on a GPU.
    chunk_logits: logits alive at a time, positions times vocabulary; by default CHUNK_LOGITS of the device. dtype: of
    the forward pass, by default that of the weights; in bfloat16 every method computes under torch's autocast.

    Raises InputError for a model without an output head, and ValueError for a chunk_logits below 1.
    """

    def __init__(
        self,
        lm: Any,
        *,
        kernel: Kernel = "auto",
        chunk_logits: int | None = None,
        fused: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if chunk_logits is not None and chunk_logits < 1:
            raise ValueError(f"chunk_logits is {chunk_logits}: must be at least 1")
        self.lm = lm
        self.kernel = kernel
        self.chunk_logits = chunk_logits
        if not isinstance(self.causal_lm.get_output_embeddings(), nn.Module):
            raise InputError(
                f"{type(self.causal_lm).__name__} has no output head that can be found (get_output_embeddings), so it "
                "gives no log-probabilities. Use a causal language model."
            )
        self.dtype: torch.dtype = dtype or self.causal_lm.get_input_embeddings().weight.dtype
        # Beyond a window an architecture may do what only attention functions of known names are given.
        self.exact = self.config.model_type in EXACT_ARCHITECTURES
        self.takes_row_attention = (self.exact or local_setting(self.config) is None) and _set_row_attention(
            self.causal_lm
        )
        if hasattr(lm, "peft_config"):
            from slime_ray.model.fused_lora import fuse_lora

            fuse_lora(lm)
        self.fused = fused and torch.cuda.is_available() and fuse(self.causal_lm)

    @_in_policy_dtype
    def forward(self, rows: Rows, *, statistics: bool = False) -> TokenLogps:
        """Compute log-probabilities of the completion tokens of `rows`.

        statistics: also measure entropy and top probability at chosen positions; for evaluation, without gradients.
        """
        hidden = self._hidden(rows)
        split = rows.counts["chosen_tokens"]
        entropies, top_probabilities = [], []
        if statistics:
            with torch.no_grad():
                logps = []
                for piece, targets in zip(self.pieces(hidden), rows.targets.split(self.head.positions), strict=True):
                    distribution = self.logits(piece).log_softmax(1)
                    logps.append(distribution.gather(1, targets[:, None]).squeeze(1))
                    entropies.append(-(distribution.exp() * distribution).sum(1))
                    top_probabilities.append(distribution.amax(1).exp())
                all_logps = torch.cat(logps)
        else:
            all_logps = self.head.logps(hidden, rows.targets)
        return TokenLogps(
            chosen=all_logps[:split],
            rejected=all_logps[split:],
            chosen_lengths=rows.chosen_lengths,
            rejected_lengths=rows.rejected_lengths,
            chosen_entropy=torch.cat(entropies)[:split] if statistics else None,
            chosen_top_probability=torch.cat(top_probabilities)[:split] if statistics else None,
        )

    @_in_policy_dtype
    def generate(self, **options: Any) -> torch.Tensor:
        """Generate (prompts, length) token ids with transformers' `generate`."""
        # Step by step inputs have other shapes, each of which would be compiled.
        with torch.compiler.set_stance("force_eager"):
            generated: torch.Tensor = self.lm.generate(**options)
        return generated

    def prompts_at_a_time(self, longest: int, *, max_new_tokens: int, batch: int) -> int:
        """Return how many prompts may be answered together: `batch`, or 1 where padding would change their answers.

        longest: tokens of the longest prompt. Raises InputError where it leaves no room for an answer.
        """
        self.limits.check_answer(longest, max_new_tokens, f"A prompt of {longest} tokens")
        return batch if batch == 1 or self.exact or self._pads_prompts else 1

    @cached_property
    def _pads_prompts(self) -> bool:
        reason = why_not_padded(self)
        if reason is not None:
            logger.warning("%s: %s. Prompts are answered one at a time.", type(self.causal_lm).__name__, reason)
        return reason is None

    def leave_attention(self) -> None:
        """Give the model sdpa back, as transformers knows it. Its pairs are not packed then."""
        self.causal_lm.set_attn_implementation("sdpa")
        self.takes_row_attention = False

    @_in_policy_dtype
    def own_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute (sequences, tokens, vocabulary) logits as the model itself does, for `probe` to compare with."""
        logits: torch.Tensor = self.lm(input_ids=input_ids, use_cache=False).logits
        return logits

    @_in_policy_dtype
    def hidden(self, rows: Rows) -> torch.Tensor:
        """Compute the last hidden states that predict the completion tokens, (completion tokens, hidden size)."""
        return self._hidden(rows)

    def _hidden(self, rows: Rows) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": rows.input_ids, "use_cache": False}
        if rows.spans is not None:
            if not self.takes_row_attention:
                raise ValueError(f"{type(self.causal_lm).__name__} takes no packed rows: pack with shared_prompt=False")
            inputs |= {
                "position_ids": rows.position,
                "row_layout": RowLayout(rows.segments, rows.spans, self.kernel),
                # A 4-D mask is passed on as it is: nothing is inferred from it, and none is made.
                "attention_mask": rows.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool),
            }
        states = self.decoder(**inputs).last_hidden_state
        return states.flatten(0, 1).index_select(0, rows.predict_at)

    @_in_policy_dtype
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute next-token logits, (positions, vocabulary), in at least float32, soft-capped where the model is."""
        return self.head.logits(hidden)

    def pieces(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Split `hidden` so that the logits of one piece stay within the chunk size."""
        return iter(hidden.split(self.head.positions))

    @property
    def head(self) -> Head:
        """The output head as it is now; adapters may have been switched off."""
        device = "cuda" if self.device.type == "cuda" else "cpu"
        return Head(
            module=self.causal_lm.get_output_embeddings(),
            cap=logit_cap(self.causal_lm.config),
            scale=logit_scale(self.causal_lm.config),
            vocabulary=self.config.vocab_size,
            limit=self.chunk_logits or CHUNK_LOGITS[device],
            cache_limit=0 if self.chunk_logits else CACHED_LOGITS[device],
            fused=self.fused,
        )

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.parameters()).device

    @cached_property
    def decoder(self) -> Any:
        """The module from token ids to last hidden states."""
        return decoder_of(self.causal_lm)

    @property
    def config(self) -> Any:
        """The configuration of the text model."""
        return self.causal_lm.config.get_text_config()

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, below adapters."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    @property
    def limits(self) -> Limits:
        """Ids and positions that the model has. The probe runs before, see `why_not_packed`."""
        return limits_of(self.causal_lm, self._probe_result[1])

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether pairs may be packed in one row with their prompt once, not each sequence in its own."""
        return self.why_not_packed is None

    @property
    def why_not_packed(self) -> str | None:
        """What speaks against packed rows, in words; None where nothing does.

        The probe says so, which runs once, at first use, on the model as it is then. Raises InputError where
        log-probabilities would not be those of the model itself.
        """
        return self._probe_result[0]

    @cached_property
    def _probe_result(self) -> tuple[str | None, int | None]:
        reason, steady = probe(self)
        if reason is not None:
            logger.warning(
                "%s: %s. Every sequence gets a row of its own, which is slower and gives the same numbers.",
                type(self.causal_lm).__name__,
                reason,
            )
        return reason, steady


def _set_row_attention(lm: Any) -> bool:
    """Make `ROW_ATTENTION` the model's; False where the architecture takes no such function, or no sdpa."""
    if not lm.is_backend_compatible():
        return False
    try:
        # It raises where there is none, and `leave_attention` has to be possible.
        lm.set_attn_implementation("sdpa")
    except ValueError:
        return False
    lm.set_attn_implementation(ROW_ATTENTION)
    return True


def kl_divergence(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Compute KL(softmax(logits) || softmax(reference)), (positions,), in nats."""
    logp, reference_logp = logits.log_softmax(1), reference.log_softmax(1)
    return (logp.exp() * (logp - reference_logp)).sum(1)
