"""The process that a benchmark starts for a part of it: what to call on standard input, what it gives on output."""

import importlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from slime_ray.errors import is_memory_error


def reason(error: BaseException) -> str:
    """Write an error in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "out of memory" if is_memory_error(error) else lines[0][:160]


def main() -> None:
    """Make one call. Should the machine run out of memory, this process is the one to end."""
    work, arguments = json.load(sys.stdin)
    module, _, function = work.partition(":")
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    answer: dict[str, Any] = {"values": None, "failure": None}
    try:
        answer["values"] = getattr(importlib.import_module(module), function)(*arguments)
    except (RuntimeError, MemoryError, ImportError) as error:
        answer["failure"] = reason(error)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
