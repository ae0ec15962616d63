"""training.keep: which weights of a trial are measured and saved, and on what they are chosen."""

import re
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slime_ray.config.experiment import Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.evaluation.conversations import Prompt
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from slime_ray.runs.store import RunStore
from slime_ray.training.loop import TrainingLoop
from slime_ray.training.orders import Command, Paused
from slime_ray.training.outcome import MODEL
from slime_ray.training.sentinel import curve_pairs
from slime_ray.training.stages import prepare
from slime_ray.training.worker import run_trial

from .small_trials import TEXT, Orders, assert_same, changed, computed, nothing


def keeping(trial: Trial, keep: object) -> Trial:
    return changed(trial, {"training.keep": keep})


@pytest.fixture(scope="module")
def by_number(experiment, whole):
    """The trial, and a number that is best at update 4 of 2, 4 and 6, so that one is kept, replaced, and kept on."""
    trial = arm_trials(experiment)[0]
    curves = computed(whole, trial)[1].query("step > 0 and source != 'train'")
    for column in ("stability", "preference_accuracy", "mean_margin", "chosen_drift", "chosen_logp"):
        two, four, six = curves.query("metric == @column").sort_values("step")["value"]
        for way, sign in (("maximize", 1), ("minimize", -1)):
            if sign * four > sign * two and sign * four >= sign * six:
                return keeping(trial, {column: way})
    # Every number of this trial goes one way. The first of them is kept then.
    return keeping(trial, {"mean_margin": "minimize"})


@pytest.fixture(scope="module")
def kept(by_number, storage, tmp_path_factory):
    run = tmp_path_factory.mktemp("kept")
    run_trial(by_number, run=run, storage=storage, report=nothing)
    return run


def test_what_is_measured_and_saved_is_what_had_been_reached_at_the_best_evaluation(
    by_number, kept, experiment, storage, tmp_path
):
    """Another trial, which keeps the last, is ended there and measured."""
    row, curves, answers, pairs = computed(kept, by_number)
    name, way = by_number.settings.kept_by
    evaluated = curves[(curves["metric"] == name) & (curves["step"] > 0) & (curves["source"] != "train")]
    told = evaluated.set_index("step")["value"]
    best = int(told.idxmax() if way == "maximize" else told.idxmin())
    assert row["kept_update"] == best < row["updates"] == row["planned_updates"] == 6
    last = arm_trials(experiment)[0]
    order = Orders(best, Command("stop", "enough", measure=True))
    run_trial(last, run=tmp_path, storage=storage, report=order)
    other, _, its_answers, its_pairs = computed(tmp_path, last)
    assert other["kept_update"] == other["updates"] == best
    same = ("win_rate", "preference_accuracy", "mean_margin", "unlearning", "broken_outputs", "kl_to_sft")
    assert {n: row[n] for n in same} == {n: other[n] for n in same}
    assert answers.equals(its_answers)
    assert pairs.equals(its_pairs)
    one, two = (
        load_file(run / "trials" / last.trial_id / MODEL / "adapter_model.safetensors") for run in (kept, tmp_path)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_keeping_changes_nothing_about_the_training(by_number, kept, whole):
    assert computed(kept, by_number)[1].equals(computed(whole, by_number)[1])


@pytest.mark.parametrize("step", [2, 6])
def test_a_paused_trial_goes_on_with_the_best_that_its_checkpoint_knows_of(by_number, kept, storage, tmp_path, step):
    with pytest.raises(Paused):
        run_trial(by_number, run=tmp_path, storage=storage, report=Orders(step, Command("pause", "for now")))
    [saved] = (tmp_path / "trials" / by_number.trial_id / "resume").glob("step-*")
    # As if training had gone on, found a better one, and was lost before its next checkpoint.
    newer = saved.parent / "best" / "model.safetensors"
    newer.write_bytes(b"of a later update")
    run_trial(by_number, run=tmp_path, storage=storage, report=nothing)
    assert_same(tmp_path, kept, by_number)


def test_what_diverged_is_not_passed_off_as_its_best(by_number, storage, tmp_path, monkeypatch):
    """No update after the first evaluation can be made; the number that would have been kept changes nothing."""
    after = TrainingLoop.after_update

    def broken(self, step, metrics):
        return after(self, step, {**metrics, "loss": float("nan")} if step == 5 else metrics)

    monkeypatch.setattr(TrainingLoop, "after_update", broken)
    row = run_trial(by_number, run=tmp_path, storage=storage, report=nothing)
    assert (row["status"], row["stability"], row["kept_update"]) == ("diverged", 0.0, 5)


def test_the_choice_is_made_on_pairs_of_no_report_prompt(tmp_path):
    """Data of one's own: report prompts are those of held-out pairs."""
    task = load_task("arithmetic")
    task.pairs(60, split="train", seed=0).to_json(tmp_path / "pairs.jsonl")
    tiny_model(task, seed=0).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer(task).save_pretrained(tmp_path / "tiny")
    file = yaml.safe_load(TEXT)
    file["base"] |= {
        "model": {"source": str(tmp_path / "tiny"), "lora": None},
        "data": {"train": str(tmp_path / "pairs.jsonl"), "held_out_pairs": 24},
        "sft": None,
    }
    file["base"]["evaluation"] |= {"judge": "none", "prompts": 9, "selection_prompts": 6}
    file["goals"] = {"stability": "maximize"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(file))
    last = arm_trials(load_experiment(tmp_path / "own.yaml"))[0]
    best = keeping(last, "best")
    assert best.settings.kept_by == ("preference_accuracy", "maximize")
    stages = prepare(best.settings, storage=RunStore(tmp_path / "runs"), report=nothing)
    asked = {tuple(prompt.token_ids) for prompt in stages.prompts["report"]}
    prompts = [tuple(pair.prompt_ids) for pair in stages.held_out[:]]
    # The texts say the same as the ids.
    assert len(asked & set(prompts)) == 9
    assert curve_pairs(last, stages) == list(range(24))
    assert curve_pairs(best, stages) == [number for number, ids in enumerate(prompts) if ids not in asked]
    reports: list[dict] = []
    row = run_trial(best, run=tmp_path, storage=RunStore(tmp_path / "runs"), report=reports.append)
    few = f"training.keep chooses weights by {len(curve_pairs(best, stages))} held-out pairs"
    assert [told["notice"][: len(few)] for told in reports if "training.keep" in told.get("notice", "")] == [few]
    curves = computed(tmp_path, best)[1].query("metric == 'chosen_logp' and source == 'held_out' and step == 0")
    assert curves["value"].item() == stages.step0.chosen_means[curve_pairs(best, stages)].mean()
    assert row["pairs"] == 24
    every = replace(stages, prompts={"report": [Prompt("p", [], ids) for ids in prompts]})
    with pytest.raises(InputError, match="every held-out pair is of a report prompt"):
        curve_pairs(best, every)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"keep": {"kl_to_sft": "minimize"}}}, "name one that is measured during training, of win_rate"),
        ({"training": {"keep": {"stability": "maximize", "win_rate": "maximize"}}}, "name one that is measured"),
        ({"training": {"keep": {}}}, "name one that is measured"),
        ({"training": {"keep": "first"}}, "'first' is neither last, best nor a number with its direction"),
        ({"training": {"keep": "best", "evaluations": 1}}, "keep chooses among training.evaluations, and there is 1"),
        (
            {"training": {"keep": {"win_rate": "maximize"}}, "sentinel": {"action": "none"}},
            "training.keep chooses by win_rate, and nothing is judged during training",
        ),
    ],
)
def test_what_could_choose_nothing_is_refused_before_training(tmp_path, changes, sentence):
    file = yaml.safe_load(TEXT)
    for part, values in changes.items():
        file["base"].setdefault(part, {}).update(values)
    path = tmp_path / "keep.yaml"
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(InputError, match=re.escape(sentence)):
        load_experiment(path)


def test_win_rates_of_a_scorer_that_was_mended_choose_nothing(experiment, storage, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    scorer = tmp_path / "mended_scorer.py"
    judge = {"name": "exact", "scorer": "mended_scorer:score"}
    trial = keeping(changed(arm_trials(experiment)[0], {"evaluation.judge": judge}), {"win_rate": "maximize"})

    def run(folder: str, sign: str, report: Any) -> None:
        scorer.write_text(f"def score(prompt, answer):\n    return {sign}len(answer)\n")
        sys.modules.pop("mended_scorer", None)
        run_trial(trial, run=tmp_path / folder, storage=storage, report=report)

    with pytest.raises(Paused):
        run("mended", "-", Orders(4, Command("pause", "for now")))
    run("mended", "+", nothing)
    run("whole", "+", nothing)
    assert_same(tmp_path / "mended", tmp_path / "whole", trial)
