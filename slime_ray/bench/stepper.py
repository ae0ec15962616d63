"""One recipe's training step on one model: what `bench step` times and `bench memory` weighs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from slime_ray.data.packing import fill_rows
from slime_ray.errors import InputError
from slime_ray.model.flops import Layout, sizes_of, step_flops

from .cases import Case, build_case
from .lengths import MAX_TOKENS, BenchPair, Workload, draw_workload, find_source, sequence_length
from .options import SHAPES, Options
from .recipes import RECIPES, Packed
from .report import machine

LEARNING_RATE = 1e-6
ROW_TOKENS = 8192
"""Tokens of a packed row at most, as the product's default has it; a longer pair is a row by itself."""
SEED = 0
"""Of weights, lengths and tokens."""


def vocabularies_of(options: Options) -> Sequence[int]:
    """Return the sizes of the head at which to measure."""
    return options.vocabularies or (SHAPES[options.shape].vocabulary,)


def about(options: Options, device: torch.device) -> dict[str, Any]:
    """Describe what is measured where."""
    shape = {"shape": options.shape, "dtype": SHAPES[options.shape].dtype, "divided by": options.divisor}
    workload = {name: getattr(options, name) for name in ("lengths", "pairs", "steps", "rounds")}
    return {**machine(device), "threads": torch.get_num_threads(), **shape, **workload}


def baselines(name: str, totals: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float] | None]:
    """Return the authors' recipe over this one and the padded one, with the same head, over this one.

    Each is median, least and most over rounds; None without that recipe. totals: of each round, by recipe.
    """
    padded = "padded-frozen-head" if name.endswith("-frozen-head") else "padded"
    ratios = {}
    for column, baseline in (("authors' / this", "authors"), ("padded's / this, same head", padded)):
        pairs = zip(totals.get(baseline, ()), totals[name], strict=False)
        shares = [other / own for other, own in pairs]
        ratios[column] = (median(shares), min(shares), max(shares)) if shares else None
    return ratios


@dataclass(frozen=True)
class Step:
    """One step's tensors, ready on the device, and what all of them hold."""

    micros: tuple[Any, ...]
    counts: Mapping[str, int]


class Stepper:
    """A recipe with its twin of the model and its own optimizer."""

    def __init__(self, name: str, case: Case):
        self.name, self.case, self.trains_head = name, case, not name.endswith("-frozen-head")
        case.train_head(self.trains_head)
        self.recipe = RECIPES[name.removesuffix("-frozen-head")](case.twin())
        self.optimizer: torch.optim.Optimizer | None = None

    def collate(self, pairs: Sequence[BenchPair], micro: int) -> Step:
        """Lay a step's tensors out on the device."""
        counts: Counter[str] = Counter(pairs=len(pairs))
        for pair in pairs:
            counts.update(chosen_tokens=pair.lengths.chosen, rejected_tokens=pair.lengths.rejected)
        micros = (self.recipe.collate(part, self.case.device) for part in self._micros(pairs, micro))
        return Step(tuple(micros), dict(counts))

    def layouts(self, pairs: Sequence[BenchPair], micro: int) -> list[Layout]:
        """Return what the step's forward passes compute."""
        return [self.recipe.layout([pair.lengths for pair in part]) for part in self._micros(pairs, micro)]

    def _micros(self, pairs: Sequence[BenchPair], micro: int) -> list[list[BenchPair]]:
        """Cut a step into forward passes: `micro` pairs at most, and where packed a row's tokens."""
        ordered = sorted(pairs, key=lambda pair: -sequence_length(pair.lengths))
        micros = [ordered[start : start + micro] for start in range(0, len(ordered), micro)]
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
    shape = SHAPES[options.shape]
    dtype = getattr(torch, shape.dtype)
    return build_case(shape, vocabulary=vocabulary, shrink=options.divisor, dtype=dtype, device=device, seed=SEED)


def workload_of(options: Options, vocabulary: int, *, steps: int | None = None) -> Workload:
    """Draw the pairs that the options name. Raises InputError for lengths that cannot be had."""
    if MAX_TOKENS // options.divisor < 2:
        raise InputError(f"--shrink {options.divisor}: leaves no room for a prompt and a completion. Lower it.")
    return draw_workload(
        find_source(options.lengths),
        pairs=options.pairs,
        steps=steps or options.steps,
        vocabulary=vocabulary,
        shrink=options.divisor,
        seed=SEED,
    )
