"""What one league saves: the shipped one at a cut size against a sweep of its own for each entry, one after another."""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from slime_ray.search_spaces import find_space

from slime_ray.bench.machine import Machine, Say, describe_machine, now
from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.config.league import Entry
from slime_ray.config.points import with_values
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import RunError
from slime_ray.planning.tables import table

from .common import middle, run

SPACE = "league_arithmetic"
SAMPLED_SECONDS = 0.5
"""Time between two looks at the CPU seconds of processes; of one that ends, what follows the last look is lost."""


@dataclass(frozen=True)
class LeagueCost:
    """Seconds of each round, by the wall and of the CPU, of all processes and their starts and ends.

    trials: of either side in a round. load: of the machine in the last minute, before each round.
    """

    machine: Machine
    date: str
    entries: int
    trials: int
    updates: int
    league: list[float]
    separate: list[float]
    league_cpu: list[float]
    separate_cpu: list[float]
    load: list[float]

    def ratio(self, kind: str = "") -> float:
        """How many times longer the separate sweeps take. kind: "" by the wall, "_cpu" by the CPU."""
        return statistics.median(getattr(self, f"separate{kind}")) / statistics.median(getattr(self, f"league{kind}"))


def measure_league(*, entries: int, trials: int, seeds: int, updates: int, rounds: int, say: Say) -> LeagueCost:
    """Run both sides `rounds` times, the league between two halves of the sweeps, with the stages made beforehand."""
    found: dict[str, list[float]] = {name: [] for name in ("league", "separate", "league_cpu", "separate_cpu", "load")}
    count = 0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        league = folder / "league.yaml"
        league.write_text(json.dumps(cut_league(entries, trials, seeds, updates)), encoding="utf-8")
        experiment = load_experiment(league)
        spaces = [write_entry(experiment, entry, folder) for entry in experiment.league.entries]  # type: ignore[union-attr]
        say("making the stages")
        _timed(["train", str(_warm(experiment, folder)), "--trial", "arm-dpo-s0", "--name", "warm"], folder)
        for turn in range(rounds):
            found["load"].append(os.getloadavg()[0])
            half = (len(spaces) + 1) // 2
            say(f"round {turn + 1} of {rounds}: {half} sweeps")
            first = _sweeps(spaces[:half], folder, turn)
            say(f"round {turn + 1} of {rounds}: the league")
            wall, cpu = _timed(["league", str(league), "--name", f"league-{turn}", "--quiet"], folder)
            say(f"round {turn + 1} of {rounds}: {len(spaces) - half} sweeps")
            second = _sweeps(spaces[half:], folder, turn)
            for name, value in zip(
                ("league", "league_cpu", "separate", "separate_cpu"),
                (wall, cpu, first[0] + second[0], first[1] + second[1]),
                strict=True,
            ):
                found[name].append(value)
            count = same_trials(folder / "runs", turn)
    return LeagueCost(
        machine=describe_machine(torch.device("cpu")),
        date=now(),
        entries=entries,
        trials=count,
        updates=updates,
        **found,
    )


def cut_league(entries: int, trials: int, seeds: int, updates: int) -> dict[str, Any]:
    """The shipped league's file with so many entries, search trials, confirmation seeds and updates, without the rest.

    Arms and defaults are left out: a separate sweep has nothing like them.
    """
    data = load_yaml(find_space(SPACE)).data
    kept = dict(list(data["league"]["entries"].items())[:entries])
    league = data["league"] | {"trials": trials, "seeds": seeds, "defaults": False, "entries": kept}
    base = with_values(data.get("base", {}), {"training.updates": updates})
    return {name: value for name, value in data.items() if name != "arms"} | {"league": league, "base": base}


def write_entry(experiment: Experiment, entry: Entry, folder: Path) -> Path:
    """Write the sweep that does for one entry what the league does: the same space, first point, trials and seeds."""
    assert experiment.league is not None
    search = entry.search
    data = {
        "name": entry.label,
        "base": with_values(experiment.base, entry.set),
        "search": {
            path: {kind: value for kind, value in dimension.items() if value}
            for path, dimension in search["dimensions"].items()
        },
        "sampler": search["sampler"],
        "require": search["require"],
        "start_from": search["known_points"],
        "budget": {"trials": experiment.league.trials, "confirm": {"best": 1, "seeds": experiment.league.seeds}},
    }
    path = folder / f"{entry.label}.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def _warm(experiment: Experiment, folder: Path) -> Path:
    """An experiment of one update that makes every stage, the reference's log-probs among them."""
    base = with_values(experiment.base, {"objective": {"name": "dpo"}, "training.updates": 1})
    path = folder / "warm.yaml"
    path.write_text(json.dumps({"name": "warm", "base": base, "arms": {"dpo": {}}}), encoding="utf-8")
    return path


def _sweeps(spaces: Sequence[Path], folder: Path, turn: int) -> tuple[float, float]:
    """Seconds of sweeps one after another, by the wall and of the CPU."""
    done = [_timed(["sweep", str(space), "--name", f"{space.stem}-{turn}", "--quiet"], folder) for space in spaces]
    return sum(wall for wall, _ in done), sum(cpu for _, cpu in done)


def _timed(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command by the wall, and of the CPU in it and all its descendants. Raises RunError if it fails."""
    command = [sys.executable, "-m", "slime_ray", *arguments, "--storage", str(folder / "runs")]
    clock, used, ended = time.perf_counter(), dict[tuple[int, float], float](), threading.Event()
    with (folder / "errors.txt").open("w") as errors:
        process = psutil.Popen(command, stdout=errors, stderr=errors, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    watch = threading.Thread(target=_watch, args=(process, used, ended))
    watch.start()
    status = process.wait()
    wall = time.perf_counter() - clock
    ended.set()
    watch.join()
    if status:
        raise RunError(f"`{' '.join(arguments)}` failed: {(folder / 'errors.txt').read_text()[-500:]}")
    return wall, sum(used.values())


def _watch(process: psutil.Process, used: dict[tuple[int, float], float], ended: threading.Event) -> None:
    """Keep the CPU seconds of a process and each descendant as of the last look at it. Ray's are its descendants."""
    while not ended.wait(SAMPLED_SECONDS):
        try:
            alive = [process, *process.children(recursive=True)]
        except psutil.Error:
            return
        for each in alive:
            try:
                times = each.cpu_times()
                used[each.pid, each.create_time()] = times.user + times.system
            except psutil.Error:  # it has just ended
                continue


def same_trials(runs: Path, turn: int) -> int:
    """How many trials either side of a round made. Raises RunError where one made more: their times do not compare."""
    made: dict[bool, int] = {True: 0, False: 0}
    for run_folder in runs.glob(f"*-{turn}"):
        made[run_folder.name == f"league-{turn}"] += len(list(run_folder.glob("trials/*/trial.json")))
    if made[True] != made[False]:
        raise RunError(f"the league made {made[True]} trials and the sweeps {made[False]}: their times do not compare")
    return made[True]


def cost_table(report: LeagueCost) -> str:
    """Render the report."""
    machine = report.machine
    rows = [
        (name, *(cell for kind in ("", "_cpu") for cell in middle(getattr(report, side + kind), 1.0, ".0f")))
        for name, side in (("one league", "league"), (f"{report.entries} sweeps, one after another", "separate"))
    ]
    ratio = ("sweeps to league", f"{report.ratio():.2f}x", "", f"{report.ratio('_cpu'):.2f}x", "")
    return "\n\n".join(
        [
            f"{report.entries} entries of {SPACE}, {report.trials} trials of {report.updates} updates on either side, "
            f"on {machine.processor}, {machine.cores} cores, load {max(report.load):.1f} at most before a round; torch "
            f"{machine.torch}, {report.date}; {len(report.league)} rounds",
            table(("", "s", "range", "CPU s", "range"), [*rows, ratio]),
            "Medians; ranges from least to most. The shared stages were made beforehand. Times hold Ray's start and "
            f"end, and the reports. CPU seconds of all processes are looked at every {SAMPLED_SECONDS:g} s.",
        ]
    )


if __name__ == "__main__":
    run(
        "league_cost",
        "One league against a sweep for each of its entries.",
        {
            "entries": (10, 2, "entries, the first ones"),
            "trials": (2, 1, "search trials of an entry"),
            "seeds": (2, 1, "seeds of a winner's confirmation"),
            "updates": (150, 1, "updates of a trial"),
            "rounds": (1, 1, "repetitions"),
        },
        measure_league,
        cost_table,
    )
