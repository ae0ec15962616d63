"""A design's cells: each beside its reference, what may be said of it, and the paper's table of the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from slime_ray.config.design import COMPONENTS, Cell, Design
from slime_ray.runs import results

from . import effects, rows, stability, statistics, tables
from .effects import REFERENCE, Claim
from .printing import Column, Sentences, Table, cells, empty, interval_cells, measure, names, number, numbers, p_words
from .rows import METRICS, PARTS, Outcomes, baseline_of, judge_of, name_of, version_of
from .statistics import FEWEST_SEEDS, interval_names

TERMS = ("anchor", "stabilizer", "margin")
"""Of SLIME's loss, in the order of the paper; other terms follow by name."""
SHARE, PAST = "gradient_share.", "past_hard_margin"
AS_PRINTED = "[as printed, most likely 90 %]"
"""What the paper's intervals are: its column is headed "Std", and says no more of them."""
SLIME = {"slime", "slime-released"}
"""Objectives whose parts the paper's tables are about; others may have an anchor too, which is another one."""


@dataclass(frozen=True)
class Cells:
    """The cells of a design with their outcomes by label, of which those not measured are absent.

    rates: seeds and their (seeds, items) outcomes: prompts for the win rate, held-out pairs for accuracy; items in the
    same order for all cells, NaN where there is none. stabilities: seeds and their (seeds,) S, 0 for seeds that failed
    or diverged. rate: which of METRICS `rates` holds. planned: the seeds that were asked for.
    """

    run: results.Run
    design: Design
    rate: str
    rates: dict[str, Outcomes]
    stabilities: dict[str, Outcomes]
    planned: tuple[int, ...]
    ends: dict[tuple[str, int], str]
    """How trials ended that have no outcomes, by label and seed."""
    topics: np.ndarray | None = None
    """(prompts,) of a win rate, where the prompts come in topics."""

    @classmethod
    def of(cls, run: results.Run, design: Design) -> "Cells":
        """Collect a run's cells: win rates, or accuracy where the design is about it or nothing was judged."""
        trials = run.trials[run.trials["phase"] == "arm"]
        rate, rates, topics = rows.rates_by_label(run, accuracy=design.metric == "preference_accuracy")
        lost = trials[~trials["status"].isin(rows.MEASURED)].set_index(["label", "seed"])
        ends: Any = lost["status"] + (": " + lost["reason"].astype("string")).fillna("")
        planned = tuple(run.manifest.get("seeds") or sorted(trials["seed"].unique().tolist()))
        return cls(run, design, rate, rates, rows.stabilities_by_label(trials), planned, ends.to_dict(), topics)

    @property
    def metric(self) -> str | None:
        """What the design is about, or None where it was not measured: then nothing is tested."""
        return self.design.metric if self.design.metric in (self.rate, "stability") else None

    def outcomes(self, metric: str) -> dict[str, Outcomes]:
        """Return the outcomes by `stability`, or by the rate."""
        return self.stabilities if metric == "stability" else self.rates

    def difference(self, cell: Cell, metric: str) -> np.ndarray | None:
        """Return a cell's outcomes minus its reference's, (seeds, items) or (seeds,); None without any in common."""
        outcomes = self.outcomes(metric)
        if cell.label not in outcomes or cell.reference not in outcomes:
            return None
        return rows.difference(outcomes[cell.label], outcomes[cell.reference])

    def topics_of(self, labels: Iterable[str], metric: str) -> np.ndarray | None:
        """Return the topics of the prompts that these cells share; None where there are none."""
        if metric == "stability" or not self.rates.keys() >= set(labels):
            return None
        return rows.shared_topics([self.rates[label] for label in labels], self.topics)

    def claims(self, cells: Sequence[Cell]) -> dict[str, Claim]:
        """Test cells against their references by the design's metric, corrected together; by label."""
        metric = self.metric
        if metric is None:
            return {}
        return effects.claims(
            {cell.label: self.difference(cell, metric) for cell in cells},
            {cell.label: self.topics_of((cell.label, cell.reference), metric) for cell in cells},
        )

    def missing(self, cells: Iterable[Cell], metric: str) -> list[str]:
        """Say for every cell that lacks a planned seed which it lacks, and why."""
        outcomes, phrases = self.outcomes(metric), []
        for cell in cells:
            measured_seeds = outcomes[cell.label][0] if cell.label in outcomes else []
            seeds_by_end: dict[str, list[str]] = {}
            for seed in self.planned:
                if seed not in measured_seeds:
                    seeds_by_end.setdefault(self.ends.get((cell.label, seed), "not measured"), []).append(str(seed))
            phrases += [
                f"{cell.label} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} ({end})"
                for end, seeds in seeds_by_end.items()
            ]
        return phrases


def ablation(design_cells: Cells, main: Table) -> Table:
    """Return a row per cell, its center's reference first.

    In `frame` rates and differences are shares (0..1). `p` and `verdict` are of the design's metric, corrected over all
    comparisons of the table; `p_<test>` are the corrected p-values of effects.TESTS one by one.
    """
    design = design_cells.design
    claims = design_cells.claims([cell for cell in design.cells if cell.label != cell.reference])
    activity = _activity(design_cells.run)
    main_rows = main.by("label")
    frame = pd.DataFrame(
        _row(design_cells, cell, main_rows.get(cell.label, {}), claims.get(cell.label), activity)
        for center in design.centers
        for cell in sorted(design.around(center), key=lambda cell: cell.label != cell.reference)
    )
    for _, around in frame.groupby("center", sort=False):
        rates = dict(zip(around["label"], around[design_cells.rate], strict=True))
        frame.loc[around.index, "mark"] = tables.best_marks(rates, design_cells.rates, design_cells.topics)
    return Table(
        frame=frame,
        caption=_caption(design_cells),
        notes=_notes(design_cells, frame),
        columns=_columns(design_cells, frame),
        remarks=tuple(frame["note"]),
    )


def _row(
    design_cells: Cells,
    cell: Cell,
    main_row: dict[Any, Any],
    claim: Claim | None,
    activity: dict[str, dict[str, float]],
) -> dict[str, Any]:
    is_reference = cell.label == cell.reference
    rate, score = (
        None if is_reference else design_cells.difference(cell, metric) for metric in (design_cells.rate, "stability")
    )
    topics = None if rate is None else design_cells.topics_of((cell.label, cell.reference), design_cells.rate)
    intervals = {
        "difference": None if rate is None else effects.interval(rate, topics),
        "improvement": None if rate is None else effects.improvement(rate, topics),
        "stability_difference": None if score is None else effects.interval(score),
    }
    if outcomes := design_cells.rates.get(cell.label):
        # The main table has intervals of win rates alone.
        main_row |= statistics.columns({design_cells.rate: statistics.row_interval(outcomes[1], design_cells.topics)})
    settling = None if claim is None else claim.settling
    untested = "not measured" if design_cells.metric else f"not tested: no {METRICS[design_cells.design.metric]}"
    planned, compared = len(design_cells.planned), 0 if rate is None else len(rate)
    fewer = f"compared on {compared} of {planned} seeds" if 0 < compared != planned else ""
    shares = [f"{name}_share" for name in PARTS]
    of_main = ["stability_min", "stability_max", *interval_names("stability"), *PARTS, *shares]
    return {
        "center": cell.center,
        "variant": cell.variant,
        "label": cell.label,
        "control": cell.control,
        "seeds": len(design_cells.rates.get(cell.label, ([], None))[0]),
        "compared_seeds": compared,
        **{end: main_row.get(end, np.nan) for end in interval_names(design_cells.rate)},
        **statistics.columns(intervals),
        **effects.p_columns(claim),
        "d_z": np.nan if claim is None or claim.of_checkpoints else claim.d_z,
        **{name: main_row.get(name, np.nan) for name in of_main},
        **activity.get(cell.label, {}),
        "seeds_to_settle": None if settling is None else settling.seeds,
        "prompts_to_settle": None if settling is None else settling.prompts,
        "verdict": REFERENCE if is_reference else untested if claim is None else claim.verdict,
        "note": "; ".join(filter(None, [main_row.get("note", ""), "control" if cell.control else "", fewer])),
    }


def _activity(run: results.Run) -> dict[str, dict[str, float]]:
    """Return by label the mean share of pairs past the hard margin, and of each term's gradient, at the last step."""
    curves = run.curves[(run.curves["source"] == "held_out") & (run.curves["phase"] == "arm")]
    curves = curves[(curves["metric"] == PAST) | curves["metric"].str.startswith(SHARE)]
    if curves.empty:
        return {}
    last = curves.sort_values("step", kind="stable").groupby(["label", "trial_id", "metric"])["value"].last()
    means = last.groupby(level=["label", "metric"]).mean().unstack("metric")
    records: dict[Any, dict[Any, float]] = {label: row.dropna().to_dict() for label, row in means.iterrows()}
    return records


def _columns(design_cells: Cells, frame: pd.DataFrame) -> tuple[Column, ...]:
    rate = METRICS[design_cells.rate]
    several = frame["center"].nunique() > 1
    terms = [name.removeprefix(SHARE) for name in frame.columns if name.startswith(SHARE)] or list(TERMS)
    terms.sort(key=lambda term: (TERMS.index(term) if term in TERMS else len(TERMS), term))
    tested = (
        Column("corrected p", cells(frame, lambda row: p_words(row["p"])), keep=9),
        Column("d_z", numbers(frame, "d_z", 2, signed=True), keep=5, words="effect size d_z"),
    )
    by_score = design_cells.metric == "stability"
    rates = interval_cells(frame, design_cells.rate, 1, scale=100)
    return (
        names("variant", frame),
        *((names("around", frame, "center"),) if several else ()),
        Column("seeds", tuple(map(str, frame["seeds"])), keep=5),
        Column(f"{rate} % [95 %]", rates, tuple(frame["mark"]), keep=8),
        Column("difference", interval_cells(frame, "difference", 1, scale=100), keep=9),
        *(() if by_score else tested),
        Column("P(better) %", numbers(frame, "improvement", 1, scale=100), keep=4),
        Column("S", cells(frame, stability.stability_cell), keep=7, words="stability S"),
        Column("S difference", interval_cells(frame, "stability_difference"), keep=7),
        *(tested if by_score else ()),
        *stability.part_columns(frame, keep=3),
        Column("past m_h %", numbers(frame, PAST, 0, scale=100), keep=2, words="past the hard margin %"),
        *(_gradient_column(frame, term) for term in terms),
        names("verdict", frame),
    )


def _gradient_column(frame: pd.DataFrame, term: str) -> Column:
    share, words = SHARE + term, f"{term} %"
    bars = tuple(frame[share]) if share in frame else (np.nan,) * len(frame)
    shares = numbers(frame, share, 0, scale=100)
    return Column(f"{term} grad. %", shares, keep=1, words=words, group="gradient by term", bars=bars)


def _caption(design_cells: Cells) -> str:
    run, design = design_cells.run, design_cells.design
    items = max((values.shape[1] for _, values in design_cells.rates.values()), default=0)
    where = f"accuracy on {items} held-out pairs (nothing was judged)"
    if design_cells.rate == "win_rate":
        where = f"win rate against {baseline_of(run)}'s answers on {items} report prompts, judge {judge_of(run)}"
    return (
        f"{name_of(run)}: {design.kind.replace('_', ' ')} around {', '.join(design.centers)}, each cell minus "
        f"{design.reference(design.centers[0]).variant} in points: {where}. Declared metric: {METRICS[design.metric]}."
    )


def _notes(design_cells: Cells, frame: pd.DataFrame) -> list[str]:
    compared = frame[frame["compared_seeds"] > 0]["compared_seeds"]
    planned = ", ".join(map(str, design_cells.planned))
    notes = [f"Stability S by {version_of(design_cells.run)}. Seeds {planned}.", *rows.few_seeds_notes(compared)]
    if missing := design_cells.missing(design_cells.design.cells, design_cells.rate):
        notes.append(
            f"Missing: {'; '.join(missing)}. Nothing is averaged over that: a comparison is of the seeds and items "
            "that both of its cells have."
        )
    if design_cells.metric is None:
        notes.append(
            f"The design is about the {METRICS[design_cells.design.metric]}, which was not measured: nothing is tested."
        )
    elif (compared >= FEWEST_SEEDS).any():
        flips = f", {effects.FLIPS:,} sign flips over prompts and the t over seeds and prompts all stay"
        comparisons = sum(cell.label != cell.reference for cell in design_cells.design.cells)
        notes.append(
            f'"matters": the paired t over seeds{" stays" if design_cells.metric == "stability" else flips} below '
            f"{effects.LEVEL} after Holm's correction over all {comparisons} comparisons of this table; corrected p is "
            'the largest. "not settled: about N seeds": with so many four of five such runs would settle it, were the '
            "true difference the observed one. That it is not settled is no evidence of no difference."
        )
        if frame["prompts_to_settle"].notna().any():
            notes.append("Where prompts are named too, no number of seeds would do on those that there are.")
        if design_cells.design.kind == "factorial":
            notes.append(
                "What a factorial design declares are its main effects, which have a table and a correction of their "
                "own."
            )
        notes += rows.seeds_behind_claims(frame["verdict"], compared)
    notes += rows.topic_notes(design_cells.run) if design_cells.rate == "win_rate" else []
    notes.append(
        f"Differences: 95 % interval over prompts and, from {FEWEST_SEEDS} seeds on, over seeds (two-way analysis of "
        "variance, random effects); of S by Student's t over seeds. They are of one comparison each, not corrected. "
        "d_z: mean over standard deviation of the seeds' mean differences. P(better): how often the variant does "
        "better than its reference on a prompt with the same seed, ties half."
    )
    notes.append(
        f"Bold {METRICS[design_cells.rate]}: around each center the highest and every row not separable from it. Its "
        "own interval is as of win rates in the main table. U to T: parts of stability. past m_h: share of held-out "
        "pairs past the hard margin at the end; grad.: each term's share of the gradient there."
    )
    if frame["control"].any():
        notes.append("Controls are compared like the cells of the design, and are no part of effects summed over it.")
    return notes


def sentences(
    design_cells: Cells,
    table: Table,
    *,
    of: str = "variant",
    claim: str = "differs from its reference:",
    columns: tuple[str, str] = ("difference", "stability_difference"),
) -> Sentences:
    """Say what a table leaves open, and what it shows, of the design's metric.

    of: the column that names a row. claim: what is said of a row that matters. columns: the differences of rate and S.
    """
    several = len(design_cells.design.centers) > 1
    name, scale, digits, unit = (columns[0], 100, 1, "points")
    if design_cells.metric == "stability":
        name, scale, digits, unit = (columns[1], 1, 2, "of S")
    open_, settled = [], []
    for row in table.frame.to_dict("records"):
        words = f"{row[of]} around {row['center']}" if several else row[of]
        value, low, high = (number(row[end], digits, scale=scale, signed=True) for end in interval_names(name))
        words = f"{words} {claim} {value} {unit} [{low}, {high}]"
        rests = f" ({rows.basis(design_cells.run, row['tested_seeds'], row['tested_items'])})"
        if row["verdict"].startswith("matters"):
            settled.append(f"{words}, corrected p {p_words(row['p'])}{row['verdict'].removeprefix('matters')}{rests}.")
        elif row["verdict"].startswith("not settled"):
            open_.append(f"Whether {words}{rests}; {row['verdict'].partition(': ')[2]}.")
    return open_, settled


@cache
def paper_tables() -> dict[str, Any]:
    """Return the paper's tables (arXiv 2602.02383) by the design that each is of."""
    return yaml.safe_load((Path(__file__).parent / "paper_tables.yaml").read_text(encoding="utf-8"))


def beside_the_paper(design_cells: Cells, table: Table) -> Table:
    """Return the paper's table of this design with ours next to it; empty where the paper has none.

    table: `ablation(design_cells, ...)`. In `frame` the paper's numbers are as printed, ours shares.
    """
    run, design, rate = design_cells.run, design_cells.design, design_cells.rate
    paper = paper_tables().get(design.kind)
    # Table 4 is about parts of SLIME.
    if paper is None or (paper["table"] == 4 and not {*run.trials["objective"]} <= SLIME):
        return empty("The paper has no table of such a design.", "row")
    measured, reference = table.by("label"), _row_of(design.reference(design.centers[0]))
    frame = pd.DataFrame({"row": list(next(iter(paper["models"].values())))})
    columns = [Column("", tuple(map(_words, frame["row"])), numeric=False, keep=10)]
    for model, scores in paper["models"].items():
        padded = [[*score, np.nan, np.nan, np.nan][:4] for score in scores.values()]
        mt_bench, arena_hard, down, up = np.array(padded).T
        base = scores.get(reference, [np.nan])
        less = arena_hard - (base[1] if base[1:] else np.nan)
        columns_of_model = interval_names(f"{model} arena_hard")
        frame[[f"{model} mt_bench", *columns_of_model, f"{model} difference"]] = np.column_stack(
            (mt_bench, arena_hard, arena_hard - down, arena_hard + up, less)
        )
        short = f"{model} " if len(paper["models"]) > 1 else "theirs: "
        intervals = interval_cells(frame, f"{model} arena_hard", 1)
        columns += [
            Column(f"{short}MT", numbers(frame, f"{model} mt_bench"), keep=4, words=f"{short}MT-Bench"),
            Column(f"{short}AH {AS_PRINTED}", intervals, keep=6, words=f"{short}Arena-Hard {AS_PRINTED}"),
            measure(
                f"{short}AH difference",
                frame,
                f"{model} difference",
                1,
                signed=True,
                words=f"{short}Arena-Hard difference",
            ),
        ]
    for center in design.centers:
        labels = {_row_of(cell): cell.label for cell in reversed(design.around(center)) if not cell.control}
        cell_rows = [measured.get(labels.get(name, ""), {"verdict": "not measured"}) for name in frame["row"]]
        ends = [*interval_names(rate, "difference"), "verdict"]
        frame = frame.assign(**{f"{center} {end}": [row.get(end, np.nan) for row in cell_rows] for end in ends})
        short = f"ours, {center}: " if len(design.centers) > 1 else "ours: "
        columns += [
            Column(f"{short}{METRICS[rate]} [95 %]", interval_cells(frame, f"{center} {rate}", 1, scale=100), keep=9),
            Column(f"{short}difference", interval_cells(frame, f"{center} difference", 1, scale=100), keep=8),
            names(f"{short}verdict", frame, f"{center} verdict", keep=7),
        ]
    against = f" against {baseline_of(run)}'s answers, judge {judge_of(run)}" if rate == "win_rate" else ""
    return Table(
        frame=frame.assign(row=frame["row"].map(_words)),
        caption=f"Table {paper['table']} of the paper (arXiv 2602.02383) beside {name_of(run)}. Differences in points, "
        f"each row minus {_words(reference)}.",
        notes=[
            f"Theirs, as printed: MT-Bench (MT) and Arena-Hard (AH) of {', '.join(paper['models'])}. Ours: "
            f"{METRICS[rate]} in %{against}, seeds {', '.join(map(str, design_cells.planned))}.",
            *rows.few_seeds_notes(table.frame["compared_seeds"]),
            "These are not one measure: other models, data, prompts, judges and baselines. What can be compared is "
            "which rows come first, and whether a difference leaves 0 out.",
            "Theirs: one training run a row. The intervals are as printed, under the head Std, and most likely 90 %: "
            "since its version 2.0 Arena-Hard's script prints the 5th and 95th percentile of 100 resamples of single "
            "votes. Their differences are those of the printed scores; the intervals of these are not known.",
            "Ours: intervals and verdicts as in the ablation table, with its notes.",
        ],
        columns=tuple(columns),
    )


def _row_of(cell: Cell) -> Any:
    """Return which row of the paper's tables a cell is: the exponent, its one missing component, or a method."""
    exponents = [value for path, value in cell.levels.items() if path.endswith("stabilizer_exponent")]
    if exponents or not cell.levels:
        return exponents[0] if exponents else cell.variant
    lacking = [component for component, present in cell.levels.items() if not present]
    return "full" if not lacking else lacking[0] if len(lacking) == 1 else None


def _words(name: Any) -> str:
    if isinstance(name, (int, float)):
        return f"p = {float(name)}"
    return f"without {name.replace('_', ' ')}" if name in COMPONENTS else str(name)
