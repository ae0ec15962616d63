"""Policies that are there already, measured like a trial's: checkpoints, trials of other runs, files of answers.

What is left is a run like any other, one arm a policy, so that tables, reports and exports are those of a sweep.
"""

import dataclasses
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slime_ray.config.experiment import Arm, Experiment, Trial, arm_trials
from slime_ray.config.settings import Settings
from slime_ray.config.strict import LONGEST_LABEL
from slime_ray.data.places import may_be_hub_id, whereabouts
from slime_ray.errors import InputError, RunError, is_memory_error
from slime_ray.evaluation.answers import judge_answers
from slime_ray.evaluation.conversations import Prompt
from slime_ray.evaluation.field_files import ModelAnswer, Question, answers_to, read_answers
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.held_out import measure_held_out
from slime_ray.evaluation.judges import Judge, build_judge
from slime_ray.evaluation.questions import load_questions
from slime_ray.evaluation.verdict_cache import VERDICTS, Verdicts
from slime_ray.model.files import FILE_REMEDY, FileFault, check_adapter
from slime_ray.model.loading import load_external, load_trained, make_policy
from slime_ray.model.logprobs import Policy
from slime_ray.model.parts import check_model, downloaded, parts_of
from slime_ray.runs import results
from slime_ray.runs.folder import Start, conclude, lock_run, log_file, refuse_other_stages
from slime_ray.runs.notes import data_notes
from slime_ray.runs.store import RunStore
from slime_ray.training.adapters import check_stage
from slime_ray.training.checks import check_reach
from slime_ray.training.measuring import (
    Measurement,
    answer_prompts,
    judge_prompts,
    measure_answers,
    measure_policy,
)
from slime_ray.training.orders import Paused, Report, ending
from slime_ray.training.outcome import (
    MODEL,
    blank_row,
    finish,
    gpu_failures_as_sentences,
    one_sentence,
    write_judging,
)
from slime_ray.training.policies import row_budget, to_device
from slime_ray.training.prompts import draw_answers
from slime_ray.training.single import ConsoleProgress, Say
from slime_ray.training.stages import BASELINE_SEED, Stages, prepare
from slime_ray.training.worker import reset_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationRequest:
    """A policy that a user names: a folder with a checkpoint, or a file of answers. label: its row of the table."""

    label: str
    path: Path

    @property
    def is_file(self) -> bool:
        """Whether its answers are given, rather than it itself."""
        return self.path.is_file()


def find_policy(path: Path) -> EvaluationRequest:
    """Find the policy at `path`, or of that name on the Hub. Raises InputError where there is none.

    A trial's folder stands for its checkpoint, and a trial is called by its id; other folders and files by their names.
    """
    if not path.exists() and may_be_hub_id(name := path.as_posix()):
        try:
            return EvaluationRequest(_label(name), downloaded(name))
        except FileFault as error:
            raise InputError(
                f"{name} is no policy: there is no such file or folder here{whereabouts(path)}, and {error}. Correct "
                "the name, log in if the model is gated, or download it and give its folder (HF_HUB_OFFLINE=1 allows "
                "only what was downloaded before)."
            ) from None
    path = path.absolute()
    if path.is_file():
        return EvaluationRequest(_label(path.stem), path)
    folder = path.parent if path.name == MODEL and (path.parent / "trial.json").is_file() else path
    checkpoint = path / MODEL if (path / "trial.json").is_file() else path
    if not any((checkpoint / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(
            f"{path} is no policy: neither a file of answers nor a folder with config.json or adapter_config.json. "
            "Give a checkpoint, a trial's folder in a run, a Hub id, or a .jsonl file."
        )
    return EvaluationRequest(_label(folder.name), checkpoint)


def _label(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".-_") or "policy"


def evaluate(
    experiment: Experiment,
    policies: Sequence[Path],
    *,
    baseline: Path | None,
    source: Path | str,
    storage: str,
    start: Start,
    offline: bool,
    say: Say,
) -> Path:
    """Measure policies against a baseline and return the run's folder on this machine.

    experiment: its `base` says how prompts, model and evaluation are; its arms, search and design are passed over.
    baseline: None is the SFT checkpoint of `base`, which is made if it is not there. offline: nothing that costs is
    asked for, kept verdicts answer alone. Raises InputError before anything is measured, and RunError where a judge
    stopped.
    """
    requests = [find_policy(path) for path in policies]
    baseline_request = find_policy(baseline) if baseline else None
    if len({request.label for request in requests}) < len(requests):
        raise InputError("Two policies have the same name. Rename one of the folders or files: it names a row.")
    for request in requests:
        if len(request.label.encode()) > LONGEST_LABEL:
            raise InputError(
                f"{request.label[:40]}... names a row, and {LONGEST_LABEL} bytes are the limit. Rename it."
            )
    paths: dict[str, Path | None] = {f"the policy {request.label}": request.path for request in requests}
    paths["the baseline"] = baseline_request.path if baseline_request else None
    experiment = _at_checkpoint(experiment, policies)
    settings = experiment.settings
    arms = [Arm(label=request.label, set={}) for request in requests]
    measured = experiment.model_copy(
        update={"arms": arms, "seeds": [0], "search": None, "design": None, "league": None}
    )
    if not offline and (lack := settings.evaluation.lacks()):
        raise InputError(lack)
    run_store = RunStore.of(storage, "trials")
    run_store.check()
    run = run_store.root / experiment.name
    with (
        run_store.claim_folder(run),
        lock_run(run, measured, source=source, seed=0, start=start, extra_inputs=paths) as manifest,
        log_file(run / "log.txt"),
        run_store.raise_store_errors(),
        gpu_failures_as_sentences(),
    ):
        reset_process(seed=0, threads=max(1, int(experiment.resources.cpu_per_worker)))
        judge = build_judge(settings, verdicts=Verdicts(run_store.root / VERDICTS, run=run.name), offline=offline)
        progress = ConsoleProgress(say)
        files_only = (
            baseline_request is not None and baseline_request.is_file and all(request.is_file for request in requests)
        )
        bench = _AnswerFiles(settings, judge) if files_only else _Models(settings, run_store, judge, progress.report)
        # A mistake in the last one is told before the answers of the first are judged.
        for request in [*requests, *([baseline_request] if baseline_request else [])]:
            bench.check(request)
        bench.compare_with(baseline_request)
        refuse_other_stages(run, manifest, bench.hashes)
        for line in data_notes(bench.data):
            logger.warning(line)
            say(line)
        manifest |= {
            "hashes": bench.hashes,
            "data": bench.data,
            "baseline": baseline_request.label if baseline_request else None,
        }
        results.write_manifest(run, manifest)
        done = results.finished_trials(run)
        try:
            for request, trial in zip(requests, arm_trials(measured), strict=True):
                if trial.trial_id not in done:
                    say(f"measuring {request.label}")
                    _record(bench, request, trial, run, progress)
        except Paused as pause:
            raise RunError(pause.order.reason) from None
        except Exception as error:
            if not is_memory_error(error):
                raise
            raise RunError(
                f"{request.label} ran out of memory ({one_sentence(error)}). Set a smaller evaluation.decoding.batch "
                "or data.row_tokens and give the same command with --resume."
            ) from None
        finally:
            run_store.push(run)
        conclude(run, manifest)
        run_store.push(run)
    return run


def _at_checkpoint(experiment: Experiment, policies: Sequence[Path]) -> Experiment:
    """Return the experiment at the SFT checkpoint that the policies' trials started from.

    Raises InputError where they started from several, and so were not measured against the same answers.
    """
    if len(experiment.bases) < 2:
        return experiment
    rows = [row for path in policies if path.is_dir() and (row := results.finished_trial(path)) is not None]
    starts = {(json.loads(row["settings"]).get("sft") or {}).get("seed") for row in rows}
    bases = [base for base in experiment.bases if base["sft"]["seed"] in starts]
    if len(starts) > 1:
        seeds = ", ".join(sorted(map(str, starts)))
        raise InputError(
            f"These trials start from several SFT checkpoints (sft.seed {seeds}). Give those of one at a time."
        )
    return experiment.model_copy(update={"base": bases[0]}) if bases else experiment


def _record(
    bench: "_AnswerFiles", request: EvaluationRequest, trial: Trial, run: Path, progress: ConsoleProgress
) -> None:
    clock = time.perf_counter()
    row = blank_row(trial, datetime.now(UTC)) | {"status": "completed", "objective": "none", "overrides": "{}"}
    measurement = bench.measure(request, trial)
    if measurement.judging and not measurement.judging.complete:
        progress.say(f"{request.label}: {measurement.judging.sentence}")
    seconds = time.perf_counter() - clock
    row |= measurement.row | {"evaluation_seconds": seconds, "total_seconds": seconds}
    folder = run / "trials" / trial.trial_id
    folder.mkdir(parents=True, exist_ok=True)
    write_judging(measurement.judging, folder, progress.report, minutes=1.0)
    finish(
        trial, run, row, progress.report, storage_minutes=1.0, answers=measurement.answers, pairs=measurement.pairs,
        verdicts=measurement.verdicts,
    )  # fmt: skip


class _AnswerFiles:
    """Answers on both sides are given: no model is loaded, and a token is a word."""

    hashes: dict[str, str]
    data: dict[str, Any]

    def __init__(self, settings: Settings, judge: Judge | None):
        """Raises InputError where nothing says what was asked."""
        self.settings, self.judge = settings, judge
        self.hashes, self.data = {}, {}
        self.words: dict[str, int] = {}
        self.baseline: list[Answer] = []
        if judge is None:
            raise InputError(
                "evaluation.judge is none, and of files of answers nothing but verdicts can be told. Name a judge: "
                "--set 'evaluation.judge={name: exact, scorer: package.module:function}', or reward_model or llm."
            )
        self.questions: list[Question] = load_questions(settings)
        if not self.questions:
            raise InputError(
                "Files of answers need the questions that they answer: --set evaluation.questions=FILE, of Arena-Hard, "
                "of MT-Bench, or one with `prompt` and `id`."
            )

    def check(self, request: EvaluationRequest) -> None:
        """Raise InputError for what cannot be read or loaded."""
        self.read(request)

    def compare_with(self, baseline: EvaluationRequest | None) -> None:
        """Take the baseline's answers."""
        if baseline is not None:
            self.baseline = self.read(baseline)[1]

    def measure(self, request: EvaluationRequest, trial: Trial) -> Measurement:
        """Measure what answers alone tell."""
        prompts, answers = self.read(request)
        answered = judge_answers(prompts, answers, self.baseline, judge=self.judge, format_check=None, markers=())
        return measure_answers(trial, answered)

    def read(self, request: EvaluationRequest) -> tuple[list[Prompt], list[Answer]]:
        """Read a file's answers, an item a turn, with the conversations that they end."""
        model_answers: list[ModelAnswer] = answers_to(self.questions, read_answers(request.path))
        turns = [
            (question, turn, answer) for question, answer in zip(self.questions, model_answers, strict=True)
            for turn in range(len(question.turns))
        ]  # fmt: skip
        prompts = [
            Prompt(question.id, question.messages(answer.turns[:turn]), (), question.category, turn=turn + 1)
            for question, turn, answer in turns
        ]
        return prompts, [self.answer(answer.turns[turn]) for _, turn, answer in turns]

    def answer(self, text: str) -> Answer:
        """A given text as an answer that ended by itself."""
        return Answer(tuple(self.encode(text)), text, stopped=True, leaked=False)

    def encode(self, text: str) -> list[int]:
        """Numbers for its words."""
        return [self.words.setdefault(word, len(self.words)) for word in text.split()]


class _Models(_AnswerFiles):
    """Some side is a checkpoint: prompts, tokenizer, held-out pairs and the SFT checkpoint are those of a sweep."""

    def __init__(self, settings: Settings, storage: RunStore, judge: Judge | None, report: Report):
        self.settings, self.judge, self.report = settings, judge, report
        with ending():
            self.stages: Stages = prepare(settings, storage=storage, report=report)
        self.hashes, self.data = self.stages.hashes, self.stages.data
        self.questions = [
            Question(
                prompt.id, prompt.category, (message["content"], *prompt.later), (*before, message), "the prompts:0"
            )
            for prompt in self.stages.prompts["report"]
            for *before, message in [prompt.messages]
        ]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.stages.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def compare_with(self, baseline: EvaluationRequest | None) -> None:
        if baseline is None:
            return
        if baseline.is_file:
            answers = self.read(baseline)[1]
        else:
            answers = draw_answers(
                self.load(baseline), self.stages.tokenizer, self.stages.prompts["report"], self.settings.evaluation,
                self.report, stop_tokens=self.stages.stop_tokens, seed=BASELINE_SEED, doing="answering",
                adapter=baseline.path,
            )[1]  # fmt: skip
        self.stages = dataclasses.replace(self.stages, baseline={**self.stages.baseline, "report": answers})

    def measure(self, request: EvaluationRequest, trial: Trial) -> Measurement:
        if request.is_file:
            return measure_answers(trial, judge_prompts(trial, self.stages, self.read(request), self.judge))
        policy = self.load(request)
        after = measure_held_out(policy, self.stages.held_out, row_tokens=row_budget(self.settings, policy))
        turns = answer_prompts(trial, self.stages, policy, self.report, adapter=request.path)
        answered = judge_prompts(trial, self.stages, turns, self.judge)
        return measure_policy(
            trial, self.stages, policy, after, answered, self.report, adapter=request.path, training_spikes=None
        )

    def check(self, request: EvaluationRequest) -> None:
        if request.is_file:
            self.read(request)
            return
        if self.settings.evaluation.engine and not _is_on(request.path, self.stages.checkpoint):
            raise InputError(
                f"{request.path} is no adapter of the SFT checkpoint, and the server of evaluation.engine loads "
                "nothing else. Draw its answers here: --set evaluation.engine=null."
            )
        try:
            if _is_on(request.path, self.stages.checkpoint):
                check_adapter(request.path)
                check_stage(request.path, self.stages.checkpoint)
            else:
                check_model(request.path)
                base = Path(parts_of(str(request.path), None, local_only=True).source)
                if base.is_dir():
                    check_stage(request.path, base)
        except FileFault as error:
            raise InputError(f"{request.path} cannot be loaded: {error}. {FILE_REMEDY}") from None

    def load(self, request: EvaluationRequest) -> Policy:
        """Load a whole model, or an adapter on its SFT checkpoint or its own base.

        Raises InputError where it cannot be loaded.
        """
        model, stage = self.settings.model, self.stages.checkpoint
        if _is_on(request.path, stage):
            lm = load_trained(stage, model, request.path, note=self.note)
        else:
            lm = load_external(request.path, model, note=self.note)
        policy = to_device(make_policy(lm, model), sharded=False).eval()
        max_new_tokens = self.settings.evaluation.decoding.max_new_tokens
        check_reach(policy.limits, self.stages.tokens, max_new_tokens=max_new_tokens)
        return policy

    def note(self, sentence: str) -> None:
        """Say what was loaded, now and in the manifest."""
        notes = self.data.setdefault("model_notes", [])
        if sentence not in notes:
            notes.append(sentence)
            self.report({"doing": f"Model: {sentence}"})
            logger.warning(sentence)


def _is_on(policy: Path, checkpoint: Path) -> bool:
    """Whether a policy is an adapter that was trained on this SFT checkpoint, be it in another storage.

    The checkpoint's name is a hash of what it is made of.
    """
    try:
        content = json.loads((policy / "adapter_config.json").read_text(encoding="utf-8"))
        return Path(content["base_model_name_or_path"]).name == checkpoint.name
    except (OSError, ValueError, KeyError, TypeError):
        # None, or a broken one, which loading tells.
        return False
