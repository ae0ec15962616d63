"""Peak memory of one worker, in bytes, by formula: what is held all the time, and the highest of what comes on top."""

from collections.abc import Mapping
from dataclasses import dataclass

from slime_ray.config.settings import Settings
from slime_ray.planning.shapes import ModelShape

TILE_LOGITS = {"cpu": 2**23, "cuda": 2**28}
"""Logits alive at a time, as `model.logprobs` has it."""
KEPT = {
    "llama": {4: (4, 4, 5, 0), 2: (6, 4, 5, 0)},
    "qwen3": {4: (4, 4, 6, 1), 2: (6, 4, 7, 2)},
    "gemma3_text": {4: (6, 4, 6, 1), 2: (10, 4, 7, 2)},
}
"""How often a layer keeps what is as wide as its input, its feed-forward part, its queries and its keys, in numbers of
the model's own type, by their bytes: counted from torch's saved tensors, with low-rank adapters as `model.fused_lora`
has them. Norms keep float32 under bfloat16. Other models are taken for the largest of these."""
ADAPTED = 7
"""Adapters of a layer: each keeps as many numbers as its rank."""
AT_WORK = 2.5
"""Layers' worth of what is kept that the backward pass takes besides: `bench memory` measured 2.3."""
CONTEXT = 1.0 * 2**30
"""What a GPU holds beside tensors: the context, libraries' workspaces."""
FRAGMENTS = 1.08
"""What an allocator takes over what it hands out."""
SAMPLING = 5
"""Copies of a decoding step's logits, in float32: they are scaled, sorted and drawn from."""
PROCESS = 0.75 * 2**30
"""A worker's process on a CPU with everything imported, as measured."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker's GPU, or of its process on a CPU.

    parts: what the peak is made of, by name. answering: the peak while answers are drawn. token: what each token of a
    micro-batch adds, where training makes the peak; row: tokens of the largest one.
    """

    parts: Mapping[str, float]
    peak: float
    answering: float
    token: float
    row: float

    def row_that_fits(self, limit: float) -> int | None:
        """Tokens of a micro-batch that would fit, in steps of 256; None where none would, or answers do not."""
        if self.answering > limit:
            return None
        tokens = self.row - (self.peak - limit) / self.token
        return int(tokens // 256 * 256) if tokens >= 256 else None


def kept_bytes(shape: ModelShape, itemsize: int, *, rank: int) -> int:
    """What the forward pass keeps of one position in one layer for the backward pass, with adapters of this rank."""
    kinds = KEPT.get(shape.model_type, KEPT["gemma3_text"])
    hidden, intermediate, queries, keys = kinds[itemsize]
    return itemsize * (
        hidden * shape.hidden
        + intermediate * shape.intermediate
        + queries * shape.heads * shape.head_size
        + keys * shape.key_heads * shape.head_size
        + ADAPTED * rank
    )


def activation_bytes(shape: ModelShape, positions: float, itemsize: int, *, rank: int, checkpointing: bool) -> float:
    """What so many positions of a micro-batch take at the highest point of a step, all layers together.

    With checkpointing only a layer's input is kept, and one layer at a time is computed again.
    """
    layer = kept_bytes(shape, itemsize, rank=rank)
    if checkpointing:
        return positions * (shape.layers * shape.hidden * itemsize + (1 + AT_WORK) * layer)
    return positions * (shape.layers + AT_WORK) * layer


def peak_memory(
    settings: Settings,
    shape: ModelShape,
    *,
    gpu: bool,
    workers: int,
    sharded: bool,
    row: float,
    prompt: float,
) -> Memory:
    """The peak of one worker of a trial.

    row: tokens of the longest micro-batch. prompt: tokens of the longest prompt that is answered. sharded: parameters,
    gradients and moments are divided among the workers.
    """
    lora, item = settings.model.lora, 2 if settings.model.dtype == "bfloat16" else 4
    share = workers if sharded else 1
    # A trained head is a copy of its own beside the original, which has been cut loose from the embeddings.
    own_head = lora is not None and lora.train_head
    heads = (2 if own_head else 0) if shape.tied else (2 if own_head else 1)
    weights = (shape.body + shape.beside + shape.embeddings * (1 + heads)) * item
    adapters = shape.adapters(lora) * 4 if lora else 0
    head_bytes = shape.embeddings * item if own_head else 0
    trained = adapters + head_bytes if lora else weights
    exchanged = trained if workers > 1 and not sharded else 0
    held = {
        "weights": (weights + adapters) / share,
        "gradients": trained / share,
        "moments": 2 * trained / share,
        "exchange": float(exchanged),
    }
    limit = settings.model.chunk_logits or TILE_LOGITS["cuda" if gpu else "cpu"]
    tile = 2 * 4 * min(limit, row * shape.vocabulary)
    # The trained head's gradient is summed in float32 before it takes the head's own type.
    summed = shape.embeddings * 4 if (own_head or lora is None) and item == 2 else 0
    gathered = 2 * (weights / max(1, shape.layers)) if sharded else 0

    def activations(tokens: float) -> float:
        checkpointing = settings.training.gradient_checkpointing
        return activation_bytes(shape, tokens, item, rank=lora.rank if lora else 0, checkpointing=checkpointing)

    training = activations(row) + tile + summed + gathered
    decoding = settings.evaluation.decoding
    keys = sum(min(window or 10**9, prompt + decoding.max_new_tokens) for window in shape.windows)
    cache = decoding.batch * keys * 2 * shape.key_heads * shape.head_size * item
    answering = cache + SAMPLING * 4 * decoding.batch * shape.vocabulary + gathered
    on_top = {"activations and logits": training} if training >= answering else {"answers' cache": answering}
    parts = {name: float(size) for name, size in (held | on_top).items() if size}
    name, fixed = ("context", CONTEXT) if gpu else ("process", PROCESS)
    return Memory(
        parts=parts | {name: fixed},
        peak=FRAGMENTS * sum(parts.values()) + fixed,
        answering=FRAGMENTS * (sum(held.values()) + answering) + fixed,
        token=FRAGMENTS * activations(1.0),
        row=row,
    )
