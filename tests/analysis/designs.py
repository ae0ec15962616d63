"""Runs of designs made by hand: cells with known outcomes, as frames, without files."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from slime_ray.config.design import COMPONENTS, Cell, Design
from slime_ray.runs import results, schema

from .conftest import VERDICTS


def leave_one_out(centers: Sequence[str] = ("base",), **design: Any) -> Design:
    """The full objective and each component left out, around each center; labels as the command makes them."""
    cells = []
    for center in centers:
        prefix = "" if len(centers) == 1 else f"{center}-"
        for gone in (None, *COMPONENTS):
            variant = "full" if gone is None else f"without-{gone.replace('_', '-')}"
            levels = {component: component != gone for component in COMPONENTS}
            cells.append(
                cell(prefix + variant, center=center, variant=variant, reference=f"{prefix}full", levels=levels)
            )
    return Design(kind="leave_one_out", cells=cells, **design)


def factorial(components: Sequence[str] = COMPONENTS, **design: Any) -> Design:
    """All combinations of the components."""
    cells = []
    for present in product((True, False), repeat=len(components)):
        gone = [name.replace("_", "-") for name, there in zip(components, present, strict=True) if not there]
        label = "-".join(["without", *gone]) if gone else "full"
        cells.append(cell(label, reference="full", levels=dict(zip(components, present, strict=True))))
    return Design(kind="factorial", cells=cells, **design)


def knobs(kind: Any, reference: Mapping[str, Any], *others: Mapping[str, Any], **design: Any) -> Design:
    """One cell for each mapping of paths to values."""
    own = cell("center", reference="center", levels=dict(reference))
    rest = [cell(_words(levels), reference="center", levels=dict(levels)) for levels in others]
    return Design(kind=kind, cells=[own, *rest], **design)


def _words(levels: Mapping[str, Any]) -> str:
    return "-".join(f"{path.rpartition('.')[2]}-{value}" for path, value in levels.items())


def cell(label: str, *, center: str = "base", variant: str | None = None, **about: Any) -> Cell:
    """A cell, called in its center as in the run unless said otherwise."""
    return Cell(label=label, center=center, variant=variant or label, **about)


def run_of(
    design: Design,
    won: Mapping[str, np.ndarray],
    *,
    stability: Mapping[str, Sequence[float]] | None = None,
    lost: Mapping[tuple[str, int], str] | None = None,
    activity: Mapping[str, float] | None = None,
    judged: bool = True,
    seeds: Sequence[int] | None = None,
) -> results.Run:
    """The run of a design. won: (seeds, prompts) outcomes by label. lost: how trials ended that did not finish.

    activity: metrics of the last step, the same in all cells; an earlier step says 0.
    """
    lost, stability = lost or {}, stability or {}
    trials, answers, curves, pairs = [], [], [], []
    for label, outcomes in won.items():
        for seed, of_seed in enumerate(outcomes):
            ended = lost.get((label, seed))
            about: dict[str, Any] = {"trial_id": f"arm-{label}-s{seed}", "label": label, "phase": "arm", "seed": seed}
            score = 0.0 if ended else float(stability[label][seed]) if label in stability else 0.5
            row = dict.fromkeys(schema.TRIAL_SCHEMA.names) | about
            row |= {"status": ended or "completed", "judge": "exact" if judged else "none", "stability": score}
            row |= {"reason": "loss became nan" if ended else None, "updates": 10, "objective": "slime"}
            row |= {"win_rate": float(of_seed.mean()) if judged and not ended else None, "prompts": len(of_seed)}
            trials.append(row)
            if ended:
                continue
            if judged:
                ids = [f"p{place:04}" for place in range(len(of_seed))]
                votes = [[VERDICTS.get(value, (None, None))[order] for value in of_seed] for order in (0, 1)]
                told = {"prompt_set": "report", "verdict_ab": votes[0], "verdict_ba": votes[1]}
                answers.append(pd.DataFrame({**about, "prompt_id": ids, "outcome": of_seed, **told}))
            margins = {"chosen_logp": of_seed - 0.5, "rejected_logp": 0.0}
            pairs.append(pd.DataFrame({**about, "pair": range(len(of_seed)), **margins}))
            for metric, value in (activity or {}).items():
                for step, at_step in ((0, 0.0), (10, value)):
                    curves.append({**about, "step": step, "source": "held_out", "metric": metric, "value": at_step})
    manifest = {
        "name": "made-up",
        "seeds": list(seeds if seeds is not None else range(max(map(len, won.values())))),
        "judge": "exact" if judged else "none",
        "stability_version": "stability-v1",
        "experiment": {"design": design.model_dump(mode="json")},
    }
    return results.Run(
        path=Path("made-up"),
        trials=_frame(trials, schema.TRIAL_SCHEMA),
        answers=_frame(pd.concat(answers) if answers else [], schema.ANSWER_SCHEMA),
        curves=_frame(curves, schema.CURVE_SCHEMA),
        pairs=_frame(pd.concat(pairs) if pairs else [], schema.PAIR_SCHEMA),
        manifest=manifest,
    )


def _frame(rows: Any, schema: pa.Schema) -> pd.DataFrame:
    """As `results.load` gives it: texts as texts, numbers as numbers, also where there are none."""
    frame = pd.DataFrame(rows).reindex(columns=schema.names)
    texts = [field.name for field in schema if field.type == pa.string()]
    # pandas 2 has no dtype of texts that keeps None, and takes them as objects.
    frame = frame.assign(
        **{name: pa.array(frame[name], pa.string(), from_pandas=True).to_pandas().array for name in texts}
    )
    keys = {name: "int64" for name in ("seed", "step", "pair") if name in frame}
    kinds = {field.name: "float64" for field in schema if field.name not in texts} | keys
    return frame.astype(kinds | {field.name: "boolean" for field in schema if field.type == pa.bool_()})


def outcomes(rng: np.random.Generator, rate: float, *, seeds: int = 6, prompts: int = 60) -> np.ndarray:
    """(seeds, prompts) wins and losses by chance."""
    return (rng.random((seeds, prompts)) < rate).astype(float)
