"""Prompts and what follows from them: a later turn is asked after the policy's own answers to those before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from slime_ray.config.evaluation import Decoding
from slime_ray.data.forms import Messages
from slime_ray.data.tokenizing import render_prompts
from slime_ray.evaluation.generate import Answer, generate_answers
from slime_ray.evaluation.served import Served


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer, or one turn of it that was answered.

    id: a stable name, which the turns of a conversation share. messages: a conversation that ends with what is asked.
    token_ids: as rendered for generation. category: a benchmark's. later: what the user goes on to say, an answer
    between each. turn: from 1; the turns of a conversation follow each other.
    """

    id: str
    messages: Messages
    token_ids: Sequence[int]
    category: str | None = None
    later: Sequence[str] = ()
    turn: int = 1


def ask(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
    stop_tokens: Sequence[int],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Prompt], list[Answer]]:
    """Every turn of every prompt with its answer, as `generate_answers` draws them, or the server where it is Served.

    Returns what was asked, an item a turn, so that `later` is empty and `messages` hold the policy's own answers to the
    turns before; and the answers to that. Raises InputError where the chat template refuses a conversation.
    """
    current = [replace(prompt, later=()) for prompt in prompts]
    answered_turns: list[list[tuple[Prompt, Answer]]] = [[] for _ in prompts]
    draw = policy.answers if isinstance(policy, Served) else partial(generate_answers, policy)
    going, turn = list(range(len(prompts))), 0
    while going:
        answers = draw(
            tokenizer,
            [current[index].token_ids for index in going],
            decoding=decoding,
            categories=[current[index].category for index in going],
            stop_tokens=stop_tokens,
            # Far from the seeds of other trials.
            seed=seed + (turn << 32),
            progress=progress,
        )
        for index, answer in zip(going, answers, strict=True):
            answered_turns[index].append((current[index], answer))
        going = [index for index in going if turn < len(prompts[index].later)]
        talks = [_continued(*answered_turns[index][-1], prompts[index].later[turn]) for index in going]
        turn += 1
        for index, talk, ids in zip(going, talks, render_prompts(tokenizer, talks), strict=True):
            current[index] = replace(current[index], messages=talk, token_ids=ids, turn=turn + 1)
    flat = [pair for turns in answered_turns for pair in turns]
    return [prompt for prompt, _ in flat], [answer for _, answer in flat]


def side_conversations(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Messages]:
    """Rebuild the conversations that led to `answers`; those in `prompts` may hold another side's earlier answers."""
    side_prompts: list[Prompt] = []
    for index, prompt in enumerate(prompts):
        if prompt.turn > 1:
            messages = _continued(side_prompts[-1], answers[index - 1], prompt.messages[-1]["content"])
            prompt = replace(prompt, messages=messages)
        side_prompts.append(prompt)
    return [prompt.messages for prompt in side_prompts]


def _continued(prompt: Prompt, answer: Answer, user_text: str) -> Messages:
    return [*prompt.messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": user_text}]
