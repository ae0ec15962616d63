"""transformers' continuous batching: a paged cache, and a prompt that begins wherever an answer has ended."""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from slime_ray.errors import InputError, RunError, is_memory_error
from slime_ray.model.attention import ROW_ATTENTION
from slime_ray.model.logprobs import EXACT_ARCHITECTURES, Policy
from slime_ray.model.sharding import is_sharded

PAGE = 64
"""Tokens of a page of the cache on a CPU, where transformers would otherwise take nearly all of the memory."""


def continuous_batching(
    policy: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, seed: int
) -> list[list[int]]:
    """What one run of transformers' scheduler draws after each prompt, which follows from all of them and the seed.

    Args:
        policy: A Policy or a causal language model.
        prompts: Token ids.
        config: How tokens are chosen.
        seed: Of the run.

    Raises:
        InputError: The model or this machine has no continuous batching.
        RunError: The run ended without all answers.
        FloatingPointError: Logits are not numbers.
    """
    lm = getattr(policy, "causal_lm", policy)
    if is_sharded(policy):
        raise _refusal("a model whose parts are on several ranks (resources.strategy: fsdp2) has none")
    if "seed" not in inspect.signature(ContinuousBatchingConfig).parameters:
        raise _refusal(f"that of transformers {transformers.__version__} takes no seed")
    # Others may keep an attention of their own, which sees all prompts as one.
    if (kind := lm.config.get_text_config().model_type) not in EXACT_ARCHITECTURES:
        raise _refusal(f"it is tested with {', '.join(sorted(EXACT_ARCHITECTURES))}, and this model is {kind}")
    options: dict[str, Any] = {"seed": seed % 2**63, "return_logprobs": True, "drop_unsupported_processors": False}
    if lm.device.type != "cuda":
        longest = max(map(len, prompts))
        pages = math.ceil((longest + config.max_new_tokens) / PAGE) + 1
        options |= {"page_size": PAGE, "num_blocks": pages * len(prompts), "max_batch_tokens": max(longest, 512)}
    devices = [lm.device] if lm.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), _usual_attention(policy), _autocast(policy):
            outputs = list(
                lm.generate_batch(
                    [list(prompt) for prompt in prompts],
                    generation_config=config,
                    continuous_batching_config=ContinuousBatchingConfig(**options),
                ).values()
            )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if is_memory_error(error):
            raise
        raise _refusal(f"{type(lm).__name__} is not taken: {(str(error).splitlines() or ['no reason'])[0]}") from None
    reasons = [str(output.error) for output in outputs if output.error] or ["the scheduler ended"]
    if len(outputs) < len(prompts) or any(output.error for output in outputs):
        raise RunError(
            f"Continuous batching gave {len(prompts)} prompts no answers: {reasons[0].splitlines()[0]}. Set "
            "evaluation.decoding.engine: generate."
        )
    if any(math.isnan(logp) for output in outputs for logp in output.logprobs):
        raise FloatingPointError("the model gives logits that are not numbers")
    return [list(output.generated_tokens) for output in outputs]


def _refusal(reason: str) -> InputError:
    return InputError(
        f"evaluation.decoding.engine is continuous, and there is no continuous batching here: {reason}. Set it to "
        "generate."
    )


@contextmanager
def _usual_attention(policy: Any) -> Iterator[None]:
    """Give the model attention that transformers can page, and take it back in the end."""
    if not (isinstance(policy, Policy) and policy.takes_row_attention):
        yield
        return
    policy.causal_lm.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        policy.causal_lm.set_attn_implementation(ROW_ATTENTION)


@contextmanager
def _autocast(policy: Any) -> Iterator[None]:
    """Have the model's forward compute as the policy's own `generate` does.

    The scheduler calls it in a thread of its own, which the caller's autocast does not reach.
    """
    if getattr(policy, "dtype", None) != torch.bfloat16 or not isinstance(policy, Policy):
        yield
        return
    stack = ExitStack()

    def begin(*_: Any) -> None:
        # What is cast must not be kept across graphs.
        stack.enter_context(torch.autocast(policy.device.type, dtype=torch.bfloat16, cache_enabled=False))

    def end(*_: Any) -> None:
        stack.close()

    handles = [
        policy.causal_lm.register_forward_pre_hook(begin),
        policy.causal_lm.register_forward_hook(end, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
