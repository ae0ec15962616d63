"""A whole trial without Ray: on several ranks, interrupted and gone on with, and told to stop."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from slime_ray.config.experiment import Faults, Trial, arm_trials
from slime_ray.on_ray.stopping import Halving, Ranking
from slime_ray.runs import results
from slime_ray.runs.stability_v1 import TOLERANCES, spike_flags
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts
from slime_ray.training.loop import Runtime
from slime_ray.training.orders import Command, Paused
from slime_ray.training.outcome import blank_row
from slime_ray.training.stages import prepare
from slime_ray.training.worker import run_trial

from . import trial_worker
from .small_trials import Orders, assert_same, changed, computed, nothing


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


def test_the_row_names_the_weights_that_its_trial_starts_from(experiment, storage, whole):
    rows = [computed(whole, trial)[0] for trial in arm_trials(experiment)]
    assert {row["sft_checkpoint"] for row in rows} == {
        prepare(experiment.settings, storage=storage, report=nothing).hashes["sft_weights"]
    }


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


@pytest.mark.parametrize(("arm", "step"), [(0, 0), (0, 2), (1, 4), (0, 6)])
def test_a_paused_trial_goes_on_as_if_it_had_not_been(experiment, storage, whole, tmp_path, arm, step):
    trial = arm_trials(experiment)[arm]
    folder = tmp_path / "trials" / trial.trial_id
    with pytest.raises(Paused, match="for now"):
        run_trial(trial, run=tmp_path, storage=storage, report=Orders(step, Command("pause", "for now")))
    assert results.finished_trials(tmp_path) == {}
    assert [attempt.ended for attempt in attempts.read(folder)] == ["paused"]
    again = Orders(-1, None)
    row = run_trial(trial, run=tmp_path, storage=storage, report=again)
    # What it told before is told again, for whoever has not heard it, and then it goes on.
    assert again.steps == [0, 2, 4, 6]
    assert row["attempts"] == 2
    assert_same(tmp_path, whole, trial)
    assert not (folder / "resume").exists()


def test_a_trial_that_was_cut_off_goes_on_from_its_last_checkpoint(experiment, storage, whole, tmp_path):
    trial = arm_trials(experiment)[0]
    often = Runtime(faults=Faults(checkpoint_minutes=1e-9))
    with pytest.raises(KeyboardInterrupt):
        # Nothing of ours gets to run any more: as if the process had been killed when it reported update 4.
        run_trial(trial, run=tmp_path, storage=storage, report=Orders(4, KeyboardInterrupt()), runtime=often)
    again = Orders(-1, None)
    row = run_trial(trial, run=tmp_path, storage=storage, report=again, runtime=often)
    # From update 3, where its checkpoint is.
    assert again.steps[:3] == [0, 2, 3]
    assert row["attempts"] == 2
    assert [attempt.ended for attempt in attempts.read(tmp_path / "trials" / trial.trial_id)] == ["lost", "finished"]
    assert_same(tmp_path, whole, trial)


def test_a_trial_that_goes_on_passes_its_rungs_once(experiment, storage, tmp_path):
    trial = arm_trials(experiment)[0]
    before, after = (Told(Command("pause", "for now"), at=4), Told(None))
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
    rule = Halving(Ranking({"mean_margin": "maximize"}), first=0.3, reduction=2)
    for told in (*before.evaluations, *after.evaluations):
        assert rule.decide(trial.trial_id, told) is None
    margins = {told["step"]: told["mean_margin"] for told in after.evaluations}
    assert rule.points_by_rung == [{trial.trial_id: (margins[2],)}, {trial.trial_id: (margins[4],)}]


class Told:
    """Keeps what an evaluation tells, and answers that of one step with an order."""

    def __init__(self, order: Command | None, at: int = -1):
        self.order, self.at = order, at
        self.evaluations: list[dict[str, Any]] = []

    def __call__(self, told: Any) -> Command | None:
        if "mean_margin" not in told or told.get("doing") != "training":
            return None
        self.evaluations.append(dict(told))
        return self.order if told["step"] == self.at else None


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(experiment, storage, tmp_path):
    trial, other = arm_trials(experiment)
    with pytest.raises(Paused):
        run_trial(other, run=tmp_path, storage=storage, report=Orders(4, Command("pause", "for now")))
    (tmp_path / "trials" / other.trial_id).rename(tmp_path / "trials" / trial.trial_id)
    again = Orders(-1, None)
    run_trial(trial, run=tmp_path, storage=storage, report=again)
    assert again.steps == [0, 2, 4, 6]


@pytest.mark.parametrize("measure", [False, True])
def test_a_stopped_trial_is_recorded_with_what_it_reached(experiment, storage, tmp_path, measure):
    trial = arm_trials(experiment)[0]
    row = run_trial(
        trial, run=tmp_path, storage=storage, report=Orders(4, Command("stop", "enough is known", measure=measure))
    )
    assert (row["status"], row["reason"], row["updates"]) == ("stopped", "enough is known", 4)
    assert row["preference_accuracy"] is not None
    answers = computed(tmp_path, trial)[2]
    assert (len(answers), row["stability"] is not None) == ((16, True) if measure else (0, False))


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory):
    """A trial without dropout, which draws on each rank, and the storage in which one rank ran it."""
    trial = arm_trials(experiment)[1]
    # The first of the evaluations is kept, which every rank has to take up.
    plain = changed(trial, {"model.lora.dropout": 0.0, "training.keep": {"mean_margin": "minimize"}})
    folder = tmp_path_factory.mktemp("alone")
    run_trial(plain, run=folder, storage=RunStore(folder), report=nothing)
    return plain, folder


@pytest.mark.parametrize(("ranks", "how"), [(2, "ddp"), (2, "fsdp2")])
def test_neither_ranks_nor_sharding_change_a_trial(alone, on_ranks, tmp_path, ranks, how):
    """The stages too are made by all ranks together, in a storage of their own. float32, hence the tolerance."""
    plain, folder = alone
    (tmp_path / "trial.json").write_text(plain.model_dump_json())
    on_ranks(ranks, trial_worker.__file__, tmp_path / "trial.json", tmp_path / "run", tmp_path / "ranks", how)
    row, curves, answers, pairs = computed(tmp_path / "run", plain)
    expected, expected_curves, expected_answers, expected_pairs = computed(folder, plain)
    assert row.pop("workers") == ranks
    assert row["kept_update"] == 2
    assert expected.pop("workers") == 1
    # Ranks add up gradients in another order: their stage has other last digits.
    assert row.pop("sft_checkpoint")
    assert expected.pop("sft_checkpoint")
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
