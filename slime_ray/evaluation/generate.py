"""Answers to prompts, drawn from a policy in batches sorted by length, or by continuous batching."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from slime_ray.config.evaluation import Decoding
from slime_ray.errors import is_memory_error
from slime_ray.evaluation.continuous import continuous_batching
from slime_ray.model.logprobs import Policy
from slime_ray.model.sharding import is_sharded
from slime_ray.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    token_ids: what was generated, without the stop token. text: those tokens as text, without special tokens. stopped:
    whether a stop token ended it, rather than the token limit. leaked: whether a special token stands inside it.
    """

    token_ids: tuple[int, ...]
    text: str
    stopped: bool
    leaked: bool


def generate_answers(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    decoding: Decoding,
    stop_tokens: Sequence[int],
    seed: int,
    categories: Sequence[str | None] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Answer]:
    """Draw one answer for each prompt (token ids), in the order given.

    policy: a Policy or a causal language model. The same prompts, decoding and seed give the same answers: the random
    state is set for each batch from `seed` and put back afterwards. A batch that memory does not hold is answered in
    parts, each with a seed of its own from its place in the batch, which is logged. The ranks of a process group divide
    the batches among themselves, and all get all answers. categories: of the prompts, which `decoding` may give
    temperatures of their own. progress: told how many batches this rank has done, of how many. Raises
    FloatingPointError for logits that are not numbers, and InputError without continuous batching that is asked for.
    """
    temperatures = [decoding.temperature_of(category) for category in categories or [None] * len(prompts)]
    order = sorted(range(len(prompts)), key=lambda index: (temperatures[index], len(prompts[index]), index))
    alike = [list(group) for _, group in itertools.groupby(order, key=temperatures.__getitem__)]
    device, world = next(policy.parameters()).device, World.current()
    size = decoding.batch_on(gpu=device.type == "cuda")
    if isinstance(policy, Policy):
        longest = max(map(len, prompts), default=0)
        size = policy.prompts_at_a_time(longest, max_new_tokens=decoding.max_new_tokens, batch=size)
    continuous = decoding.engine == "continuous"
    if continuous:
        # A rank's share is one run of the scheduler, which makes its own batches.
        size = max(1, -(-len(prompts) // world.size))
    batches = [group[start : start + size] for group in alike for start in range(0, len(group), size)]
    padding = _padding(policy, tokenizer, stop_tokens)
    done, at_most = 0, size

    def answer(number: int) -> list[Answer]:
        nonlocal done
        members = batches[number]
        config = _config(decoding, temperatures[members[0]], padding, stop_tokens)
        batch_prompts = [prompts[index] for index in members]
        if continuous:
            ids = continuous_batching(policy, batch_prompts, config, seed=seed_of(seed, number))
        else:
            ids = in_parts(batch_prompts, number, config)
        done += 1
        progress(done, -(-len(batches) // world.size))
        return [answer_of(row_ids, tokenizer, set(stop_tokens)) for row_ids in ids]

    def in_parts(batch_prompts: list[Sequence[int]], number: int, config: GenerationConfig) -> list[list[int]]:
        nonlocal at_most
        ids: list[list[int]] = []
        while len(ids) < len(batch_prompts):
            part = batch_prompts[len(ids) : len(ids) + at_most]
            place = (number,) if len(part) == len(batch_prompts) else (number, len(ids), len(part))
            try:
                ids += _generated(policy, part, config, seed=seed_of(seed, *place))
                continue
            except Exception as error:
                # Ranks that share a model's parts have to make equally many steps.
                if len(part) == 1 or is_sharded(policy) or not is_memory_error(error):
                    raise
            # After the error, which holds what did not fit.
            at_most = -(-len(part) // 2)
            logger.warning(
                "%d answers at a time take more memory than there is: %d from here on. With a temperature above 0 "
                "these are other random draws than in one batch; evaluation.decoding.batch %d repeats them.",
                len(part),
                at_most,
                at_most,
            )
            torch.cuda.empty_cache()
        return ids

    was_training = policy.training
    policy.eval()
    with torch.no_grad(), _without_model_defaults(policy):
        results = world.share(range(len(batches)), answer)
    policy.train(was_training)
    answers: dict[int, Answer] = {}
    for members, batch_answers in zip(batches, results, strict=True):
        answers |= zip(members, batch_answers, strict=True)
    return [answers[index] for index in range(len(prompts))]


def _generated(
    policy: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, seed: int
) -> list[list[int]]:
    """What transformers' `generate` draws after each prompt, all in one batch."""
    device = next(policy.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), config.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = policy.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Numbers()]),
            # Ranks that share a model's parts have to make equally many steps.
            synced_gpus=World.current().size > 1 and is_sharded(policy),
        )
    drawn: list[list[int]] = output[:, width:].tolist()
    return drawn


class _Numbers(LogitsProcessor):
    """Raises FloatingPointError for logits that are not numbers: the likeliest of them would be no answer."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (prompts, vocabulary), given back as they are. Minus infinity bans a token."""
        if bool((scores.isnan() | scores.isposinf()).any()):
            raise FloatingPointError("the model gives logits that are not numbers")
        return scores


@contextmanager
def _without_model_defaults(policy: Any) -> Iterator[None]:
    """Hide the model's own generation defaults, so that `generate` does not use them.

    A ban on words, a penalty or a least probability from there would make other answers than the policy's.
    """
    lm = getattr(policy, "causal_lm", policy)
    model_defaults, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = model_defaults


def _padding(policy: Any, tokenizer: Any, stop_tokens: Sequence[int]) -> int:
    """Return the padding token, or a stop token where the model has no embedding for that."""
    vocabulary_size = getattr(policy, "causal_lm", policy).get_input_embeddings().weight.shape[0]
    padding: int = tokenizer.pad_token_id
    return padding if padding < vocabulary_size else stop_tokens[0]


def seed_of(seed: int, *place: int) -> int:
    """The seed of a batch, of a part of one, or of a prompt.

    All its bits follow from all of `seed` and `place`: a CPU's generator takes the lower 32 alone.
    """
    return int(np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)[0])


def _config(decoding: Decoding, temperature: float, padding: int, stop_tokens: Sequence[int]) -> GenerationConfig:
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": decoding.top_p, "top_k": 0}
    return GenerationConfig(
        **sampling,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(stop_tokens),
        pad_token_id=padding,
        repetition_penalty=1.0,
        use_cache=True,
    )


def answer_of(ids: Sequence[int], tokenizer: Any, stop_tokens: set[int], *, stopped: bool = False) -> Answer:
    """What was generated as an answer, up to its first stop token. stopped: whether it ended where there is none."""
    end = next((place for place, token in enumerate(ids) if token in stop_tokens), None)
    content = ids if end is None else ids[:end]
    return Answer(
        token_ids=tuple(content),
        text=tokenizer.decode(content, skip_special_tokens=True),
        stopped=end is not None or stopped,
        leaked=bool(set(content) & set(tokenizer.all_special_ids)),
    )
