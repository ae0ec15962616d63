"""PreferenceTrainer: transformers.Trainer with packed rows, an objective, and counts taken over the whole update."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from slime_ray.config.settings import Schedule
from slime_ray.data.order import updates_of
from slime_ray.data.packing import row_length
from slime_ray.data.pairs import TokenPair
from slime_ray.errors import InputError
from slime_ray.model.logprobs import Policy
from slime_ray.model.memory import in_rows_that_fit
from slime_ray.model.train_mode import checkpoint_layers, set_train_mode
from slime_ray.objectives import Objective, ObjectiveOutput, objective_at
from slime_ray.training.checkpoint import (
    Saved,
    load_progress,
    load_random_states,
    load_weights,
    random_states,
    save_checkpoint,
    set_random_states,
)
from slime_ray.training.updates import MicroBatch, Update, Updates

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Next:
    """What follows an update: a checkpoint, the end, both or neither. Every rank has to decide the same."""

    save: bool = False
    stop: bool = False


GO_ON = Next()


class _Arguments(TrainingArguments):
    """Trainer's arguments for a process of one device: it would divide a batch among all GPUs that it sees."""

    @property
    def n_gpu(self) -> int:
        """0 on a CPU, else 1."""
        return min(1, super().n_gpu)


class PreferenceTrainer(Trainer):
    """Trains a `Policy` on an objective.

    An update's pairs are packed into rows of at most `row_tokens` tokens, one row a micro-batch; an objective with
    `pairs_together` gets rows of just so many pairs, the update's last one of what is left. Every term of the
    objective is divided by its count over the whole update (micro-batches and ranks together), so neither the loss nor
    its gradient depends on how an update is cut. The loss of each update is exact, not a mean of micro-batch means. The
    pre-clip gradient norm is logged whether clipping is on or off.

    after_update: called on every rank with (update, metrics) after every update, and says what follows. metrics are
    sums over the ranks: loss, grad_norm, learning_rate, each term's value, the mean margin and the mean chosen and
    rejected log-probabilities (nats per token) of the update's pairs; and `urgent`, how many ranks' `urgent` said so.
    checkpoints: where they go, with what `counters` gives; without it none is written. after_save: called on every rank
    when one is written.

    Where memory runs out, the update is made again in rows of half the tokens, and so are those that follow;
    `loader.row_tokens` says how many they are. Several ranks, and objectives with `pairs_together`, raise the error.

    dropout: whether the model's own dropout is on; that of adapters is as their settings say.

    Every rank holds the whole model (DDP), or a part of each parameter if the policy was sharded.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        objective: Objective,
        pairs: Sequence[TokenPair],
        schedule: Schedule,
        pairs_per_update: int,
        row_tokens: int,
        seed: int,
        scratch: Path,
        after_update: Callable[[int, Metrics], Next],
        urgent: Callable[[], bool] = lambda: False,
        checkpoints: Path | None = None,
        counters: Callable[[], Mapping[str, Any]] = dict,
        after_save: Callable[[], None] = lambda: None,
        gradient_checkpointing: bool = False,
        dropout: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.objective: Objective = objective
        self._current = objective
        self.policy, self.dropout = policy, dropout
        self.saved: Saved | None = None
        self.after_update, self.urgent = after_update, urgent
        self.checkpoints, self.counters, self.after_save = checkpoints, counters, after_save
        self.pairs_seen = 0
        self.tokens_seen = 0
        self._sums: dict[str, torch.Tensor] = {}
        transformers_logging.set_verbosity_error()
        self.updates = updates_of(schedule, len(pairs), pairs_per_update)
        if gradient_checkpointing:
            checkpoint_layers(policy.causal_lm)
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"{name} is trained in {parameter.dtype}, which rounds updates away: hold it in float32"
                )
        super().__init__(
            model=policy,
            args=_Arguments(
                **({"lr_scheduler_type": schedule.schedule} | schedule.arguments.as_arguments()),
                output_dir=str(scratch),
                # A "batch" of Trainer's is one of ours: all that a rank computes for an update.
                per_device_train_batch_size=1,
                max_steps=self.updates,
                learning_rate=schedule.learning_rate,
                warmup_steps=round(schedule.warmup_fraction * self.updates),
                weight_decay=schedule.weight_decay,
                adam_beta2=schedule.adam_beta2,
                max_grad_norm=schedule.max_grad_norm or 0.0,
                seed=seed,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=not torch.cuda.is_available(),
                # Where to go on from follows from our own checkpoints; `Updates` leaves out what was done.
                ignore_data_skip=True,
                # Looking for parameters without a gradient costs time, and what is trained gets one.
                ddp_find_unused_parameters=False,
            ),
            callbacks=[_Resumption(self), *callbacks, _Last(self)],
        )
        self.remove_callback(PrinterCallback)
        self.loader = Updates(
            dataset=pairs,
            pairs_per_update=pairs_per_update,
            row_tokens=row_tokens,
            shared_prompt=policy.shares_prompts,
            reference=objective.needs_reference,
            seed=seed,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            total=self.updates,
            pairs_per_row=objective.pairs_together,
            even=isinstance(policy, FSDPModule),
        )

    def resume(self, saved: Saved | None) -> None:
        """Train to the end, from a checkpoint or from the start, and drop what only training needs."""
        if saved is not None:
            self.loader.done = saved.step
            self.pairs_seen, self.tokens_seen = saved.counters["pairs_seen"], saved.counters["tokens_seen"]
            load_weights(saved.path, self.model)
            if saved.step >= self.updates:
                self.state.global_step = saved.step
                return
            self.saved = saved
        self.train()
        # Answers need the memory.
        self.policy.zero_grad()
        self.model_wrapped = self.policy
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()

    def get_train_dataloader(self) -> Any:
        """The updates of the whole run: for Trainer it is one epoch."""
        return self.loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], None]:
        """The next update. It carries its own counts."""
        return [{"update": next(epoch_iterator)}], None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over the micro-batches of one update; returns this rank's share of the loss."""
        update: Update = inputs["update"]
        self._current = objective_at(self.objective, self.state.global_step / self.updates)
        set_train_mode(self.policy.lm, dropout=self.dropout)
        if self.loader.pairs_per_row:
            return self._step(model, update)
        random = random_states()

        def step(row_tokens: int) -> torch.Tensor:
            if row_tokens == self.loader.row_tokens:
                return self._step(model, update)
            self.loader.row_tokens = row_tokens
            self._sums = {}
            self.policy.zero_grad()
            set_random_states(random)
            return self._step(model, self.loader.update(update.pairs))

        return in_rows_that_fit(step, self.loader.row_tokens, longest=max(map(row_length, update.pairs)))

    def _step(self, model: Any, update: Update) -> torch.Tensor:
        shares_of_loss = []
        for number, batch in enumerate(update.batches, start=1):
            # Ranks exchange gradients once, with the last micro-batch.
            last = number == len(update.batches)
            with self._exchange(model, last):
                loss = self._loss(model, batch.to(self.args.device), update.counts)
                # DDP averages gradients over ranks; the shares of the ranks must add up.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            shares_of_loss.append(loss.detach())
        return torch.stack(shares_of_loss).sum()

    def _exchange(self, model: Any, sync: bool) -> AbstractContextManager[None]:
        """Return a context whose backward pass exchanges gradients if `sync`."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(sync)
            return nullcontext()
        context: AbstractContextManager[None] = nullcontext() if sync else self.accelerator.no_sync(model)
        return context

    def _loss(self, model: Any, batch: MicroBatch, counts: Mapping[str, int]) -> torch.Tensor:
        """This micro-batch's share of the update's loss. 0-d, in the graph."""
        logps = model(batch.rows)
        output = self._current(
            logps.chosen,
            logps.chosen_lengths,
            logps.rejected,
            logps.rejected_lengths,
            **({"reference": batch.reference} if batch.reference else {}),
        )
        loss = output.loss_over(counts) * float(batch.counted)
        self._accumulate(output, loss, batch, counts)
        return loss

    def _accumulate(
        self, output: ObjectiveOutput, loss: torch.Tensor, batch: MicroBatch, counts: Mapping[str, int]
    ) -> None:
        sums = {"loss": loss} | {name: term.total / counts[term.unit] for name, term in output.terms.items()}
        sums["chosen_logp"] = output.chosen_logps.sum() / counts["pairs"]
        if counts["rejected_tokens"]:
            sums["mean_margin"] = output.margins.sum() / counts["pairs"]
            sums["rejected_logp"] = output.rejected_logps.sum() / counts["pairs"]
        sums["pairs"] = loss.new_full((), batch.rows.counts["pairs"])
        sums["tokens"] = loss.new_full((), batch.rows.real_tokens)
        for name, value in sums.items():
            value = value.detach().double() * float(batch.counted)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand one update's metrics, summed over ranks, to `after_update`, and do what it says."""
        if "loss" in logs:
            names = ("loss", "grad_norm", "learning_rate")
            metrics: dict[str, float] = {name: logs[name] for name in names if name in logs} | self._collect()
            self.pairs_seen += round(metrics.pop("pairs"))
            self.tokens_seen += round(metrics.pop("tokens"))
            follows = self.after_update(self.state.global_step, metrics)
            self.control.should_training_stop |= follows.stop
            # Ours come last: Trainer's loss is a mean over ranks, and over updates that a resumed run did not make.
            logs |= {name: value for name, value in metrics.items() if name != "urgent"}
            super().log(logs, start_time)
            # A user's callback may ask for one, too. A request that is left would be for a checkpoint of Trainer's.
            if follows.save or self.control.should_save:
                self.write_checkpoint()
            return
        super().log(logs, start_time)

    def _collect(self) -> dict[str, float]:
        """The sums of the update over all ranks, and start anew."""
        loss = self._sums["loss"]
        sums = self._sums | {"urgent": loss.new_full((), float(self.urgent()))}
        names, values = list(sums), torch.stack(list(sums.values()))
        self._sums = {}
        return dict(zip(names, self.accelerator.reduce(values, reduction="sum").tolist(), strict=True))

    def write_checkpoint(self) -> None:
        """Write one of ours: Trainer's own are pickled in part, and know nothing of our counters."""
        if self.checkpoints is not None and save_checkpoint(
            self.checkpoints,
            step=self.state.global_step,
            model=self.model_wrapped,
            optimizer=self.bare_optimizer,
            scheduler=self.lr_scheduler,
            counters={"pairs_seen": self.pairs_seen, "tokens_seen": self.tokens_seen, **self.counters()},
        ):
            self.after_save()
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside accelerate's wrapper."""
        optimizer: Any = self.optimizer
        bare: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return bare


class _Resumption(TrainerCallback):
    """Puts a training back where a checkpoint was written, once Trainer has made its optimizer and schedule.

    It is called before the user's callbacks, which see the number of updates that were made.
    """

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Set the number of updates that were made, the moments and the schedule."""
        if saved := self.trainer.saved:
            state.global_step = saved.step
            load_progress(
                saved.path,
                model=self.trainer.model_wrapped,
                optimizer=self.trainer.bare_optimizer,
                scheduler=self.trainer.lr_scheduler,
            )


class _Last(TrainerCallback):
    """What is done after the user's callbacks."""

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Set the random states of a checkpoint, from which a callback may have drawn."""
        if saved := self.trainer.saved:
            load_random_states(saved.path)

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Write the checkpoint that a callback asks for at the end, where nothing is logged any more."""
        if control.should_save:
            self.trainer.write_checkpoint()


def load_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """Import callbacks by `package.module:Class`, and make one of each.

    Raises:
        InputError: One cannot be imported, is no TrainerCallback, or cannot be made without arguments.
    """
    callbacks = []
    for name in names:
        module, _, kind = name.partition(":")
        where = f"training.callbacks: {name}"
        try:
            callback = getattr(importlib.import_module(module), kind)
        except Exception as error:  # whatever the user's own file raises
            raise InputError(
                f"{where} cannot be imported: {error}. Write package.module:Class, with its folder on PYTHONPATH."
            ) from None
        if not (isinstance(callback, type) and issubclass(callback, TrainerCallback)):
            raise InputError(f"{where} is no transformers.TrainerCallback. Derive its class from that.")
        try:
            callbacks.append(callback())
        except Exception as error:  # whatever the user's own class raises
            raise InputError(f"{where} cannot be made without arguments: {error}. Give them defaults.") from None
    return callbacks
