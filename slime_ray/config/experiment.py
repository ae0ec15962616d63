"""One YAML says the whole experiment: what is fixed, what is searched, what is compared, and what may be spent."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slime_ray.config.design import Design
from slime_ray.config.judge import outcome_settings
from slime_ray.config.league import League
from slime_ray.config.metrics import Constraint, ConstraintText, Estimate, Way
from slime_ray.config.points import Search, SearchPart, with_values
from slime_ray.config.settings import Positive, Settings, Strict, fingerprint
from slime_ray.config.strict import SFT_SEED, Once, Seed
from slime_ray.config.trackers import DEFAULT, Tracker

MOST_TRIALS = 100_000
"""Of a search, and of arms with all their seeds."""
MOST_SEEDS = 10_000
Phase = Literal["arm", "search", "confirm"]
PromptSet = Literal["selection", "report"]


class Confirm(Strict):
    """The best search trials, run again on other prompts."""

    best: Annotated[int, Field(ge=0, le=MOST_SEEDS)] = 1
    """How many winners."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 2
    """Seeds of each: the table's first, then further ones."""


class Budget(Strict):
    """What a sweep may spend; what is spent first ends it, and --resume continues."""

    trials: Annotated[int, Field(ge=0, le=MOST_TRIALS)] = 0
    """Search trials."""
    confirm: Confirm | None = None
    """Winners to run again; null is none."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock hours since this start."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """GPU hours of the whole run."""
    judge_calls: Positive | None = None
    """Requests to a paid judge."""
    cost: Annotated[float, Field(gt=0)] | None = None
    """Cost of GPUs and judge, in the currency of the prices."""
    price_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of a GPU hour."""
    checkpoints: Annotated[int, Field(ge=0)] | None = None
    """Models of search trials to keep, best first; null keeps all."""


class EarlyStopping(Strict):
    """Which search trials stop during training."""

    rule: Literal["pareto", "asha", "median", "none"] = "pareto"
    """Successive halving by `goals` (`pareto`) or `metric` (`asha`), or stopping below the `median` of the others."""
    goals: dict[Estimate, Way] | None = None
    """With `pareto`: metrics to rank by; null is the search's goals that training measures."""
    tie_break: Literal["winner", "spread"] = "winner"
    """With `pareto`: who of a too large front continues, by the rank of winners or by `spread`."""
    metric: Estimate | None = None
    """With `asha` and `median`: the metric; null is preference_accuracy."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """One in so many trials continues at a rung; each rung is so many times as far."""
    first: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the updates before which no trial is stopped, and the first rung."""

    @model_validator(mode="after")
    def _check_rule(self) -> "EarlyStopping":
        # What a manifest or another process reads back has every field set.
        for name, is_set, rules in (
            ("goals", self.goals is not None, ("pareto",)),
            ("tie_break", self.tie_break != "winner", ("pareto",)),
            ("metric", self.metric is not None, ("asha", "median")),
        ):
            if is_set and self.rule not in rules:
                way_out = f"set rule {' or '.join(rules)}, or leave it out"
                raise ValueError(f"{name} has no effect with rule {self.rule}: {way_out}")
        if self.goals is not None and not self.goals:
            raise ValueError("goals is empty: name what trials are ranked by, or leave it out for those of the search")
        return self

    @property
    def ranked_by(self) -> tuple[str, ...]:
        """The names of what it looks at."""
        by_rule = {"pareto": tuple(self.goals or ()), "none": ()}
        return by_rule.get(self.rule, (self.metric or "preference_accuracy",))


class Resources(Strict):
    """What one trial holds; none of it changes what it computes."""

    workers: Positive = 1
    """Processes that train one trial together."""
    cpu_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs, and threads, of a process."""
    gpu_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a process, at most 1; a fraction shares a GPU."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp` copies the model to each worker, `fsdp2` divides it."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement of workers on nodes."""
    concurrent_trials: Literal["auto"] | Positive = "auto"
    """Trials at a time; `auto` fills the cluster."""

    @field_validator("gpu_per_worker")
    @classmethod
    def _one_gpu(cls, share: float) -> float:
        if share > 1:
            raise ValueError(
                f"each worker trains on one GPU, not {share:g}. Give 1, and resources.workers: {math.ceil(share)} "
                "for a trial on so many"
            )
        return share


class Faults(Strict):
    """What happens when something breaks."""

    retries: Annotated[int, Field(ge=0)] = 3
    """Restarts of a trial after a lost process, node or GPU or a hang; once out of memory."""
    preemptions: Annotated[int, Field(ge=0)] = 8
    """Restarts after nodes were taken away with notice."""
    lost_hours: Annotated[float, Field(gt=0)] | None = None
    """Worker-hours of a trial that may be computed twice; null is no limit."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Minutes between checkpoints."""
    hang_minutes: Annotated[float, Field(gt=0)] = 30.0
    """Minutes of silence after which a trial counts as hung."""
    placement_minutes: Annotated[float, Field(gt=0)] = 60.0
    """Minutes that a trial may wait for its resources."""
    storage_minutes: Annotated[float, Field(ge=0)] = 15.0
    """Minutes that a trial waits for its storage."""


class SweepSettings(Strict):
    """What a file says of its sweep as a whole, and an experiment keeps as it is."""

    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS), Once] = [0]
    """Seeds that every arm runs with."""
    goals: dict[str, Way] = {"win_rate": "maximize", "stability": "maximize"}
    """Metrics that the search optimises."""
    constraints: list[ConstraintText] = []
    """Limits for winners: `column <= number` or `column >= number`."""
    budget: Budget = Budget()
    """What the sweep may spend."""
    resources: Resources = Resources()
    """What one trial holds."""
    faults: Faults = Faults()
    """Restarts, waits and checkpoints."""
    early_stopping: EarlyStopping | None = None
    """Which search trials stop early; null stops none."""
    trackers: Annotated[list[Tracker], Once] = list(DEFAULT)
    """Services that show training curves; an empty list is none."""


class Arm(Strict):
    """One fixed cell of the table: what it sets over `base`."""

    label: str
    set: dict[str, Any]


class Experiment(SweepSettings):
    """A validated experiment. Nothing in it needs the file it came from any more."""

    name: str
    base: dict[str, Any]
    arms: list[Arm]
    search: Search | None
    design: Design | None = None
    league: League | None = None

    @property
    def settings(self) -> Settings:
        """The settings of `base` itself."""
        return Settings.model_validate(self.base)

    @property
    def bases(self) -> list[dict[str, Any]]:
        """`base` at every SFT checkpoint that trials start from; its own is the first."""
        comparison = self.league or self.design
        seeds = comparison.sft_seeds if comparison else []
        return [with_values(self.base, {SFT_SEED: seed}) for seed in seeds] or [self.base]

    def settings_with(self, values: Mapping[str, Any]) -> Settings:
        """The settings with `values`, path by path, laid over `base`.

        All start from one SFT checkpoint, the one that they are compared with, also where `values` have them train
        other adapters on it.
        """
        plain_settings = with_values(self.base, values)
        lora, sft = (self.base.get("model") or {}).get("lora"), plain_settings.get("sft")
        if sft and "lora" not in sft and plain_settings["model"].get("lora") != lora:
            plain_settings = {**plain_settings, "sft": {**sft, "lora": lora}}
        return Settings.model_validate(plain_settings)

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes what a trial of this experiment would compute or how it is searched."""
        # The design says how the arms are compared; what they are stands in `arms`.
        exclusions = {"name", "resources", "faults", "budget", "design", "league", "trackers"}
        content = self.model_dump(mode="json", exclude=exclusions if self.constraints else exclusions | {"constraints"})
        league = {"league": self.league.content} if self.league else {}
        return fingerprint({**content, **league, "base": outcome_settings(content["base"])})

    @property
    def unseen_goals(self) -> list[str]:
        """Goals that early stopping does not rank by, since they are known at a trial's end alone."""
        early = self.early_stopping
        if early is None or early.rule != "pareto":
            return []
        # preference_accuracy takes the place of a win rate that nobody judges on the way.
        return [goal for goal in self.goals if goal != "win_rate" and goal not in early.ranked_by]

    @property
    def limits(self) -> list[Constraint]:
        """The parsed constraints."""
        return [Constraint.parse(text) for text in self.constraints]

    @property
    def searches(self) -> list[SearchPart]:
        """Its searches: none, one, or one for each entry of a league."""
        if self.league is not None:
            trials, seeds = self.league.trials, self.league.seeds
            return [
                SearchPart(
                    entry.label, entry.set, Search.model_validate(entry.search), trials, 1, seeds,
                    entry.defaults if self.league.defaults else None,
                )
                for entry in self.league.entries
            ]  # fmt: skip
        if self.search is None:
            return []
        confirm = self.budget.confirm or Confirm(best=0)
        return [SearchPart("", {}, self.search, self.budget.trials, confirm.best, confirm.seeds)]


class Trial(Strict):
    """One training run: which settings, which seed, on which prompts it is judged, and where it stands in the table."""

    trial_id: str
    phase: Phase
    label: str
    seed: int
    prompt_set: PromptSet
    values: dict[str, Any]
    settings: Settings

    @property
    def config_hash(self) -> str:
        """Equal for two trials that would compute the same thing."""
        return fingerprint([outcome_settings(self.settings.model_dump(mode="json")), self.seed, self.prompt_set])


def arm_trials(experiment: Experiment) -> list[Trial]:
    """Every arm with every seed, seed by seed, so that an interrupted run has whole tables."""
    return [
        Trial(
            trial_id=f"arm-{arm.label}-s{seed}",
            phase="arm",
            label=arm.label,
            seed=seed,
            prompt_set="report",
            values=arm.set,
            settings=experiment.settings_with(arm.set),
        )
        for seed in experiment.seeds
        for arm in experiment.arms
    ]
