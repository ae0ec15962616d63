"""What all trials share, made once: tokens, the SFT checkpoint, step-0 log-probabilities, the baseline's answers.

The ranks of a process group make them together; rank 0 alone writes. sharded: the ranks hold parts of the model (FSDP2)
instead of all of it each; what is made is the same.
"""

import json
from collections.abc import Sequence
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
from slime_ray.evaluation.conversations import Prompts
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.held_out import HeldOut, measure_held_out, sum_logps
from slime_ray.model import tiny
from slime_ray.model.loading import load_tokenizer, weight_sources
from slime_ray.model.logprobs import Policy
from slime_ray.model.quantized import refuse_quantized
from slime_ray.runs.results import RETENTION
from slime_ray.runs.store import RunStore
from slime_ray.training.cache import cached, content_of, stage_errors
from slime_ray.training.checks import check_finite, check_reach, no_answers
from slime_ray.training.orders import Report
from slime_ray.training.policies import checkpoint_policy, model_facts, row_budget
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
    prompts: dict[str, Prompts]
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
        return _prepare(settings, storage, report, sharded)


def _prepare(settings: Settings, storage: RunStore, report: Report, sharded: bool) -> Stages:
    tokens = cached(storage, "tokens", _tokens_key(settings), lambda folder: _make_tokens(settings, folder), report)
    content = json.loads((tokens / "info.json").read_text(encoding="utf-8"))["content"]
    model = settings.sft_model.model_dump(exclude={"chat_template"})
    schedule = settings.sft and settings.sft.model_dump(exclude={"lora"})
    sft_key = fingerprint([FORMAT, content.get("sft"), model, _weights(settings.model), schedule])
    checkpoint = cached(
        storage, "sft", sft_key, lambda folder: _make_sft(settings, tokens, folder, report, sharded), report
    )
    # Made again elsewhere, the same recipe gives other weights, and what follows from them is another stage.
    weights = _read(checkpoint / MADE)
    # An adapter that is kept is not merged, which rounds otherwise.
    kept = ["kept"] if settings.model.kept else []
    step0_key = fingerprint([FORMAT, sft_key, weights, content["held_out"], *kept])
    step0 = cached(
        storage,
        "step0",
        step0_key,
        lambda folder: _make_step0(settings, tokens, checkpoint, folder, report, sharded),
        report,
    )
    drawn = [settings.evaluation.decoding, *([engine.identity] if (engine := settings.evaluation.engine) else [])]

    def answers_to(kind: str, names: Sequence[str]) -> Path:
        asked = [content[f"prompts-{name}"] for name in names]
        key = fingerprint([FORMAT, sft_key, weights, content["stop_tokens"], asked, *drawn, *kept])
        return cached(
            storage,
            kind,
            key,
            lambda folder: _make_baseline(settings, tokens, checkpoint, folder, report, sharded, names),
            report,
        )

    answers = answers_to("baseline", PROMPT_SETS)
    # Apart, so that other retention prompts leave the baseline's other answers as they are.
    retention = answers_to(RETENTION, [RETENTION]) if settings.evaluation.retention else None
    stages = _load(tokens, checkpoint, step0, answers, retention, settings.data.task)
    return replace(stages, data=stages.data | model_facts(settings, checkpoint))


def train_pairs(
    stages: Stages, settings: Settings, *, storage: RunStore, report: Report, sharded: bool = False
) -> PairFile:
    """The preference pairs to train on, with the SFT checkpoint's log-probabilities where the objective needs them.

    The reference is computed once for an SFT checkpoint and shared by all trials that need one.
    """
    path = stages.tokens / "train.arrow"
    pairs = PairFile(path)
    if not settings.objective.build().needs_reference:
        return pairs
    of = [stages.hashes.get(name) for name in ("sft_checkpoint", "sft_weights", "train_ids")]
    key = fingerprint([FORMAT, *of, *(["kept"] if settings.model.kept else [])])
    folder = cached(
        storage, "reference", key, lambda folder: _make_reference(settings, stages, pairs, folder, sharded), report
    )
    return PairFile(path, folder / "reference.npz")


def _tokens_key(settings: Settings) -> str:
    model, evaluation = settings.model, settings.evaluation
    return fingerprint(
        [
            [FORMAT, PAIRS_FORMAT],
            [model.source if not model.tokenizer else None, model.tokenizer, model.revision, model.gguf_file],
            _weights(model),
            content_of(model.tokenizer, by_time=True),
            [model.chat_template, content_of(model.chat_template)],
            [settings.data, _source_content(settings.data)],
            [evaluation.prompts, evaluation.selection_prompts, settings.sft is not None],
            [evaluation.questions, content_of(evaluation.questions)],
            *([["retention", content_of(kept.prompts)]] if (kept := evaluation.retention) else []),
        ]
    )


def _source_content(data: Data) -> list[str | None]:
    """Changes with the local files behind the data, and with the code that makes an embedded task's."""
    files = sorted(Path(tasks.__path__[0]).glob("*.py")) if data.task else [one.source for one in data.sources]
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
    prompts = prompts_to_answer(settings, corpus.prompts, tokenizer)
    for name, asked in prompts.items():
        if asked.truncation is not None:
            truncated[f"{name}_prompts"] = asked.truncation.as_dict()
        content[f"prompts-{name}"] = fingerprint([asked.token_ids, asked.categories, asked.later])
        write_prompts(folder / f"prompts-{name}.parquet", asked)
    stop_tokens = list(stop_token_ids(tokenizer))
    content["stop_tokens"] = fingerprint(stop_tokens)
    tokenizer.save_pretrained(folder / "tokenizer")
    info = {
        "stop_tokens": stop_tokens,
        "content": content,
        "hashes": {
            "train_data": content_hash(corpus.train),
            "held_out": content_hash(corpus.held_out),
            **{f"prompts_{name}": fingerprint([*asked.messages, *asked.later]) for name, asked in prompts.items()},
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


def _make_sft(settings: Settings, tokens: Path, folder: Path, report: Report, sharded: bool) -> None:
    notes: list[str] = []
    pairs = PairFile(tokens / ("sft.arrow" if settings.sft else "train.arrow"))
    max_new_tokens = settings.evaluation.decoding.max_new_tokens

    def check(policy: Policy) -> None:
        check_reach(policy.limits, tokens, max_new_tokens=max_new_tokens)

    make_sft(settings, pairs, folder, report, sharded=sharded, check=check, note=notes.append)
    if World.current().main:
        # Of a 4-bit base it is the adapter alone, which its own folder holds.
        written = folder.rglob if settings.model.quantization else folder.glob
        weights = fingerprint([content_of(str(file)) for file in sorted(written("*.safetensors"))])
        (folder / MADE).write_text(json.dumps({"sft_weights": weights}), encoding="utf-8")
        (folder / NOTES).write_text(json.dumps({"model_notes": notes}), encoding="utf-8")


def _make_step0(
    settings: Settings, tokens: Path, checkpoint: Path, folder: Path, report: Report, sharded: bool
) -> None:
    policy, world = checkpoint_policy(checkpoint, settings.model, sharded), World.current()
    check_reach(policy.limits, tokens, max_new_tokens=settings.evaluation.decoding.max_new_tokens)
    if world.main and policy.why_not_packed is not None:
        report({"doing": f"giving every sequence a row of its own ({policy.why_not_packed})"})
    rows = "packed" if policy.why_not_packed is None else f"one sequence each: {policy.why_not_packed}"
    pairs = PairFile(tokens / "held_out.arrow")
    measured = measure_held_out(policy, pairs, row_tokens=row_budget(settings, policy))
    check_finite(measured.chosen_means, measured.rejected_means, "held-out", settings)
    if world.main:
        (folder / "info.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
        measured.save(folder / "held_out.npz")


def _make_baseline(
    settings: Settings,
    tokens: Path,
    checkpoint: Path,
    folder: Path,
    report: Report,
    sharded: bool,
    names: Sequence[str],
) -> None:
    policy, world = checkpoint_policy(checkpoint, settings.model, sharded), World.current()
    check_reach(policy.limits, tokens, max_new_tokens=settings.evaluation.decoding.max_new_tokens)
    tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer", local_files_only=True)
    info = json.loads((tokens / "info.json").read_text(encoding="utf-8"))
    for name in names:
        prompts = read_prompts(tokens / f"prompts-{name}.parquet")
        try:
            _, answers = draw_answers(
                policy, tokenizer, prompts, settings.evaluation, report, stop_tokens=info["stop_tokens"],
                seed=BASELINE_SEED, doing="making baseline",
            )  # fmt: skip
        except FloatingPointError:
            raise no_answers(settings) from None
        except RunError as error:
            if settings.evaluation.engine is None:
                raise
            raise RunError(f"{error} The checkpoint that it has to serve is {checkpoint}.") from None
        if world.main:
            _write_answers(folder / f"{name}.parquet", answers)


def _make_reference(settings: Settings, stages: Stages, pairs: PairFile, folder: Path, sharded: bool) -> None:
    policy = checkpoint_policy(stages.checkpoint, settings.model, sharded)
    row_tokens, chosen, rejected = row_budget(settings, policy), list[np.ndarray](), list[np.ndarray]()
    # As objects all pairs together would be gigabytes.
    for start in range(0, len(pairs), REFERENCE_PAIRS):
        part = pairs[start : start + REFERENCE_PAIRS]
        sums = sum_logps(policy, part, row_tokens=row_tokens)
        check_finite(*sums, "training", settings)
        chosen.append(sums[0])
        rejected.append(sums[1])
    if World.current().main:
        np.savez(folder / "reference.npz", chosen=np.concatenate(chosen), rejected=np.concatenate(rejected))


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
