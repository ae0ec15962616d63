"""`slime-ray ablate` for real: cells that have all in common but what the design varies, interrupted and given a seed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slime_ray.cli import main
from slime_ray.config.design import Design
from slime_ray.config.settings import fingerprint
from slime_ray.runs import results
from tests.end_to_end.conftest import environment

pytestmark = pytest.mark.ray

# At this learning rate no weight changes by more than rounding, so that an update's log-probabilities tell its pairs.
DESIGN = """\
name: cells
preset: arithmetic
base:
  data: {sft_examples: 100, pairs: 24, held_out_pairs: 8}
  sft: {updates: 4}
  training: {learning_rate: 1e-9, updates: 8, pairs_per_update: 4, evaluations: 1}
  evaluation: {prompts: 8, selection_prompts: 4, kl_prompts: 2, decoding: {max_new_tokens: 8}}
ablate:
  design: baselines
  methods:
    broken: {objective.stabilizer_strength: 1e38}
    sft: {training.updates: 0}
    dpo: {objective: {name: dpo}}
    nothing: {objective.remove: [anchor, stabilizer, soft_margin, hard_margin]}
    slime: {preset: paper}
resources: {concurrent_trials: 1}
"""
CELLS = ["broken", "sft", "dpo", "nothing", "slime"]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("design") / "cells.yaml"
    path.write_text(DESIGN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def interrupted(space: Path) -> tuple[dict[str, dict], str]:
    """What a run of one seed left that was interrupted, and what it said."""
    command = [sys.executable, "-m", "slime_ray", "ablate", str(space), "--storage", str(space.parent)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("[2/"):
            break
    process.send_signal(signal.SIGINT)
    said.append(process.stdout.read())
    process.wait(timeout=60)
    return files(space.parent / "cells"), "".join(said)


@pytest.fixture(scope="module")
def finished(interrupted, space: Path) -> results.Run:
    """The same run, gone on with with a second seed."""
    assert main(["ablate", str(space), "--storage", str(space.parent), "--resume", "--seeds", "2"]) == 0
    return results.load(space.parent / "cells")


def files(run: Path) -> dict[str, dict]:
    """The finished trials of a run, each with its row and with when its files were written."""
    return {
        trial: {"row": row, "written": {p.name: p.stat().st_mtime_ns for p in (run / "trials" / trial).glob("*.*")}}
        for trial, row in results.finished_trials(run).items()
    }


def test_a_design_of_one_seed_says_beforehand_what_it_cannot_say(interrupted):
    said = interrupted[1].splitlines()
    assert said[0] == "baselines: 5 cells around base (against slime), compared by win_rate; 1 seed, 5 trials."
    assert said[1].startswith("warning: one seed says nothing about other seeds")
    assert "without a table of significance" in said[1]


def test_a_seed_is_added_to_a_run_that_was_interrupted_and_nothing_is_run_twice(interrupted, finished):
    kept = interrupted[0]
    assert 2 <= len(kept) <= 5
    now = files(finished.path)
    assert {trial: now[trial] for trial in kept} == kept
    assert set(now) == {f"arm-{cell}-s{seed}" for seed in (0, 1) for cell in CELLS}
    assert finished.manifest["seeds"] == finished.manifest["experiment"]["seeds"] == [0, 1]
    assert finished.manifest["finished"]


def test_a_cell_that_failed_stays_in_the_design_as_it_is(finished):
    design = Design.of(finished.manifest)
    assert design is not None
    assert [cell.label for cell in design.cells] == CELLS
    rows = finished.trials.set_index("trial_id")
    broken = rows.loc[["arm-broken-s0", "arm-broken-s1"]]
    assert set(broken["status"]) == {"diverged"}
    assert set(broken["stability"]) == {0.0}
    assert broken["win_rate"].isna().all()
    assert {row["trial_id"] for row in finished.manifest["failed_trials"]} == {"arm-broken-s0", "arm-broken-s1"}


def test_cells_share_stages_prompts_and_decoding(finished, space):
    made = {path.name.split("-")[0] for path in (space.parent / ".stages").iterdir() if path.is_dir()}
    assert made == {"tokens", "sft", "step0", "baseline", "reference"}
    assert len([path for path in (space.parent / ".stages").iterdir() if path.is_dir()]) == 5
    rows = results.finished_trials(finished.path).values()
    parts = ("model", "data", "sft", "evaluation")
    configs = [json.loads(row["settings"]) for row in rows]
    assert len({fingerprint([config[part] for part in parts]) for config in configs}) == 1
    answers = finished.answers
    asked = answers.groupby("trial_id").apply(
        lambda found: fingerprint(found[["prompt_id", "prompt", "baseline_answer"]].to_dict("list")),
        include_groups=False,
    )
    assert len(asked) == 8
    assert asked.nunique() == 1


def test_the_order_of_the_pairs_follows_from_the_seed_alone(finished):
    seen = finished.curves.query("source == 'train' and metric in ['chosen_logp', 'rejected_logp'] and step > 0")
    by_cell = seen.pivot(index=["seed", "step", "metric"], columns="label", values="value")
    assert len(by_cell) == 2 * 8 * 2
    trained = by_cell[["dpo", "nothing", "slime"]]
    assert (trained.max(axis=1) - trained.min(axis=1)).max() < 1e-5
    assert by_cell["broken"].dropna().size == 4
    first, second = trained["slime"].loc[0], trained["slime"].loc[1]
    assert ((first - second).abs() > 1e-3).mean() > 0.8
    tokens = finished.trials.query("status == 'completed' and label != 'sft'").groupby("seed")["tokens"].nunique()
    assert set(tokens) == {1}


def test_nothing_is_learnt_without_any_component(finished):
    rows = finished.trials.set_index("trial_id")
    assert set(rows.loc[["arm-nothing-s0", "arm-nothing-s1"], "kl_to_sft"]) == {0.0}
    answers = finished.answers.set_index(["label", "seed", "prompt_id"])["answer"]
    assert answers["nothing"].equals(answers["sft"])


def test_fewer_seeds_and_a_file_without_a_design_are_refused(finished, space, capsys):
    before = files(finished.path)
    assert main(["ablate", str(space), "--storage", str(space.parent), "--resume", "--seeds", "1"]) == 2
    assert "has the seeds 0,1, and those that are given now, 0,, leave some of them out" in capsys.readouterr().err
    assert main(["ablate", "demo", "--storage", str(space.parent)]) == 2
    assert "Designs that ship: exponent, factorial, leave_one_out" in capsys.readouterr().err
    assert files(finished.path) == before
