"""Generation, held-out log-probabilities and KL on a real (tiny) model."""

import copy
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from slime_ray.config.evaluation import Decoding
from slime_ray.config.model import Lora
from slime_ray.data.pairs import TokenPair
from slime_ray.data.tasks import load_task
from slime_ray.evaluation.generate import generate_answers
from slime_ray.evaluation.held_out import measure_held_out, sum_logps
from slime_ray.evaluation.stability import kl_to_reference
from slime_ray.model.logprobs import Policy, kl_divergence
from slime_ray.model.lora import add_lora
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from tests.rendered import render_prompt

TASK = load_task("arithmetic")
TOKENIZER = tiny_tokenizer(TASK)
STOP = (TOKENIZER.eos_token_id,)
PROMPTS = [render_prompt(TOKENIZER, row) for row in TASK.prompts(9, purpose="selection", seed=0)["prompt"]]
SAMPLING = Decoding(temperature=1.0, max_new_tokens=12, batch=4)


@pytest.fixture
def lm():
    return tiny_model(TASK, seed=0)


def generate(lm, decoding=SAMPLING, *, prompts=PROMPTS, seed=0):
    return generate_answers(lm, TOKENIZER, prompts, decoding=decoding, stop_tokens=STOP, seed=seed)


def test_the_same_seed_repeats_the_answers_and_leaves_the_random_state_alone(lm):
    torch.manual_seed(5)
    first = generate(lm)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == after
    assert generate(lm) == first
    assert generate(lm, seed=1) != first


def test_an_answer_ends_before_its_stop_token_or_at_the_limit(lm):
    with torch.no_grad():
        lm.get_output_embeddings().weight[:] = 0
    for answer in generate(lm, Decoding(temperature=1.0, max_new_tokens=40, batch=4)):
        assert STOP[0] not in answer.token_ids
        assert answer.stopped == (len(answer.token_ids) < 40)
        assert answer.leaked == bool(set(answer.token_ids) & set(TOKENIZER.all_special_ids))


def pairs(count: int) -> list[TokenPair]:
    rows = TASK.pairs(count, split="held_out", seed=0)

    def ids(messages) -> list[int]:
        return [*TOKENIZER(messages[0]["content"], add_special_tokens=False).input_ids, *STOP]

    return [
        TokenPair(
            render_prompt(TOKENIZER, row["prompt"]),
            ids(row["chosen"]),
            ids(row["rejected"]),
        )
        for row in rows
    ]


@pytest.mark.parametrize("shares_prompts", [True, False])
def test_held_out_measurements_are_in_the_order_of_the_pairs_whatever_the_rows(lm, shares_prompts):
    policy, held_out = Policy(lm), pairs(11)
    whole = measure_held_out(policy, held_out, row_tokens=8192)
    policy.shares_prompts = shares_prompts
    small = measure_held_out(policy, held_out, row_tokens=80)
    assert small.chosen_lengths.tolist() == [len(pair.chosen_ids) for pair in held_out]
    np.testing.assert_allclose(small.chosen, whole.chosen, atol=1e-5)
    np.testing.assert_allclose(small.rejected, whole.rejected, atol=1e-5)
    np.testing.assert_allclose(small.entropy, whole.entropy, atol=1e-5)
    np.testing.assert_allclose(small.top_probability, whole.top_probability, atol=1e-5)


def test_sums_of_log_probabilities_are_those_of_each_sequence_alone(lm):
    """Against transformers' own logits, sequence by sequence."""

    def alone(pair: TokenPair, completion: Sequence[int]) -> float:
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([[*pair.prompt_ids, *completion]])).logits[0]
        logps = logits[len(pair.prompt_ids) - 1 : -1].double().log_softmax(1)
        return float(logps.gather(1, torch.tensor([completion]).T).sum())

    measured = pairs(11)
    chosen, rejected = sum_logps(Policy(lm), measured, row_tokens=80)
    np.testing.assert_allclose(chosen, [alone(pair, pair.chosen_ids) for pair in measured], atol=1e-4)
    np.testing.assert_allclose(rejected, [alone(pair, pair.rejected_ids) for pair in measured], atol=1e-4)


MANY = """
import random, resource
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from slime_ray.data.pairs import TokenPair
from slime_ray.evaluation.held_out import measure_held_out
from slime_ray.model.logprobs import Policy

torch.set_num_threads(1)
chance = random.Random(0)
ids = lambda length: [chance.randrange(4096) for _ in range(length)]
policy = Policy(LlamaForCausalLM(LlamaConfig(
    vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
policy.shares_prompts, start = True, peak()
measure_held_out(policy, [TokenPair(ids(120), ids(130), ids(130)) for _ in range(300)], row_tokens=2048)
print(peak() - start)
"""


@pytest.mark.slow
def test_measuring_many_pairs_takes_the_memory_of_a_few_rows():
    """A row's logits take 20 MiB, and there are 60 rows; in a process of its own, whose heap nothing has used."""
    run = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, timeout=120, check=True)
    assert float(run.stdout) < 600


def test_kl_is_zero_against_itself_and_the_mean_over_generated_tokens_otherwise(lm):
    samples = [TokenPair(pair.prompt_ids, pair.chosen_ids) for pair in pairs(5)]
    other = copy.deepcopy(lm)
    assert kl_to_reference(Policy(lm), Policy(other), samples, row_tokens=60) == 0
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.5)
    found = kl_to_reference(Policy(lm), Policy(other), samples, row_tokens=60)
    expected = []
    for pair in samples:
        ids = torch.tensor([[*pair.prompt_ids, *pair.chosen_ids]])
        with torch.no_grad():
            a, b = (model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1] for model in (lm, other))
        expected.append(kl_divergence(a, b))
    assert found == pytest.approx(float(torch.cat(expected).mean()), rel=1e-4)


def test_an_adapted_model_is_its_own_reference_with_the_adapters_off(lm):
    base = copy.deepcopy(lm)
    adapted = add_lora(lm, Lora(rank=2, alpha=4))
    samples = [TokenPair(pair.prompt_ids, pair.chosen_ids) for pair in pairs(4)]
    measure = {"row_tokens": 8192}
    assert kl_to_reference(Policy(adapted), None, samples, **measure) == pytest.approx(0, abs=1e-9)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    own = kl_to_reference(Policy(adapted), None, samples, **measure)
    assert own > 1e-3
    assert own == pytest.approx(kl_to_reference(Policy(adapted), Policy(base), samples, **measure), rel=1e-4)
