"""The key `across`: every entry of a league, or cell of a design, from each of several SFT checkpoints.

What is run from a checkpoint carries it in its label, so that ids, resuming and the plan need to know nothing of it.
"""

from collections.abc import Iterator, Mapping, Sequence

from slime_ray.config.design import Design
from slime_ray.config.league import League
from slime_ray.config.settings import Settings
from slime_ray.config.yaml_source import KeyPath

SFT_SEED = "sft.seed"


def complaints(
    across: Mapping[str, Sequence[int]], settings: Settings, arms: Mapping[str, Settings], *, compared: bool
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong with the key, each with its place.

    Args:
        across: Seeds by path, as the file has them.
        settings: Of `base`.
        arms: Settings of each arm, by label.
        compared: Whether there is a league or a design.
    """
    if across and not compared:
        yield ("across",), "only entries of a `league` and cells of `ablate` are run across checkpoints. Leave it out"
    for path, seeds in across.items():
        if path != SFT_SEED:
            yield (
                ("across", path),
                f"across.{path}: there is {SFT_SEED} alone, as across: {{{SFT_SEED}: [0, 1, 2]}}. Leave {path} out",
            )
        elif settings.sft is None:
            yield ("across", path), "sft is null, so there are no SFT checkpoints. Leave across out, or set sft"
        elif len(seeds) < 2:
            yield ("across", path), f"across.{path} needs two seeds or more. For one checkpoint set {path} in base"
    for label, own in arms.items():
        if across and own.sft != settings.sft:
            sentence = f"arm {label} has an sft of its own, and across runs it from every checkpoint"
            yield ("across",), f"{sentence}. Leave sft out of the arm"


def label_at(label: str, seed: int) -> str:
    """The label of an entry, arm or center that starts from the checkpoint of this seed."""
    return f"{label}-sft{seed}"


def league_across(league: League, seeds: Sequence[int]) -> League:
    """The league with every entry at every checkpoint."""
    entries = [
        entry.model_copy(
            update={"label": label_at(entry.label, seed), "set": {**entry.set, SFT_SEED: seed}, "sft_seed": seed}
        )
        for seed in seeds
        for entry in league.entries
    ]
    return league.model_copy(update={"entries": entries})


def design_across(design: Design, seeds: Sequence[int]) -> Design:
    """The design with every center at every checkpoint, where its cells are compared."""
    cells = [
        cell.model_copy(
            update={name: label_at(getattr(cell, name), seed) for name in ("label", "center", "reference")}
            | {"sft_seed": seed}
        )
        for seed in seeds
        for cell in design.cells
    ]
    return Design(kind=design.kind, cells=cells, metric=design.metric)
