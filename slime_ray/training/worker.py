"""What one trial does, from its settings to its result files. Ray is not involved: progress goes to a function.

The ranks of a process group run a trial together: every one of them calls `run_trial`, rank 0 reports and writes.
"""

import functools
import gc
import logging
import os
import platform
import shutil
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from slime_ray import __version__
from slime_ray.config.experiment import Faults, Trial
from slime_ray.data.pairs import PairFile
from slime_ray.errors import InputError, RunError, is_memory_error
from slime_ray.evaluation import stability
from slime_ray.evaluation.answers import Answered
from slime_ray.evaluation.conversations import Prompt
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.held_out import HeldOut
from slime_ray.evaluation.judges import Judge, build_judge
from slime_ray.evaluation.served import answering
from slime_ray.evaluation.verdict_cache import VERDICTS, Verdicts
from slime_ray.model.loading import load_start, make_policy, with_sft
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import make_trainable
from slime_ray.model.merging import DEFAULT_ADAPTER
from slime_ray.model.sharding import is_sharded, whole_weights
from slime_ray.runs import files, results
from slime_ray.runs.inputs import change
from slime_ray.runs.redaction import redact_sentence
from slime_ray.runs.stability_v1 import stability_score
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts
from slime_ray.training.cache import stage_errors
from slime_ray.training.export import stopping
from slime_ray.training.loop import LOCAL, Runtime, TrainingLoop
from slime_ray.training.measuring import (
    Curves,
    Measurement,
    answer_prompts,
    beaten_by,
    judge_prompts,
    measure_log_probabilities,
    measure_policy,
    stability_parts,
)
from slime_ray.training.orders import Command, Paused, Report, judging
from slime_ray.training.outcome import (
    MODEL,
    DeviceFailure,
    OutOfMemory,
    RanksDiffer,
    StageError,
    blank_row,
    device_failure,
    finish,
    one_sentence,
    patiently,
    record_failure,
    refused,
    say_nothing,
    what_failed,
    write_judging,
)
from slime_ray.training.policies import gpu_row_budget, to_device
from slime_ray.training.sentinel import Measurements
from slime_ray.training.stages import MADE, Stages, prepare, train_pairs
from slime_ray.training.trackers import Trackers
from slime_ray.world import World

REHEARSAL = "rehearsal"
"""Folder of an adapter that an answer server loads before training."""
logger = logging.getLogger(__name__)


def run_trial(
    trial: Trial, *, run: Path, storage: RunStore, report: Report, runtime: Runtime = LOCAL
) -> dict[str, Any]:
    """Train and measure one trial and write its files under `run`/trials, from its last checkpoint if it has one.

    Returns its row of trials.parquet. A trial that fails is a result too: it is written with its reason, stability 0.
    Raises Paused when `report` answered with that order, and where shared stages, the storage or a judge do not do
    their part, which is no result of the trial; OutOfMemory when a fresh process should try once more; DeviceFailure
    where a GPU failed, so that this process has to end and another one goes on. Where several
    ranks run it, an error of one of them is raised, so that the others can be ended; `record_failure` then writes the
    row.
    """
    try:
        return _run_trial(trial, run, storage, report, runtime)
    except (RunError, files.StorageError) as error:
        if isinstance(error, Paused) or World.current().size > 1:
            raise
        attempts.note(run / "trials" / trial.trial_id, ended="paused")
        raise Paused(Command("pause", what_failed(error))) from error


def _run_trial(trial: Trial, run: Path, storage: RunStore, report: Report, runtime: Runtime) -> dict[str, Any]:
    clock = time.perf_counter()
    world = World.current()
    folder = run / "trials" / trial.trial_id
    reset_process(trial.seed, runtime.threads)
    if len(set(world.gather((trial.config_hash, __version__, str(torch.__version__))))) > 1:
        raise RanksDiffer(f"the ranks of {trial.trial_id} hold different settings or versions")
    history: list[attempts.Attempt] = []
    minutes = runtime.faults.storage_minutes
    if world.main:
        begin = functools.partial(attempts.begin, folder, workers=world.size)
        history = patiently(begin, report, minutes=minutes)
        files.clear_partials(folder)
    enough = world.broadcast(attempts.enough(history[:-1], runtime.faults))
    if enough:
        return record_failure(trial, run, f"given up: {enough}", workers=world.size) if world.main else {}
    curves = Curves(trial)
    row = blank_row(trial, datetime.fromtimestamp(history[0].started if history else 0, UTC)) | {"workers": world.size}
    measured = Measurement({})
    main_report = report if world.main else say_nothing
    trackers = Trackers(
        runtime.trackers if world.main else (), trial, run, lambda sentence: main_report({"untracked": sentence})
    )
    try:
        start_gpu(runtime.gpu)
        measured = _train_and_measure(trial, folder, storage, main_report, curves, runtime, trackers)
        row |= measured.row
    except Exception as error:
        followed_by = _consequence(error, folder, runtime.faults)
        if isinstance(followed_by, Exception):
            trackers.end({"status": "paused"})
            raise followed_by from None
        if world.size > 1:
            trackers.end({"status": "failed", "stability": 0.0})
            raise
        row |= {"status": "failed", "reason": followed_by, "healthy": False, "stability": 0.0}
    # What it would have been without an interruption: `started` is that of the first attempt.
    row["total_seconds"] = time.perf_counter() - clock + curves.seconds_before
    if world.main:
        finish(
            trial, run, row, report, storage_minutes=minutes, answers=measured.answers, curves=curves.rows,
            pairs=measured.pairs, verdicts=measured.verdicts,
        )  # fmt: skip
    trackers.end(row)
    # Nobody leaves, and ends the process group with it, before the result is written.
    world.broadcast(None)
    return row


def _consequence(error: Exception, folder: Path, faults: Faults) -> Exception | str:
    """What an error leads to: why the trial failed, or an error that ends this attempt at it without a result."""
    world = World.current()
    if failure := device_failure(error):
        attempts.note(folder, ended="device", fault=str(failure))
        enough = attempts.enough(attempts.read(folder), faults)
        return f"given up: {enough}" if enough and world.size == 1 else failure
    if isinstance(error, Paused):
        if world.main:
            attempts.note(folder, ended="preempted" if error.order.kind == "preempt" else "paused")
        return error
    if isinstance(error, RunError):
        return error
    if (refusal := files.storage_error(error)) is not None:
        return refused(refusal)
    with suppress(OSError):
        files.write(folder / "error.txt", redact_sentence(traceback.format_exc()))
    if is_memory_error(error):
        attempts.note(folder, ended="memory")
        if not attempts.enough(attempts.read(folder), faults):
            return OutOfMemory(one_sentence(error))
    return one_sentence(error)


def start_gpu(gpus: float) -> None:
    """Have this process's GPU compute something, which one that failed does not, and keep to a share of its memory.

    gpus: GPUs that the process was given; 0 where it takes what there is. Raises DeviceFailure where it was given one
    and torch sees none any more: it would go on without, for days.
    """
    if torch.cuda.is_available():
        if 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        torch.zeros(1, device="cuda").add_(1).item()
    elif gpus and torch.backends.cuda.is_built():
        raise DeviceFailure(f"node {platform.node()}: torch sees no GPU, though this process was given one")


def reset_process(seed: int, threads: int) -> None:
    """A reused process carries the last trial's global state; none of it may reach this one."""
    _spare_the_modules()
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Rows differ in length, so memory in fixed segments falls into pieces. Read when CUDA starts.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    set_seed(seed)


@functools.cache
def _spare_the_modules() -> None:
    """Garbage collection, which every run of Trainer asks for, need not look through the imported libraries again."""
    gc.freeze()


def _train_and_measure(
    trial: Trial,
    folder: Path,
    storage: RunStore,
    report: Report,
    curves: Curves,
    runtime: Runtime,
    trackers: Trackers,
) -> Measurement:
    settings = trial.settings
    if changed := World.current().broadcast(change(runtime.inputs, settings)):
        raise Paused(Command("pause", changed))
    judge = build_judge(
        settings,
        verdicts=Verdicts(storage.root / VERDICTS, run=folder.parents[1].name),
        live=trial.phase == "search" or settings.judged_on_the_way,
        progress=judging(report),
    )
    stages, pairs, lm = _start(trial, storage, report, runtime)
    if torch.cuda.is_available():
        gpu_row_budget(settings, sharded=runtime.sharded, longest=pairs.longest)
    lm = with_sft(make_trainable(lm, settings.model.lora), stages.checkpoint, settings.model)
    policy = to_device(make_policy(lm, settings.model), sharded=runtime.sharded)
    if settings.evaluation.engine:
        _rehearse(trial, stages, policy, folder / REHEARSAL, report, runtime)
    measure = Measurements(trial, stages, policy, curves, report, judge)

    training = TrainingLoop(trial, folder, pairs, policy, measure, runtime, trackers)
    row = training.run() | {
        "sft_checkpoint": stages.hashes.get("sft_weights", stages.hashes["sft_checkpoint"]),
        "alarm": measure.alarm,
        "status": "stopped" if training.stopped else "completed",
        "reason": training.stopped.reason if training.stopped else None,
    }
    clock = time.perf_counter()

    def evaluation_seconds() -> dict[str, float]:
        return {"evaluation_seconds": measure.seconds + time.perf_counter() - clock}

    after = measure.held_out()
    held_out = measure_log_probabilities(trial, stages.step0, after)
    if training.diverged is not None or not after.finite:
        reason = training.diverged or "the trained model gives log-probabilities that are not finite"
        row |= {"status": "diverged", "reason": reason, "healthy": False, "stability": 0.0}
        return Measurement(held_out.row | row | evaluation_seconds(), pairs=held_out.pairs)
    if training.stopped and not training.stopped.measure:
        return Measurement(held_out.row | row | {"healthy": True} | evaluation_seconds(), pairs=held_out.pairs)
    _save(policy, folder / MODEL, stages, report, runtime)
    turns = answer_prompts(trial, stages, policy, report, adapter=folder / MODEL)
    spikes = stability.training_spikes(curves.series("loss"), curves.series("grad_norm"))
    answered = _judged(trial, stages, turns, after, judge, training_spikes=spikes, run=folder.parents[1])
    if World.current().main:
        write_judging(answered.summary, folder, report, minutes=runtime.faults.storage_minutes)
    measured = measure_policy(
        trial, stages, policy, after, answered, report, adapter=folder / MODEL, training_spikes=spikes
    )
    return replace(measured, row=measured.row | row | evaluation_seconds())


def _start(trial: Trial, storage: RunStore, report: Report, runtime: Runtime) -> tuple[Stages, PairFile, Any]:
    """The shared stages, the trial's pairs, and the model that its adapters are laid on. Raises StageError."""
    settings = trial.settings
    try:
        with stage_errors("used", storage):
            stages = prepare(settings, storage=storage, report=report, sharded=runtime.sharded)
            pairs = train_pairs(stages, settings, storage=storage, report=report, sharded=runtime.sharded)
            # Whether this trial had to make a stage first must not change what it draws.
            set_seed(trial.seed)
            return stages, pairs, load_start(stages.checkpoint, settings.model, whole=False)
    except InputError as error:
        if any(_changes_stages(path) for path in trial.values):
            raise
        # They were fine when the run began.
        raise StageError(f"The shared stages could not be used: {error}") from error


def _changes_stages(path: str) -> bool:
    """Whether a trial that sets this over `base` may have stages of its own, and be to blame for them."""
    return path.split(".")[0] in ("data", "model", "sft", "evaluation") and not path.startswith("model.lora")


def _judged(
    trial: Trial,
    stages: Stages,
    turns: tuple[list[Prompt], list[Answer]],
    after: HeldOut,
    judge: Judge | None,
    *,
    training_spikes: float,
    run: Path,
) -> Answered:
    """Judge the answers; with `judge_first` only some, if another search trial beats this one."""
    first = trial.settings.evaluation.judge_first
    if trial.phase == "search" and first is not None and judge is not None:
        preliminary = judge_prompts(trial, stages, turns, judge, first=first)
        parts = stability_parts(stages, after, preliminary, training_spikes=training_spikes)
        rivals = World.current().from_main(lambda: list(results.finished_trials(run).values()))
        score = stability_score(parts, healthy=True)
        if preliminary.win_rate is not None and (
            by := beaten_by(preliminary.win_rate, preliminary.judged_prompts, score, rivals)
        ):
            logger.info(
                "%s: judged on %d prompts, for %s clearly beats it", trial.trial_id, preliminary.judged_prompts, by
            )
            return preliminary
    return judge_prompts(trial, stages, turns, judge)


def _rehearse(trial: Trial, stages: Stages, policy: Policy, folder: Path, report: Report, runtime: Runtime) -> None:
    """Have the answer server load the adapter as it is before training, when nothing is lost if it does not."""
    _save(policy, folder, stages, report, runtime)
    prompts = [prompt.token_ids for prompt in stages.prompts[trial.prompt_set]]
    engine = trial.settings.evaluation.engine
    try:
        with answering(engine, policy, stages.tokenizer, prompts, adapter=folder):
            pass
    finally:
        if World.current().main:
            shutil.rmtree(folder, ignore_errors=True)


def _save(policy: Policy, folder: Path, stages: Stages, report: Report, runtime: Runtime) -> None:
    """Save the adapter, or the whole model, with its tokenizer, so that a half-written one is never seen.

    Beside an adapter is the hash of the SFT weights that it goes on.
    """
    hash_file = stages.checkpoint / MADE
    adapted = hasattr(policy.lm, "peft_config")
    # That of the SFT stage may be next to it, and is saved there.
    options: dict[str, Any] = {"selected_adapters": [DEFAULT_ADAPTER]} if adapted else {}
    if is_sharded(policy):
        options["state_dict"] = whole_weights(policy, trained_only=adapted)

    def write() -> None:
        with files.atomic_path(folder) as partial:
            policy.lm.save_pretrained(partial, **options)
            stages.tokenizer.save_pretrained(partial)
            stopping(stages.tokenizer, stages.stop_tokens).save_pretrained(partial)
            if adapted and hash_file.is_file():
                shutil.copy(hash_file, partial)

    if World.current().main:
        patiently(write, report, minutes=runtime.faults.storage_minutes)
