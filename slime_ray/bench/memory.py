"""How much memory a training step takes: its highest point less what was held before it, each recipe in a process of
its own, so that none profits from what another left behind.

Every recipe runs the same pairs. Sorting by length over many steps would not lower the highest point: the step of the
longest pairs sets it.
"""

import os
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch

from slime_ray.errors import InputError
from slime_ray.model.flops import Layout

from .cases import SHAPES, Shape
from .lengths import BenchPair
from .machine import Say, available_bytes, find_device, in_a_process
from .options import Options
from .recipes import layout_of
from .stepper import Report, dtype_of, micros_of, ratio, report_on, workload_of

LOGITS_ALIVE = {"authors": 4.5, "padded": 3.2, "chunked": 0.0, "packed": 0.0, "unshared": 0.0}
"""Copies of its float32 logits that a recipe holds at its highest point, from measurements."""


@dataclass(frozen=True, kw_only=True)
class RecipeMemory:
    """One recipe at one vocabulary, in bytes.

    steps: each measured step's; empty where it did not run, and `failure` says why. step_bytes: their median. estimate:
    made before. to_authors, to_padded: how many times less than the authors' recipe, and than the padded one with the
    same head: (median, least, most) over the same pairs; None without that recipe.
    """

    name: str
    head: str
    steps: tuple[int, ...]
    step_bytes: float | None
    estimate: float
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
    found = {}
    for name in options.recipes:
        say(f"vocabulary {vocabulary:,}: {name}")
        found[name] = _weigh(name, options, vocabulary, workload.drawn, device)
    weighed = {name: [max(1, size) for size in recipe.steps] for name, recipe in found.items()}
    recipes = tuple(
        replace(
            recipe,
            to_authors=ratio(weighed.get("authors", []), weighed[name]),
            to_padded=ratio(
                weighed.get("padded" if recipe.head == "trained" else "padded-frozen-head", []), weighed[name]
            ),
        )
        for name, recipe in found.items()
    )
    return MemoryAtVocabulary(vocabulary=vocabulary, mean_lengths=workload.mean_lengths, recipes=recipes)


def _weigh(
    name: str, options: Options, vocabulary: int, steps: tuple[tuple[BenchPair, ...], ...], device: torch.device
) -> RecipeMemory:
    shape = SHAPES[options.shape]
    itemsize = 2 if dtype_of(options) == "bfloat16" else 4
    estimate = max(
        estimate_bytes(name, layout_of(name, [pair.lengths for pair in micro]), shape, vocabulary, itemsize)
        for pairs in steps
        for micro in micros_of(name, pairs, options.micro)
    )
    head = "frozen" if name.endswith("-frozen-head") else "trained"
    needed = estimate + weights_bytes(shape, vocabulary, itemsize)
    available = available_bytes(device)
    failure: str | None = f"needs about {needed / 2**30:.0f} GiB, not run"
    measured: list[int] = []
    if not available or needed <= available:
        measured, failure = _in_a_process(name, options, vocabulary, device)
    return RecipeMemory(
        name=name,
        head=head,
        steps=tuple(measured),
        step_bytes=median(measured) if measured else None,
        estimate=estimate,
        failure=failure,
    )


def _in_a_process(name: str, options: Options, vocabulary: int, device: torch.device) -> tuple[list[int], str | None]:
    """Bytes of each step, or why there are none."""
    request = {
        "recipe": name,
        "vocabulary": vocabulary,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "options": asdict(options),
    }
    # One arena, so that what was freed goes back to the system.
    answer = in_a_process("slime_ray.bench.memory_child", request, environment={"MALLOC_ARENA_MAX": "1"})
    if answer.values is None:
        return [], answer.failure
    return answer.values["steps"], answer.values["failure"]


def estimate_bytes(name: str, layout: Layout, shape: Shape, vocabulary: int, itemsize: int) -> float:
    """Roughly the step memory of a forward and backward pass over this layout."""
    # Per position and layer what the backward pass reads again, of each size.
    layer = 14 * shape.hidden + 6 * shape.intermediate + 6 * shape.heads * shape.head_size
    body = layout.positions * shape.layers * layer * itemsize
    kind = name.split("-")[0]
    trained_head = 0 if name.endswith("-frozen-head") else vocabulary * shape.hidden * itemsize
    return body + trained_head + LOGITS_ALIVE[kind] * layout.logits * vocabulary * 4


def weights_bytes(shape: Shape, vocabulary: int, itemsize: int) -> float:
    """Roughly what is held before a step: weights, embeddings, two heads and the optimizer's state."""
    attention = shape.hidden * shape.head_size * (2 * shape.heads + 2 * shape.key_heads)
    body = shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    return itemsize * (body + 5 * vocabulary * shape.hidden)
