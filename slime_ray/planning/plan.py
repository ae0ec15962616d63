"""A plan: what an experiment will take, to be read by people and programs, and what of it does not fit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slime_ray.config.experiment import Experiment, Phase
from slime_ray.errors import InputError
from slime_ray.model.footprint import Memory
from slime_ray.planning.prices import Gpu, GpuPrices
from slime_ray.planning.rates import ZERO, MeasuredRates, Range
from slime_ray.planning.tables import table

GIB = 2**30
NO_TIME = "not known for this machine without a measurement: give --probe"


@dataclass(frozen=True)
class Cluster:
    """What trials run on.

    trials: how many run side by side. never: why none could ever start. gpus, gpu: all of them, and what they are
    called. memory: bytes that one worker on CPUs may take. disk_free: bytes at the storage; None where that is not
    known. where: in words. notes: assumptions about it, as sentences.
    """

    trials: int
    where: str
    never: str | None = None
    gpus: float = 0
    gpu: str | None = None
    memory: float | None = None
    disk_free: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanRow:
    """Trials of a kind. updates: of each, if none is stopped. tokens: of all. exact: whether to the token. seconds: of
    each, on average; None where the speed is not known."""

    name: str
    phase: Phase
    trials: int
    updates: float
    tokens: Range
    exact: bool
    flops: float
    seconds: Range | None


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes at most. parts: by what they are of. free: None where that is not known."""

    parts: Mapping[str, float]
    free: int | None

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Judging:
    """What judging takes. judge: as results name it. requests: to a language model. cost: None without prices. budget:
    what a budget that is too small does, as a sentence."""

    judge: str
    requests: Range = ZERO
    input_tokens: Range = ZERO
    output_tokens: Range = ZERO
    cost: Range | None = None
    budget: str | None = None


@dataclass(frozen=True)
class Plan:
    """What the experiment takes. Times are seconds; None where no speed is known.

    stages: of each shared stage. time: of the whole sweep. trial_seconds: of all trials together. memory_limit: bytes
    that a worker may take; None where that is not known. row_that_fits: tokens of a row that would fit, where the
    budget's does not. cost: of the hours of GPUs that trials and stages hold; cluster_cost: of all the cluster's GPUs
    for the whole time. stopping: share of the search's updates that early stopping leaves. assumptions: as sentences.
    refusals: what does not fit, with the way out.
    """

    name: str
    rows: tuple[PlanRow, ...]
    sft_tokens: float
    cluster: Cluster
    gpu: Gpu | None
    prices: GpuPrices
    memory: Memory
    memory_limit: float | None
    row_that_fits: int | None
    disk: Disk
    judging: Judging
    measured: MeasuredRates | None
    stopping: Range | None
    basis: str | None
    row_tokens: int
    row_reason: str
    stages: Mapping[str, Range]
    time: Range | None = None
    trial_seconds: Range | None = None
    gpu_hours: Range | None = None
    cost: Range | None = None
    cluster_cost: Range | None = None
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """All that may run."""
        return sum(row.trials for row in self.rows)

    @property
    def tokens(self) -> Range:
        """Of preference training, in all trials."""
        return sum((row.tokens for row in self.rows), ZERO)

    @property
    def peak(self) -> float:
        """Bytes of a worker's memory: as a probe saw it, else as counted."""
        # A probe's answers are short.
        return max(self.measured.peak_bytes, self.memory.answering) if self.measured else self.memory.peak

    def refuse(self) -> None:
        """Raise InputError with everything that does not fit, if anything does not."""
        if self.refusals:
            raise InputError("\n".join(self.refusals))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        values = asdict(self)
        values["prices"] = {"date": self.prices.date, "place": self.prices.place}
        return values | {"trials": self.trials, "tokens": asdict(self.tokens), "peak_bytes": self.peak}

    def text(self) -> str:
        """Return the plan as text."""
        notes = [f"- {note}" for note in self.assumptions] + [f"- Warning: {warning}" for warning in self.warnings]
        return "\n\n".join(filter(None, (self._table(), self._figures(), "\n".join(notes))))

    def _table(self) -> str:
        titles = ("what", "trials", "updates each", "training tokens", "FLOP", "time each")
        stage = [("SFT stage", "", "", f"{self.sft_tokens:,.0f}", "", _time(self.stages.get("sft")))]
        rows = [
            (row.name, f"{row.trials}", f"{row.updates:,.0f}", _tokens(row), f"{row.flops:.2e}", _time(row.seconds))
            for row in self.rows
        ]
        flops = sum(row.flops for row in self.rows)
        totals = [("all trials", f"{self.trials}", "", f"{self.tokens.expected:,.0f}", f"{flops:.2e}", "")]
        return f"{self.name}: nothing was started.\n\n" + table(
            titles, [*(stage if self.sft_tokens else []), *rows, *totals]
        )

    def _figures(self) -> str:
        cluster = self.cluster
        at_a_time = "one trial at a time" if cluster.trials == 1 else f"{cluster.trials} trials side by side"
        stopping = self.stopping
        lines = [
            ("time", f"{_time(self.time)} on {cluster.where}, {at_a_time}" if self.time else NO_TIME),
            ("speed", self.basis or ""),
            ("GPU-hours", _figure(self.gpu_hours, ".3g")),
            ("cost", self._cost()),
            ("memory", self.memory_text),
            ("rows", f"{self.row_tokens:,} tokens, {self.row_reason}"),
            ("disk", self._disk()),
            ("judge", self._judge()),
            ("stopping", "" if stopping is None else
             f"early stopping leaves {stopping.expected:.0%} ({stopping.low:.0%} to {stopping.high:.0%}) of the "
             "search's updates"),
        ]  # fmt: skip
        return "\n".join(f"{name:<10}{value}" for name, value in lines if value)

    def _cost(self) -> str:
        if self.cost is None or self.gpu is None:
            return ""
        whole = "" if self.cluster_cost is None else (
            f"; {_money(self.cluster_cost)} USD for {self.cluster.gpus:g} GPUs over all that time"
        )  # fmt: skip
        return (
            f"{_money(self.cost)} USD at {self.gpu.usd_per_hour:g} an hour of {self.gpu.name} "
            f"({self.gpu.place}, prices of {self.prices.date}, examples to edit){whole}"
        )

    @property
    def memory_text(self) -> str:
        """What a worker takes of the memory it has, in words."""
        limit = f" of {self.memory_limit / GIB:.1f} GiB" if self.memory_limit else ""
        if self.measured:
            return f"{self.peak / GIB:.1f} GiB{limit} a worker, as measured"
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.memory.parts.items() if size > 0.05 * GIB)
        return f"{self.memory.peak / GIB:.1f} GiB{limit} a worker: {parts}"

    def _disk(self) -> str:
        free = "" if self.disk.free is None else f" of {size_text(self.disk.free)} free"
        parts = sorted(self.disk.parts.items(), key=lambda part: -part[1])
        largest = ", ".join(f"{name} {size_text(size)}" for name, size in parts if size > 0.02 * self.disk.total)
        return f"at most {size_text(self.disk.total)}{free}: {largest}"

    def _judge(self) -> str:
        judging = self.judging
        if not judging.requests.high:
            return f"{judging.judge}, which asks nobody"
        cost = f", cost {_money(judging.cost)}" if judging.cost else ", without prices in evaluation.judge"
        return (
            f"{judging.judge}: {_figure(judging.requests, ',.0f')} requests, about "
            f"{judging.input_tokens.expected:,.0f} tokens in and {judging.output_tokens.expected:,.0f} out{cost}"
        )


def refusals(plan: Plan, experiment: Experiment) -> tuple[str, ...]:
    """Say what does not fit, each as a sentence with the way out."""
    sentences = []
    if plan.cluster.never:
        sentences.append(f"{plan.cluster.never} To plan for another cluster give --gpus N --gpu NAME, or RAY_ADDRESS.")
    if plan.memory_limit is not None and plan.peak > plan.memory_limit:
        sentences.append(_too_little_memory(plan, plan.memory_limit))
    if plan.disk.free is not None and plan.disk.total > plan.disk.free:
        sentences.append(
            f"The run may take {size_text(plan.disk.total)} and {size_text(plan.disk.free)} are free at the storage. "
            "Free some, give another --storage, or keep fewer models with budget.checkpoints."
        )
    if plan.gpu and not plan.measured and not plan.gpu.peak(dtype := experiment.settings.model.dtype):
        sentences.append(
            f"{plan.gpu.name} does not compute in {dtype}. Set model.dtype: float32, or plan for another GPU."
        )
    return tuple(sentences)


def _too_little_memory(plan: Plan, limit: float) -> str:
    room = f"{limit / GIB:.1f} GiB that {f'a worker has of an {plan.gpu.name}' if plan.gpu else 'a process has here'}"
    ways = "lower evaluation.decoding.batch" if plan.memory.answering > limit else "lower data.row_tokens"
    if plan.row_that_fits is not None and plan.row_that_fits < plan.row_tokens:
        ways += f" ({plan.row_that_fits} would do, if no pair is longer)"
    return (
        f"A worker needs about {plan.peak / GIB:.1f} GiB, more than the {room}. Ways out: {ways}; set "
        "training.gradient_checkpointing; train adapters (model.lora); divide the model among more workers with "
        "resources.strategy: fsdp2; or run fewer trials on a GPU or a machine."
    )


def warnings(plan: Plan, experiment: Experiment) -> tuple[str, ...]:
    """Say what fits and will yet not go as the experiment says."""
    sentences = [plan.judging.budget] if plan.judging.budget else []
    budget, hours = experiment.budget, plan.gpu_hours
    bill = hours.expected * budget.price_per_gpu_hour if hours and budget.price_per_gpu_hour else 0.0
    for name, limit, expected in (
        ("hours", budget.hours, plan.time.expected / 3600 if plan.time else 0.0),
        ("gpu_hours", budget.gpu_hours, hours.expected if hours else 0.0),
        ("judge_calls", budget.judge_calls, plan.judging.requests.expected),
        ("cost", budget.cost, bill + (plan.judging.cost.expected if plan.judging.cost else 0.0)),
    ):
        if limit is not None and expected > limit:
            sentences.append(
                f"budget.{name} {limit:g} ends it before all trials have run, which takes about "
                f"{expected:.3g}. With a larger one it goes on with --resume."
            )
    side_by_side = experiment.resources.concurrent_trials
    if side_by_side != "auto" and side_by_side > plan.cluster.trials:
        fit = plan.cluster.trials
        sentences.append(f"resources.concurrent_trials is {side_by_side}, but only {fit} fit at a time.")
    if plan.gpu and plan.gpu.bf16_tflops and (cost := experiment.settings.model.float32_cost(plan.gpu.name)):
        sentences.append(cost)
    return tuple(sentences)


def _tokens(row: PlanRow) -> str:
    tokens = row.tokens
    if tokens.low == tokens.high:
        return f"{tokens.expected:,.0f}" if row.exact else f"about {tokens.expected:,.0f}"
    return _figure(tokens, ",.0f")


def _time(value: Range | None) -> str:
    """Write a time with its range, in the unit that suits the expected value."""
    if value is None:
        return ""
    units = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
    unit, size = next((each for each in units if value.expected >= 2 * each[1]), units[-1])
    expected, *ends = _figure(value * (1 / size), ".3g").partition(" ")
    return f"{expected} {unit}{''.join(ends)}"


def _figure(value: Range | None, form: str) -> str:
    if value is None or not value.high:
        return ""
    low, expected, high = (f"{number:{form}}" for number in (value.low, value.expected, value.high))
    return f"{expected} ({low} to {high})" if low != high else expected


def _money(value: Range) -> str:
    return _figure(value, ",.0f" if value.expected >= 100 else ",.2f")


def size_text(size: float) -> str:
    """Write bytes in the unit that suits them."""
    for unit, unit_size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if size >= unit_size:
            return f"{size / unit_size:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"
