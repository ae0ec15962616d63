"""How long a policy takes to answer an embedded task's prompts, in batches and one prompt at a time."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from slime_ray.bench.machine import Machine, Say, describe_machine, now, threads
from slime_ray.config.evaluation import Decoding
from slime_ray.config.presets import preset_base
from slime_ray.data.tasks import load_task
from slime_ray.data.tokenizing import tokenize_prompts
from slime_ray.evaluation.generate import generate_answers
from slime_ray.model.logprobs import Policy
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from slime_ray.planning.tables import table

from .common import middle, run

TASKS = ("arithmetic", "notes")
ALONE = 16
"""Prompts that are also answered one at a time, which takes too long for all of them."""


@dataclass(frozen=True)
class AnsweringTimes:
    """One task's prompts. seconds: of each round. tokens: that a round generates, stop tokens not counted."""

    task: str
    batch: int
    prompts: int
    tokens: int
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class GenerateReport:
    """threads: of torch. limit: the tokens of every answer, by task."""

    machine: Machine
    date: str
    threads: int
    rounds: int
    limit: dict[str, int]
    times: list[AnsweringTimes]


def measure_answering(*, prompts: int, rounds: int, say: Say) -> GenerateReport:
    """Answer `prompts` prompts of each task `rounds` times with the task's preset, all ways interleaved, on one thread.

    The tiny models have random weights and no stop token, so every answer reaches the limit of its preset: no policy of
    this size takes longer.
    """
    cases = [case for task in TASKS for case in _cases(task, prompts)]
    seconds: list[list[float]] = [[] for _ in cases]
    tokens = [0] * len(cases)
    with threads(1):
        for turn in range(rounds + 1):
            say(f"round {turn} of {rounds}" if turn else "warming up")
            for number, (_, decoding, asked, answer) in enumerate(cases):
                clock = time.perf_counter()
                answers = answer(asked, decoding)
                if turn:
                    seconds[number].append(time.perf_counter() - clock)
                tokens[number] = sum(len(each.token_ids) for each in answers)
    return GenerateReport(
        machine=describe_machine(torch.device("cpu")),
        date=now(),
        threads=1,
        rounds=rounds,
        limit={task: decoding.max_new_tokens for task, decoding, *_ in cases},
        times=[
            AnsweringTimes(task, decoding.batch_on(gpu=False), len(asked), tokens[number], seconds[number])
            for number, (task, decoding, asked, _) in enumerate(cases)
        ],
    )


def _cases(name: str, prompts: int) -> list[tuple[str, Decoding, list[list[int]], Any]]:
    """The preset's batches, and single prompts."""
    task = load_task(name)
    tokenizer = tiny_tokenizer(task)
    policy = Policy(tiny_model(task, seed=0)).eval()
    messages = list(task.prompts(prompts, purpose="selection", seed=0)["prompt"])
    asked = list(tokenize_prompts(messages, tokenizer).prompt_ids)

    def answer(some: list[list[int]], decoding: Decoding) -> Any:
        # A stop token that the vocabulary does not have.
        return generate_answers(policy, tokenizer, some, decoding=decoding, stop_tokens=[len(tokenizer)], seed=0)

    batched = Decoding.model_validate(preset_base(name)["evaluation"]["decoding"])
    alone = batched.model_copy(update={"batch": 1})
    return [(name, batched, asked, answer), (name, alone, asked[:ALONE], answer)]


def generate_table(report: GenerateReport) -> str:
    """Render the report."""
    machine = report.machine
    rows = [
        (
            f"{times.task}, {f'batches of {times.batch}' if times.batch > 1 else 'one at a time'}",
            f"{times.prompts}",
            f"{times.tokens:,}",
            *middle(times.seconds, 1.0, ".2f"),
            f"{times.prompts / times.median:,.1f}",
        )
        for times in report.times
    ]
    return "\n\n".join(
        [
            f"Answers of the embedded tasks' models on {machine.processor}, {report.threads} thread of {machine.cores} "
            f"cores; torch {machine.torch}, transformers {machine.transformers}, {report.date}; {report.rounds} rounds",
            table(("", "answers", "tokens", "s", "range", "answers/s"), rows),
            "Medians of interleaved rounds; ranges from least to most. Random weights and no stop token: every answer "
            "has as many tokens as its preset allows.",
        ]
    )


if __name__ == "__main__":
    run(
        "generate",
        "Answers to the embedded tasks' prompts, in batches and one by one, on one core.",
        {"prompts": (256, 1, "prompts of each task"), "rounds": (5, 1, "repetitions")},
        measure_answering,
        generate_table,
    )
