"""Commands that list what ships with the package: spaces, presets."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    spaces = commands.add_parser("spaces", help="list the experiments that ship with the package")
    spaces.set_defaults(command=_spaces)

    presets = commands.add_parser("presets", help="list the presets")
    presets.set_defaults(command=_presets)


def _spaces(options: argparse.Namespace) -> None:
    from slime_ray.search_spaces import describe_spaces

    _print_pairs(describe_spaces())


def _presets(options: argparse.Namespace) -> None:
    from slime_ray.presets import describe_presets

    _print_pairs(describe_presets())


def _print_pairs(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, summary in pairs.items():
        print(f"{name:<{width}}  {summary}")
