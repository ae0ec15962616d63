"""What was asked of a run, and its manifest, in words."""

from collections.abc import Mapping
from typing import Any

from slime_ray.runs.redaction import redact
from slime_ray.runs.results import Run

from .printing import one_line
from .rows import decoding_words, judge_of

Facts = list[tuple[str, str]]
"""What is told, and what there is to tell."""


def asked(run: Run) -> Facts:
    """What the run was to do: arms, seeds, search, goals, judge, decoding."""
    manifest = run.manifest
    experiment = manifest.get("experiment") or {}
    arms = [str(arm.get("label", "")) for arm in experiment.get("arms") or [] if isinstance(arm, dict)]
    knobs = [path.rpartition(".")[2] for path in (experiment.get("search") or {}).get("dimensions") or {}]
    budget = experiment.get("budget") or {}
    confirm = budget.get("confirm") or {}
    winners = f"; the best {confirm['best']} confirmed with {confirm.get('seeds')} seeds" if confirm.get("best") else ""
    said = [
        ("arms", ", ".join(arms) or "none"),
        ("seeds", ", ".join(str(seed) for seed in manifest.get("seeds") or []) or "none recorded"),
        ("search", f"{budget.get('trials')} trials over {', '.join(knobs)}{winners}" if knobs else "none"),
        ("goals", ", ".join(f"{way} {goal}" for goal, way in (manifest.get("goals") or {}).items()) or "none recorded"),
        ("judge", judge_of(run)),
        ("decoding", decoding_words(manifest)),
    ]
    return [(key, one_line(value)) for key, value in said]


def facts(run: Run) -> Facts:
    """What the manifest says of when, with what and on what the run was made."""
    manifest, trials = run.manifest, run.trials
    data = manifest.get("data") or {}
    counts = {key: value for key, value in data.items() if isinstance(value, (int, float))}
    skipped = data.get("skipped") or data.get("rows_skipped") or []
    ends = {str(status): int(count) for status, count in trials["status"].value_counts().sort_index().items()}
    truncated = {
        name: ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in numbers.items() if isinstance(value, int))
        for name, numbers in (data.get("truncated") or {}).items()
        if isinstance(numbers, dict)
    }
    said: list[tuple[str, Any]] = [
        ("started", manifest.get("created")),
        ("finished", manifest.get("finished") or "not finished"),
        ("command", " ".join(redact(list(map(str, manifest.get("command") or []))))),
        ("trials", f"{len(trials)}: {', '.join(f'{count} {status}' for status, count in ends.items())}"),
        ("cost", f"{trials['total_seconds'].sum():.0f} trial seconds, {int(trials['tokens'].sum()):,} training tokens"),
        ("slime_ray", manifest.get("slime_ray")),
        ("versions", _words(manifest.get("versions"))),
        ("machine", _words(manifest.get("host"))),
        ("data", _words(counts)),
        ("rows skipped", "; ".join(map(_skipped, skipped)) or "none"),
        *((f"cut, {name}", words) for name, words in truncated.items()),
        ("hashes", _words(manifest.get("hashes"))),
        ("inputs", _words(manifest.get("inputs"))),
        ("fingerprint", manifest.get("fingerprint")),
        ("stability", manifest.get("stability_version")),
    ]  # fmt: skip
    return [(key, one_line(str(value))) for key, value in said if value not in (None, "")]


def _skipped(item: Any) -> str:
    return f"{item.get('count')} {item.get('reason')}" if isinstance(item, dict) else str(item)


def _words(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (mapping or {}).items())
