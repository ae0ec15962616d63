"""Attention masks for rows whose chosen and rejected completions share a prompt."""

import torch

from slime_ray.data.packing import PROMPT, Rows

SHARED_PROMPT_ARCHITECTURES = frozenset({"llama", "qwen3", "gemma3_text"})
"""Model types whose shared-prompt rows are tested to equal separate sequences to the last bits of float64."""

Mask = torch.Tensor | dict[str, torch.Tensor]


def takes_shared_prompts(config: object) -> bool:
    """Whether pairs may share their prompt in one row; other architectures get one sequence per row."""
    return getattr(config, "model_type", None) in SHARED_PROMPT_ARCHITECTURES


def visible(rows: Rows) -> torch.Tensor:
    """(rows, tokens, tokens) bool: whether the token at dim 1 may see the token at dim 2.

    A token sees itself, and what comes before it in its own segment if that is the prompt or its own completion.
    """
    same_segment = rows.segment[:, :, None] == rows.segment[:, None, :]
    readable = (rows.branch[:, None, :] == PROMPT) | (rows.branch[:, :, None] == rows.branch[:, None, :])
    index = torch.arange(rows.input_ids.shape[1], device=rows.input_ids.device)
    causal = index[:, None] >= index[None, :]
    # Padding belongs to segment -1 and sees padding, itself at least, so that no softmax is empty.
    return same_segment & readable & causal


def attention_mask(rows: Rows, config: object) -> Mask:
    """The mask in the form that the architecture of `config` takes: one for all layers, or one per layer type.

    A sliding layer's window is measured in positions, not in places of the row: rejected stands behind chosen but
    continues the prompt.
    """
    full = visible(rows)
    layer_types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in layer_types:
        return full[:, None]
    distance = rows.position[:, :, None] - rows.position[:, None, :]
    window = getattr(config, "sliding_window", None)
    if window is None:
        raise ValueError("the model has sliding layers but its configuration names no sliding_window")
    near = full & (distance < window)
    return {"full_attention": full[:, None], "sliding_attention": near[:, None]}
