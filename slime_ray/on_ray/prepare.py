"""The shared stages, made on the cluster before the first trial: where the trials run, with what they run with."""

import logging
import time
from typing import TYPE_CHECKING, Any

import ray
from rich.console import Console

from slime_ray.config.experiment import Experiment
from slime_ray.config.settings import Settings
from slime_ray.errors import RunError
from slime_ray.on_ray.connection import errors_as_sentences
from slime_ray.on_ray.progress import steps
from slime_ray.on_ray.watch import PlacementTimeout, PlacementTimer
from slime_ray.on_ray.workers import WorkerContext
from slime_ray.runs.notes import data_notes, model_notes
from slime_ray.training.cache import clear_unfinished
from slime_ray.training.orders import ending

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
AGAIN = "Give the same command with --resume to go on."
logger = logging.getLogger("slime_ray.sweep")


def prepare_on_cluster(experiment: Experiment, place: WorkerContext, console: Console) -> dict[str, Any]:
    """Make what is missing of the shared stages, and say how it goes. Returns what the manifest holds of them.

    Raises InputError for a model or data that cannot be used, and RunError where making them fails.
    """
    clock = time.perf_counter()
    place.monitor.begin(STAGES)
    maker: Any = None
    if place.resources.workers == 1:
        held = {"num_cpus": place.resources.cpu_per_worker, "num_gpus": place.resources.gpu_per_worker}
        task: Any = ray.remote(make_stages)
        making = task.options(**held, max_retries=RESTARTS).remote(experiment.base, place)
    else:
        maker = ray.remote(GroupStageMaker).options(num_cpus=0, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        maker = maker.remote()
        making = maker.make.remote(experiment.base, place)
    try:
        with errors_as_sentences("The shared stages could not be made"):
            with ending():
                _follow(making, place, console)
            made = ray.get(making)
    except PlacementTimeout as error:
        raise RunError(f"The making of the shared stages found no place for {error}. {AGAIN}") from None
    finally:
        _end(making, maker)
        place.monitor.end(STAGES)
        # A process that was killed could not clear up itself.
        clear_unfinished(place.storage, seconds=UNLOCK_SECONDS)
    for line in (*data_notes(made["data"]), *model_notes(made["data"])):
        logger.warning(line)
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return {**made, "stage_seconds": time.perf_counter() - clock}


def _end(making: Any, maker: Any) -> None:
    """End the making of stages, if it has not ended: first so that it can delete what it has half made."""
    if maker is not None:
        ray.kill(maker)
        return
    for force in (False, True):
        # Ray 2.60 takes the whole process down where a task is cancelled that has just ended.
        if not ray.wait([making], timeout=CANCEL_SECONDS if force else 0)[0]:
            ray.cancel(making, force=force)


def _follow(making: Any, place: WorkerContext, console: Console) -> None:
    """Say how it goes until it has ended.

    Raises PlacementTimeout where it never begins, RunError where it falls silent.
    """

    def say(line: str) -> None:
        logger.info(line)
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    wait, said = PlacementTimer(place.resources, place.faults, say), ""
    notices: set[str] = set()

    def listen() -> "TrialStatus | None":
        voice = place.monitor.heard().get(STAGES)
        if voice and (notice := voice.told.get("notice")) and notice not in notices:
            notices.add(notice)
            say(notice)
        return voice

    with console.status(STAGES) as status:
        while not ray.wait([making], timeout=LOOK_SECONDS)[0]:
            voice = listen()
            if voice is None or not voice.at_work:
                wait.go_on()
                continue
            wait.over()
            if voice.silent > 60 * place.faults.hang_minutes:
                raise RunError(
                    f"The making of the shared stages has said nothing for {voice.silent:.0f} s "
                    f"(faults.hang_minutes is {place.faults.hang_minutes:g}) and was ended. {AGAIN}"
                )
            line = _line(voice.told)
            if line and line != said:
                said = line
                status.update(line)
                if console.is_terminal or voice.told.get("step") is not None:
                    logger.info(line)
                else:
                    say(line)
    listen()


def _line(told: dict[str, Any]) -> str:
    loss = told.get("loss")
    return " ".join(part for part in (told.get("doing"), steps(told), loss and f"loss {loss:.3f}") if part)


def make_stages(base: dict[str, Any], place: WorkerContext) -> dict[str, Any]:
    """Ray task: make what is missing of the stages; returns hashes and counts."""
    stages = _make(Settings.model_validate(base), place)
    return {"hashes": stages.hashes, "data": stages.data}


class GroupStageMaker:
    """Runs as a Ray actor: makes the stages on a group of workers, where trials are run on such."""

    def make(self, base: dict[str, Any], place: WorkerContext) -> dict[str, Any]:
        """Make what is missing; returns hashes and counts."""
        _make_on_group(base, place)
        return make_stages(base, place)


def _make_on_group(base: dict[str, Any], place: WorkerContext) -> None:
    from slime_ray.on_ray.group import GroupLost, run_group

    for left in reversed(range(place.faults.retries + 1)):
        try:
            run_group(
                _stage_worker,
                {"base": base, "place": place},
                resources=place.resources,
                name=STAGES,
                storage=place.storage.address(place.run / "ray"),
            )
            return
        except GroupLost:
            if not left:
                raise


def _stage_worker(config: dict[str, Any]) -> None:
    _make(Settings.model_validate(config["base"]), config["place"])


def _make(settings: Settings, place: WorkerContext) -> "Stages":
    # Here, since the driver has no use for what they import.
    from slime_ray.evaluation.judges import build_judge
    from slime_ray.evaluation.verdict_cache import VERDICTS, Verdicts
    from slime_ray.training.stages import prepare
    from slime_ray.training.worker import reset_process

    # A judge that cannot be used would be noticed only after the first trial's training.
    build_judge(settings, verdicts=Verdicts(place.storage.root / VERDICTS, run=place.name))

    reset_process(seed=0, threads=place.hosting.threads)

    def report(told: Any) -> None:
        place.monitor.report(STAGES, {"step": None, "updates": None, "loss": None, **told}, searched=False)

    return prepare(settings, storage=place.storage, report=report, sharded=place.hosting.sharded)
