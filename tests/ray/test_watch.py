"""The driver's watch over running trials, by a clock of the test's own: interrupts, a spent budget, waiting, silence."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_ray.config.experiment import Experiment, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import RunError
from slime_ray.evaluation.verdict_cache import Verdicts
from slime_ray.on_ray import prepare, watch
from slime_ray.on_ray.monitor import TrialStatus
from slime_ray.on_ray.resources import BudgetMeter, Node
from slime_ray.on_ray.watch import GRACE_SECONDS, PlacementTimeout, ShutdownTimeout, Watch
from slime_ray.runs.instructions import ask_for_clone, ask_for_more, ask_to_stop
from slime_ray.runs.results import finished_trial
from slime_ray.runs.status import STATUS, read_status
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts

TEXT = """\
name: watched
preset: arithmetic
arms: {slime: {}}
budget: {hours: 1}
faults: {placement_minutes: 10, hang_minutes: 30}
"""
AT_WORK = {"arm-slime-s0": TrialStatus({}, 0.0, at_work=True)}
PENDING = SimpleNamespace(status="PENDING")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"time.{name} is not asked for here")


class FakeMonitor:
    """What the driver is told of the trials, and what it told them."""

    def __init__(self) -> None:
        self.trials: dict[str, TrialStatus] = {}
        self.orders: list[str] = []
        self.killed: list[str] = []

    def statuses(self) -> dict[str, TrialStatus]:
        return self.trials

    def leave(self, reason: str) -> None:
        self.orders.append(reason)

    def stop_trial(self, name: str, reason: str) -> None:
        self.orders.append(f"{name}: {reason}")

    def kill(self, name: str) -> None:
        self.killed.append(name)

    def end(self, name: str) -> None:
        del self.trials[name]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watch, "time", made)
    monkeypatch.setattr(watch, "free_nodes", lambda: [Node("head", 0)])
    return made


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "watched.yaml"
    path.write_text(TEXT)
    return load_experiment(path)


@pytest.fixture
def monitor() -> FakeMonitor:
    return FakeMonitor()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watching(clock: Clock, experiment: Experiment, monitor: FakeMonitor, said: list[str], tmp_path: Path) -> Watch:
    plan: Any = SimpleNamespace(is_ending=False, by_tune_id={}, added=[], total=2, is_late=lambda clone: False)
    plan.add = lambda clone: clone not in plan.added and not plan.added.append(clone)
    progress: Any = SimpleNamespace(
        say=said.append, update=lambda metrics: None, finished=0, total=1, seconds_left=lambda: None
    )
    teller: Any = monitor
    meter = BudgetMeter(
        experiment, run=tmp_path, verdicts=Verdicts(tmp_path / ".verdicts", run="watched"), now=clock.now
    )
    return Watch(
        experiment, run=tmp_path, storage=RunStore(tmp_path), monitor=teller, plan=plan, progress=progress, meter=meter
    )


def step(watching: Watch, clock: Clock, seconds: float, *trials: Any) -> None:
    clock.now += seconds
    watching.on_step_begin(0, list(trials))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_is_an_order_and_the_second_ends_everything(watching, clock, monitor, number):
    before = signal.getsignal(number)
    monitor.trials = AT_WORK
    with watching.interrupts_as_orders():
        signal.raise_signal(number)
        step(watching, clock, 1)
        assert monitor.orders == ["the sweep ended: it was interrupted"]
        assert watching.plan.is_ending
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_trials_that_were_told_to_leave_have_their_time_and_no_more(watching, clock, monitor):
    monitor.trials = AT_WORK
    step(watching, clock, 3599)
    assert monitor.orders == []
    step(watching, clock, 2)
    assert monitor.orders == ["the sweep ended: its time, budget.hours 1, is spent"]
    step(watching, clock, GRACE_SECONDS - 1)
    with pytest.raises(ShutdownTimeout):
        step(watching, clock, 2)
    assert len(monitor.orders) == 1


def test_waiting_is_told_every_minute_and_given_up_in_the_end(watching, clock, said):
    for _ in range(9):
        step(watching, clock, 61, PENDING)
    assert len(said) == 9
    assert said[1] == "Waiting for 122 s: A trial asks for 1 CPU and 0 GPU; free now: 0 CPU on head"
    with pytest.raises(PlacementTimeout, match=r"610 s: A trial asks for 1 CPU .*faults.placement_minutes is 10"):
        step(watching, clock, 61, PENDING)


def test_waiting_counts_only_while_nothing_is_at_work(watching, clock, monitor, said):
    for _ in range(3):
        monitor.trials = {}
        step(watching, clock, 599, PENDING)
        monitor.trials = AT_WORK
        step(watching, clock, 1, PENDING)
    assert len(said) == 3
    # A group has begun, and its workers have no place yet.
    monitor.trials = {"arm-slime-s0": TrialStatus({}, 0.0, at_work=False)}
    step(watching, clock, 1)
    with pytest.raises(PlacementTimeout):
        step(watching, clock, 601)


def test_what_is_asked_from_another_terminal_is_done_once(watching, clock, monitor, said, tmp_path, experiment):
    monitor.trials = AT_WORK
    step(watching, clock, 3)
    assert read_status(tmp_path).trials == {"arm-slime-s0": {"values": {}}}
    ask_to_stop(tmp_path, "arm-slime-s0", running_ids=set(AT_WORK))
    clone = ask_for_clone(tmp_path, experiment, "arm-slime-s0", {"objective.hard_margin": 2.0})
    step(watching, clock, 1)
    step(watching, clock, 1)
    assert monitor.orders == ["arm-slime-s0: stopped by hand"]
    assert watching.plan.added == [clone]
    assert watching.progress.total == 2
    assert said == [
        "arm-slime-s0 is stopped by hand.",
        "arm-slime-s0-clone-1 runs next: arm-slime-s0 with other knobs.",
    ]


def test_a_clone_that_comes_too_late_is_told_once_and_not_run(watching, clock, said, tmp_path, experiment):
    watching.plan.add, watching.plan.is_late = lambda clone: False, lambda clone: True
    step(watching, clock, 3)
    watching.monitor.trials = AT_WORK
    step(watching, clock, 3)
    clone = ask_for_clone(tmp_path, experiment, "arm-slime-s0", {"objective.hard_margin": 2.0})
    step(watching, clock, 1)
    step(watching, clock, 1)
    assert said == [f"{clone.trial_id} is late: winners are being confirmed. `slime-ray extend` runs it."]


def test_a_search_is_extended_once_and_its_budget_is_kept(watching, clock, monitor, said, tmp_path):
    monitor.trials = AT_WORK
    more: list[int] = []
    watching.on_extend = more.append
    watching.plan.extend, watching.plan.total = lambda trials: True, 3
    # Of a budget that the search had once, or has not: taken up by an earlier sweep, or a mistake.
    ask_for_more(tmp_path, 2, 9)
    ask_for_more(tmp_path, 3, 2)
    watching.budget = 3
    step(watching, clock, 1)
    step(watching, clock, 1)
    assert (more, watching.progress.total, watching.budget) == ([2], 3, 5)
    assert said == ["The search goes on for 2 trials more."]
    # One whose search is over says so, and nothing is kept.
    watching.plan.extend = lambda trials: False
    ask_for_more(tmp_path, 5, 4)
    step(watching, clock, 1)
    step(watching, clock, 1)
    assert (more, watching.progress.total) == ([2], 3)
    assert [sentence[:18] for sentence in said[1:]] == ["The search is over"]


def test_a_silent_trial_is_ended_and_noted(watching, clock, monitor, tmp_path):
    folder = tmp_path / "trials" / "arm-slime-s0"
    attempts.begin(folder, workers=1)
    monitor.trials = {"arm-slime-s0": TrialStatus({}, 1799.0, at_work=True)}
    step(watching, clock, 1)
    monitor.trials = {"arm-slime-s0": TrialStatus({}, 1801.0, at_work=True)}
    step(watching, clock, 1)
    assert monitor.killed == ["arm-slime-s0"]
    assert [attempt.ended for attempt in attempts.read(folder)] == ["hung"]


@pytest.fixture
def making(clock: Clock, experiment: Experiment, monitor: FakeMonitor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Follows the making of stages that never ends; each look takes 200 s."""

    def look(*arguments: Any, **options: Any) -> tuple[list[Any], list[Any]]:
        clock.now += 200
        return [], []

    context: Any = SimpleNamespace(resources=experiment.resources, faults=experiment.faults, monitor=monitor)
    monkeypatch.setattr(prepare.ray, "wait", look)
    lines: list[str] = []
    console: Any = prepare.Console(quiet=True)
    monkeypatch.setattr(console, "print", lambda line, **options: lines.append(line))
    notes: list[dict[str, Any]] = []
    follow = lambda: prepare._follow(None, context, console, lambda metrics: notes.append(dict(metrics)))  # noqa: E731
    return SimpleNamespace(follow=follow, lines=lines, notes=notes)


def test_stages_that_find_no_place_are_told_and_given_up(making):
    with pytest.raises(PlacementTimeout, match="A trial asks for 1 CPU"):
        making.follow()
    assert [line.split(":")[0] for line in making.lines] == [
        "Waiting for 200 s",
        "Waiting for 400 s",
        "Waiting for 600 s",
    ]


def test_the_steps_of_a_stage_are_noted_and_each_quarter_is_a_line(making, monitor, monkeypatch, clock):
    steps = iter([None, *range(1, 11)])

    def look(*arguments: Any, **options: Any) -> tuple[list[Any], list[Any]]:
        clock.now += prepare.STATUS_SECONDS + 1
        if (step := next(steps, 0)) == 0:
            return [1], []
        told = {"doing": "making sft", "step": step, "updates": 10, "loss": 0.5} if step else {"doing": "making sft"}
        monitor.trials = {"stages": TrialStatus(told, 0.0, at_work=True)}
        return [], []

    monkeypatch.setattr(prepare, "time", clock)
    monkeypatch.setattr(prepare.ray, "wait", look)
    making.follow()
    assert making.lines == [
        "making sft",
        "making sft 3/10 loss 0.500",
        "making sft 5/10 loss 0.500",
        "making sft 8/10 loss 0.500",
        "making sft 10/10 loss 0.500",
    ]
    assert [told.get("step") for told in making.notes] == [None, *range(1, 11)]


def test_stages_whose_making_falls_silent_are_given_up(making, monitor):
    monitor.trials = {"stages": TrialStatus({"doing": "making sft"}, 1801.0, at_work=True)}
    with pytest.raises(RunError, match=r"said nothing for 1801 s \(faults.hang_minutes is 30\)"):
        making.follow()


def test_a_budget_that_is_spent_ends_the_sweep_and_says_which(watching, clock, monitor):
    watching.meter.budget = watching.meter.budget.model_copy(update={"gpu_hours": 0.5})
    watching.meter.resources = watching.meter.resources.model_copy(update={"gpu_per_worker": 1.0})
    # A trial that has no place yet holds no GPU.
    monitor.trials = {"arm-slime-s0": TrialStatus({}, 0.0, at_work=False)}
    step(watching, clock, 500)
    monitor.trials = AT_WORK
    step(watching, clock, 1799)
    assert monitor.orders == []
    step(watching, clock, 2)
    assert monitor.orders == ["the sweep ended: budget.gpu_hours 0.5 is spent (0.5003)"]
    assert watching.spent == "gpu_hours"
    assert watching.plan.is_ending


def lost(watching: Watch, trial: Any, error: str = "ActorDiedError: the actor died") -> None:
    watching.on_trial_recover(0, [], SimpleNamespace(config={"trial": trial}, get_error=lambda: error))


@pytest.fixture
def arm(experiment: Experiment, monitor: FakeMonitor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration of the one trial, whose end the monitor may be told at any time."""
    monkeypatch.setattr(monitor, "end", lambda name: None)
    (one,) = arm_trials(experiment)
    return one.model_dump(mode="json")


def test_a_node_whose_gpus_failed_twice_is_named_once(watching, arm, said, tmp_path):
    error = "slime_ray.on_ray.workers.RestartTrial: a GPU failed: node gpu-3: AcceleratorError: CUDA error: an illegal access"
    fault = error.partition("a GPU failed: ")[2]
    for number, told in enumerate(([], ["2 times, the last time on node gpu-3: Accel"], [], [])):
        name = f"search-000{number}"
        folder = tmp_path / "trials" / name
        attempts.begin(folder, workers=1)
        # The last one failed on another node.
        attempts.note(folder, ended="device", fault=fault if number < 3 else fault.replace("gpu-3", "gpu-4"))
        del said[:]
        lost(watching, arm | {"trial_id": name}, error)
        assert [words in line for words, line in zip(told, said, strict=True)] == [True] * len(told)
        assert [one.ended for one in watching.attempts[name]] == ["device"]


@pytest.mark.parametrize(
    ("error", "starts", "reason"),
    [
        ("ActorDiedError: the actor died", 4, "faults.retries is 3"),
        ("slime_ray.training.outcome.OutOfMemory: CUDA", 2, "out of memory twice"),
        ("slime_ray.on_ray.workers.RestartTrial: its node is about to be taken away", 9, "faults.preemptions is 8"),
    ],
)
def test_the_driver_counts_starts_that_are_noted_nowhere(watching, arm, tmp_path, error, starts, reason):
    """A folder stands where attempts.json belongs. Tune itself would start the trial 14 times."""
    folder = tmp_path / "trials" / "arm-slime-s0"
    (folder / attempts.FILE).mkdir(parents=True)
    for _ in range(starts - 1):
        lost(watching, arm, error)
    assert finished_trial(folder) is None
    lost(watching, arm, error)
    row = finished_trial(folder)
    assert row is not None
    assert row["status"] == "failed"
    assert reason in row["reason"]
    assert watching.leave_reason is None


def test_where_nothing_can_be_written_the_sweep_ends_once_starts_are_used_up(watching, clock, arm, tmp_path, monitor):
    """A file stands where the folder of all trials belongs."""
    (tmp_path / "trials").write_text("in the way")
    for _ in range(4):
        lost(watching, arm)
    assert "was begun 4 times, and the storage does not take what is written" in str(watching.leave_reason)
    assert watching.plan.is_ending


def test_a_trial_that_meets_a_storage_that_takes_nothing_ends_the_sweep(watching, arm):
    trial = SimpleNamespace(
        config={"trial": arm}, last_result={"status": "paused", "reason": "the storage does not take what is written"}
    )
    watching.on_trial_complete(0, [], trial)
    assert watching.leave_reason == "the storage does not take what is written"


def test_a_stage_that_is_made_again_is_said_once_by_whoever_hears_it(making, monitor, monkeypatch):
    monitor.trials = {
        "stages": TrialStatus({"doing": "making sft", "notice": "A shared stage is not whole."}, 0.0, at_work=True)
    }
    looks = iter([([], []), ([], []), ([1], [])])
    monkeypatch.setattr(prepare.ray, "wait", lambda *arguments, **options: next(looks))
    making.follow()
    assert making.lines.count("A shared stage is not whole.") == 1


def test_a_storage_that_takes_nothing_ends_the_sweep_after_storage_minutes(watching, clock, monitor, tmp_path):
    """A folder stands where status.json belongs, for a while and then for good."""
    monitor.trials = AT_WORK
    (tmp_path / STATUS).mkdir()
    step(watching, clock, 3)
    step(watching, clock, 14 * 60)
    (tmp_path / STATUS).rmdir()
    step(watching, clock, 3)
    (tmp_path / STATUS).unlink()
    (tmp_path / STATUS).mkdir()
    step(watching, clock, 3)
    step(watching, clock, 14 * 60)
    assert monitor.orders == []
    step(watching, clock, 2 * 60)
    assert "the storage does not take what is written (IsADirectoryError: " in monitor.orders[0]
