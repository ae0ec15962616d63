"""PreferenceTrainer: transformers.Trainer with packed rows, an objective, and counts taken over the whole update."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from slime_ray.data.packing import Pair, Rows, pack
from slime_ray.model.logprobs import Policy
from slime_ray.objectives import Objective, ObjectiveOutput, ReferenceLogps
from slime_ray.settings import Schedule

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class TokenPair:
    """Token ids of one pair, with the reference's summed log-probabilities (nats) where an objective needs them."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int] = ()
    reference_chosen: float = math.nan
    reference_rejected: float = math.nan


class TokenPairs(TorchDataset[TokenPair]):
    """A map-style data set of token pairs."""

    def __init__(self, pairs: Sequence[TokenPair]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenPair:
        return self.pairs[index]


@dataclass(frozen=True)
class Batch:
    """What the collator hands to a step."""

    rows: Rows
    reference: ReferenceLogps | None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        reference = self.reference and ReferenceLogps(
            self.reference.chosen.to(device), self.reference.rejected.to(device)
        )
        return Batch(self.rows.to(device, non_blocking=non_blocking), reference)


@dataclass(frozen=True)
class Collator:
    """Lays pairs out in rows. `shared_prompt` as in `pack`; `reference` says whether reference values come along."""

    shared_prompt: bool
    reference: bool = False

    def __call__(self, pairs: Sequence[TokenPair]) -> dict[str, Batch]:
        reference = None
        if self.reference:
            reference = ReferenceLogps(
                torch.tensor([pair.reference_chosen for pair in pairs], dtype=torch.float64),
                torch.tensor([pair.reference_rejected for pair in pairs], dtype=torch.float64),
            )
        typed: Sequence[Pair] = pairs
        return {"batch": Batch(pack(typed, shared_prompt=self.shared_prompt), reference)}


class StopTraining(TrainerCallback):
    """Asks a question after every update and ends training when the answer is a reason to."""

    def __init__(self, after_update: Callable[[int], str | None]):
        self.after_update = after_update
        self.reason: str | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.reason = self.after_update(state.global_step)
        if self.reason is not None:
            control.should_training_stop = True
        return control


class PreferenceTrainer(Trainer):
    """Trains a `Policy` on an objective.

    Every term of the objective is divided by its count over the whole update (micro-batches, accumulation steps and
    ranks together), so batch splitting changes neither the loss nor its gradient. The loss of each update is exact, not
    a mean of micro-batch means. The pre-clip gradient norm is logged whether clipping is on or off.

    observe: called with (update, metrics) after every update: loss, grad_norm, learning_rate, each term's value, the
    mean margin and the mean chosen and rejected log-probabilities (nats per token) of the update's pairs.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        objective: Objective,
        pairs: Sequence[TokenPair],
        schedule: Schedule,
        pairs_per_update: int,
        pairs_per_device: int | None,
        shared_prompt: bool,
        seed: int,
        scratch: Path,
        observe: Callable[[int, Metrics], None],
        after_update: Callable[[int], str | None] = lambda step: None,
        bf16: bool = False,
        gradient_checkpointing: bool = False,
    ):
        self.objective: Objective = objective
        self.observe = observe
        self.stopper = StopTraining(after_update)
        self.pairs_seen = 0
        self.tokens_seen = 0
        self._sums: dict[str, torch.Tensor | float] = defaultdict(float)
        per_device = largest_divisor(pairs_per_update, pairs_per_device)
        accumulation = pairs_per_update // per_device
        updates_per_epoch = math.ceil(len(pairs) / pairs_per_update)
        self.updates = (
            schedule.updates if schedule.updates is not None else max(1, round(schedule.epochs * updates_per_epoch))
        )
        transformers_logging.set_verbosity_error()
        if gradient_checkpointing:
            policy.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            policy.lm.enable_input_require_grads()
        super().__init__(
            model=policy,
            args=TrainingArguments(
                output_dir=str(scratch),
                per_device_train_batch_size=per_device,
                gradient_accumulation_steps=accumulation,
                max_steps=self.updates,
                learning_rate=schedule.learning_rate,
                lr_scheduler_type=schedule.schedule,
                warmup_steps=round(schedule.warmup_fraction * self.updates),
                weight_decay=schedule.weight_decay,
                adam_beta2=schedule.adam_beta2,
                max_grad_norm=schedule.max_grad_norm or 0.0,
                seed=seed,
                data_seed=seed,
                bf16=bf16,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                use_cpu=not torch.cuda.is_available(),
            ),
            data_collator=Collator(shared_prompt=shared_prompt, reference=objective.needs_reference),
            train_dataset=TokenPairs(pairs),
            callbacks=[self.stopper],
        )
        self.remove_callback(PrinterCallback)
        # The loss is already divided by the counts of the whole update; Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of one update, with its (pairs, chosen tokens, rejected tokens) over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(3, dtype=torch.long, device=device)
        for item in batches:
            counts += torch.tensor(list(item["batch"].rows.counts.values()), device=device)
        return batches, self.accelerator.reduce(counts, reduction="sum")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the update's loss."""
        batch: Batch = inputs["batch"]
        logps = model(batch.rows)
        output: ObjectiveOutput = self.objective(
            logps.chosen,
            logps.chosen_lengths,
            logps.rejected,
            logps.rejected_lengths,
            **({"reference": batch.reference} if batch.reference else {}),
        )
        if not isinstance(num_items_in_batch, torch.Tensor):
            raise ValueError("the counts of the update are missing")
        counts = dict(zip(batch.rows.counts, num_items_in_batch.tolist(), strict=True))
        # DDP averages gradients over ranks; the shares of the ranks must add up.
        loss = output.loss_over(counts) * self.accelerator.num_processes
        self._accumulate(output, counts, batch.rows)
        return (loss, output) if return_outputs else loss

    def _accumulate(self, output: ObjectiveOutput, counts: Mapping[str, int], rows: Rows) -> None:
        for name, term in output.terms.items():
            self._sums[name] += term.total.detach() / counts[term.unit]
        self._sums["chosen_logp"] += output.chosen_logps.detach().sum() / counts["pairs"]
        if counts["rejected_tokens"]:
            self._sums["mean_margin"] += output.margins.detach().sum() / counts["pairs"]
            self._sums["rejected_logp"] += output.rejected_logps.detach().sum() / counts["pairs"]
        self.pairs_seen += len(rows.chosen_lengths)
        self.tokens_seen += rows.real_tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand one update's metrics to `observe`."""
        if "loss" in logs:
            sums, self._sums = self._sums, defaultdict(float)
            names = ("loss", "grad_norm", "learning_rate")
            metrics = {name: float(logs[name]) for name in names if name in logs}
            self.observe(self.state.global_step, metrics | {name: float(value) for name, value in sums.items()})
        super().log(logs, start_time)


def largest_divisor(number: int, at_most: int | None) -> int:
    """The largest divisor of `number` that is not above `at_most` (None: `number` itself)."""
    limit = min(number, at_most or number)
    return next(size for size in range(limit, 0, -1) if number % size == 0)
