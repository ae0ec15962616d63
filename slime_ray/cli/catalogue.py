"""Commands about what ships with the package: spaces, presets."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    spaces = commands.add_parser("spaces", help="list the experiments that ship with the package")
    spaces.set_defaults(command=_spaces)

    presets = commands.add_parser("presets", help="list the presets, or show how two differ")
    presets.set_defaults(command=_presets)
    actions = presets.add_subparsers(title="commands", metavar="COMMAND")
    diff = actions.add_parser("diff", help="show every setting whose value differs between two presets")
    for side in ("one", "other"):
        diff.add_argument(side, metavar="PRESET", help="a preset, or several joined: gemma3-4b/paper")
    diff.set_defaults(command=_presets_diff)


def _spaces(options: argparse.Namespace) -> None:
    from slime_ray.search_spaces import describe_spaces

    _print_pairs(describe_spaces())


def _presets(options: argparse.Namespace) -> None:
    from slime_ray.presets import describe_presets

    _print_pairs(describe_presets())


def _presets_diff(options: argparse.Namespace) -> None:
    from slime_ray.presets.compare import as_table, compare_presets

    differences = compare_presets(options.one, options.other)
    if differences:
        print(as_table(options.one, options.other, differences))
    else:
        print(f"{options.one} and {options.other} do not differ.")


def _print_pairs(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, summary in pairs.items():
        print(f"{name:<{width}}  {summary}")
