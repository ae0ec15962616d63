"""Whole plans: the paper's model on eight H100s, what does not fit, what judging takes, what is printed."""

import json
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from slime_ray.errors import InputError
from slime_ray.model.flops import Lengths
from slime_ray.model.footprint import FRAGMENTS, footprint, peak_memory
from slime_ray.planning.estimate import Planner
from slime_ray.planning.material import DataAssumptions
from slime_ray.planning.plan import Cluster, Range
from slime_ray.planning.rates import MeasuredRates

from .conftest import ON_H100, TINY

PAPER = """\
name: paper
preset: gemma3-4b/paper
arms: {slime: {}}
goals: {preference_accuracy: maximize, stability: maximize}
resources: {workers: 8, gpu_per_worker: 1, cpu_per_worker: 8}
"""
ONE = replace(ON_H100, trials=1)
GIB = 2**30


def test_the_papers_run_on_eight_h100(load):
    plan = Planner(load(PAPER)).plan(ONE)
    (row,) = plan.rows
    # 39,689 pairs in updates of 128, once; 680 tokens each.
    assert (row.trials, row.updates) == (1, 311)
    assert row.tokens == Range(*[39_689 * 680] * 3)
    # At 11.35 TFLOP a pair.
    assert row.flops == pytest.approx(39_689 * 11.354e12, rel=1e-3)
    # 20,446 demonstrations of 430 tokens, three times.
    assert plan.sft_tokens == 3 * 20_446 * 430
    assert plan.gpu_hours is not None
    assert plan.time is not None
    # Training alone: 0.4506e18 / (8 * 989e12 * 0.35) seconds.
    assert 163 < row.seconds.expected < 1.25 * 3600
    assert plan.gpu_hours.expected < 10
    assert plan.cost.expected == pytest.approx(plan.gpu_hours.expected * 3.0)
    assert not plan.refusals
    assert not plan.warnings
    assert plan.basis is not None
    assert "assumption" in plan.basis
    text = plan.text()
    for said in ("slime", "26,988,520", "8 x h100", "GPU-hours", "USD", "prices.yaml", "61,135 pairs"):
        assert said in text
    said = json.loads(json.dumps(plan.as_dict()))
    assert said["tokens"]["expected"] == 39_689 * 680
    assert said["gpu_hours"]["low"] < said["gpu_hours"]["expected"] < said["gpu_hours"]["high"]


def test_twice_the_gpus_are_half_the_training(load):
    """What is not divided, such as the reading of the model, stays."""
    seconds = {}
    for workers in (1, 2):
        plan = Planner(load(PAPER, resources__workers=workers, training__updates=3110)).plan(ONE)
        seconds[workers] = plan.rows[0].seconds.expected
    assert seconds[1] / 2 < seconds[2] < 0.55 * seconds[1]


def test_memory_by_hand(load):
    """Llama 3.2 3B with 16 tokens in a row: what is held, and what answers add."""
    experiment = load(
        PAPER.replace("gemma3-4b", "llama3.2-3b"), model__lora={"rank": 8, "alpha": 16.0, "train_head": False}
    )
    memory = peak_memory(
        experiment.settings, gpu=True, workers=1, sharded=False, row=16, pair=Lengths(4, 6, 6), prompt=1
    )
    adapters = 28 * 8 * ((3072 + 3072) * 2 + (3072 + 1024) * 2 + (3072 + 8192) * 3)
    body = 28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192)
    norms = (2 * 28 + 1) * 3072
    assert memory.parts["weights"] == 2 * (body + 128256 * 3072 + norms) + 4 * adapters
    assert memory.parts["gradients"] == 4 * adapters
    assert memory.parts["moments"] == 8 * adapters
    # 64 answers of 1 + 1024 tokens under bfloat16 keys and values, and five float32 logit rows.
    cache = 64 * 28 * 1025 * 2 * 8 * 128 * 2 + 5 * 4 * 64 * 128256
    assert memory.parts["answers' cache"] == cache
    held = sum(memory.parts[name] for name in ("weights", "gradients", "moments"))
    assert memory.peak == pytest.approx(FRAGMENTS * (held + cache) + GIB)


def test_memory_above_the_gpus_is_refused_with_what_would_fit(load):
    small = Planner(load(PAPER, data__row_tokens=8192)).plan(replace(ONE, gpu="NVIDIA L40S"))
    (refusal,) = small.refusals
    assert "more than the 44.0 GiB that a worker has of an l40s" in refusal
    with pytest.raises(InputError, match=r"Ways out: lower data\.row_tokens"):
        small.refuse()
    # The way out that it names is one.
    assert "on a GPU leave it out" in refusal
    assert not Planner(load(PAPER)).plan(replace(ONE, gpu="L40S")).refusals


def test_a_gpu_without_bfloat16_is_refused(load):
    plan = Planner(load(PAPER)).plan(replace(ONE, gpu="Tesla V100"))
    assert plan.time is None
    assert any("v100 does not compute in bfloat16" in refusal for refusal in plan.refusals)


def test_float32_on_a_gpu_that_knows_bfloat16_is_said_to_cost(load, tmp_path):
    LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4).save_pretrained(tmp_path)
    text = TINY + "arms: {slime: {}}\nresources: {gpu_per_worker: 1}\n"
    planner = Planner(load(text, model__source=str(tmp_path)), assumptions=DataAssumptions(100, (20.0, 30.0, 30.0)))
    (warning,) = planner.plan(ONE).warnings
    assert "computes several times slower than bfloat16" in warning


def test_disk_above_the_free_is_refused(load):
    experiment = load(PAPER, seeds=[0, 1, 2])
    plan = Planner(experiment).plan(replace(ONE, disk_free=20 * GIB))
    saved = footprint(experiment.settings.model).trained
    # The SFT checkpoint, three models, and one trial's two checkpoints with moments.
    assert plan.disk["trained models"] == 3 * saved
    assert plan.disk["checkpoints"] == 6 * saved
    best = Planner(load(PAPER, training__keep={"stability": "maximize"})).plan(ONE)
    # With its best weights, which each of the checkpoints has a copy of.
    assert best.disk["checkpoints"] == 9 * saved
    assert plan.disk_bytes > 20 * GIB
    with pytest.raises(InputError, match=r"and 20.0 GiB are free at the storage.*budget.checkpoints"):
        plan.refuse()
    assert not Planner(experiment).plan(replace(ONE, disk_free=60 * GIB)).refusals


def test_kept_models_follow_the_budget(load):
    text = TINY + "arms: {slime: {}}\nsearch: {objective.anchor_weight: {log_uniform: [0.01, 2.0]}}\n"
    here = Cluster(trials=2, where="here")
    one = Planner(load(text, budget__trials=9, budget__checkpoints=1)).plan(here).disk
    every = Planner(load(text, budget__trials=9)).plan(here).disk
    assert one["trained models"] * 10 == every["trained models"] * 2


def test_more_workers_than_the_cluster_has_are_refused(load):
    plan = Planner(load(PAPER)).plan(replace(ONE, trials=0, never="A trial asks for more than there is."))
    with pytest.raises(InputError, match=r"than there is\. To plan for another cluster"):
        plan.refuse()


def test_the_machines_memory_counts_where_trials_use_no_gpu(load):
    plan = Planner(load(TINY + "arms: {slime: {}}\n")).plan(Cluster(trials=2, where="here", memory=0.5 * GIB))
    assert "more than the 512.0 MiB that a process has here" in plan.refusals[0]
    assert plan.time is None
    assert "give --probe" in plan.text()


def test_a_budget_that_ends_it_early_is_said(load):
    plan = Planner(load(PAPER, budget__hours=0.01)).plan(ONE)
    assert any("budget.hours 0.01 ends it" in warning for warning in plan.warnings)
    assert "Warning: budget.hours" in plan.text()


RATES = {
    "update": 0.5, "token": 0.001, "read_token": 0.0005, "decode_step": 0.01, "decode_row": 0.001, "load": 1.0,
    "save": 2.0, "setup": 3.0, "process": 10.0,
}  # fmt: skip
MEASURED = MeasuredRates(
    rates=RATES, around=20.0, peak_bytes=GIB, side_by_side=2, took=60.0, device="2 CPU threads"
)  # fmt: skip


def test_a_measured_plan_by_hand(load):
    """One arm without sentinel and comparison: every amount times its rate."""
    text = TINY + "arms: {slime: {}}\n"
    experiment = load(text, sentinel__action="none", training__updates=10, evaluation__decoding__max_new_tokens=1)
    planner = Planner(experiment)
    plan = planner.plan(Cluster(trials=2, where="here"), MEASURED)
    material = planner.material(experiment.settings)
    (row,) = plan.rows
    held_out = 12 * material.held_out.tokens
    report, selection = material.prompts["report"], material.prompts["selection"]
    answers = (2 * 1 * (0.01 + 4 * 0.001) + 8 * report.tokens * 0.0005) + (
        0.01 + 2 * 0.001 + 2 * report.tokens * 0.0005
    )
    trial = 10 * 0.5 + row.tokens.expected * 0.001
    trial += 3 * held_out * 0.0005 + held_out * 0.0005 + 2 * 4 * (report.tokens + material.answer) * 0.0005 + answers
    # It is read twice, since a model without adapters is compared with another one.
    # A verdict takes a tenth of a millisecond, which is assumed.
    trial += 20 * 0.0001 + 5.0 + 3 * 1.0
    assert row.seconds.expected == pytest.approx(trial)
    assert plan.stages["sft"].expected == pytest.approx(4 * 0.5 + plan.sft_tokens * 0.001 + 1.0 + 2.0)
    assert plan.stages["step0"].expected == pytest.approx(1.0 + held_out * 0.0005)
    chosen = answers + (0.01 + 4 * 0.001 + 4 * selection.tokens * 0.0005) + (
        0.01 + 2 * 0.001 + 2 * selection.tokens * 0.0005
    )  # fmt: skip
    assert plan.stages["baseline"].expected == pytest.approx(1.0 + chosen)
    # Ray's start, the report as long as a process, the stages' process and the trial's.
    stages = sum(taken.expected for taken in plan.stages.values())
    assert plan.time.expected == pytest.approx(20 + 10 + 10 + 10 + stages + trial)
    assert plan.trial_seconds.expected == pytest.approx(trial)
    assert plan.peak == GIB


def test_the_report_of_a_search_takes_twice_as_long(load):
    search = "search: {objective.anchor_weight: {log_uniform: [0.01, 2.0]}}\n"
    planner = Planner(load(TINY + "arms: {slime: {}}\n" + search, budget__trials=1))
    plan = planner.plan(Cluster(trials=2, where="here"), MEASURED)
    stages, trials = (sum(one.expected for one in ones) for ones in (plan.stages.values(), [plan.trial_seconds]))
    # Both trials run at once, each in half of the seconds of both.
    assert plan.time.expected == pytest.approx(20 + 2 * 10 + 10 + 10 + stages + trials / 2, rel=0.05)


def test_a_reference_is_made_where_an_objective_needs_one(load):
    arms = "arms: {slime: {}, dpo: {objective: {name: dpo}}}\n"
    plan = Planner(load(TINY + arms)).plan(Cluster(trials=1, where="here"), MEASURED)
    assert "reference" in plan.stages
    alone = Planner(load(TINY + "arms: {slime: {}}\n")).plan(Cluster(trials=1, where="here"), MEASURED)
    assert "reference" not in alone.stages


def test_early_stopping_leaves_fewer_tokens_and_answers(load):
    text = TINY + "arms: {slime: {}}\nsearch: {objective.anchor_weight: {log_uniform: [0.01, 2.0]}}\n"
    here = Cluster(trials=1, where="here")
    whole = Planner(load(text, budget__trials=27)).plan(here, MEASURED)
    stopped = Planner(load(text, budget__trials=27, early_stopping={"first": 0.3})).plan(here, MEASURED)
    assert stopped.stopping is not None
    assert stopped.tokens.low < stopped.tokens.expected < stopped.tokens.high == whole.tokens.expected
    assert stopped.rows[1].seconds.expected < whole.rows[1].seconds.expected
    assert stopped.rows[0].seconds == whole.rows[0].seconds
    assert "early stopping leaves" in stopped.text()


JUDGE = {
    "name": "llm", "model": "rule", "template": "arena-hard", "api_key_env": None,
    "prices": {"input": 2.0, "output": 10.0},
}  # fmt: skip
SEARCHED = """\
arms: {slime: {}, dpo: {objective: {name: dpo}}}
seeds: [0, 1]
search: {objective.anchor_weight: {log_uniform: [0.01, 2.0]}}
budget: {trials: 3, confirm: {best: 1, seeds: 2}}
"""


def judged(load, **changes):
    experiment = load(TINY + SEARCHED, base__evaluation__judge=JUDGE | changes)
    return Planner(experiment).plan(Cluster(trials=1, where="here"))


def test_comparisons_are_asked_for_in_both_orders(load):
    judging = judged(load).judging
    # Four arms and two confirmations of 10 prompts, three search trials of 6, each in both orders.
    assert judging.requests == Range(*[2 * (6 * 10 + 3 * 6)] * 3)
    assert judging.cost is not None
    expected = (judging.input_tokens.expected * 2 + judging.output_tokens.expected * 10) / 1e6
    assert judging.cost.expected == pytest.approx(expected)


def test_ratings_are_one_an_answer_and_the_baselines_once(load):
    assert judged(load, template="mt-bench-single").judging.requests == Range(*[6 * 10 + 3 * 6 + 10 + 6] * 3)


def test_judging_first_prompts_only_is_a_range(load):
    experiment = load(TINY + SEARCHED, base__evaluation__judge=JUDGE, base__evaluation__judge_first=2)
    plan = Planner(experiment).plan(Cluster(trials=1, where="here"))
    assert plan.judging.requests == Range(120 + 3 * 4, 120 + 3 * 8, 120 + 3 * 12)


@pytest.mark.parametrize(
    ("budget", "on_failure", "said"),
    [
        ({"requests": 78}, "stop", "budget.requests 78 is spent after about 50% of the verdicts; then trials stop"),
        ({"requests": 39, "tokens": 10**9}, "continue", "25% of the verdicts; then trials go on without"),
        ({"cost": 0.01}, "stop", "budget.cost 0.01 is spent"),
        ({"requests": 156}, "stop", None),
    ],
)
def test_a_judges_budget_that_is_too_small_is_said(load, budget, on_failure, said):
    found = " ".join(judged(load, budget=budget, on_failure=on_failure).warnings)
    assert found == "" if said is None else said in found


def test_prices_of_the_users_count(load, tmp_path):
    from slime_ray.planning.prices import load_prices

    own = tmp_path / "own.yaml"
    own.write_text("gpus: {h100: {usd_per_hour: 1.5}}\n")
    plan = Planner(load(PAPER), prices=load_prices(own)).plan(ONE)
    shipped = Planner(load(PAPER)).plan(ONE)
    assert plan.cost.expected == pytest.approx(shipped.cost.expected / 2)
    assert str(own) in plan.text()


def test_given_lengths_need_no_data(load):
    """The data of an embedded task is not even made."""
    experiment = load(TINY + "arms: {slime: {}}\n", data__pairs=66)
    plan = Planner(experiment, assumptions=DataAssumptions(1000, (20.0, 30.0, 30.0))).plan(
        Cluster(trials=1, where="here")
    )
    assert plan.rows[0].tokens == Range(*[80 * ((7 - 5) * 16 + 66)] * 3)
