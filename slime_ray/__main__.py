"""The command line as a program: `slime-ray`, or `python -m slime_ray`."""

import gc
import sys

from slime_ray.cli import main


def run() -> None:
    """Run the command that was given and end with its exit code."""
    code = main()
    # What is left goes with the process: without this Python looks for cycles in all of it first, 0.4 s after a report.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    run()
