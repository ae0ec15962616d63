"""One YAML says the whole experiment: what is fixed, what is searched, what is compared, and what may be spent."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from slime_ray.design import Design
from slime_ray.judge_settings import lasting
from slime_ray.presets import merge
from slime_ray.settings import Positive, Settings, Strict, fingerprint
from slime_ray.space import Dimension, Requirement, Scalar
from slime_ray.tracker_settings import DEFAULT, Tracker

GOALS = ("win_rate", "stability", "preference_accuracy", "mean_margin")
Phase = Literal["arm", "search", "confirm"]
PromptSet = Literal["selection", "report"]


class Confirm(Strict):
    """The best trials of the search are run again, with the table's seeds and prompts they were not chosen on."""

    best: Annotated[int, Field(ge=0)] = 1
    seeds: Positive = 2


class Budget(Strict):
    """What the search may spend, and what is kept of it.

    hours: wall-clock time, after which running trials write a checkpoint and the sweep ends; it goes on with --resume.
    checkpoints: trained models that are kept of the search, best first over the whole sweep; None keeps all. Those of
    arms and confirmations are always kept.
    """

    trials: Annotated[int, Field(ge=0)] = 0
    confirm: Confirm | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    checkpoints: Annotated[int, Field(ge=0)] | None = None


class EarlyStopping(Strict):
    """Asynchronous successive halving over the search's trials, by a metric of the held-out pairs (higher is better).

    first: share of a trial's updates before which none is stopped; the next rungs are `reduction` times as far each,
    and about one in `reduction` of the trials at a rung goes on.
    """

    metric: Literal["preference_accuracy", "mean_margin", "chosen_drift", "chosen_logp"] = "preference_accuracy"
    reduction: Annotated[int, Field(ge=2)] = 3
    first: Annotated[float, Field(gt=0, lt=1)] = 0.2


class Resources(Strict):
    """What one trial holds. None of it changes what a trial computes.

    workers: processes that train one trial together; the pairs of an update are divided among them. strategy: `ddp`
    gives each a whole copy of the model, `fsdp2` divides parameters, gradients and optimizer states among them.
    placement: how workers are spread over nodes, in Ray's words. concurrent_trials: `auto` runs as many side by side as
    the cluster has room for.
    """

    workers: Positive = 1
    cpu_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpu_per_worker: Annotated[float, Field(ge=0)] = 0.0
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    concurrent_trials: Literal["auto"] | Positive = "auto"


class Faults(Strict):
    """What is done when something breaks. None of it changes what a trial computes.

    retries: how often a trial starts again, from its last checkpoint, after it lost a process or a node, hung or ran
    out of memory (that only once). preemptions: the same for nodes that were taken away with notice. lost_hours:
    worker-hours of a trial that may be computed twice before it is given up. checkpoint_minutes: time between
    checkpoints. hang_minutes: silence after which a trial counts as hung. placement_minutes: how long a trial may wait
    for its resources. storage_minutes: how long a trial's start, and its result, wait for a storage.
    """

    retries: Annotated[int, Field(ge=0)] = 3
    preemptions: Annotated[int, Field(ge=0)] = 8
    lost_hours: Annotated[float, Field(gt=0)] | None = None
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    hang_minutes: Annotated[float, Field(gt=0)] = 30.0
    placement_minutes: Annotated[float, Field(gt=0)] = 60.0
    storage_minutes: Annotated[float, Field(ge=0)] = 15.0


class Search(Strict):
    """The search space: paths into the settings, each with the way it is drawn, and what must hold between them."""

    dimensions: dict[str, Dimension]
    require: list[str] = []
    known_points: list[dict[str, Scalar]] = []

    @property
    def requirements(self) -> list[Requirement]:
        """The parsed requirements."""
        return [Requirement.parse(text) for text in self.require]


class Arm(Strict):
    """One fixed cell of the table: what it sets over `base`."""

    label: str
    set: dict[str, Any]


class Experiment(Strict):
    """A validated experiment. Nothing in it needs the file it came from any more."""

    name: str
    base: dict[str, Any]
    arms: list[Arm]
    search: Search | None
    seeds: list[Annotated[int, Field(ge=0)]]
    goals: dict[str, Literal["maximize", "minimize"]]
    budget: Budget
    resources: Resources
    faults: Faults = Faults()
    early_stopping: EarlyStopping | None = None
    design: Design | None = None
    trackers: list[Tracker] = list(DEFAULT)

    @property
    def settings(self) -> Settings:
        """The settings of `base` itself."""
        return Settings.model_validate(self.base)

    def settings_with(self, values: Mapping[str, Any]) -> Settings:
        """The settings with `values`, path by path, laid over `base`."""
        return Settings.model_validate(with_values(self.base, values))

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes what a trial of this experiment would compute or how it is searched."""
        # The design says how the arms are compared; what they are stands in `arms`.
        said = self.model_dump(mode="json", exclude={"name", "resources", "faults", "budget", "design", "trackers"})
        return fingerprint({**said, "base": lasting(said["base"])})


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
        return fingerprint([lasting(self.settings.model_dump(mode="json")), self.seed, self.prompt_set])


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


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with each dotted path of `values` set. Mappings merge as presets do; an objective's name replaces it."""
    result = dict(base)
    for path, value in values.items():
        nested: Any = value
        for key in reversed(path.split(".")):
            nested = {key: nested}
        result = merge(result, nested)
    return result


def point_values(search: Search, base: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The values of every path that the requirements speak of: from the point, else from the settings."""
    settings = Settings.model_validate(with_values(base, point))
    paths = {path for requirement in search.requirements for path in requirement.paths}
    return {path: point[path] if path in point else value_at(settings, path) for path in paths}


def has_feasible_point(search: Search, base: Mapping[str, Any], *, tries: int = 4096) -> bool:
    """Whether a quasi-random sweep of the space finds a point that meets all requirements."""
    searched = list(search.dimensions)
    fixed = point_values(search, base, {path: search.dimensions[path].ends[0] for path in searched})
    # A Kronecker sequence on powers of the generalised golden ratio covers any number of dimensions evenly.
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (len(searched) + 1))
    for index in range(1, tries + 1):
        point = {path: search.dimensions[path].at(index * root ** -(k + 1) % 1.0) for k, path in enumerate(searched)}
        if all(requirement.excess({**fixed, **point}) <= 0 for requirement in search.requirements):
            return True
    return False


def value_at(settings: Settings, path: str) -> Any:
    """The value at a dotted path. Raises KeyError where the path leads nowhere."""
    value: Any = settings
    for key in path.split("."):
        if not isinstance(value, BaseModel) or key not in type(value).model_fields:
            raise KeyError(path)
        value = getattr(value, key)
    return value
