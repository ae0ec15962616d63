"""What several commands share: how they are declared, their options, their experiment, and the report at the end."""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from slime_ray.runs.redaction import redact_sentence

if TYPE_CHECKING:
    from slime_ray.api import Run
    from slime_ray.api.opening import ExperimentLike
    from slime_ray.config.experiment import Experiment
    from slime_ray.runs.store import RunStore

Option = Callable[[Any], argparse.Action | None]
"""Declares an option on a parser or a group."""
LARGEST_SEARCH_SEED = 4_000_000_000


class Parser(argparse.ArgumentParser):
    """A parser whose options are written out: `--seed` is never taken for `--seeds`.

    What it does not know is its own command's error, with that command's usage and the option that may be meant.

    Attributes:
        arguments: Its options and arguments, in the order of their declaration.
        commands: The parsers of its commands by name.
        says: What it does, in a line.
    """

    says = ""

    def __init__(self, **settings: Any):
        self.arguments: list[argparse.Action] = []
        self.commands: dict[str, Parser] = {}
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings})

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Declare an option or argument, and list it: argparse keeps its own list to itself."""
        self.arguments.append(super().add_argument(*names, **settings))
        return self.arguments[-1]

    def add_subparsers(self, **settings: Any) -> Any:
        """Declare that commands follow, and keep the mapping that they will be in."""
        commands = super().add_subparsers(**settings)
        self.commands = commands.choices
        return commands

    def error(self, message: str) -> NoReturn:
        """Print usage and the error, which may quote what was given, without its secrets; a near word comes first."""
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            words = re.findall(r"[\w.-]+", choice[2])
            if near := difflib.get_close_matches(choice[1], words, n=1):
                message = f"{message[: choice.start()]}there is no {choice[1]!r}. Did you mean {near[0]!r}?"
        super().error(redact_sentence(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The same; but raises for what is left over, which argparse would say of the whole program."""
        options, rest = super().parse_known_args(args, namespace)
        if rest:
            # Dashes, which all have, make none alike.
            spellings = {name.strip("-"): name for action in self.arguments for name in action.option_strings}
            near = difflib.get_close_matches(rest[0].partition("=")[0].strip("-"), spellings, n=1)
            hint = f" (did you mean {spellings[near[0]]}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return options, rest


def option(*names: str, **settings: Any) -> Option:
    """An option or argument, as argparse's `add_argument` declares it."""
    return lambda parser: parser.add_argument(*names, **settings)


def exclusive(*options: Option) -> Option:
    """Options of which at most one may be given."""

    def declare(parser: Any) -> None:
        group = parser.add_mutually_exclusive_group()
        parser.arguments += [each(group) for each in options]

    return declare


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None] | None,
    says: str,
    examples: Sequence[str],
    *options: Option,
    more: str = "",
    **defaults: Any,
) -> Parser:
    """Declare a command.

    Args:
        commands: What argparse's `add_subparsers` returned.
        name: The word that calls it.
        run: Executes it; None where its own commands do.
        says: What it does, as the list of all commands has it.
        examples: Command lines.
        options: Its options.
        more: Text that its own help adds.
        defaults: Values of options that it lacks.
    """
    description = f"{says[0].upper()}{says[1:]}." + (f"\n\n{more}" if more else "")
    example_lines = "".join(f"\n  {line}" for line in examples)
    parser: Parser = commands.add_parser(name, description=description, epilog=f"examples:\n{example_lines}")
    parser.says = says
    for declare in options:
        declare(parser)
    parser.set_defaults(**({"command": run} if run else {}), **defaults)
    return parser


def seed_number(text: str) -> int:
    """A seed of a search: an integer from 0 to what NumPy takes, less what trials' seeds add to it."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) > LARGEST_SEARCH_SEED:
        raise argparse.ArgumentTypeError(f"{text:.40} is no whole number from 0 to {LARGEST_SEARCH_SEED}")
    return int(text)


SPACE = option("space", metavar="SPACE.yaml", help="an experiment file, or the name of one that ships")
ANY_SPACE = option("space", metavar="SPACE.yaml", nargs="?", help="an experiment file, or the name of one that ships")
NAME = option("--name", help="name of the run (default: the file's `name`; `train` adds the trial)")
STORAGE = option(
    "--storage", default="runs", help="folder of all runs (default ./runs), or an address such as s3://bucket/runs"
)
TRIALS = option("--trials", type=int, help="trials of the search, instead of the file's budget")
SEEDS = option(
    "--seeds", metavar="N|LIST",
    help="seeds of the arms, not the file's: 8 is 0 to 7, or a list such as 0,1,5; --resume takes further ones",
)  # fmt: skip
SET = option(
    "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
    help="set one value, such as training.updates=50 or budget.trials=4; may be repeated",
)  # fmt: skip
EXPERIMENT = (SPACE, NAME, STORAGE, TRIALS, SEEDS, SET)
"""The options of `load`; a command that takes fewer has None for the others."""
SEED = option("--seed", type=seed_number, default=0, help="seed of the search and of its trials (default 0)")
RESUME = {"dest": "start", "action": "store_const", "default": "fresh"}
START = exclusive(
    option("--resume", const="resume", help="resume an interrupted run of this name", **RESUME),
    option(
        "--auto-resume", const="either", help="resume the run of this name if there is one, else start it", **RESUME
    ),
)
QUIET = option("--quiet", action="store_true", help="print nothing but where the report is, and errors")
STUDY = option(
    "--study", metavar="URL", default=os.environ.get("SLIME_RAY_STUDY") or None,
    help="keep the search's study in a database, such as postgresql://user@host/db, instead of the run's "
    "folder; SLIME_RAY_STUDY says the same, and keeps a password out of process lists",
)  # fmt: skip
RUN = option("run", help="folder of the run, or its address")


def load(options: argparse.Namespace) -> "tuple[Experiment, Path]":
    """Load the experiment of `EXPERIMENT`'s options, with what they change; return it and its file."""
    from slime_ray import api

    experiment, source = api.open_experiment(options.space, **changes(options))
    return experiment, Path(source)


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """What `EXPERIMENT`'s options change of an experiment, as the functions of slime_ray take it."""
    from slime_ray.config.experiment_file import parse_override, parse_seeds

    arguments: dict[str, Any] = {"overrides": dict(parse_override(text) for text in options.overrides)}
    arguments |= {key: getattr(options, key) for key in ("name", "trials") if getattr(options, key, None) is not None}
    if getattr(options, "seeds", None) is not None:
        arguments["seeds"] = parse_seeds(options.seeds)
    return arguments


def load_checked(options: argparse.Namespace) -> "tuple[Experiment, Path]":
    """The same, with the files that it names read: trials run where this process does, or on the same files."""
    from slime_ray import api

    experiment, source = load(options)
    api.read_inputs(experiment)
    return experiment, source


def describe_design(experiment: "Experiment") -> None:
    """Print what the design of an experiment is, where it has one."""
    for line in experiment.design.announcement(experiment.seeds) if experiment.design else ():
        print(line)


def run_and_report(run: "Callable[..., Run]", experiment: "ExperimentLike", *, quiet: bool, **more: Any) -> None:
    """Call a function of slime_ray that runs an experiment, with further arguments of it, and print the report."""
    from slime_ray.runs.store import RunStore

    finished_run = run(experiment, quiet=quiet, **more)
    # A run in an object store is a working copy here, in a folder that says whose.
    show_report(finished_run.path, None, RunStore.of(more["storage"], finished_run.path.parent.name), quiet=quiet)


def show_report(
    run: Path,
    out: Path | None,
    storage: "RunStore | None" = None,
    *,
    labels: Path | None = None,
    difficulties: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
    paper: bool = False,
) -> None:
    """Write the report and print its tables, or where it is alone (`quiet`), or the numbers of its tables.

    storage: of which `run` is a working copy, if it is one; the report then goes there too. paper: `paper.tex` as well.
    """
    from slime_ray.analysis.report import write_report

    files = write_report(run, out, labels=labels, difficulties=difficulties, paper=paper)
    run_store = storage if storage is not None and storage.url is not None else None
    if run_store:
        with run_store.raise_store_errors():
            run_store.push(files.html.parent)
    if as_json:
        print(files.json())
    elif quiet:
        print(files.html)
    else:
        print(files.text)
        print(f"\nReport: {files.html}")
        if paper:
            print(f"For a paper: {files.folder / 'paper.tex'}")
        if run_store:
            print(f"It is in {run_store.display_address}/{run.name}, too.")
