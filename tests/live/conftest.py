"""A run that a sweep has at work, as far as its files say, and what serves it."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slime_ray.config.experiment_file import load_experiment
from slime_ray.live import server
from slime_ray.runs import results
from slime_ray.runs.folder import lock_run
from slime_ray.runs.status import STATUS, write_status
from tests.analysis.conftest import HOSTILE, add_trial

TEXT = """\
name: seen
preset: arithmetic
arms: {slime: {}}
search: {objective.hard_margin: {uniform: [0.5, 3.0]}}
budget: {trials: 3, hours: 2}
"""
MARKUP = "<script>document.title = 'taken'</script>"
"""What a run from elsewhere may hold in a label or an answer."""


def add(run: Path, trial: str, share: float = 0.5) -> None:
    """Have a search trial finish."""
    values = {"objective.hard_margin": 2.0}
    add_trial(
        run, trial, phase="search", overrides=values, won=[1.0] * 3 + [0.0] * 3, stability=share,
        answer=lambda index: f"{MARKUP}{HOSTILE}", alarm=f"it diverges {MARKUP}",
    )  # fmt: skip


def at_work(run: Path, **more: object) -> None:
    """Have this process be the sweep, with one trial that runs."""
    trial = {
        "step": 3, "updates": 9, "doing": "training", "loss": 0.5, "alarm": MARKUP,
        "values": {"objective.hard_margin": 1.0},
    }  # fmt: skip
    spent = {"hours": 0.5, "gpu_hours": 0.0, "judge_calls": 0, "cost": None}
    trials = {"search-0002": trial | more}
    write_status(run, finished=1, total=4, trials=trials, spent=spent, seconds_left=90.0)


def end(run: Path) -> None:
    """Have the sweep end."""
    results.write_manifest(run, results.read_manifest(run) | {"finished": "2026-01-01T00:01:00+00:00"})
    write_status(run, finished=4, total=4, trials={}, ended=True)


def said(run: Path, **values: object) -> None:
    """Change what the sweep said of itself."""
    (run / STATUS).write_text(json.dumps(json.loads((run / STATUS).read_text()) | values))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    source = tmp_path / "seen.yaml"
    source.write_text(TEXT)
    run = tmp_path / "runs" / "seen"
    with lock_run(run, load_experiment(source), source=source, seed=0, start="fresh"):
        add(run, "search-0001")
    at_work(run)
    return run


class Serving:
    """`slime-ray watch` in a thread. address: what it printed first."""

    def __init__(self, run: str):
        self.lines: list[str] = []
        self.sentence = ""
        self.printed = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(run,))
        self.thread.start()
        assert self.printed.wait(60)
        self.address = self.lines[0].rpartition(" ")[2]

    def _serve(self, run: str) -> None:
        def say(line: str) -> None:
            self.lines.append(line)
            self.printed.set()

        self.sentence = server.watch(run, port=0, say=say)

    def over(self) -> str:
        """Wait until it has ended, and give what it said."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.sentence


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Serving]]:
    # The other tests are this process, too.
    monkeypatch.setattr("slime_ray.live.server.os.nice", lambda more: None)
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.1)
    began: list[tuple[Serving, Path]] = []

    def start(run: Path) -> Serving:
        began.append((Serving(str(run)), run))
        return began[-1][0]

    yield start
    monkeypatch.setattr(server, "QUIET_SECONDS", 0.0)
    for serving, run in began:
        if serving.thread.is_alive():
            end(run)
            serving.over()
