"""One trial of an experiment in this process, without Ray: to debug it, to profile it, or under another scheduler.

It computes what the same trial computes in a sweep, and leaves a run of the same files.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Experiment, Trial, arm_trials
from slime_ray.config.trackers import lacks
from slime_ray.errors import INTERRUPTED, InputError, Interrupted, RunError
from slime_ray.evaluation.judges import build_judge
from slime_ray.evaluation.verdict_cache import VERDICTS, Verdicts
from slime_ray.runs import results
from slime_ray.runs.folder import Start, conclude, lock_run, log_file, refuse_other_stages
from slime_ray.runs.notes import data_notes, model_notes
from slime_ray.runs.store import RunStore
from slime_ray.training.loop import Runtime
from slime_ray.training.orders import Command, Paused, ending, interrupts
from slime_ray.training.outcome import OutOfMemory, gpu_failures_as_sentences
from slime_ray.training.policies import model_facts
from slime_ray.training.stages import prepare
from slime_ray.training.worker import reset_process, run_trial

logger = logging.getLogger(__name__)
Say = Callable[[str], object]


def find_trial(experiment: Experiment, trial_id: str | None) -> Trial:
    """Find the arm's trial of this id; without one, the only one. Raises InputError with those that there are."""
    trials = {trial.trial_id: trial for trial in arm_trials(experiment)}
    if trial_id is None and len(trials) == 1:
        return next(iter(trials.values()))
    if trial_id not in trials:
        problem = f"--trial {trial_id}: there is no such arm" if trial_id else "Name the trial with --trial"
        some = ", ".join(trials) or "none, since the experiment has no arms"
        raise InputError(f"{problem}. Trials: {some}.")
    return trials[trial_id]


def train_one(
    experiment: Experiment, trial: Trial, *, source: Path | str, storage: str | Path, start: Start, say: Say
) -> Path:
    """Run one trial and return its run's folder on this machine, storage/<name of the experiment>.

    source: the YAML it came from, or its text. say: told in lines how it gets on. Ctrl-C and SIGTERM have it write a
    checkpoint and leave. Raises InputError before anything is trained, and RunError where it left early or failed.
    """
    if lack := trial.settings.evaluation.lacks():
        raise InputError(lack)
    run_store = RunStore.of(str(storage), "trials")
    if lack := lacks(experiment.trackers, bucket=run_store.url is not None):
        raise InputError(lack)
    run_store.check()
    run = run_store.root / experiment.name
    with (
        run_store.claim_folder(run),
        lock_run(run, experiment, source=source, seed=0, start=start) as manifest,
        run_store.raise_store_errors(),
        log_file(run / "log.txt"),
        gpu_failures_as_sentences(),
    ):
        progress = ConsoleProgress(say)
        runtime = Runtime(
            threads=max(1, int(experiment.resources.cpu_per_worker)),
            faults=experiment.faults,
            trackers=tuple(experiment.trackers),
        )
        # One that cannot be used would be noticed only when the stages are made.
        build_judge(trial.settings, verdicts=Verdicts(run_store.root / VERDICTS, run=run.name))
        reset_process(seed=0, threads=runtime.threads)
        with ending():
            stages = prepare(experiment.settings, storage=run_store, report=progress.report)
        refuse_other_stages(run, manifest, stages.hashes)
        manifest |= {"hashes": stages.hashes, "data": stages.data}
        model_differs = trial.settings.model != experiment.settings.model
        facts = model_facts(trial.settings, stages.checkpoint) if model_differs else stages.data
        for line in (*data_notes(stages.data), *model_notes(facts)):
            logger.warning(line)
            say(line)
        results.write_manifest(run, manifest)
        if trial.trial_id not in results.finished_trials(run):
            try:
                with progress.listening():
                    run_trial(trial, run=run, storage=run_store, report=progress.report, runtime=runtime)
            except Paused as pause:
                kind = Interrupted if pause.order.reason == INTERRUPTED else RunError
                raise kind(
                    f"{trial.trial_id} left without a result: {pause.order.reason.rstrip('.')}. Give the same "
                    "command with --resume to go on from its last checkpoint."
                ) from None
            except OutOfMemory as error:
                raise RunError(
                    f"{trial.trial_id} ran out of memory ({error}). Give the same command with --resume to try "
                    "once more, where there is more memory."
                ) from None
            finally:
                run_store.push(run)
        rows = conclude(run, manifest)
        run_store.push(run)
        row = rows[trial.trial_id]
        if row["status"] == "failed":
            raise RunError(f"{trial.trial_id} failed: {row['reason']}. Its traceback is in {run / 'trials'}.")
    return run


class ConsoleProgress:
    """Passes on what a trial reports, as lines, and answers it once the process was told to end."""

    def __init__(self, say: Say):
        self.say = say
        self.last = ""
        self.order: Command | None = None

    def report(self, metrics: Mapping[str, Any]) -> Command | None:
        """Say what was told, unless it was said last; returns the order to leave, once there is one."""
        if metrics.get("notice"):
            self.say(str(metrics["notice"]))
        for tracker, reason in metrics.get("untracked", {}).items():
            self.say(f"It goes on without {tracker}: {reason}")
        step, loss = metrics.get("step"), metrics.get("loss")
        parts = [metrics.get("doing"), f"{step}/{metrics.get('updates')}" if step is not None else None]
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        line = " ".join(str(part) for part in parts if part)
        if line and line != self.last:
            self.last = line
            self.say(line)
        return self.order

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first interrupt is an order to leave with a checkpoint; the second one ends the process."""

        def handle() -> None:
            if self.order is not None:
                raise KeyboardInterrupt
            self.order = Command("pause", INTERRUPTED)

        with interrupts(handle):
            yield
