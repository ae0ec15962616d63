"""Tables of the benchmarks, and their reports as JSON."""

import dataclasses
import json
import statistics
import sys
from typing import TYPE_CHECKING, Any

from slime_ray.planning.tables import table

if TYPE_CHECKING:
    from .memory import MemoryReport
    from .plan import PlanReport
    from .step import SpeedReport

SCHEMA = 1
"""Of the JSON files. It rises when a field changes its meaning."""

NOT_MEASURED = "not measured"

FIGURES = {
    "time": ".0f",
    "trial seconds": ".0f",
    "tokens": ",.0f",
    "peak MiB": ",.0f",
    "disk MiB": ",.1f",
}
"""What is planned and then measured, and how it is written."""


def speed_table(report: "SpeedReport") -> str:
    """Render `bench step` as text."""
    blocks = [_header(report, "Training step")]
    for at in report.vocabularies:
        steps = report.options.steps
        blocks.append(
            f"Vocabulary {at.vocabulary:,}, body {at.body_parameters / 1e6:,.1f} M weights. {at.pairs} pairs a round "
            f"in {steps} steps, {at.real_tokens:,} tokens with each prompt once; mean prompt {at.mean_lengths[0]:.0f}, "
            f"chosen {at.mean_lengths[1]:.0f}, rejected {at.mean_lengths[2]:.0f}, longest sequence "
            f"{at.longest_sequence}."
        )
        rows = [
            (
                recipe.name,
                recipe.head,
                f"{recipe.micro}",
                recipe.failure or _number(recipe.seconds_per_step, ".3g"),
                _number(recipe.tokens_per_second, ",.0f"),
                _number(recipe.pairs_per_second, ".3g"),
                _spread(recipe.to_authors),
                _spread(recipe.to_padded),
                f"{recipe.flops / steps / 1e9:,.1f}",
                _number(recipe.flops_to_authors, ".2f", "x"),
                NOT_MEASURED if recipe.share_of_peak is None else f"{recipe.share_of_peak:.1%}",
                f"{recipe.padding:.0%}",
            )
            for recipe in at.recipes
        ]
        titles = (
            "recipe", "head", "pairs/pass", "s/step", "tokens/s", "pairs/s", "to authors", "to padded, same head",
            "GFLOP/step", "FLOP ratio", "of peak", "padding",
        )  # fmt: skip
        blocks.append(table(titles, rows))
    sorted_over = report.options.sort_over
    blocks.append(
        "Medians over rounds, least to most in brackets; tokens are real ones, each prompt counted once. FLOPs by "
        "formula, nothing counted that is computed twice to save memory. Padded steps "
        + (f"sorted by length over {sorted_over} steps' worth of pairs." if sorted_over > 1 else "as drawn, unsorted.")
    )
    return "\n\n".join(blocks)


def memory_table(report: "MemoryReport") -> str:
    """Render `bench memory` as text."""
    blocks = [_header(report, "Step memory: the highest point of a training step less what was held before it")]
    for at in report.vocabularies:
        blocks.append(
            f"Vocabulary {at.vocabulary:,}. {report.options.pairs} pairs a step, the same for every recipe; mean "
            f"prompt {at.mean_lengths[0]:.0f}, chosen {at.mean_lengths[1]:.0f}, rejected {at.mean_lengths[2]:.0f}."
        )
        rows = [
            (
                recipe.name,
                recipe.head,
                recipe.failure or f"{_mib(recipe.step_bytes)} MiB",
                _spread(recipe.to_authors),
                _spread(recipe.to_padded),
            )
            for recipe in at.recipes
        ]
        titles = ("recipe", "head", "step memory", "authors' / this", "padded's / this, same head")
        blocks.append(table(titles, rows))
    blocks.append(
        "Medians over as many steps as there are rounds, least to most in brackets; each recipe in its own process, "
        "after a warm-up."
    )
    return "\n\n".join(blocks)


def plan_table(report: "PlanReport") -> str:
    """Render `bench plan` as text."""
    machine = report.machine
    rows = [
        (run.case, *(_error(run.planned[name], run.ran[name], form) for name, form in FIGURES.items()))
        for run in report.runs
    ]
    errors = [
        (name, _percent(statistics.median(gaps)), f"{_percent(min(gaps))} to {_percent(max(gaps))}",
         f"{sum(abs(error) <= 0.25 for error in gaps)} of {len(gaps)}")
        for name in FIGURES
        for gaps in ([run.planned[name] / run.ran[name] - 1 for run in report.runs],)
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"Plans after a probe, and the sweeps that were then run, on {machine.processor}, {machine.cores} cores; "
            f"torch {machine.torch}, transformers {machine.transformers}, {report.date}",
            table(("sweep", *FIGURES), rows),
            table(("planned to run", "median error", "range", "within 25 %"), errors),
            *(
                [f"{len(report.failed)} sweeps did not come to their end, the first {report.failed[0]}"]
                if report.failed
                else []
            ),
            "Planned / run. Time is that of the whole command, trial seconds those of all trials together. With other "
            "work on the machine, what a probe saw and what a sweep saw differ.",
        ]
    )


def show(benchmark: str, report: Any, text: str, *, as_json: bool) -> None:
    """Print the table; with `as_json` every measurement, and the table on standard error."""
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        print(json.dumps({"benchmark": benchmark, "schema": SCHEMA, **dataclasses.asdict(report)}, indent=1))


def _header(report: Any, title: str) -> str:
    machine, options = report.machine, report.options
    where = machine.gpu or f"{machine.processor}, {machine.cores} cores, {report.threads} threads"
    return "\n".join(
        [
            f"{title}. {options.shape} shape, {report.dtype}, on {where}; {machine.memory_gib} GiB of RAM",
            f"torch {machine.torch}, transformers {machine.transformers}, peft {machine.peft}, {report.date}",
            f"lengths: {options.lengths}, sequences of at most {options.max_tokens} tokens, divided by "
            f"{report.shrink}; {options.pairs} pairs a step, {options.rounds} rounds, seed {options.seed}"
            + (", gradient checkpointing" if options.gradient_checkpointing else ""),
        ]
    )


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _spread(ratio: tuple[float, float, float] | None) -> str:
    return "-" if ratio is None else f"{ratio[0]:.2f}x ({ratio[1]:.2f}-{ratio[2]:.2f})"


def _mib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"


def _error(planned: float, ran: float, form: str) -> str:
    return f"{planned:{form}} / {ran:{form}} ({_percent(planned / ran - 1)})"


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %"
