"""The key `league` of an experiment's file: its entries, and all that can be wrong with them."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from slime_ray.config.complaints import FilePart
from slime_ray.config.experiment import MOST_SEEDS, MOST_TRIALS
from slime_ray.config.league import LEARNING_RATE, Entry, League
from slime_ray.config.points import Point, Rules, Search, path_of, value_at, with_values
from slime_ray.config.presets import flat
from slime_ray.config.search_file import SearchKeys, SearchReader, below
from slime_ray.config.settings import OBJECTIVE_SETTINGS, Settings, Strict, fingerprint
from slime_ray.config.space import Dimension, RequirementText, Scalar
from slime_ray.config.strict import Label
from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import near
from slime_ray.objectives import OBJECTIVES, find_objective, tuned_ranges

MAY_SET = (
    "objective", "training.weight_decay", "training.schedule", "training.warmup_fraction", "training.adam_beta2",
    "training.max_grad_norm", "training.arguments",
)  # fmt: skip
"""Paths, with all below them, in which entries may differ: none changes what a trial is trained on, or how long."""


def _may_differ(path: str) -> bool:
    return any(below(path, above) for above in MAY_SET)


class EntryKeys(Strict):
    """One entry: an objective and its space."""

    set: dict[str, Any] = {}
    """What it sets over `base`; without an objective, the one of its label."""
    search: dict[str, Any] = {}
    """Its space; without one, the objective's knobs in their published ranges."""
    require: list[RequirementText] = []
    """Rules for its points, as `require`."""
    start_from: list[str | dict[str, Scalar]] = []
    """Points tried first, after its defaults."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_shared_keys(cls, keys: Any) -> Any:
        shared = {"trials", "seeds", "budget", "learning_rate"}
        if shared_keys := sorted(shared & set(keys if isinstance(keys, dict) else ())):
            raise ValueError(f"{shared_keys[0]} is the same for all entries, and stands in `league`. Remove it here")
        return keys


class LeagueKeys(Strict):
    """Objectives compared at an equal tuning budget."""

    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    """Search trials of each entry."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 5
    """Seeds that each winner is confirmed with."""
    learning_rate: Any = {"log_uniform": [1e-5, 1e-3]}
    """How every entry draws `training.learning_rate`."""
    defaults: bool = False
    """Whether entries' defaults run too, at their winner's learning rate."""
    entries: Annotated[dict[Label, EntryKeys], Field(min_length=2)]
    """The methods, by label."""


class LeagueReader:
    """Turns the key into a League, and every mistake in it into a sentence with its line.

    sampler: of the file, all of which is `part`.
    """

    def __init__(self, keys: LeagueKeys, base: Mapping[str, Any], sampler: Any, part: FilePart):
        self.keys, self.base, self.sampler, self.part = keys, base, sampler, part
        self.check, self.error = part.check, part.error

    def read(self, goals: Mapping[str, str], constraints: Sequence[str]) -> League:
        """The league. Raises InputError."""
        rate: Dimension = self.check(
            Dimension, self.keys.learning_rate, ("league", "learning_rate"), where="learning_rate: "
        )
        entries = [self._entry(label, keys, rate) for label, keys in self.keys.entries.items()]
        labels: dict[str, str] = {}
        for entry in entries:
            twin = labels.setdefault(fingerprint(entry.model_dump(mode="json", exclude={"label"})), entry.label)
            if twin != entry.label:
                raise self.error(
                    ("league", "entries", entry.label), f"{entry.label} is the same as {twin}. Remove one of them"
                )
        # Where there is none, that is said of the file.
        first_goal = next(iter(goals), "")
        keep = f" that keep {' and '.join(constraints)}" if constraints else ""
        rule = (
            f"of an entry's completed trials{keep} the one that the fewest others beat in {' and '.join(goals)}, "
            f"of equals one of a stability within tolerance, then the best by {first_goal}; on selection prompts"
        )
        return League(
            entries=entries, trials=self.keys.trials, seeds=self.keys.seeds, defaults=self.keys.defaults, rule=rule
        )

    def _entry(self, label: str, keys: EntryKeys, rate: Dimension) -> Entry:
        at: KeyPath = ("league", "entries", label)
        for path in flat(keys.set):
            if path == LEARNING_RATE:
                raise self.error((*at, "set"), f"{path} is searched for every entry: leave it out of `set`")
            if not _may_differ(path):
                raise self.error(
                    (*at, "set"),
                    f"{path} would be {label}'s alone, and all have the same data, model and updates. Set it in base",
                )
        entry_values = keys.set if "objective.name" in flat(keys.set) else {"objective.name": label, **keys.set}
        if entry_values is not keys.set and label not in OBJECTIVES:
            raise self.error(
                at,
                f"{label} is no objective; name one, as `set: {{objective: {{name: dpo}}}}`{near(label, OBJECTIVES)}",
            )
        base = with_values(self.base, entry_values)
        settings = self.check(Settings, base, (*at, "set"), where=f"entry {label}: ")
        for path in keys.search:
            if path == "objective.name":
                raise self.error((*at, "search", path), "an entry is one objective. Make an entry of each")
            # What is no setting at all is said by the search itself.
            if not _may_differ(path) and path.split(".")[0] in Settings.model_fields:
                parts = "league.learning_rate is" if path == LEARNING_RATE else "data, model and updates are"
                raise self.error((*at, "search", path), f"{path} cannot be an entry's own: {parts} the same for all")
        space = keys.search or self._published_space(label, settings, at)
        space = {**space, LEARNING_RATE: rate.model_dump(exclude_defaults=True)}
        shared_places = {LEARNING_RATE: ("league", "learning_rate"), "budget": ("league", "trials")}
        search_keys = SearchKeys(search=space, sampler=self.sampler, require=keys.require, start_from=keys.start_from)
        search = SearchReader(search_keys, base, FilePart(self.part.source, at, shared_places)).read(self.keys.trials)
        assert search is not None
        if search.earlier_runs:
            raise self.error((*at, "start_from"), "an entry starts from points alone, since none may know more")
        defaults = _defaults(search, settings, flat(keys.set))
        first_point = self._first_point(search, defaults, settings)
        if first_point and Rules(search, base).broken(first_point):
            first_point = None
        points = [point for point in search.known_points if point != first_point]
        points = [first_point, *points] if first_point else points
        return Entry(
            label=label,
            objective=settings.objective.name,
            set=dict(entry_values),
            search=search.model_copy(update={"known_points": points}).model_dump(mode="json"),
            defaults=defaults,
        )

    def _published_space(self, label: str, settings: Settings, at: KeyPath) -> dict[str, Any]:
        kind: Any = find_objective(settings.objective.name)
        ranges = tuned_ranges(kind)
        numbers = [field.name for field in dataclasses.fields(kind) if isinstance(field.default, float)]
        if numbers and not ranges:
            raise self.error(
                at, f"{label} has no published ranges. Give it a `search` of its knobs: {', '.join(numbers)}"
            )
        return {f"objective.{knob}": {"log_uniform": list(ends)} for knob, ends in ranges.items()}

    def _first_point(self, search: Search, defaults: Mapping[str, Scalar], settings: Settings) -> Point | None:
        """The defaults, at base's learning rate or amid the range; None where they lie outside the space."""
        rate = search.dimensions[LEARNING_RATE]
        base_rate = settings.training.learning_rate
        middle = rate.choice[len(rate.choice) // 2] if rate.choice else math.sqrt(math.prod(rate.bounds))
        values = {**defaults, LEARNING_RATE: base_rate if rate.contains(base_rate) else rate.snap(middle)}
        return search.locate(values)


def _defaults(search: Search, settings: Settings, set_paths: Collection[str]) -> dict[str, Scalar]:
    """Return values of the searched knobs, from the entry's `set` for those in `set_paths`."""
    fields = OBJECTIVE_SETTINGS[settings.objective.name]()
    defaults: dict[str, Scalar] = {}
    for name in search.dimensions:
        part, _, knob = path_of(name).partition(".")
        if part == "objective" and hasattr(fields, knob) and path_of(name) not in set_paths:
            defaults[path_of(name)] = getattr(fields, knob)
        elif path_of(name) != LEARNING_RATE:
            defaults[path_of(name)] = value_at(settings, path_of(name))
    return defaults
