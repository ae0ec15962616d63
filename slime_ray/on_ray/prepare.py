"""What runs on the cluster before the first trial, where trials run and with what they run with.

The shared stages, and the probe of a plan: in workers with a trial's resources, as many side by side as trials will be.
"""

import logging
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from rich.console import Console

from slime_ray.config.experiment import Experiment, Resources
from slime_ray.config.league import weights_at
from slime_ray.config.settings import Settings
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.cluster_state import alive_nodes
from slime_ray.on_ray.connection import errors_as_sentences
from slime_ray.on_ray.progress import print_line, steps
from slime_ray.on_ray.resources import trials_at_once, why_never
from slime_ray.on_ray.watch import STATUS_SECONDS, PlacementTimeout, PlacementTimer
from slime_ray.on_ray.workers import GroupLost, WorkerContext, run_group
from slime_ray.planning.material import Material
from slime_ray.planning.rates import MeasuredRates
from slime_ray.runs.notes import data_notes, model_notes
from slime_ray.runs.store import RunStore
from slime_ray.training.cache import clear_unfinished
from slime_ray.training.orders import ending
from slime_ray.training.outcome import DeviceFailure, device_failure

if TYPE_CHECKING:
    from slime_ray.on_ray.monitor import TrialStatus
    from slime_ray.training.stages import Stages

STAGES = "stages"
"""What the making of the stages is called where trials are called by their ids."""
LOOK_SECONDS = 0.2
CANCEL_SECONDS = 10.0
"""How long a task that makes stages may take to clear up when it is told to end."""
UNLOCK_SECONDS = 5.0
"""How long to wait for the locks of makers that were killed."""
RESTARTS = 3
"""How often the making starts again when its process is lost."""
MOST_SIDE_BY_SIDE = 8
"""Probes at a time. What more trials at a time do to each other, they do on other nodes."""
PROBE_SECONDS = 600.0
"""Seconds after which a probe is given up."""
Note = Callable[[Mapping[str, Any]], object]
RESUME_HINT = "Give the same command with --resume to go on."
logger = logging.getLogger("slime_ray.sweep")


def prepare_on_cluster(
    experiment: Experiment, context: WorkerContext, console: Console, note: Note = lambda metrics: None
) -> dict[str, Any]:
    """Make what is missing of the shared stages, report the progress, and return what the manifest holds of them.

    note: Takes how far the making is, again and again.

    Raises InputError for a model or data that cannot be used, and RunError where making them fails.
    """
    clock = time.perf_counter()
    context.monitor.begin(STAGES)
    maker: Any = None
    if context.resources.workers == 1:
        request = {"num_cpus": context.resources.cpu_per_worker, "num_gpus": context.resources.gpu_per_worker}
        # A process of its own: it keeps neither a GPU that failed nor memory that trials need.
        task: Any = ray.remote(max_calls=1)(make_stages)
        task = task.options(**request, max_retries=RESTARTS, retry_exceptions=[DeviceFailure])
        task_ref = task.remote(experiment.bases, context)
    else:
        maker = ray.remote(GroupStageMaker).options(num_cpus=0, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        maker = maker.remote()
        task_ref = maker.make.remote(experiment.bases, context)
    try:
        with errors_as_sentences("The shared stages could not be made"):
            with ending():
                _follow(task_ref, context, console, note)
            stages = ray.get(task_ref)
    except PlacementTimeout as error:
        raise RunError(f"The making of the shared stages found no place for {error}. {RESUME_HINT}") from None
    finally:
        _end(task_ref, maker)
        context.monitor.end(STAGES)
        # A process that was killed could not clear up itself.
        clear_unfinished(context.storage, seconds=UNLOCK_SECONDS)
    for line in (*data_notes(stages["data"]), *model_notes(stages["data"])):
        logger.warning(line)
        print_line(console, line)
    return {**stages, "stage_seconds": time.perf_counter() - clock}


def _end(task_ref: Any, maker: Any) -> None:
    """End the making of stages, if it has not ended, at first gently: it may delete what it has half made."""
    if maker is not None:
        ray.kill(maker)
        return
    for force in (False, True):
        # Ray 2.60 takes the whole process down where a task is cancelled that has just ended.
        if not ray.wait([task_ref], timeout=CANCEL_SECONDS if force else 0)[0]:
            ray.cancel(task_ref, force=force)


def _follow(task_ref: Any, context: WorkerContext, console: Console, note: Note) -> None:
    """Report the progress of the making until it has ended.

    Raises PlacementTimeout where it never begins, RunError where it falls silent.
    """

    def say(line: str) -> None:
        logger.info(line)
        print_line(console, line)

    placement, last_line, last_note = PlacementTimer(context.resources, context.faults, say), "", -math.inf
    notices, quarter = set[str](), ("", 0)

    def listen() -> "TrialStatus | None":
        status = context.monitor.statuses().get(STAGES)
        if status and (notice := status.metrics.get("notice")) and notice not in notices:
            notices.add(notice)
            say(notice)
        return status

    with console.status(STAGES) as display:
        while not ray.wait([task_ref], timeout=LOOK_SECONDS)[0]:
            status = listen()
            if time.monotonic() - last_note > STATUS_SECONDS:
                last_note = time.monotonic()
                note(status.metrics if status else {})
            if status is None or not status.at_work:
                placement.check()
                continue
            placement.reset()
            if status.silent > 60 * context.faults.hang_minutes:
                raise RunError(
                    f"The making of the shared stages has said nothing for {status.silent:.0f} s "
                    f"(faults.hang_minutes is {context.faults.hang_minutes:g}) and was ended. {RESUME_HINT}"
                )
            line = _line(status.metrics)
            if line and line != last_line:
                last_line = line
                display.update(line)
                step, updates = status.metrics.get("step") or 0, status.metrics.get("updates") or 1
                # Where no line can be rewritten, each quarter of what is done is said once.
                last_quarter, quarter = quarter, (str(status.metrics.get("doing")), 4 * step // updates)
                if console.is_terminal or quarter == last_quarter:
                    logger.info(line)
                else:
                    say(line)
    listen()


def _line(metrics: dict[str, Any]) -> str:
    loss = metrics.get("loss")
    return " ".join(part for part in (metrics.get("doing"), steps(metrics), loss and f"loss {loss:.3f}") if part)


def make_stages(bases: list[dict[str, Any]], context: WorkerContext) -> dict[str, Any]:
    """Make what is missing of the stages, once for each base; a Ray task.

    Returns hashes and counts of the first base, and the hashes of further SFT checkpoints by their seed.
    """
    single_worker = context.resources.workers == 1
    all_settings = [Settings.model_validate(base) for base in bases]
    first, *further_stages = [
        _make(settings, context, gpu=context.resources.gpu_per_worker if single_worker else 0.0)
        for settings in all_settings
    ]
    hashes = dict(first.hashes)
    for settings, stages in zip(all_settings[1:], further_stages, strict=True):
        if settings.sft is not None:
            hashes[weights_at(settings.sft.seed)] = stages.hashes.get("sft_weights", stages.hashes["sft_checkpoint"])
    return {"hashes": hashes, "data": first.data}


class GroupStageMaker:
    """Runs as a Ray actor: makes the stages on a group of workers, where trials are run on such."""

    def make(self, bases: list[dict[str, Any]], context: WorkerContext) -> dict[str, Any]:
        """Make what is missing; returns hashes and counts."""
        for base in bases:
            _make_on_group(base, context)
        return make_stages(bases, context)


def _make_on_group(base: dict[str, Any], context: WorkerContext) -> None:
    for retries_left in reversed(range(context.faults.retries + 1)):
        try:
            run_group(
                _stage_worker,
                {"base": base, "context": context},
                resources=context.resources,
                name=STAGES,
                storage=context.storage.address(context.run / "ray"),
            )
            return
        except (DeviceFailure, GroupLost):
            if not retries_left:
                raise


def _stage_worker(config: dict[str, Any]) -> None:
    context = config["context"]
    _make(Settings.model_validate(config["base"]), context, gpu=context.resources.gpu_per_worker)


def _make(settings: Settings, context: WorkerContext, *, gpu: float) -> "Stages":
    """Make what is missing. Raises DeviceFailure where another process has to."""
    # Here, since the driver has no use for what they import.
    from slime_ray.evaluation.judges import build_judge
    from slime_ray.evaluation.verdict_cache import VERDICTS, Verdicts
    from slime_ray.training.stages import prepare
    from slime_ray.training.worker import reset_process, start_gpu

    # A judge that cannot be used would be noticed only after the first trial's training.
    build_judge(settings, verdicts=Verdicts(context.storage.root / VERDICTS, run=context.name))

    reset_process(seed=0, threads=context.runtime.threads)

    def report(metrics: Any) -> None:
        context.monitor.report(STAGES, {"step": None, "updates": None, "loss": None, **metrics}, searched=False)

    try:
        start_gpu(gpu)
        return prepare(settings, storage=context.storage, report=report, sharded=context.runtime.sharded)
    except Exception as error:
        if failure := device_failure(error):
            report({"notice": f"A GPU failed while the stages were made ({failure}). Another process goes on."})
            raise failure from None
        raise


def probe_on_cluster(experiment: Experiment, material: Material, *, storage: RunStore, around: float) -> MeasuredRates:
    """Measure on the cluster that this process is connected to.

    storage: where Ray Train keeps something for a while. around: seconds that it took until here. Raises InputError
    where no trial could be placed or the model cannot be loaded, and RunError where it fails.
    """
    clock = time.perf_counter()
    resources, nodes = experiment.resources, alive_nodes()
    if never := why_never(resources, nodes):
        raise InputError(f"--probe: {never}")
    limit = trials_at_once(resources, nodes)
    runs = max(1, min(limit, MOST_SIDE_BY_SIDE, max(node.slots(resources) for node in nodes) // resources.workers))
    folder = storage.root / f".probe-{uuid.uuid4().hex[:8]}"
    config = {
        "settings": experiment.settings,
        "material": material,
        "resources": resources,
        "storage": storage.address(folder),
    }
    # Ray Train's controller has to be in an actor.
    groups: list[Any] = []
    try:
        if resources.workers == 1:
            request = {"num_cpus": resources.cpu_per_worker, "num_gpus": resources.gpu_per_worker}
            task: Any = ray.remote(max_calls=1)(_probe)
            refs = [task.options(**request, max_retries=0).remote(config) for _ in range(runs)]
        else:
            group_class: Any = ray.remote(_ProbeGroup)
            groups = [group_class.options(num_cpus=0).remote() for _ in range(runs)]
            refs = [group.measure.remote(config) for group in groups]
        with errors_as_sentences("The probe failed"):
            ready, pending = ray.wait(refs, num_returns=len(refs), timeout=PROBE_SECONDS)
            if pending:
                raise RunError(f"The probe was not done after {PROBE_SECONDS:.0f} s and was given up.")
            measurements: list[MeasuredRates] = ray.get(ready)
    finally:
        for group in groups:
            ray.kill(group)
        if groups:
            storage.remove(folder)
    return replace(
        measurements[0],
        rates={
            name: sum(measurement.rates[name] for measurement in measurements) / runs for name in measurements[0].rates
        },
        around=around,
        peak_bytes=max(measurement.peak_bytes for measurement in measurements),
        side_by_side=runs,
        took=time.perf_counter() - clock + around,
    )


def _probe(config: dict[str, Any]) -> MeasuredRates:
    """Measure in this process; a Ray task."""
    clock = time.perf_counter()
    from slime_ray.planning.probe import probe

    resources: Resources = config["resources"]
    with tempfile.TemporaryDirectory(prefix="slime-ray-probe-") as scratch:
        return probe(
            config["settings"],
            config["material"],
            scratch=Path(scratch),
            threads=max(1, int(resources.cpu_per_worker)),
            sharded=resources.strategy == "fsdp2" and resources.workers > 1,
            started=clock,
        )


class _RatesHolder:
    """Runs as a Ray actor: keeps what rank 0 of a group has found."""

    def __init__(self) -> None:
        self.rates: MeasuredRates | None = None

    def put(self, rates: MeasuredRates) -> None:
        self.rates = rates

    def get(self) -> MeasuredRates | None:
        return self.rates


class _ProbeGroup:
    """Runs as a Ray actor: measures on a group of workers."""

    def measure(self, config: dict[str, Any]) -> MeasuredRates:
        """Measure on a group of workers and return rank 0's rates."""
        actor: Any = ray.remote(_RatesHolder)
        box = actor.options(num_cpus=0).remote()
        resources, storage = config["resources"], config["storage"]
        run_group(_probe_worker, config | {"box": box}, resources=resources, name="probe", storage=storage)
        rates: MeasuredRates = ray.get(box.get.remote())
        return rates


def _probe_worker(config: dict[str, Any]) -> None:
    from slime_ray.world import World

    rates = _probe(config)
    if World.current().main:
        ray.get(config["box"].put.remote(rates))


def show(measured: MeasuredRates, console: Console) -> None:
    """Print what was measured, in a line."""
    rates = measured.rates
    console.print(
        f"Probe: {1e6 * rates['token']:.1f} us a training token and {1e3 * rates['update']:.1f} ms an update beside, "
        f"{1e6 * rates['read_token']:.1f} us a token read, {1e3 * rates['decode_step']:.2f} ms a decoding step and "
        f"{1e6 * rates['decode_row']:.0f} us for each of its answers; peak {measured.peak_bytes / 2**30:.2f} GiB.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
