"""Answers to prompts, drawn from a policy in batches sorted by length."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from slime_ray.config.settings import Decoding
from slime_ray.model.logprobs import Policy
from slime_ray.model.sharding import is_sharded
from slime_ray.world import World


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
    """One answer for each prompt (token ids), in the order given.

    policy: a Policy or a causal language model. The same prompts, decoding and seed give the same answers: the random
    state is set for each batch from `seed` and put back afterwards. The ranks of a process group divide the batches
    among themselves, and all get all answers. categories: of the prompts, which `decoding` may give temperatures of
    their own. progress: told how many batches this rank has done, of how many. Raises FloatingPointError for logits
    that are not numbers.
    """
    temperatures = [decoding.temperature_of(category) for category in categories or [None] * len(prompts)]
    order = sorted(range(len(prompts)), key=lambda index: (temperatures[index], len(prompts[index]), index))
    alike = [list(group) for _, group in itertools.groupby(order, key=temperatures.__getitem__)]
    size = decoding.batch
    if isinstance(policy, Policy):
        longest = max(map(len, prompts), default=0)
        size = policy.prompts_at_a_time(longest, max_new_tokens=decoding.max_new_tokens, batch=size)
    batches = [group[start : start + size] for group in alike for start in range(0, len(group), size)]
    device = next(policy.parameters()).device
    padding = _padding(policy, tokenizer, stop_tokens)
    world = World.current()
    done = 0

    def answer(number: int) -> list[Answer]:
        nonlocal done
        members = batches[number]
        width = max(len(prompts[index]) for index in members)
        ids = torch.full((len(members), width), padding, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(members):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        with torch.random.fork_rng():
            torch.manual_seed(_mixed(seed, number))
            output = policy.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=_config(decoding, temperatures[members[0]], padding, stop_tokens),
                logits_processor=LogitsProcessorList([_Numbers()]),
                # Ranks that share a model's parts have to make equally many steps.
                synced_gpus=world.size > 1 and is_sharded(policy),
            )
        done += 1
        progress(done, -(-len(batches) // world.size))
        return [_answer(row_ids, tokenizer, set(stop_tokens)) for row_ids in output[:, width:].tolist()]

    was_training = policy.training
    policy.eval()
    with torch.no_grad(), _nothing_but_ours(policy):
        found = world.share(range(len(batches)), answer)
    policy.train(was_training)
    answers: dict[int, Answer] = {}
    for members, some in zip(batches, found, strict=True):
        answers |= zip(members, some, strict=True)
    return [answers[index] for index in range(len(prompts))]


class _Numbers(LogitsProcessor):
    """Raises FloatingPointError for logits that are not numbers: the likeliest of them would be no answer."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (prompts, vocabulary), given back as they are. Minus infinity bans a token."""
        if bool((scores.isnan() | scores.isposinf()).any()):
            raise FloatingPointError("the model gives logits that are not numbers")
        return scores


@contextmanager
def _nothing_but_ours(policy: Any) -> Iterator[None]:
    """transformers takes what a configuration leaves open from the model's own, as it came with its weights.

    A ban on words, a penalty or a least probability from there would make other answers than the policy's.
    """
    lm = getattr(policy, "causal_lm", policy)
    kept, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = kept


def _padding(policy: Any, tokenizer: Any, stop_tokens: Sequence[int]) -> int:
    """The tokenizer's padding token, or a stop token where the model has no embedding for that."""
    known = getattr(policy, "causal_lm", policy).get_input_embeddings().weight.shape[0]
    padding: int = tokenizer.pad_token_id
    return padding if padding < known else stop_tokens[0]


def _mixed(seed: int, number: int) -> int:
    """A batch's own seed. All its bits follow from all of both, for a CPU's generator looks at the lower 32 alone."""
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)[0])


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


def _answer(ids: list[int], tokenizer: Any, stop_tokens: set[int]) -> Answer:
    end = next((place for place, token in enumerate(ids) if token in stop_tokens), None)
    content = ids if end is None else ids[:end]
    return Answer(
        token_ids=tuple(content),
        text=tokenizer.decode(content, skip_special_tokens=True),
        stopped=end is not None,
        leaked=bool(set(content) & set(tokenizer.all_special_ids)),
    )
