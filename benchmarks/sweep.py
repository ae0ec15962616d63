"""What a sweep costs beside its training: many tiny trials in one sweep against as many processes of their own."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slime_ray.bench.machine import Machine, Say, describe_machine, now
from slime_ray.errors import RunError
from slime_ray.planning.tables import table

from .common import middle, run

EXPERIMENT = """\
name: tiny
preset: arithmetic
base:
  data: {{sft_examples: 200, pairs: 64, held_out_pairs: 24}}
  sft: {{updates: 5}}
  training: {{updates: {updates}, pairs_per_update: 8, evaluations: 2}}
  evaluation: {{prompts: 8, selection_prompts: 8, kl_prompts: 4, decoding: {{max_new_tokens: 8}}}}
arms: {{slime: {{}}}}
seeds: {seeds}
"""


@dataclass(frozen=True)
class SweepReport:
    """Seconds of a round each, and of the trials of the sweeps one at a time.

    cold, cold_side_by_side: `trials` processes one after another, and as many at a time as there are cores. sweep: one
    sweep over the same trials, Ray's start and end and the report included. gaps: from the end of a trial to the start
    of the next one in the same process. beside: what a warm trial takes beside its training and evaluation, gap
    included.
    """

    machine: Machine
    date: str
    trials: int
    updates: int
    cores: int
    cold: list[float]
    cold_side_by_side: list[float]
    sweep: list[float]
    gaps: list[float]
    beside: list[float]
    training: list[float]

    @property
    def ratio(self) -> float:
        """How many times sooner a sweep is done than processes one after another."""
        return statistics.median(self.cold) / statistics.median(self.sweep)

    @property
    def ratio_side_by_side(self) -> float:
        """The same against processes side by side."""
        return statistics.median(self.cold_side_by_side) / statistics.median(self.sweep)


def measure_sweep(*, trials: int, updates: int, rounds: int, say: Say) -> SweepReport:
    """Run everything `rounds` times, interleaved, with the shared stages made beforehand."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cold, side_by_side, sweep = [], [], []
    gaps: list[float] = []
    beside: list[float] = []
    training: list[float] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        space = folder / "tiny.yaml"
        space.write_text(EXPERIMENT.format(updates=updates, seeds=list(range(trials))), encoding="utf-8")

        def train(name: str, number: int) -> None:
            _run(["train", str(space), "--trial", f"arm-slime-s{number}", "--name", f"{name}-{number}"], folder)

        train("first", 0)
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}: {trials} processes one after another")
            clock = time.perf_counter()
            for number in range(trials):
                train(f"cold-{turn}", number)
            cold.append(time.perf_counter() - clock)
            say(f"round {turn + 1} of {rounds}: {cores} processes at a time")
            clock = time.perf_counter()
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(lambda number: train(f"beside-{turn}", number), range(trials)))  # noqa: B023
            side_by_side.append(time.perf_counter() - clock)
            say(f"round {turn + 1} of {rounds}: one sweep")
            clock = time.perf_counter()
            _run(["sweep", str(space), "--name", f"sweep-{turn}"], folder)
            sweep.append(time.perf_counter() - clock)
            say(f"round {turn + 1} of {rounds}: one sweep, a trial at a time")
            _run(["sweep", str(space), "--name", f"single-{turn}", "--set", "resources.concurrent_trials=1"], folder)
            found = _between(folder / "runs" / f"single-{turn}")
            gaps += found["gaps"]
            beside += found["beside"]
            training += found["training"]
    return SweepReport(
        machine=describe_machine(torch.device("cpu")),
        date=now(),
        trials=trials,
        updates=updates,
        cores=cores,
        cold=cold,
        cold_side_by_side=side_by_side,
        sweep=sweep,
        gaps=gaps,
        beside=beside,
        training=training,
    )


def _run(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "slime_ray", *arguments, "--storage", str(folder / "runs")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise RunError(f"`{' '.join(arguments)}` failed: {done.stderr.strip()[-500:]}")


def _between(run: Path) -> dict[str, list[float]]:
    """From the trials of a sweep one at a time, the first left out: it imports what the others find."""
    trials: list[dict[str, Any]] = []
    for file in (run / "trials").glob("*/trial.json"):
        attempt = json.loads((file.parent / "attempts.json").read_text(encoding="utf-8"))[-1]
        row = json.loads(file.read_text(encoding="utf-8"))
        work = row["train_seconds"] + row["evaluation_seconds"]
        trials.append({"started": attempt["started"], "ended": file.stat().st_mtime, "work": work})
    trials.sort(key=lambda trial: trial["started"])
    warm = trials[1:]
    pairs = list(itertools.pairwise(warm))
    return {
        "gaps": [after["started"] - before["ended"] for before, after in pairs],
        "beside": [after["started"] - before["started"] - before["work"] for before, after in pairs],
        "training": [trial["work"] for trial in warm],
    }


def sweep_table(report: SweepReport) -> str:
    """Render the report."""
    machine = report.machine
    runs = [
        ("processes one after another", report.cold, f"{report.ratio:.2f}x"),
        (f"processes, {report.cores} at a time", report.cold_side_by_side, f"{report.ratio_side_by_side:.2f}x"),
        ("one sweep", report.sweep, ""),
    ]
    rows = [(name, *middle(seconds, 1.0, ".1f"), ratio) for name, seconds, ratio in runs]
    warm = [
        ("training and evaluation", report.training),
        ("everything else", report.beside),
        ("of it between two trials", report.gaps),
    ]
    return "\n\n".join(
        [
            f"{report.trials} trials of {report.updates} updates, on {machine.processor}, {machine.cores} cores; torch "
            f"{machine.torch}, transformers {machine.transformers}, {report.date}; {len(report.sweep)} rounds",
            table(("", "s", "range", "to one sweep"), rows),
            table(
                ("a warm trial, one at a time", "ms", "range"),
                [(name, *middle(seconds, 1000.0, ".0f")) for name, seconds in warm],
            ),
            "Medians; ranges from least to most. The shared stages were made beforehand. A sweep's time holds Ray's "
            "start and end and the report.",
        ]
    )


if __name__ == "__main__":
    run(
        "sweep",
        "Many tiny trials in one sweep against a process for each.",
        {"trials": (16, 4, "trials"), "updates": (20, 1, "updates of a trial"), "rounds": (3, 1, "repetitions")},
        measure_sweep,
        sweep_table,
    )
