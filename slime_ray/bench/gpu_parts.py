"""The parts of `bench gpu`, each of which runs in a process of its own."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from slime_ray.data.packing import Segment, Spans
from slime_ray.model.flops import Lengths

from .cases import Case, build_case
from .lengths import BenchPair
from .machine import find_device, reason, timed
from .memory import weigh
from .options import SHAPES, Options
from .step import measure_speed
from .stepper import Stepper

Row = dict[str, Any]
"""case: what was measured. figures: numbers by what they are, with units; or failure: why there are none."""
PAIR = Lengths(180, 250, 250)
"""Mean lengths of UltraFeedback in the tokens of a 3-4B model, about."""
TRIAL = """\
name: tiny
preset: arithmetic
arms: {slime: {}}
base:
  model: {dtype: bfloat16, lora: {rank: 8, alpha: 16.0}}
  data: {sft_examples: 256, pairs: 128, held_out_pairs: 32}
  sft: {updates: 8}
  training: {updates: 8, pairs_per_update: 16, evaluations: 2}
  evaluation: {prompts: 16, selection_prompts: 16, kl_prompts: 8}
"""


@dataclass(frozen=True, kw_only=True)
class GpuSizes:
    """How large the parts are. shape: of the model. pairs: of a step. row: tokens of a row. prompt, answer: tokens of
    each of the answers that are drawn in batches. seconds: that a part may take at most."""

    shape: str
    device: str
    pairs: int
    row: int
    prompt: int
    answer: int
    seconds: float


def rows_of(part: str, case: str, sizes: GpuSizes) -> list[Row]:
    """Return one part's rows."""
    return PARTS[part](case, sizes)


def attention(case: str, sizes: GpuSizes) -> list[Row]:
    """Compare outputs and gradients of each kernel in bfloat16, over one row, with float32 by segments."""
    from slime_ray.model.attention import Kernel

    shape, device = SHAPES[sizes.shape], find_device(sizes.device)
    segments = [Segment(*PAIR)] * max(1, sizes.row // sum(PAIR))
    tokens = sum(map(sum, segments))
    torch.manual_seed(0)
    heads = (shape.heads, shape.key_heads, shape.key_heads)
    inputs = [torch.randn(1, count, tokens, shape.head_size, device=device) for count in heads]
    weights = torch.randn(1, tokens, shape.heads, shape.head_size, device=device)
    rows = []
    for window in (None, shape.window):
        exact, _ = attend("segments", window, inputs, weights, segments)
        for kernel in get_args(Kernel):
            row: Row = {"case": f"{kernel}, {'full' if window is None else f'window {window}'}"}
            if kernel == "auto":
                continue
            try:
                outputs, seconds = attend(kernel, window, [x.bfloat16() for x in inputs], weights.bfloat16(), segments)
            except (RuntimeError, TypeError) as error:
                rows.append(row | {"failure": reason(error)})
                continue
            off = [float((a - b).norm() / b.norm()) for a, b in zip(outputs, exact, strict=True)]
            figures = {"ms": 1e3 * seconds, "output off by": off[0], "gradients off by": max(off[1:])}
            rows.append(row | {"figures": figures})
    return rows


def attend(
    kernel: Any, window: int | None, inputs: list[Any], weights: Any, segments: list[Segment]
) -> tuple[list[Any], float]:
    """Run a kernel forward and backward; return outputs, gradients and the last time of three."""
    from slime_ray.model.attention import RowLayout, row_attention

    layout = RowLayout(segments, Spans.of(segments).to(weights.device), kernel)
    leaves = [x.detach().requires_grad_() for x in inputs]
    tensors: list[Any] = []
    options: Any = {"scaling": leaves[0].shape[-1] ** -0.5, "sliding_window": window, "row_layout": layout}

    def run() -> None:
        query, key, value = leaves
        out, _ = row_attention(None, query, key, value, None, **options)
        tensors[:] = [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]

    return tensors, [timed(run, weights.device) for _ in range(3)][-1]


def step(case: str, sizes: GpuSizes) -> list[Row]:
    """Time a recipe's training step at its best micro-batch."""
    options = Options(
        shape=sizes.shape, device=sizes.device, pairs=sizes.pairs, steps=2, rounds=2, recipes=(case,), best_batch=True
    )
    (speed,) = measure_speed(options, lambda line: None).rows
    if speed["failure"]:
        return [{"case": case, "failure": speed["failure"]}]
    names = ("pairs/s", "pairs a pass", "% padding", "% of peak")
    figures = {name: speed[name] for name in names} | _gpu_peak("allocated")
    return [{"case": case, "figures": figures}]


def _gpu_peak(kind: str) -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {f"{kind} GiB": getattr(torch.cuda, f"max_memory_{kind}")() / 2**30}


def _case(sizes: GpuSizes) -> Case:
    shape, device = SHAPES[sizes.shape], find_device(sizes.device)
    dtype = getattr(torch, shape.dtype)
    return build_case(shape, vocabulary=shape.vocabulary, shrink=1, dtype=dtype, device=device, seed=0)


def memory(case: str, sizes: GpuSizes) -> list[Row]:
    """Measure the highest memory of a row's step next to the plan's figure."""
    from slime_ray.config.model import Lora, Model
    from slime_ray.model.footprint import Footprint, fill_row

    shape, rows = SHAPES[sizes.shape], []
    for head in ("frozen", "trained"):
        stepper = Stepper("packed" if head == "trained" else "packed-frozen-head", _case(sizes))
        pairs = [BenchPair(*((1,) * length for length in lengths)) for lengths in fill_row(sizes.row, PAIR)]
        tensors = stepper.collate(pairs, len(pairs))
        stepper.run(tensors)
        measured = weigh(stepper, tensors, stepper.case.device)
        with tempfile.TemporaryDirectory() as folder:
            shape.config(vocabulary=shape.vocabulary, shrink=1).save_pretrained(folder)
            lora = Lora(rank=shape.rank, alpha=2.0 * shape.rank, train_head=head == "trained")
            model = Footprint(Model(source=folder, dtype=shape.dtype, lora=lora))  # type: ignore[arg-type]
        planned = model.trained + model.step(sizes.row, PAIR, gpu=sizes.device == "cuda", checkpointing=False)
        figures = {"GiB": measured / 2**30, "planned GiB": planned / 2**30, "planned/measured": planned / measured}
        rows.append({"case": f"{head} head, {sizes.row}", "figures": figures | _gpu_peak("reserved")})
    return rows


def answers(case: str, sizes: GpuSizes) -> list[Row]:
    """Time a batch of answers of one length."""
    from slime_ray.model.logprobs import Policy

    batch = int(case.split()[-1])
    policy = Policy(_case(sizes).lm).eval()
    device, vocabulary = find_device(sizes.device), SHAPES[sizes.shape].vocabulary
    ids = torch.randint(1, vocabulary, (batch, sizes.prompt), device=device)
    options: dict[str, Any] = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 0, "pad_token_id": 0,
    }  # fmt: skip

    def draw(tokens: int) -> float:
        exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return timed(lambda: policy.generate(**options, **exactly), device)

    draw(2)
    seconds = draw(sizes.answer)
    figures = {"tokens/s": batch * sizes.answer / seconds, "ms a token": 1e3 * seconds / sizes.answer}
    return [{"case": case, "figures": figures | _gpu_peak("allocated")}]


def trial(case: str, sizes: GpuSizes) -> list[Row]:
    """Time `slime-ray train` of a tiny model: stages, updates, answers, verdicts, files."""
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder, "tiny.yaml")
        space.write_text(TRIAL, encoding="utf-8")
        command = [sys.executable, "-m", "slime_ray", "train", str(space), "--storage", folder]
        clock = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=sizes.seconds)
        seconds = time.perf_counter() - clock
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        return [{"case": case, "failure": f"exit code {run.returncode}: {last[:160]}"}]
    return [{"case": case, "figures": {"s": seconds}}]


PARTS: dict[str, Callable[[str, GpuSizes], list[Row]]] = {
    function.__name__: function for function in (attention, step, memory, answers, trial)
}
