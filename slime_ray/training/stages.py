"""What all trials share, made once: tokens, the SFT checkpoint, step-0 log-probabilities, the baseline's answers.

The ranks of a process group make them together; rank 0 alone writes. sharded: the ranks hold parts of the model (FSDP2)
instead of all of it each; what is made is the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import disable_progress_bars
from transformers import AutoTokenizer

from slime_ray.config.model import Model
from slime_ray.config.settings import Data, Settings, fingerprint
from slime_ray.data import tasks
from slime_ray.data.chat_template import stop_token_ids
from slime_ray.data.corpus import load_corpus
from slime_ray.data.pairs import PAIRS_FORMAT, PairFile, write_pairs
from slime_ray.data.splits import content_hash
from slime_ray.data.template_text import template_hash
from slime_ray.data.tokenizing import tokenize_pairs, tokenized_hash
from slime_ray.errors import RunError
from slime_ray.evaluation.answers import FormatCheck
from slime_ray.evaluation.conversations import Prompt
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.held_out import HeldOut, measure_held_out, sum_logps
from slime_ray.model import tiny
from slime_ray.model.loading import load_start, load_tokenizer, make_policy, weight_sources
from slime_ray.model.logprobs import Policy
from slime_ray.model.quantized import refuse_quantized
from slime_ray.runs.results import RETENTION
from slime_ray.runs.store import RunStore
from slime_ray.training.cache import cached, content_of, stage_errors
from slime_ray.training.checks import check_finite, check_reach, no_answers
from slime_ray.training.orders import Report
from slime_ray.training.policies import model_facts, row_budget, to_device
from slime_ray.training.prompts import PROMPT_SETS, draw_answers, prompts_to_answer, read_prompts, write_prompts
from slime_ray.training.sft import make_sft
from slime_ray.world import World

BASELINE_SEED = 0
MADE = "made.json"
"""Beside an SFT checkpoint, the hash of its weights: taken once, since they may be large."""
NOTES = "notes.json"
"""Next to it, what a user should know of the pretrained model that was loaded."""
FORMAT = 6
"""Raised when what a stage writes changes, so that older caches are not read."""
REFERENCE_PAIRS = 4096
"""Pairs that the reference is measured on at a time."""


@dataclass(frozen=True)
class Stages:
    """Everything the trials of one experiment share. hashes and data go into the manifest."""

    checkpoint: Path
    tokenizer: Any
    stop_tokens: tuple[int, ...]
    held_out: PairFile
    prompts: dict[str, list[Prompt]]
    step0: HeldOut
    baseline: dict[str, list[Answer]]
    tokens: Path
    hashes: dict[str, str]
    data: dict[str, Any]
    format_check: FormatCheck | None


def prepare(settings: Settings, *, storage: RunStore, report: Report, sharded: bool = False) -> Stages:
    """Make what is missing in the storage, and return everything. `report` is told what is being made.

    Raises InputError for a model or data that cannot be used, and StageError where the stages themselves cannot.
    """
    refuse_quantized(settings.model)
    with stage_errors("used", storage):
        return _Maker(settings, storage, report, sharded).prepare()


def train_pairs(
    stages: Stages, settings: Settings, *, storage: RunStore, report: Report, sharded: bool = False
) -> PairFile:
    """Load the preference pairs to train on, with reference log-probabilities if needed.

    The reference is computed once for an SFT checkpoint and shared by all trials that need one.
    """
    path = stages.tokens / "train.arrow"
    if not settings.objective.build().needs_reference:
        return PairFile(path)
    maker = _Maker(settings, storage, report, sharded)
    maker.tokens, maker.checkpoint = stages.tokens, stages.checkpoint
    of = [stages.hashes.get(name) for name in ("sft_checkpoint", "sft_weights", "train_ids")]
    folder = maker.stage_folder("reference", [FORMAT, *of, *maker.adapter_key], maker.make_reference)
    return PairFile(path, folder / "reference.npz")


class _Maker:
    """Makes the stages of one experiment, each from those before it."""

    tokens: Path
    checkpoint: Path

    def __init__(self, settings: Settings, storage: RunStore, report: Report, sharded: bool):
        self.settings, self.storage, self.report, self.sharded = settings, storage, report, sharded
        # An adapter that is kept is not merged, which rounds otherwise.
        self.adapter_key = ["kept"] if settings.model.kept else []

    def stage_folder(self, kind: str, key: Sequence[Any], make: Callable[[Path], None]) -> Path:
        """Make a stage, unless it is there, and return its folder."""
        return cached(self.storage, kind, fingerprint(key), make, self.report)

    def prepare(self) -> Stages:
        """Make what is missing, and load everything."""
        settings = self.settings
        self.tokens = self.stage_folder("tokens", _tokens_key(settings), lambda folder: _make_tokens(settings, folder))
        self.info = json.loads((self.tokens / "info.json").read_text(encoding="utf-8"))
        content = self.info["content"]
        model = settings.sft_model.model_dump(exclude={"chat_template"})
        schedule = settings.sft and settings.sft.model_dump(exclude={"lora"})
        sft = [FORMAT, content.get("sft"), model, _weights(settings.model), schedule]
        self.checkpoint = self.stage_folder("sft", sft, self.make_sft)
        # Made again elsewhere, the same recipe gives other weights, and what follows from them is another stage.
        start = [FORMAT, fingerprint(sft), _read(self.checkpoint / MADE)]
        step0 = self.stage_folder("step0", [*start, content["held_out"], *self.adapter_key], self.make_step0)
        engine = settings.evaluation.engine
        drawn = [settings.evaluation.decoding, *([engine.identity] if engine else []), *self.adapter_key]

        def answers_to(kind: str, names: Sequence[str]) -> Path:
            key = [*start, content["stop_tokens"], [content[f"prompts-{name}"] for name in names], *drawn]
            return self.stage_folder(kind, key, lambda folder: self.make_baseline(names, folder))

        answers = answers_to("baseline", PROMPT_SETS)
        # Apart, so that other retention prompts leave the baseline's other answers as they are.
        retention = answers_to(RETENTION, [RETENTION]) if settings.evaluation.retention else None
        stages = _load(self.tokens, self.checkpoint, step0, answers, retention, settings.data.task)
        return replace(stages, data=stages.data | model_facts(settings, self.checkpoint))

    def make_sft(self, folder: Path) -> None:
        notes: list[str] = []
        settings = self.settings
        pairs = PairFile(self.tokens / ("sft.arrow" if settings.sft else "train.arrow"))
        make_sft(settings, pairs, folder, self.report, sharded=self.sharded, check=self.check_reach, note=notes.append)
        if World.current().main:
            # Of a 4-bit base it is the adapter alone, which its own folder holds.
            written = folder.rglob if settings.model.quantization else folder.glob
            weights = fingerprint([content_of(str(file)) for file in sorted(written("*.safetensors"))])
            (folder / MADE).write_text(json.dumps({"sft_weights": weights}), encoding="utf-8")
            (folder / NOTES).write_text(json.dumps({"model_notes": notes}), encoding="utf-8")

    def make_step0(self, folder: Path) -> None:
        policy, main = self.policy(), World.current().main
        self.check_reach(policy)
        rows = "packed"
        if policy.why_not_packed is not None:
            rows = f"one sequence each: {policy.why_not_packed}"
            if main:
                self.report({"doing": f"giving every sequence a row of its own ({policy.why_not_packed})"})
        pairs = PairFile(self.tokens / "held_out.arrow")
        measured = measure_held_out(policy, pairs, row_tokens=row_budget(self.settings, policy))
        check_finite(measured.chosen_means, measured.rejected_means, "held-out", self.settings)
        if main:
            (folder / "info.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
            measured.save(folder / "held_out.npz")

    def make_baseline(self, names: Sequence[str], folder: Path) -> None:
        settings, policy = self.settings, self.policy()
        self.check_reach(policy)
        tokenizer = AutoTokenizer.from_pretrained(self.tokens / "tokenizer", local_files_only=True)
        for name in names:
            prompts = read_prompts(self.tokens / f"prompts-{name}.parquet")
            try:
                _, answers = draw_answers(
                    policy, tokenizer, prompts, settings.evaluation, self.report,
                    stop_tokens=self.info["stop_tokens"], seed=BASELINE_SEED, doing="making baseline",
                )  # fmt: skip
            except FloatingPointError:
                raise no_answers(settings) from None
            except RunError as error:
                if settings.evaluation.engine is None:
                    raise
                raise RunError(f"{error} The checkpoint that it has to serve is {self.checkpoint}.") from None
            if World.current().main:
                _write_answers(folder / f"{name}.parquet", answers)

    def make_reference(self, folder: Path) -> None:
        policy, pairs = self.policy(), PairFile(self.tokens / "train.arrow")
        row_tokens, chosen, rejected = row_budget(self.settings, policy), list[np.ndarray](), list[np.ndarray]()
        # As objects all pairs together would be gigabytes.
        for start in range(0, len(pairs), REFERENCE_PAIRS):
            part = pairs[start : start + REFERENCE_PAIRS]
            sums = sum_logps(policy, part, row_tokens=row_tokens)
            check_finite(*sums, "training", self.settings)
            chosen.append(sums[0])
            rejected.append(sums[1])
        if World.current().main:
            np.savez(folder / "reference.npz", chosen=np.concatenate(chosen), rejected=np.concatenate(rejected))

    def policy(self) -> Policy:
        """The SFT checkpoint's, to be evaluated."""
        model = self.settings.model
        return to_device(make_policy(load_start(self.checkpoint, model), model), sharded=self.sharded).eval()

    def check_reach(self, policy: Policy) -> None:
        """Raise InputError where the tokens, or answers, go beyond the policy's ids or positions."""
        max_new_tokens = self.settings.evaluation.decoding.max_new_tokens
        check_reach(policy.limits, self.tokens, max_new_tokens=max_new_tokens)


def _tokens_key(settings: Settings) -> list[Any]:
    model, evaluation = settings.model, settings.evaluation
    return [
        [FORMAT, PAIRS_FORMAT],
        [model.source if not model.tokenizer else None, model.tokenizer, model.revision, model.gguf_file],
        _weights(model),
        content_of(model.tokenizer, by_time=True),
        [model.chat_template, content_of(model.chat_template)],
        [settings.data, _source_content(settings.data)],
        [evaluation.prompts, evaluation.selection_prompts, settings.sft is not None],
        [evaluation.questions, content_of(evaluation.questions)],
        *([["retention", content_of(retention.prompts)]] if (retention := evaluation.retention) else []),
    ]


def _source_content(data: Data) -> list[str | None]:
    """Return hashes that change with local data files and an embedded task's code."""
    files = sorted(Path(tasks.__path__[0]).glob("*.py")) if data.task else [each.source for each in data.sources]
    return [content_of(str(file)) for file in files]


def _weights(model: Model) -> list[str | None]:
    """Changes with the weights behind a local model or adapter, and with the code that makes an embedded one."""
    if model.task:
        return [content_of(tiny.__file__)]
    return [content_of(source, by_time=True) for source in weight_sources(model)]


@lru_cache(maxsize=2)
def _load(
    tokens: Path, checkpoint: Path, step0: Path, answers: Path, retention: Path | None, task: str | None
) -> Stages:
    info = json.loads((tokens / "info.json").read_text(encoding="utf-8"))
    rubric = tasks.load_task(task) if task else None
    folders = dict.fromkeys(PROMPT_SETS, answers) | ({RETENTION: retention} if retention else {})
    return Stages(
        checkpoint=checkpoint,
        tokenizer=AutoTokenizer.from_pretrained(tokens / "tokenizer", local_files_only=True),
        stop_tokens=tuple(info["stop_tokens"]),
        held_out=PairFile(tokens / "held_out.arrow"),
        prompts={name: read_prompts(tokens / f"prompts-{name}.parquet") for name in folders},
        step0=HeldOut.load(step0 / "held_out.npz"),
        baseline={name: _read_answers(folder / f"{name}.parquet") for name, folder in folders.items()},
        tokens=tokens,
        hashes={
            **info["hashes"],
            "train_ids": info["content"]["train"],
            # Of what it is made from. Another machine makes other weights of the same.
            "sft_checkpoint": checkpoint.name.split("-")[1],
            **_read(checkpoint / MADE),
        },
        data=info["data"] | json.loads((step0 / "info.json").read_text(encoding="utf-8")) | _read(checkpoint / NOTES),
        format_check=(lambda prompt, answer: rubric.score(prompt, answer).format_ok) if rubric else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Making the stages


def _make_tokens(settings: Settings, folder: Path) -> None:
    """Load, split and render the data; only token ids and prompts are kept. Rank 0 does it alone."""
    if not World.current().main:
        return
    disable_progress_bars()
    data = settings.data
    tokenizer = load_tokenizer(settings.model)
    corpus = load_corpus(data, settings.evaluation)
    limits: dict[str, Any] = {"max_prompt_tokens": data.max_prompt_tokens, "strict": data.strict}
    row: dict[str, Any] = {"max_tokens": data.max_tokens, "row_tokens": data.row_tokens}
    truncated: dict[str, Any] = {}
    content: dict[str, str] = {}
    parts = {"train": corpus.train, "held_out": corpus.held_out}
    for name, part in (({"sft": corpus.sft} if settings.sft else {}) | parts).items():
        tokenized = tokenize_pairs(part, tokenizer, rejected=name != "sft", **row, **limits)
        write_pairs(folder / f"{name}.arrow", tokenized.table)
        truncated[name] = tokenized.truncation.as_dict()
        content[name] = tokenized_hash(tokenized.table)
    prompts, cuts = prompts_to_answer(settings, corpus.prompts, tokenizer)
    for name, set_prompts in prompts.items():
        truncated[f"{name}_prompts"] = cuts[name].as_dict()
        columns = [[getattr(prompt, column) for prompt in set_prompts] for column in ("token_ids", "category", "later")]
        content[f"prompts-{name}"] = fingerprint(columns)
        write_prompts(folder / f"prompts-{name}.parquet", set_prompts)
    stop_tokens = list(stop_token_ids(tokenizer))
    content["stop_tokens"] = fingerprint(stop_tokens)
    tokenizer.save_pretrained(folder / "tokenizer")
    info = {
        "stop_tokens": stop_tokens,
        "content": content,
        "hashes": {
            "train_data": content_hash(corpus.train),
            "held_out": content_hash(corpus.held_out),
            **{
                f"prompts_{name}": fingerprint(
                    [*(prompt.messages for prompt in set_prompts), *(prompt.later for prompt in set_prompts)]
                )
                for name, set_prompts in prompts.items()
            },
            "chat_template": template_hash(tokenizer),
        },
        "data": {
            **corpus.read,
            "sft": len(corpus.sft) if settings.sft else 0,
            "train": len(corpus.train),
            "held_out": len(corpus.held_out),
            "truncated": truncated,
        },
    }
    (folder / "info.json").write_text(json.dumps(info), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _read(file: Path) -> dict[str, Any]:
    """A file beside an SFT checkpoint, MADE or NOTES; nothing of an earlier version, which wrote none."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _write_answers(path: Path, answers: Sequence[Answer]) -> None:
    pq.write_table(pa.Table.from_pylist([vars(answer) for answer in answers]), path)


def _read_answers(path: Path) -> list[Answer]:
    rows = pq.read_table(path).to_pylist()
    return [Answer(tuple(row["token_ids"]), row["text"], row["stopped"], row["leaked"]) for row in rows]
