"""`slime-ray bench`: parses, calls, prints. What a benchmark needs is imported when it runs."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from slime_ray.errors import InputError

if TYPE_CHECKING:
    from .options import Options

Report = TypeVar("Report")
Name = TypeVar("Name", bound=str)

DESCRIPTION = """\
Benchmarks of the training step, with random weights and random tokens, of a sweep beside single processes, of a
search and what it stops early, of answering, and of the intervals in the tables.

  slime-ray bench step                      speed, beside the authors' recipe and padded batches; minutes on a laptop
  slime-ray bench memory --vocab 32768      memory of a step
  slime-ray bench exact                     packed rows against every sequence alone, in float64
  slime-ray bench sweep                     many tiny trials in one sweep against a process for each
  slime-ray bench search                    how well searches find, over recorded trials that are played again
  slime-ray bench search-cost               what handing out a trial costs as a search grows; a minute
  slime-ray bench generate                  answers to the embedded tasks' prompts, on one core
  slime-ray bench plan                      what `slime-ray plan --probe` says of sweeps, and what they then take
  slime-ray bench report                    what the report of a run of 100 trials takes, and its size; a minute
  slime-ray bench statistics                how often the intervals of the tables cover a known truth; minutes
  slime-ray bench ablations                 how often tables of ablations claim what is true; minutes
"""


# The type of what add_subparsers returns has no public name.
def add_bench_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `bench` with its subcommands."""
    bench = commands.add_parser(
        "bench", help="measure the training step, what a sweep adds to it, how searches find and intervals cover",
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
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

    memory = kinds.add_parser("memory", help="memory that a training step takes, each recipe in a process of its own")
    _measurement_options(memory)
    memory.set_defaults(command=_memory)

    exact = kinds.add_parser("exact", help="log-probs and gradients against each sequence run alone")
    exact.add_argument("--pairs", type=int, default=8, help="pairs of a step (default 8)")
    exact.add_argument("--seed", type=int, default=0, help="of weights and tokens (default 0)")
    exact.set_defaults(command=_exact)

    sweep = kinds.add_parser("sweep", help="tiny trials in one sweep, and each in a process of its own")
    sweep.add_argument("--trials", type=int, default=16, help="(default 16)")
    sweep.add_argument("--updates", type=int, default=20, help="of a trial (default 20)")
    sweep.add_argument("--rounds", type=int, default=3, help="repetitions, of which medians are taken (default 3)")
    sweep.set_defaults(command=_sweep)

    search = kinds.add_parser("search", help="how well searches and early stopping find, over recorded trials")
    add = search.add_argument
    add("--seeds", type=int, default=10, help="searches of each kind (default 10)")
    add("--trials", type=int, default=32, help="of a search in the comparison with random search (default 32)")
    add("--train", type=int, default=0, metavar="SEEDS", help="compare over so many seeds of trials that are really "
        "trained, too; half a minute to a minute of CPU for each four trials (default 0)")  # fmt: skip
    add("--record", action="store_true", help="train the trials of the table, those that --folder lacks, and write it")
    add("--folder", type=Path, default=Path("runs/recorded"), help="of trials that are trained (default runs/recorded)")
    add("--table", type=Path, help="of recorded trials (default: the one that ships)")
    search.set_defaults(command=_search)

    cost = kinds.add_parser("search-cost", help="what drawing a trial and writing it down costs as a search grows")
    add = cost.add_argument
    add("--samplers", default="tpe", metavar="A,B", help="such as tpe,nsga2,gp,random,quasi_random (default tpe)")
    add("--trials", type=int, default=1000, help="of a search (default 1000)")
    add("--stretch", type=int, default=100, help="trials that means are taken over (default 100)")
    add("--rounds", type=int, default=3, help="searches of each sampler (default 3)")
    cost.set_defaults(command=_search_cost)

    generate = kinds.add_parser("generate", help="answers to the embedded tasks' prompts, in batches and one by one")
    generate.add_argument("--prompts", type=int, default=256, help="of each task (default 256)")
    generate.add_argument("--rounds", type=int, default=5, help="repetitions, of which medians are taken (default 5)")
    generate.set_defaults(command=_generate)

    plan = kinds.add_parser("plan", help="plans after a probe against the sweeps that they are of")
    plan.add_argument("--cases", default="", metavar="A,B", help="only these sweeps (default all)")
    plan.add_argument("--rounds", type=int, default=2, help="repetitions, a probe before each sweep (default 2)")
    plan.set_defaults(command=_plan)

    report = kinds.add_parser("report", help="seconds and bytes of the report of a large run, which is made up")
    report.add_argument("--trials", type=int, default=100, help="of the run (default 100)")
    report.add_argument("--answer", type=int, default=200, metavar="N", help="characters of an answer (default 200)")
    report.add_argument("--rounds", type=int, default=3, help="repetitions, of which medians are taken (default 3)")
    report.set_defaults(command=_report)

    statistics = kinds.add_parser("statistics", help="how often intervals cover a known truth, and what they take")
    add = statistics.add_argument
    add("--evaluations", type=int, default=2000, help="simulated evaluations of each kind (default 2000)")
    add("--resamples", type=int, default=2000, help="of an interval in the simulations (default 2000)")
    add("--rounds", type=int, default=5, help="repetitions of the timing, of which medians are taken (default 5)")
    statistics.set_defaults(command=_statistics)

    ablations = kinds.add_parser("ablations", help="what tables of simulated ablations claim, and what they cover")
    ablations.add_argument("--studies", type=int, default=2000, help="simulated ablations of each kind (default 2000)")
    ablations.add_argument("--rounds", type=int, default=5, help="repetitions of the timing (default 5)")
    ablations.set_defaults(command=_ablations)

    for kind in kinds.choices.values():
        kind.add_argument("--json", type=Path, metavar="OUT", help="also write every measurement to this file")


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
    add("--warmup", type=int, help="steps before measuring (default 1; with `step` on a GPU a whole round)")
    add("--dtype", help="float32 or bfloat16 (default: the shape's, float32 for small)")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--device", default="auto", help="auto, cpu or cuda (default auto)")
    add("--shape", default="small", help="small or gemma3-4b (default small)")
    add("--recipes", default="", metavar="A,B", help="only these recipes (default all)")
    add("--gradient-checkpointing", action="store_true", help="compute each layer again in the backward pass")
    add("--seed", type=int, default=0, help="of weights, lengths and tokens (default 0)")


def _step(options: argparse.Namespace) -> None:
    from .report import speed_table
    from .step import measure_speed

    wanted = _options(options)
    _show("step", options, speed_table, lambda: measure_speed(wanted, _say))


def _memory(options: argparse.Namespace) -> None:
    from .memory import measure_memory
    from .report import memory_table

    wanted = _options(options)
    _show("memory", options, memory_table, lambda: measure_memory(wanted, _say))


def _exact(options: argparse.Namespace) -> None:
    from .exact import check_exactness, refuse_misses
    from .report import exact_table

    report = _show("exact", options, exact_table, lambda: check_exactness(pairs=options.pairs, seed=options.seed))
    refuse_misses(report)


def _sweep(options: argparse.Namespace) -> None:
    from .report import sweep_table
    from .sweep import measure_sweep

    _at_least(options, trials=4, updates=1, rounds=1)
    _show(
        "sweep", options, sweep_table,
        lambda: measure_sweep(trials=options.trials, updates=options.updates, rounds=options.rounds, say=_say),
    )  # fmt: skip


def _search(options: argparse.Namespace) -> None:
    from .recording import TABLE, condense, record
    from .search import SearchReport, measure_search
    from .search_tables import search_tables

    _at_least(options, seeds=1, trials=1, train=0)
    table = options.table or TABLE

    def measure() -> SearchReport:
        if options.record:
            record(options.folder, _say)
            condense(options.folder, table)
        return measure_search(
            table=table, folder=options.folder, seeds=options.seeds, trials=options.trials, trained=options.train,
            say=_say,
        )  # fmt: skip

    _show("search", options, search_tables, measure)


def _search_cost(options: argparse.Namespace) -> None:
    from .search_cost import SAMPLERS, measure_search_cost
    from .search_tables import search_cost_table

    _at_least(options, trials=1, stretch=1, rounds=1)
    samplers = _among(options.samplers, SAMPLERS, option="--samplers")
    _show(
        "search-cost", options, search_cost_table,
        lambda: measure_search_cost(
            samplers=samplers, trials=options.trials, stretch=options.stretch, rounds=options.rounds, say=_say
        ),
    )  # fmt: skip


def _generate(options: argparse.Namespace) -> None:
    from .generate import measure_answering
    from .report import generate_table

    _at_least(options, prompts=1, rounds=1)
    _show(
        "generate", options, generate_table,
        lambda: measure_answering(prompts=options.prompts, rounds=options.rounds, say=_say),
    )  # fmt: skip


def _plan(options: argparse.Namespace) -> None:
    from .plan import CASES, measure_plans
    from .search_tables import plan_table

    _at_least(options, rounds=1)
    cases = _among(options.cases, CASES, option="--cases") if options.cases else list(CASES)
    _show("plan", options, plan_table, lambda: measure_plans(cases=cases, rounds=options.rounds, say=_say))


def _report(options: argparse.Namespace) -> None:
    from .pages import measure_report, page_table

    _at_least(options, trials=24, answer=1, rounds=1)
    _show(
        "report", options, page_table,
        lambda: measure_report(trials=options.trials, answer=options.answer, rounds=options.rounds, say=_say),
    )  # fmt: skip


def _statistics(options: argparse.Namespace) -> None:
    from .coverage import measure_statistics, refuse_misses
    from .report import statistics_table

    _at_least(options, evaluations=1, resamples=40, rounds=1)
    report = _show(
        "statistics", options, statistics_table,
        lambda: measure_statistics(
            evaluations=options.evaluations, resamples=options.resamples, rounds=options.rounds, say=_say
        ),
    )  # fmt: skip
    refuse_misses(report)


def _ablations(options: argparse.Namespace) -> None:
    from .ablation_cases import measure_ablations
    from .report import ablations_table

    _at_least(options, studies=1, rounds=1)
    report = _show(
        "ablations", options, ablations_table,
        lambda: measure_ablations(studies=options.studies, rounds=options.rounds, say=_say),
    )  # fmt: skip
    report.refuse_misses()


def _show(
    name: str, options: argparse.Namespace, table: Callable[[Report], str], measure: Callable[[], Report]
) -> Report:
    """Measure, print the table and write --json, which is checked before anything runs."""
    from .report import check_json, write_json

    check_json(options.json)
    report = measure()
    print(table(report))
    if options.json:
        write_json(name, report, options.json)
    return report


def _at_least(options: argparse.Namespace, **bounds: int) -> None:
    for name, least in bounds.items():
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least {least}.")


def _among(given: str, known: Iterable[Name], *, option: str) -> list[Name]:
    """The names of a list with commas. Raises InputError for one that is not known."""
    by_name = {str(name): name for name in known}
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in by_name:
            raise InputError(f"{option} {name}: must be among {', '.join(by_name)}.")
    return [by_name[name] for name in names]


def _options(given: argparse.Namespace) -> "Options":
    from .options import RECIPES, Options

    values = vars(given)
    return Options(
        **{name: values[name] for name in Options.__dataclass_fields__ if name in values and name != "recipes"},
        vocabularies=_vocabularies(given.vocab),
        recipes=tuple(name.strip() for name in given.recipes.split(",")) if given.recipes else RECIPES,
    )


def _vocabularies(given: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(size) for text in given for size in text.split(","))
    except ValueError:
        raise InputError(f"--vocab {','.join(given)}: must be whole numbers, such as 4096 or 4096,32768.") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
