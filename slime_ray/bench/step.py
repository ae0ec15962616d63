"""How long a training step takes: all recipes in turn on the same pairs, again and again, and medians of that."""

import gc
from contextlib import suppress
from statistics import median
from typing import Any

import torch

from slime_ray.errors import is_memory_error
from slime_ray.model.flops import Layout

from .lengths import Workload
from .machine import Say, find_device, timed
from .options import SHAPES, Options
from .report import Report
from .stepper import Step, Stepper, about, baselines, build, vocabularies_of, workload_of

NOTES = (
    "Medians over rounds, least to most in brackets; tokens are real ones, each prompt counted once. FLOPs by formula, "
    "nothing counted that is computed twice to save memory. Padded steps are sorted by length over 50 steps' pairs."
)


def measure_speed(options: Options, say: Say) -> Report:
    """Time the options' recipes. Raises InputError for lengths or a device that cannot be had."""
    device = find_device(options.device)
    rows = [row for size in vocabularies_of(options) for row in _at_vocabulary(options, size, device, say)]
    return Report("training step", about(options, device), rows, NOTES)


def _at_vocabulary(options: Options, vocabulary: int, device: torch.device, say: Say) -> list[dict[str, Any]]:
    workload = workload_of(options, vocabulary)
    say(f"vocabulary {vocabulary:,}: building the model")
    case = build(options, vocabulary, device)
    runs = [_Run(Stepper(name, case), workload, options, device) for name in options.recipes]
    for run in runs:
        say(f"vocabulary {vocabulary:,}: warming up {run.stepper.name}")
        run.prepare()
    for number in range(options.rounds):
        say(f"vocabulary {vocabulary:,}: round {number + 1} of {options.rounds}")
        for run in runs:
            run.seconds.append([])
        for step in range(options.steps):
            # Each recipe comes first in turn.
            first = (number * options.steps + step) % len(runs)
            for run in [*runs[first:], *runs[:first]]:
                run.time(step)
    return [{"vocabulary": vocabulary} | _row(run, runs, workload, options) for run in runs]


class _Run:
    """One recipe on its way through the rounds. micro: pairs of a forward pass."""

    def __init__(self, stepper: Stepper, workload: Workload, options: Options, device: torch.device):
        self.stepper = stepper
        self.options = options
        self.device = device
        self.pairs = workload.bucketed if stepper.recipe.bucketed else workload.drawn
        self.micro = options.pairs
        self.steps: list[Step] = []
        self.seconds: list[list[float]] = []
        self.failure: str | None = None

    @property
    def totals(self) -> list[float]:
        """Seconds of each round, none where any step failed."""
        return [] if self.failure else [sum(round_seconds) for round_seconds in self.seconds]

    def layouts(self) -> list[Layout]:
        """Return what a round's forward passes compute."""
        return [layout for pairs in self.pairs for layout in self.stepper.layouts(pairs, self.micro)]

    def prepare(self) -> None:
        """Lay the steps out and warm up, at the best micro-batch if that is to be found."""
        if self.options.best_batch:
            self._find_best()
            if self.failure:
                return
        self.steps = [self.stepper.collate(pairs, self.micro) for pairs in self.pairs]
        # On a GPU kernels are compiled, and memory is split, by shape.
        for step in self.steps[:1] if self.device.type == "cpu" else self.steps:
            self._timed(step)

    def time(self, number: int) -> None:
        """Time one step."""
        if not self.failure and (seconds := self._timed(self.steps[number])) is not None:
            self.seconds[-1].append(seconds)

    def _find_best(self) -> None:
        """Double the pairs of a forward pass until memory runs out."""
        tried: dict[float, int] = {}
        for size in sorted({2**power for power in range(self.options.pairs.bit_length())} | {self.options.pairs}):
            steps = [self.stepper.collate(pairs, size) for pairs in self.pairs]
            # Once to warm up, once for the clock.
            _, seconds = ([self._timed(step) for step in steps] for _ in range(2))
            if self.failure:
                break
            tried[sum(each or 0.0 for each in seconds)] = size
        if tried:
            self.failure, self.micro = None, tried[min(tried)]

    def _timed(self, step: Step) -> float | None:
        if self.failure:
            return None
        try:
            return timed(lambda: self.stepper.run(step), self.device)
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            self.failure = "out of memory"
        # Only here, where the error no longer holds the step's tensors.
        self.stepper.release()
        self.stepper.optimizer = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def _row(run: _Run, runs: list[_Run], workload: Workload, options: Options) -> dict[str, Any]:
    layouts, typical = run.layouts(), median(run.totals) if run.totals else None
    flops = run.stepper.flops(layouts)
    authors = [peer.stepper.flops(peer.layouts()) for peer in runs if peer.stepper.name == "authors"]
    real, positions = (sum(getattr(layout, name) for layout in layouts) for name in ("real", "positions"))
    peak = _peak_flops(run.device, SHAPES[options.shape].dtype)
    return {
        "recipe": run.stepper.name,
        "pairs a pass": run.micro,
        "s a step": typical and typical / options.steps,
        "tokens/s": typical and workload.real_tokens / typical,
        "pairs/s": typical and len(workload.pairs) / typical,
        **baselines(run.stepper.name, {peer.stepper.name: peer.totals for peer in runs}),
        "GFLOP a step": flops / options.steps / 1e9,
        "authors' FLOPs / these": authors[0] / flops if authors else None,
        "% of peak": 100 * flops / typical / peak if typical and peak else "not measured",
        "% padding": 100 * (1 - real / positions),
        "failure": run.failure,
        "seconds": run.seconds,
    }


def _peak_flops(device: torch.device, dtype: str) -> float | None:
    """Return a GPU's peak by the shipped table; None for a CPU, an unknown GPU, or where pydantic is not installed."""
    if device.type == "cuda":
        with suppress(ImportError):
            from slime_ray.planning.prices import peak_flops

            return peak_flops(torch.cuda.get_device_name(device), dtype)
    return None
