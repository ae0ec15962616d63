"""What a model has no numbers for: token ids beyond its embeddings, positions beyond what it computes alike."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from slime_ray.errors import InputError
from slime_ray.model.decoder import decoder_of

_SIZES = {"mpt": "max_seq_len"}
"""Model types whose positions end with a number of their configuration, and no table shows it."""
_SPARSE = {"index_topk": "", "index_topk_blocks": "index_block_size", "keep_window_size": ""}
"""Settings of how much sparse attention sees, each with that of a block's tokens, or none where it counts tokens."""
_OFFSETS = range(17)
"""Rows that a table of positions may have beyond them, such as OPT's two."""


@dataclass(frozen=True)
class Limits:
    """Token ids and positions that a model has.

    ids: size of its vocabulary. positions: tokens that a sequence may have; None where any length goes. reason: why, in
    words that follow "than"; empty without a limit.
    """

    ids: int
    positions: int | None = None
    reason: str = ""

    def check_length(self, tokens: int, description: str, remedy: str) -> None:
        """Raise InputError for a sequence of too many tokens. description: what it is. remedy: the way out."""
        if self.positions is not None and tokens > self.positions:
            raise InputError(f"{description} has {tokens} tokens, more than {self.reason}. {remedy}")

    def check_answer(self, prompt: int, answer: int, description: str) -> None:
        """Raise InputError where a prompt leaves no room for the longest answer. Both in tokens."""
        self.check_length(
            prompt + answer,
            f"{description} with an answer of {answer} tokens",
            "Set a smaller evaluation.decoding.max_new_tokens, or data.max_prompt_tokens.",
        )

    def check_ids(self, largest: int, place: str, token: str | None = None) -> None:
        """Raise InputError for an id that the model does not have. token: its text, where that is known."""
        if largest >= self.ids:
            name = "a token" if token is None else f"the token {token!r}"
            raise InputError(
                f"{place}: {name} has id {largest}, and the model has {self.ids} ids, 0 to {self.ids - 1}. Use the "
                "tokenizer that belongs to model.source, or give the model embeddings for the added tokens "
                "(resize_token_embeddings) and save it again."
            )


def declared_limits(config: Any) -> Limits:
    """Return the limits of a whole model's configuration, which alone is at hand.

    An architecture that transformers does not have is taken to have none.
    """
    try:
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config)
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError):
        return Limits(config.get_text_config().vocab_size)
    return limits_of(lm)


def limits_of(lm: Any, steady: int | None = None) -> Limits:
    """Return a model's limits: its ids, and the shortest of its position tables and steady frequencies.

    lm: of transformers, with or without weights. steady: such a length of modules that are none of transformers', as
    `steady_length` measures it.
    """
    config, ids = lm.config.get_text_config(), lm.get_input_embeddings().weight.shape[0]
    size = getattr(config, _SIZES.get(config.model_type, "max_position_embeddings"), None)
    ropes = [
        (str(rope["rope_type"]), rope.get("original_max_position_embeddings") or size)
        for rope in _ropes(config)
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    lengths = (steady, *(length for _, length in ropes))
    shortest = min((length for length in lengths if length is not None), default=None)
    table = size if size is not None and (config.model_type in _SIZES or _has_table(lm, size)) else None
    if shortest is not None and (table is None or shortest <= table):
        kinds = sorted({kind for kind, length in ropes if length == shortest})
        rope_note = f" (rope_type {', '.join(kinds)} in its config.json)" if kinds else ""
        return Limits(
            ids,
            shortest,
            f"the {shortest} positions up to which this model's rotary frequencies{rope_note} do not depend on the "
            "longest sequence of a batch",
        )
    for setting, block in _SPARSE.items():
        top_tokens = (getattr(config, setting, None) or 0) * (getattr(config, block, 1) if block else 1)
        if top_tokens and (table is None or top_tokens <= table):
            # Beyond them equal scores are chosen among by what stands behind, and blocks begin where padding does.
            return Limits(
                ids, top_tokens, f"the {top_tokens} positions up to which its sparse attention ({setting}) sees all"
            )
    return Limits(ids) if table is None else Limits(ids, table, f"the model's {table} positions")


def _ropes(config: Any) -> list[dict[str, Any]]:
    """List the rotary settings; some models have one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(layer for layer in rope.values() if isinstance(layer, dict))]


def _has_table(lm: Any, size: int) -> bool:
    """Tell whether a decoder has an embedding of `size` positions, or a buffer of as many vectors."""
    decoder, embeddings = decoder_of(lm), lm.get_input_embeddings()
    return any(
        isinstance(module, nn.Embedding) and module is not embeddings and module.weight.shape[0] - size in _OFFSETS
        for module in decoder.modules()
    ) or any(
        "pos" in name.rsplit(".", 1)[-1] and table.is_floating_point() and table.dim() == 2 and len(table) == size
        for name, table in decoder.named_buffers()
    )


# ---------------------------------------------------------------------------------------------------------------------
# Code that came with a model: what its configuration says of frequencies is not known, so they are measured

Calls = dict[nn.Module, inspect.BoundArguments]
"""Rotary modules, each with the arguments of its first call."""


@contextmanager
def record_rotary_calls(lm: Any, calls: Calls) -> Iterator[None]:
    """Record calls of modules without parameters, none of transformers', that turn positions into frequencies."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, inspect.signature(module.forward).bind(*args, **kwargs))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in decoder_of(lm).modules()
        if not type(module).__module__.startswith("transformers.")
        and _position_argument(module)
        and not any(True for _ in module.parameters())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def steady_length(lm: Any, calls: Calls) -> int | None:
    """Find the tokens up to which these modules treat early positions alike, whatever follows.

    calls: of one short sequence. None where that holds up to four times the positions of the model's configuration.
    """
    size = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    lengths = [_steady(module, call, far=4 * (size or 2**15)) for module, call in calls.items()]
    return min((length for length in lengths if length is not None), default=None)


def _steady(module: nn.Module, call: inspect.BoundArguments, *, far: int) -> int | None:
    argument = _position_argument(module)
    positions = call.arguments.get(argument)
    short = int(positions.max()) + 1 if torch.is_tensor(positions) and positions.numel() else positions
    if not isinstance(short, int):
        return None

    def is_steady(length: int) -> bool:
        """Tell whether a longer sequence leaves the short one's numbers alone."""
        near_outputs, far_outputs = (
            _early_outputs(module, call, argument, tokens, short) for tokens in (short + 1, length)
        )
        return (
            near_outputs is not None
            and far_outputs is not None
            and all(torch.allclose(x, y, rtol=0, atol=1e-7) for x, y in zip(near_outputs, far_outputs, strict=True))
        )

    if is_steady(far):
        return None
    low, high = short + 1, far
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_steady(middle) else (low, middle)
    return low


def _early_outputs(
    module: nn.Module, call: inspect.BoundArguments, argument: str, tokens: int, short: int
) -> list[torch.Tensor] | None:
    """Compute a module's outputs for the first `short` positions, with one more at the end of `tokens`.

    A copy on the CPU computes them: the module may keep what it saw last, and a GPU does not survive a wrong index.
    None where it fails.
    """
    arguments = {name: value.cpu() if torch.is_tensor(value) else value for name, value in call.arguments.items()}
    positions = arguments[argument]
    if torch.is_tensor(positions):
        arguments[argument] = torch.cat((positions, torch.full_like(positions[..., :1], tokens - 1)), -1)
    else:
        arguments[argument] = tokens
    try:
        replay = inspect.BoundArguments(call.signature, arguments)
        output = copy.deepcopy(module).cpu()(*replay.args, **replay.kwargs)
    except (IndexError, RuntimeError):
        return None
    tensors = [tensor for tensor in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(tensor)]
    return [
        next((tensor.narrow(axis, 0, short) for axis, size in enumerate(tensor.shape) if size > short), tensor)
        for tensor in tensors
    ]


def _position_argument(module: nn.Module) -> str:
    """Name the argument of a module that takes positions, or their number; empty where none does."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in ("position_ids", "seq_len") if name in parameters), "")
