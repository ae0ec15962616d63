"""Bytes that a run writes at most: the shared stages, the models that are kept, checkpoints, results."""

from collections.abc import Mapping
from dataclasses import dataclass

from slime_ray.planning.work import Amounts

ID_BYTES = 2.5
"""Of a token id in a parquet file, about."""
ANSWER_BYTES = 6.0
"""Of a token of a prompt, an answer or the baseline's in answers.parquet, about."""
TRIAL_BYTES = 120_000.0
"""Of a trial's other files, about: curves, pairs, its row, a model's configuration."""


@dataclass(frozen=True)
class Disk:
    """parts: bytes by what they are of. free: at the storage; None where that is not known."""

    parts: Mapping[str, float]
    free: int | None

    @property
    def wanted(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def plan_disk(
    amounts: Amounts, *, trials: int, kept: int, side_by_side: int, references: bool, free: int | None
) -> Disk:
    """What the run may take. trials: in all. kept: models that stay. side_by_side: trials that run at a time.

    A trial in training holds its last checkpoint and writes the next one, each its trained weights with two moments.
    """
    material = amounts.material
    trained = amounts.saved_bytes
    held_out = material.held_out.count * material.held_out.tokens
    answers = sum(asked.turns for asked in material.prompts.values()) * material.answer
    prompts = sum(asked.count * asked.tokens for asked in material.prompts.values())
    parts = material.sft, material.train, material.held_out
    tokens = sum(part.count * part.tokens for part in parts) + prompts
    per_trial = max(asked.turns * (asked.tokens + 2 * material.answer) for asked in material.prompts.values())
    return Disk(
        {
            "tokens and step 0": ID_BYTES * tokens + 4 * 8 * held_out + 16.0 * material.train.count * references,
            "the SFT checkpoint": amounts.checkpoint_bytes,
            "answers": ANSWER_BYTES * (answers + trials * per_trial),
            "trained models": kept * trained,
            "checkpoints": min(side_by_side, trials) * 6 * trained,
            "other results": trials * TRIAL_BYTES,
        },
        free,
    )
