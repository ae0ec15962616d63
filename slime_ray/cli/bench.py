"""`slime-ray bench`: parses, calls, prints. What a benchmark needs is imported when it runs."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from slime_ray.cli.options import add_command
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from slime_ray.bench.options import Options

DEVICES = ("auto", "cpu", "cuda")


def add_commands(commands: Any) -> None:
    """Register it."""
    bench = add_command(
        commands, "bench", None, "measure the training step and the plan on this machine",
        [
            "slime-ray bench step  # speed, next to the authors' recipe and padded batches; minutes on a laptop",
            "slime-ray bench memory --vocab 32768",
            "slime-ray bench gpu --minutes 20 --json > gpu.json  # what a GPU does, in one table",
            "slime-ray bench plan  # what `slime-ray plan --probe` says of sweeps, and what they then take",
        ],
        more="Weights and tokens of the training step are random.",
    )  # fmt: skip
    kinds = bench.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")

    step = kinds.add_parser("step", help="seconds, tokens and FLOPs of a training step")
    _measurement_options(step)
    step.add_argument("--steps", type=int, default=4, help="steps of a round, different pairs each (default 4)")
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
    add("--pairs", type=int, default=8, help="pairs of a training step (default 8)")
    add("--rounds", type=int, default=3, help="repetitions, of which medians are taken (default 3)")
    add("--device", choices=DEVICES, default="auto", help="default auto")
    add("--shape", choices=("small", "gemma3-4b"), default="small", help="default small")
    add("--recipes", metavar="A,B", help="only these recipes (default all)")


def _step(options: argparse.Namespace) -> None:
    from slime_ray.bench.step import measure_speed

    measure_speed(_options(options), _say).show(as_json=options.json)


def _memory(options: argparse.Namespace) -> None:
    from slime_ray.bench.memory import measure_memory

    measure_memory(_options(options), _say).show(as_json=options.json)


def _gpu(options: argparse.Namespace) -> None:
    from slime_ray.bench.gpu import measure_gpu

    if options.minutes < 1:
        raise InputError(f"--minutes {options.minutes}: must be at least 1.")
    measure_gpu(minutes=options.minutes, device=options.device, say=_say).show(as_json=options.json)


def _plan(options: argparse.Namespace) -> None:
    from slime_ray.bench.plan import CASES, measure_plans

    if options.rounds < 1:
        raise InputError(f"--rounds {options.rounds}: must be at least 1.")
    cases = options.cases or list(CASES)
    for case in cases:
        if case not in CASES:
            raise InputError(f"--cases {case}: must be among {', '.join(map(repr, CASES))}.")
    measure_plans(cases=cases, rounds=options.rounds, say=_say).show(as_json=options.json)


def _options(options: argparse.Namespace) -> "Options":
    from slime_ray.bench.options import RECIPES, Options

    values = vars(options)
    sizes = ",".join(options.vocab)
    try:
        vocabularies = tuple(int(size) for size in sizes.split(",") if sizes)
    except ValueError:
        raise InputError(f"--vocab {sizes}: must be whole numbers, such as 4096 or 4096,32768.") from None
    recipes = tuple(name.strip() for name in options.recipes.split(",")) if options.recipes else RECIPES
    names = ("lengths", "shrink", "pairs", "steps", "rounds", "device", "shape", "best_batch")
    option_values = {name: values[name] for name in names if name in values}
    return Options(vocabularies=vocabularies, recipes=recipes, **option_values)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
