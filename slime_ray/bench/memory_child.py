"""The process that `bench memory` starts for one recipe: a request on standard input, bytes of each step on output."""

import ctypes
import gc
import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from slime_ray.errors import is_memory_error

from .options import Options
from .stepper import Step, Stepper, build, workload_of


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    options = Options.from_json(request["options"])
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"], 0) if request["device"] == "cuda" else torch.device("cpu")
    with suppress(OSError):
        # Should the machine run out of memory, this process is the one to end.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    steps: list[int] = []
    failure = None
    try:
        steps = weigh_steps(request["recipe"], options, request["vocabulary"], device)
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        failure = "out of memory"
    print(json.dumps({"steps": steps, "failure": failure}))


def weigh_steps(recipe: str, options: Options, vocabulary: int, device: torch.device) -> list[int]:
    """Bytes of each of the options' rounds, another step's pairs each, the same pairs for every recipe."""
    workload = workload_of(options, vocabulary, steps=options.rounds)
    stepper = Stepper(recipe, build(options, vocabulary, device))
    stepper.run(stepper.collate(workload.drawn[0], options.micro))  # to warm up
    return [weigh(stepper, stepper.collate(pairs, options.micro), device) for pairs in workload.drawn]


def weigh(stepper: Stepper, step: Step, device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        stepper.run(step)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _forget_peak()
    stepper.run(step)
    return _status("VmHWM") - before


def _forget_peak() -> int:
    """Set the highest point of the resident set to what it is now; returns that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(key: str) -> int:
    """Bytes by one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
