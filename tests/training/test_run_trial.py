"""A whole trial without Ray: on several ranks, interrupted and gone on with, told to stop, and when things fail."""

import json
import resource
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from slime_ray import results
from slime_ray.experiment import Experiment, Faults, Trial, arm_trials
from slime_ray.experiment_file import load_experiment
from slime_ray.mirror import Mirror
from slime_ray.on_ray.ranking import ByMetric
from slime_ray.on_ray.stopping import Halving
from slime_ray.stability_v1 import TOLERANCES, spike_flags
from slime_ray.training import attempts
from slime_ray.training.course import Hosting
from slime_ray.training.orders import Order, Paused
from slime_ray.training.outcome import OutOfMemory, blank_row
from slime_ray.training.worker import run_trial

from . import trial_worker

TEXT = """\
name: trial
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 40, held_out_pairs: 24}
  model: {lora: {rank: 4, alpha: 8.0, dropout: 0.2, targets: [q_proj, v_proj]}}
  sft: {updates: 10}
  training: {updates: 6, pairs_per_update: 16, evaluations: 3, learning_rate: 1e-3, max_grad_norm: 1.0}
  evaluation: {prompts: 16, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 12, batch: 6}}
arms: {slime: {}, dpo: {objective: {name: dpo}}}
"""
CLOCKS = {"started", "host", "train_seconds", "evaluation_seconds", "total_seconds", "attempts", "lost_seconds"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    path = tmp_path_factory.mktemp("yaml") / "trial.yaml"
    path.write_text(TEXT)
    return load_experiment(path)


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Mirror:
    return Mirror(tmp_path_factory.mktemp("storage"))


def nothing(told: Any) -> None:
    return None


def computed(run: Path, trial: Trial) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What does not depend on clocks: the row, the curves, the answers and the pairs."""
    folder = run / "trials" / trial.trial_id
    row = json.loads((folder / "trial.json").read_text())
    curves, answers, pairs = (pd.read_parquet(folder / f"{name}.parquet") for name in ("curves", "answers", "pairs"))
    return {name: value for name, value in row.items() if name not in CLOCKS}, curves, answers, pairs


@pytest.fixture(scope="module")
def whole(experiment, storage, tmp_path_factory) -> Path:
    """Both arms, never interrupted."""
    run = tmp_path_factory.mktemp("whole")
    for trial in arm_trials(experiment):
        run_trial(trial, run=run, storage=storage, report=nothing)
    return run


@pytest.mark.parametrize("arm", [0, 1], ids=["slime", "dpo"])
def test_the_parts_of_the_row_are_what_its_pairs_answers_and_curves_come_to(experiment, whole, arm):
    row, curves, answers, pairs = computed(whole, arm_trials(experiment)[arm])
    entropies = [(pairs[name] * pairs["chosen_tokens"]).sum() for name in ("entropy", "entropy0")]
    lengths = answers["answer_tokens"].clip(lower=1) / answers["baseline_tokens"].clip(lower=1)
    series = [curves["value"][curves["metric"] == name].tolist() for name in ("loss", "grad_norm")]
    flags = spike_flags(*series)
    assert {name: row[name] for name in asdict(TOLERANCES)} == pytest.approx(
        {
            "unlearning": (pairs["chosen_logp0"] - pairs["chosen_logp"]).clip(lower=0).mean(),
            "rejected_collapse": pairs["rejected_collapsed"].sum() / pairs["rejected_tokens"].sum(),
            "entropy_shift": abs(np.log(entropies[0] / entropies[1])),
            "broken_outputs": max(0.0, answers["broken"].mean() - answers["baseline_broken"].mean()),
            "length_shift": abs(np.log(lengths).mean()),
            "training_spikes": flags.mean() if len(flags) else 0.0,
        },
        abs=1e-12,
    )
    assert row["entropy_shift"] > 0
    assert row["pairs"] == len(pairs) == 24
    margins = (pairs["chosen_logp"] - pairs["rejected_logp"]).mean()
    assert row["mean_margin"] == pytest.approx(margins, abs=1e-12)


def test_component_activity_stands_in_the_curves_from_first_to_last_step(experiment, whole):
    slime, dpo = (computed(whole, trial) for trial in arm_trials(experiment))
    for _, curves, _, _ in (slime, dpo):
        held_out = curves[curves["source"] == "held_out"]
        shares = held_out[held_out["metric"].str.startswith("gradient_share.")]
        assert shares.groupby("step")["value"].sum().tolist() == pytest.approx([1.0] * 4)
        assert sorted(set(held_out["step"])) == [0, 2, 4, 6]
    assert "past_hard_margin" not in set(dpo[1]["metric"])
    # The last measurement is of the policy whose pairs are kept: the ratio of two norms and the share by hand.
    last = slime[1].query("source == 'held_out' and step == 6").set_index("metric")["value"]
    pairs = slime[3]
    margin = pairs["chosen_logp"] - pairs["rejected_logp"]
    gate = 1 / (1 + np.exp(2.5 * (margin - 1.0)))
    push = (gate + 2.5 * (1.5 - margin) * gate * (1 - gate)).where(margin < 1.5, 0.0)
    norms = [
        np.sqrt((0.1**2 / pairs["chosen_tokens"]).sum()),
        np.sqrt((push**2 * (1 / pairs["chosen_tokens"] + 1 / pairs["rejected_tokens"])).sum()),
    ]
    found = last["gradient_share.anchor"] / last["gradient_share.margin"]
    assert found == pytest.approx(norms[0] / norms[1], rel=1e-9)
    assert last["past_hard_margin"] == (margin >= 1.5).mean()
    assert 0 < last["gradient_share.stabilizer"] < 1


class Orders:
    """Answers the report of one step with an order, or raises there, and nothing before or after."""

    def __init__(self, step: int, answer: Any):
        self.step, self.answer = step, answer
        self.steps: list[int] = []

    def __call__(self, told: Any) -> Order | None:
        if told.get("doing") != "training":
            return None
        self.steps.append(told["step"])
        if told["step"] != self.step:
            return None
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: Order | None = self.answer
        return answer


@pytest.mark.parametrize("arm", [0, 1], ids=["slime", "dpo"])
@pytest.mark.parametrize("step", [0, 2, 4, 6])
def test_a_paused_trial_goes_on_as_if_it_had_not_been(experiment, storage, whole, tmp_path, arm, step):
    trial = arm_trials(experiment)[arm]
    folder = tmp_path / "trials" / trial.trial_id
    with pytest.raises(Paused, match="for now"):
        run_trial(trial, run=tmp_path, storage=storage, report=Orders(step, Order("pause", "for now")))
    assert results.finished_trials(tmp_path) == {}
    assert [attempt.ended for attempt in attempts.read(folder)] == ["paused"]
    again = Orders(-1, None)
    row = run_trial(trial, run=tmp_path, storage=storage, report=again)
    # What it told before is told again, for whoever has not heard it, and then it goes on.
    assert again.steps == [0, 2, 4, 6]
    assert row["attempts"] == 2
    for one, other in zip(computed(tmp_path, trial), computed(whole, trial), strict=True):
        assert one == other if isinstance(one, dict) else one.equals(other)
    assert not (folder / "resume").exists()


def test_a_trial_that_was_cut_off_goes_on_from_its_last_checkpoint(experiment, storage, whole, tmp_path):
    trial = arm_trials(experiment)[0]
    often = Hosting(faults=Faults(checkpoint_minutes=1e-9))
    with pytest.raises(KeyboardInterrupt):
        # Nothing of ours gets to run any more: as if the process had been killed when it reported update 4.
        run_trial(trial, run=tmp_path, storage=storage, report=Orders(4, KeyboardInterrupt()), hosting=often)
    again = Orders(-1, None)
    row = run_trial(trial, run=tmp_path, storage=storage, report=again, hosting=often)
    # From update 3, where its checkpoint is.
    assert again.steps[:3] == [0, 2, 3]
    assert row["attempts"] == 2
    assert [attempt.ended for attempt in attempts.read(tmp_path / "trials" / trial.trial_id)] == ["lost", "finished"]
    for one, other in zip(computed(tmp_path, trial), computed(whole, trial), strict=True):
        assert one == other if isinstance(one, dict) else one.equals(other)


def test_a_trial_that_goes_on_passes_its_rungs_once(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    before, after = (Told(Order("pause", "for now"), at=4), Told(None))
    with pytest.raises(Paused):
        run_trial(trial, run=tmp_path, storage=storage, report=before)
    run_trial(trial, run=tmp_path, storage=storage, report=after)
    goals = ("win_rate", "stability", "preference_accuracy", "mean_margin")
    assert [set(told) & set(goals) for told in after.evaluations[1:]] == [set(goals)] * 3
    # Whoever listens from the start hears every evaluation once, with the same values; whoever came later, too.
    assert [{name: told.get(name) for name in ("step", *goals)} for told in before.evaluations] == [
        {name: told.get(name) for name in ("step", *goals)} for told in after.evaluations[:3]
    ]
    assert [told["step"] for told in after.evaluations] == [0, 2, 4, 6]
    rule = Halving(ByMetric("mean_margin"), first=0.3, reduction=2)
    for told in (*before.evaluations, *after.evaluations):
        assert rule.decide(trial.trial_id, told) is None
    margins = {told["step"]: told["mean_margin"] for told in after.evaluations}
    assert rule.reached == [{trial.trial_id: (margins[2],)}, {trial.trial_id: (margins[4],)}]


class Told:
    """Keeps what an evaluation tells, and answers that of one step with an order."""

    def __init__(self, order: Order | None, at: int = -1):
        self.order, self.at = order, at
        self.evaluations: list[dict[str, Any]] = []

    def __call__(self, told: Any) -> Order | None:
        if "mean_margin" not in told or told.get("doing") != "training":
            return None
        self.evaluations.append(dict(told))
        return self.order if told["step"] == self.at else None


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(experiment, storage, tmp_path):
    trial, other = arm_trials(experiment)
    with pytest.raises(Paused):
        run_trial(other, run=tmp_path, storage=storage, report=Orders(4, Order("pause", "for now")))
    (tmp_path / "trials" / other.trial_id).rename(tmp_path / "trials" / trial.trial_id)
    again = Orders(-1, None)
    run_trial(trial, run=tmp_path, storage=storage, report=again)
    assert again.steps == [0, 2, 4, 6]


@pytest.mark.parametrize("measure", [False, True])
def test_a_stopped_trial_is_recorded_with_what_it_reached(experiment, storage, tmp_path, measure):
    trial = arm_trials(experiment)[0]
    row = run_trial(
        trial, run=tmp_path, storage=storage, report=Orders(4, Order("stop", "enough is known", measure=measure))
    )
    assert (row["status"], row["reason"], row["updates"]) == ("stopped", "enough is known", 4)
    assert row["preference_accuracy"] is not None
    answers = computed(tmp_path, trial)[2]
    assert (len(answers), row["stability"] is not None) == ((16, True) if measure else (0, False))


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory):
    """A trial without dropout, which draws on each rank, and the storage in which one rank ran it."""
    trial = arm_trials(experiment)[1]
    settings = trial.settings.model_dump()
    settings["model"]["lora"]["dropout"] = 0.0
    plain = Trial.model_validate(trial.model_dump() | {"settings": settings})
    folder = tmp_path_factory.mktemp("alone")
    run_trial(plain, run=folder, storage=Mirror(folder), report=nothing)
    return plain, folder


@pytest.mark.parametrize(("ranks", "how"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2")])
def test_neither_ranks_nor_sharding_change_a_trial(alone, on_ranks, tmp_path, ranks, how):
    """The stages too are made by all ranks together, in a storage of their own. float32, hence the tolerance."""
    plain, folder = alone
    (tmp_path / "trial.json").write_text(plain.model_dump_json())
    on_ranks(ranks, trial_worker.__file__, tmp_path / "trial.json", tmp_path / "run", tmp_path / "ranks", how)
    row, curves, answers, pairs = computed(tmp_path / "run", plain)
    expected, expected_curves, expected_answers, expected_pairs = computed(folder, plain)
    assert row.pop("workers") == ranks
    assert expected.pop("workers") == 1
    numbers = {name for name, value in expected.items() if isinstance(value, float)}
    assert {n: row[n] for n in row.keys() - numbers} == {n: expected[n] for n in expected.keys() - numbers}
    assert {n: row[n] for n in numbers} == pytest.approx({n: expected[n] for n in numbers}, rel=1e-4, abs=1e-5)
    assert curves["value"].tolist() == pytest.approx(expected_curves["value"].tolist(), rel=1e-4, abs=1e-5)
    assert curves.drop(columns="value").equals(expected_curves.drop(columns="value"))
    assert answers["answer"].tolist() == expected_answers["answer"].tolist()
    assert pairs["chosen_logp"].tolist() == pytest.approx(expected_pairs["chosen_logp"].tolist(), rel=1e-4, abs=1e-5)
    saved = tmp_path / "run" / "trials" / plain.trial_id / "checkpoint"
    assert (saved / "adapter_model.safetensors").stat().st_size == (
        folder / "trials" / plain.trial_id / "checkpoint" / "adapter_model.safetensors"
    ).stat().st_size


def test_a_trial_out_of_memory_has_one_more_try(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    full = Orders(2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory):
        run_trial(trial, run=tmp_path, storage=storage, report=full)
    assert results.finished_trials(tmp_path) == {}
    row = run_trial(trial, run=tmp_path, storage=storage, report=full)
    assert row["status"] == "failed"
    assert "CUDA out of memory" in row["reason"]
    assert (row["stability"], row["attempts"]) == (0.0, 2)


def test_a_trial_that_is_lost_too_often_is_given_up(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    hosting = Hosting(faults=Faults(retries=2))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_trial(trial, run=tmp_path, storage=storage, report=Orders(2, KeyboardInterrupt()), hosting=hosting)
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing, hosting=hosting)
    assert row["status"] == "failed"
    assert "3 times" in row["reason"]
    assert results.finished_trials(tmp_path)[trial.trial_id]["attempts"] == 4


def test_a_result_waits_for_a_storage_that_takes_nothing_for_a_while(experiment, storage, whole, tmp_path):
    """A file stands where the trial's folder belongs until the trial says that it waits."""
    trial = arm_trials(experiment)[0]
    folder, waited = tmp_path / "trials" / trial.trial_id, []

    def report(told: Any) -> None:
        if told.get("doing") == "answering" and folder.is_dir():
            shutil.move(folder, tmp_path / "aside")
            folder.write_text("in the way")
        if str(told.get("doing")).startswith("waiting for storage"):
            waited.append(told["doing"])
            folder.unlink()
            shutil.move(tmp_path / "aside", folder)

    row = run_trial(trial, run=tmp_path, storage=storage, report=report)
    assert row["status"] == "completed"
    assert len(waited) == 1
    assert computed(tmp_path, trial)[0] == computed(whole, trial)[0]


def test_a_result_that_a_storage_does_not_take_is_given_up_after_storage_minutes(experiment, storage, tmp_path):
    """A folder stands where trial.json belongs, and nothing takes it away."""
    trial = arm_trials(experiment)[0]
    (tmp_path / "trials" / trial.trial_id / "trial.json").mkdir(parents=True)
    waited = []

    def report(told: Any) -> None:
        if str(told.get("doing")).startswith("waiting for storage"):
            waited.append(told["doing"])

    hosting = Hosting(faults=Faults(storage_minutes=0.02))
    with pytest.raises(OSError, match=r"trial\.json"):
        run_trial(trial, run=tmp_path, storage=storage, report=report, hosting=hosting)
    assert waited
    # The attempt did not end by a fault of the trial's: it may be made again.
    assert [attempt.ended for attempt in attempts.read(tmp_path / "trials" / trial.trial_id)] == [None]


def test_a_full_disk_ends_neither_training_nor_loses_the_result(experiment, storage, tmp_path):
    """RLIMIT_FSIZE makes every write of more than so many bytes fail, as a full disk does, until it is lifted."""
    trial = arm_trials(experiment)[0]
    often = Hosting(faults=Faults(checkpoint_minutes=1e-9))
    before, waited = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def report(told: Any) -> None:
        if told.get("doing") == "training" and told["step"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        if str(told.get("doing")).startswith("waiting for storage"):
            waited.append(told["doing"])
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        row = run_trial(trial, run=tmp_path, storage=storage, report=report, hosting=often)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (row["status"], row["updates"], len(waited)) == ("completed", 6, 1)
    assert results.finished_trials(tmp_path)[trial.trial_id] == row


def test_only_a_checkpoint_that_was_written_counts_as_one(experiment, storage, tmp_path):
    """A file stands where the folder of checkpoints belongs from update 2 on; the process is gone at update 6."""
    trial = arm_trials(experiment)[0]
    folder = tmp_path / "trials" / trial.trial_id
    often = Hosting(faults=Faults(checkpoint_minutes=1e-9))
    seen: list[attempts.Attempt] = []

    def report(told: Any) -> None:
        if told.get("doing") == "training" and told["step"] in (2, 6):
            seen.append(attempts.read(folder)[-1])
            if told["step"] == 6:
                raise KeyboardInterrupt
            shutil.rmtree(folder / "resume")
            (folder / "resume").write_text("in the way")

    with pytest.raises(KeyboardInterrupt):
        run_trial(trial, run=tmp_path, storage=storage, report=report, hosting=often)
    after_two, after_six = seen
    assert after_two.started < after_two.saved == after_six.saved < after_six.alive
    # All since then would be computed again.
    assert after_six.lost_seconds > 0


def test_a_loss_that_is_not_a_number_ends_a_trial_as_diverged(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    settings = trial.settings.model_dump()
    settings["training"] |= {"learning_rate": 0.99, "max_grad_norm": None, "updates": 200, "evaluations": 1}
    settings["model"]["lora"]["alpha"] = 1e30
    wild = Trial.model_validate(trial.model_dump() | {"settings": settings})
    row = run_trial(wild, run=tmp_path, storage=storage, report=nothing)
    assert row["status"] == "diverged"
    assert "became" in row["reason"]
    assert row["updates"] < 200
    assert row["stability"] == 0


@pytest.mark.parametrize(("win_rate", "judged"), [(0.99, 12), (0.5, 16)])
def test_a_search_trial_is_judged_to_the_end_only_where_it_can_still_be_on_the_front(
    experiment, storage, tmp_path, win_rate, judged
):
    """An untrained policy against a made-up trial that wins nearly always, or as often as not."""
    settings = arm_trials(experiment)[0].settings.model_dump()
    settings["training"]["updates"] = 0
    settings["evaluation"] |= {"judge_first": 12, "selection_prompts": 16}
    other, trial = (
        Trial.model_validate(
            arm_trials(experiment)[0].model_dump()
            | {"trial_id": name, "label": name, "phase": "search", "prompt_set": "selection", "settings": settings}
        )
        for name in ("search-0001", "search-0002")
    )
    done = {"status": "completed", "win_rate": win_rate, "prompts": 1000, "stability": 1.0, "healthy": True}
    results.write_trial(tmp_path, row=blank_row(other, datetime.now(UTC)) | done, answers=[], curves=[], pairs=[])
    row = run_trial(trial, run=tmp_path, storage=storage, report=nothing)
    assert row["prompts"] == judged
    answers = computed(tmp_path, trial)[2]
    assert (len(answers), answers["outcome"].notna().sum()) == (16, judged)
