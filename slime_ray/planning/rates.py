"""How long work takes: as a probe measured it, or from a GPU's data sheet and shares of it that are assumed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slime_ray.config.judge import Exact, Llm, NoJudge
from slime_ray.config.settings import Settings
from slime_ray.model.footprint import footprint
from slime_ray.planning.material import Material
from slime_ray.planning.prices import Gpu

Ends = np.ndarray
"""A figure with everything that lowers it, as is expected, and with everything that raises it: three numbers."""
Work = Mapping[str, float | Ends]
"""Amounts of work by their units."""
Rates = Mapping[str, float | Ends]
"""Seconds of each unit of work, on all workers of a trial together; of a unit that is not there, none.

Measured or assumed: process: until a worker has imported everything. load, setup, save: once each. decode_step: of a
decoding step. Measured: update, token: of training, beside its tokens and for each of them. read_token: of a forward
pass. decode_row: of each answer in a decoding step. Assumed: flop; saved_byte; verdict: an answer scored; request: to a
language model. And example: one of the data, tokenized; around: Ray's start and end; report: that of a run.
"""
NONE = np.zeros(3)


def seconds_of(work: Work, rates: Rates) -> Ends:
    """Return the seconds of some work."""
    return sum((np.multiply(rates[unit], amount) for unit, amount in work.items() if unit in rates), NONE)


@dataclass(frozen=True)
class MeasuredRates:
    """What a probe found. peak_bytes: of the GPU, or of the process on a CPU. around: seconds that Ray took to start,
    imports included. side_by_side: probes that ran at a time, as trials will. took: seconds of the whole probe."""

    rates: Mapping[str, float]
    peak_bytes: int
    device: str
    around: float = 0.0
    side_by_side: int = 1
    took: float = 0.0


SPREAD = np.array([0.9, 1.0, 1.2])
"""By what a measured rate may be off, as it was seen to vary between a probe and a run."""
EXAMPLE = np.array([0.0003, 0.001, 0.003])
REQUEST = np.array([2.0, 6.0, 20.0])
"""Seconds to tokenize an example, and of a request to a language model; both assumed."""
VERDICT = np.array([0.02, 0.1, 0.5])
EXACT_VERDICT = np.array([0.0, 0.0001, 0.01])
"""Seconds to score an answer, assumed, by a reward model and by a function."""
PEAK_SHARE = np.array([0.45, 0.35, 0.25])
"""Share of a GPU's peak in training and in forward passes, fastest first. The best public figure for LoRA in bfloat16
on an H100 is 41 to 43 % (Llama3-8B, NVIDIA NeMo AutoModel)."""
BANDWIDTH_SHARE = 0.6
LAUNCH_SECONDS = np.array([0.0004, 0.001, 0.002])
"""Of a layer in a decoding step: transformers starts its kernels one by one, adapters apart."""
DISK_BYTES = np.array([2e9, 1e9, 0.3e9])
"""Bytes a second, fastest first."""
SETUP = np.array([1.0, 5.0, 20.0])
AROUND = np.array([5.0, 10.0, 40.0])
PROCESS = np.array([15.0, 60.0, 180.0])
REPORT = np.array([5.0, 10.0, 20.0])
"""Seconds that nothing of the model or the GPU changes; a process takes imports and the device's first use."""


def rates_of(
    settings: Settings,
    material: Material,
    gpu: Gpu | None,
    measured: MeasuredRates | None,
    *,
    workers: int,
    share: float,
) -> tuple[Rates, str] | None:
    """Return the rates of trials, and in words where they come from; None where no speed is known.

    measured: by a probe of the same settings on the same machine. Without one rates follow from the GPU's peak and
    bandwidth. share: of a GPU that each worker has, at most 1.
    """
    judge = settings.evaluation.judge
    scoring = [member for member in judge.members if not isinstance(member, NoJudge | Llm)]
    verdicts = [EXACT_VERDICT if isinstance(member, Exact) else VERDICT for member in scoring]
    # Judges follow one another.
    waiting = sum(endpoint.requests_an_answer / endpoint.concurrency for endpoint in judge.endpoints)
    rates: dict[str, float | Ends] = {
        "example": EXAMPLE,
        "verdict": sum(verdicts, NONE) / max(1, len(verdicts)),
        "request": REQUEST * waiting / max(1.0, sum(endpoint.requests_an_answer for endpoint in judge.endpoints)),
    }
    if measured:
        rates |= {name: SPREAD * seconds for name, seconds in measured.rates.items()}
        # What a worker takes to import everything says how fast this machine is at such work, which no GPU does.
        rates |= {"around": SPREAD * measured.around, "report": rates["process"]}
        if material.seconds is not None:
            rates["example"] = SPREAD * material.seconds / max(1, material.examples)
        return rates, (
            f"measured in {measured.took:.0f} s on {measured.device}, {measured.side_by_side} trials at a time"
        )
    if gpu is None or (peak := gpu.peak(settings.model.dtype)) is None:
        return None
    model, itemsize = footprint(settings.model), 2 if settings.model.dtype == "bfloat16" else 4
    weights = (model.sizes.linear + model.sizes.hidden * model.sizes.vocabulary) * itemsize
    moved = weights / (BANDWIDTH_SHARE * gpu.tb_per_s * 1e12 * share)
    rates |= {
        "around": AROUND,
        "process": PROCESS,
        "report": REPORT,
        "load": model.plain / DISK_BYTES,
        "setup": SETUP,
        "saved_byte": 1 / DISK_BYTES,
        "flop": 1 / (peak * workers * share * PEAK_SHARE),
        "decode_step": np.maximum(moved, LAUNCH_SECONDS * model.layers),
    }
    return rates, (
        "the formula at {1:.0%} ({2:.0%} to {0:.0%})".format(*PEAK_SHARE)
        + f" of {gpu.name}'s peak of {peak / 1e12:g} TFLOP/s, which is an assumption. Use --probe to measure"
    )
