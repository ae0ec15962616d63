"""Prompts and what follows from them: a later turn is asked after the policy's own answers to those before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from slime_ray.config.evaluation import Decoding
from slime_ray.data.forms import Messages
from slime_ray.data.tokenizing import TruncationReport, render_prompts
from slime_ray.evaluation.generate import Answer, generate_answers
from slime_ray.evaluation.served import Served


@dataclass(frozen=True)
class Prompts:
    """Prompts to answer, one item each.

    ids: stable names. messages: conversations that end with what is asked. token_ids: as rendered for generation.
    categories: a benchmark's, None for a prompt without one. later: what the user goes on to say, an answer between
    each. turns: which turn of its conversation an item is, from 1; the turns of one follow each other and share its id.
    Of these three, one left out is None, nothing and 1 for every prompt. truncation: what limits and template did,
    where the prompts were just rendered.
    """

    ids: Sequence[str]
    messages: Sequence[Messages]
    token_ids: Sequence[Sequence[int]]
    categories: Sequence[str | None] = ()
    later: Sequence[Sequence[str]] = ()
    turns: Sequence[int] = ()
    truncation: TruncationReport | None = None

    def __post_init__(self) -> None:
        for name, usual in (("categories", None), ("later", ()), ("turns", 1)):
            object.__setattr__(self, name, list(getattr(self, name)) or [usual] * len(self.ids))


def ask(
    policy: Any,
    tokenizer: Any,
    prompts: Prompts,
    *,
    decoding: Decoding,
    stop_tokens: Sequence[int],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Prompts, list[Answer]]:
    """Every turn of every prompt with its answer, as `generate_answers` draws them, or the server where it is Served.

    Returns what was asked, an item a turn, so that `later` is empty and `messages` hold the policy's own answers to the
    turns before; and the answers to that. Raises InputError where the chat template refuses a conversation.
    """
    messages, token_ids = list(prompts.messages), list(prompts.token_ids)
    asked: list[list[tuple[Messages, Sequence[int], Answer]]] = [[] for _ in prompts.ids]
    draw = policy.answers if isinstance(policy, Served) else partial(generate_answers, policy)
    going, turn = list(range(len(asked))), 0
    while going:
        answers = draw(
            tokenizer,
            [token_ids[index] for index in going],
            decoding=decoding,
            categories=[prompts.categories[index] for index in going],
            stop_tokens=stop_tokens,
            # Far from the seeds of other trials.
            seed=seed + (turn << 32),
            progress=progress,
        )
        for index, answer in zip(going, answers, strict=True):
            asked[index].append((messages[index], token_ids[index], answer))
        going = [index for index in going if turn < len(prompts.later[index])]
        for index in going:
            messages[index] = _continued(messages[index], asked[index][-1][2], prompts.later[index][turn])
        for index, ids in zip(
            going, render_prompts(tokenizer, [list(messages[index]) for index in going]), strict=True
        ):
            token_ids[index] = ids
        turn += 1
    flat = [(index, number, *item) for index, items in enumerate(asked) for number, item in enumerate(items, start=1)]
    return Prompts(
        ids=[prompts.ids[index] for index, *_ in flat],
        messages=[conversation for _, _, conversation, _, _ in flat],
        token_ids=[ids for *_, ids, _ in flat],
        categories=[prompts.categories[index] for index, *_ in flat],
        turns=[number for _, number, *_ in flat],
    ), [answer for *_, answer in flat]


def as_asked(prompts: Prompts, answers: Sequence[Answer]) -> list[Messages]:
    """The conversations of whoever gave `answers` to the same turns as `prompts`, which another's answers may be in."""
    conversations: list[Messages] = []
    for index, messages in enumerate(prompts.messages):
        if prompts.turns[index] > 1:
            messages = _continued(conversations[-1], answers[index - 1], messages[-1]["content"])
        conversations.append(messages)
    return conversations


def _continued(messages: Messages, answer: Answer, said: str) -> Messages:
    return [*messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": said}]
