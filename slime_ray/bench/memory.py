"""How much memory a training step takes: its highest point less what was held before it, each recipe in a process of
its own, so that none profits from what another left behind.

Every recipe runs the same pairs. Sorting by length over many steps would not lower the highest point: the step of the
longest pairs sets it.
"""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from slime_ray.errors import InputError

from .machine import Say, find_device, in_a_process, process_bytes
from .options import Options
from .report import Report
from .stepper import Step, Stepper, about, baselines, build, vocabularies_of, workload_of

NOTES = (
    "The highest point of a step less what was held before it: medians over as many steps as there are rounds, least "
    "to most in brackets; each recipe in its own process, after a warm-up. The same pairs for every recipe."
)


def measure_memory(options: Options, say: Say) -> Report:
    """Weigh the options' recipes. Raises InputError for lengths or a device that cannot be had."""
    device = find_device(options.device)
    if device.type == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        raise InputError("--device cpu: /proc/self/clear_refs cannot be written here. Measure on Linux, or a GPU.")
    rows: list[dict[str, Any]] = []
    for vocabulary in vocabularies_of(options):
        workload_of(options, vocabulary, steps=options.rounds)
        weighed: dict[str, list[int]] = {}
        for name in options.recipes:
            say(f"vocabulary {vocabulary:,}: {name}")
            # One arena, so that what was freed goes back to the system.
            alone = {"MALLOC_ARENA_MAX": "1"}
            result = in_a_process(weigh_steps, name, options, vocabulary, device.type, environment=alone)
            weighed[name] = [max(1, size) for size in result.values or ()]
            typical = median(result.values) / 2**20 if result.values else None
            row = {"vocabulary": vocabulary, "recipe": name, "MiB": typical, "failure": result.failure}
            rows.append(row | {"bytes of each step": list(result.values or ())})
        for row in rows[-len(weighed) :]:
            row |= baselines(row["recipe"], weighed)
    return Report("step memory", about(options, device), rows, NOTES)


def weigh_steps(recipe: str, options: Options, vocabulary: int, device_type: str) -> list[int]:
    """Return the bytes of each of the options' rounds, of other pairs each, the same for every recipe."""
    device, workload = find_device(device_type), workload_of(options, vocabulary, steps=options.rounds)
    stepper = Stepper(recipe, build(options, vocabulary, device))
    stepper.run(stepper.collate(workload.drawn[0], options.pairs))  # to warm up
    return [weigh(stepper, stepper.collate(pairs, options.pairs), device) for pairs in workload.drawn]


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
