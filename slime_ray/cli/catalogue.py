"""Commands about what ships with the package and what a file may say: spaces, presets, reference, completion."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from slime_ray.cli.options import add_command, option

SHELLS = ("bash", "zsh", "tcsh")


def add_commands(commands: Any, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Register them. whole: makes the parser of all commands."""
    json_option = option("--json", action="store_true", help="print names and summaries as JSON")
    add_command(
        commands, "spaces", _spaces, "list the experiments that ship with the package",
        ["slime-ray spaces", "slime-ray sweep methods  # by its name"], json_option,
    )  # fmt: skip
    presets = add_command(
        commands, "presets", _presets, "list the presets, or show how two differ",
        ["slime-ray presets", "slime-ray presets diff paper released-exact"], json_option,
    )  # fmt: skip
    actions = presets.add_subparsers(title="commands", metavar="COMMAND")
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
    completion = commands.add_parser(
        "completion", help="print a script that completes commands in your shell",
        description="For bash:\n\n"
        "  slime-ray completion bash > ~/.local/share/bash-completion/completions/slime-ray\n\n"
        "For zsh, into a folder of $fpath:\n\n  slime-ray completion zsh > ~/.zfunc/_slime-ray",
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(command=partial(_completion, whole))


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
        print(json.dumps({each.path: each.values() for each in differences}, indent=1))
    elif differences:
        print(as_table(options.one, options.other, differences))
    else:
        print(f"{options.one} and {options.other} do not differ.")


def _reference(options: argparse.Namespace) -> None:
    from slime_ray.config.reference import reference
    from slime_ray.config.schema import experiment_schema

    if options.schema:
        print(json.dumps(experiment_schema(), indent=1))
        return
    print(reference(options.part), end="")


def _print_pairs(pairs: dict[str, str], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(pairs, indent=1))
        return
    width = max(map(len, pairs))
    for name, summary in pairs.items():
        print(f"{name:<{width}}  {summary}")


def _completion(whole: Callable[[], argparse.ArgumentParser], options: argparse.Namespace) -> None:
    import shtab

    parser = whole()
    _complete(parser)
    print(shtab.complete(parser, shell=options.shell))


def _complete(parser: argparse.ArgumentParser) -> None:
    """Say of every argument what kind of thing it takes: files, folders, or the names of experiments."""
    import shtab

    from slime_ray.search_spaces import shipped_spaces

    kinds: dict[str, Any] = {
        "run": shtab.DIRECTORY, "runs": shtab.DIRECTORY, "storage": shtab.DIRECTORY, "out": shtab.DIRECTORY,
        "to": shtab.DIRECTORY, "policies": shtab.FILE, "baseline": shtab.FILE, "cluster": shtab.FILE,
        "questions": shtab.FILE, "json": shtab.FILE, "csv": shtab.FILE, "write": shtab.FILE,
    }  # fmt: skip
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete(inner)
        elif action.dest == "space":
            action.choices = list(shipped_spaces())
        elif action.dest in kinds and action.nargs != 0:
            action.complete = kinds[action.dest]  # type: ignore[attr-defined]
