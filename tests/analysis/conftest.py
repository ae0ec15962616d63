"""A run as a sweep writes it, small: 7 arms x 2 seeds, 8 search trials, 1 confirmed winner x 2 seeds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slime_ray.analysis import report, tables
from slime_ray.analysis.printing import Table

from slime_ray.runs import results, schema

PROMPTS = 24
HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u2028"
"""What an answer may hold; nothing of it may do anything."""
# label -> (objective, share of prompts won, lost stability, updates)
ARMS: dict[str, tuple[str, float, float, int]] = {
    "sft": ("slime", 0.5, 0.0, 0),
    "nll": ("sft", 0.75, 0.3, 10),
    "dpo": ("dpo", 0.25, 0.9, 10),
    "dpo_tuned": ("dpo", 0.6, 0.5, 10),
    "simpo": ("simpo", 0.1, 0.95, 10),
    "slime-paper": ("slime", 0.5, 0.6, 10),
    "100% & <b>$x$</b>": ("slime", 0.4, 0.7, 10),
}


# The verdicts of an outcome in both orders, the policy's answer shown as A and then as B.
VERDICTS = {
    1.0: ("A>B", "B>A"),
    0.75: ("A>B", "A=B"),
    0.5: ("A=B", "A=B"),
    0.25: ("A=B", "A>B"),
    0.0: ("B>A", "A>B"),
}


def pair_rows(trial: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """`count` pairs of a trial, each a little unlearned, with some collapsed tokens."""
    rng = np.random.default_rng(count)
    about = {name: trial[name] for name in ("trial_id", "label", "phase", "seed")}
    return [
        {
            **about,
            "pair": pair,
            "chosen_tokens": 10,
            "rejected_tokens": 8,
            "chosen_logp0": -1.0,
            "chosen_logp": -1.0 - 0.1 * rng.random(),
            "rejected_logp0": -1.5,
            "rejected_logp": -2.0,
            "rejected_collapsed": int(rng.random() < 0.3),
            "entropy0": 1.0,
            "entropy": 0.8 + 0.1 * rng.random(),
        }
        for pair in range(count)
    ]


def outcomes(share: float) -> list[float]:
    """`share` of PROMPTS won, the rest lost."""
    won = round(share * PROMPTS)
    return [1.0] * won + [0.0] * (PROMPTS - won)


def add_trial(
    run: Path,
    trial_id: str,
    *,
    won: list[float] | None = None,
    answer: Callable[[int], str] = lambda index: f"answer {index}",
    prompt_id: Callable[[int], str] = lambda index: f"p{index:02}",
    pairs: int = 0,
    **columns: Any,
) -> None:
    """Write one trial. won: outcome per prompt, or None for a trial without answers. pairs: how many were recorded."""
    defaults: dict[str, Any] = {
        "phase": "arm",
        "label": trial_id,
        "seed": 0,
        "status": "completed",
        "objective": "slime",
        "overrides": {},
        "settings": {},
        "prompt_set": "report",
        "judge": "exact",
        "win_rate": None if won is None else float(np.mean(won)),
        "prompts": len(won or ()),
        "stability": 0.5,
        **dict.fromkeys(("unlearning", "rejected_collapse", "broken_outputs", "length_shift", "training_spikes"), 0.0),
        "entropy_shift": 0.35,
        "kl_to_sft": 0.1,
        "healthy": True,
        "chosen_drift": -0.02,
        "preference_accuracy": 0.8,
        "mean_margin": 0.3,
        "format_valid": 0.9,
        "pairs": 40,
        "updates": 10,
        "tokens": 1000,
        "total_seconds": 1.0,
    }
    row = results.trial_row(trial_id=trial_id, **(defaults | columns))
    about: dict[str, Any] = {name: row[name] for name in ("trial_id", "label", "phase", "seed", "prompt_set")}
    answers = [
        dict.fromkeys(schema.ANSWER_SCHEMA.names)
        | about
        | {
            "prompt_id": prompt_id(index),
            "prompt": [{"role": "user", "content": f"question {index}"}],
            "answer": answer(index),
            "baseline_answer": f"baseline {index}",
            "answer_tokens": 4,
            "baseline_tokens": 4,
            "outcome": outcome if row["win_rate"] is not None else None,
            **dict(zip(("verdict_ab", "verdict_ba"), VERDICTS.get(outcome, (None, None)), strict=True)),
            "broken": False,
            "baseline_broken": False,
        }
        for index, outcome in enumerate(won or [])
    ]
    curves = [
        {name: about[name] for name in ("trial_id", "label", "phase", "seed")}
        | {"step": step, "source": "held_out", "metric": metric, "value": value - 0.01 * step}
        for step in (range(0, row["updates"] + 1, 5) if won is not None else ())
        for metric, value in (("chosen_logp", -0.1), ("rejected_logp", -0.2))
    ]
    results.write_trial(run, row=row, answers=answers, curves=curves, pairs=pair_rows(row, pairs))


def finish(run: Path, manifest: Mapping[str, Any] | None = None) -> Path:
    """Consolidate what was added and write the manifest."""
    results.consolidate(run)
    results.write_manifest(
        run,
        {
            "schema": schema.RUN_SCHEMA,
            "name": "made-up",
            "created": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:00+00:00",
            "command": ["slime-ray", "sweep", "made-up"],
            "slime_ray": "0",
            "versions": {"python": "3.11"},
            "host": {"node": "n"},
            "experiment": {
                "arms": [{"label": label} for label in ARMS],
                "search": {"dimensions": {"objective.hard_margin": {}}},
                "budget": {"trials": 8, "confirm": {"best": 1, "seeds": 2}},
            },
            "goals": {"win_rate": "maximize", "stability": "maximize"},
            "seeds": [0, 1],
            "judge": "exact",
            "decoding": {"temperature": 1.0, "batch": None},
            "hashes": {"held_out": "abc"},
            "data": {"rows_read": 9, "skipped": [{"reason": "empty", "count": 2, "rows": [1, 2]}], "truncated": {}},
            "stability_version": "stability-v1",
            "failed_trials": [],
        }
        | dict(manifest or {}),
    )
    return run


def fill(run: Path, *, judged: bool) -> Path:
    """The whole run. dpo fails with seed 1, simpo diverges with seed 1. judged: whether there are outcomes."""
    hidden: dict[str, Any] = {} if judged else {"win_rate": None, "judge": "none"}
    for place, (label, (objective, share, lost, updates)) in enumerate(ARMS.items()):
        for seed in (0, 1):
            about: dict[str, Any] = {"label": label, "seed": seed, "objective": objective, "updates": updates}
            trial_id = f"arm-{place}-s{seed}"
            if (label, seed) == ("dpo", 1):
                add_trial(run, trial_id, **about, status="failed", reason="out of memory", stability=0.0)
            elif (label, seed) == ("simpo", 1):
                about |= {"status": "diverged", "reason": "loss became nan", "stability": 0.0, "entropy_shift": None}
                add_trial(run, trial_id, **about)
            else:
                kl = 0.0 if updates == 0 else 0.1
                add_trial(
                    run,
                    trial_id,
                    won=outcomes(share),
                    stability=1 - lost,
                    kl_to_sft=kl,
                    pairs=40,
                    answer=lambda index: f"<script>alert({index})</script> & http://x.example {HOSTILE}",
                    **about,
                    **hidden,
                )
    for number in range(8):
        about = {"phase": "search", "prompt_set": "selection", "seed": 1000}
        about["overrides"] = {"objective.hard_margin": number / 2}
        name = f"search-{number:04}"
        # Win rate rises and stability falls until number 4; the later ones are beaten by it.
        score = 0.9 - 0.1 * number if number <= 4 else 0.1
        won = outcomes(0.3 + 0.1 * min(number, 4))
        add_trial(run, name, won=won, stability=score, **about, **hidden)
    for seed in (0, 1):
        about = {"phase": "confirm", "label": "search-0004", "seed": seed, "overrides": {"objective.hard_margin": 2.0}}
        add_trial(
            run, f"confirm-search-0004-s{seed}", won=outcomes(0.75), stability=0.4 + 0.2 * seed, **about, **hidden
        )
    return finish(run, {} if judged else {"judge": "none"})


@pytest.fixture(scope="session")
def judged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, judged. Only read it."""
    return fill(tmp_path_factory.mktemp("judged"), judged=True)


@pytest.fixture(scope="session")
def main(judged_run: Path) -> Table:
    """The main table of the whole run. Only read it."""
    return tables.win_rate_stability(results.load(judged_run))


@pytest.fixture(scope="session")
def written(judged_run: Path, tmp_path_factory: pytest.TempPathFactory) -> report.ReportFiles:
    """The report of the whole run. Only read it."""
    return report.write_report(judged_run, tmp_path_factory.mktemp("out") / "a" / "report")


@pytest.fixture(scope="session")
def unjudged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run without a judge. Only read it."""
    return fill(tmp_path_factory.mktemp("unjudged"), judged=False)


@pytest.fixture(scope="session")
def failed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of which no trial finished."""
    run = tmp_path_factory.mktemp("failed")
    for label in ("one", "two"):
        for seed in (0, 1):
            row: dict[str, Any] = {
                "label": label,
                "seed": seed,
                "status": "failed",
                "reason": "no memory",
                "stability": 0.0,
            }
            measured: dict[str, Any] = dict.fromkeys(
                ["entropy_shift", "kl_to_sft", "preference_accuracy", "chosen_drift", "unlearning"]
            )
            add_trial(run, f"arm-{label}-s{seed}", **row, **measured)
    return finish(run)


@pytest.fixture(scope="session")
def one_trial_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One arm, one seed, nothing else."""
    run = tmp_path_factory.mktemp("one")
    add_trial(run, "arm-only-s0", label="only", won=outcomes(0.75))
    return finish(run, {"seeds": [0], "experiment": {"arms": [{"label": "only"}]}})


@pytest.fixture(scope="session")
def search_only_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two search trials, no arms, no confirmed winner, an unfinished manifest without an experiment."""
    run = tmp_path_factory.mktemp("search")
    for number in (1, 2):
        about: dict[str, Any] = {"phase": "search", "prompt_set": "selection"}
        about["overrides"] = {"objective": {"name": "dpo"}}
        add_trial(run, f"search-000{number}", won=outcomes(0.3 * number), **about)
    return finish(run, {"experiment": {}, "finished": None})
