"""What a benchmark of the training step is asked to do, checked before anything heavy is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import Gemma3TextConfig

RECIPES = ("authors", "padded", "chunked", "unshared", "packed", "padded-frozen-head", "packed-frozen-head")
"""The recipes by name, in the order in which they are reported."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes and the options that suit it.

    window: positions that a sliding layer sees when lengths are not shrunk. rank: of the adapters; alpha is twice it.
    """

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    intermediate: int
    sliding_to_full: int
    rank: int
    vocabulary: int
    shrink: int
    dtype: str
    window: int = 1024

    def config(self, *, vocabulary: int, shrink: int) -> "Gemma3TextConfig":
        """Build the configuration; the window shrinks with the lengths, so that it cuts the same share."""
        from transformers import Gemma3TextConfig

        period = self.sliding_to_full + 1
        return Gemma3TextConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_size,
            query_pre_attn_scalar=self.head_size,
            layer_types=["sliding_attention" if i % period else "full_attention" for i in range(1, self.layers + 1)],
            sliding_window=max(2, self.window // shrink),
            max_position_embeddings=131072,
            tie_word_embeddings=False,
        )


SHAPES = {
    # Its head costs 21 % of its body at a vocabulary of 4,096, as Gemma3-4B's does at its own.
    "small": Shape(
        hidden=256, layers=5, heads=4, key_heads=2, head_size=64, intermediate=1024, sliding_to_full=4, rank=8,
        vocabulary=4096, shrink=4, dtype="float32",
    ),
    "gemma3-4b": Shape(
        hidden=2560, layers=34, heads=8, key_heads=4, head_size=256, intermediate=10240, sliding_to_full=5, rank=64,
        vocabulary=262208, shrink=1, dtype="bfloat16",
    ),
}  # fmt: skip
"""The shapes by name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """One benchmark run.

    vocabularies: sizes of the output head, one measurement each; empty for the shape's own. lengths: a JSONL file or
    the name of a distribution. shrink: what all lengths are divided by; None for the shape's own. pairs: of an
    optimizer step. steps: of a round, different pairs each. rounds: how often the same steps are repeated. best_batch:
    whether each recipe finds the pairs of a forward pass with which it is fastest.
    Raises InputError with the option's name for a number out of range.
    """

    vocabularies: Sequence[int] = ()
    lengths: str = "ultrafeedback"
    shrink: int | None = None
    pairs: int = 8
    steps: int = 4
    rounds: int = 3
    device: str = "auto"
    shape: str = "small"
    recipes: Sequence[str] = RECIPES
    best_batch: bool = False

    def __post_init__(self) -> None:
        numbers = [(name, getattr(self, name), 1) for name in ("shrink", "pairs", "steps", "rounds")]
        for name, value, bound in [*numbers, *(("vocab", vocabulary, 8) for vocabulary in self.vocabularies)]:
            if value is not None and value < bound:
                raise InputError(f"--{name} {value}: must be at least {bound}.")
        for recipe in self.recipes:
            if recipe not in RECIPES:
                raise InputError(f"--recipes {recipe}: must be among {', '.join(RECIPES)}.")

    @property
    def divisor(self) -> int:
        """What lengths and windows are divided by."""
        return SHAPES[self.shape].shrink if self.shrink is None else self.shrink
