"""The report of a run: tables and figures as files, and one self-contained page that says first what is not settled."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from slime_ray.errors import InputError
from slime_ray.runs import results
from slime_ray.runs.files import write
from slime_ray.runs.results import Run

from . import adjusted, methods, tables, trial_tables
from .adjusted import Difficulties
from .figures import BLUE, GREEN, GREY, ORANGE, VERMILLION, render
from .interactive import examples, front_data, pieces
from .printing import Sentences, Table, number, one_line
from .rows import LOST, basis, few_seeds, is_judged, judged_answers, name_of
from .sections import SECTIONS, Findings, ReportItem, made
from .statistics import TOO_FEW, Interval, independent_difference, interval_names

FEWEST_PROMPTS = 20
"""With fewer, a resampled interval is too rough to claim anything by."""
HERE = Path(__file__).parent
COLOURS = {
    "#ffffff": "page",
    "#000000": "ink",
    "#e4e4e4": "grid",
    GREY: "grey",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    ORANGE: "orange",
}
"""Colours of drawings that are others where a reader prefers a dark page: the variables of web/report.css."""


def build_page(findings: Findings, things: Sequence[tuple[ReportItem, Table | bytes]]) -> str:
    """Build the page. things: its tables, and its figures as SVG, in the order of their items."""
    unsettled, settled = answer(findings.run, findings.main, of_design=findings.of_design())
    settled += map(unbroken, findings.on_search())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["pieces"] = pieces
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    template = environment.get_template("report.html.jinja")
    front = front_data(findings)
    scripts = [_web("vega.min.js"), _web("report.js")] if front else []
    return template.render(
        name=one_line(name_of(findings.run)),
        plan_facts=methods.plan_facts(findings.run),
        unsettled=unsettled,
        settled=settled,
        sections=[
            {"title": under, "things": [_placed(item, thing) for item, thing in group]}
            for under, group in groupby(things, key=lambda item: item[0].under)
        ],
        examples=examples(findings.run, findings.main),
        methods=methods.methods(findings.run),
        facts=methods.facts(findings.run),
        style=_web("report.css"),
        scripts=scripts,
        policy=_policy(scripts),
        front=front,
        front_spec=json.loads(_web("front.vega.json")),
        curves_spec=json.loads(_web("curves.vegalite.json")),
    )


def _web(name: str) -> str:
    return (HERE / "web" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Return what a browser may do with the page: run these scripts, and load nothing.

    Whatever an answer holds, a script in it is none of these.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def _placed(item: ReportItem, thing: Table | bytes) -> dict[str, Any]:
    if isinstance(thing, Table):
        return {"name": item.name, "table": thing}
    svg = _inline(thing, item.name)
    for colour, variable in () if item.paper else COLOURS.items():
        svg = re.sub(rf"(?<=[ :\"]){colour}(?=[;\"])", f"var(--{variable})", svg, flags=re.IGNORECASE)
    return {"name": item.name, "table": None, "svg": svg, "caption": item.caption, "paper": item.paper}


def _inline(svg: bytes, name: str) -> str:
    """Turn a drawing into a part of a page: no XML head, metadata or namespaces, and ids that no other has.

    Coordinates keep a hundredth of a point, and no space is left between tags: of a large search that is a third.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)
    text = (
        text.replace(' id="', f' id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    )
    text = text.replace("xlink:href=", "href=")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1)


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, its tables, and these as a terminal shows them."""

    html: Path
    folder: Path
    files: tuple[Path, ...]
    text: str
    tables: Mapping[str, Table]

    def json(self) -> str:
        """Write where the report is and the unrounded numbers of its tables, for a script."""
        numbers = {name: json.loads(table.json()) for name, table in self.tables.items()}
        return json.dumps({"report": str(self.html), "tables": numbers}, indent=1)


def write_report(
    run_path: str | Path,
    out: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    difficulties: str | Path | None = None,
    paper: bool = False,
) -> ReportFiles:
    """Write all tables, figures and `report.html` of a run to `out`.

    The default of `out` is its folder `report`. paper: `paper.tex` as well, a methods paragraph and an appendix.

    Every file is made whole before the first is moved into place: what fails leaves an older report as it was. The same
    run gives the same bytes. Raises InputError where `run_path` is no run, where nothing has finished, where its judges
    differ, or where `out` cannot be written. labels: a file of strong verdicts (`adjusted.read_labels`). difficulties:
    a file of the prompts' (`adjusted.Difficulties.read`).
    """
    folder = Path(run_path) / "report" if out is None else Path(out)
    findings = Findings(
        results.load(run_path),
        None if labels is None else adjusted.read_labels(Path(labels)),
        None if difficulties is None else Difficulties.read(Path(difficulties)),
    )
    files, placed = _render_files(findings)
    if paper:
        files["paper.tex"] = methods.paper(findings, placed).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write(folder / name, content, durable=False)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Give another place with --out.") from None
    written = {item.name: table for item, table in placed if len(table.frame) or table is findings.main}
    terminal_tables = [table for item, table in placed if item.terminal]
    # Of a run that only searched, its search trials replace the main table in the terminal.
    if findings.main.frame.empty:
        terminal_tables = [findings.search_trials if table is findings.main else table for table in terminal_tables]
    text = "\n\n\n".join(table.text() for table in terminal_tables)
    return ReportFiles(folder / "report.html", folder, tuple(folder / name for name in files), text, written)


def build_live_page(run_path: str | Path) -> str:
    """Build the page of a run that goes on, with the front as its only drawing.

    The other drawings take seconds. Raises InputError where nothing has finished, or a file cannot be read.
    """
    findings = Findings(results.load(run_path))
    quick = [item for item in SECTIONS if not item.caption or item.name == "pareto"]
    things = [
        (item, thing if isinstance(thing, Table) else render(thing, "svg")["svg"])
        for item, thing in made(findings, quick)
    ]
    return build_page(findings, things)


def _render_files(findings: Findings) -> tuple[dict[str, bytes], list[tuple[ReportItem, Table]]]:
    """Render the content of every file by its name; return it with the tables."""
    files: dict[str, bytes] = {}
    placed: list[tuple[ReportItem, Table | bytes]] = []
    for item, thing in made(findings):
        kinds: Mapping[str, bytes] = {}
        if isinstance(thing, Table):
            placed.append((item, thing))
            if len(thing.frame) or thing is findings.main:
                kinds = {"md": thing.markdown().encode(), "csv": thing.csv().encode(), "tex": thing.latex().encode()}
        else:
            kinds = render(thing)
            placed.append((item, kinds["svg"]))
        files |= {f"{item.name}.{kind}": content for kind, content in kinds.items()}
    files["report.html"] = build_page(findings, placed).encode()
    return files, [(item, thing) for item, thing in placed if isinstance(thing, Table)]


def answer(run: Run, main: Table, *, of_design: Sentences = ([], [])) -> Sentences:
    """Say what the run does not settle, and what it shows. of_design: the same of its design, where it has one."""
    frame = main.frame
    open_: list[str] = []
    settled: list[str] = []
    lost = run.trials["status"].isin(LOST)
    if not run.manifest.get("finished"):
        open_.append("The run has not finished: this is what there is so far.")
    if lost.any():
        open_.append(
            f"{int(lost.sum())} of {len(run.trials)} trials failed or diverged. They count as stability 0; win rates "
            "are of the seeds that finished."
        )
    judged = is_judged(run)
    # What a league says of its entries stands in its own sentences.
    league = bool((run.manifest.get("experiment") or {}).get("league"))
    if not judged:
        open_.append("Which answers are better: nothing was judged, so there is no win rate.")
    lead = "win_rate" if judged else "preference_accuracy"
    rows = frame.dropna(subset=[lead]) if len(frame) else frame
    if len(rows):
        if seeds := few_seeds(frame["seeds_finished"]):
            open_.append(
                f"Whether this holds for other seeds: with {seeds} finished per row it is about these checkpoints only."
            )
        if not league:
            for start_rows in tables.by_start(rows):
                if judged:
                    _say_win_rates(run, start_rows, open_, settled)
                else:
                    settled.append(_on_accuracy(run, start_rows))
                open_ += _on_stability(run, start_rows, judged=judged)
            if judged and not ((rows["stability"] >= 0.5) & (rows["win_rate_low"] > 0.5)).any():
                settled.append("No row both wins with an interval above 50 % and keeps a stability of 0.5 or more.")
    elif len(frame):
        open_.append("No arm and no confirmed winner has a finished trial, so nothing can be compared.")
    open_ += of_design[0]
    settled += of_design[1]
    if not league:
        _say_search(run, frame, judged, open_, settled)
    # What is said of the rows from each SFT checkpoint may be the same.
    return [unbroken(sentence) for sentence in dict.fromkeys(open_)], [
        unbroken(text) for text in dict.fromkeys(settled)
    ]


def unbroken(sentence: str) -> str:
    """Keep a percent sign on the line of its number."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def _percent(row: pd.Series, column: str = "win_rate") -> str:
    return f"{100 * row[column]:.1f} %"


def _at_stability(row: pd.Series) -> str:
    return f", at stability {number(row['stability'])}" if pd.notna(row["stability"]) else ""


def _say_win_rates(run: Run, rows: pd.DataFrame, open_: list[str], settled: list[str]) -> None:
    best, from_ = rows.iloc[0], " from its SFT checkpoint" if tables.START in rows else ""
    tied = rows[rows["win_rate_mark"] == "best"]["label"].tolist()
    if len(tied) > 1:
        open_.append(f"Which of {_list(tied)} wins most: their win rates cannot be told apart on these prompts.")
    covers = (rows["win_rate_low"] <= 0.5) & (rows["win_rate_high"] >= 0.5)
    # An arm without updates is the SFT checkpoint.
    unclear = rows[covers & (rows["objective"] != "none")]["label"].tolist()
    if unclear:
        open_.append(f"Whether {_list(unclear)} {'is' if len(unclear) == 1 else 'are'} better or worse than the SFT "
                     "checkpoint: the win interval covers 50 %.")  # fmt: skip
    prompts = int(rows["prompts"].max())
    few = prompts < FEWEST_PROMPTS
    if few:
        open_.append(
            f"Everything here: {prompts} prompts were answered and judged; below {FEWEST_PROMPTS} intervals are rough. "
            "See evaluation.prompts, and selection_prompts and data.held_out_pairs beside it."
        )
    # Nor where it is open whether it is better than the SFT checkpoint, which is a row or stands behind all of them.
    shared = len(tied) > 1 or len(rows) == 1 or few or best["label"] in unclear
    separable = "" if shared else f", separable from every other row{from_}"
    low, high = 100 * best["win_rate_low"], 100 * best["win_rate_high"]
    ends = f"({TOO_FEW})" if pd.isna(low) else f"[{low:.1f}, {high:.1f}]"
    settled.append(
        f"{best['label']} has the highest win rate{from_}: {_percent(best)} {ends}{separable}{_at_stability(best)} "
        f"({basis(run, best['seeds_finished'], best['prompts'], label=best['label'])})."
    )
    if len(tied) > 1 and rows["stability"][rows["label"].isin(tied)].notna().any():
        calm = rows[rows["label"].isin(tied)].sort_values("stability", ascending=False, kind="stable").iloc[0]
        settled.append(
            f"Of the rows that cannot be told apart, {calm['label']} has the highest stability: "
            f"{number(calm['stability'])}."
        )
    worse = rows[rows["win_rate_high"] < 0.5]
    if len(worse):
        rests = basis(run, int(worse["seeds_finished"].min()), int(worse["prompts"].min()))
        settled.append(
            f"Worse than the baseline on these prompts: {_list(worse['label'].tolist())} (at least {rests})."
        )


def _on_accuracy(run: Run, rows: pd.DataFrame) -> str:
    best, from_ = rows.iloc[0], " from its SFT checkpoint" if tables.START in rows else ""
    pairs = int(run.trials["pairs"].max()) if run.trials["pairs"].notna().any() else 0
    value = _percent(best, "preference_accuracy")
    tied = rows[rows["preference_accuracy"] == best["preference_accuracy"]]
    rests = basis(run, int(tied["seeds_finished"].min()), pairs)
    if len(rows) == 1:
        claim = f"The held-out preference accuracy of {best['label']} is {value}{_at_stability(best)}"
    elif len(tied) > 1:
        rests = f"at least {rests}"
        labels = _list(tied["label"].tolist())
        claim = f"{labels} have the same held-out preference accuracy{from_}, the highest: {value}"
    else:
        claim = f"{best['label']} has the highest held-out preference accuracy{from_}: {value}{_at_stability(best)}"
    return f"{claim} ({rests}). Accuracy can rise while answers get worse."


def _on_stability(run: Run, rows: pd.DataFrame, *, judged: bool) -> list[str]:
    """Say where S rests on too few answers, and which rows its intervals do not tell apart."""
    # An arm without updates is the SFT checkpoint, whose S is 1.
    scored = rows[(rows["objective"] != "none") & rows["stability"].notna()]
    scored = scored.sort_values("stability", ascending=False, kind="stable")
    answers = judged_answers(run)
    answers = answers[answers["label"].isin(scored["label"])]
    if answers.empty:
        return []
    answers_per_trial = int(answers.groupby("trial_id")["prompt_id"].nunique().min())
    open_ = []
    scores = [Interval(*ends) for ends in scored[interval_names("stability")].to_numpy(dtype=float)]
    # A row without an interval is not told apart, either.
    tied = [
        label
        for label, score in zip(scored["label"], scores, strict=True)
        if not independent_difference(scores[0], score).excludes(0.0)
    ]
    if len(tied) > 1:
        open_.append(f"Which of {_list(tied)} is the most stable: no interval of S tells them apart "
                     f"({answers_per_trial} answers of each trial).")  # fmt: skip
    if answers_per_trial < FEWEST_PROMPTS and not judged:
        open_.append(
            f"How stable the rows are: S rests on {answers_per_trial} answers of each trial; "
            f"below {FEWEST_PROMPTS} S and its interval are rough. See evaluation.prompts."
        )
    return open_


def _say_search(run: Run, frame: pd.DataFrame, judged: bool, open_: list[str], settled: list[str]) -> None:
    search = trial_tables.search_trials(run).frame
    confirmed = frame[frame["phase"] == "confirm"] if len(frame) else frame
    if search.empty:
        return
    front = search[search["on_front"]]["trial_id"].tolist()
    lead = "win_rate" if judged else "preference_accuracy"
    if not len(confirmed):
        open_.append("How good the search's trials are on other prompts and seeds: no winner was confirmed.")
    if front:
        top = search.sort_values(lead, ascending=False, na_position="last", kind="stable").iloc[0]
        number = f", highest {_percent(top, lead)} ({top['trial_id']})" if pd.notna(top[lead]) else ""
        where = "on the selection prompts" if judged else "by held-out accuracy"
        items = search["prompts"].max() if judged else run.trials["pairs"].max()
        rests = f" (a trial: {basis(run, 1, int(items))})" if pd.notna(items) else ""
        settled.append(f"Search: {len(front)} of {len(search)} trials on the front{number} {where}{rests}.")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
