"""`slime-ray bench gpu`: what only a GPU can say, in parts that each have a process of their own.

A part that fails, hangs or finds no time left is a row with its reason. On a CPU the same runs with sizes cut, which
says that it works and nothing about a GPU.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .machine import Machine, Say, describe_machine, find_device, in_a_process, now

LEAST_SECONDS = 20.0
"""Below what is left of the time no part is started."""
RECIPES = ("packed", "packed-frozen-head", "unshared", "chunked", "padded", "authors")
"""Training steps, the most wanted first."""


@dataclass(frozen=True, kw_only=True)
class GpuSizes:
    """How large the parts are. shape: of the model. pairs: of a step. row: tokens of a row. prompt, answer: tokens of
    each of the answers that are drawn in batches. seconds: that a part may take at most."""

    shape: str
    device: str
    pairs: int
    row: int
    prompt: int
    answer: int
    seconds: float
    batches: Sequence[int] = (64, 256)


FULL = GpuSizes(shape="gemma3-4b", device="cuda", pairs=32, row=8192, prompt=180, answer=256, seconds=240.0)
CUT = GpuSizes(shape="small", device="cpu", pairs=4, row=512, prompt=16, answer=8, seconds=120.0)


@dataclass(frozen=True)
class GpuRow:
    """One measurement. figures: numbers by what they are, with units. failure: why there are none."""

    part: str
    case: str
    figures: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    def text(self) -> str:
        """Say what was measured, or why it was not."""
        if self.failure:
            return f"no figure: {self.failure}"
        return ", ".join(f"{name} {value:,.4g}" for name, value in self.figures.items())


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """A whole run. on_gpu: whether it says anything about one."""

    date: str
    machine: Machine
    on_gpu: bool
    minutes: float
    sizes: GpuSizes
    seconds: float
    rows: tuple[GpuRow, ...]

    def text(self) -> str:
        """Render the report as one table."""
        machine = self.machine
        where = machine.gpu or f"{machine.processor}, {machine.cores} cores: NOT MEASURED ON A GPU, sizes are cut"
        head = (
            f"{self.sizes.shape} shape on {where}\n"
            f"torch {machine.torch}, transformers {machine.transformers}, peft {machine.peft}, {self.date}; "
            f"{self.seconds:.0f} s of {self.minutes:g} minutes"
        )
        lines = [f"{row.part:<12}{row.case:<22}{row.text()}" for row in self.rows]
        return "\n".join([head, "", *lines])


def measure_gpu(*, minutes: float, device: str, say: Say) -> GpuReport:
    """Run all parts within the minutes. Raises InputError for a device that cannot be had."""
    torch_device = find_device(device)
    sizes = FULL if torch_device.type == "cuda" else CUT
    clock = time.perf_counter()
    parts = [
        ("engine", "checks"), ("attention", "kernels"), *(("step", name) for name in RECIPES),
        ("memory", "against the plan"), *(("answers", f"batch {batch}") for batch in sizes.batches),
        ("trial", "bfloat16, end to end"),
    ]  # fmt: skip
    rows: list[GpuRow] = []
    for part, case in parts:
        seconds_left = 60 * minutes - (time.perf_counter() - clock)
        if seconds_left < LEAST_SECONDS:
            rows.append(GpuRow(part, case, failure="no time left"))
            continue
        say(f"{part}, {case}: {seconds_left:.0f} s left")
        rows += run_part(part, case, sizes, seconds=min(seconds_left, sizes.seconds))
    _add_ratios(rows)
    return GpuReport(
        date=now(),
        machine=describe_machine(torch_device),
        on_gpu=torch_device.type == "cuda",
        minutes=minutes,
        sizes=sizes,
        seconds=time.perf_counter() - clock,
        rows=tuple(rows),
    )


def run_part(part: str, case: str, sizes: GpuSizes, *, seconds: float) -> list[GpuRow]:
    """Run one part in a process of its own; return its rows."""
    # Memory is asked for as trials ask for it.
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    environment = {"TORCH_LOGS": "recompiles", "PYTORCH_ALLOC_CONF": allocator}
    work = "slime_ray.bench.gpu_parts:rows_of"
    result = in_a_process(work, part, case, asdict(sizes), seconds=seconds, environment=environment)
    if result.values is None:
        return [GpuRow(part, case, failure=result.failure)]
    rows = [GpuRow(**values) for values in result.values]
    if part == "step" and rows[-1].figures:
        rows[-1].figures["recompilations"] = float(result.log.count("Recompiling function"))
    return rows


def _add_ratios(rows: Sequence[GpuRow]) -> None:
    """Add a step's pairs a second over those of the other recipes."""
    speeds = {row.case: row.figures["pairs/s"] for row in rows if row.part == "step" and row.figures}
    for row in rows:
        if row.part == "step" and row.figures:
            baselines = [name for name in ("authors", "padded", "chunked", "unshared") if name != row.case]
            row.figures.update({f"x {name}": speeds[row.case] / speeds[name] for name in baselines if name in speeds})
