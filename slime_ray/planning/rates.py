"""How long work takes: as a probe measured it, or from a GPU's data sheet and shares of it that are assumed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from slime_ray.config.judge import Exact, Llm, NoJudge
from slime_ray.config.settings import Settings
from slime_ray.model.footprint import Footprint
from slime_ray.planning.material import Material
from slime_ray.planning.prices import Gpu

End = Literal["low", "expected", "high"]
ENDS: tuple[End, ...] = ("low", "expected", "high")


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
        """The figure at each end."""
        return cls(*map(figure, ENDS))

    @classmethod
    def exactly(cls, value: float) -> "Range":
        """A figure without doubt."""
        return cls(value, value, value)

    def __add__(self, other: "Range") -> "Range":
        return Range.of(lambda end: self.at(end) + other.at(end))

    def __mul__(self, factor: "float | Range") -> "Range":
        return Range.of(lambda end: self.at(end) * (factor.at(end) if isinstance(factor, Range) else factor))

    def at(self, end: End) -> float:
        """One of the three."""
        value: float = getattr(self, end)
        return value


@dataclass(frozen=True)
class Rates:
    """Seconds of each unit of work, on the workers that were probed.

    update, token: of preference training, beside its tokens and for each of them; sft_update, sft_token: of stage 1.
    read_token: of a forward pass with its statistics. compare_token: of the divergence from the reference. decode_step,
    decode_row: of a decoding step, beside its answers and for each of them. load, save, setup: once each. verdict: an
    answer scored. process: until a worker had imported everything. Not probed: saved_byte, flop; request: to a
    language model; example: one of the data, tokenized; around: Ray's start and end; report: that of a run.
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
    saved_byte: float = 0.0
    flop: float = 0.0
    request: float = 0.0
    example: float = 0.0
    around: float = 0.0
    report: float = 0.0

    def seconds(self, work: Mapping[str, float]) -> float:
        """How long all of it takes, on all workers of a trial together."""
        return sum(amount * float(getattr(self, name)) for name, amount in work.items())


PROBED = tuple(field.name for field in fields(Rates))[:13]
"""The rates that a probe measures."""


@dataclass(frozen=True)
class MeasuredRates:
    """What a probe found. peak_bytes: of the GPU, or of the process on a CPU. around: seconds that Ray took to start,
    imports included. side_by_side: probes that ran at a time, as trials will. took: seconds of the whole probe."""

    rates: Rates
    peak_bytes: int
    device: str
    around: float = 0.0
    side_by_side: int = 1
    took: float = 0.0

    @property
    def basis(self) -> str:
        """Where the rates come from, in words."""
        return f"measured in {self.took:.0f} s on {self.device}, {self.side_by_side} trials at a time"


def mean_of(rates: "list[Rates]") -> Rates:
    """The mean of several probes."""
    return Rates(**{name: sum(getattr(each, name) for each in rates) / len(rates) for name in PROBED})


SPREAD = Range(0.9, 1.0, 1.2)
"""By what a measured rate may be off, as it was seen to vary between a probe and a run."""
EXAMPLE = Range(0.0003, 0.001, 0.003)
REQUEST = Range(2.0, 6.0, 20.0)
"""Seconds to tokenize an example, and of a request to a language model; both assumed."""


def measured_rates(measured: MeasuredRates, settings: Settings, material: Material) -> dict[End, Rates]:
    """The rates of a probe of the same settings on the same machine."""
    read = material.seconds and material.seconds / max(1, material.examples)

    def at(end: End) -> Rates:
        factor = SPREAD.at(end)
        values = {name: factor * getattr(measured.rates, name) for name in PROBED}
        return Rates(
            **values,
            request=_request(settings, end),
            example=EXAMPLE.at(end) if read is None else factor * read,
            around=factor * measured.around,
            # What a worker takes to import everything says how fast this machine is at such work, which no GPU does.
            report=values["process"],
        )

    return {end: at(end) for end in ENDS}


PEAK_SHARE = Range(0.45, 0.35, 0.25)
"""Share of a GPU's peak in training and in forward passes, fastest first. The best public figure for LoRA in bfloat16
on an H100 is 41 to 43 % (Llama3-8B, NVIDIA NeMo AutoModel)."""
BANDWIDTH_SHARE = 0.6
LAUNCH_SECONDS = Range(0.0004, 0.001, 0.002)
"""Of a layer in a decoding step: transformers starts its kernels one by one, adapters apart."""
DISK_BYTES = Range(2e9, 1e9, 0.3e9)
"""Bytes a second, fastest first."""
SETUP, AROUND, REPORT = Range(1.0, 5.0, 20.0), Range(5.0, 10.0, 40.0), Range(5.0, 10.0, 20.0)
PROCESS = Range(15.0, 60.0, 180.0)
"""Seconds of imports and the device's first use."""
VERDICT = Range(0.02, 0.1, 0.5)
EXACT_VERDICT = Range(0.0, 0.001, 0.01)


def assumed_rates(
    gpu: Gpu, model: Footprint, settings: Settings, *, workers: int, share: float
) -> tuple[dict[End, Rates], str]:
    """Rates from a GPU's peak and bandwidth, and where they come from in words. None was measured on a GPU here.

    share: of a GPU that each worker has, at most 1. Raises ValueError where the GPU does not know the dtype.
    """
    peak = gpu.peak(settings.model.dtype)
    if peak is None:
        raise ValueError(f"{gpu.name} does not compute in {settings.model.dtype}")
    itemsize = 2 if settings.model.dtype == "bfloat16" else 4
    sizes = model.sizes
    weights = (sizes.linear + sizes.hidden * sizes.vocabulary) * itemsize
    scoring = [judge for judge in settings.evaluation.judge.members if not isinstance(judge, (NoJudge, Llm))]
    verdicts = [EXACT_VERDICT if isinstance(judge, Exact) else VERDICT for judge in scoring]

    def at(end: End) -> Rates:
        moved = weights / (BANDWIDTH_SHARE * gpu.tb_per_s * 1e12 * share)
        return Rates(
            flop=1 / (peak * workers * share * PEAK_SHARE.at(end)),
            decode_step=max(moved, LAUNCH_SECONDS.at(end) * model.layers),
            load=model.plain / DISK_BYTES.at(end),
            saved_byte=1 / DISK_BYTES.at(end),
            verdict=sum(verdict.at(end) for verdict in verdicts) / max(1, len(verdicts)),
            request=_request(settings, end),
            example=EXAMPLE.at(end),
            setup=SETUP.at(end),
            process=PROCESS.at(end),
            around=AROUND.at(end),
            report=REPORT.at(end),
        )

    basis = (
        f"the formula at {PEAK_SHARE.expected:.0%} ({PEAK_SHARE.high:.0%} to {PEAK_SHARE.low:.0%}) of {gpu.name}'s "
        f"peak of {peak / 1e12:g} TFLOP/s, which is an assumption. Use --probe to measure"
    )
    return {end: at(end) for end in ENDS}, basis


def _request(settings: Settings, end: End) -> float:
    """Seconds of one request to a language model, of as many as are under way at a time; judges follow one another."""
    endpoints = settings.evaluation.judge.endpoints
    seconds = sum(judge.requests_an_answer * REQUEST.at(end) / judge.concurrency for judge in endpoints)
    return seconds / sum(judge.requests_an_answer for judge in endpoints) if endpoints else 0.0
