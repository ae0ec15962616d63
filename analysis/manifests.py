"""What differs between the manifests of runs, and whether their win rates may stand beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slime_ray.runs.results import Run

from .rows import baseline_of, judge_of, version_of

Kind = Literal["settings", "data", "measurement", "environment"]
KINDS: dict[str, Kind] = {
    "experiment": "settings",
    "code": "settings",
    "seeds": "settings",
    "sweep_seed": "settings",
    "goals": "settings",
    "hashes": "data",
    "inputs": "data",
    "data": "data",
    "judge": "measurement",
    "baseline": "measurement",
    "decoding": "measurement",
    "stability_version": "measurement",
    "slime_ray": "environment",
    "versions": "environment",
    "host": "environment",
}
"""Entries of a manifest that say what was run, on what, measured how and where; the others say how it went."""
_SAID_ELSEWHERE = {"experiment.name", "experiment.seeds", "experiment.goals"}
ABSENT = "absent"


@dataclass(frozen=True)
class ManifestDifference:
    """One entry that two manifests do not share. one, other: as text, `absent` where there is none."""

    kind: Kind
    path: str
    one: str
    other: str


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[ManifestDifference]:
    """Every entry in which two manifests differ, in the order of KINDS and then of their paths."""
    left, right = dict(_entries(one)), dict(_entries(other))
    paths = sorted(left.keys() | right.keys(), key=lambda path: (list(KINDS).index(path.partition(".")[0]), path))
    found = [
        ManifestDifference(KINDS[path.partition(".")[0]], path, left.get(path, ABSENT), right.get(path, ABSENT))
        for path in paths
        if path not in _SAID_ELSEWHERE
    ]
    return [difference for difference in found if difference.one != difference.other]


def _entries(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every leaf under KINDS with its dotted path. Nothing and null are the same: a later version adds entries."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(item, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) and "label" in item for item in value):
            for item in value:
                yield from walk(
                    {key: inner for key, inner in item.items() if key != "label"}, f"{path}.{item['label']}"
                )
        elif value is not None:
            yield path, str(value)

    yield from walk({key: manifest[key] for key in KINDS if key in manifest}, "")


def why_not_comparable(runs: Sequence[Run]) -> list[str]:
    """Why win rates or stabilities of these runs mean different things: a sentence for each reason."""
    asked: dict[str, list[str]] = {
        "judge": [judge_of(run) for run in runs],
        "baseline": [f"{baseline_of(run)} {_hash(run, 'sft_checkpoint')}".strip() for run in runs],
        "report prompts": [_hash(run, "prompts_report") for run in runs],
        "decoding": [str(run.manifest.get("decoding")) for run in runs],
        "version of stability": [version_of(run) for run in runs],
    }
    said = []
    for what, values in asked.items():
        if len(set(values)) > 1:
            has = (f"{run.path.name} has {value or 'none recorded'}" for run, value in zip(runs, values, strict=True))
            said.append(f"{what}: {', '.join(has)}")
    return said


def _hash(run: Run, name: str) -> str:
    return str((run.manifest.get("hashes") or {}).get(name) or "")
