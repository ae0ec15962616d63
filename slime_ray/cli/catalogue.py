"""Commands about what ships with the package, and what a file may say: spaces, presets, reference."""

import argparse
import json

from slime_ray.cli.options import add_command


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    spaces = add_command(
        commands, "spaces", "list the experiments that ship with the package",
        examples=["slime-ray spaces", "slime-ray sweep methods  # by its name"],
    )  # fmt: skip
    spaces.set_defaults(command=_spaces)

    presets = add_command(
        commands, "presets", "list the presets, or show how two differ",
        examples=["slime-ray presets", "slime-ray presets diff paper released-exact"],
    )  # fmt: skip
    presets.set_defaults(command=_presets)
    for one in (spaces, presets):
        one.add_argument("--json", action="store_true", help="print names and summaries as JSON")
    actions = presets.add_subparsers(title="commands", metavar="COMMAND")
    diff = actions.add_parser("diff", help="show every setting whose value differs between two presets")
    for side in ("one", "other"):
        diff.add_argument(side, metavar="PRESET", help="a preset, or several joined: gemma3-4b/paper")
    # Suppressed, or its default would undo a --json that stands before `diff`.
    diff.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print both values as JSON")
    diff.set_defaults(command=_presets_diff)

    reference = add_command(
        commands, "reference", "every key of an experiment's file: values, defaults, what it does",
        examples=["slime-ray reference", "slime-ray reference training", "slime-ray reference dpo"],
    )  # fmt: skip
    reference.add_argument("part", nargs="?", help="only what has this word in its path, such as judge or dpo")
    reference.set_defaults(command=_reference)


def _spaces(options: argparse.Namespace) -> None:
    from slime_ray.search_spaces import describe_spaces

    _print_pairs(describe_spaces(), options)


def _presets(options: argparse.Namespace) -> None:
    from slime_ray.config.presets import describe_presets

    _print_pairs(describe_presets(), options)


def _presets_diff(options: argparse.Namespace) -> None:
    from slime_ray.config.preset_diff import as_table, compare_presets

    differences = compare_presets(options.one, options.other)
    if options.json:
        print(json.dumps({each.path: each.values() for each in differences}, indent=1))
    elif differences:
        print(as_table(options.one, options.other, differences))
    else:
        print(f"{options.one} and {options.other} do not differ.")


def _reference(options: argparse.Namespace) -> None:
    from slime_ray.config.reference import reference

    print(reference(options.part), end="")


def _print_pairs(pairs: dict[str, str], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(pairs, indent=1))
        return
    width = max(map(len, pairs))
    for name, summary in pairs.items():
        print(f"{name:<{width}}  {summary}")
