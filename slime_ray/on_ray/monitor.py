"""The monitor: one small actor beside the sweep's driver that every running trial talks to.

A trial reports to it and is answered with an order, so that early stopping, a spent budget, an interrupt or a node that
is about to be taken away end a trial where it can write down what it has. The driver asks it who is alive, and which
processes and resources a trial left behind.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slime_ray.config.experiment import EarlyStopping
from slime_ray.config.league import entry_of
from slime_ray.on_ray.cluster_state import cluster_state
from slime_ray.on_ray.stopping import Rule, TrialMetrics, build_rule
from slime_ray.training.orders import Command

DRAINING_SECONDS = 2.0
ANSWER_SECONDS = 30.0


@dataclass
class TrialRecord:
    """What the monitor knows of a running trial. last_seen: seconds by the monitor's clock."""

    last_seen: float
    metrics: dict[str, Any] = field(default_factory=dict)
    actors: list[Any] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    groups: list[PlacementGroup] = field(default_factory=list)


@dataclass(frozen=True)
class TrialStatus:
    """What the driver learns of a running trial.

    metrics: what it reported last. silent: seconds since its last report. at_work: whether its processes have begun.
    """

    metrics: dict[str, Any]
    silent: float
    at_work: bool


class MonitorActor:
    """Runs as a Ray actor, see the module."""

    def __init__(self, early_stopping: EarlyStopping | None, past: Sequence[TrialMetrics]):
        self.records: dict[str, TrialRecord] = {}
        self.leave_command: Command | None = None
        self.stop_commands: dict[str, Command] = {}
        self.early_stopping = early_stopping
        self.rules: dict[str, Rule | None] = {}
        for trial_id, metrics in past:
            # What was decided then does not change; it counts for those that come.
            self.decide(trial_id, metrics)
        self.draining_nodes: dict[str, int] = {}
        self.last_drain_check = 0.0

    def begin(self, trial_id: str) -> None:
        """Add a trial that the driver starts, for the first time or again."""
        self.records[trial_id] = TrialRecord(time.monotonic())

    def join(self, trial_id: str, actor: Any, node: str, group: PlacementGroup | None) -> None:
        """Register a process that works on a trial, with its node."""
        record = self.records.setdefault(trial_id, TrialRecord(time.monotonic()))
        record.last_seen = time.monotonic()
        record.actors.append(actor)
        record.nodes.add(node)
        if group is not None and group not in record.groups:
            record.groups.append(group)

    def report(self, trial_id: str, metrics: Mapping[str, Any], searched: bool) -> Command | None:
        """Take in a trial's metrics, and return what it has to do."""
        record = self.records.setdefault(trial_id, TrialRecord(time.monotonic()))
        record.last_seen = time.monotonic()
        record.metrics.update(metrics)
        if self.leave_command is not None:
            return self.leave_command
        if trial_id in self.stop_commands:
            return self.stop_commands[trial_id]
        if leaving_nodes := record.nodes & self._draining_nodes():
            return Command("preempt", f"its node {min(leaving_nodes)[:8]} is about to be taken away")
        return self.decide(trial_id, metrics) if searched else None

    def decide(self, trial_id: str, metrics: Mapping[str, Any]) -> Command | None:
        """Ask the rule about a search trial, which is ranked among those of the same search."""
        if self.early_stopping is None:
            return None
        group = entry_of(trial_id) or ""
        if group not in self.rules:
            self.rules[group] = build_rule(self.early_stopping)
        rule = self.rules[group]
        return rule.decide(trial_id, metrics) if rule else None

    def leave(self, reason: str) -> None:
        """Have all trials write a checkpoint and leave."""
        self.leave_command = Command("pause", reason)

    def stop(self, trial_id: str, reason: str) -> None:
        """Have one trial end where it is."""
        self.stop_commands[trial_id] = Command("stop", reason)

    def statuses(self) -> dict[str, TrialStatus]:
        """Return every trial that has begun and not ended."""
        now = time.monotonic()
        return {
            name: TrialStatus(
                dict(record.metrics), now - record.last_seen, at_work=bool(record.actors or record.metrics)
            )
            for name, record in self.records.items()
        }

    def kill(self, trial_id: str) -> None:
        """End a trial's processes, which do not end themselves."""
        record = self.records.get(trial_id)
        while record and record.actors:
            ray.kill(record.actors.pop())
            record.last_seen = time.monotonic()

    def end(self, trial_id: str) -> None:
        """Free whatever a trial that has ended holds."""
        record = self.records.pop(trial_id, None)
        for group in record.groups if record else []:
            remove_placement_group(group)

    def _draining_nodes(self) -> set[str]:
        if time.monotonic() - self.last_drain_check > DRAINING_SECONDS:
            self.last_drain_check = time.monotonic()
            self.draining_nodes = cluster_state("get_draining_nodes") or {}
        return set(self.draining_nodes)


class Monitor:
    """The monitor as its callers see it. When it is gone, nothing is known and no trial gets a command."""

    def __init__(self, actor: Any):
        self.actor = actor

    @classmethod
    def start(cls, early_stopping: EarlyStopping | None, past: Sequence[TrialMetrics] = ()) -> "Monitor":
        """Start it on the driver's own node, so that losing another one does not end it.

        past: what trials of the search reported before the run was resumed.
        """
        driver_node = ray.get_runtime_context().get_node_id()
        actor: Any = ray.remote(MonitorActor)
        return cls(
            actor.options(
                num_cpus=0,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(driver_node, soft=False),
            ).remote(early_stopping, list(past))
        )

    def begin(self, trial_id: str) -> None:
        """Call `MonitorActor.begin`."""
        self.actor.begin.remote(trial_id)

    def join(self, trial_id: str, group: PlacementGroup | None) -> None:
        """Register a process of a trial; it calls this itself."""
        context = ray.get_runtime_context()
        self._ask("join", trial_id, context.current_actor, context.get_node_id(), group)

    def report(self, trial_id: str, metrics: Mapping[str, Any], *, searched: bool) -> Command | None:
        """Call `MonitorActor.report`; None where the monitor does not answer, for which no trial ends."""
        command: Command | None = self._ask("report", trial_id, dict(metrics), searched)
        return command

    def leave(self, reason: str) -> None:
        """Call `MonitorActor.leave`."""
        self.actor.leave.remote(reason)

    def stop_trial(self, trial_id: str, reason: str) -> None:
        """Call `MonitorActor.stop`."""
        self.actor.stop.remote(trial_id, reason)

    def statuses(self) -> dict[str, TrialStatus]:
        """Call `MonitorActor.statuses`; empty where the monitor does not answer."""
        return self._ask("statuses") or {}

    def kill(self, trial_id: str) -> None:
        """Call `MonitorActor.kill`."""
        self._ask("kill", trial_id)

    def end(self, trial_id: str) -> None:
        """Call `MonitorActor.end`."""
        self._ask("end", trial_id)

    def stop(self) -> None:
        """End the monitor itself."""
        ray.kill(self.actor)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self.actor, method).remote(*arguments), timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None
