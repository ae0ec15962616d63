"""What a benchmark is asked to do, checked before anything heavy is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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
    the name of a distribution. shrink: what all lengths are divided by; None for the shape's own. max_tokens: longest
    sequence before shrinking, prompt and completion together. pairs: pairs of an optimizer step. micro: pairs of a
    forward pass; None for all of the step's. steps: steps of a round, different pairs each. sort_over: steps' worth of
    pairs that padded recipes sort by length, 1 for none. rounds: how often the same steps are repeated.
    Raises InputError with the option's name for a number out of range.
    """

    vocabularies: Sequence[int] = ()
    lengths: str = "ultrafeedback"
    shrink: int | None = None
    max_tokens: int = 2048
    pairs: int = 8
    micro: int | None = None
    steps: int = 4
    sort_over: int = 50
    rounds: int = 3
    dtype: Literal["float32", "bfloat16"] | None = None
    threads: int | None = None
    device: str = "auto"
    shape: str = "small"
    recipes: Sequence[str] = RECIPES
    gradient_checkpointing: bool = False
    best_batch: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        ones = dict.fromkeys(("shrink", "pairs", "micro", "steps", "sort_over", "rounds", "threads"), 1)
        numbers = [(name, getattr(self, name), bound) for name, bound in {**ones, "max_tokens": 4, "seed": 0}.items()]
        for name, value, bound in [*numbers, *(("vocab", vocabulary, 8) for vocabulary in self.vocabularies)]:
            if value is not None and value < bound:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {bound}.")
        if self.micro is not None and self.micro > self.pairs:
            raise InputError(
                f"--micro {self.micro}: a step has {self.pairs} pairs. Give at most that, or more --pairs."
            )
        if 1 < self.sort_over < self.steps:
            raise InputError(f"--sort-over {self.sort_over}: must be 1, or at least the {self.steps} --steps.")

    @property
    def divisor(self) -> int:
        """What lengths and windows are divided by."""
        return SHAPES[self.shape].shrink if self.shrink is None else self.shrink

    @property
    def precision(self) -> str:
        """Name of the dtype that runs."""
        return self.dtype or SHAPES[self.shape].dtype
