"""A trial's curves in TensorBoard, Weights & Biases and MLflow, through transformers' own callbacks.

Each tracker opens its record before the training and closes it after the evaluation, with what the trial came to;
transformers' callback writes in between. A trial that goes on begins its record anew, with the curves that its
checkpoint holds. Nothing needs a network unless the tracker's own variables ask for one.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from transformers import TrainerCallback

from slime_ray.config.experiment import Trial
from slime_ray.config.trackers import Tracker
from slime_ray.runs import files
from slime_ray.runs.redaction import redact, redact_sentence
from slime_ray.training.outcome import one_sentence

RESULTS = (
    "win_rate",
    "stability",
    "unlearning",
    "rejected_collapse",
    "entropy_shift",
    "broken_outputs",
    "length_shift",
    "training_spikes",
    "kl_to_sft",
    "chosen_drift",
    "preference_accuracy",
    "mean_margin",
    "tokens",
)
"""Of a trial's row, what is shown when it has ended."""
logger = logging.getLogger(__name__)


class Record(Protocol):
    """One trial in one tracker."""

    def begin(self) -> TrainerCallback:
        """Open it, in place of an earlier attempt's, and return what writes the curves."""

    def end(self, results: Mapping[str, float], status: str) -> None:
        """Write what the trial came to, and close it."""


class Trackers:
    """The trackers of one trial, on the rank that writes. One that fails is left out, and the trial goes on.

    say: told which ones are left out by now, and why.
    """

    def __init__(
        self, trackers: Iterable[Tracker], trial: Trial, run: Path, say: Callable[[dict[str, str]], object] = dict
    ):
        self.trial, self.say = trial, say
        self.left_out: dict[str, str] = {}
        self._waiting: dict[str, Record] = {name: RECORDS[name](trial, run) for name in trackers}
        self._open: dict[str, Record] = {}

    def begin(self) -> list[TrainerCallback]:
        """Open every record, and return what writes them during training."""
        callbacks: list[TrainerCallback] = []
        self._open, self._waiting = self._waiting, {}

        def add(name: str, record: Record) -> None:
            callbacks.append(_Careful(self, name, record.begin()))

        for name, record in list(self._open.items()):
            self.attempt(name, partial(add, name, record))
        return callbacks

    def attempt(self, name: str, work: Callable[[], object]) -> None:
        """Do something with a tracker, unless it has failed before."""
        if name not in self._open:
            return
        try:
            work()
        except Exception as error:
            self._open.pop(name)
            self.left_out[name] = redact_sentence(one_sentence(error))
            logger.warning("%s goes on without %s: %s", self.trial.trial_id, name, self.left_out[name])
            self.say(self.left_out)

    def end(self, row: Mapping[str, Any]) -> None:
        """Close every record that is open, with the results of the trial's row."""
        numbers = {name: row[name] for name in RESULTS if isinstance(row.get(name), (int, float))}
        finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        status = str(row.get("status"))
        for name, record in list(self._open.items()):
            self.attempt(name, partial(record.end, finite, status))
        self._open = {}


class _Careful(TrainerCallback):
    """A tracker's callback, until it fails."""

    def __init__(self, trackers: Trackers, name: str, callback: TrainerCallback):
        self.trackers, self.name, self.callback = trackers, name, callback

    def on_train_begin(self, *about: Any, **more: Any) -> None:
        self.trackers.attempt(self.name, lambda: self.callback.on_train_begin(*about, **more))

    def on_log(self, *about: Any, **more: Any) -> None:
        self.trackers.attempt(self.name, lambda: self.callback.on_log(*about, **more))

    def on_train_end(self, *about: Any, **more: Any) -> None:
        self.trackers.attempt(self.name, lambda: self.callback.on_train_end(*about, **more))


class TensorBoard:
    """Event files in the trial's folder."""

    # tensorboardX syncs the disk whenever it flushes, and transformers' callback flushes after every update.
    FLUSH_SECONDS = 5

    def __init__(self, trial: Trial, run: Path):
        self.trial, self.folder = trial, run / "trials" / trial.trial_id / "tensorboard"

    def begin(self) -> TrainerCallback:
        from tensorboardX import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        class Unhurried(SummaryWriter):
            """Flushes by its own clock, and when it is closed."""

            def flush(self) -> None:
                pass

        # The names of event files hold seconds: without a number two attempts could take the same.
        self.suffix = f".{len(list(self.folder.glob('events*'))):03d}"
        # With purge_step TensorBoard forgets all that an earlier attempt wrote. Deleting its files would lose one that
        # has them open.
        self.writer = Unhurried(
            str(self.folder),
            purge_step=0,
            max_queue=1000,
            flush_secs=self.FLUSH_SECONDS,
            filename_suffix=self.suffix,
        )
        return TensorBoardCallback(self.writer)

    def end(self, results: Mapping[str, float], status: str) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        self.writer.close()
        if status == "paused":
            # TensorBoard keeps the first table of hyperparameters that it reads.
            return
        metrics = {f"result/{name}": value for name, value in results.items()}
        with SummaryWriter(str(self.folder), filename_suffix=f"{self.suffix}.result") as writer:
            for part in hparams({**_flat(self.trial.values), "status": status}, metrics):
                writer.file_writer.add_summary(part)
            for name, value in metrics.items():
                writer.add_scalar(name, value)


class WeightsAndBiases:
    """A run of the project that is named like ours, in the trial's folder; `wandb sync` sends it later."""

    BEGIN_SECONDS, END_SECONDS = 30.0, 60.0
    """How long a server may take to answer, and to take what is left; it has 90 s and for ever by default."""

    def __init__(self, trial: Trial, run: Path):
        self.trial, self.project, self.folder = trial, run.name, run / "trials" / trial.trial_id

    def begin(self) -> TrainerCallback:
        # It reports its errors to its makers otherwise.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb
        from transformers.integrations import WandbCallback

        for earlier in (self.folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(earlier, ignore_errors=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.record = wandb.init(
            project=os.environ.get("WANDB_PROJECT", self.project),
            name=self.trial.trial_id,
            group=self.trial.label,
            job_type=self.trial.phase,
            config=_flat(self.trial.values),
            dir=self.folder,
            mode=mode,
            reinit="finish_previous",
            # Command lines, the environment and code may hold secrets.
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                save_code=False,
                disable_git=True,
                x_disable_meta=True,
                init_timeout=self.BEGIN_SECONDS,
                finish_timeout=self.END_SECONDS,
            ),
        )
        return WandbCallback()

    def end(self, results: Mapping[str, float], status: str) -> None:
        self.record.summary.update({**results, "status": status})
        self.record.finish(exit_code=0 if status in ("completed", "stopped") else 1)


class Mlflow:
    """A run of the experiment that is named like ours, in the run's folder or where MLFLOW_TRACKING_URI says."""

    STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "paused": "KILLED"}
    VARIABLES = {
        # Since 3.7 MLflow wants to be asked twice for plain files. A database would not bear trials on several nodes.
        "MLFLOW_ALLOW_FILE_STORE": "true",
        # By default a server that is gone would hold up a trial for minutes with every request.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        # It reports its use to its makers otherwise.
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }

    def __init__(self, trial: Trial, run: Path):
        self.trial, self.run = trial, run
        self.note = run / "trials" / trial.trial_id / "mlflow_run.txt"

    def begin(self) -> TrainerCallback:
        for name, value in self.VARIABLES.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.exceptions import MlflowException
        from transformers.integrations import MLflowCallback

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or (self.run / "mlflow").resolve().as_uri())
        # Of several trials that begin at once, one makes the experiment.
        with FileLock(self.run / ".mlflow.lock"):
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.run.name)
        # A process serves one trial after another, and one may have been left out half-way.
        mlflow.end_run("FAILED")
        about = {"label": self.trial.label, "phase": self.trial.phase, "seed": str(self.trial.seed)}
        if self.note.exists():
            # The server may be another one by now.
            with suppress(MlflowException):
                mlflow.delete_run(self.note.read_text(encoding="utf-8"))
        record = mlflow.start_run(run_name=self.trial.trial_id, tags=about)
        files.write(self.note, record.info.run_id)
        mlflow.log_params(_flat(self.trial.values))
        return MLflowCallback()

    def end(self, results: Mapping[str, float], status: str) -> None:
        import mlflow

        mlflow.flush_async_logging()
        mlflow.log_metrics(dict(results))
        mlflow.end_run(self.STATUS.get(status, "FAILED"))


RECORDS: Mapping[str, Callable[[Trial, Path], Record]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
}


def named(source: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Rows of curves.parquet as Trainer logs them: transformers' callbacks make train/… and eval/… of these names."""
    return dict(metrics) if source == "train" else {f"eval_{source}/{name}": value for name, value in metrics.items()}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial set over `base`, as trackers take it: nothing nested, nothing secret."""
    safe: dict[str, Any] = redact(values)
    return {path: value if isinstance(value, (int, float, str, bool)) else str(value) for path, value in safe.items()}
