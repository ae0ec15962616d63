"""Conversations as token ids: prompt, chosen and rejected spans that are right by construction.

A prompt is what the chat template writes up to where the assistant's answer begins; a completion is what it
writes after that, up to and including the end-of-turn token. Both are encoded by themselves, as generation
sees them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from slime_ray.data.chat_template import ChatRenderer, Refusal
from slime_ray.data.forms import Messages
from slime_ray.data.lost_text import LostText, one_line
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = ("prompt", "chosen", "rejected")
SEVERAL_MESSAGES = "several assistant messages in a completion"


@dataclass(frozen=True)
class RenderedPair:
    """Token ids of one pair. Both completions end with the end-of-turn token unless they were cut.

    An SFT example has no rejected one. `lost` has the turns whose text the chat template left out or rewrote, by the
    part that they belong to: "prompt", "chosen" or "rejected".
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int] = field(default_factory=list)
    lost: tuple[tuple[str, LostText], ...] = ()


def render_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Messages]) -> list[list[int]]:
    """Token ids of conversations up to the answer. Raises InputError where one cannot be rendered."""
    renderer = ChatRenderer(tokenizer)
    texts = renderer.prompt_texts(prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        if isinstance(text, Refusal):
            raise InputError(
                f"The prompt that ends with {prompt[-1]['content'][-60:]!r} cannot be rendered: {text.reason}. Change "
                "it or the chat template."
            )
    return renderer.encode([text for text in texts if isinstance(text, str)])


def render_pairs(
    renderer: ChatRenderer, prompts: list[Messages], *completions: list[Messages]
) -> list[RenderedPair | Refusal]:
    """Full-length pairs, or the reason where one cannot be rendered. `completions` are chosen and maybe rejected."""
    results: list[RenderedPair | Refusal] = [Refusal(SEVERAL_MESSAGES)] * len(prompts)
    single = [row for row in range(len(prompts)) if all(len(side[row]) == 1 for side in completions)]
    contexts = [prompts[row] for row in single]
    starts = renderer.prompt_texts(contexts)
    answers = [renderer.completion_texts(contexts, starts, [side[row] for row in single]) for side in completions]
    rendered: dict[int, list[str]] = {}
    for row, *texts in zip(single, starts, *answers, strict=True):
        refusal = next((text for text in texts if isinstance(text, Refusal)), None)
        if refusal is None:
            rendered[row] = [str(text) for text in texts]
        else:
            results[row] = Refusal(refusal.reason, one_line(prompts[row][-1]["content"]))
    prompt_texts, *answer_texts = zip(*rendered.values(), strict=True) if rendered else [()] * (1 + len(completions))
    columns = [renderer.encode(prompt_texts), *(renderer.encode(texts, inner=True) for texts in answer_texts)]
    for (row, texts), *ids in zip(rendered.items(), *columns, strict=True):
        parts = zip(PARTS, (prompts, *completions), texts, strict=False)
        lost = tuple((name, each) for name, part, text in parts for each in renderer.lost_texts(part[row], text))
        results[row] = replace(RenderedPair(*ids), lost=lost)
    return results
