"""A plan: what an experiment will take, to be read by people and programs, and what of it does not fit."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from slime_ray.config.experiment import Experiment, Phase
from slime_ray.errors import InputError
from slime_ray.model.footprint import STAGE_ADAPTER, Memory
from slime_ray.planning.prices import Gpu, GpuPrices
from slime_ray.planning.rates import Ends, MeasuredRates
from slime_ray.planning.tables import table

GIB = 2**30
SIZES = (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 1024))
TIMES = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
NO_TIME = "not known for this machine without a measurement: give --probe"


@dataclass(frozen=True)
class Range:
    """A figure: what is expected, and what it may as well be."""

    low: float
    expected: float
    high: float

    @classmethod
    def of(cls, ends: Ends) -> "Range":
        """Build a range from its three numbers."""
        return cls(*ends.tolist())

    def text(self, form: str) -> str:
        """Write the expected number, and the others where they differ."""
        low, expected, high = (f"{number:{form}}" for number in astuple(self))
        return f"{expected} ({low} to {high})" if low != high else expected


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
    """Trials of a kind. updates: of each, if none is stopped. tokens, flops: of all. seconds: of each, on average; None
    where the speed is not known."""

    name: str
    phase: Phase
    trials: int
    updates: float
    tokens: Range
    flops: float
    seconds: Range | None


@dataclass(frozen=True)
class Judging:
    """What judging takes. judge: as results name it. requests: to a language model. cost: None without prices."""

    judge: str
    requests: Range
    input_tokens: Range
    output_tokens: Range
    cost: Range | None


@dataclass(frozen=True)
class Plan:
    """What the experiment takes. Times are seconds; None where no speed is known.

    memory_limit: bytes that a worker may take; None where that is not known. disk: bytes written at most, by what they
    are of. stopping: share of the search's updates that early stopping leaves. stages: of each shared stage. time: of
    the whole sweep. trial_seconds: of all trials together. cost: of the hours of GPUs that trials and stages hold;
    cluster_cost: of all the cluster's GPUs for the whole time. refusals: what does not fit, with the way out.
    """

    name: str
    rows: tuple[PlanRow, ...]
    sft_tokens: float
    cluster: Cluster
    gpu: Gpu | None
    prices: GpuPrices
    memory: Memory
    memory_limit: float | None
    disk: Mapping[str, float]
    judging: Judging
    measured: MeasuredRates | None
    stopping: Range | None
    basis: str | None
    row_tokens: int
    row_reason: str
    assumptions: tuple[str, ...]
    stages: Mapping[str, Range] = field(default_factory=dict)
    time: Range | None = None
    trial_seconds: Range | None = None
    gpu_hours: Range | None = None
    cost: Range | None = None
    cluster_cost: Range | None = None
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """All that may run."""
        return sum(row.trials for row in self.rows)

    @property
    def tokens(self) -> Range:
        """Of preference training, in all trials."""
        return Range(*map(sum, zip(*(astuple(row.tokens) for row in self.rows), strict=True)))

    @property
    def peak(self) -> float:
        """Bytes of a worker's memory: as a probe saw it, else as counted."""
        if self.measured is None:
            return self.memory.peak
        # A probe's answers are short, and it has no adapter of the SFT stage.
        stage = self.memory.parts.get(STAGE_ADAPTER, 0.0)
        return max(self.measured.peak_bytes + stage, self.memory.answering)

    @property
    def disk_bytes(self) -> float:
        """All that is written, at most."""
        return sum(self.disk.values())

    @property
    def memory_text(self) -> str:
        """What a worker takes of the memory it has, in words."""
        limit = f" of {size_text(self.memory_limit)}" if self.memory_limit else ""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.memory.parts.items() if size > 0.05 * GIB)
        return f"{size_text(self.peak)}{limit} a worker" + (", as measured" if self.measured else f": {parts}")

    def refuse(self) -> None:
        """Raise InputError with everything that does not fit, if anything does not."""
        if self.refusals:
            raise InputError("\n".join(self.refusals))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        values = asdict(self) | {"gpu": self.gpu and self.gpu.model_dump()}
        values["prices"] = {"date": self.prices.date, "place": self.prices.place}
        return values | {"trials": self.trials, "tokens": asdict(self.tokens), "peak_bytes": self.peak}

    def text(self) -> str:
        """Return the plan as text."""
        titles = ("what", "trials", "updates each", "about tokens", "about FLOP", "time each")
        rows = [("SFT stage", "", "", f"{self.sft_tokens:,.0f}", "", _time(self.stages.get("sft")))]
        rows += [
            (row.name, f"{row.trials}", f"{row.updates:,.0f}", row.tokens.text(",.0f"), f"{row.flops:.2e}",
             _time(row.seconds))
            for row in self.rows
        ]  # fmt: skip
        flops = sum(row.flops for row in self.rows)
        rows.append(("all trials", f"{self.trials}", "", f"{self.tokens.expected:,.0f}", f"{flops:.2e}", ""))
        figures = "\n".join(f"{name:<10}{value}" for name, value in self._figures().items() if value)
        notes = [f"- {note}" for note in self.assumptions] + [f"- Warning: {warning}" for warning in self.warnings]
        rows_table = table(titles, rows if self.sft_tokens else rows[1:])
        return "\n\n".join((f"{self.name}: nothing was started.", rows_table, figures, "\n".join(notes)))

    def _figures(self) -> dict[str, str]:
        cluster, judging, time = self.cluster, self.judging, NO_TIME
        if self.time:
            at_a_time = "one trial" if cluster.trials == 1 else f"{cluster.trials} trials"
            time = f"{_time(self.time)} on {cluster.where}, {at_a_time} at a time"
        figures = {"time": time, "speed": self.basis or ""}
        figures["GPU-hours"] = self.gpu_hours.text(".3g") if self.gpu_hours else ""
        if self.gpu and self.cost and self.cluster_cost:
            figures["cost"] = (
                f"{self.cost.text(',.2f')} USD at {self.gpu.usd_per_hour:g} an hour of {self.gpu.name} "
                f"({self.prices.place}, prices of {self.prices.date}, examples to edit); "
                f"{self.cluster_cost.text(',.2f')} USD for {cluster.gpus:g} GPUs over all that time"
            )
        figures["memory"] = self.memory_text
        figures["rows"] = f"{self.row_tokens:,} tokens, {self.row_reason}"
        free = "" if cluster.disk_free is None else f" of {size_text(cluster.disk_free)} free"
        largest = sorted(self.disk.items(), key=lambda part: -part[1])
        written = ", ".join(f"{name} {size_text(size)}" for name, size in largest if size > 0.02 * self.disk_bytes)
        figures["disk"] = f"at most {size_text(self.disk_bytes)}{free}: {written}"
        figures["judge"] = f"{judging.judge}, which asks nobody"
        if judging.requests.high:
            cost = f"cost {judging.cost.text(',.2f')}" if judging.cost else "without prices in evaluation.judge"
            tokens = f"{judging.input_tokens.expected:,.0f} tokens in and {judging.output_tokens.expected:,.0f} out"
            figures["judge"] = f"{judging.judge}: {judging.requests.text(',.0f')} requests, about {tokens}, {cost}"
        if self.stopping:
            figures["stopping"] = f"early stopping leaves {self.stopping.text('.0%')} of the search's updates"
        return figures


def refusals(plan: Plan, experiment: Experiment) -> tuple[str, ...]:
    """Say what does not fit, each as a sentence with the way out."""
    sentences, limit, free = [], plan.memory_limit, plan.cluster.disk_free
    if plan.cluster.never:
        sentences.append(f"{plan.cluster.never} To plan for another cluster give --gpus N --gpu NAME, or RAY_ADDRESS.")
    if limit is not None and plan.peak > limit:
        room = f"{size_text(limit)} that {f'a worker has of an {plan.gpu.name}' if plan.gpu else 'a process has here'}"
        rows = "lower data.row_tokens, or on a GPU leave it out, and the largest row that fits is taken"
        sentences.append(
            f"A worker needs about {size_text(plan.peak)}, more than the {room}. Ways out: "
            f"{'lower evaluation.decoding.batch' if plan.memory.answering > limit else rows}; set "
            "training.gradient_checkpointing; train adapters (model.lora); divide the model among more workers with "
            "resources.strategy: fsdp2; or run fewer trials on a GPU or a machine."
        )
    if free is not None and plan.disk_bytes > free:
        sentences.append(
            f"The run may take {size_text(plan.disk_bytes)} and {size_text(free)} are free at the storage. Free "
            "some, give another --storage, or keep fewer models with budget.checkpoints."
        )
    if plan.gpu and not plan.measured and not plan.gpu.peak(dtype := experiment.settings.model.dtype):
        sentences.append(
            f"{plan.gpu.name} does not compute in {dtype}. Set model.dtype: float32, or plan for another GPU."
        )
    return tuple(sentences)


def warnings(plan: Plan, experiment: Experiment) -> tuple[str, ...]:
    """Say what fits and will yet not go as the experiment says."""
    sentences, budget, hours, judging = [], experiment.budget, plan.gpu_hours, plan.judging
    bill = hours.expected * budget.price_per_gpu_hour if hours and budget.price_per_gpu_hour else 0.0
    judge_cost = judging.cost.expected if judging.cost else 0.0
    limits = [
        ("hours", budget.hours, plan.time.expected / 3600 if plan.time else 0.0),
        ("gpu_hours", budget.gpu_hours, hours.expected if hours else 0.0),
        ("judge_calls", budget.judge_calls, judging.requests.expected),
        ("cost", budget.cost, bill + judge_cost),
    ]
    for name, limit, expected in limits:
        if limit is not None and expected > limit:
            sentences.append(
                f"budget.{name} {limit:g} ends it before all trials have run, which takes about {expected:.3g}. With a "
                "larger one it goes on with --resume."
            )
    endpoints = experiment.settings.evaluation.judge.endpoints
    tokens = judging.input_tokens.expected + judging.output_tokens.expected
    for judge in endpoints:
        # Judges of a panel take about alike.
        part = judge.requests_an_answer / sum(each.requests_an_answer for each in endpoints)
        for name, expected in {"requests": judging.requests.expected, "tokens": tokens, "cost": judge_cost}.items():
            limit = getattr(judge.budget, name)
            if limit is not None and part * expected > limit:
                then = (
                    "trials stop with a checkpoint" if judge.on_failure == "stop" else "trials go on without verdicts"
                )
                sentences.append(
                    f"evaluation.judge.budget.{name} {limit:g} is spent after about {limit / part / expected:.0%} of "
                    f"the verdicts; then {then}. Raise it, or lower evaluation.prompts or evaluation.judge_first."
                )
    side_by_side, fit = experiment.resources.concurrent_trials, plan.cluster.trials
    if side_by_side != "auto" and side_by_side > fit:
        sentences.append(f"resources.concurrent_trials is {side_by_side}, but only {fit} fit at a time.")
    if plan.gpu and plan.gpu.bf16_tflops and (cost := experiment.settings.model.float32_cost(plan.gpu.name)):
        sentences.append(cost)
    return tuple(sentences)


def _time(seconds: Range | None) -> str:
    """Write a time in the unit that suits the expected value."""
    if seconds is None:
        return ""
    unit, length = next((each for each in TIMES if seconds.expected >= 2 * each[1]), TIMES[-1])
    expected, *ends = Range(*(number / length for number in astuple(seconds))).text(".3g").partition(" ")
    return f"{expected} {unit}{''.join(ends)}"


def size_text(size: float) -> str:
    """Write bytes in the unit that suits them."""
    unit, bytes_each = next((each for each in SIZES if size >= each[1]), SIZES[-1])
    return f"{size / bytes_each:.1f} {unit}"
