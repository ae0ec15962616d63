"""What a training step of Gemma 3 4B would take on an H100, from its kernels counted without data: an estimate."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from slime_ray.bench.machine import Say
from slime_ray.bench.report import Report, machine
from slime_ray.config.model import Lora, Model
from slime_ray.model.flops import Layout, Lengths, attention_flops, step_flops
from slime_ray.model.footprint import SHALLOW_LAYERS, Footprint, footprint

from .common import run

PEAK = 989e12
"""FLOPs a second of dense bfloat16 products that an H100 is sold with."""
PRODUCTS = 680e12
"""FLOPs a second that large products reach of it."""
ATTENTION = 300e12
"""FLOPs a second that variable-length attention reaches, of those that no mask blanks."""
BANDWIDTH = 2.75e12
"""Bytes a second that kernels reach of 3.35e12."""
KERNEL = 3e-6
"""Seconds that a kernel takes at least."""
OPTIMIZER = 40
"""Bytes a trained weight of an update: AdamW reads four float32 and writes three, clipping reads two and writes one."""
DECODING = 14e-6
"""Seconds of a kernel in a decoding step, which waits for Python: 75 ms were estimated for 5,190 kernels."""
ANSWERS, ANSWER, BATCH = 500, 1024, 256
"""Answers of a report, tokens of one, and answers at a time."""
PARTS = {
    "rms_norm": "norms", "RMSNorm": "norms", "rotary": "rotary", "apply_rotary_pos_emb": "rotary",
    "gated": "activations", "MLP": "activations", "softmax_tile": "head, softmax", "head_gradient": "head, softmax",
}  # fmt: skip
"""Parts of a step by fused functions, and by functions and classes of transformers."""
FILES = {"model/head.py": "head, softmax", "model/attention.py": "attention", "model/fused_lora.py": "adapters' sums"}


@dataclass
class StepCost:
    """One way to compute the step. milliseconds: by part. kernels, flops: of all of it. pairs: in it. answers: what
    drawing them takes."""

    name: str
    pairs: int
    answers: str
    milliseconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kernels: float = 0.0
    flops: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole step, without the optimizer's share."""
        return sum(value for part, value in self.milliseconds.items() if part != "optimizer, per update") / 1e3


def measure_roofline(pairs: int, prompt: int, chosen: int, rejected: int, say: Say) -> Iterator[Report]:
    """Count the step with a frozen and a trained head, and with transformers' modules."""
    lengths = [Lengths(prompt, chosen, rejected)] * pairs
    steps = count_steps(lengths, say)
    parts = sorted(steps[0].milliseconds, key=lambda part: -steps[0].milliseconds[part])
    rows: list[dict[str, Any]] = [
        {"part": part, **{step.name: step.milliseconds[part] for step in steps}} for part in parts
    ]
    figures: dict[str, Callable[[StepCost], Any]] = {
        "step, ms": lambda step: 1e3 * step.seconds,
        "kernels": lambda step: round(step.kernels),
        "pairs/s": lambda step: step.pairs / step.seconds,
        f"{ANSWERS} answers, min": lambda step: step.answers,
        "% of peak": lambda step: 100 * step.flops / step.seconds / PEAK,
    }
    rows += [{"part": name} | {step.name: figure(step) for step in steps} for name, figure in figures.items()]
    yield Report("estimate for an H100, ms", machine() | {"pairs": pairs, "tokens": sum(map(sum, lengths))}, rows)


def count_steps(pairs: list[Lengths], say: Say) -> list[StepCost]:
    """Count each way to compute the step."""
    steps = []
    for name, head, fused in (("frozen head", False, True), ("trained head", True, True), ("plain", False, False)):
        say(f"counting: {name}")
        lora = Lora(rank=64, alpha=128.0, train_head=head)
        model = footprint(Model(source="google/gemma-3-4b-pt", dtype="bfloat16", lora=lora, fused=fused))
        steps.append(_step(name, model, pairs))
    return steps


def _step(name: str, model: Footprint, pairs: list[Lengths]) -> StepCost:
    step = StepCost(name, len(pairs), _answers(model))
    beyond = (model.layers - SHALLOW_LAYERS[0]) / (SHALLOW_LAYERS[1] - SHALLOW_LAYERS[0])
    # Every layer adds the same, so that the whole model lies on the line through two shallow ones.
    for layers, weight in zip(SHALLOW_LAYERS, (1 - beyond, beyond), strict=True):
        _count(step, model, layers, pairs, weight)
    layout, head = Layout.of_packed(pairs), model.trains_head
    step.flops = step_flops(model.sizes, layout, head_trained=head)
    step.milliseconds["attention"] += 1e3 * attention_flops(model.sizes, layout) / ATTENTION
    step.milliseconds["optimizer, per update"] = 1e3 * model.trained / 4 * OPTIMIZER / BANDWIDTH
    return step


def _count(step: StepCost, model: Footprint, layers: int, pairs: list[Lengths], weight: float) -> None:
    def record(name: str, size: int, flops: int) -> None:
        if (part := _part(name, product=flops > 0)) is None:
            return
        step.kernels += weight
        step.milliseconds[part] += weight * 1e3 * max(size / BANDWIDTH, flops / PRODUCTS, KERNEL)

    model.meter(model.model_of(layers), pairs, gpu=True, record=record)


def _answers(model: Footprint) -> str:
    """Return the minutes of a report's answers: by kernels, and by Python's starts of them."""
    seconds: list[float] = []
    model.decoding_meter(
        BATCH,
        ANSWER // 2,
        record=lambda name, size, flops: seconds.append(max(size / BANDWIDTH, flops / PRODUCTS, KERNEL)),
    )
    steps = -(-ANSWERS // BATCH) * ANSWER
    gpu, host = sum(seconds) * steps / 60, len(seconds) * DECODING * steps / 60
    return f"{gpu:.1f} to {max(gpu, host):.1f}"


def _part(name: str, *, product: bool) -> str | None:
    """Name the part of a kernel that runs now; None for one that a GPU does not run.

    Backward passes that autograd runs by itself leave no trace.
    """
    if name in PARTS:
        return PARTS[name]
    if "attn" in name or "attention" in name:
        return "attention"
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code, owner = frame.f_code, type(frame.f_locals.get("self")).__name__
        ending = "/".join(code.co_filename.split("/")[-2:])
        if name == "copy_" and code.co_name == "_product":
            # A GPU writes float32 at once.
            return None
        if ending in FILES:
            part = FILES[ending]
            return part if not product else "head, products" if part.startswith("head") else "products of layers"
        if "/transformers/models/" in code.co_filename:
            parts = [part for key, part in PARTS.items() if code.co_name == key or owner.endswith(key)]
            if parts and not product:
                return parts[0]
        frame = frame.f_back
    return "products of layers" if product else "all else"


if __name__ == "__main__":
    lengths = {
        "pairs": (12, 1, "pairs in the row"),
        "prompt": (180, 1, "tokens of a prompt"),
        "chosen": (250, 1, "tokens of a chosen completion"),
        "rejected": (250, 1, "tokens of a rejected completion"),
    }
    run("roofline", __doc__ or "", lengths, measure_roofline)
