"""The report of a run: every table and figure in one list, as files and on one page. To add one is to add an item."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Union

from slime_ray.config.design import Design
from slime_ray.errors import InputError
from slime_ray.runs import results
from slime_ray.runs.files import write
from slime_ray.runs.results import Run

from . import (
    ablation,
    adjusted,
    factorial,
    figures,
    front,
    judging,
    knobs,
    league,
    league_tables,
    methods,
    stability,
    tables,
    trial_tables,
)
from .ablation import Cells
from .adjusted import Difficulties
from .figures import render
from .knobs import Searched
from .league import Standings
from .page import ReportItem, build_page
from .printing import Sentences, Table, unbroken

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ItemContent = Union[Table, "Figure", None]
LEAGUE, ROWS, ABLATION, STABILITY, TRAINING, SEARCH, LOST = (
    "The league",
    "Win rate and stability",
    "The ablation",
    "What stability was lost to",
    "Training",
    "The search",
    "Trials that did not complete",
)
"""Headings of the page."""


@dataclass(frozen=True)
class Findings:
    """A run and what was found in it. What the run has nothing of is None.

    Attributes:
        run: The run.
        labels: Strong verdicts on some of its answers, as `adjusted.read_labels` gives them.
        difficulties: Of its prompts, for AlpacaEval's rate.
    """

    run: Run
    labels: "pd.DataFrame | None" = None
    difficulties: Difficulties | None = None

    @cached_property
    def main(self) -> Table:
        """Win rate and stability by arm and confirmed winner."""
        return tables.win_rate_stability(self.run)

    @cached_property
    def cells(self) -> Cells | None:
        """What was measured of the run's design."""
        design = Design.of(self.run.manifest)
        return None if design is None else Cells.of(self.run, design)

    @cached_property
    def ablation_table(self) -> Table | None:
        """What each cell of the design does."""
        return None if self.cells is None else ablation.ablation(self.cells, self.main)

    @cached_property
    def factorial_table(self) -> Table | None:
        """The effects of a factorial design's components."""
        return None if self.cells is None else factorial.factorial_effects(self.cells)

    @cached_property
    def leagues(self) -> list[Standings]:
        """What a league's tables are made of, for each SFT checkpoint that it is run across."""
        return Standings.by_checkpoint(self.run, self.main)

    @cached_property
    def standings(self) -> list[Table]:
        """A league's entries, for each SFT checkpoint."""
        return [league.standings(each) for each in self.leagues]

    @cached_property
    def over_checkpoints(self) -> Table | None:
        """What holds from several SFT checkpoints, of a league's entries or a design's cells."""
        if self.cells is not None:
            return factorial.over_checkpoints(self.cells)
        return league_tables.leagues_over(self.leagues) if len(self.leagues) > 1 else None

    @cached_property
    def search_trials(self) -> Table:
        """The trials of the search; without rows in a run that did not search."""
        return trial_tables.search_trials(self.run)

    @cached_property
    def searched(self) -> Searched:
        """The search's trials as arrays. Those of a league's methods have no knobs in common."""
        searched = Searched.of(self.run)
        return replace(searched, knobs=(), places=searched.places[:, :0]) if self.leagues else searched

    @cached_property
    def spent(self) -> front.Spent | None:
        """The search by its first trials; None of a league, whose methods have no budget in common."""
        return None if self.leagues else front.Spent.of(self.searched)

    @cached_property
    def pareto_front(self) -> Table | None:
        """The front of the search; None of a league."""
        return None if self.leagues else front.front(self.searched, self.run)

    @cached_property
    def importance(self) -> Table:
        """Which knobs matter, the most important first; without rows where nothing can be said of that."""
        return knobs.importance(self.searched)

    def claims(self) -> Sentences:
        """Say what the run does not settle, and what it shows."""
        open_, settled = tables.answer(self.run, self.main, of_design=self.of_design())
        return open_, [*settled, *map(unbroken, self.on_search())]

    def on_search(self) -> list[str]:
        """Say what is clear of constraints, the knee and the most important knobs."""
        sentences = trial_tables.constraint_notes(self.searched)
        if self.pareto_front is not None and len(self.pareto_front.frame) and self.pareto_front.frame["knee"].any():
            row = self.pareto_front.frame[self.pareto_front.frame["knee"]].iloc[0]
            sure = f" (in {100 * row['knee_share']:.0f} % of resamples)" if "knee_share" in row else ""
            sentences.append(f"The knee of the search's front is {row['trial_id']}{sure}.")
        ranks = self.importance.frame
        for goal in self.searched.names if len(ranks) else ():
            first = ranks[ranks[f"{goal}_rank_high"] == 1]["knob"].tolist()
            if first:
                trials = int(self.searched.complete.sum())
                words = f"{first[0]} is the most important knob that was searched ({trials} trials, one seed each)"
                sentences.append(f"For {goal.replace('_', ' ')} {words}.")
        return sentences

    def of_design(self) -> Sentences:
        """Say what is open and shown of a league's entries, a factorial's main effects, or a design's cells."""
        if self.over_checkpoints is not None:
            over = self.over_checkpoints
            return league_tables.sentences_over(self.leagues, over) if self.leagues else factorial.sentences_over(over)
        if self.leagues:
            return league.sentences(self.leagues[0], self.standings[0])
        if self.cells is None or self.ablation_table is None or self.factorial_table is None:
            return [], []
        if self.cells.design.kind == "factorial":
            return factorial.sentences(self.cells, self.factorial_table)
        return ablation.sentences(self.cells, self.ablation_table)


SECTIONS: tuple[ReportItem, ...] = (
    ReportItem("league_checkpoints", LEAGUE, lambda findings: findings.over_checkpoints if findings.leagues else None),
    ReportItem("league", LEAGUE, lambda findings: league_tables.stacked(findings.leagues, findings.standings)),
    ReportItem("league_pairs", LEAGUE, lambda findings: _of_league(findings, league_tables.pairs), terminal=False),
    ReportItem("league_tuning", LEAGUE, lambda findings: _of_league(findings, league_tables.tuning)),
    ReportItem("league_defaults", LEAGUE, lambda findings: _of_league(findings, league_tables.defaults)),
    ReportItem("win_rate_stability", ROWS, lambda findings: findings.main, without_rows=True),
    ReportItem(
        "pareto",
        ROWS,
        lambda findings: figures.pareto(findings.run, findings.main),
        "Filled: rows of the table, with its 95 % intervals and the range of S over seeds. Hollow: "
        "trials of the search, measured on other prompts with one seed; the line is their front in these two measures.",
    ),
    ReportItem(
        "ablation_checkpoints", ABLATION, lambda findings: None if findings.leagues else findings.over_checkpoints
    ),
    ReportItem("ablation", ABLATION, lambda findings: findings.ablation_table),
    ReportItem(
        "sensitivity",
        ABLATION,
        lambda findings: _of_design(findings, _sensitivity, "sensitivity", "exponent"),
        "What each knob does around the center, whose own value is the diamond. Bars: 95 % intervals as in "
        "the tables. Hollow: the 95 % interval of the difference to the center covers 0.",
    ),
    ReportItem("factorial", "Effects of the components", lambda findings: findings.factorial_table),
    ReportItem(
        "beside_the_paper", "Beside the paper", lambda findings: _of_design(findings, ablation.beside_the_paper)
    ),
    ReportItem("stability_parts", STABILITY, lambda findings: stability.stability_parts(findings.run, findings.main)),
    ReportItem(
        "logprob_curves",
        TRAINING,
        lambda findings: figures.logprob_curves(findings.run, findings.main, findings.search_trials),
        "Mean log-probability per token of held-out chosen and rejected completions during training; "
        "bands span the seeds. A chosen curve that falls is unlearning.",
    ),
    ReportItem("alarms", "The sentinel", lambda findings: trial_tables.alarms(findings.run)),
    ReportItem(
        "judging", "The judging", lambda findings: judging.judging(findings.run, findings.main, findings.difficulties)
    ),
    ReportItem(
        "corrected",
        "The judging",
        lambda findings: (
            None if findings.labels is None else adjusted.corrected(findings.run, findings.main, findings.labels)
        ),
        without_rows=True,
    ),
    ReportItem("panel", "The judging", lambda findings: judging.panel(findings.run, findings.main)),
    ReportItem("agreement", "The judging", lambda findings: judging.agreement(findings.run)),
    ReportItem("search_trials", SEARCH, lambda findings: findings.search_trials, terminal=False),
    ReportItem(
        "search_winners", SEARCH, lambda findings: trial_tables.winners(findings.run, findings.searched, findings.main)
    ),
    ReportItem("search_front", SEARCH, lambda findings: findings.pareto_front),
    ReportItem("search_importance", SEARCH, lambda findings: findings.importance),
    ReportItem(
        "search_slices",
        SEARCH,
        lambda findings: _slices(findings),
        "Every completed trial of the search, the most important knobs first; later trials lighter, the front ringed.",
        paper=True,
    ),
    ReportItem(
        "search_budget",
        SEARCH,
        lambda findings: findings.spent and front.budget_curve(findings.searched, findings.spent),
        terminal=False,
    ),
    ReportItem(
        "search_budget",
        SEARCH,
        lambda findings: findings.spent and front.budget_figure(findings.searched, findings.spent),
        "Blue: the search as it went. Orange: the expected best of as many of its trials at random, "
        "with 95 % up to a fifth of them.",
    ),
    ReportItem("cost", "Budget and cost", lambda findings: trial_tables.cost(findings.run), terminal=False),
    ReportItem(
        "failures", LOST, lambda findings: trial_tables.failures(findings.run), without_rows=True, terminal=False
    ),
)


def made(findings: Findings, items: Sequence[ReportItem] = SECTIONS) -> Iterator[tuple[ReportItem, "Table | Figure"]]:
    """Yield the tables and figures that this run has, in the order of the page. items: those to make."""
    for item in items:
        thing = item.make(findings)
        if isinstance(thing, Table) and thing.frame.empty and not item.without_rows:
            continue
        if thing is not None:
            yield item, thing


def _of_league(findings: Findings, make: Callable[[Standings], Table]) -> Table | None:
    return league_tables.stacked(findings.leagues, [make(league) for league in findings.leagues])


def _of_design(findings: Findings, make: Callable[[Cells, Table], ItemContent], *kinds: str) -> ItemContent:
    """Make an item of a design's cells and their table; None where the run has no design of these kinds."""
    if findings.cells is None or findings.ablation_table is None or (kinds and findings.cells.design.kind not in kinds):
        return None
    return make(findings.cells, findings.ablation_table)


def _sensitivity(cells: Cells, table: Table) -> ItemContent:
    return figures.sensitivity(cells.design, cells.rate, table)


def _slices(findings: Findings) -> ItemContent:
    """Draw the slices where trials and knobs are enough; the most important knobs first."""
    paths = [knob.path for knob in findings.searched.knobs]
    if not paths or findings.searched.complete.sum() < 2:
        return None
    ranked = findings.importance.frame["path"] if len(findings.importance.frame) else ()
    return knobs.slices(findings.searched, [paths.index(path) for path in dict.fromkeys([*ranked, *paths])])


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, its tables, and these as a terminal shows them."""

    html: Path
    folder: Path
    files: tuple[Path, ...]
    text: str
    tables_by_name: Mapping[str, Table]

    def json(self) -> str:
        """Write where the report is and the unrounded numbers of its tables, for a script."""
        numbers = {name: json.loads(table.json()) for name, table in self.tables_by_name.items()}
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
        placed_tables = {item.name: table for item, table in placed}
        files["paper.tex"] = methods.paper(findings.run, findings.main, placed_tables).encode()
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
    return build_page(findings.run, findings.main, findings.searched, findings.claims(), things)


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
    page = build_page(findings.run, findings.main, findings.searched, findings.claims(), placed)
    files["report.html"] = page.encode()
    return files, [(item, thing) for item, thing in placed if isinstance(thing, Table)]
