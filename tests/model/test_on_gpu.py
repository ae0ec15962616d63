"""What the engine relies on and only a GPU can confirm, with the figures that are foreseen.

On a machine without one, the parts that run on a CPU too are tested there, and the others are skipped.
"""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from slime_ray.bench.gpu_parts import attend
from slime_ray.bench.machine import in_a_process
from slime_ray.data.packing import Segment
from slime_ray.evaluation.continuous import continuous_batching
from slime_ray.model.head import Head
from slime_ray.model.logprobs import Policy
from slime_ray.model.memory import in_rows_that_fit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")


def off(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((values - exact).norm() / exact.norm()).detach())


def test_tiles_in_bfloat16_are_off_by_its_rounding():
    """On a GPU they are compiled; beside them stand all logits in float32."""
    torch.manual_seed(0)
    linear = nn.Linear(256, 5000, bias=False, device=DEVICE)
    hidden = torch.randn(300, 256, device=DEVICE, requires_grad=True)
    targets = torch.randint(5000, (300,), device=DEVICE)
    exact = linear(hidden).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        tiled = Head(linear, None, 5000, 2**19, fused=True).logps(hidden, targets)
    gradients = [torch.autograd.grad(logps.sum(), [hidden, linear.weight]) for logps in (tiled, exact)]
    assert 1e-5 < off(tiled, exact) < 1e-2
    assert all(1e-4 < off(*both) < 1e-2 for both in zip(*gradients, strict=True))


def test_greedy_answers_by_continuous_batching_are_those_of_generate():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None,
    )  # fmt: skip
    policy: Any = Policy(AutoModelForCausalLM.from_config(config).to(DEVICE)).eval()
    prompts = [torch.randint(2, 512, (length,)).tolist() for length in (3, 9, 17, 40)]
    greedy = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=[1], use_cache=True)
    with torch.no_grad():
        answers = continuous_batching(policy, prompts, greedy, seed=0)
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt], device=DEVICE)
            alone = policy.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            assert answer == alone[0, len(prompt) :].tolist()


@needs_gpu
def test_rows_are_halved_until_they_fit_and_memory_is_given_back():
    """768 MiB at 1 MiB a token hold 512 tokens."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(DEVICE)
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 768 * 2**20) / total)
    try:
        tokens = in_rows_that_fit(
            lambda row: torch.empty(row * 2**18, device=DEVICE).numel() // 2**18, 2**12, longest=16
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tokens == 512
    assert torch.cuda.memory_allocated(DEVICE) == held


def expandable_share() -> float:
    block = torch.zeros(2**20, device="cuda")
    segments = [segment["is_expandable"] for segment in torch.cuda.memory_snapshot()]
    return sum(segments) / len(segments) if block.nbytes else 0.0


@needs_gpu
def test_the_allocator_takes_the_setting_that_trials_give_it():
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert in_a_process(expandable_share, environment=environment).values == 1.0


@needs_gpu
def test_variable_length_attention_repeats_its_gradients_where_deterministic():
    pairs = [Segment(180, 250, 250)] * 4
    inputs = [torch.randn(1, count, 4 * 680, 256, device=DEVICE).bfloat16() for count in (8, 4, 4)]
    weights = torch.randn(1, 4 * 680, 8, 256, device=DEVICE).bfloat16()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = ([x.clone() for x in attend("varlen", None, inputs, weights, pairs)[0]] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
