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
from slime_ray.data.splits import prompt_hash
from slime_ray.data.tokenizing import TruncationReport, render_prompts, tokenize_prompts
from slime_ray.evaluation.conversations import Prompt, ask
from slime_ray.evaluation.field_files import Question
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.questions import load_questions, load_retention
from slime_ray.evaluation.served import answering
from slime_ray.model.logprobs import Policy
from slime_ray.runs.results import RETENTION
from slime_ray.training.orders import Report
from slime_ray.world import World

Sets = dict[str, list[Prompt]]
PROMPT_SETS = ("selection", "report")
"""Sets that are always there; RETENTION is a third where the settings have `evaluation.retention`."""


def prompts_to_answer(
    settings: Settings, of_the_data: Mapping[str, Sequence[Messages]], tokenizer: Any
) -> tuple[Sets, dict[str, TruncationReport]]:
    """Return the prompt sets by name, and what limits and template did to each.

    A file of questions makes the report's. Raises InputError for what cannot be rendered.
    """
    questions = {"report": load_questions(settings), RETENTION: load_retention(settings)}
    names = [*PROMPT_SETS, *([RETENTION] if questions[RETENTION] else [])]
    sets = {
        name: _of_questions(set_questions, tokenizer, settings.data)
        if (set_questions := questions.get(name))
        else _of_the_data(of_the_data[name], tokenizer, settings.data)
        for name in names
    }
    return {name: prompts for name, (prompts, _) in sets.items()}, {name: cut for name, (_, cut) in sets.items()}


def _of_the_data(messages: Sequence[Messages], tokenizer: Any, data: Data) -> tuple[list[Prompt], TruncationReport]:
    """Tokenize prompts of the data, cut and refused as training's are, named by their hashes."""
    token_ids, cut = tokenize_prompts(messages, tokenizer, max_prompt_tokens=data.max_prompt_tokens, strict=data.strict)
    return [Prompt(prompt_hash(messages[number]), messages[number], ids) for number, ids in token_ids.items()], cut


def _of_questions(questions: Sequence[Question], tokenizer: Any, data: Data) -> tuple[list[Prompt], TruncationReport]:
    """Tokenize questions whole: a benchmark without some of them, or with parts of them, is another one."""
    # All turns with answers in between, so that the template refuses none of them once trials have been trained.
    talks = [question.messages(["?"] * (len(question.turns) - 1)) for question in questions]
    render_prompts(tokenizer, talks)
    ids = render_prompts(tokenizer, [question.messages() for question in questions])
    prompts = [
        Prompt(question.id, question.messages(), token_ids, question.category, question.turns[1:])
        for question, token_ids in zip(questions, ids, strict=True)
    ]
    return prompts, tokenize_prompts(talks, tokenizer, what="questions", strict=data.strict)[1]


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write prompts that have not been asked yet."""
    names = ("id", "messages", "token_ids", "category", "later")
    columns = {name: [getattr(prompt, name) for prompt in prompts] for name in names}
    columns["messages"] = [json.dumps(prompt.messages, ensure_ascii=False) for prompt in prompts]
    pq.write_table(pa.table(columns), path)


def read_prompts(path: Path) -> list[Prompt]:
    """What `write_prompts` wrote."""
    rows = pq.read_table(path).to_pylist()
    return [Prompt(**(row | {"messages": json.loads(row["messages"])})) for row in rows]


def draw_answers(
    policy: Policy,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    evaluation: Evaluation,
    report: Report,
    *,
    stop_tokens: Sequence[int],
    seed: int,
    doing: str,
    adapter: Path | None = None,
) -> tuple[list[Prompt], list[Answer]]:
    """Have a policy, or the server of `evaluation.engine` for it, answer prompts; returns what was asked, turn by turn.

    report: hears of the batches, or answers of a server, that rank 0 has. doing: what it is told. adapter: the policy's
    folder, for a server to load. Raises RunError where a server does not do its part.
    """

    def progress(done: int, of: int) -> None:
        if World.current().main and of > 1:
            report({"doing": doing, "step": done, "updates": of})

    ids = [prompt.token_ids for prompt in prompts]
    with answering(evaluation.engine, policy, tokenizer, ids, adapter=adapter) as source:
        return ask(
            source, tokenizer, prompts, decoding=evaluation.decoding, stop_tokens=stop_tokens, seed=seed,
            progress=progress,
        )  # fmt: skip
