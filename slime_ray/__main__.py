"""The command line as a program: `slime-ray`, or `python -m slime_ray`."""

import gc
import sys
import traceback
from types import TracebackType

from slime_ray.cli import main
from slime_ray.runs.redaction import redact_sentence


def run() -> None:
    """Run the command that was given and end with its exit code."""
    sys.excepthook = _without_secrets
    code = main()
    # What is left goes with the process: without this Python looks for cycles in all of it first, 0.4 s after a report.
    gc.freeze()
    sys.exit(code)


def _without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected error's traceback without the secrets it may quote."""
    print(redact_sentence("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


if __name__ == "__main__":
    run()
