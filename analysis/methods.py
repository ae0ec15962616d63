"""How a run was made and measured: in words for the page, and in LaTeX for a paper."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import pandas as pd

from slime_ray.config.league import League
from slime_ray.runs import notes as run_notes
from slime_ray.runs.redaction import redact
from slime_ray.runs.results import Run
from slime_ray.runs.stability_v1 import TOLERANCES

from . import statistics
from .printing import Column, Table, latex_text, one_line
from .rows import PARTS, baseline_of, decoding_words, flat, is_judged, judge_of, name_of, of_label, version_of

Facts = list[tuple[str, str]]
"""Names and values, for a list on the page."""
TABLES = (
    *("league_checkpoints", "league", "league_pairs", "league_tuning", "win_rate_stability", "ablation_checkpoints"),
    *("ablation", "factorial", "judging", "corrected", "panel", "agreement", "search_winners"),
)
"""Names of the report's tables that a paper has, of those that the run has."""
OBJECTIVE = "objective."
MODEL = ("source", "revision", "dtype", "lora.rank", "lora.alpha", "lora.targets")
STAGES = {"SFT": "sft", "Preference training": "training"}
KNOBS = (
    *("learning_rate", "schedule", "warmup_fraction", "updates", "epochs", "examples_per_update", "pairs_per_update"),
    *("weight_decay", "max_grad_norm", "arguments.optim", "keep", "seed"),
)
"""Of a stage, in its sentence."""
RUN_FACTS = ("started", "finished", "trials", "cost", "data", "rows skipped", "fingerprint", "hashes")
"""Of the report's facts; not the command and the files, which are of one's own machine."""
UNKNOWN = "not recorded"
MOST, LONGEST = 4, 12
"""Values of a setting that are listed, and characters of a number that was written and not drawn."""
Flat = dict[str, Any]
"""Settings by path."""


def methods(run: Run) -> list[str]:
    """Return a note per estimator of the main table, after what of the data was not trained on as given."""
    limits = ", ".join(f"{PARTS[name]} {value:.2f}" for name, value in asdict(TOLERANCES).items())
    return [
        *map(one_line, run_notes.data_notes(run.manifest.get("data") or {})),
        "Win rate: mean over prompts and seeds of an answer's outcome against the baseline's answer, itself the "
        "mean over both presentation orders of 1 win, 0.5 tie, 0 loss. Prompts without any valid verdict are left out; "
        "missing verdicts are counted in the note, with the win rate if all were losses and if all were wins.",
        f"Interval of a win rate: 95 %, Wilson's score on the effective number of prompts, {statistics.PRIOR} of a "
        "prompt added to wins and to losses in how they scatter. With "
        f"{statistics.FEWEST_SEEDS} or more seeds it is over seeds and prompts, by the two-way analysis below; prompts "
        "that a seed has no verdict for add nothing to its width. With fewer it is of these checkpoints, over prompts, "
        "both orders and all seeds of a prompt kept together.",
        "Separable: the 95 % interval of the paired difference on the same seeds and prompts leaves 0 out: Student's "
        f"t, over prompts, and with {statistics.FEWEST_SEEDS} or more common seeds over seeds and prompts (two-way "
        "analysis of variance, random effects, Satterthwaite's degrees of freedom). Every row is compared with the "
        "best one; nothing is corrected for the number of comparisons.",
        f"Stability ({version_of(run)}): S = g / (1 + sum of (x/h)²) with the tolerances h: {limits}; g is 0 for a "
        "trial that failed or diverged, else 1. Mean over all seeds. S is 0.5 when one part is at its tolerance. Its "
        "interval, where pairs were recorded: 95 % percentile bootstrap, S computed anew in every resample of held-out "
        "pairs, prompts and blocks of updates.",
        "The sentinel estimates the parts of stability during training, on a few held-out pairs and prompts; its "
        "alarms are no part of any score.",
    ]


def plan_facts(run: Run) -> Facts:
    """Return what the run was to do: arms, seeds, search, goals, judge, decoding."""
    manifest = run.manifest
    experiment = manifest.get("experiment") or {}
    arms = [str(arm.get("label", "")) for arm in experiment.get("arms") or [] if isinstance(arm, dict)]
    knobs = [path.rpartition(".")[2] for path in (experiment.get("search") or {}).get("dimensions") or {}]
    budget = experiment.get("budget") or {}
    confirm = budget.get("confirm") or {}
    winners = f"; the best {confirm['best']} confirmed with {confirm.get('seeds')} seeds" if confirm.get("best") else ""
    entries = [
        ("arms", ", ".join(arms) or "none"),
        ("seeds", ", ".join(str(seed) for seed in manifest.get("seeds") or []) or "none recorded"),
        ("search", f"{budget.get('trials')} trials over {', '.join(knobs)}{winners}" if knobs else "none"),
        ("goals", ", ".join(f"{way} {goal}" for goal, way in (manifest.get("goals") or {}).items()) or "none recorded"),
        ("judge", judge_of(run)),
        ("decoding", decoding_words(manifest)),
    ]
    return [(key, one_line(value)) for key, value in entries]


def facts(run: Run) -> Facts:
    """Return what the manifest says of when, with what and on what the run was made."""
    manifest, trials = run.manifest, run.trials
    data = manifest.get("data") or {}
    counts = {key: value for key, value in data.items() if isinstance(value, (int, float))}
    skipped = data.get("skipped") or data.get("rows_skipped") or []
    skips = [f"{item.get('count')} {item.get('reason')}" if isinstance(item, dict) else str(item) for item in skipped]
    ends = {str(status): int(count) for status, count in trials["status"].value_counts().sort_index().items()}
    truncated = {
        name: ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in numbers.items() if isinstance(value, int))
        for name, numbers in (data.get("truncated") or {}).items()
        if isinstance(numbers, dict)
    }
    entries: list[tuple[str, Any]] = [
        ("started", manifest.get("created")),
        ("finished", manifest.get("finished") or "not finished"),
        ("command", " ".join(redact(list(map(str, manifest.get("command") or []))))),
        ("trials", f"{len(trials)}: {', '.join(f'{count} {status}' for status, count in ends.items())}"),
        ("cost", f"{trials['total_seconds'].sum():.0f} trial seconds, {int(trials['tokens'].sum()):,} training tokens"),
        ("slime_ray", manifest.get("slime_ray")),
        ("versions", _pairs(manifest.get("versions"))),
        ("machine", _pairs(manifest.get("host"))),
        ("data", _pairs(counts)),
        ("rows skipped", "; ".join(skips) or "none"),
        *((f"cut, {name}", words) for name, words in truncated.items()),
        ("hashes", _pairs(manifest.get("hashes"))),
        ("inputs", _pairs(manifest.get("inputs"))),
        ("fingerprint", manifest.get("fingerprint")),
        ("stability", manifest.get("stability_version")),
    ]  # fmt: skip
    return [(key, one_line(str(value))) for key, value in entries if value not in (None, "")]


def _pairs(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (mapping or {}).items() if value is not None)


def paper(run: Run, main: Table, tables: Mapping[str, Table]) -> str:
    """Write the part of a paper that the run supports, for LaTeX's input command. tables: all of the report."""
    space, run_facts = _space(run), dict(facts(run))
    # Without arms and confirmed winners the search trials are all there is.
    names = TABLES if len(main.frame) else (*TABLES, "search_trials")
    placed = [(name, table) for name, table in tables.items() if name in names and len(table.frame)]
    # Not the name of the machine, which may say who wrote the paper.
    host = {key: value for key, value in (run.manifest.get("host") or {}).items() if key != "node"}
    about = [*((key, run_facts[key]) for key in RUN_FACTS if key in run_facts), ("machine", _words(host) or UNKNOWN)]
    lines = [
        "% Written by slime-ray report --paper, which writes it anew: change a copy.",
        f"% Run: {one_line(name_of(run))}, hash of the experiment: {run_facts.get('fingerprint', UNKNOWN)}",
        "% needs \\usepackage{booktabs,graphicx}; labels beyond Latin letters need XeLaTeX or LuaLaTeX",
        r"\section{Methods}",
        r"\begin{sloppypar}",
        *map(latex_text, methods_paragraph(run)),
        r"\end{sloppypar}",
        r"\section{Details of the experiment}",
        *_latex_list("Methods and their knobs, drawn ones to six digits", _terms(_objectives(run, main))),
        *([_placed("search_space", space, "manifest.json")] if space is not None else []),
        *_latex_list("Statistics", (rf"\item {{}}{latex_text(note)}" for note in methods(run)), "itemize"),
        *_latex_list("The run", _terms(about)),
        *_latex_list("All settings", _terms(_all_settings(run))),
        r"\section{Results}",
        *(_placed(name, table, f"{name}.csv") for name, table in placed),
    ]
    return "\n".join(lines) + "\n"


def methods_paragraph(run: Run) -> list[str]:
    """Say in a sentence each what was trained, on what, and how it was searched and judged."""
    settings = _settings(run)
    experiment = run.manifest.get("experiment") or {}
    recorded, plan = dict(facts(run)), dict(plan_facts(run))
    objectives = sorted({str(name) for name in run.trials["objective"].dropna()})
    stopping = _words(experiment["early_stopping"]) or "none" if "early_stopping" in experiment else UNKNOWN
    limits = experiment.get("constraints") or []
    # The adapters are null where every weight is trained, and else have settings of their own.
    how = "every weight trained" if settings and all("model.lora" in each for each in settings) else None
    data = run.manifest.get("data") or {}
    sizes = [f"{data[part]} {words}" for part, words in run_notes.PARTS.items() if isinstance(data.get(part), int)]
    return [
        _of("Model", settings, *(f"model.{name}" for name in MODEL), more=[how]),
        _of("Data", settings, "data.train", "data.revision", "data.max_tokens", more=sizes or [f"sizes {UNKNOWN}"]),
        *(_stage(title, settings, stage) for title, stage in STAGES.items()),
        f"Objectives: {', '.join(objectives) or UNKNOWN}, with the knobs listed below.",
        f"Seeds: {plan['seeds']}.",
        _search(run, experiment, plan["search"]),
        f"Goals: {plan['goals']}{'; constraints: ' if limits else ''}{'; '.join(map(_words, limits))}.",
        f"Early stopping: {stopping}.",
        _judging(run, plan["judge"]),
        f"Decoding: {plan['decoding']}.",
        f"Software: slime_ray {recorded.get('slime_ray', UNKNOWN)}; "
        f"{recorded.get('versions') or f'versions {UNKNOWN}'}.",
        f"The experiment's hash is {recorded.get('fingerprint', UNKNOWN)}.",
    ]


def _stage(title: str, settings: list[Flat], stage: str) -> str:
    """Describe one optimisation run; where all trials have a number of updates, epochs count for nothing."""
    if settings and all(stage in each for each in settings):
        return f"{title}: none."  # It is null, and has no settings of its own.
    counted = all(each.get(f"{stage}.updates") is not None for each in settings)
    paths = [f"{stage}.{name}" for name in KNOBS if not (counted and name == "epochs")]
    optimizer = "AdamW" if settings and _value(settings, f"{stage}.arguments.optim") is None else None
    return _of(title, settings, *paths, more=[optimizer])


def _of(title: str, settings: list[Flat], *paths: str, more: Sequence[str | None] = ()) -> str:
    """Describe settings by their names; those that are null are left out."""
    values = {path.partition(".")[2].replace("_", " "): _value(settings, path) for path in paths}
    terms = [f"{name} {value}" for name, value in values.items() if value is not None]
    return f"{title}: {', '.join([*(terms or [UNKNOWN]), *filter(None, more)])}."


def _search(run: Run, experiment: Mapping[str, Any], words: str) -> str:
    """Describe the budget and the sampler; of a league those that every entry has."""
    if (league := League.of(run.manifest)) is not None:
        samplers = sorted({_words(entry.search.get("sampler")) for entry in league.entries} - {""})
        return (
            f"Search: {league.trials} trials for each of {len(league.entries)} entries, sampler "
            f"{', '.join(samplers) or UNKNOWN}; each winner confirmed with {league.seeds} seeds. Rule: {league.rule}."
        )
    search = experiment.get("search") or {}
    if not search.get("dimensions"):
        return f"Search: {words if experiment else UNKNOWN}."
    points = f", {len(known_points)} known points first" if (known_points := search.get("known_points")) else ""
    return f"Search: {words}; sampler {_words(search.get('sampler')) or UNKNOWN}{points}."


def _judging(run: Run, judge: str) -> str:
    if not is_judged(run):
        return "Judge: none, so there are no win rates."
    counts = run.trials.dropna(subset=["win_rate"]).groupby("prompt_set")["prompts"].max().dropna()
    prompts = "".join(f", {int(count)} {name} prompts with a valid verdict" for name, count in counts.items())
    return f"Judge: {judge}, of answers beside those of {baseline_of(run)}{prompts}."


def _objectives(run: Run, main: Table) -> Iterator[tuple[str, str]]:
    """Return each row of the main table with its objective, the knobs, and other settings."""
    for row in main.frame.to_dict("records"):
        trial = of_label(run, run.trials, str(row["label"])).iloc[0]
        settings, set_ = (flat(_read(trial[column])) for column in ("settings", "overrides"))
        knobs = [
            f"{path.removeprefix(OBJECTIVE)} {_words(value)}"
            for path, value in settings.items()
            if path.startswith(OBJECTIVE) and path != f"{OBJECTIVE}name" and value != []
        ]
        words = (", ".join(knobs) or "no knobs") if settings else f"knobs {UNKNOWN}"
        words = "no updates" if row["objective"] == "none" else words
        rest = "".join(f"; {path} {_words(value)}" for path, value in set_.items() if not path.startswith(OBJECTIVE))
        yield str(row["label"]), f"{row['objective']}: {words}{rest}"


def _space(run: Run) -> Table | None:
    """Return what was searched, a row for each knob, of a league by entry; None where nothing was."""
    league = League.of(run.manifest)
    search = (run.manifest.get("experiment") or {}).get("search") or {}
    spaces = {entry.label: entry.search for entry in league.entries} if league else {"": search}
    rows = [
        {"entry": label, "knob": path, "range": _words(spec) or UNKNOWN}
        for label, space in spaces.items()
        for path, spec in (space.get("dimensions") or {}).items()
    ]
    if not rows:
        return None
    frame, heads = pd.DataFrame(rows), ("entry", "knob", "range")[not league :]
    needed = dict.fromkeys(str(each) for space in spaces.values() for each in space.get("require") or [])
    notes = [f"Required: {'; '.join(needed)}."] if needed else []
    columns = tuple(Column(name, tuple(frame[name]), numeric=False) for name in heads)
    return Table(frame, f"{name_of(run)}: the search space, bounds inclusive.", notes, columns)


def _all_settings(run: Run) -> Iterator[tuple[str, str]]:
    """Yield every setting by its section, each as the trials have it."""
    settings = _settings(run)
    paths = dict.fromkeys(path for each in settings for path in each if not path.startswith(OBJECTIVE))
    for section in dict.fromkeys(path.partition(".")[0] for path in paths):
        inside = [path for path in paths if path.partition(".")[0] == section]
        yield (
            section,
            ", ".join(f"{path.partition('.')[2]} {_value(settings, path) or 'null'}".strip() for path in inside),
        )


def _placed(name: str, table: Table, source: str) -> str:
    """Return the table's environment, without its line on packages, which is at the top."""
    latex = table.latex(f"tab:{name.replace('_', '-')}")
    return f"% numbers: {source}\n{latex.partition(chr(10))[2]}"


def _latex_list(title: str, items: Iterable[str], environment: str = "description") -> list[str]:
    """Return a paragraph with a list, which breaks over pages; nothing where it is empty."""
    begin, end = rf"\begin{{{environment}}}\footnotesize\raggedright", rf"\end{{{environment}}}"
    lines = list(items)
    return [rf"\paragraph{{{title}.}}", begin, *lines, end] if lines else []


def _terms(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (rf"\item[{{{latex_text(term)}}}] {latex_text(words)}" for term, words in items)


def _settings(run: Run) -> list[Flat]:
    """Return the different settings that trials had, by path; trials without settings are left out."""
    return [settings for text in dict.fromkeys(run.trials["settings"].dropna()) if (settings := flat(_read(text)))]


def _read(text: Any) -> Any:
    return redact(json.loads(text)) if isinstance(text, str) else {}


def _value(settings: list[Flat], path: str) -> str | None:
    """Return a setting as the trials have it; None where it is null or missing in all."""
    values = [each.get(path) for each in settings]
    words = list(dict.fromkeys("null" if value is None else _words(value) for value in values))
    if len(words) < 2:
        return None if all(value is None for value in values) else words[0]
    return f"varied ({', '.join(words)})" if len(words) <= MOST else f"varied ({len(words)} values)"


def _words(value: Any) -> str:
    """Write a value for a sentence: a drawn number with six digits, a file of one's own machine by its name."""
    if value in ({}, []):
        return "none"
    if isinstance(value, float):
        return repr(value) if len(repr(value)) <= LONGEST else f"{value:.6g}"
    if isinstance(value, Mapping):
        words = {key: _words(item) for key, item in value.items() if item not in (None, {}, [])}
        return ", ".join(f"{key} {text}" for key, text in words.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_words, value))}]"
    if isinstance(value, str):
        return PurePath(value).name if PurePath(value).is_absolute() else value
    return "" if value is None else json.dumps(value)
