"""PreferenceTrainer: what an update computes must not depend on how its pairs are cut into micro-batches."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    TrainerCallback,
)

from slime_ray.config.model import Lora
from slime_ray.config.settings import Schedule
from slime_ray.data.packing import pack
from slime_ray.data.pairs import TokenPair
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.objectives import (
    DpoObjective,
    DpoShiftObjective,
    Objective,
    ReleasedSlimeObjective,
    SftObjective,
    SimpoObjective,
    SlimeObjective,
)
from slime_ray.runs import files
from slime_ray.training.checkpoint import latest
from slime_ray.training.trainer import Next, PreferenceTrainer
from slime_ray.training.updates import Updates, shares

from .rank_worker import CONFIG, draw_pairs

SCHEDULE = Schedule(learning_rate=1e-2, updates=4)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, attn_implementation="sdpa").double()


def train(
    model,
    tmp_path: Path,
    objective: Objective,
    *,
    pairs=None,
    schedule=SCHEDULE,
    stop_at=None,
    saved=None,
    shared_prompt=True,
    **options,
):
    """Curves and final weights of a run from a copy of `model`."""
    curves: list[dict[str, float]] = []
    policy = Policy(copy.deepcopy(model))

    def after_update(step, metrics) -> Next:
        assert metrics.pop("urgent") == 0
        curves.append({"step": step, **metrics})
        return Next(save=step == stop_at, stop=step == stop_at)

    policy.shares_prompts = shared_prompt
    settings = {"pairs_per_update": 8, "row_tokens": 10_000, "seed": 0} | options
    trainer = PreferenceTrainer(
        policy=policy,
        objective=objective,
        pairs=pairs or draw_pairs(24),
        schedule=schedule,
        scratch=tmp_path / "scratch",
        after_update=after_update,
        **settings,
    )
    trainer.resume(saved)
    return curves, torch.cat([p.detach().flatten() for p in policy.parameters()]), trainer


RELEASED = ReleasedSlimeObjective(micro_batch_pairs=3)
OBJECTIVES = [SlimeObjective(), RELEASED, DpoObjective(), SimpoObjective(), SftObjective()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_an_update_does_not_depend_on_micro_batches_or_layout(model, tmp_path, objective):
    curves, weights, _ = train(model, tmp_path, objective)
    for change in ({"row_tokens": 70}, {"row_tokens": 1}, {"shared_prompt": False}):
        other_curves, other_weights, _ = train(model, tmp_path, objective, **change)
        assert [list(a) for a in curves] == [list(b) for b in other_curves], change
        for a, b in zip(curves, other_curves, strict=True):
            # transformers' RMSNorm goes through float32, and Adam divides by gradients however small.
            assert b == pytest.approx(a, abs=1e-6), change
        torch.testing.assert_close(other_weights, weights, rtol=0, atol=1e-6)


def test_the_logged_loss_is_the_objective_on_the_whole_update(model, tmp_path):
    pairs = draw_pairs(8)
    curves, _, _ = train(model, tmp_path, SlimeObjective(), pairs=pairs, row_tokens=40)
    policy = Policy(model).eval()
    with torch.no_grad():
        logps = policy(pack(pairs))
    output = SlimeObjective()(logps.chosen, logps.chosen_lengths, logps.rejected, logps.rejected_lengths)
    first = curves[0]
    assert first["loss"] == pytest.approx(float(output.loss), rel=1e-9)
    assert first["stabilizer"] == pytest.approx(float(output.value("stabilizer")), rel=1e-9)
    assert first["mean_margin"] == pytest.approx(float(output.margins.mean()), rel=1e-9)
    assert first["chosen_logp"] == pytest.approx(float(output.chosen_logps.mean()), rel=1e-9)


def test_an_objective_of_micro_batches_gets_them_whole_and_in_the_order_drawn(model, tmp_path):
    pairs = draw_pairs(8)
    curves, _, _ = train(model, tmp_path, RELEASED, pairs=pairs, row_tokens=40)
    drawn = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    policy = Policy(model).eval()
    with torch.no_grad():
        logps = policy(pack([pairs[index] for index in drawn]))
        turned = policy(pack([pairs[index] for index in reversed(drawn)]))
    output = RELEASED(logps.chosen, logps.chosen_lengths, logps.rejected, logps.rejected_lengths)
    assert curves[0]["loss"] == pytest.approx(float(output.loss), rel=1e-9)
    assert curves[0]["stabilizer"] == pytest.approx(float(output.value("stabilizer")), rel=1e-9)
    # In any other order it would be another loss.
    other = RELEASED(turned.chosen, turned.chosen_lengths, turned.rejected, turned.rejected_lengths)
    assert float(other.value("stabilizer")) != pytest.approx(float(output.value("stabilizer")), rel=1e-5)


def test_the_same_seed_repeats_a_run_and_another_seed_does_not(model, tmp_path):
    first, weights, _ = train(model, tmp_path, SlimeObjective())
    again, again_weights, _ = train(model, tmp_path, SlimeObjective())
    other, _, _ = train(model, tmp_path, SlimeObjective(), seed=1)
    assert first == again
    assert torch.equal(weights, again_weights)
    assert [row["loss"] for row in first] != [row["loss"] for row in other]


def test_the_gradient_norm_is_that_before_clipping_whether_clipping_is_on_or_off(model, tmp_path):
    free, free_weights, _ = train(model, tmp_path, SlimeObjective(), schedule=Schedule(learning_rate=1e-2, updates=1))
    clip = Schedule(learning_rate=1e-2, updates=1, max_grad_norm=1e-9)
    clipped, clipped_weights, _ = train(model, tmp_path, SlimeObjective(), schedule=clip)
    assert free[0]["grad_norm"] > 1e-3
    assert clipped[0]["grad_norm"] == pytest.approx(free[0]["grad_norm"])
    # Adam divides by the gradient's own size, so only its epsilon shows that the gradient shrank.
    assert not torch.equal(free_weights, clipped_weights)


def test_learning_rate_warms_up_and_falls_to_zero(model, tmp_path):
    schedule = Schedule(learning_rate=1.0e-3, updates=10, warmup_fraction=0.2, schedule="linear")
    curves, _, _ = train(model, tmp_path, SlimeObjective(), schedule=schedule)
    rates = [row["learning_rate"] for row in curves]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 2e-4
    assert rates[0] < rates[1]


class Asking(TrainerCallback):
    """Asks for a checkpoint after the second update, and counts what was saved."""

    saved = 0

    def on_step_end(self, args, state, control, **_):
        control.should_save = state.global_step == 2

    def on_save(self, args, state, control, **_):
        self.saved += 1


def test_a_checkpoint_that_a_callback_asks_for_is_one_of_ours(model, tmp_path):
    asking = Asking()
    train(model, tmp_path, SlimeObjective(), checkpoints=tmp_path / "checkpoints", callbacks=[asking])
    assert latest(tmp_path / "checkpoints").step == 2
    assert asking.saved == 1
    assert [path.name for path in (tmp_path / "scratch").glob("checkpoint-*")] == []


class AtTheEnd(TrainerCallback):
    """Asks for a checkpoint when the data is through, and notes where training began."""

    began = None

    def on_train_begin(self, args, state, control, **_):
        self.began = state.global_step

    def on_epoch_end(self, args, state, control, **_):
        control.should_save = True


def test_a_checkpoint_that_a_callback_asks_for_at_the_end_is_one_of_ours_too(model, tmp_path):
    folder = tmp_path / "checkpoints"
    *_, trainer = train(model, tmp_path, SlimeObjective(), checkpoints=folder, callbacks=[AtTheEnd()])
    assert latest(folder).step == trainer.state.global_step
    assert [path.name for path in (tmp_path / "scratch").glob("checkpoint-*")] == []


def test_a_callback_of_a_resumed_run_hears_of_the_updates_that_were_made(model, tmp_path):
    folder = tmp_path / "checkpoints"
    train(model, tmp_path, SlimeObjective(), stop_at=2, checkpoints=folder)
    callback = AtTheEnd()
    train(model, tmp_path, SlimeObjective(), saved=latest(folder), checkpoints=folder, callbacks=[callback])
    assert callback.began == 2


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_repeats_what_an_uninterrupted_one_computes(model, tmp_path, lora):
    """20 pairs at 8 an update: 3 updates an epoch, so the stops lie inside, at the end of and after an epoch."""
    adapted = copy.deepcopy(model)
    if lora:
        # Dropout draws from the random state, which has to go on where it was.
        adapted = add_lora(adapted, Lora(rank=2, alpha=4.0, dropout=0.3, targets=["q_proj", "up_proj"]))
    run = {
        "pairs": draw_pairs(20),
        "schedule": Schedule(learning_rate=1e-2, updates=7, schedule="cosine", warmup_fraction=0.3),
        "checkpoints": tmp_path / "checkpoints",
        "counters": lambda: {"curve": [1.5]},
    }
    torch.manual_seed(5)
    whole, weights, uninterrupted = train(adapted, tmp_path, SlimeObjective(), **run)
    for stop_at in (1, 3, 5):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        torch.manual_seed(5)
        before, _, first = train(adapted, tmp_path, SlimeObjective(), stop_at=stop_at, **run)
        saved = latest(tmp_path / "checkpoints")
        assert saved is not None
        assert (saved.step, saved.counters["curve"]) == (stop_at, [1.5])
        torch.manual_seed(99)
        after, resumed_weights, resumed = train(adapted, tmp_path, SlimeObjective(), saved=saved, **run)
        assert [row["step"] for row in after] == list(range(stop_at + 1, 8))
        assert before + after == whole
        assert torch.equal(resumed_weights, weights)
        # What trackers hear.
        losses = [[row["loss"] for row in each.state.log_history if "loss" in row] for each in (uninterrupted, resumed)]
        assert losses[1] == losses[0][stop_at:]
        assert resumed.pairs_seen == 20 + 20 + 8
        assert first.tokens_seen < resumed.tokens_seen


RISING = DpoShiftObjective(beta=0.4, shift=0.5, schedule="linear", final_shift=1.0)


def test_a_scheduled_shift_trains_as_a_plain_loop_does(model, tmp_path):
    pairs, updates = draw_pairs(8), 5
    schedule = Schedule(learning_rate=1e-2, updates=updates, schedule="constant", weight_decay=0.0)
    curves, weights, _ = train(model, tmp_path, RISING, pairs=pairs, schedule=schedule, row_tokens=40)
    lm = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2, betas=(0.9, schedule.adam_beta2), weight_decay=0.0)
    losses = []
    for update in range(updates):
        # As in the authors' trainer: updates made, over all updates.
        shift = 0.5 + 0.5 * update / updates
        logits = [
            (logp(lm, pair.prompt_ids, pair.chosen_ids) - pair.reference_chosen)
            - shift * (logp(lm, pair.prompt_ids, pair.rejected_ids) - pair.reference_rejected)
            for pair in pairs
        ]
        loss = -torch.nn.functional.logsigmoid(0.4 * torch.stack(logits)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [row["loss"] for row in curves] == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(weights, torch.cat([p.detach().flatten() for p in lm.parameters()]), rtol=0, atol=1e-5)


def logp(lm, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The sum of a completion's token log-probs by transformers, one sequence at a time."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = lm(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(1, ids[0, len(prompt) :, None]).sum()


def test_a_scheduled_shift_goes_on_where_training_was_interrupted(model, tmp_path):
    # Of 10 pairs at 8 an update, two updates are an epoch.
    run = {
        "pairs": draw_pairs(10), "schedule": Schedule(learning_rate=1e-2, epochs=2),
        "checkpoints": tmp_path / "checkpoints",
    }  # fmt: skip
    whole, weights, trainer = train(model, tmp_path, RISING, **run)
    assert (len(whole), trainer.pairs_seen) == (4, 20)
    train(model, tmp_path, RISING, stop_at=2, **run)
    after, resumed, _ = train(model, tmp_path, RISING, saved=latest(tmp_path / "checkpoints"), **run)
    assert after == whole[2:]
    assert torch.equal(resumed, weights)


def test_a_checkpoint_is_whole_and_the_only_one_and_holds_no_pickle(model, tmp_path):
    folder = tmp_path / "checkpoints"
    for stop_at in (1, 2):
        train(model, tmp_path, SlimeObjective(), stop_at=stop_at, checkpoints=folder)
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    names = {path.name for path in (folder / "step-00000002").iterdir()} - {files.RECORD}
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}


def test_a_damaged_checkpoint_is_passed_over(model, tmp_path):
    folder = tmp_path / "checkpoints"
    train(model, tmp_path, SlimeObjective(), stop_at=1, checkpoints=folder)
    shutil.copytree(folder / "step-00000001", folder / "step-00000009")
    (folder / "step-00000009" / "state.json").write_text("{")
    (folder / ".step-00000010.half").mkdir()
    saved = latest(folder)
    assert saved is not None
    assert saved.step == 1


def test_storage_that_takes_nothing_does_not_end_training(model, tmp_path, caplog):
    occupied = tmp_path / "checkpoints"
    occupied.write_text("a file where the folder should be")
    curves, _, _ = train(model, tmp_path, SlimeObjective(), stop_at=2, checkpoints=occupied)
    assert len(curves) == 2
    assert "No checkpoint at update 2" in caplog.text
    assert latest(occupied) is None


def test_gradient_checkpointing_changes_nothing_but_memory(model, tmp_path):
    _, weights, _ = train(model, tmp_path, SlimeObjective())
    _, other, _ = train(model, tmp_path, SlimeObjective(), gradient_checkpointing=True)
    torch.testing.assert_close(other, weights, rtol=0, atol=1e-9)


SMALL: dict[str, Any] = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DROPPING: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "phi": PhiConfig(**SMALL, intermediate_size=24, resid_pdrop=0.2, embd_pdrop=0.2, attention_dropout=0.2),
    "falcon": FalconConfig(**SMALL, hidden_dropout=0.2, attention_dropout=0.2),
    "opt": OPTConfig(
        **SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.2, layerdrop=0.5
    ),
    "mixtral": MixtralConfig(**SMALL, intermediate_size=24, num_key_value_heads=1, router_jitter_noise=0.3),
}


def own_logps(lm, pairs) -> list[TokenPair]:
    """The pairs with the sums of transformers' own log-probabilities, each sequence alone."""

    def total(pair, completion) -> float:
        ids = torch.tensor([[*pair.prompt_ids, *completion]])
        with torch.no_grad():
            logps = lm(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        start = len(pair.prompt_ids)
        return float(logps[start - 1 : -1].gather(1, ids[0, start:, None]).sum())

    return [
        TokenPair(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, total(pair, pair.chosen_ids),
                  total(pair, pair.rejected_ids))
        for pair in pairs
    ]  # fmt: skip


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("row_tokens", [10_000, 40])
def test_dpo_begins_at_ln_2_whatever_dropout_a_model_has(name, row_tokens, tmp_path):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(DROPPING[name], attn_implementation="sdpa").eval()
    pairs = own_logps(lm, draw_pairs(8))
    options = {"pairs": pairs, "schedule": Schedule(learning_rate=1e-3, updates=1), "row_tokens": row_tokens}
    shared = Policy(copy.deepcopy(lm)).shares_prompts
    curves, _, _ = train(lm, tmp_path, DpoObjective(), shared_prompt=shared, **options)
    assert curves[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    drawn, _, _ = train(lm, tmp_path, DpoObjective(), shared_prompt=shared, dropout=True, **options)
    assert drawn[0]["loss"] != pytest.approx(math.log(2), abs=1e-5), "nothing was dropped where it was asked for"


def updates(pairs, *, ranks=1, rank=0, row_tokens=60, epochs=1) -> Updates:
    return Updates(
        dataset=pairs, pairs_per_update=8, row_tokens=row_tokens, shared_prompt=True, reference=False, seed=0,
        rank=rank, ranks=ranks, total=epochs * math.ceil(len(pairs) / 8),
    )  # fmt: skip


def test_ranks_share_an_update_without_loss_or_overlap():
    pairs = draw_pairs(20)
    whole = updates(pairs)
    split = [updates(pairs, ranks=3, rank=rank) for rank in range(3)]
    for update, *parts in zip(whole, *split, strict=True):

        def tokens(*some) -> list[int]:
            return sorted(t for one in some for batch in one.batches for t in batch.rows.targets.tolist())

        assert tokens(update) == tokens(*parts)
        assert all(part.counts == update.counts for part in parts)
        assert update.counts["pairs"] == sum(batch.rows.counts["pairs"] for batch in update.batches)


def test_a_rank_without_a_pair_runs_one_that_does_not_count():
    alone = [next(iter(updates(draw_pairs(2), ranks=3, rank=rank))).batches for rank in range(3)]
    assert [[batch.counted for batch in batches] for batches in alone] == [[True], [True], [False]]


def test_shares_hold_about_as_many_tokens_each():
    assert shares([5, 9, 1, 4, 3, 2], 2) == [[1, 4], [0, 3, 5, 2]]
    assert shares([7], 3) == [[0], [], []]


def test_an_epoch_has_an_order_of_its_own_and_its_last_update_holds_what_is_left():
    loader = updates(draw_pairs(20), row_tokens=1000, epochs=2)

    def targets(some) -> list[list[int]]:
        return [update.batches[0].rows.targets.tolist() for update in some]

    both, again = [*loader], [*loader]
    assert [update.counts["pairs"] for update in both] == [8, 8, 4, 8, 8, 4]
    assert targets(both) == targets(again)
    assert targets(both[:3]) != targets(both[3:])
    assert sorted(t for row in targets(both[:3]) for t in row) == sorted(t for row in targets(both[3:]) for t in row)
    loader.done = 4
    assert targets(loader) == targets(both[4:])
