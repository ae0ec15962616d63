"""The training steps that are compared: what each lays out, runs and sums up for the same pairs and the same loss.

`authors` re-creates what the authors' released trainer computes (arXiv 2602.02383; a subclass of TRL's DPO trainer):
prompts padded on the left beside completions padded on the right, chosen over rejected; logits and a log-softmax over
the whole vocabulary at every position, prompts and padding included; a second forward pass with the adapters switched
off, whose result nothing reads; the loss summed three times. Left out, in its favour: its adapters' dropout, its
metrics that wait for the GPU, and its gradient clipping.

`padded` is what a user of TRL can tune it to: pairs of similar length in one batch, padding on the right, no reference
pass, logits where a completion token is predicted and nowhere else. `chunked` is the same with logits some positions at
a time, computed again in the backward pass, as TRL 1.16 streams them. `packed` is slime_ray's, and `unshared` is that
with each prompt twice, as packing without shared prompts has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from slime_ray.data.packing import Rows, pack
from slime_ray.model.flops import Layout, Lengths
from slime_ray.model.logprobs import Policy
from slime_ray.objectives import SlimeObjective

from .lengths import BenchPair

OBJECTIVE = SlimeObjective()
"""The loss of every recipe, with the paper's values."""

TIMES_SUMMED = 3
"""The released trainer goes through the letters of its loss's name, "ipo", and adds the loss for each."""


@dataclass(frozen=True)
class Sequences:
    """Two rows a pair, all chosen before all rejected.

    input_ids, attention_mask, completion: (2 pairs, width) token ids, 1 where a token is real, 1 where it is of a
    completion. predict_at: (completion tokens,) places in the flattened rows that predict one; targets: those tokens.
    chosen_lengths, rejected_lengths: (pairs,). chosen_tokens: how many of the completion tokens are of chosen ones.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion: Tensor
    position_ids: Tensor
    predict_at: Tensor
    targets: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_tokens: int


def lay_out_sequences(pairs: Sequence[BenchPair], device: torch.device, *, prompts_end_together: bool) -> Sequences:
    """Pad rows on the right; with `prompts_end_together`, prompts on the left and completions on the right.

    No real token is 0, which is the padding.
    """
    prompts = [torch.tensor(pair.prompt_ids) for pair in pairs] * 2
    completions = [torch.tensor(ids) for ids in [*(p.chosen_ids for p in pairs), *(p.rejected_ids for p in pairs)]]
    lengths, starts = torch.tensor([*map(len, completions)]), torch.tensor([*map(len, prompts)])
    if prompts_end_together:
        parts = pad_sequence(prompts, True, padding_side="left"), pad_sequence(completions, True)
        input_ids, starts = torch.cat(parts, 1), starts.max().expand(len(starts))
    else:
        input_ids = pad_sequence([torch.cat(row) for row in zip(prompts, completions, strict=True)], True)
    mask = (input_ids != 0).long()
    completion = mask * (torch.arange(input_ids.shape[1]) >= starts[:, None])
    tokens = completion.flatten().nonzero().squeeze(1)
    laid_out = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "completion": completion,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "predict_at": tokens - 1,
        "targets": input_ids.flatten()[tokens],
        "chosen_lengths": lengths[: len(pairs)],
        "rejected_lengths": lengths[len(pairs) :],
    }
    moved = {name: tensor.to(device) for name, tensor in laid_out.items()}
    return Sequences(**moved, chosen_tokens=sum(len(pair.chosen_ids) for pair in pairs))


class Authors:
    """The released trainer's step."""

    bucketed = False

    def __init__(self, lm: Any):
        self.lm = lm

    @staticmethod
    def layout(lengths: Sequence[Lengths]) -> Layout:
        """Return what one forward pass over these pairs computes."""
        width = max(each.prompt for each in lengths) + max(max(each.chosen, each.rejected) for each in lengths)
        return Layout.of_rows(
            rows=2 * len(lengths), width=width, lengths=lengths, logits_everywhere=True, reference=True
        )

    def collate(self, pairs: Sequence[BenchPair], device: torch.device) -> Sequences:
        """Pad prompts on the left, and completions on the right."""
        return lay_out_sequences(pairs, device, prompts_end_together=True)

    def loss(self, micro: Sequences, counts: Mapping[str, int]) -> Tensor:
        """Return three times this micro-batch's own loss, weighted by its share of the pairs.

        The stabilizer is averaged over the micro-batch's rejected tokens, whatever the step holds.
        """
        logps = self._token_logps(micro)
        with torch.no_grad(), self.lm.disable_adapter():
            self._token_logps(micro)
        total = TIMES_SUMMED * released_loss(logps, micro.completion[:, 1:], OBJECTIVE)
        return total * (len(micro.chosen_lengths) / counts["pairs"])

    def _token_logps(self, micro: Sequences) -> Tensor:
        """Return (2 pairs, width - 1) log-probabilities of each next token, 0 where it is of no completion."""
        outputs = self.lm(input_ids=micro.input_ids, attention_mask=micro.attention_mask, use_cache=False)
        # Mixed precision's outputs are turned to float32, all of them.
        logits = outputs.logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        predicting, next_ids = logits[:, :-1].contiguous(), micro.input_ids[:, 1:].contiguous()
        everything = functional.log_softmax(predicting, dim=-1)
        token_logps = everything.gather(2, next_ids[:, :, None]).squeeze(2) * micro.completion[:, 1:]
        half = len(logits) // 2
        for rows in (slice(None, half), slice(half, None)):
            # A metric: the mean logit at completion tokens.
            logits[rows][micro.completion[rows].bool()].mean()
        return token_logps


def released_loss(logps: Tensor, completion: Tensor, objective: SlimeObjective) -> Tensor:
    """Compute SLIME's loss as the released trainer does, eqs. 5 to 10, without its factor of three. 0-d.

    logps, completion: (2 pairs, positions) token log-probabilities, 0 where `completion` is 0; chosen over rejected.
    A rejected token of log-probability 0 is taken for padding, as released.
    """
    pairs = len(logps) // 2
    means = logps.sum(1) / completion.sum(1)
    chosen, rejected = means[:pairs], means[pairs:]
    margin = chosen - rejected
    hard = functional.relu(objective.hard_margin - margin)
    soft = torch.sigmoid(-objective.gate_sharpness * (margin - objective.soft_margin))
    tokens = logps[pairs:]
    counted = (tokens != 0).to(tokens.dtype)
    penalty = functional.softplus(-tokens - objective.stabilizer_threshold) ** objective.stabilizer_exponent
    stabilizer = objective.stabilizer_strength * (penalty * counted).sum() / counted.sum()
    return (objective.margin_weight * hard * soft - objective.anchor_weight * chosen + stabilizer).mean()


class Padded:
    """Padding on the right, pairs of similar length together, logits where a completion token is predicted."""

    bucketed = True

    def __init__(self, lm: Any):
        self.lm = lm

    @staticmethod
    def layout(lengths: Sequence[Lengths]) -> Layout:
        """Return what one forward pass over these pairs computes."""
        return Layout.of_rows(
            rows=2 * len(lengths),
            width=max(each.prompt + max(each.chosen, each.rejected) for each in lengths),
            lengths=lengths,
            logits_everywhere=False,
            reference=False,
        )

    def collate(self, pairs: Sequence[BenchPair], device: torch.device) -> Sequences:
        """Lay out two rows a pair, padded on the right."""
        return lay_out_sequences(pairs, device, prompts_end_together=False)

    def loss(self, micro: Sequences, counts: Mapping[str, int]) -> Tensor:
        """Return this micro-batch's share of the step's loss."""
        causal = self.lm.get_base_model()
        states = causal.get_decoder()(
            input_ids=micro.input_ids,
            attention_mask=micro.attention_mask,
            position_ids=micro.position_ids,
            use_cache=False,
        ).last_hidden_state
        logps = self._logps(causal.get_output_embeddings(), states.flatten(0, 1)[micro.predict_at], micro.targets)
        chosen, rejected = logps[: micro.chosen_tokens], logps[micro.chosen_tokens :]
        return OBJECTIVE(chosen, micro.chosen_lengths, rejected, micro.rejected_lengths).loss_over(counts)

    def _logps(self, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the (positions,) log-probabilities of the targets."""
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logps: Tensor = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
        return logps


class Chunked(Padded):
    """The same with logits of some positions at a time, which are computed again in the backward pass."""

    POSITIONS = 256

    def _logps(self, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        whole = super()._logps
        pieces = zip(hidden.split(self.POSITIONS), targets.split(self.POSITIONS), strict=True)
        return torch.cat([checkpoint(whole, head, *piece, use_reentrant=False) for piece in pieces])


class Packed:
    """slime_ray's step: no padding, each prompt once, logits never whole."""

    bucketed = False

    def __init__(self, lm: Any):
        self.policy = Policy(lm)

    @staticmethod
    def layout(lengths: Sequence[Lengths]) -> Layout:
        """Return what one forward pass over these pairs computes."""
        return Layout.of_packed(lengths)

    def collate(self, pairs: Sequence[BenchPair], device: torch.device) -> Rows:
        """Pack all pairs into one row."""
        return pack(pairs).to(device)

    def loss(self, micro: Rows, counts: Mapping[str, int]) -> Tensor:
        """Return this row's share of the step's loss."""
        logps = self.policy(micro)
        return OBJECTIVE(logps.chosen, logps.chosen_lengths, logps.rejected, logps.rejected_lengths).loss_over(counts)


class Unshared(Packed):
    """Sequences end to end, each with its own prompt: as demonstrations, all chosen before all rejected."""

    @staticmethod
    def layout(lengths: Sequence[Lengths]) -> Layout:
        """Return what one forward pass over these pairs computes."""
        sequences = [(each.prompt, length) for each in lengths for length in (each.chosen, each.rejected)]
        return Layout.of_packed([Lengths(prompt, length, 0) for prompt, length in sequences])

    def collate(self, pairs: Sequence[BenchPair], device: torch.device) -> Rows:
        """Pack all sequences into one row."""
        completions = [*(pair.chosen_ids for pair in pairs), *(pair.rejected_ids for pair in pairs)]
        prompts = [pair.prompt_ids for pair in pairs] * 2
        return pack([BenchPair(*parts, ()) for parts in zip(prompts, completions, strict=True)]).to(device)

    def loss(self, micro: Rows, counts: Mapping[str, int]) -> Tensor:
        """Return this row's share of the step's loss."""
        logps, lengths = self.policy(micro).chosen, micro.chosen_lengths
        half = len(lengths) // 2
        split = int(lengths[:half].sum())
        return OBJECTIVE(logps[:split], lengths[:half], logps[split:], lengths[half:]).loss_over(counts)


Recipe = Authors | Padded | Packed
RECIPES: dict[str, type[Recipe]] = {
    "authors": Authors, "padded": Padded, "chunked": Chunked, "packed": Packed, "unshared": Unshared,
}  # fmt: skip
"""The recipes by name, without what becomes of the head."""
