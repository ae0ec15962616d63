"""How far plans are off: `slime-ray plan --probe` of small sweeps, each then run, beside what it took."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from slime_ray.errors import RunError
from slime_ray.runs import results

from .machine import Say, process_bytes
from .report import Report, machine

EVERY = 0.25
"""Seconds between two looks at the processes of a sweep."""
WORKERS = ("ray::ImplicitFunc", "ray::make_stages")
"""How processes begin their titles while they run trials and make stages."""
CASES = {
    # The demo with a third of its updates and half of its search.
    "demo, shortened": """\
preset: arithmetic
base: {sft: {updates: 300}, training: {updates: 50}}
arms:
  sft: {training.updates: 0}
  nll-chosen: {objective: {name: sft}}
  dpo: {objective: {name: dpo, beta: 0.1}}
  slime-paper: {}
seeds: [0, 1]
search:
  objective.anchor_weight: {log_uniform: [0.01, 2.0]}
  objective.hard_margin: {uniform: [0.5, 3.0]}
budget: {trials: 4, confirm: {best: 1, seeds: 2}}
""",
    # Many updates of few pairs, few prompts: what an update takes beside its tokens counts most.
    "small updates": """\
preset: arithmetic
base:
  data: {sft_examples: 2000, pairs: 512, held_out_pairs: 128}
  sft: {updates: 200}
  training: {updates: 200, pairs_per_update: 4, evaluations: 2}
  evaluation: {prompts: 64, selection_prompts: 64, kl_prompts: 16}
arms: {slime: {}, simpo: {objective: {name: simpo}}}
seeds: [0, 1, 2]
""",
    # Few updates of many pairs, and adapters.
    "large updates": """\
preset: arithmetic
base:
  model: {lora: {rank: 8, alpha: 16.0}}
  sft: {updates: 150}
  training: {updates: 24, pairs_per_update: 128, evaluations: 3}
  evaluation: {prompts: 128, selection_prompts: 64}
arms: {slime: {}, dpo: {objective: {name: dpo}}}
seeds: [0, 1, 2]
""",
    # The other task; answers count most, and trials of two lengths.
    "notes, answers": """\
preset: notes
base:
  data: {sft_examples: 4000}
  sft: {updates: 200}
  training: {updates: 16, evaluations: 4}
arms: {short: {}, long: {training.updates: 64}}
seeds: [0, 1]
search:
  objective.anchor_weight: {log_uniform: [0.01, 2.0]}
budget: {trials: 4}
""",
}
"""Experiments by name, but for their `name`."""


FIGURES = ("s", "trial seconds", "tokens", "peak MiB", "disk MiB")
"""What is planned and then measured."""


def measure_plans(*, cases: Sequence[str], rounds: int, say: Say) -> Report:
    """Plan and run each case in turn, `rounds` times. Raises RunError where none came to its end."""
    rows: list[dict[str, Any]] = []
    for case in [*cases] * rounds:
        # Each in a storage of its own, so that stages are made again.
        with tempfile.TemporaryDirectory() as folder:
            try:
                planned, ran = _run_case(case, Path(folder), say)
            except RunError as error:
                rows.append({"sweep": case, "failure": str(error)})
            else:
                texts = (f"{a:,.0f} / {b:,.0f} ({a / b - 1:+.0%})" for a, b in zip(planned, ran, strict=True))
                row = {"sweep": case, **dict(zip(FIGURES, texts, strict=True)), "planned": planned, "ran": ran}
                rows.append(row)
        say(json.dumps(rows[-1]))
    runs = [row for row in rows if "ran" in row]
    if not runs:
        raise RunError(f"No sweep came to its end. {rows[0]['failure']}")
    notes = ["Planned / ran. s: the whole command; trial seconds: of all trials together."]
    for place, name in enumerate(FIGURES):
        errors = [row["planned"][place] / row["ran"][place] - 1 for row in runs]
        within = sum(abs(error) <= 0.25 for error in errors)
        notes.append(f"{name}: median error {median(errors):+.0%}, {within} of {len(errors)} within 25 %.")
    return Report("plans after a probe", machine(), rows, "\n".join(notes))


def _run_case(case: str, folder: Path, say: Say) -> tuple[list[float], list[float]]:
    """Return the FIGURES of a case as planned and as they came."""
    space, storage = folder / "space.yaml", folder / "runs"
    space.write_text(f"name: planned\n{CASES[case]}", encoding="utf-8")
    say(f"{case}, a plan with a probe")
    text, _ = _command(["plan", str(space), "--probe", "--json", "--storage", str(storage)])
    plan = json.loads(text)
    expected = [plan[name]["expected"] for name in ("time", "trial_seconds", "tokens")]
    say(f"{case}, the sweep")
    clock = time.perf_counter()
    _, peak = _command(["sweep", str(space), "--storage", str(storage)])
    took = time.perf_counter() - clock
    trials = results.load(storage / "planned").trials
    written = sum(file.stat().st_size for file in storage.rglob("*") if file.is_file())
    ran = [took, float(trials["total_seconds"].sum()), float(trials["tokens"].sum()), peak / 2**20, written / 2**20]
    return [*expected, plan["peak_bytes"] / 2**20, sum(plan["disk"].values()) / 2**20], ran


def _command(arguments: list[str]) -> tuple[str, int]:
    """Run a command of slime-ray; return its output, and the peak that `_watch` saw."""
    command = [sys.executable, "-m", "slime_ray", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    # Files, since Ray's processes hold a pipe open after the command has ended.
    with (
        tempfile.TemporaryFile("w+") as printed,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=printed, stderr=errors, env=environment) as process,
    ):
        peak = _watch(process)
        errors.seek(0)
        if process.returncode:
            raise RunError(f"`{' '.join(arguments)}` failed: {errors.read().strip()[-500:]}")
        printed.seek(0)
        return printed.read(), peak


def _watch(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process; return the highest resident memory, in bytes, of those below it that make stages or train."""
    peak, working = 0, set[int]()
    while process.poll() is None:
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error, OSError):
                    # A worker's title is another one between two trials.
                    if child.pid in working or " ".join(child.cmdline()).startswith(WORKERS):
                        working.add(child.pid)
                        peak = max(peak, process_bytes("VmHWM", child.pid))
        with suppress(subprocess.TimeoutExpired):
            process.wait(EVERY)
    return peak
