"""The prompts that trials answer: of the data or of a file of questions, rendered, kept in files and answered."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slime_ray.config.evaluation import Evaluation
from slime_ray.config.settings import Data, Settings
from slime_ray.data.forms import Messages
from slime_ray.data.tokenizing import render_prompts, tokenize_prompts
from slime_ray.evaluation.conversations import Prompts, ask
from slime_ray.evaluation.field_files import Question
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.questions import load_questions, load_retention
from slime_ray.evaluation.served import answering
from slime_ray.model.logprobs import Policy
from slime_ray.runs.results import RETENTION
from slime_ray.training.orders import Report
from slime_ray.world import World

PROMPT_SETS = ("selection", "report")
"""Sets that are always there; RETENTION is a third where the settings have `evaluation.retention`."""


def prompts_to_answer(
    settings: Settings, of_the_data: Mapping[str, Sequence[Messages]], tokenizer: Any
) -> dict[str, Prompts]:
    """The sets by name. A file of questions makes the report's. Raises InputError for what cannot be rendered."""
    questions, retention = load_questions(settings), load_retention(settings)
    sets = {
        name: _of_questions(questions, tokenizer, settings.data)
        if questions and name == "report"
        else _of_the_data(of_the_data[name], tokenizer, settings.data)
        for name in PROMPT_SETS
    }
    return sets | ({RETENTION: _of_questions(retention, tokenizer, settings.data)} if retention else {})


def _of_the_data(prompts: Sequence[Messages], tokenizer: Any, data: Data) -> Prompts:
    """Named by their hashes, cut and refused as training's are."""
    tokenized = tokenize_prompts(prompts, tokenizer, max_prompt_tokens=data.max_prompt_tokens, strict=data.strict)
    messages = [prompts[index] for index in tokenized.kept]
    return Prompts(tokenized.prompt_hashes, messages, tokenized.prompt_ids, truncation=tokenized.truncation)


def _of_questions(questions: Sequence[Question], tokenizer: Any, data: Data) -> Prompts:
    """Whole, for a benchmark without some of its questions, or with parts of them, is another one."""
    # All turns with answers in between, so that the template refuses none of them once trials have been trained.
    talks = [question.messages(["?"] * (len(question.turns) - 1)) for question in questions]
    render_prompts(tokenizer, talks)
    first = [question.messages() for question in questions]
    return Prompts(
        ids=[question.id for question in questions],
        messages=first,
        token_ids=render_prompts(tokenizer, first),
        categories=[question.category for question in questions],
        later=[question.turns[1:] for question in questions],
        truncation=tokenize_prompts(talks, tokenizer, what="questions", strict=data.strict).truncation,
    )


def write_prompts(path: Path, prompts: Prompts) -> None:
    """Write prompts that have not been asked yet."""
    columns = {
        "id": prompts.ids,
        "messages": [json.dumps(messages, ensure_ascii=False) for messages in prompts.messages],
        "token_ids": prompts.token_ids,
        "category": prompts.categories,
        "later": prompts.later,
    }
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)


def read_prompts(path: Path) -> Prompts:
    """What `write_prompts` wrote."""
    columns = pq.read_table(path).to_pydict()
    return Prompts(
        ids=columns["id"],
        messages=[json.loads(text) for text in columns["messages"]],
        token_ids=columns["token_ids"],
        categories=columns["category"],
        later=columns["later"],
    )


def draw_answers(
    policy: Policy,
    tokenizer: Any,
    prompts: Prompts,
    evaluation: Evaluation,
    report: Report,
    *,
    stop_tokens: Sequence[int],
    seed: int,
    doing: str,
    adapter: Path | None = None,
) -> tuple[Prompts, list[Answer]]:
    """Have a policy, or the server of `evaluation.engine` for it, answer prompts; returns what was asked, turn by turn.

    report: hears of the batches, or answers of a server, that rank 0 has. doing: what it is told. adapter: the policy's
    folder, for a server to load. Raises RunError where a server does not do its part.
    """

    def progress(done: int, of: int) -> None:
        if World.current().main and of > 1:
            report({"doing": doing, "step": done, "updates": of})

    with answering(evaluation.engine, policy, tokenizer, prompts.token_ids, adapter=adapter) as source:
        return ask(
            source, tokenizer, prompts, decoding=evaluation.decoding, stop_tokens=stop_tokens, seed=seed,
            progress=progress,
        )  # fmt: skip
