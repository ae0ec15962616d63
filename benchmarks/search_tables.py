"""Tables of the benchmarks of searches."""

import statistics
from typing import TYPE_CHECKING

from slime_ray.planning.tables import table

if TYPE_CHECKING:
    from .search import SearchReport
    from .search_cost import SearchCostReport


def search_tables(report: "SearchReport") -> str:
    """`bench search` in text."""
    machine, best = report.machine, report.truth[:5]
    cells = [
        (
            f"{cell.place}",
            ", ".join(f"{path.rpartition('.')[2]} {value:g}" for path, value in cell.values.items()),
            f"{100 * cell.win_rate:.1f}",
            f"{cell.stability:.2f}",
        )
        for cell in best
    ]
    found = [
        (
            one.searcher,
            one.rule,
            f"{one.workers}",
            f"{one.best}/{one.seeds}",
            f"{one.top}/{one.seeds}",
            f"{one.share:.1%}",
            f"{one.most:.1%}",
            f"{one.trials:.1f}",
            f"{one.stopped:.1f}",
        )
        for one in report.found
    ]
    volumes = [
        (
            f"{one.searcher}, {one.on}",
            f"{one.trials}",
            f"{statistics.fmean(one.volumes):.3f}",
            f"{statistics.fmean(one.random):.3f}",
            f"{one.above}/{len(one.volumes)}",
            f"{one.tokens:.0%}",
            f"{statistics.fmean(one.alike):.3f}",
            f"{one.above_alike}/{len(one.volumes)}",
        )
        for one in report.volumes
    ]
    return "\n\n".join(
        [
            f"Searches over {report.recorded} recorded trials of the embedded task arithmetic, played on "
            f"{machine.processor}, {machine.cores} cores; {report.date}",
            f"The best of {len(report.truth)} cells, in the order in which a sweep would confirm them.",
            table(("", "cell", "win %", "S"), cells),
            "The grid searched, each cell trained with one seed. Found: what the search would confirm first is truly "
            "the best cell, or one of the two best.",
            table(
                ("searcher", "early stopping", "workers", "best", "top 2", "tokens", "most", "trials", "stopped"), found
            ),
            "Hypervolume of win rate and stability, one trial after another, beside random search of the same seed.",
            table(("searcher", "trials", "volume", "random", "above", "tokens", "random alike", "above"), volumes),
            "Tokens: trained, as a share of what the same trials take without a stop; most: of the search that took "
            "the most. Random alike: random search, ended where it has taken as many tokens.",
        ]
    )


def search_cost_table(report: "SearchCostReport") -> str:
    """`bench search-cost` in text."""
    machine = report.machine
    rows = [
        (
            cost.sampler,
            f"{at.upto:,}",
            *(f"{1000 * seconds:.1f}" for seconds in (at.wall, at.cpu, at.drawing, at.writing, at.longest)),
            f"{cost.draws:.2f}",
        )
        for cost in report.costs
        for at in cost.stretches
    ]
    titles = ("sampler", "trials", "ms", "CPU ms", "drawing", "writing", "longest", "draws")
    return "\n\n".join(
        [
            f"The driver's cost of a trial, two goals, 5 knobs and a requirement, on {machine.processor}, "
            f"{machine.cores} cores; Optuna {report.optuna}, {report.date}; {report.rounds} rounds",
            table(titles, rows),
            f"Milliseconds a trial, means over the {report.stretch} trials up to that number: by the wall, by the CPU, "
            "and of the wall's in the sampler and in the study's file, where each entry waits for the disk; the "
            "longest single trial; draws for each trial, those that broke the requirement included.",
            f"Early stopping by two goals adds {1000 * report.rule:.1f} ms a trial, for up to ten evaluations.",
        ]
    )
