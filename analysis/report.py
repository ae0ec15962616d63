"""The report of a run: tables and figures as files, and one self-contained page. Reads result files, nothing else."""

import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from slime_ray import results
from slime_ray.design import Design
from slime_ray.errors import InputError
from slime_ray.results import Run
from slime_ray.stability_v1 import TOLERANCES

from . import (
    ablation_table,
    alarms_table,
    effects,
    factorial_table,
    failures_table,
    figures,
    judging,
    paper_tables,
    search_table,
    sensitivity_figure,
    stability_table,
    statistics,
    tables,
)
from .answer import Sentences, answer, unbroken
from .design_cells import Cells
from .drawing import render
from .printing import Table, one_line
from .rows import PARTS, decoding_words, judge_of, of_label, version_of
from .search_report import CAPTIONS as SEARCH_CAPTIONS
from .search_report import Understanding

EXAMPLES = 5
LONGEST_ANSWER = 2000
CAPTIONS = {
    "pareto": "Filled: rows of the table, with the 95 % interval over prompts and the range of S over seeds. Hollow: "
    "trials of the search, measured on other prompts with one seed; the line is their front in these two measures.",
    "logprob_curves": "Mean log-probability per token of held-out chosen and rejected completions during training; "
    "bands span the seeds. A chosen curve that falls is unlearning.",
    "stability_parts": "What each row lost its stability to: 1 − S cut by the parts' shares of the summed (x/h)², mean "
    "over seeds. What a bar leaves free is S.",
    "sensitivity": "What each knob does around the center, whose own value is the diamond. Bars: 95 % intervals as in "
    "the tables. Hollow: the 95 % interval of the difference to the center covers 0.",
}


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, and its tables as a terminal shows them."""

    html: Path
    folder: Path
    files: tuple[Path, ...]
    text: str


@dataclass(frozen=True)
class Tables:
    """The tables of a run by the name of their files; those without rows are empty, not absent."""

    win_rate_stability: Table
    judging: Table
    stability_parts: Table
    alarms: Table
    search_trials: Table
    ablation: Table
    factorial: Table
    beside_the_paper: Table

    @classmethod
    def of(cls, run: Run, found: Cells | None = None) -> "Tables":
        """All of them; the main one is computed once. found: what was measured of the design, where the run has one."""
        main = tables.win_rate_stability(run)
        none = Table(frame=pd.DataFrame(columns=["label"]), caption="This run is no ablation.", notes=[])
        ablation = none if found is None else ablation_table.ablation(run, found, main)
        return cls(
            ablation=ablation,
            factorial=none if found is None else factorial_table.factorial_effects(run, found),
            beside_the_paper=none if found is None else paper_tables.beside_the_paper(run, found, ablation),
            win_rate_stability=main,
            judging=judging.judging(run, main),
            stability_parts=stability_table.stability_parts(run, main),
            alarms=alarms_table.alarms(run),
            search_trials=search_table.search_trials(run),
        )

    @property
    def written(self) -> dict[str, Table]:
        """Those that have files: the main one, and every other that has rows."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: table for name, table in named.items() if len(table.frame) or table is self.win_rate_stability}

    def text(self) -> str:
        """For a terminal; of a run that only searched, its search trials."""
        if self.win_rate_stability.frame.empty:
            return self.search_trials.text()
        return "\n\n\n".join(table.text() for name, table in self.written.items() if name != "search_trials")


def write_report(run_path: str | Path, out: str | Path | None = None) -> ReportFiles:
    """Write all tables, figures and `report.html` of a run to `out` (default: its folder `report`).

    Every file is made whole before the first is moved into place: what fails leaves an older report as it was. The same
    run gives the same bytes. Raises InputError where `run_path` is no run, where nothing has finished, where its judges
    differ, or where `out` cannot be written.
    """
    run = results.load(run_path)
    folder = Path(run_path) / "report" if out is None else Path(out)
    design = Design.of(run.manifest)
    measured = None if design is None else Cells.of(run, design)
    found = Tables.of(run, measured)
    search = Understanding.of(run)
    drawn = {
        "pareto": render(figures.pareto(run, table=found.win_rate_stability)),
        "logprob_curves": render(figures.logprob_curves(run, table=found.win_rate_stability)),
        "stability_parts": render(figures.stability_parts(run, table=found.win_rate_stability)),
    }
    if measured is not None and measured.design.kind in ("sensitivity", "exponent"):
        drawn["sensitivity"] = render(sensitivity_figure.sensitivity(measured, found.ablation))
    if search is not None:
        drawn |= {name: render(figure) for name, figure in search.figures().items()}
    files: dict[str, bytes] = {}
    for name, table in {**found.written, **(search.tables if search else {})}.items():
        for kind, text in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
            files[f"{name}.{kind}"] = text.encode()
    for name, kinds in drawn.items():
        files |= {f"{name}.{kind}": content for kind, content in kinds.items()}
    files["report.html"] = _page(
        run, found, measured, search, {name: kinds["svg"] for name, kinds in drawn.items()}
    ).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(folder / name, content)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Give another place with --out.") from None
    text = "\n\n\n".join(part for part in (found.text(), search.text() if search else "") if part)
    return ReportFiles(folder / "report.html", folder, tuple(folder / name for name in files), text)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _page(
    run: Run, found: Tables, measured: Cells | None, search: Understanding | None, svgs: Mapping[str, bytes]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    main = found.win_rate_stability
    unsettled, settled = answer(run, main, of_design=_of_design(measured, found))
    settled += [unbroken(sentence) for sentence in search.sentences()] if search else []
    captions = {**CAPTIONS, **SEARCH_CAPTIONS}
    return environment.get_template("report.html.jinja").render(
        name=one_line(str(run.manifest.get("name", run.path.name))),
        asked=_asked(run),
        unsettled=unsettled,
        settled=settled,
        main=main,
        ablation=found.ablation,
        factorial=found.factorial,
        paper=found.beside_the_paper,
        judging=found.judging,
        parts=found.stability_parts,
        alarms=found.alarms,
        search=found.search_trials,
        understanding=list(search.tables.values()) if search else [],
        failed=failures_table.failures(run),
        figures=[{"name": name, "svg": _inline(svg, name), "caption": captions[name]} for name, svg in svgs.items()],
        examples=_examples(run, main),
        methods=[*_methods(run), *(_ablation_methods() if measured else [])],
        facts=_facts(run),
    )


def _of_design(measured: Cells | None, found: Tables) -> Sentences:
    """Of a factorial design its main effects, which are what it declares; of others the cells."""
    if measured is None:
        return [], []
    if measured.design.kind == "factorial":
        return factorial_table.sentences(measured, found.factorial)
    return ablation_table.sentences(measured, found.ablation)


def _inline(svg: bytes, name: str) -> str:
    """The drawing as part of a page: no XML head, metadata or namespaces, and ids that no other drawing has."""
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
    text = (
        text.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    )
    text = text.replace("xlink:href=", "href=")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1)


def _asked(run: Run) -> list[tuple[str, str]]:
    manifest = run.manifest
    experiment = manifest.get("experiment") or {}
    arms = [str(arm.get("label", "")) for arm in experiment.get("arms") or [] if isinstance(arm, dict)]
    knobs = [path.rpartition(".")[2] for path in (experiment.get("search") or {}).get("dimensions") or {}]
    budget = experiment.get("budget") or {}
    confirm = budget.get("confirm") or {}
    winners = f"; the best {confirm['best']} confirmed with {confirm.get('seeds')} seeds" if confirm.get("best") else ""
    asked = [
        ("arms", ", ".join(arms) or "none"),
        ("seeds", ", ".join(str(seed) for seed in manifest.get("seeds") or []) or "none recorded"),
        ("search", f"{budget.get('trials')} trials over {', '.join(knobs)}{winners}" if knobs else "none"),
        ("goals", ", ".join(f"{way} {goal}" for goal, way in (manifest.get("goals") or {}).items()) or "none recorded"),
        ("judge", judge_of(run)),
        ("decoding", decoding_words(manifest)),
    ]
    return [(key, one_line(value)) for key, value in asked]


def _examples(run: Run, main: Table) -> dict[str, Any] | None:
    """Answers of the best row's first seed to the first prompts in the order of their ids: not chosen by content."""
    for label in main.frame["label"] if len(main.frame) else run.trials["label"]:
        answers = of_label(run, run.answers, label)
        if answers.empty:
            continue
        seed = answers["seed"].min()
        first = answers[answers["seed"] == seed].sort_values("prompt_id", kind="stable").head(EXAMPLES)
        return {"label": label, "seed": int(seed), "pairs": [_pair(row) for row in first.to_dict("records")]}
    return None


def _pair(row: Mapping[Any, Any]) -> dict[str, str]:
    words = {1.0: "wins", 0.5: "ties", 0.0: "loses", 0.25: "ties and loses", 0.75: "wins and ties"}
    outcome = row["outcome"]
    return {
        "prompt": _prompt(row["prompt"]),
        "answer": _cut(row["answer"]),
        "baseline": _cut(row["baseline_answer"]),
        "verdict": "no verdict" if pd.isna(outcome) else words.get(outcome, str(outcome)),
        "broken": f"broken: {row['broken_reason']}" if pd.notna(row["broken_reason"]) else "",
        "baseline_broken": "broken" if row["baseline_broken"] is True else "",
    }


def _prompt(text: Any) -> str:
    try:
        messages = json.loads(text)
        if len(messages) == 1:
            return str(messages[0]["content"])
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    except (TypeError, ValueError, KeyError):
        return str(text)


def _cut(text: Any) -> str:
    if pd.isna(text):
        return ""
    return text if len(text) <= LONGEST_ANSWER else text[:LONGEST_ANSWER] + f" … ({len(text)} characters)"


def _methods(run: Run) -> list[str]:
    limits = ", ".join(f"{PARTS[name]} {value:.2f}" for name, value in asdict(TOLERANCES).items())
    version = version_of(run)
    return [
        "Win rate: mean over prompts and seeds of an answer's outcome against the baseline's answer, itself the "
        "mean over both presentation orders of 1 win, 0.5 tie, 0 loss. Prompts without any valid verdict are left out; "
        "invalid verdicts are counted in the note, with the win rate if all were losses and if all were wins.",
        f"Interval of a win rate: 95 % percentile bootstrap over prompts, {statistics.RESAMPLES:,} seeded resamples, "
        "both orders and all seeds of a prompt kept together.",
        "Separable: the 95 % interval of the paired difference on the same prompts leaves 0 out. With "
        f"{statistics.FEWEST_SEEDS} or more common seeds it is over seeds and prompts (two-way analysis of variance, "
        "random effects, Student's t, Satterthwaite's degrees of freedom); with fewer it is of these checkpoints, by "
        "bootstrap over prompts. Every row is compared with the best one; nothing is corrected for the number of "
        "comparisons.",
        f"Stability ({version}): S = g / (1 + sum of (x/h)²) with the tolerances h: {limits}; g is 0 for a trial that "
        "failed or diverged, else 1. Mean over all seeds. S is 0.5 when one part is at its tolerance. Its interval, "
        "where pairs were recorded: 95 % percentile bootstrap, S computed anew in every resample of held-out pairs, "
        "prompts and blocks of updates.",
        "K: full-vocabulary KL divergence from the SFT checkpoint per generated token, on the policy's own answers.",
        "σ: standard deviation (n − 1) of the win rate over seeds. Drift: mean log-probability per token of the "
        "held-out chosen completions, minus that of the SFT checkpoint.",
        "Front: finished search trials that no other finished one equals or beats in all goals and beats in one.",
        "The search is measured on the selection prompts, arms and confirmed winners on the report prompts.",
    ]


def _ablation_methods() -> list[str]:
    return [
        "Effect of a cell: its outcomes minus those of the cell that it is compared with, paired by seed and prompt. "
        f"Tests: {'; '.join(effects.TESTS.values())}. Each is corrected by Holm over all comparisons of its table, in "
        f"one metric that was declared beforehand; a cell matters where all stay below {effects.LEVEL}, with "
        f"{statistics.FEWEST_SEEDS} seeds or more.",
        "Seeds that would settle a comparison: at which the t over seeds and the t over seeds and prompts would, with "
        "the variance components seen here, each find a true difference of the size observed in four of five tries.",
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
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
    facts: list[tuple[str, Any]] = [
        ("started", manifest.get("created")),
        ("finished", manifest.get("finished") or "not finished"),
        ("command", " ".join(map(str, manifest.get("command") or []))),
        ("trials", f"{len(trials)}: {', '.join(f'{count} {status}' for status, count in ends.items())}"),
        ("cost", f"{trials['total_seconds'].sum():.0f} trial seconds, {int(trials['tokens'].sum()):,} training tokens"),
        ("slime_ray", manifest.get("slime_ray")),
        ("versions", _words(manifest.get("versions"))),
        ("machine", _words(manifest.get("host"))),
        ("data", _words(counts)),
        ("rows skipped", "; ".join(map(_skipped, skipped)) or "none"),
        *((f"cut, {name}", words) for name, words in truncated.items()),
        ("hashes", _words(manifest.get("hashes"))),
        ("fingerprint", manifest.get("fingerprint")),
        ("stability", manifest.get("stability_version")),
    ]  # fmt: skip
    return [(key, one_line(str(value))) for key, value in facts if value not in (None, "")]


def _skipped(item: Any) -> str:
    return f"{item.get('count')} {item.get('reason')}" if isinstance(item, dict) else str(item)


def _words(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (mapping or {}).items())
