"""What the engine relies on and only a GPU can confirm, in seconds: each check is a row whose figures are foreseen."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from slime_ray.data.packing import Segment
from slime_ray.errors import SlimeRayError

from .child import reason
from .gpu import GpuRow, GpuSizes
from .machine import find_device, timed

Figures = dict[str, float]


def engine(case: str, sizes: GpuSizes) -> list[GpuRow]:
    """Run all checks; one that fails, or needs a GPU that is not here, is a row with its reason."""
    device, rows = find_device(sizes.device), []
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            rows.append(GpuRow("engine", name, check(device)))
        except (RuntimeError, ImportError, TypeError, SlimeRayError) as error:
            rows.append(GpuRow("engine", name, failure=reason(error)))
    return rows


def head(device: torch.device) -> Figures:
    """Compare tiles in bfloat16, on a GPU compiled, with all logits in float32: some thousandths."""
    from slime_ray.model.head import Head

    linear = nn.Linear(256, 5000, bias=False, device=device)
    hidden = torch.randn(300, 256, device=device, requires_grad=True)
    targets = torch.randint(5000, (300,), device=device)
    leaves = [hidden, linear.weight]
    exact = linear(hidden).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        tiled = Head(linear, None, 5000, 2**19, fused=True).logps(hidden, targets)
    gradients = [torch.autograd.grad(logps.sum(), leaves) for logps in (tiled, exact)]
    off = max(_off(gradient, reference) for gradient, reference in zip(*gradients, strict=True))
    return {"log-probabilities off by": _off(tiled, exact), "gradients off by": off}


def segments(device: torch.device) -> Figures:
    """Check that the allocator took the setting that trials give it: 100 %."""
    _needs_gpu(device)
    block = torch.zeros(2**20, device=device)
    expandable = [segment["is_expandable"] for segment in torch.cuda.memory_snapshot()]
    return {"% expandable": 100 * sum(expandable) / len(expandable), "MiB": block.nbytes / 2**20}


def halving(device: torch.device) -> Figures:
    """Run out of 768 MiB at 1 MiB a token, and give it back: 512 tokens, 0 MiB."""
    from slime_ray.model.memory import in_rows_that_fit

    _needs_gpu(device)
    torch.cuda.set_per_process_memory_fraction(768 * 2**20 / torch.cuda.get_device_properties(device).total_memory)
    try:
        tokens = in_rows_that_fit(
            lambda row: torch.empty(row * 2**18, device=device).numel() // 2**18, 2**12, longest=16
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"tokens a row": tokens, "MiB held": torch.cuda.memory_allocated(device) / 2**20}


def bits(device: torch.device) -> Figures:
    """Compare the gradients of two runs of variable-length attention: 0 where deterministic."""
    _needs_gpu(device)
    pairs = [Segment(180, 250, 250)] * 4
    inputs = [torch.randn(1, count, 4 * 680, 256, device=device).bfloat16() for count in (8, 4, 4)]
    weights = torch.randn(1, 4 * 680, 8, 256, device=device).bfloat16()

    def differing() -> float:
        first, second = ([x.clone() for x in attend("varlen", None, inputs, weights, pairs)[0]] for _ in range(2))
        return 100 * max(float((a != b).double().mean()) for a, b in zip(first, second, strict=True))

    figures = {"% differ": differing()}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return figures | {"% differ, deterministic": differing()}
    finally:
        torch.use_deterministic_algorithms(False)


def continuous(device: torch.device) -> Figures:
    """Compare greedy answers by continuous batching with those of `generate`: 100 %."""
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    from slime_ray.evaluation.continuous import continuous_batching
    from slime_ray.model.logprobs import Policy

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None,
    )  # fmt: skip
    policy: Any = Policy(AutoModelForCausalLM.from_config(config).to(device)).eval()
    prompts = [torch.randint(2, 512, (length,)).tolist() for length in (3, 9, 17, 40)]
    greedy = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=[1], use_cache=True)

    def generate_one(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=device)
        answer: list[int] = policy.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy
        )[0, len(prompt) :].tolist()
        return answer

    with torch.no_grad():
        answers = continuous_batching(policy, prompts, greedy, seed=0)
        equal = [ids == generate_one(prompt) for ids, prompt in zip(answers, prompts, strict=True)]
    return {"% equal": 100 * sum(equal) / len(equal)}


def attend(
    kernel: Any, window: int | None, inputs: list[Any], weights: Any, segments: list[Segment]
) -> tuple[list[Any], float]:
    """Run a kernel forward and backward; return outputs, gradients and the last time of three."""
    from slime_ray.data.packing import Spans
    from slime_ray.model.attention import RowLayout, row_attention

    layout = RowLayout(segments, Spans.of(segments).to(weights.device), kernel)
    leaves = [x.detach().requires_grad_() for x in inputs]
    tensors: list[Any] = []

    options: Any = {"scaling": leaves[0].shape[-1] ** -0.5, "sliding_window": window, "row_layout": layout}

    def run() -> None:
        query, key, value = leaves
        out, _ = row_attention(None, query, key, value, None, **options)
        tensors[:] = [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]

    return tensors, [timed(run, weights.device) for _ in range(3)][-1]


def _off(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((values - exact).norm() / exact.norm()).detach())


def _needs_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise RuntimeError("it needs a GPU, and this is a CPU")


CHECKS: dict[str, Callable[[torch.device], Figures]] = {
    function.__name__: function for function in (head, segments, halving, bits, continuous)
}
