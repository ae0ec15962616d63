"""What a benchmark found, as a table to read and as JSON to keep."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.errors import InputError
from slime_ray.planning.tables import table

from .options import Options

if TYPE_CHECKING:
    from .ablation_cases import AblationsReport
    from .coverage import StatisticsReport
    from .exact import ExactReport
    from .generate import GenerateReport
    from .memory import MemoryReport
    from .step import SpeedReport
    from .sweep import SweepReport

SCHEMA = 1
"""Of the JSON files. It rises when a field changes its meaning."""

NOT_MEASURED = "not measured"


def speed_table(report: "SpeedReport") -> str:
    """`bench step` in text."""
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
    """`bench memory` in text."""
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
                f"{_mib(recipe.estimate)} MiB",
                _spread(recipe.to_authors),
                _spread(recipe.to_padded),
            )
            for recipe in at.recipes
        ]
        titles = ("recipe", "head", "step memory", "estimated", "authors' / this", "padded's / this, same head")
        blocks.append(table(titles, rows))
    blocks.append(
        "Medians over as many steps as there are rounds, least to most in brackets; each recipe in its own process, "
        "after a warm-up."
    )
    return "\n\n".join(blocks)


def exact_table(report: "ExactReport") -> str:
    """`bench exact` in text."""
    rows = [
        (check.model, check.what, f"{check.measured:.1e}", f"{check.bound:.0e}", "pass" if check.passed else "FAIL")
        for check in report.checks
    ]
    return "\n\n".join(
        [
            f"Exactness in float64, torch {report.machine.torch}, transformers {report.machine.transformers}, "
            f"{report.date}",
            table(("model", "largest difference of", "measured", "bound", ""), rows),
        ]
    )


def sweep_table(report: "SweepReport") -> str:
    """`bench sweep` in text."""
    machine = report.machine
    runs = [
        ("processes one after another", report.cold, f"{report.ratio:.2f}x"),
        (f"processes, {report.cores} at a time", report.cold_side_by_side, f"{report.ratio_side_by_side:.2f}x"),
        ("one sweep", report.sweep, ""),
    ]
    rows = [(name, *_middle(seconds, 1.0, ".1f"), ratio) for name, seconds, ratio in runs]
    warm = [
        ("training and evaluation", report.training),
        ("everything else", report.beside),
        ("of it between two trials", report.gaps),
    ]
    return "\n\n".join(
        [
            f"{report.trials} trials of {report.updates} updates, on {machine.processor}, {machine.cores} cores; torch "
            f"{machine.torch}, transformers {machine.transformers}, {report.date}; {len(report.sweep)} rounds",
            table(("", "s", "range", "to one sweep"), rows),
            table(
                ("a warm trial, one at a time", "ms", "range"),
                [(name, *_middle(seconds, 1000.0, ".0f")) for name, seconds in warm],
            ),
            "Medians; ranges from least to most. The shared stages were made beforehand. A sweep's time holds Ray's "
            "start and end and the report.",
        ]
    )


def generate_table(report: "GenerateReport") -> str:
    """`bench generate` in text."""
    machine = report.machine
    rows = [
        (
            f"{times.task}, {f'batches of {times.batch}' if times.batch > 1 else 'one at a time'}",
            f"{times.prompts}",
            f"{times.tokens:,}",
            *_middle(times.seconds, 1.0, ".2f"),
            f"{times.prompts / times.median:,.1f}",
        )
        for times in report.times
    ]
    return "\n\n".join(
        [
            f"Answers of the embedded tasks' models on {machine.processor}, {report.threads} thread of {machine.cores} "
            f"cores; torch {machine.torch}, transformers {machine.transformers}, {report.date}; {report.rounds} rounds",
            table(("", "answers", "tokens", "s", "range", "answers/s"), rows),
            "Medians of interleaved rounds; ranges from least to most. Random weights and no stop token: every answer "
            "has as many tokens as its preset allows.",
        ]
    )


def statistics_table(report: "StatisticsReport") -> str:
    """`bench statistics` in text."""
    machine = report.machine
    rows = [
        (
            at.name,
            at.size,
            f"{at.evaluations:,}",
            f"{at.covered:.1%}",
            f"{at.width:.3f}",
            "" if not at.promised else "pass" if at.kept else "FAIL",
        )
        for at in report.coverages
    ]
    together = [sum(one) for one in zip(*report.seconds.values(), strict=True)]
    timed = [*report.seconds.items(), ("together", together)]
    return "\n\n".join(
        [
            f"95 % intervals on simulated evaluations, {report.resamples:,} resamples each; {machine.processor}, "
            f"{machine.cores} cores; Python {machine.python}, {report.date}",
            table(("interval", "size", "evaluations", "covered", "mean width", ""), rows),
            table(
                ("1,000 prompts, 10,000 resamples", "ms", "range"),
                [(name, *_middle(seconds, 1000.0, ".0f")) for name, seconds in timed],
            ),
            f"Medians of {len(together)} rounds, ranges from least to most.",
        ]
    )


def ablations_table(report: "AblationsReport") -> str:
    """`bench ablations` in text."""
    machine = report.machine
    claims = [
        (
            one.name,
            one.size,
            f"{one.studies:,}",
            f"{one.claimed:.1%}",
            f"{one.upper:.1%}",
            f"{one.two_tests:.1%}",
            *(f"{share:.1%}" for share in one.by_test.values()),
            "-" if one.found is None else f"{one.found:.1%}",
            "pass" if one.kept else "FAIL",
        )
        for one in report.claims
    ]
    titles = ("truth", "size", "designs", "false", "bound", "t, flips", *report.claims[0].by_test, "found", "")
    coverings = [
        (
            one.name,
            one.size,
            f"{one.intervals:,}",
            f"{one.covered:.1%}",
            f"{one.width:.3f}",
            "" if not one.promised else "pass" if one.kept else "FAIL",
        )
        for one in report.coverings
    ]
    settled = [(one.name, one.foretold, f"{one.studies:,}", f"{one.power:.1%}") for one in report.settled]
    return "\n\n".join(
        [
            f"Simulated ablations, {report.flips:,} sign flips each; {machine.processor}, {machine.cores} cores; "
            f"Python {machine.python}, {report.date}",
            table(titles, claims),
            "false: designs that claim a difference where there is none, by the rule of the tables; bound: upper end "
            "of its 95 % confidence interval. t, flips: if those two tests were enough; seeds, prompts, both: if one "
            "were. found: planted differences that are claimed.",
            table(("interval", "size", "intervals", "covered", "mean width", ""), coverings),
            table(("true difference", "foretold", "studies of that size", "claimed"), settled),
            f"Shapley values and the total effect were at most {report.shapley:.1e} apart. The effects of 16 cells, 8 "
            f"seeds and 500 prompts took {_middle(report.seconds, 1.0, '.2f')[0]} s "
            f"({_middle(report.seconds, 1.0, '.2f')[1]}).",
        ]
    )


def _middle(seconds: Sequence[float], unit: float, form: str) -> tuple[str, str]:
    values = [unit * value for value in seconds]
    return f"{statistics.median(values):{form}}", f"{min(values):{form}}-{max(values):{form}}"


def as_json(benchmark: str, report: Any) -> dict[str, Any]:
    """A report as JSON takes it. `benchmark`: the name of its subcommand."""
    values = {"benchmark": benchmark, "schema": SCHEMA, **dataclasses.asdict(report)}
    if isinstance(getattr(report, "options", None), Options):
        values["options"] = report.options.as_json()
    return values


def write_json(benchmark: str, report: Any, path: Path) -> None:
    """Write a report. Raises InputError where that is not possible."""
    text = json.dumps(as_json(benchmark, report), indent=1)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--json {path}: cannot be written ({error.strerror}). Name a file in a folder that exists."
        ) from None


def check_json(path: Path | None) -> None:
    """Raise InputError, before anything runs, for a file that could not be written."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--json {path}: cannot be written. Name a file in a folder that exists.")


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
