"""One prompt or pair at a time, of what the package renders many at a time."""

from typing import Any

from slime_ray.data.chat_template import ChatRenderer, Refusal
from slime_ray.data.tokenizing import RenderedPair, render_pairs, render_prompts
from slime_ray.errors import InputError


def render_prompt(tokenizer: Any, messages: Any) -> list[int]:
    """Token ids of a conversation up to the answer."""
    return render_prompts(tokenizer, [messages])[0]


def render_pair(tokenizer: Any, *, prompt: Any, chosen: Any, rejected: Any) -> RenderedPair:
    """Token ids of one pair at full length. Raises InputError where the template refuses it."""
    pair = render_pairs(ChatRenderer(tokenizer), [prompt], [chosen], [rejected])[0]
    if isinstance(pair, Refusal):
        raise InputError(f"This pair cannot be rendered: {pair.reason}.")
    return pair
