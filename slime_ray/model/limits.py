"""What a model has no numbers for: token ids beyond its embeddings, positions beyond what it computes alike."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from slime_ray.errors import InputError
from slime_ray.model.decoder import decoder_of, empty_model

_SIZES = {"mpt": "max_seq_len"}
"""Model types whose positions end with a number of their configuration, and no table shows it."""


@dataclass(frozen=True)
class Limits:
    """Token ids and positions that a model has.

    ids: size of its vocabulary. positions: tokens that a sequence may have; None where any length goes. reason: why, in
    words that follow "than"; empty without a limit.
    """

    ids: int
    positions: int | None = None
    reason: str = ""

    def check_length(self, tokens: int, what: str, remedy: str) -> None:
        """Raise InputError for a sequence of too many tokens. what: its description; remedy: the way out."""
        if self.positions is not None and tokens > self.positions:
            raise InputError(f"{what} has {tokens} tokens, more than {self.reason}. {remedy}")

    def check_answer(self, prompt: int, answer: int, what: str) -> None:
        """Raise InputError where a prompt leaves no room for the longest answer. Both in tokens."""
        self.check_length(
            prompt + answer,
            f"{what} with an answer of {answer} tokens",
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


@dataclass
class PositionWatch:
    """What a model's position tables and rotary modules are called with, and the limits that follow.

    lengths: tokens of each sequence that was run. tables: embeddings other than the tokens' with the ids of each call.
    rotary: parameterless modules that take positions, each with the arguments of its first call.
    """

    lm: Any
    lengths: list[int] = field(default_factory=list)
    tables: dict[nn.Embedding, list[torch.Tensor]] = field(default_factory=dict)
    rotary: dict[nn.Module, inspect.BoundArguments] = field(default_factory=dict)

    @contextmanager
    def watching(self, tokens: int) -> Iterator[None]:
        """Watch a forward pass over one sequence of so many tokens."""
        self.lengths.append(tokens)
        embeddings = self.lm.get_input_embeddings()
        hooks = []
        for module in decoder_of(self.lm).modules():
            if isinstance(module, nn.Embedding) and module is not embeddings:
                hooks.append(module.register_forward_pre_hook(self._note_table))
            elif _position_argument(module) and not any(True for _ in module.parameters()):
                hooks.append(module.register_forward_pre_hook(self._note_rotary, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note_table(self, module: Any, args: tuple[Any, ...]) -> None:
        ids = args[0] if args and torch.is_tensor(args[0]) else torch.tensor([])
        self.tables.setdefault(module, []).append(ids.detach().flatten().unique().cpu())

    def _note_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in self.rotary:
            self.rotary[module] = inspect.signature(module.forward).bind(*args, **kwargs)

    def limits(self) -> Limits:
        """The limits of the model that was watched."""
        config = self.lm.config.get_text_config()
        size = _positions(config)
        tables = [rows for module, calls in self.tables.items() if (rows := self._rows(module, calls, size))]
        tables += _other_tables(self.lm)
        lengths = [settings.get("original_max_position_embeddings") for settings in _ropes(config)]
        far = 4 * max([length for length in [*lengths, size] if isinstance(length, int)], default=2**15)
        steady = [steady_length(module, call, far=far) for module, call in self.rotary.items()]
        return _limits(self.lm, tables, [length for length in steady if length is not None])

    def _rows(self, module: nn.Embedding, calls: list[torch.Tensor], size: int | None) -> int | None:
        """Positions in a table of them; None for an embedding of anything else."""
        rows = module.weight.shape[0]
        if all(
            len(ids) == tokens and ids[-1] - ids[0] == tokens - 1
            for ids, tokens in zip(calls, self.lengths, strict=False)
        ):
            return rows - int(calls[0][0])
        # Subclasses compute what they look up themselves, at an offset.
        return size if type(module) is not nn.Embedding and _holds(rows, size) else None


def declared_limits(config: Any) -> Limits:
    """The limits that a configuration promises, without weights. What they really are, `PositionWatch` measures.

    config: the whole model's. An architecture that transformers does not have is promised to have none.
    """
    text, lm = config.get_text_config(), empty_model(config)
    if lm is None:
        return Limits(text.vocab_size)
    size, embeddings = _positions(text), lm.get_input_embeddings()
    tables: list[int] = [
        size
        for module in decoder_of(lm).modules()
        if size is not None
        and isinstance(module, nn.Embedding)
        and module is not embeddings
        and _holds(module.weight.shape[0], size)
    ]
    dependent = [rope for rope in _ropes(text) if rope.get("rope_type") in ("dynamic", "longrope")]
    lengths = [rope.get("original_max_position_embeddings") or size for rope in dependent]
    steady = [length for length in lengths if length is not None]
    return _limits(lm, tables + _other_tables(lm), steady)


def _limits(lm: Any, tables: list[int], steady: list[int]) -> Limits:
    """The narrowest of all tables, and of all lengths up to which rotary frequencies are steady."""
    ids = lm.get_input_embeddings().weight.shape[0]
    if steady and min(steady) == min([*steady, *tables]):
        kinds = sorted({str(rope["rope_type"]) for rope in _ropes(lm.config.get_text_config()) if "rope_type" in rope})
        return Limits(
            ids,
            min(steady),
            f"the {min(steady)} positions up to which this model's rotary frequencies"
            f"{f' (rope_type {kinds[0]} in its config.json)' if len(kinds) == 1 else ''} do not depend on the longest "
            "sequence of a batch",
        )
    selected = getattr(lm.config.get_text_config(), "index_topk", None)
    if selected and selected <= min([selected, *tables]):
        # Beyond them equal scores are chosen among by what stands behind, which padding changes.
        return Limits(ids, selected, f"the {selected} positions up to which its sparse attention (index_topk) sees all")
    return Limits(ids, min(tables), f"the model's {min(tables)} positions") if tables else Limits(ids)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Rotary settings; some models have one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(each for each in rope.values() if isinstance(each, dict))]


def _positions(config: Any) -> int | None:
    return getattr(config, _SIZES.get(config.model_type, "max_position_embeddings"), None)


def _holds(rows: int, size: int | None) -> bool:
    """Whether a table of so many rows may be one of `size` positions, at an offset."""
    return size is not None and 0 <= rows - size <= 16


def _other_tables(lm: Any) -> list[int]:
    """Sizes of tables that are no embeddings: buffers, and what is computed anew for a fixed length."""
    config = lm.config.get_text_config()
    size = _positions(config)
    if size is None:
        return []
    buffers = [name for name, table in decoder_of(lm).named_buffers() if _is_table(name, table, size)]
    return [size] * (len(buffers) + (config.model_type in _SIZES))


def _position_argument(module: nn.Module) -> str | None:
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in ("position_ids", "seq_len") if name in parameters), None)


def _is_table(name: str, table: torch.Tensor, size: int) -> bool:
    return "pos" in name.rsplit(".", 1)[-1] and table.is_floating_point() and table.dim() == 2 and len(table) == size


def steady_length(module: nn.Module, call: inspect.BoundArguments, *, far: int) -> int | None:
    """Tokens up to which a rotary module gives early positions the same numbers, whatever stands behind them.

    call: the arguments it was called with for one short sequence. None where that holds up to `far` tokens.
    """
    argument = _position_argument(module)
    given = call.arguments.get(argument) if argument else None
    short = int(given.max()) + 1 if torch.is_tensor(given) and given.numel() else given
    if not isinstance(short, int):
        return None

    def steady(length: int) -> bool:
        """Whether a sequence of so many tokens in the batch leaves the short one's numbers alone."""
        near, beside = (_early(module, call, argument, tokens, short) for tokens in (short + 1, length))
        return near is not None and beside is not None and all(map(_same, near, beside))

    return None if steady(far) else _last(steady, short + 1, far)


def _early(
    module: nn.Module, call: inspect.BoundArguments, argument: str | None, tokens: int, short: int
) -> list[torch.Tensor] | None:
    """What the first `short` positions get beside one at the end of `tokens`; None where the module fails.

    A copy on the CPU computes it: the module may keep what it saw last, and a GPU does not survive a wrong index.
    """
    arguments = {name: value.cpu() if torch.is_tensor(value) else value for name, value in call.arguments.items()}
    given = arguments[str(argument)]
    if torch.is_tensor(given):
        arguments[str(argument)] = torch.cat((given, torch.full_like(given[..., :1], tokens - 1)), -1)
    else:
        arguments[str(argument)] = tokens
    try:
        replay = inspect.BoundArguments(call.signature, arguments)
        output = copy.deepcopy(module).cpu()(*replay.args, **replay.kwargs)
    except (IndexError, RuntimeError):
        return None
    tensors = [item for item in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(item)]
    return [
        next((item.narrow(axis, 0, short) for axis, size in enumerate(item.shape) if size > short), item)
        for item in tensors
    ]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-7)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last number between `low`, where it holds, and `high`, where it does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
