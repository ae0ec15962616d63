"""What a benchmark is asked to do, checked before anything heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slime_ray.errors import InputError

RECIPES = ("authors", "padded", "chunked", "unshared", "packed", "padded-frozen-head", "packed-frozen-head")
"""The recipes by name, in the order in which they are reported."""

SHAPES = ("small", "gemma3-4b")
"""Names of the model shapes."""

SMALLEST_VOCABULARY = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """One benchmark run.

    vocabularies: sizes of the output head, one measurement each; empty for the shape's own. lengths: a JSONL file or
    the name of a distribution. shrink: what all lengths are divided by; None for the shape's own. max_tokens: longest
    sequence before shrinking, prompt and completion together. pairs: pairs of an optimizer step. micro: pairs of a
    forward pass; None for all of the step's. steps: steps of a round, different pairs each. sort_over: steps' worth of
    pairs that padded recipes sort by length, 1 for none. rounds: how often the same steps are repeated.
    Raises InputError with the option's name for a value out of range.
    """

    vocabularies: tuple[int, ...] = ()
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
    recipes: tuple[str, ...] = RECIPES
    gradient_checkpointing: bool = False
    best_batch: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for vocabulary in self.vocabularies:
            if vocabulary < SMALLEST_VOCABULARY:
                raise InputError(f"--vocab {vocabulary}: must be at least {SMALLEST_VOCABULARY}.")
        ones = dict.fromkeys(("shrink", "pairs", "micro", "steps", "sort_over", "rounds", "threads"), 1)
        for name, bound in {**ones, "max_tokens": 4, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {bound}.")
        if self.micro is not None and self.micro > self.pairs:
            raise InputError(
                f"--micro {self.micro}: a step has {self.pairs} pairs. Give at most that, or more --pairs."
            )
        if 1 < self.sort_over < self.steps:
            raise InputError(f"--sort-over {self.sort_over}: must be 1, or at least the {self.steps} --steps.")
        for recipe in self.recipes:
            if recipe not in RECIPES:
                raise InputError(f"--recipes {recipe}: must be among {', '.join(RECIPES)}.")
        if not self.recipes:
            raise InputError(f"--recipes is empty: name at least one of {', '.join(RECIPES)}.")
        if self.shape not in SHAPES:
            raise InputError(f"--shape {self.shape}: must be {' or '.join(SHAPES)}.")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise InputError(f"--dtype {self.dtype}: must be float32 or bfloat16.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"--device {self.device}: must be auto, cpu or cuda.")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Options":
        """The options that JSON holds."""
        return cls(**{**values, **{name: tuple(values[name]) for name in ("vocabularies", "recipes")}})
