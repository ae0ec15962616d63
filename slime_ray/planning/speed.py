"""How long work takes: as a probe measured it, or from a GPU's data sheet and shares of it that are assumed."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from slime_ray.config.judge import Exact, Llm, NoJudge
from slime_ray.config.settings import Settings
from slime_ray.planning.material import Material
from slime_ray.planning.prices import Gpu
from slime_ray.planning.ranges import NOTHING, Range, total
from slime_ray.planning.shapes import ModelShape
from slime_ray.planning.work import DecodingWork, ReadingWork, TrainingWork, Work


class Speed(Protocol):
    """Seconds of each kind of work. `basis` says in words where they come from."""

    basis: str

    def training(self, work: TrainingWork) -> Range: ...
    def reading(self, work: ReadingWork) -> Range: ...
    def decoding(self, work: DecodingWork) -> Range: ...
    def loading(self) -> Range: ...
    def saving(self, size: float) -> Range: ...
    def verdict(self) -> Range: ...
    def request(self) -> Range: ...
    def tokenizing(self, material: Material) -> Range: ...

    @property
    def beside(self) -> Range:
        """What a trial takes besides: setting up a trainer, writing its files."""
        ...

    @property
    def process(self) -> Range:
        """A worker's start, imports and first use of the device included."""
        ...

    @property
    def around(self) -> Range:
        """Start and end of Ray."""
        ...

    def report(self, *, searched: bool) -> Range:
        """The report at the end; of a search it has twice as many figures."""
        ...


def seconds(work: Work, speed: Speed) -> Range:
    """How long all of it takes, on all workers of a trial together."""
    parts = [speed.training(work.training)] if work.training and work.training.updates else []
    parts += [speed.reading(reading) for reading in work.readings]
    parts += [speed.decoding(decoding) for decoding in work.decodings]
    parts += [speed.loading() * work.loads] if work.loads else []
    parts += [speed.saving(work.saved)] if work.saved else []
    parts += [speed.verdict() * work.verdicts, speed.request() * work.requests]
    return total(parts)


@dataclass(frozen=True)
class Rates:
    """Seconds by one clock, the wall's or the processor's, on the workers that were probed.

    update, token: of preference training, beside its tokens and for each of them; sft_update, sft_token: of stage 1.
    read_token: of a forward pass with its statistics. compare_token: of the divergence from the reference. decode_step,
    decode_row: of a decoding step, beside its answers and for each of them. load, save, setup: once each. verdict: an
    answer scored. process: until a worker had imported everything.
    """

    update: float
    token: float
    sft_update: float
    sft_token: float
    read_token: float
    compare_token: float
    decode_step: float
    decode_row: float
    load: float
    save: float
    setup: float
    verdict: float
    process: float


@dataclass(frozen=True)
class MeasuredRates:
    """What a probe found. around: seconds that Ray took to start, imports included. peak_bytes: of the GPU, or of the
    process on a CPU. side_by_side: probes that ran at a time, as trials will. took: seconds of the whole probe."""

    wall: Rates
    processor: Rates
    around: float
    peak_bytes: int
    side_by_side: int
    took: float
    device: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def mean_of(rates: "list[Rates]") -> Rates:
    """Of several probes."""
    names = Rates.__dataclass_fields__
    return Rates(**{name: sum(getattr(each, name) for each in rates) / len(rates) for name in names})


class MeasuredSpeed:
    """By a probe of the same settings on the same machine. What differs between trials beside updates, tokens and
    batches is not scaled."""

    LESS, MORE = 0.10, 0.20
    """By how much a rate may have been off, as it was seen to vary between a probe and a run."""

    def __init__(self, measured: MeasuredRates, rates: Rates, settings: Settings):
        self.measured, self.rates, self.settings = measured, rates, settings
        self.basis = f"measured in {measured.took:.0f} s on {measured.device}, {measured.side_by_side} trials at a time"

    def _about(self, value: float) -> Range:
        return Range.about(value, less=self.LESS, more=self.MORE)

    def training(self, work: TrainingWork) -> Range:
        rates = self.rates
        update, token = (rates.sft_update, rates.sft_token) if work.kind == "sft" else (rates.update, rates.token)
        return self._about(work.updates * update + work.tokens * token)

    def reading(self, work: ReadingWork) -> Range:
        return self._about(work.tokens * (self.rates.compare_token if work.twice else self.rates.read_token))

    def decoding(self, work: DecodingWork) -> Range:
        step = self.rates.decode_step + work.batch * self.rates.decode_row
        prompts = work.batches * work.prompt_tokens * self.rates.read_token
        return work.steps * self._about(work.batches * step) + self._about(prompts)

    def loading(self) -> Range:
        return self._about(self.rates.load)

    def saving(self, size: float) -> Range:
        return self._about(self.rates.save)

    def verdict(self) -> Range:
        return self._about(self.rates.verdict)

    def request(self) -> Range:
        return _request(self.settings)

    def tokenizing(self, material: Material) -> Range:
        read = material.seconds
        if read is None:
            return _tokenizing(material)
        return self._about(read[0] if self.rates is self.measured.wall else read[1])

    @property
    def beside(self) -> Range:
        return self._about(self.rates.setup)

    @property
    def process(self) -> Range:
        return self._about(self.rates.process)

    @property
    def around(self) -> Range:
        return self._about(self.measured.around)

    def report(self, *, searched: bool) -> Range:
        # What a worker takes to import everything says how fast this machine is at such work, which a GPU does not do.
        return self._about(self.rates.process * (2 if searched else 1))


class AssumedSpeed:
    """From a GPU's peak and bandwidth. The shares of them are assumptions; none was measured on a GPU here."""

    PEAK_SHARE = (0.25, 0.35, 0.45)
    """Of the peak, in training and in forward passes. The best public figure for LoRA in bfloat16 on an H100 is 41 to
    43 % (Llama3-8B, NVIDIA NeMo AutoModel)."""
    BANDWIDTH_SHARE = 0.6
    LAUNCH_SECONDS = (0.0004, 0.001, 0.002)
    """Of a layer in a decoding step: transformers starts its kernels one by one, adapters apart."""
    DISK_BYTES = (0.3e9, 1e9, 2e9)
    """A second."""

    def __init__(self, gpu: Gpu, shape: ModelShape, settings: Settings, *, workers: int, share: float):
        """share: of a GPU that each worker has, at most 1. Raises ValueError where it does not know the dtype."""
        peak = gpu.peak(settings.model.dtype)
        if peak is None:
            raise ValueError(f"{gpu.name} does not compute in {settings.model.dtype}")
        self.gpu, self.shape, self.settings = gpu, shape, settings
        self.peak = peak * workers * min(1.0, share)
        self.share = min(1.0, share)
        self.itemsize = 2 if settings.model.dtype == "bfloat16" else 4
        low, expected, high = self.PEAK_SHARE
        self.basis = (
            f"the formula at {expected:.0%} ({low:.0%} to {high:.0%}) of {gpu.name}'s peak of {peak / 1e12:g} TFLOP/s, "
            "which is an assumption. Use --probe to measure"
        )

    def training(self, work: TrainingWork) -> Range:
        return _over(work.flops / self.peak, self.PEAK_SHARE)

    def reading(self, work: ReadingWork) -> Range:
        return _over(work.flops / self.peak, self.PEAK_SHARE)

    def decoding(self, work: DecodingWork) -> Range:
        shape, settings = self.shape, self.settings
        adapters = 4 * shape.adapters(settings.model.lora) if settings.model.lora else 0
        read = (shape.body + shape.embeddings) * self.itemsize + adapters
        moved = read / (self.BANDWIDTH_SHARE * self.gpu.tb_per_s * 1e12 * self.share)
        fast, usual, slow = (launch * shape.layers for launch in self.LAUNCH_SECONDS)
        step = Range(max(moved, fast), max(moved, usual), max(moved, slow))
        # Prompts are read at once, by one worker.
        flops = work.batches * work.prompt_tokens * 2 * shape.body
        prefill = _over(flops / (self.gpu.peak(settings.model.dtype) or 1), self.PEAK_SHARE)
        return work.steps * step * work.batches + prefill

    def loading(self) -> Range:
        return self._moved(self.shape.weights * self.itemsize)

    def saving(self, size: float) -> Range:
        return self._moved(size)

    def _moved(self, size: float) -> Range:
        return _over(size, self.DISK_BYTES)

    def verdict(self) -> Range:
        judge = self.settings.evaluation.judge
        if isinstance(judge, NoJudge):
            return NOTHING
        return Range(0.0, 0.001, 0.01) if isinstance(judge, Exact) else Range(0.02, 0.1, 0.5)

    def request(self) -> Range:
        return _request(self.settings)

    def tokenizing(self, material: Material) -> Range:
        return _tokenizing(material)

    @property
    def beside(self) -> Range:
        return Range(1.0, 5.0, 20.0)

    @property
    def process(self) -> Range:
        # Imports and the device's first use.
        return Range(15.0, 60.0, 180.0)

    @property
    def around(self) -> Range:
        return Range(5.0, 10.0, 40.0)

    def report(self, *, searched: bool) -> Range:
        return Range(5.0, 10.0, 20.0) * (2 if searched else 1)


def _over(amount: float, by: tuple[float, float, float]) -> Range:
    """amount / by; by: from the slowest to the fastest."""
    slow, usual, fast = by
    return Range(amount / fast, amount / usual, amount / slow)


def _request(settings: Settings) -> Range:
    """One request to a language model, of as many as are under way at a time."""
    judge = settings.evaluation.judge
    return Range(2.0, 6.0, 20.0) * (1 / judge.concurrency) if isinstance(judge, Llm) else NOTHING


def _tokenizing(material: Material) -> Range:
    """ReadingWork and rendering the data."""
    examples = material.sft.count + material.train.count + material.held_out.count
    return Range(0.0003, 0.001, 0.003) * examples
