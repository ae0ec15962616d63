"""Commands about what ships with the package and what a file may say: spaces, presets, reference, init."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slime_ray.cli.options import add_command, option
from slime_ray.errors import InputError, near


def add_commands(commands: Any) -> None:
    """Register them."""
    json_option = option("--json", action="store_true", help="print names and summaries as JSON")
    spaces = add_command(
        commands, "spaces", _spaces, "list the experiments that ship with the package, or print one",
        [
            "slime-ray spaces",
            "slime-ray spaces show methods > mine.yaml  # to begin with",
            "slime-ray sweep methods  # by its name",
        ],
        json_option,
    )  # fmt: skip
    _add_show(spaces.add_subparsers(title="commands", metavar="COMMAND"), "space", "an experiment", _spaces_show)
    presets = add_command(
        commands, "presets", _presets, "list the presets, print one, or show how two differ",
        [
            "slime-ray presets",
            "slime-ray presets show paper",
            "slime-ray presets diff paper released-exact",
        ],
        json_option,
    )  # fmt: skip
    actions = presets.add_subparsers(title="commands", metavar="COMMAND")
    _add_show(actions, "preset", "a preset", _presets_show)
    diff = actions.add_parser("diff", help="show every setting whose value differs between two presets")
    for side in ("one", "other"):
        diff.add_argument(side, metavar="PRESET", help="a preset, or several joined: gemma3-4b/paper")
    # Suppressed, or its default would undo a --json that stands before `diff`.
    diff.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print both values as JSON")
    diff.set_defaults(command=_presets_diff)
    add_command(
        commands, "reference", _reference, "every key of an experiment's file: values, defaults, what it does",
        [
            "slime-ray reference",
            "slime-ray reference training",
            "slime-ray reference --schema > experiment.schema.json  # which an editor checks the file by",
        ],
        option("part", nargs="?", help="only what has this word in its path, such as judge or dpo"),
        option("--schema", action="store_true", help="print the JSON Schema of the file instead, for an editor"),
    )  # fmt: skip
    add_command(
        commands, "init", _init, "write a first experiment on your model and data, with comments",
        ["slime-ray init --model google/gemma-3-4b-pt --data preferences.jsonl"],
        option("--model", required=True, metavar="MODEL", help="a folder, a .gguf file, or a Hub id"),
        option("--data", required=True, metavar="DATA", help="a file or a folder of pairs, or a Hub id"),
        option("--to", type=Path, default=Path("experiment.yaml"), metavar="FILE", help="default: experiment.yaml"),
        option("--cpu", action="store_true", help="for trials without a GPU"),
        more="Reads the data if it is here. An editor with a YAML language server checks the file by\n"
        "experiment.schema.json, which is written beside it.",
    )  # fmt: skip


def _add_show(actions: Any, kind: str, what: str, run: Callable[[argparse.Namespace], None]) -> None:
    show = actions.add_parser("show", help=f"print the text of {what}")
    show.add_argument(kind, metavar="NAME", help="its name")
    show.set_defaults(command=run)


def _spaces_show(options: argparse.Namespace) -> None:
    from slime_ray.search_spaces import shipped_spaces

    spaces = shipped_spaces()
    if options.space not in spaces:
        raise InputError(f"There is no shipped experiment {options.space!r}{near(options.space, spaces)}.")
    print(spaces[options.space].read_text(encoding="utf-8"), end="")


def _presets_show(options: argparse.Namespace) -> None:
    from slime_ray.config.presets import preset_text

    print(preset_text(options.preset), end="")


def _spaces(options: argparse.Namespace) -> None:
    from slime_ray.search_spaces import describe_spaces

    _print_pairs(describe_spaces(), options)


def _presets(options: argparse.Namespace) -> None:
    from slime_ray.config.presets import describe_presets

    _print_pairs(describe_presets(), options)


def _presets_diff(options: argparse.Namespace) -> None:
    from slime_ray.config.presets import as_table, compare_presets

    differences = compare_presets(options.one, options.other)
    if options.json:
        print(json.dumps(differences, indent=1))
    elif differences:
        print(as_table(options.one, options.other, differences))
    else:
        print(f"{options.one} and {options.other} do not differ.")


def _reference(options: argparse.Namespace) -> None:
    from slime_ray.config.reference import experiment_schema, reference

    if options.schema:
        print(json.dumps(experiment_schema(), indent=1))
        return
    print(reference(options.part), end="")


def _init(options: argparse.Namespace) -> None:
    from slime_ray.config.experiment_file import load_experiment
    from slime_ray.config.reference import ID, experiment_schema
    from slime_ray.config.starting import FEWEST_PAIRS, first_experiment, run_name
    from slime_ray.config.yaml_source import read_value
    from slime_ray.data.places import missing_file
    from slime_ray.runs import files

    if options.to.exists():
        raise InputError(f"{options.to} is there already. Name another file with --to.")
    if not options.to.absolute().parent.is_dir():
        raise InputError(f"--to {options.to}: there is no such folder. Make it, or name another.")
    pairs = None
    if (missing := missing_file(options.data)) is not None:
        raise InputError(f"--data {options.data}: there is no such file{missing}.")
    if Path(options.data).expanduser().exists():
        from slime_ray.data.preferences import read_preferences

        pairs = len(read_preferences(options.data).dataset)
        if pairs < FEWEST_PAIRS:
            raise InputError(f"{options.data} has {pairs} pairs, and {FEWEST_PAIRS} are the fewest. Give more.")
    text = first_experiment(options.model, options.data, name=run_name(options.data), pairs=pairs, gpu=not options.cpu)
    load_experiment(read_value(text))
    files.write(options.to, text)
    schema = options.to.parent / ID
    if not schema.exists():
        files.write(schema, json.dumps(experiment_schema(), indent=1) + "\n")
    pair_note = "" if pairs is None else f" {pairs:,} pairs were read."
    print(f"{options.to} is written.{pair_note} Next: slime-ray check {options.to}; slime-ray plan {options.to}.")


def _print_pairs(pairs: dict[str, str], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(pairs, indent=1))
        return
    width = max(map(len, pairs))
    for name, summary in pairs.items():
        print(f"{name:<{width}}  {summary}")
