"""A league in sentences: who is best in what, who is not separable, what a larger budget would change."""

import numpy as np

from .front import expected_best
from .knobs import unit_of
from .league import Standings
from .printing import Sentences, Table, number
from .rows import basis


def sentences(found: Standings, table: Table) -> Sentences:
    """What a league leaves open, and what it says: who is not separable, who is best, what more would change."""
    frame = table.frame.dropna(subset=[found.rate])
    open_: list[str] = []
    settled: list[str] = []
    for row in table.frame[table.frame[found.rate].isna()].to_dict("records"):
        open_.append(f"How {row['entry']} does: {row['note'].removesuffix('.') or 'nothing of it was confirmed'}.")
    if frame.empty:
        return open_, settled
    unit = unit_of(found.rate)[0].removesuffix(" %")
    first = frame.iloc[0]
    ends = ", ".join(number(first[f"{found.rate}_{end}"], 1, scale=100) for end in ("low", "high"))
    shown = f"{number(first[found.rate], 1, scale=100)} % [{ends}]"
    outcomes = found.of_entry(str(first["entry"]))
    rests = "" if outcomes is None else f" ({basis(found.run, *outcomes[1].shape, label=str(first['winner']))})"
    settled.append(f"Highest {unit}: {first['entry']} with {shown}, at stability {number(first['stability'])}{rests}.")
    scored = frame.dropna(subset=["stability"])
    steady = scored.sort_values("stability", ascending=False, kind="stable").iloc[0] if len(scored) else None
    if steady is not None:
        settled.append(
            f"Highest stability: {steady['entry']} with {number(steady['stability'])}, at a {unit} of "
            f"{number(steady[found.rate], 1, scale=100)} % ({basis(found.run, int(steady['seeds_finished']), 0)})."
        )
    if not found.claims:
        open_.append("Which entries differ: no two of them have confirmed seeds in common.")
        return open_, settled
    if found.few:
        open_.append("Which entries differ: with so few seeds it is about these checkpoints only.")
        return open_, settled
    for name, label, claims in (
        (unit, str(first["entry"]), found.claims),
        ("stability", "" if steady is None else str(steady["entry"]), found.stability_claims),
    ):
        beside = [one for pair, claim in claims.items() if label in pair and not claim.matters for one in pair]
        if others := [one for one in frame["entry"] if one in beside and one != label]:
            open_.append(f"Which is best of {', '.join([label, *others])}: they are not separable by {name}.")
        apart = sum(claim.matters for claim in claims.values())
        made = [one.effect for one in claims.values()]
        least = made and (min(one.seeds for one in made), min(one.prompts for one in made))
        rests = f" (at least {basis(found.run, *least)} each)" if least else ""
        settled.append(f"{apart} of {len(found.differences)} pairs are separable by {name}{rests}.")
    near = {pair: claim for pair, claim in found.claims.items() if not claim.matters}
    three = 3 * found.league.seeds
    more = [
        " and ".join(pair)
        for pair, claim in near.items()
        if claim.settling and claim.settling.seeds and claim.settling.seeds <= three and claim.settling.prompts is None
    ]
    if near:
        which = f"{len(more) or 'none'} of the {len(near)} open pairs would be"
        named = f" ({'; '.join(more[:4])}{'; ...' if len(more) > 4 else ''})" if more else ""
        open_.append(
            f"With three times the seeds ({three}) {which} settled in four of five tries{named}, were the differences "
            "those seen here."
        )
    open_.append(f"What three times the tuning would change: {more_tuning(found)}")
    return open_, settled


def more_tuning(found: Standings) -> str:
    """By how much the expected best still rises from a third of the trials to all of them."""
    rises = []
    for label in found.members:
        values = found.searched(label)
        if len(values) >= 3:
            best = expected_best(values)
            rises.append((100 * float(best[-1] - best[len(values) // 3 - 1]), label))
    if not rises:
        return "too few trials completed to say."
    rise, label = max(rises)
    middle = np.median([one for one, _ in rises])
    return (
        f"from a third of the trials to all of them the expected best rose by {middle:.1f} points in the median entry "
        f"and by {rise:.1f} in {label}. That is on the selection prompts, where luck raises it too, and three times "
        "the trials were not measured."
    )
