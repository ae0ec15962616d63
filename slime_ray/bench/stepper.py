"""One recipe's training step on one model: what `bench step` times and `bench memory` weighs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

import torch

from slime_ray.data.packing import fill_rows
from slime_ray.errors import InputError
from slime_ray.model.flops import Layout, sizes_of, step_flops

from .cases import Case, build_case
from .lengths import BenchPair, Workload, draw_workload, find_source, sequence_length
from .machine import Machine, describe_machine, find_device, now, threads
from .options import SHAPES, Options
from .recipes import RECIPES, Packed

LEARNING_RATE = 1e-6
ROW_TOKENS = 8192
"""Tokens of a packed row at most, as the product's default has it; a longer pair is a row by itself."""

AtVocabulary = TypeVar("AtVocabulary")


@dataclass(frozen=True, kw_only=True)
class Report(Generic[AtVocabulary]):
    """A whole run of `bench step` or `bench memory`."""

    date: str
    machine: Machine
    device: str
    dtype: str
    threads: int
    shrink: int
    options: Options
    vocabularies: tuple[AtVocabulary, ...]


def report_on(options: Options, measure: Callable[[int, torch.device], AtVocabulary]) -> Report[AtVocabulary]:
    """Measure at each vocabulary. Raises InputError for lengths or a device that cannot be had."""
    device = find_device(options.device)
    vocabularies = options.vocabularies or (SHAPES[options.shape].vocabulary,)
    with threads(options.threads):
        return Report(
            date=now(),
            machine=describe_machine(device),
            device=device.type,
            dtype=options.precision,
            threads=torch.get_num_threads(),
            shrink=options.divisor,
            options=options,
            vocabularies=tuple(measure(size, device) for size in vocabularies),
        )


def ratio(baseline: Sequence[float], candidate: Sequence[float]) -> tuple[float, float, float] | None:
    """Return median, least and most of baseline / candidate; None where one is missing."""
    if not baseline or not candidate:
        return None
    ratios = [baseline_seconds / seconds for baseline_seconds, seconds in zip(baseline, candidate, strict=True)]
    return median(ratios), min(ratios), max(ratios)


@dataclass(frozen=True)
class Step:
    """One step's tensors, ready on the device, and what all of them hold."""

    micros: tuple[Any, ...]
    counts: Mapping[str, int]


def head_of(name: str) -> str:
    """Name what becomes of the output head in a recipe: trained or frozen."""
    return "frozen" if name.endswith("-frozen-head") else "trained"


class Stepper:
    """A recipe with its twin of the model and its own optimizer."""

    def __init__(self, name: str, case: Case):
        self.name, self.head, self.case = name, head_of(name), case
        self.trains_head = self.head == "trained"
        case.train_head(self.trains_head)
        self.recipe = RECIPES[name.removesuffix("-frozen-head")](case.twin())
        self.optimizer: torch.optim.Optimizer | None = None

    def collate(self, pairs: Sequence[BenchPair], micro: int | None) -> Step:
        """Lay a step's tensors out on the device."""
        counts: Counter[str] = Counter(pairs=len(pairs))
        for pair in pairs:
            counts.update(chosen_tokens=pair.lengths.chosen, rejected_tokens=pair.lengths.rejected)
        micros = (self.recipe.collate(part, self.case.device) for part in self._micros(pairs, micro))
        return Step(tuple(micros), dict(counts))

    def layouts(self, pairs: Sequence[BenchPair], micro: int | None) -> list[Layout]:
        """Return what the step's forward passes compute."""
        return [self.recipe.layout([pair.lengths for pair in part]) for part in self._micros(pairs, micro)]

    def _micros(self, pairs: Sequence[BenchPair], micro: int | None) -> list[list[BenchPair]]:
        """Cut a step into forward passes: `micro` pairs at most, and where packed a row's tokens."""
        ordered = sorted(pairs, key=lambda pair: -sequence_length(pair.lengths))
        size = micro or len(ordered)
        micros = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        if not isinstance(self.recipe, Packed):
            return micros
        return [[part[index] for index in row] for part in micros for row in fill_rows(part, row_tokens=ROW_TOKENS)]

    def flops(self, layouts: Sequence[Layout]) -> int:
        """Count the FLOPs of forward and backward passes by formula."""
        sizes = sizes_of(self.case.lm)
        return sum(step_flops(sizes, layout, head_trained=self.trains_head) for layout in layouts)

    def gradients(self, step: Step) -> torch.Tensor:
        """Run the step up to its gradients, which add to what is there; returns the loss, 0-d."""
        self.case.train_head(self.trains_head)
        losses = []
        for micro in step.micros:
            with self.case.autocast():
                loss = self.recipe.loss(micro, step.counts)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def run(self, step: Step) -> torch.Tensor:
        """Run one training step: gradients from nothing, and AdamW. Returns the loss, 0-d.

        The gradients are gone afterwards, so that the next recipe starts without them.
        """
        self.case.train_head(self.trains_head)
        if self.optimizer is None:
            trained = [parameter for parameter in self.case.lm.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
        loss = self.gradients(step)
        self.optimizer.step()
        self.release()
        return loss

    def release(self) -> None:
        """Drop the gradients."""
        for parameter in self.case.lm.parameters():
            parameter.grad = None


def build(options: Options, vocabulary: int, device: torch.device) -> Case:
    """Build the model that the options name."""
    return build_case(
        SHAPES[options.shape],
        vocabulary=vocabulary,
        shrink=options.divisor,
        dtype=getattr(torch, options.precision),
        device=device,
        checkpointing=options.gradient_checkpointing,
        seed=options.seed,
    )


def workload_of(options: Options, vocabulary: int, *, steps: int | None = None) -> Workload:
    """Draw the pairs that the options name. Raises InputError for lengths that cannot be had."""
    if options.max_tokens // options.divisor < 2:
        raise InputError(
            f"--max-tokens {options.max_tokens} with --shrink {options.divisor} leaves no room for a prompt and a "
            "completion. Raise the one or lower the other."
        )
    return draw_workload(
        find_source(options.lengths),
        pairs=options.pairs,
        steps=steps or options.steps,
        vocabulary=vocabulary,
        max_tokens=options.max_tokens,
        shrink=options.divisor,
        seed=options.seed,
        sort_over=options.sort_over,
    )
