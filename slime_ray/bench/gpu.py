"""`slime-ray bench gpu`: what only a GPU can say, in parts that each have a process of their own.

A part that fails, hangs or finds no time left is a row with its reason. On a CPU the same runs with sizes cut, which
says that it works and nothing about a GPU.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .gpu_parts import GpuSizes, rows_of
from .machine import Say, find_device, in_a_process
from .report import Report, machine

LEAST_SECONDS = 20.0
"""Below what is left of the time no part is started."""
RECIPES = ("packed", "packed-frozen-head", "unshared", "chunked", "padded", "authors")
"""Training steps, the most wanted first."""
PARTS = (
    ("attention", "kernels"), *(("step", name) for name in RECIPES), ("memory", "against the plan"),
    ("answers", "batch 64"), ("answers", "batch 256"), ("trial", "bfloat16, end to end"),
)  # fmt: skip


FULL = GpuSizes(shape="gemma3-4b", device="cuda", pairs=32, row=8192, prompt=180, answer=256, seconds=240.0)
CUT = GpuSizes(shape="small", device="cpu", pairs=4, row=512, prompt=16, answer=8, seconds=120.0)


def measure_gpu(*, minutes: float, device: str, say: Say) -> Report:
    """Run all parts within the minutes. Raises InputError for a device that cannot be had."""
    torch_device = find_device(device)
    sizes = FULL if torch_device.type == "cuda" else CUT
    clock = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for part, case in PARTS:
        seconds_left = 60 * minutes - (time.perf_counter() - clock)
        if seconds_left < LEAST_SECONDS:
            rows.append({"part": part, "case": case, "failure": "no time left"})
            continue
        say(f"{part}, {case}: {seconds_left:.0f} s left")
        rows += run_part(part, case, sizes, seconds=min(seconds_left, sizes.seconds))
    _add_ratios(rows)
    cut = "" if torch_device.type == "cuda" else "NOT MEASURED ON A GPU, sizes are cut."
    return Report("gpu", {**machine(torch_device), **asdict(sizes)}, rows, cut)


def run_part(part: str, case: str, sizes: GpuSizes, *, seconds: float) -> list[dict[str, Any]]:
    """Run one part in a process of its own; return its rows."""
    # Memory is asked for as trials ask for it.
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    environment = {"TORCH_LOGS": "recompiles", "PYTORCH_ALLOC_CONF": allocator}
    result = in_a_process(rows_of, part, case, sizes, seconds=seconds, environment=environment)
    if result.values is None:
        return [{"part": part, "case": case, "failure": result.failure}]
    rows = [{"part": part, **row} for row in result.values]
    if part == "step" and "figures" in rows[-1]:
        rows[-1]["figures"]["recompilations"] = result.log.count("Recompiling function")
    return rows


def _add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Add a step's pairs a second over those of the other recipes."""
    steps = {row["case"]: row["figures"] for row in rows if row["part"] == "step" and "figures" in row}
    for name, figures in steps.items():
        for baseline in ("authors", "padded", "chunked", "unshared"):
            if baseline in steps and baseline != name:
                figures[f"x {baseline}"] = figures["pairs/s"] / steps[baseline]["pairs/s"]
