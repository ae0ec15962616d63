"""What the report of a large run takes: seconds to make, bytes of its page. The run is made up."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from slime_ray.analysis.report import write_report
from slime_ray.analysis.statistics import draws

from slime_ray.bench.machine import Say
from slime_ray.bench.report import Report, machine
from slime_ray.runs import results, schema

from .common import run

ARMS, ARM_SEEDS, CONFIRMED = 8, 2, 2
PAIRS, REPORT_PROMPTS, SEARCH_PROMPTS, UPDATES, EVALUATIONS = 512, 512, 256, 150, 6
SPACE: dict[str, tuple[float, float]] = {
    "objective.anchor_weight": (1e-2, 2.0),
    "objective.stabilizer_strength": (1e-4, 0.3),
    "objective.hard_margin": (0.5, 3.0),
    "objective.soft_margin": (0.1, 2.0),
    "training.learning_rate": (3e-5, 1e-3),
}
HELD_OUT = ("chosen_logp", "rejected_logp", "chosen_drift", "mean_margin", "preference_accuracy", "entropy")
TRAIN = ("loss", "grad_norm", "learning_rate", "chosen_logp", "rejected_logp", "anchor", "stabilizer", "margin")


def measure_report(*, trials: int, answer: int, rounds: int, say: Say) -> Iterator[Report]:
    """Make up a run of so many trials, at least 24, with answers of so many characters, and report it."""
    seconds, command = [], []
    with tempfile.TemporaryDirectory(prefix="slime-ray-bench-") as folder:
        run = Path(folder) / "run"
        say(f"making up a run of {trials} trials")
        make_run(run, trials=trials, answer=answer)
        # What is imported when the first figure is drawn is no part of a report.
        write_report(run, Path(folder) / "first")
        for _ in range(rounds):
            # A round draws its resamples anew, as a report in a new process does.
            draws.cache_clear()
            clock = time.perf_counter()
            written = write_report(run, Path(folder) / "report")
            seconds.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            line = [sys.executable, "-m", "slime_ray", "report", str(run), "--out", str(Path(folder) / "report")]
            subprocess.run(line, stdout=subprocess.DEVNULL, check=True)
            command.append(time.perf_counter() - clock)
        page, all_files = written.html.stat().st_size, sum(path.stat().st_size for path in written.files)
    row = {
        "trials": trials, "seconds": median(seconds), "command s": median(command), "page MB": page / 1e6,
        "all files MB": all_files / 1e6, "of each round": [seconds, command],
    }  # fmt: skip
    yield Report(
        "report of a made-up run",
        {**machine(), "matplotlib": version("matplotlib"), "characters": answer, "rounds": rounds},
        [row],
        "Medians. command: `slime-ray report` in a process of its own, with Python's start and all imports.",
    )


def make_run(run: Path, *, trials: int, answer: int) -> None:
    """Write a run of 8 arms, 2 confirmed winners with 2 seeds each, and a search, with all its files."""
    rng = np.random.default_rng(0)
    words = ["Tens:", "Ones:", "The", "total", "is", "10", "+", "30", "=", "40.", "That", "it."]
    text = " ".join(rng.choice(words, size=answer))[:answer]
    search_trials = trials - ARM_SEEDS * (ARMS + CONFIRMED)
    for arm in range(ARMS):
        for seed in range(ARM_SEEDS):
            about = {"trial_id": f"arm-{arm}-s{seed}", "phase": "arm", "label": f"arm-{arm}", "seed": seed}
            _add(run, rng, about, {"objective.anchor_weight": 0.1 * arm}, text)
    for number in range(1, search_trials + 1):
        name = f"search-{number:04}"
        knobs = {path: float(np.exp(rng.uniform(*np.log(ends)))) for path, ends in SPACE.items()}
        _add(run, rng, {"trial_id": name, "phase": "search", "label": name, "seed": 1000}, knobs, text)
        for seed in range(ARM_SEEDS if number <= CONFIRMED else 0):
            about = {"trial_id": f"confirm-{name}-s{seed}", "phase": "confirm", "label": name, "seed": seed}
            _add(run, rng, about, knobs, text)
    results.consolidate(run)
    manifest = {
        "schema": schema.RUN_SCHEMA,
        "name": "made-up",
        "created": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T01:00:00+00:00",
        "judge": "exact",
        "goals": {"win_rate": "maximize", "stability": "maximize"},
        "seeds": list(range(ARM_SEEDS)),
        "stability_version": "stability-v1",
        "experiment": {
            "arms": [{"label": f"arm-{arm}"} for arm in range(ARMS)],
            "search": {"dimensions": {path: {"log_uniform": list(ends)} for path, ends in SPACE.items()}},
            "budget": {"trials": search_trials, "confirm": {"best": CONFIRMED, "seeds": ARM_SEEDS}},
        },
    }
    results.write_manifest(run, manifest)


def _add(run: Path, rng: np.random.Generator, about: dict[str, Any], knobs: dict[str, Any], text: str) -> None:
    prompts = SEARCH_PROMPTS if about["phase"] == "search" else REPORT_PROMPTS
    about = {**about, "prompt_set": "selection" if about["phase"] == "search" else "report"}
    outcomes = (rng.random(prompts) < rng.uniform(0.2, 0.8)).astype(float)
    parts = ("unlearning", "rejected_collapse", "entropy_shift", "broken_outputs", "length_shift", "training_spikes")
    damage = rng.uniform(0, (0.2, 0.1, 0.7, 0.1, 0.8, 0.02))
    row = results.trial_row(
        **about, status="completed", objective="slime", overrides=knobs, settings={}, judge="exact",
        win_rate=float(outcomes.mean()), prompts=prompts, stability=float(rng.uniform(0.05, 0.95)), healthy=True,
        **dict(zip(parts, map(float, damage), strict=True)), kl_to_sft=0.05, chosen_drift=-0.02, rejected_drift=-0.1,
        preference_accuracy=float(rng.uniform(0.6, 0.95)), mean_margin=0.3, format_valid=0.95, pairs=PAIRS,
        updates=UPDATES, planned_updates=UPDATES, tokens=180_000, train_seconds=12.0, evaluation_seconds=6.0,
        total_seconds=18.0,
    )  # fmt: skip
    answers = [
        dict.fromkeys(schema.ANSWER_SCHEMA.names)
        | {name: row[name] for name in ("trial_id", "label", "phase", "seed", "prompt_set")}
        | {
            "prompt_id": f"p{place:04}", "turn": 1, "prompt": [{"role": "user", "content": f"What is {place} + 1?"}],
            "answer": f"{about['trial_id']} {place} {text}"[: len(text)], "answer_tokens": 20, "baseline_tokens": 20,
            "baseline_answer": f"{place} {text}", "verdict_ab": "A>B" if won else "B>A",
            "verdict_ba": "B>A" if won else "A>B", "outcome": float(won), "broken": False, "baseline_broken": False,
        }
        for place, won in enumerate(outcomes)
    ]  # fmt: skip
    identity = {name: row[name] for name in ("trial_id", "label", "phase", "seed")}
    steps = {
        "train": (TRAIN, range(1, UPDATES + 1)),
        "held_out": (HELD_OUT, range(0, UPDATES + 1, UPDATES // EVALUATIONS)),
    }
    curves = [
        {**identity, "step": step, "source": source, "metric": metric, "value": float(rng.normal())}
        for source, (metrics, at) in steps.items()
        for metric in metrics
        for step in at
    ]
    pairs = [
        {
            **identity, "pair": pair, "chosen_tokens": 20, "rejected_tokens": 20, "chosen_logp0": -1.0,
            "chosen_logp": -1.0 - 0.1 * shift, "rejected_logp0": -1.5, "rejected_logp": -1.6,
            "rejected_collapsed": int(shift > 0.9), "entropy0": 1.0, "entropy": 1.0 - 0.2 * shift,
        }
        for pair, shift in enumerate(rng.random(PAIRS).tolist())
    ]  # fmt: skip
    results.write_trial(run, row=row, answers=answers, curves=curves, pairs=pairs)


if __name__ == "__main__":
    run(
        "report",
        "Seconds and bytes of the report of a large run, which is made up.",
        {
            "trials": (100, 24, "trials of the run"),
            "answer": (200, 1, "characters of an answer"),
            "rounds": (3, 1, "repetitions"),
        },
        measure_report,
    )
