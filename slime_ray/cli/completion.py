"""Completion in a shell: the script that asks, and what is answered: commands, options, files, names, trials."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from slime_ray.cli.options import Parser, add_command, option

SHELLS = ("bash", "zsh", "fish", "tcsh")
FOLDERS = ("run", "storage", "out", "to")
FILES = ("data", "model")
"""Of those that may be something else; what is declared as a Path is one without being named here."""


def add_commands(commands: Any) -> None:
    """Register it."""
    add_command(
        commands, "completion", _completion, "print a script that completes commands in your shell",
        [
            "slime-ray completion bash > ~/.local/share/bash-completion/completions/slime-ray",
            "slime-ray completion zsh > ~/.zfunc/_slime-ray  # a folder of $fpath",
            "slime-ray completion fish > ~/.config/fish/completions/slime-ray.fish",
        ],
        option("shell", choices=SHELLS, help="bash, zsh, fish or tcsh"),
    )  # fmt: skip


def answer_shell(parser: Parser) -> None:
    """End the process with the answer where it is a shell that asks for completions; else do nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    _add_completers(parser)
    argcomplete.autocomplete(parser, default_completer=argcomplete.SuppressCompleter())


def _completion(options: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["slime-ray"], shell=options.shell))


def _add_completers(parser: Parser) -> None:
    """Say of every argument what kind of thing it takes."""
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    kinds: dict[str, Callable[..., Iterable[str]]] = {
        **dict.fromkeys(FOLDERS, DirectoriesCompleter()), **dict.fromkeys(FILES, FilesCompleter()),
        "space": _spaces, "trial": _trials, **dict.fromkeys(("preset", "one", "other"), _presets),
    }  # fmt: skip
    for command in parser.commands.values():
        _add_completers(command)
    for action in parser.arguments:
        kind = kinds.get(action.dest, FilesCompleter() if action.type is Path else None)
        if kind is not None and action.nargs != 0:
            action.completer = kind  # type: ignore[attr-defined]


def _spaces(prefix: str, **_: object) -> list[str]:
    from argcomplete.completers import FilesCompleter

    from slime_ray.search_spaces import shipped_spaces

    return [*shipped_spaces(), *FilesCompleter(("yaml", "yml"))(prefix)]


def _presets(**_: object) -> list[str]:
    from slime_ray.config.presets import describe_presets

    return list(describe_presets())


def _trials(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Of the run that stands before it, where that is a folder."""
    run = getattr(parsed_args, "run", None)
    return [folder.name for folder in Path(run, "trials").glob("*/")] if run else []
