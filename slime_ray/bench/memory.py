"""How much memory a training step takes: its highest point less what was held before it, each recipe in a process of
its own, so that none profits from what another left behind.

Every recipe runs the same pairs. Sorting by length over many steps would not lower the highest point: the step of the
longest pairs sets it.
"""

import ctypes
import gc
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from slime_ray.errors import InputError

from .machine import ProcessResult, Say, find_device, in_a_process, process_bytes, threads
from .options import Options
from .stepper import Report, Step, Stepper, build, head_of, ratio, report_on, workload_of


@dataclass(frozen=True, kw_only=True)
class RecipeMemory:
    """One recipe at one vocabulary, in bytes.

    steps: each measured step's; empty where it did not run, and `failure` says why. step_bytes: their median.
    to_authors, to_padded: how many times less than the authors' recipe, and than the padded one with the same head:
    (median, least, most) over the same pairs; None without that recipe.
    """

    name: str
    head: str
    steps: tuple[int, ...]
    step_bytes: float | None
    to_authors: tuple[float, float, float] | None = None
    to_padded: tuple[float, float, float] | None = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryAtVocabulary:
    """All recipes at one vocabulary. mean_lengths: of prompts, chosen and rejected completions as they were run."""

    vocabulary: int
    mean_lengths: tuple[float, float, float]
    recipes: tuple[RecipeMemory, ...]


MemoryReport = Report[MemoryAtVocabulary]


def measure_memory(options: Options, say: Say) -> MemoryReport:
    """Weigh the options' recipes. Raises InputError for lengths or a device that cannot be had."""
    if find_device(options.device).type == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        raise InputError("--device cpu: /proc/self/clear_refs cannot be written here. Measure on Linux, or a GPU.")
    return report_on(options, lambda size, device: _at_vocabulary(options, size, device, say))


def _at_vocabulary(options: Options, vocabulary: int, device: torch.device, say: Say) -> MemoryAtVocabulary:
    workload = workload_of(options, vocabulary, steps=options.rounds)
    recipes = {}
    for name in options.recipes:
        say(f"vocabulary {vocabulary:,}: {name}")
        result = _weigh(name, options, vocabulary, device)
        recipes[name] = RecipeMemory(
            name=name,
            head=head_of(name),
            steps=tuple(result.values or ()),
            step_bytes=median(result.values) if result.values else None,
            failure=result.failure,
        )
    weighed = {name: [max(1, size) for size in recipe.steps] for name, recipe in recipes.items()}
    padded = {"trained": "padded", "frozen": "padded-frozen-head"}
    compared = tuple(
        replace(
            recipe,
            to_authors=ratio(weighed.get("authors", []), weighed[name]),
            to_padded=ratio(weighed.get(padded[recipe.head], []), weighed[name]),
        )
        for name, recipe in recipes.items()
    )
    return MemoryAtVocabulary(vocabulary=vocabulary, mean_lengths=workload.mean_lengths, recipes=compared)


def _weigh(name: str, options: Options, vocabulary: int, device: torch.device) -> ProcessResult:
    # One arena, so that what was freed goes back to the system.
    work, environment = "slime_ray.bench.memory:weigh_steps", {"MALLOC_ARENA_MAX": "1"}
    return in_a_process(work, name, asdict(options), vocabulary, device.type, environment=environment)


def weigh_steps(recipe: str, values: dict[str, Any], vocabulary: int, device_type: str) -> list[int]:
    """Return the bytes of each of the options' rounds, of other pairs each, the same for every recipe."""
    options, device = Options(**values), find_device(device_type)
    workload = workload_of(options, vocabulary, steps=options.rounds)
    with threads(options.threads):
        stepper = Stepper(recipe, build(options, vocabulary, device))
        stepper.run(stepper.collate(workload.drawn[0], options.micro))  # to warm up
        return [weigh(stepper, stepper.collate(pairs, options.micro), device) for pairs in workload.drawn]


def weigh(stepper: Stepper, step: Step, device: torch.device) -> int:
    """Return the bytes that a step takes at its highest point, next to what is held before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        stepper.run(step)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    # The highest point of the resident set becomes what it is now.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = process_bytes("VmRSS")
    stepper.run(step)
    return process_bytes("VmHWM") - before
