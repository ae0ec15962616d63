"""The sentinel: what raises an alarm, what it says, and what it does to a run that really collapses."""

import json

import pytest

from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.evaluation.generate import Answer
from slime_ray.runs import results
from slime_ray.training.outcome import say_nothing
from slime_ray.training.sentinel import Sign, alarm, answer_signs, pair_signs, spike_sign
from slime_ray.training.worker import run_trial
from tests.evaluation.test_stability import held_out

from .small_trials import changed

TEXT = """\
name: watched
preset: arithmetic
base:
  data: {sft_examples: 1000, pairs: 200, held_out_pairs: 24}
  sft: {updates: 100}
  training: {updates: 20, pairs_per_update: 16, evaluations: 4}
  evaluation: {prompts: 16, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 32}}
arms:
  healthy: {}
  broken: {objective: {name: simpo, beta: 10.0, gamma: 5.0}, training.learning_rate: 2e-2}
"""


def answers(*texts: str, stopped: bool = True) -> list[Answer]:
    return [Answer(tuple(map(ord, text)), text, stopped, False) for text in texts]


def test_an_alarm_is_the_gravest_part_beyond_its_limit():
    # In tolerances of 0.10 and 0.05: 3.1 and 4; then 3.1 alone, 2.9, and 3.1 that may be chance.
    drift, collapse = Sign(0.31, 0.0, "unlearning"), Sign(0.20, 0.0, "collapse")
    assert alarm({"unlearning": drift, "rejected_collapse": collapse}, tolerances=3, step=120) == "collapse at step 120"
    assert alarm({"unlearning": drift}, tolerances=3, step=5) == "unlearning at step 5"
    assert alarm({"unlearning": Sign(0.29, 0.0, "unlearning")}, tolerances=3, step=5) is None
    assert alarm({"unlearning": Sign(0.31, 0.006, "unlearning")}, tolerances=3, step=5) is None


def test_signs_say_what_was_seen():
    # Means before: -2 and -1; after: -2.5 and -1.12. ln 10 = 2.303: two of four rejected tokens fell by 3.
    before = held_out([[-1.0, -3.0], [-1.0]], [[-1.0, -1.0, -1.0], [-2.0]], entropy=1.0)
    after = held_out([[-2.0, -3.0], [-1.12]], [[-4.0, -1.0, -1.0], [-5.0]], entropy=0.25)
    signs = pair_signs(before, after)
    assert signs["unlearning"].value == pytest.approx(0.31)
    assert signs["unlearning"].text == "unlearning, chosen drift -0.31 nat/token"
    assert signs["rejected_collapse"].text == "rejected collapse, 50 % of rejected tokens more than tenfold less likely"
    # Shares 1/3 and 1: their standard deviation is 0.4714, by sqrt 2.
    assert signs["rejected_collapse"].error == pytest.approx(1 / 3)
    assert signs["entropy_shift"].text == "entropy shift, 0.25 times the SFT checkpoint's entropy"


def test_a_few_broken_answers_are_no_alarm_and_many_are():
    baseline = answers(*["1 2 3 4"] * 16)
    for broken, expected in ((4, None), (16, "broken outputs, 16 of 16 answers (16 no_stop) at step 7")):
        reasons = ["no_stop"] * broken + [None] * (16 - broken)
        signs = answer_signs(baseline, baseline, reasons, [None] * 16)
        assert alarm(signs, tolerances=3, step=7) == expected


def test_answers_that_are_whole_again_are_no_broken_outputs():
    baseline = answers(*["1 2 3 4"] * 4)
    assert answer_signs(baseline, baseline, [None] * 4, ["no_stop"] * 4)["broken_outputs"].value == 0


def test_answers_that_grow_are_a_length_shift():
    signs = answer_signs(answers("x" * 40, "x" * 40), answers("x" * 10, "x" * 10), [None] * 2, [None] * 2)
    assert signs["length_shift"].value == pytest.approx(1.3863, abs=1e-4)
    assert alarm(signs, tolerances=3, step=9) == (
        "length shift, answers 4.00 times as long as the SFT checkpoint's at step 9"
    )


def test_single_spikes_are_forgiven_and_a_row_of_them_is_not():
    quiet = [1.0, 1.1, 1.2, 1.3] * 30
    few, many = list(quiet), list(quiet)
    few[60:62] = [9.0] * 2
    many[40::8] = [9.0] * len(many[40::8])
    assert alarm(spike_sign(few, [1.0] * 120), tolerances=3, step=120) is None
    assert (
        alarm(spike_sign(many, [1.0] * 120), tolerances=3, step=120)
        == "training spikes, 10 % of the updates at step 120"
    )


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "watched.yaml"
    path.write_text(TEXT)
    return load_experiment(path)


def run(experiment, storage, path, arm, action):
    trial = changed(arm_trials(experiment)[arm], {"sentinel.action": action})
    return run_trial(trial, run=path, storage=storage, report=say_nothing), trial


def test_a_collapsing_run_is_stopped_with_the_reason(experiment, storage, tmp_path):
    row, trial = run(experiment, storage, tmp_path, 1, "stop")
    assert row["status"] == "stopped"
    assert row["reason"] == row["alarm"]
    assert row["updates"] < 20
    assert f"at step {row['updates']}" in row["reason"]
    assert row["win_rate"] is not None
    assert json.loads((tmp_path / "trials" / trial.trial_id / "trial.json").read_text())["alarm"] == row["alarm"]


def test_watching_changes_nothing_about_the_training(experiment, storage, tmp_path):
    (watched, trial), (alone, _) = (
        run(experiment, storage, tmp_path / action, 1, action) for action in ("warn", "none")
    )
    assert watched["alarm"]
    assert alone["alarm"] is None
    assert watched["status"] == alone["status"] == "completed"
    same = ("win_rate", "stability", "chosen_drift", "mean_margin", "kl_to_sft")
    assert [watched[name] for name in same] == [alone[name] for name in same]
    curves = results.pd.read_parquet(tmp_path / "warn" / "trials" / trial.trial_id / "curves.parquet")
    signs = curves[curves["source"] == "sentinel"]
    assert sorted(signs["step"].unique()) == [0, 5, 10, 15, 20]
    assert {"broken_outputs", "end_of_turn", "repetition", "answer_tokens"} <= set(signs["metric"])


def test_a_healthy_run_raises_no_alarm(experiment, storage, tmp_path):
    row, _ = run(experiment, storage, tmp_path, 0, "stop")
    assert (row["status"], row["alarm"]) == ("completed", None)
