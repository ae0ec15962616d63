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
from slime_ray.on_ray.stopping import Rule, Told, build_rule
from slime_ray.training.orders import Command

DRAINING_SECONDS = 2.0
ANSWER_SECONDS = 30.0


@dataclass
class TrialRecord:
    """What is known of a running trial. heard: by the monitor's clock, in seconds."""

    heard: float
    told: dict[str, Any] = field(default_factory=dict)
    actors: list[Any] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    groups: list[PlacementGroup] = field(default_factory=list)


@dataclass(frozen=True)
class TrialStatus:
    """What the driver is told of a running trial.

    silent: seconds since it last said something. at_work: whether it has its place, and its processes have begun.
    """

    told: dict[str, Any]
    silent: float
    at_work: bool


class MonitorActor:
    """Runs as a Ray actor, see the module."""

    def __init__(self, early_stopping: dict[str, Any] | None, past: Sequence[Told]):
        self.voices: dict[str, TrialRecord] = {}
        self.leaving: Command | None = None
        self.stopped: dict[str, Command] = {}
        self.early_stopping = EarlyStopping.model_validate(early_stopping) if early_stopping else None
        self.rules: dict[str, Rule | None] = {}
        for trial_id, told in past:
            # What was decided then does not change; it counts for those that come.
            self.decide(trial_id, told)
        self.draining: dict[str, int] = {}
        self.looked = 0.0

    def begin(self, trial_id: str) -> None:
        """The driver starts a trial, for the first time or again."""
        self.voices[trial_id] = TrialRecord(time.monotonic())

    def join(self, trial_id: str, actor: Any, node: str, group: PlacementGroup | None) -> None:
        """A process that works on a trial says where it is."""
        voice = self.voices.setdefault(trial_id, TrialRecord(time.monotonic()))
        voice.heard = time.monotonic()
        voice.actors.append(actor)
        voice.nodes.add(node)
        if group is not None and group not in voice.groups:
            voice.groups.append(group)

    def report(self, trial_id: str, told: Mapping[str, Any], searched: bool) -> Command | None:
        """A trial says how it gets on; returns what it is to do."""
        voice = self.voices.setdefault(trial_id, TrialRecord(time.monotonic()))
        voice.heard = time.monotonic()
        voice.told.update(told)
        if self.leaving is not None:
            return self.leaving
        if trial_id in self.stopped:
            return self.stopped[trial_id]
        if taken := voice.nodes & self._draining_nodes():
            return Command("preempt", f"its node {min(taken)[:8]} is about to be taken away")
        return self.decide(trial_id, told) if searched else None

    def decide(self, trial_id: str, told: Mapping[str, Any]) -> Command | None:
        """What the rule says of a search trial, which it ranks among those of the same search."""
        if self.early_stopping is None:
            return None
        group = entry_of(trial_id) or ""
        if group not in self.rules:
            self.rules[group] = build_rule(self.early_stopping)
        rule = self.rules[group]
        return rule.decide(trial_id, told) if rule else None

    def leave(self, reason: str) -> None:
        """Have all trials write a checkpoint and leave."""
        self.leaving = Command("pause", reason)

    def stop(self, trial_id: str, reason: str) -> None:
        """Have one trial end where it is."""
        self.stopped[trial_id] = Command("stop", reason)

    def heard(self) -> dict[str, TrialStatus]:
        """Every trial that has begun and not ended."""
        now = time.monotonic()
        return {
            name: TrialStatus(dict(voice.told), now - voice.heard, at_work=bool(voice.actors or voice.told))
            for name, voice in self.voices.items()
        }

    def kill(self, trial_id: str) -> None:
        """End a trial's processes, which do not end themselves."""
        voice = self.voices.get(trial_id)
        while voice and voice.actors:
            ray.kill(voice.actors.pop())
            voice.heard = time.monotonic()

    def end(self, trial_id: str) -> None:
        """Free whatever a trial that has ended holds."""
        voice = self.voices.pop(trial_id, None)
        for group in voice.groups if voice else []:
            remove_placement_group(group)

    def _draining_nodes(self) -> set[str]:
        if time.monotonic() - self.looked > DRAINING_SECONDS:
            self.looked = time.monotonic()
            self.draining = cluster_state("get_draining_nodes") or {}
        return set(self.draining)


class Monitor:
    """The monitor as its callers see it. It may be gone; then nothing is known, and no trial is told anything."""

    def __init__(self, actor: Any):
        self.actor = actor

    @classmethod
    def start(cls, early_stopping: EarlyStopping | None, past: Sequence[Told] = ()) -> "Monitor":
        """Start it on the driver's own node, so that losing another one does not end it.

        past: what trials of the search reported before the run was gone on with.
        """
        here = ray.get_runtime_context().get_node_id()
        actor: Any = ray.remote(MonitorActor)
        return cls(
            actor.options(
                num_cpus=0,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            ).remote(early_stopping.model_dump() if early_stopping else None, list(past))
        )

    def begin(self, trial_id: str) -> None:
        """See MonitorActor.begin."""
        self.actor.begin.remote(trial_id)

    def join(self, trial_id: str, group: PlacementGroup | None) -> None:
        """Called by a process of a trial: register it."""
        context = ray.get_runtime_context()
        self._ask("join", trial_id, context.current_actor, context.get_node_id(), group)

    def report(self, trial_id: str, told: Mapping[str, Any], *, searched: bool) -> Command | None:
        """See MonitorActor.report. None where the monitor does not answer: no trial ends for that."""
        order: Command | None = self._ask("report", trial_id, dict(told), searched)
        return order

    def leave(self, reason: str) -> None:
        """See MonitorActor.leave."""
        self.actor.leave.remote(reason)

    def stop_trial(self, trial_id: str, reason: str) -> None:
        """See MonitorActor.stop."""
        self.actor.stop.remote(trial_id, reason)

    def heard(self) -> dict[str, TrialStatus]:
        """See MonitorActor.heard; empty where the monitor does not answer."""
        return self._ask("heard") or {}

    def kill(self, trial_id: str) -> None:
        """See MonitorActor.kill."""
        self._ask("kill", trial_id)

    def end(self, trial_id: str) -> None:
        """See MonitorActor.end."""
        self._ask("end", trial_id)

    def stop(self) -> None:
        """End the monitor itself."""
        ray.kill(self.actor)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self.actor, method).remote(*arguments), timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None
