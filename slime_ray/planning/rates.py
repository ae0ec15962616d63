"""How long work takes: as a probe measured it, or from a GPU's data sheet and shares of it that are assumed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from slime_ray.config.judge import Exact, Llm, NoJudge
from slime_ray.config.settings import Settings
from slime_ray.model.footprint import Footprint
from slime_ray.planning.material import Material
from slime_ray.planning.prices import Gpu

End = Literal["low", "expected", "high"]


@dataclass(frozen=True)
class Range:
    """A figure: what is expected, and what it may as well be.

    low takes everything that lowers it together, high everything that raises it.
    """

    low: float
    expected: float
    high: float

    @classmethod
    def of(cls, figure: Callable[[End], float]) -> "Range":
        """Build a range from the figure at each end."""
        return cls(figure("low"), figure("expected"), figure("high"))

    @classmethod
    def exactly(cls, value: float) -> "Range":
        """Build a range from a figure without doubt."""
        return cls(value, value, value)

    def __add__(self, other: "float | Range") -> "Range":
        other = other if isinstance(other, Range) else Range.exactly(other)
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, factor: "float | Range") -> "Range":
        factor = factor if isinstance(factor, Range) else Range.exactly(factor)
        return Range(self.low * factor.low, self.expected * factor.expected, self.high * factor.high)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, number: float) -> "Range":
        return Range(self.low / number, self.expected / number, self.high / number)

    def at(self, end: End) -> float:
        """Return one of the three figures."""
        value: float = getattr(self, end)
        return value


ZERO = Range.exactly(0.0)
Work = Mapping[str, float | Range]
"""Amounts of work by their units."""
Rates = Mapping[str, Range]
"""Seconds of each unit of work, on all workers of a trial together; of a unit that is not there, none.

As `ProbedRates` has them, and besides: saved_byte; flop; request: to a language model; example: one of the data,
tokenized; around: Ray's start and end; report: that of a run.
"""


def seconds_of(work: Work, rates: Rates) -> Range:
    """Return the seconds of some work."""
    return sum((rates[unit] * amount for unit, amount in work.items() if unit in rates), ZERO)


@dataclass(frozen=True)
class ProbedRates:
    """Seconds of each unit of work, on the workers that were probed.

    update, token: of preference training, beside its tokens and for each of them; sft_update, sft_token: of stage 1.
    read_token: of a forward pass with its statistics. compare_token: of the divergence from the reference. decode_step,
    decode_row: of a decoding step, beside its answers and for each of them. load, save, setup: once each. verdict: an
    answer scored. process: until a worker had imported everything.
    """

    update: float = 0.0
    token: float = 0.0
    sft_update: float = 0.0
    sft_token: float = 0.0
    read_token: float = 0.0
    compare_token: float = 0.0
    decode_step: float = 0.0
    decode_row: float = 0.0
    load: float = 0.0
    save: float = 0.0
    setup: float = 0.0
    verdict: float = 0.0
    process: float = 0.0


@dataclass(frozen=True)
class MeasuredRates:
    """What a probe found. peak_bytes: of the GPU, or of the process on a CPU. around: seconds that Ray took to start,
    imports included. side_by_side: probes that ran at a time, as trials will. took: seconds of the whole probe."""

    rates: ProbedRates
    peak_bytes: int
    device: str
    around: float = 0.0
    side_by_side: int = 1
    took: float = 0.0

    @property
    def basis(self) -> str:
        """Where the rates come from, in words."""
        return f"measured in {self.took:.0f} s on {self.device}, {self.side_by_side} trials at a time"


def mean_of(rates: list[ProbedRates]) -> ProbedRates:
    """Return the mean of several probes."""
    names = [field.name for field in fields(ProbedRates)]
    return ProbedRates(**{name: sum(getattr(each, name) for each in rates) / len(rates) for name in names})


SPREAD = Range(0.9, 1.0, 1.2)
"""By what a measured rate may be off, as it was seen to vary between a probe and a run."""
EXAMPLE = Range(0.0003, 0.001, 0.003)
REQUEST = Range(2.0, 6.0, 20.0)
"""Seconds to tokenize an example, and of a request to a language model; both assumed."""


def measured_rates(measured: MeasuredRates, settings: Settings, material: Material) -> Rates:
    """Return the rates of a probe of the same settings on the same machine."""
    rates = {name: SPREAD * value for name, value in asdict(measured.rates).items()}
    read = material.seconds and material.seconds / max(1, material.examples)
    return rates | {
        "request": _request(settings),
        "example": EXAMPLE if read is None else SPREAD * read,
        "around": SPREAD * measured.around,
        # What a worker takes to import everything says how fast this machine is at such work, which no GPU does.
        "report": rates["process"],
    }


PEAK_SHARE = Range(0.45, 0.35, 0.25)
"""Share of a GPU's peak in training and in forward passes, fastest first. The best public figure for LoRA in bfloat16
on an H100 is 41 to 43 % (Llama3-8B, NVIDIA NeMo AutoModel)."""
BANDWIDTH_SHARE = 0.6
LAUNCH_SECONDS = Range(0.0004, 0.001, 0.002)
"""Of a layer in a decoding step: transformers starts its kernels one by one, adapters apart."""
DISK_BYTES = Range(2e9, 1e9, 0.3e9)
"""Bytes a second, fastest first."""
VERDICT = Range(0.02, 0.1, 0.5)
EXACT_VERDICT = Range(0.0, 0.001, 0.01)
ASSUMED = {
    "example": EXAMPLE,
    "setup": Range(1.0, 5.0, 20.0),
    "around": Range(5.0, 10.0, 40.0),
    "report": Range(5.0, 10.0, 20.0),
    # Imports and the device's first use.
    "process": Range(15.0, 60.0, 180.0),
}
"""Seconds that nothing of the model or the GPU changes."""


def assumed_rates(gpu: Gpu, model: Footprint, settings: Settings, *, workers: int, share: float) -> tuple[Rates, str]:
    """Derive rates from a GPU's peak and bandwidth, none of them measured; say in words where they come from.

    gpu: one that computes in the model's dtype. share: of a GPU that each worker has, at most 1.
    """
    peak = gpu.peak(settings.model.dtype)
    assert peak is not None
    itemsize = 2 if settings.model.dtype == "bfloat16" else 4
    weights = (model.sizes.linear + model.sizes.hidden * model.sizes.vocabulary) * itemsize
    moved = weights / (BANDWIDTH_SHARE * gpu.tb_per_s * 1e12 * share)
    scoring = [judge for judge in settings.evaluation.judge.members if not isinstance(judge, (NoJudge, Llm))]
    verdicts = [EXACT_VERDICT if isinstance(judge, Exact) else VERDICT for judge in scoring]
    rates = ASSUMED | {
        "flop": Range.of(lambda end: 1 / (peak * workers * share * PEAK_SHARE.at(end))),
        "decode_step": Range.of(lambda end: max(moved, LAUNCH_SECONDS.at(end) * model.layers)),
        "load": Range.of(lambda end: model.plain / DISK_BYTES.at(end)),
        "saved_byte": Range.of(lambda end: 1 / DISK_BYTES.at(end)),
        "verdict": Range.of(lambda end: sum(verdict.at(end) for verdict in verdicts) / max(1, len(verdicts))),
        "request": _request(settings),
    }
    basis = (
        f"the formula at {PEAK_SHARE.expected:.0%} ({PEAK_SHARE.high:.0%} to {PEAK_SHARE.low:.0%}) of {gpu.name}'s "
        f"peak of {peak / 1e12:g} TFLOP/s, which is an assumption. Use --probe to measure"
    )
    return rates, basis


def _request(settings: Settings) -> Range:
    """Return the mean seconds of a request at full concurrency, where judges follow one another."""
    endpoints = settings.evaluation.judge.endpoints
    if not endpoints:
        return ZERO
    requests = sum(judge.requests_an_answer for judge in endpoints)
    return Range.of(
        lambda end: (
            sum(judge.requests_an_answer * REQUEST.at(end) / judge.concurrency for judge in endpoints) / requests
        )
    )
