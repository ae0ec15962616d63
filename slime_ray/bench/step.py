"""How long a training step takes: all recipes in turn on the same pairs, again and again, and medians of that."""

import gc
from dataclasses import dataclass
from statistics import median

import torch

from slime_ray.errors import is_memory_error
from slime_ray.model.flops import Layout
from slime_ray.planning.prices import peak_flops

from .lengths import Workload, sequence_length
from .machine import Say, timed
from .options import Options
from .stepper import Report, Step, Stepper, build, ratio, report_on, workload_of


@dataclass(frozen=True, kw_only=True)
class RecipeSpeed:
    """One recipe at one vocabulary.

    seconds: of every step, round by round; empty where it did not run, and `failure` says why. micro: pairs of a
    forward pass. flops: of a round's steps, by formula. padding: share of its positions. tokens_per_second: of real
    tokens, median over rounds. to_authors, to_padded: how many times the throughput of the authors' recipe, and of the
    padded one with the same head: (median, least, most) over rounds; None without that recipe. tried: seconds of a step
    by `micro` where the best was searched, None where memory ran out.
    """

    name: str
    head: str
    micro: int
    seconds: tuple[tuple[float, ...], ...]
    seconds_per_step: float | None
    tokens_per_second: float | None
    pairs_per_second: float | None
    to_authors: tuple[float, float, float] | None
    to_padded: tuple[float, float, float] | None
    flops: int
    flops_to_authors: float | None
    share_of_peak: float | None
    padding: float
    tried: dict[int, float | None]
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class SpeedAtVocabulary:
    """All recipes at one vocabulary. mean_lengths: of prompts, chosen and rejected completions as they were run."""

    vocabulary: int
    body_parameters: int
    pairs: int
    real_tokens: int
    mean_lengths: tuple[float, float, float]
    longest_sequence: int
    recipes: tuple[RecipeSpeed, ...]


SpeedReport = Report[SpeedAtVocabulary]


def measure_speed(options: Options, say: Say) -> SpeedReport:
    """Time the options' recipes. Raises InputError for lengths or a device that cannot be had."""
    return report_on(options, lambda size, device: _at_vocabulary(options, size, device, say))


def _at_vocabulary(options: Options, vocabulary: int, device: torch.device, say: Say) -> SpeedAtVocabulary:
    workload = workload_of(options, vocabulary)
    say(f"vocabulary {vocabulary:,}: building the model")
    case = build(options, vocabulary, device)
    steppers = [Stepper(name, case) for name in options.recipes]
    runs = [_Run(stepper, workload, options, device) for stepper in steppers]
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
    return SpeedAtVocabulary(
        vocabulary=vocabulary,
        body_parameters=sum(
            module.base_layer.weight.numel() for module in case.lm.modules() if hasattr(module, "lora_A")
        ),
        pairs=len(workload.pairs),
        real_tokens=workload.real_tokens,
        mean_lengths=workload.mean_lengths,
        longest_sequence=max(sequence_length(pair.lengths) for pair in workload.pairs),
        recipes=tuple(_speed(run, runs, workload, options) for run in runs),
    )


class _Run:
    """One recipe on its way through the rounds."""

    def __init__(self, stepper: Stepper, workload: Workload, options: Options, device: torch.device):
        self.stepper = stepper
        self.options = options
        self.device = device
        self.pairs = workload.bucketed if stepper.recipe.bucketed else workload.drawn
        self.micro = options.micro or options.pairs
        self.steps: list[Step] = []
        self.seconds: list[list[float]] = []
        self.tried: dict[int, float | None] = {}
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
        sizes = {2**power for power in range(self.options.pairs.bit_length())} | {self.options.pairs}
        for size in sorted(sizes):
            steps = [self.stepper.collate(pairs, size) for pairs in self.pairs]
            # Once to warm up, once for the clock.
            _, step_seconds = ([self._timed(step) for step in steps] for _ in range(2))
            seconds = [each for each in step_seconds if each is not None]
            self.tried[size] = None if self.failure else sum(seconds) / len(seconds)
            if self.failure:
                break
        timings = {size: seconds for size, seconds in self.tried.items() if seconds is not None}
        if timings:
            self.failure = None
            self.micro = min(timings, key=lambda size: timings[size])

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


def _speed(run: _Run, runs: list[_Run], workload: Workload, options: Options) -> RecipeSpeed:
    stepper, totals, layouts = run.stepper, run.totals, run.layouts()
    flops = stepper.flops(layouts)
    by_name = {peer.stepper.name: peer for peer in runs}
    authors = by_name.get("authors")
    padded = by_name.get("padded" if stepper.trains_head else "padded-frozen-head")
    typical = median(totals) if totals else None
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None
    peak = peak_flops(gpu, options.precision)
    return RecipeSpeed(
        name=stepper.name,
        head=stepper.head,
        micro=run.micro,
        seconds=tuple(tuple(round_seconds) for round_seconds in run.seconds),
        seconds_per_step=typical and typical / options.steps,
        tokens_per_second=typical and workload.real_tokens / typical,
        pairs_per_second=typical and len(workload.pairs) / typical,
        to_authors=ratio(authors.totals if authors else [], totals),
        to_padded=ratio(padded.totals if padded else [], totals),
        flops=flops,
        flops_to_authors=authors.stepper.flops(authors.layouts()) / flops if authors else None,
        share_of_peak=flops / typical / peak if typical and peak else None,
        padding=1 - sum(layout.real for layout in layouts) / sum(layout.positions for layout in layouts),
        tried=run.tried,
        failure=run.failure,
    )
