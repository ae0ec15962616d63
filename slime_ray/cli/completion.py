"""`slime-ray completion`: what a shell needs to complete commands, options and the names of what ships."""

import argparse
from collections.abc import Callable
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", whole: Callable[[], argparse.ArgumentParser]
) -> None:
    """Register it. whole: makes the parser of all commands."""
    completion = commands.add_parser(
        "completion", help="print a script that completes commands in your shell",
        description="For bash:\n\n"
        "  slime-ray completion bash > ~/.local/share/bash-completion/completions/slime-ray\n\n"
        "For zsh, into a folder of $fpath:\n\n  slime-ray completion zsh > ~/.zfunc/_slime-ray",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS)

    def run(options: argparse.Namespace) -> None:
        import shtab

        parser = whole()
        _complete(parser)
        print(shtab.complete(parser, shell=options.shell))

    completion.set_defaults(command=run)


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
