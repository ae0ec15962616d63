"""What several commands share: how they are declared, their options, their experiment, and the report at the end."""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from slime_ray.runs.redaction import redact_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from slime_ray.config.experiment import Experiment
    from slime_ray.runs.store import RunStore


LARGEST_SEARCH_SEED = 4_000_000_000


class Parser(argparse.ArgumentParser):
    """A parser whose options are written out: `--seed` is never taken for `--seeds`.

    What it does not know is its own command's error, with that command's usage and the option that may be meant.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Print usage and the error, which may quote what was given, without its secrets."""
        super().error(redact_sentence(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The same; but raises for what is left over, which argparse would say of the whole program."""
        options, rest = super().parse_known_args(args, namespace)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
            self.error(f"unrecognized arguments: {' '.join(rest)}" + (f" (did you mean {near[0]}?)" if near else ""))
        return options, rest


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    says: str,
    *,
    examples: Sequence[str],
    more: str = "",
) -> argparse.ArgumentParser:
    """A command. says: what it does, as it stands in the list of all; more: what its own help adds. examples: of it."""
    description = f"{says[0].upper()}{says[1:]}." + (f"\n\n{more}" if more else "")
    shown = "".join(f"\n  {line}" for line in examples)
    return commands.add_parser(name, help=says, description=description, epilog=f"examples:\n{shown}")


def experiment_options(
    parser: argparse.ArgumentParser,
    *,
    optional: bool = False,
    name: bool = True,
    storage: bool = True,
    trials: bool = True,
    seeds: bool = True,
) -> None:
    """Which experiment, and what of it is changed. name, storage, trials, seeds: whether these mean anything to it."""
    parser.add_argument(
        "space", metavar="SPACE.yaml", nargs="?" if optional else None,
        help="an experiment file, or the name of one that ships",
    )  # fmt: skip
    parser.set_defaults(name=None, trials=None, seeds=None)
    if name:
        parser.add_argument("--name", help="name of the run (default: the file's `name`)")
    if storage:
        storage_option(parser)
    if trials:
        parser.add_argument("--trials", type=int, help="trials of the search, instead of the file's budget")
    if seeds:
        parser.add_argument(
            "--seeds", metavar="N|LIST",
            help="seeds of the arms, not the file's: 8 is 0 to 7, or a list such as 0,1,5; --resume takes further ones",
        )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="set one value, such as training.updates=50 or budget.trials=4; may be repeated",
    )  # fmt: skip


def seed_number(text: str) -> int:
    """A seed of a search: an integer from 0 to what NumPy takes, less what trials' seeds add to it."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) > LARGEST_SEARCH_SEED:
        raise argparse.ArgumentTypeError(f"{text:.40} is no whole number from 0 to {LARGEST_SEARCH_SEED}")
    return int(text)


def storage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage", default="runs", help="folder of all runs (default ./runs), or an address such as s3://bucket/runs"
    )


def start_options(parser: argparse.ArgumentParser) -> None:
    start = parser.add_mutually_exclusive_group()
    for flag, value, text in (
        ("--resume", "resume", "go on with an interrupted run of this name"),
        ("--go-on", "either", "go on with the run of this name if there is one, else start it"),
    ):
        start.add_argument(flag, dest="start", action="store_const", const=value, default="fresh", help=text)


def quiet_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print nothing but where the report is, and errors")


def console(options: argparse.Namespace) -> "Console":
    """Where progress is shown: coloured on a terminal alone, and not where NO_COLOR is set."""
    from rich.console import Console

    return Console(quiet=options.quiet)


def load(options: argparse.Namespace) -> "tuple[Experiment, Path]":
    """The experiment of `experiment_options`, with what they change, and its file."""
    from slime_ray.config.experiment_file import load_experiment, parse_override, parse_seeds
    from slime_ray.search_spaces import find_space

    source = find_space(options.space)
    overrides = dict(parse_override(text) for text in options.overrides)
    if options.trials is not None:
        overrides["budget.trials"] = options.trials
    if options.seeds is not None:
        overrides["seeds"] = parse_seeds(options.seeds)
    return load_experiment(source, overrides=overrides, name=options.name), source


def checked(options: argparse.Namespace) -> "tuple[Experiment, Path]":
    """The same, with the files that it names read: trials run where this process does, or on the same files.

    A scorer of the user's is imported; it runs here or where the same code is.
    """
    experiment, source = load(options)
    from slime_ray.evaluation.judges.exact import load_scorer
    from slime_ray.evaluation.questions import check_questions

    check_questions(experiment)
    scorer = getattr(experiment.settings.evaluation.judge, "scorer", None)
    if scorer is not None:
        load_scorer(scorer)
    return experiment, source


def show_report(
    run: Path, out: Path | None, storage: "RunStore | None" = None, *, quiet: bool = False, as_json: bool = False
) -> None:
    """Write the report and print its tables, or where it is alone (`quiet`), or the numbers of its tables.

    storage: of which `run` is a working copy, if it is one; the report then goes there too.
    """
    from slime_ray.analysis.report import write_report

    files = write_report(run, out)
    stored = storage is not None and storage.url is not None
    if storage is not None and stored:
        with storage.answering():
            storage.push(files.html.parent)
    if as_json:
        print(files.json())
    elif quiet:
        print(files.html)
    else:
        print(files.text)
        print(f"\nReport: {files.html}")
        if storage is not None and stored:
            print(f"It is in {storage.shown}/{run.name}, too.")
