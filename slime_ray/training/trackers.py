"""A trial's curves in every tracker that transformers reports to, through transformers' own callbacks.

A record opens before the training and closes after the evaluation, with the trial's results. A resumed trial begins
its record anew, with the curves of its checkpoint. Nothing needs a network unless the tracker's own variables ask for
one.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import Trainer, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from slime_ray.config.experiment import Trial
from slime_ray.config.trackers import Tracker
from slime_ray.runs import files
from slime_ray.runs.redaction import redact, redact_sentence
from slime_ray.runs.stability_v1 import StabilityParts
from slime_ray.training.outcome import one_sentence

RESULTS = (
    "win_rate", "stability", *(part.name for part in fields(StabilityParts)), "kl_to_sft", "chosen_drift",
    "preference_accuracy", "mean_margin", "tokens",
)  # fmt: skip
"""Columns of a trial's row that are shown when it has ended."""
WANDB_SECONDS = 30.0
"""How long W&B's server may take to answer; it has 90 s by default, and for what is left at the end no limit."""
FLUSH_SECONDS = 5
"""Time between the syncs of TensorBoard's files."""
logger = logging.getLogger(__name__)


class Trackers:
    """The trackers of one trial, on the rank that writes. One that fails is left out, and the trial goes on.

    say: receives all that are left out so far, each with the reason.
    """

    def __init__(
        self, trackers: Iterable[Tracker], trial: Trial, run: Path, say: Callable[[dict[str, str]], object] = dict
    ):
        self.names, self.trial, self.run, self.say = tuple(trackers), trial, run, say
        self.left_out: dict[str, str] = {}
        self.records: dict[str, Record] = {}
        self.environment: dict[str, str | None] = {}

    def begin(self, trainer: Trainer) -> list[TrainerCallback]:
        """Open every record, and return what writes them during training."""
        if self.names:
            self._set_variables()
        for name in self.names:
            self.records[name] = Record(self, name, trainer)
            self.attempt(name, self.records[name].begin)
        return list(self.records.values())

    def attempt(self, name: str, work: Callable[[], object]) -> None:
        """Do something with a tracker, unless it has failed before."""
        if name not in self.records:
            return
        try:
            work()
        except Exception as error:
            self.records.pop(name)
            self.left_out[name] = redact_sentence(one_sentence(error))
            logger.warning("%s goes on without %s: %s", self.trial.trial_id, name, self.left_out[name])
            self.say(self.left_out)

    def end(self, row: Mapping[str, Any]) -> None:
        """Close every record that is open, with the results of the trial's row."""
        numbers = {name: row[name] for name in RESULTS if isinstance(row.get(name), (int, float))}
        results = {f"eval_result/{name}": float(value) for name, value in numbers.items() if math.isfinite(value)}
        for name, record in list(self.records.items()):
            self.attempt(name, partial(record.end, results, str(row.get("status"))))
        self.records = {}
        for name, value in self.environment.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.environment = {}

    def _set_variables(self) -> None:
        """Name the trial in the variables of trackers that know no other way; the user's own values stay."""
        variables = variables_of(self.trial, self.run)
        self.environment = {name: os.environ.get(name) for name in variables}
        for name, value in variables.items():
            os.environ.setdefault(name, value)


class Record(TrainerCallback):
    """One trial in one tracker: transformers' callback, until it fails."""

    def __init__(self, trackers: Trackers, name: str, trainer: Trainer):
        self.trackers, self.name, self.trainer = trackers, name, trainer
        self.arguments = TrialArguments(trainer.args, trackers.trial, trackers.run)
        self.callback: TrainerCallback

    def begin(self) -> None:
        """Open it, in place of an earlier attempt's."""
        trial, run = self.trackers.trial, self.trackers.run
        [integration] = get_reporting_integration_callbacks([self.name])
        self.callback = OPENERS[self.name](trial, run) if self.name in OPENERS else integration()
        for event in ("on_init_end", "on_train_begin"):
            self._forward(event, self.trainer.state, self.trainer.control)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Pass an update on."""
        self.trackers.attempt(self.name, partial(self._forward, "on_step_end", state, control))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """Pass metrics on."""
        self.trackers.attempt(self.name, partial(self._forward, "on_log", state, control, logs=logs))

    def end(self, results: Mapping[str, float], status: str) -> None:
        """Write the trial's results and close it: the callback has seen no end of the training until now."""
        state, control = self.trainer.state, self.trainer.control
        if results:
            self._forward("on_log", state, control, logs=results)
        close(self.name, status)
        self._forward("on_train_end", state, control)

    def _forward(self, event: str, state: Any, control: Any, **more: Any) -> None:
        getattr(self.callback, event)(self.arguments, state, control, model=self.trainer.model, **more)


class TrialArguments:
    """Trainer's arguments under the trial's name, which a tracker records as what the trial set over `base`."""

    def __init__(self, arguments: Any, trial: Trial, run: Path):
        self.arguments, self.run_name, self.project = arguments, trial.trial_id, run.name
        self.values = {**redact(trial.values), **tags(trial)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.arguments, name)

    def to_dict(self) -> dict[str, Any]:
        """The trial's values by path, nothing nested, nothing secret."""
        plain = (int, float, str, bool)
        return {path: value if isinstance(value, plain) else str(value) for path, value in self.values.items()}

    def to_json_string(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2)


def tags(trial: Trial) -> dict[str, str]:
    """What a trial is, for trackers that sort by it."""
    return {"label": trial.label, "phase": trial.phase, "seed": str(trial.seed)}


def variables_of(trial: Trial, run: Path) -> dict[str, str]:
    """Variables of trackers that say whose record is written, and where."""
    return {
        # By default a server that is gone would hold up a trial for minutes with every request.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        # Since 3.7 MLflow wants to be asked twice for plain files. A database would not bear trials on several nodes.
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_EXPERIMENT_NAME": run.name,
        "MLFLOW_TRACKING_URI": (run / "mlflow").resolve().as_uri(),
        "CLEARML_PROJECT": run.name,
        "CLEARML_TASK": trial.trial_id,
        "TRACKIO_DIR": str(run / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": run.name,
        # They report errors and use to their makers otherwise.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
    }


# ---------------------------------------------------------------------------------------------------------------------
# What transformers' callbacks leave to their users


def open_tensorboard(trial: Trial, run: Path) -> TrainerCallback:
    """Write event files into the trial's folder."""
    from tensorboardX import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    class Unhurried(SummaryWriter):
        """Flushes by its own clock, and when it is closed: the callback flushes, and so syncs, at every update."""

        def flush(self) -> None:
            pass

    folder = run / "trials" / trial.trial_id / "tensorboard"
    # The names of event files hold seconds: without a number two attempts could take the same. With purge_step
    # TensorBoard forgets what an earlier attempt wrote; deleting its files would lose one that has them open.
    suffix = f".{len(list(folder.glob('events*'))):03d}"
    writer = Unhurried(str(folder), purge_step=0, max_queue=1000, flush_secs=FLUSH_SECONDS, filename_suffix=suffix)
    return TensorBoardCallback(writer)


def open_wandb(trial: Trial, run: Path) -> TrainerCallback:
    """Open a run in the trial's folder, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""
    import wandb
    from transformers.integrations import WandbCallback

    folder = run / "trials" / trial.trial_id
    for earlier in (folder / "wandb").glob("offline-run-*"):
        shutil.rmtree(earlier, ignore_errors=True)
    # Command lines, the environment and code may hold secrets.
    settings = wandb.Settings(
        silent=True, console="off", symlink=False, save_code=False, disable_git=True, x_disable_meta=True,
        init_timeout=WANDB_SECONDS, finish_timeout=2 * WANDB_SECONDS,
    )  # fmt: skip
    wandb.init(
        name=trial.trial_id, group=trial.label, job_type=trial.phase, tags=[f"seed {trial.seed}"], dir=folder,
        reinit="finish_previous", settings=settings,
    )  # fmt: skip
    return WandbCallback()


def open_mlflow(trial: Trial, run: Path) -> TrainerCallback:
    """Open a run in the run's folder, or where MLFLOW_TRACKING_URI says, in place of an earlier attempt's."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from transformers.integrations import MLflowCallback

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    # Of several trials that begin at once, one makes the experiment.
    with FileLock(run / ".mlflow.lock"):
        mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    # A process serves one trial after another, and one may have been left out half-way.
    mlflow.end_run("FAILED")
    note = run / "trials" / trial.trial_id / "mlflow_run.txt"
    # The server may be another one by now.
    with suppress(MlflowException, FileNotFoundError):
        mlflow.delete_run(note.read_text(encoding="utf-8"))
    files.write(note, mlflow.start_run(run_name=trial.trial_id, tags=tags(trial)).info.run_id)
    return MLflowCallback()


def open_swanlab(trial: Trial, run: Path) -> TrainerCallback:
    """Open a run: the callback asks for the present one, which is an error since SwanLab 0.10 where there is none."""
    import swanlab
    from transformers.integrations import SwanLabCallback

    folder = run / "trials" / trial.trial_id / "swanlab"
    # Command lines and printed lines may hold secrets.
    probe = dict.fromkeys(("hardware", "runtime", "requirements", "git", "monitor"), False)
    settings = swanlab.Settings.model_validate({"probe": probe, "terminal": {"proxy_type": "none"}})
    swanlab.init(
        project=run.name, name=trial.trial_id, group=trial.label, tags=[*tags(trial).values()],
        mode=os.environ.get("SWANLAB_MODE", "offline"), log_dir=str(folder), settings=settings,
    )  # fmt: skip
    return SwanLabCallback()


OPENERS: dict[str, Callable[[Trial, Path], TrainerCallback]] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
    "swanlab": open_swanlab,
}
MLFLOW_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "paused": "KILLED"}


def close(name: str, status: str) -> None:
    """End a record that transformers' callback would leave open for the next trial."""
    if name == "wandb":
        import wandb

        wandb.finish(exit_code=0 if status in ("completed", "stopped") else 1)
    elif name == "mlflow":
        import mlflow

        mlflow.flush_async_logging()
        mlflow.end_run(MLFLOW_STATUS.get(status, "FAILED"))
    elif name == "swanlab":
        import swanlab

        swanlab.finish()
    elif name == "comet_ml":
        import comet_ml

        comet_ml.end()


def trainer_logs(source: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Name metrics as Trainer logs them: callbacks make train/… and eval/… of these names."""
    return dict(metrics) if source == "train" else {f"eval_{source}/{name}": value for name, value in metrics.items()}
