"""Whether what holds from one SFT checkpoint holds from others, of designs and of leagues.

A checkpoint is one draw, above its seeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from slime_ray.config.league import weights_at
from slime_ray.runs.results import Run

from . import effects, factorial_table, statistics
from .ablation_table import METRICS, Cells
from .knobs import unit_of
from .league import Standings
from .league_tables import more_tuning
from .printing import Column, Sentences, Table, cells, interval_cells, number
from .rows import Outcomes, name_of, on_common_seeds
from .statistics import Interval, TwoWay, columns

Draw = np.ndarray
"""(items,) of one checkpoint, means over its seeds, or 0-d of what a seed has one number of; NaN where it has none."""


def draw(row: Outcomes, reference: Outcomes | None = None) -> Draw:
    """Return what one checkpoint says of a row, or of a row minus another on the seeds that both have."""
    if reference is None:
        return np.asarray(row[1].mean(axis=0))
    _, (first, second) = on_common_seeds([row, reference])
    return np.asarray((first - second).mean(axis=0)) if len(first) else np.full(first.shape[1:], np.nan)


def over(draws: Sequence[Draw], topics: np.ndarray | None = None, *, least: float = -1.0) -> Interval | None:
    """Return the mean over checkpoints with Student's interval.

    The interval is over checkpoints and, of the same items, over these. Seeds are no unit here: those of one checkpoint
    say nothing of another's. With one checkpoint there are no ends, and None is returned where none has a value. draws:
    of each checkpoint, with the same items in the same order. topics: (items,) where these come in topics. least: what
    a value is at least, since Student's ends know of no bounds: 0 of rates and of S, -1 of their differences.
    """
    finite = [sample for sample in draws if np.isfinite(sample).any()]
    if not finite:
        return None
    values = np.stack(finite)
    if values.ndim == 1:
        return effects.interval(values).within(least, 1.0)
    values, units = _units(values, topics)
    if not values.size:
        return None
    mean = float(values.mean())
    if min(units.shape) < 2:
        return Interval(mean, np.nan, np.nan)
    error = statistics.difference_error(TwoWay.of(units).error()[0] ** 2, values.shape[1])
    # Not Satterthwaite's degrees: where two or three checkpoints happen to look alike, these are too many.
    return statistics.student_interval(mean, error, len(values) - 1).within(least, 1.0)


def _units(values: np.ndarray, topics: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the (checkpoints, items) values that all have, and those with topics as units."""
    shared = np.isfinite(values).all(axis=0)
    values, topics = values[:, shared], None if topics is None else topics[shared]
    return values, statistics.by_topic(values, topics)


def settling_words(draws: Sequence[Draw], topics: np.ndarray | None = None) -> str:
    """Say how many checkpoints would settle a difference in four of five tries; empty if too little is known."""
    finite = [sample for sample in draws if np.isfinite(sample).any()]
    values = np.stack(finite) if finite else np.empty(0)
    units = values if values.ndim == 1 else _units(values, topics)[1]
    if min(units.shape) < 2:
        return ""
    settling = effects.to_settle(units, effects.LEVEL)
    count = f"about {settling.seeds}" if settling.seeds else f"more than {effects.MOST_SEEDS:,}"
    items = f" and {settling.prompts:,} items" if settling.prompts else ""
    return f"; {count} checkpoints{items} would settle it, were the difference the one seen here"


def agreement(draws: Sequence[Draw], signs: Sequence[float]) -> dict[str, int]:
    """Count the checkpoints whose difference has the sign of its mean, and significantly so.

    signs: Of each checkpoint's significant difference, 0 where it has none.
    """
    means = [float(np.nanmean(sample)) for sample in draws if np.isfinite(sample).any()]
    sign = np.sign(np.mean(means)) if means else 0.0
    return {
        "same_sign": sum(bool(np.sign(mean) == sign != 0) for mean in means),
        "significant": sum(sample == sign != 0 for sample in signs),
        "checkpoints": len(means),
    }


def designs(results: Cells) -> Table | None:
    """Return a row per cell, or per component of a factorial, over checkpoints; None for a single checkpoint."""
    seeds, metric = results.design.sft_seeds, results.metric or results.rate
    if not seeds:
        return None
    rate = metric != "stability"
    scale, digits = (100, 1) if rate else (1, 2)
    rows = []
    topics = results.topics if rate else None
    for center, name, draws, signs in _effects(results) if results.design.kind == "factorial" else _cells(results):
        means = [float(np.nanmean(sample)) if np.isfinite(sample).any() else np.nan for sample in draws]
        rows.append(
            {
                "center": center,
                "effect_of": name,
                **columns({"difference": over(draws, topics)}),
                "each": ", ".join(number(mean, digits, scale=scale, signed=True) for mean in means),
                **agreement(draws, signs),
                "settling": settling_words(draws, topics),
            }
        )
    frame = pd.DataFrame(rows)
    several = frame["center"].nunique() > 1
    return Table(
        frame=frame,
        caption=f"{name_of(results.run)}: what holds from {len(seeds)} SFT checkpoints (sft.seed "
        f"{', '.join(map(str, seeds))}), by {METRICS[metric]}{' in points' if rate else ''}.",
        notes=[
            "over checkpoints: the mean, each checkpoint one draw with the mean of its seeds; 95 % over checkpoints "
            "and, of a rate, its items, one comparison each, not corrected. from each: in the order of the seeds. same "
            "sign: from how many the difference goes the way of the mean. matters: from how many the table of that "
            "checkpoint says so."
        ],
        columns=(
            Column("effect of", tuple(frame["effect_of"]), numeric=False, keep=10),
            *((Column("around", tuple(frame["center"]), numeric=False, keep=10),) if several else ()),
            Column(
                "over checkpoints [95 %]", interval_cells(frame, "difference", digits, scale=scale, signed=True), keep=9
            ),
            Column("from each", tuple(frame["each"]), keep=8),
            Column("same sign", cells(frame, lambda row: f"{row['same_sign']} of {row['checkpoints']}"), keep=8),
            Column("matters", cells(frame, lambda row: f"{row['significant']} of {row['checkpoints']}"), keep=9),
        ),
    )


Effects = Iterator[tuple[str, str, list[Draw], list[float]]]
"""Of each effect its center, its name, and of every checkpoint its values and the sign of what is significant."""


def _cells(results: Cells) -> Effects:
    """Return the cells but the references, each minus its reference."""
    compared = [cell for cell in results.design.cells if cell.label != cell.reference]
    outcomes, claims = results.outcomes(results.metric or results.rate), results.claims(compared)
    for center, variant in dict.fromkeys((cell.home, cell.variant) for cell in compared):
        draws, signs = [], []
        for cell in compared:
            if (cell.home, cell.variant) == (center, variant) and {cell.label, cell.reference} <= outcomes.keys():
                draws.append(draw(outcomes[cell.label], outcomes[cell.reference]))
                claim = claims.get(cell.label)
                signs.append(float(np.sign(claim.difference.value)) if claim and claim.matters else 0.0)
        yield center, variant, draws, signs


def _effects(results: Cells) -> Effects:
    """Return the main effects of a factorial's components."""
    metric = results.metric or results.rate
    outcomes, table = results.outcomes(metric), factorial_table.factorial_effects(results).frame
    column = "stability_effect" if metric == "stability" else "effect"
    significant = table[table["verdict"].str.startswith("matters")]
    signs = {(row["center"], row["effect_of"]): float(np.sign(row[column])) for row in significant.to_dict("records")}
    for home in dict.fromkeys(cell.home for cell in results.design.cells):
        centers = dict.fromkeys(cell.center for cell in results.design.cells if cell.home == home)
        components = tuple(results.design.reference(next(iter(centers))).levels)
        weights, places = factorial_table.effect_weights(components), factorial_table.cells_of(components)
        grids = {}
        for center in centers:
            cells_ = factorial_table.by_components(results.design, center)
            labels = [cells_[place].label for place in places if place in cells_]
            if len(labels) == len(places) and outcomes.keys() >= set(labels):
                grids[center] = on_common_seeds([outcomes[label] for label in labels])[1]
        for name in components:
            draws = [factorial_table.contrast(weights[(name,)], grid).mean(axis=0) for grid in grids.values()]
            yield home, name, list(map(np.asarray, draws)), [signs.get((center, name), 0.0) for center in grids]


def sentences(table: Table) -> Sentences:
    """Say what a design leaves open over checkpoints, and what holds from all: its interval leaves 0 out."""
    open_, settled = [], []
    several = table.frame["center"].nunique() > 1
    for row in table.frame.to_dict("records"):
        around = f" around {row['center']}" if several else ""
        words = (
            f"{row['effect_of']}{around} differs over {row['checkpoints']} SFT checkpoints: {row['each']}; the same "
            f"sign from {row['same_sign']}, and it matters from {row['significant']}"
        )
        if not (row["difference_low"] > 0 or row["difference_high"] < 0):
            open_.append(f"Whether {words}; the interval over checkpoints covers 0{row['settling']}.")
        elif row["same_sign"] < row["checkpoints"]:
            open_.append(f"Whether {words}; it changes between checkpoints.")
        else:
            settled.append(f"{words}.")
    return open_, settled


def of_runs(runs: Sequence[Run], mains: Sequence[Table], differing: Sequence[str]) -> Table | None:
    """Return one row per entry over several leagues; None unless all runs are leagues of the same entries.

    mains: their main tables. differing: what is not the same in these runs, as the caption says it.
    """
    leagues_by_run = [Standings.by_checkpoint(run, main) for run, main in zip(runs, mains, strict=True)]
    leagues = [league for leagues_of_run in leagues_by_run for league in leagues_of_run]
    if not all(leagues_by_run) or any(_winners(league).keys() != _winners(leagues[0]).keys() for league in leagues):
        return None
    if len({league.rate for league in leagues}) > 1:
        return None
    return leagues_over(leagues, f"Not the same in all: {'; '.join(differing) or 'nothing that was recorded'}.")


def leagues_over(leagues: Sequence[Standings], remark: str = "") -> Table:
    """Return one row per method over the leagues of several SFT checkpoints. remark: ends the caption."""
    runs = list({league.run.path: league.run for league in leagues}.values())
    outcomes_by_league = [_winners(league) for league in leagues]
    rates = pd.DataFrame(
        [
            {
                method: np.nan if row is None else np.nanmean(statistics.prompt_means(row[1]))
                for method, row in outcomes.items()
            }
            for outcomes in outcomes_by_league
        ]
    )
    places = rates.rank(axis=1, ascending=False, method="min")
    # Which leagues start from one checkpoint is not known where one of them does not say from which it does.
    starts = [_weights(league) for league in leagues]
    starts = [None] * len(starts) if None in starts else starts
    # An entry that was not confirmed from one of them cannot lead over all.
    everywhere = rates.loc[:, rates.notna().all()].groupby(pd.factorize(np.asarray(starts, dtype=object))[0]).mean()
    leader = None if everywhere.empty else str(everywhere.mean().idxmax())
    frame = pd.DataFrame([_row(str(method), leader, outcomes_by_league, leagues, starts) for method in rates])
    frame["ranks"] = [
        ", ".join("–" if np.isnan(place) else f"{place:.0f}" for place in places[method]) for method in frame["entry"]
    ]
    frame = frame.sort_values(["rate", "entry"], ascending=[False, True], na_position="last").reset_index(drop=True)
    rate, count = unit_of(leagues[0].rate)[0], len(set(starts))
    within, repeated = "", []
    if count < len(leagues):
        within = f" in {len(leagues)} leagues"
        reason = "start from the same SFT checkpoint in part, and those from one are"
        if None in starts:
            reason = "do not all say from which SFT checkpoint they start, so they are"
        repeated = [f"These leagues {reason} one draw, their mean. ranks, behind and separable count leagues."]
    items = "" if _same_items(leagues) is None else " and items"
    return Table(
        frame=frame,
        caption=f"{' and '.join(run.path.name for run in runs)}: {len(frame)} entries from {count} SFT "
        f"checkpoint{'s' * (count > 1)}{within}. {remark}".rstrip(),
        notes=[
            f"{rate} and its difference to {leader or 'a leader, which there is not'}: mean over checkpoints, each of "
            f"which counts as one draw, with Student's t over them{items}; one comparison each, not corrected. Winners "
            "were tuned anew from each, so that the intervals hold tuning too.",
            "ranks: from each checkpoint, in their order. behind: from how many checkpoints the entry is "
            "below the leader; separable: from how many the league's own table tells the two apart that way.",
            *repeated,
        ],
        columns=(
            Column("entry", tuple(frame["entry"]), numeric=False, keep=10),
            Column(f"{rate} [95 %]", interval_cells(frame, "rate", 1, scale=100), keep=9),
            Column("stability S [95 %]", interval_cells(frame, "stability", 2), keep=8),
            Column("ranks", tuple(frame["ranks"]), numeric=False, keep=9),
            Column("to the first [95 %]", interval_cells(frame, "difference", 1, scale=100, signed=True), keep=8),
            Column("behind", cells(frame, lambda row: f"{row['behind']} of {row['checkpoints']}"), keep=7),
            Column("separable", cells(frame, lambda row: f"{row['separable']} of {row['checkpoints']}"), keep=7),
        ),
    )


def _winners(league: Standings) -> dict[str, Outcomes | None]:
    """Return the confirmed outcomes of each method's winner."""
    return {member.entry.method: league.confirmed.get(label) for label, member in league.members.items()}


def _same_items(leagues: Sequence[Standings]) -> tuple[np.ndarray | None] | None:
    """Return the topics of the items that all leagues share; None where they are not known to be the same."""
    first = leagues[0]
    hashes = [(league.run.manifest.get("hashes") or {}).get("prompts_report") for league in leagues]
    alike = len(set(hashes)) == 1 and hashes[0] is not None and first.rate == "win_rate"
    return (first.topics,) if alike or all(league.run is first.run for league in leagues) else None


def _row(
    method: str,
    leader: str | None,
    outcomes_by_league: Sequence[dict[str, Outcomes | None]],
    leagues: Sequence[Standings],
    starts: Sequence[Any],
) -> dict[str, Any]:
    rates = [None if (row := outcomes[method]) is None else draw(row) for outcomes in outcomes_by_league]
    pairs = (
        [(outcomes[method], outcomes[leader]) for outcomes in outcomes_by_league]
        if leader not in (None, method)
        else []
    )
    gaps = [None if row is None or first is None else draw(row, first) for row, first in pairs]
    means = [float(np.nanmean(gap)) for gap in gaps if gap is not None and np.isfinite(gap).any()]
    labels = [{member.entry.method: label for label, member in league.members.items()} for league in leagues]
    claims = [
        league.claims.get((label_of.get(str(leader), ""), label_of[method]))
        for league, label_of in zip(leagues, labels, strict=True)
    ]
    winners = [league.members[label_of[method]].winner for league, label_of in zip(leagues, labels, strict=True)]
    scores = [league.scores.get(winner or "") for league, winner in zip(leagues, winners, strict=True)]
    steady = [None if score is None else draw(score) for score in scores]
    item_topics = _same_items(leagues)
    topics = item_topics[0] if item_topics else None
    draws_by_start = [_mean_by_start(each, starts, items=item_topics is not None) for each in (rates, gaps)]
    return {
        "entry": method,
        **columns(
            {
                "rate": over(draws_by_start[0], topics, least=0.0),
                "difference": over(draws_by_start[1], topics),
                "stability": over(_mean_by_start(steady, starts, items=True), least=0.0),
            }
        ),
        "behind": sum(mean < 0 for mean in means),
        "separable": sum(claim is not None and claim.matters for claim in claims),
        "checkpoints": sum(each is not None for each in rates),
        "settling": settling_words(draws_by_start[1], topics),
    }


def _mean_by_start(draws: Sequence[Draw | None], starts: Sequence[Any], *, items: bool) -> list[Draw]:
    """Average the draws of the leagues from each SFT checkpoint. items: keep the items apart."""
    draws_by_start: dict[Any, list[Draw]] = {}
    for drawn, start in zip(draws, starts if draws else (), strict=True):
        if drawn is not None and np.isfinite(drawn).any():
            draws_by_start.setdefault(start, []).append(drawn if items else np.asarray(np.nanmean(drawn)))
    return [np.asarray(np.mean(each, axis=0)) for each in draws_by_start.values()]


def _weights(league: Standings) -> Any:
    """Return the hash of the SFT checkpoint that a league starts from."""
    hashes = league.run.manifest.get("hashes") or {}
    weights = None if league.sft_seed is None else hashes.get(weights_at(league.sft_seed))
    recorded = weights or hashes.get("sft_weights") or hashes.get("sft_checkpoint")
    return recorded or (None if league.sft_seed is None else f"sft.seed {league.sft_seed}")


def stacked(leagues: Sequence[Standings], tables: Sequence[Table]) -> Table | None:
    """Stack the tables of the checkpoints' leagues, with a column for the checkpoint; None without any."""
    parts = [(league.sft_seed, table) for league, table in zip(leagues, tables, strict=True)]
    if len(parts) < 2:
        return parts[0][1] if parts else None
    first = next((table for _, table in parts if table.columns), parts[0][1])
    parts = [(seed, table) for seed, table in parts if table.columns]
    if not parts:
        return first
    seeds = [seed for seed, table in parts for _ in range(len(table.frame))]
    stacked_columns = [
        replace(
            column,
            cells=tuple(cell for _, table in parts for cell in table.columns[place].cells),
            marks=tuple(mark for _, table in parts for mark in table.columns[place].marks),
        )
        for place, column in enumerate(first.columns)
    ]
    return replace(
        first,
        frame=pd.concat([table.frame for _, table in parts], ignore_index=True).assign(sft_seed=pd.Series(seeds)),
        notes=list(dict.fromkeys(note for _, table in parts for note in table.notes)),
        columns=(stacked_columns[0], Column("sft.seed", tuple(map(str, seeds)), keep=10), *stacked_columns[1:]),
        remarks=tuple(remark for _, table in parts for remark in table.remarks),
    )


def league_sentences(leagues: Sequence[Standings], table: Table) -> Sentences:
    """Say what leagues from several checkpoints leave open, and what holds from all of them."""
    frame = table.frame.dropna(subset=["rate"])
    open_ = [f"How {entry} does: it was confirmed from no checkpoint." for entry in table.frame["entry"][len(frame) :]]
    if frame.empty:
        return open_, []
    unit, first = unit_of(leagues[0].rate)[0].removesuffix(" %"), frame.iloc[0]
    settled = [
        f"Highest {unit} over {len(leagues)} SFT checkpoints: {first['entry']} with "
        f"{number(first['rate'], 1, scale=100)} %."
    ]
    for row in frame.iloc[1:].to_dict("records"):
        words = (
            f"{row['entry']} is behind {first['entry']}: {number(row['difference'], 1, scale=100, signed=True)} points "
            f"[{number(row['difference_low'], 1, scale=100, signed=True)}, "
            f"{number(row['difference_high'], 1, scale=100, signed=True)}] over checkpoints, behind from "
            f"{row['behind']} of {row['checkpoints']}, separable from {row['separable']}"
        )
        holds = row["difference_high"] < 0 and row["behind"] == len(leagues)
        (settled if holds else open_).append(f"{words}." if holds else f"Whether {words}{row['settling']}.")
    more = {league.sft_seed: more_tuning(league).removesuffix(".") for league in leagues}
    alike = len(set(more.values())) == 1
    words = "; ".join(dict.fromkeys(text if alike else f"sft.seed {seed}: {text}" for seed, text in more.items()))
    return [*open_, f"What three times the tuning would change: {words}."], settled
