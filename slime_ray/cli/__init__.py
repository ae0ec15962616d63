"""The command line: parses, calls, prints. It holds no logic, and imports what a command needs only when it runs."""

import argparse
import codecs
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence

from slime_ray import __version__
from slime_ray.cli import bench, catalogue, completion, experiments, planning, runs
from slime_ray.cli.options import Parser
from slime_ray.errors import Interrupted, SlimeRayError
from slime_ray.runs.redaction import redact, redact_sentence

DESCRIPTION = """\
Search and ablate SLIME preference fine-tuning (arXiv 2602.02383) on Ray, and report win rate against stability.

  slime-ray demo                           the whole path on an embedded task, about five minutes on a laptop
  slime-ray init --model ID --data FILE    a first experiment of your own, with comments
  slime-ray plan  my.yaml --probe          what it will take: time, memory, disk, cost
  slime-ray sweep my.yaml --name first     run it; with --resume it goes on after any interruption
  slime-ray COMMAND --help                 options and examples
"""
EXIT_CODES = """\
Exit codes: 0 done, 1 a run ended early or failed, 2 something given was wrong and nothing was started, 130 interrupted.
"""
GROUPS = {
    "begin": ("demo", "init", "spaces", "presets", "reference"),
    "before a run": ("check", "plan", "doctor"),
    "run": ("sweep", "ablate", "league", "train", "evaluate", "launch", "reproduce", "serve-answers"),
    "a run that is there": ("status", "watch", "extend", "stop", "clone"),
    "results": ("report", "compare", "verify", "export"),
    "this machine": ("bench", "completion"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    completion.answer_shell(parser)
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    # An error message is for a person; a traceback is for whoever asks for it.
    debug = bool(os.environ.get("SLIME_RAY_DEBUG"))
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
        # A reader that is gone shows here, not when the process ends.
        sys.stdout.flush()
    except SlimeRayError as error:
        if debug:
            raise
        resume_command = _resume_command(options, words, "--resume")
        text = str(error).replace(RESUME_PHRASE, f"`{resume_command}`") if resume_command else str(error)
        print(f"slime-ray: {redact_sentence(text)}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if debug or not error.name or error.name.startswith("slime_ray"):
            raise
        print(
            f"slime-ray: this command needs the package {error.name}, which is not installed here. "
            "Only `slime-ray report` works without the whole installation: pip install slime-ray.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        # --auto-resume, for the run's folder may not have been there yet.
        resume_command = _resume_command(options, words, "--auto-resume")
        kept = f" Finished trials and the last checkpoints are kept; go on with `{resume_command}`."
        print(f"slime-ray: interrupted.{kept if resume_command else ''}", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug or error.filename is None or not error.strerror:
            raise
        place, reason = str(error.filename), error.strerror[0].lower() + error.strerror[1:]
        place = redact_sentence(place if len(place) <= 200 else f"{place[:60]}...")
        print(f"slime-ray: {place}: {reason}. Give another place, or mend this one.", file=sys.stderr)
        return 1 if hasattr(options, "start") else 2
    return 0


PLAIN = {
    "–": "-", "—": "-", "−": "-", "×": "x", "±": "+/-", "·": "*", "…": "...", "≤": "<=", "≥": ">=",
    "²": "^2", "→": "->",
}  # fmt: skip
"""What stands for a character that a terminal cannot show; for others it is a question mark."""


def _prepare_streams() -> None:
    """Have a character that a terminal cannot show replaced: what is done need not fail as it is told."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end

    codecs.register_error("slime_ray.plain", plain)
    if sys.stdout is None:
        # Nobody looks, as under some schedulers.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="slime_ray.plain")


RESUME_PHRASE = "the same command with --resume"
"""What errors of the other parts say, which do not know the command."""


def _resume_command(options: argparse.Namespace, words: Sequence[str], flag: str) -> str | None:
    """The command line that goes on with this one's run; None where there is no run to go on with."""
    if make_command := getattr(options, "again", None):
        return redact_sentence(str(make_command(options)))
    if not hasattr(options, "start"):
        return None
    plain = [word for word in words if word not in ("--resume", "--auto-resume")]
    return shlex.join(["slime-ray", *redact(plain), flag])


def make_parser() -> Parser:
    """The parser of all commands; each command is under `command` of what it parses."""
    parser = Parser(prog="slime-ray", usage="slime-ray [--help] [--version] COMMAND ...")
    parser.add_argument("--version", action="version", version=f"slime-ray {__version__}")
    # Suppressed: argparse lists commands in one group alone.
    commands = parser.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="slime-ray")
    for part in (experiments, planning, runs, bench, catalogue, completion):
        part.add_commands(commands)
    width = max(map(len, parser.commands)) + 2
    parser.description = DESCRIPTION + "".join(
        f"\n{title}:\n" + "".join(f"  {name:<{width}}{parser.commands[name].says}\n" for name in names)
        for title, names in GROUPS.items()
    )
    parser.epilog = EXIT_CODES
    return parser
