"""`slime-ray bench`: parses, calls, prints. What a benchmark needs is imported when it runs."""

import argparse
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from slime_ray.cli.options import add_command
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from slime_ray.bench.options import Options

Report = TypeVar("Report")
DEVICES = ("auto", "cpu", "cuda")


def add_commands(commands: Any) -> None:
    """Register it."""
    bench = add_command(
        commands, "bench", None, "measure the training step and the plan on this machine",
        [
            "slime-ray bench step  # speed, next to the authors' recipe and padded batches; minutes on a laptop",
            "slime-ray bench memory --vocab 32768",
            "slime-ray bench gpu --minutes 20 --json > gpu.json  # all that only a GPU can say, in one table",
            "slime-ray bench plan  # what `slime-ray plan --probe` says of sweeps, and what they then take",
        ],
        more="Weights and tokens of the training step are random.",
    )  # fmt: skip
    kinds = bench.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")

    step = kinds.add_parser("step", help="seconds, tokens and FLOPs of a training step")
    _measurement_options(step)
    step.add_argument("--steps", type=int, default=4, help="steps of a round, different pairs each (default 4)")
    step.add_argument(
        "--sort-over", type=int, default=50, metavar="STEPS",
        help="steps' worth of pairs that padded recipes sort by length; 1 for none (default 50)",
    )  # fmt: skip
    step.add_argument("--best-batch", action="store_true", help="let each recipe find its best pairs a forward pass")
    step.set_defaults(command=_step)

    memory = kinds.add_parser(
        "memory",
        help="memory that a training step takes, each recipe in a process of its own",
        description="Measure the memory of a training step. Recipes that do not fit are run all the same: on a CPU\n"
        "memory then runs out, and the system kills processes, the recipe's first. Begin with a small --vocab.",
    )
    _measurement_options(memory)
    memory.set_defaults(command=_memory)

    gpu = kinds.add_parser("gpu", help="attention, steps, memory, answers and a trial on a GPU, in one table")
    gpu.add_argument("--minutes", type=float, default=20.0, help="time for all of it (default 20)")
    gpu.add_argument("--device", choices=DEVICES, default="auto", help="a CPU runs it with sizes cut (default auto)")
    gpu.set_defaults(command=_gpu)

    plan = kinds.add_parser("plan", help="plans after a probe against the sweeps that they are of")
    plan.add_argument("--cases", action="append", metavar="NAME", help="only this sweep; may be repeated (default all)")
    plan.add_argument("--rounds", type=int, default=2, help="repetitions, a probe before each sweep (default 2)")
    plan.set_defaults(command=_plan)

    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="print every measurement as JSON instead of the table")


def _measurement_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--vocab", action="append", default=[], metavar="N", help="head size; may be repeated, or 4096,32768 "
        "(default: the shape's, 4096 for small)")  # fmt: skip
    add("--lengths", default="ultrafeedback", metavar="FILE|NAME", help="JSONL with prompt, chosen and rejected, whose "
        "words and marks are counted; or ultrafeedback or longest (default ultrafeedback)")  # fmt: skip
    add("--shrink", type=int, metavar="K", help="divide all lengths by K (default: the shape's, 4 for small)")
    add("--max-tokens", type=int, default=2048, help="longest sequence before shrinking (default 2048)")
    add("--pairs", type=int, default=8, help="pairs of a training step (default 8)")
    add("--micro", type=int, help="pairs of a forward pass (default: all of the step's)")
    add("--rounds", type=int, default=3, help="repetitions, of which medians are taken (default 3)")
    add("--dtype", choices=("float32", "bfloat16"), help="default: the shape's, float32 for small")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--device", choices=DEVICES, default="auto", help="default auto")
    add("--shape", choices=("small", "gemma3-4b"), default="small", help="default small")
    add("--recipes", default="", metavar="A,B", help="only these recipes (default all)")
    add("--gradient-checkpointing", action="store_true", help="compute each layer again in the backward pass")
    add("--seed", type=int, default=0, help="of weights, lengths and tokens (default 0)")


def _step(options: argparse.Namespace) -> None:
    from slime_ray.bench.step import measure_speed
    from slime_ray.bench.tables import speed_table

    _show("step", options, speed_table, measure_speed(_options(options), _say))


def _memory(options: argparse.Namespace) -> None:
    from slime_ray.bench.memory import measure_memory
    from slime_ray.bench.tables import memory_table

    _show("memory", options, memory_table, measure_memory(_options(options), _say))


def _gpu(options: argparse.Namespace) -> None:
    from slime_ray.bench.gpu import GpuReport, measure_gpu

    _check_minimum(options, minutes=1)
    _show("gpu", options, GpuReport.text, measure_gpu(minutes=options.minutes, device=options.device, say=_say))


def _plan(options: argparse.Namespace) -> None:
    from slime_ray.bench.plan import CASES, measure_plans
    from slime_ray.bench.tables import plan_table

    _check_minimum(options, rounds=1)
    cases = options.cases or list(CASES)
    for case in cases:
        if case not in CASES:
            raise InputError(f"--cases {case}: must be among {', '.join(map(repr, CASES))}.")
    _show("plan", options, plan_table, measure_plans(cases=cases, rounds=options.rounds, say=_say))


def _show(name: str, options: argparse.Namespace, table: Callable[[Report], str], report: Report) -> None:
    from slime_ray.bench.tables import show

    show(name, report, table(report), as_json=options.json)


def _check_minimum(options: argparse.Namespace, **bounds: int) -> None:
    for name, minimum in bounds.items():
        if getattr(options, name) < minimum:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least {minimum}.")


def _parse_names(text: str, choices: Collection[str], *, option: str) -> list[str]:
    """The names of a list with commas. Raises InputError for one that is not known."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in choices:
            raise InputError(f"{option} {name}: must be among {', '.join(choices)}.")
    return names


def _options(options: argparse.Namespace) -> "Options":
    from slime_ray.bench.options import RECIPES, Options

    values = vars(options)
    return Options(
        **{name: values[name] for name in Options.__dataclass_fields__ if name in values and name != "recipes"},
        vocabularies=_vocabularies(options.vocab),
        recipes=_parse_names(options.recipes, RECIPES, option="--recipes") if options.recipes else RECIPES,
    )


def _vocabularies(sizes: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(size) for text in sizes for size in text.split(","))
    except ValueError:
        raise InputError(f"--vocab {','.join(sizes)}: must be whole numbers, such as 4096 or 4096,32768.") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
