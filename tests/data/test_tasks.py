"""The embedded tasks: what the generators promise."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data.preferences import read_preferences
from slime_ray.data.tasks import PIECE, Task, load_task
from slime_ray.data.tasks.base import BREAK_RATE, SHARES, sentences
from slime_ray.errors import InputError

from .conftest import every_task, said

ROOT = Path(__file__).resolve().parents[2]
SEEDS = st.integers(min_value=0, max_value=2**32)


@cache
def everything(task: Task, seed: int) -> dict[str, Dataset]:
    """The largest sizes that are promised, for every split."""
    return {
        "sft": task.sft_examples(6000, seed=seed),
        "train": task.pairs(1024, split="train", seed=seed),
        "held_out": task.pairs(1000, split="held_out", seed=seed),
        "selection": task.prompts(256, purpose="selection", seed=seed),
        "report": task.prompts(512, purpose="report", seed=seed),
    }


def prompts_of(task: Task, split: str, n: int, seed: int) -> list[str]:
    if split == "sft":
        return said(task.sft_examples(n, seed=seed), "prompt")
    if split in ("train", "held_out"):
        return said(task.pairs(n, split=split, seed=seed), "prompt")  # type: ignore[arg-type]
    return said(task.prompts(n, purpose=split, seed=seed), "prompt")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# The noisy process


@every_task
def test_the_noisy_process_breaks_each_criterion_at_the_stated_rate_and_independently(task: Task) -> None:
    examples = task.sft_examples(6000, seed=3)
    rows = [
        task.score(prompt, answer).parts
        for prompt, answer in zip(said(examples, "prompt"), said(examples, "chosen"), strict=True)
    ]
    broken = {part: [row[part] == 0.0 for row in rows] for part in task.points}
    # Five standard errors of a share of 6,000 are 0.028, and 0.016 for two at once.
    for one, other in pairwise(task.points):
        assert sum(broken[one]) / 6000 == pytest.approx(BREAK_RATE, abs=0.028)
        both = sum(a and b for a, b in zip(broken[one], broken[other], strict=True)) / 6000
        assert both == pytest.approx(BREAK_RATE**2, abs=0.016)


@every_task
@settings(max_examples=5)
@given(seed=SEEDS, n=st.integers(min_value=1, max_value=200))
def test_chosen_is_always_strictly_better_than_rejected(task: Task, seed: int, n: int) -> None:
    for split in ("train", "held_out"):
        pairs = task.pairs(n, split=split, seed=seed)
        assert len(pairs) == n
        for prompt, chosen, rejected in zip(*(said(pairs, name) for name in pairs.column_names), strict=True):
            assert task.score(prompt, chosen).total > task.score(prompt, rejected).total


@every_task
def test_chosen_is_the_best_of_four_draws(task: Task) -> None:
    """An answer is perfect with 0.75 to the number of criteria; the best of four is, with 1 - (1 - that)^4."""
    pairs = task.pairs(1024, seed=0)
    perfect = [task.score(p, c).total == 1 for p, c in zip(said(pairs, "prompt"), said(pairs, "chosen"), strict=True)]
    one = (1 - BREAK_RATE) ** len(task.points)
    # Four equal draws are drawn again, which shifts this by less than the five standard errors allowed here.
    assert sum(perfect) / 1024 == pytest.approx(1 - (1 - one) ** 4, abs=0.078)


# ---------------------------------------------------------------------------------------------------------------------
# Splits


@every_task
def test_no_sum_or_set_of_facts_stands_in_two_splits_in_another_wording(task: Task) -> None:
    """Facts are what the prompt asks about: its numbers, or its four facts without the older note."""
    facts = {
        split: {str(re.findall(r"\d\d|(?:Name|Item|Day|Time): \w+", text)) for text in said(dataset, "prompt")}
        for split, dataset in everything(task, 0).items()
    }
    assert all(len(group) > 250 for group in facts.values())
    for one, other in combinations(facts.values(), 2):
        assert not one & other


@every_task
@pytest.mark.parametrize("split", ["train", "held_out", "selection", "report"])
def test_every_prompt_of_a_split_is_another_up_to_its_capacity_and_more_are_refused(task: Task, split: str) -> None:
    capacity = task.capacity(split)
    assert capacity >= {"train": 1024, "held_out": 1000, "selection": 256, "report": 512}[split]
    assert len(set(prompts_of(task, split, capacity, 5))) == capacity
    with pytest.raises(InputError, match=rf"embedded/{task.name}: cannot give {capacity + 1} .*from 0 to {capacity},"):
        prompts_of(task, split, capacity + 1, 5)


@every_task
def test_the_splits_together_are_all_facts(task: Task) -> None:
    assert sum(task.capacity(split) for split in SHARES) == len(list(task.all_facts()))


@every_task
def test_sft_goes_through_all_its_facts_before_any_repeats_and_then_answers_anew(task: Task) -> None:
    capacity = task.capacity("sft")
    examples = task.sft_examples(capacity + 50, seed=0)
    answers = said(examples, "chosen")
    asked = [re.findall(r"\d\d|(?:Name|Item|Day|Time): \w+", text) for text in said(examples, "prompt")]
    assert asked[:50] == asked[capacity:]
    assert len({str(facts) for facts in asked}) == capacity
    assert answers[:50] != answers[capacity:]


# ---------------------------------------------------------------------------------------------------------------------
# Determinism and form


@every_task
@settings(max_examples=3)
@given(seed=SEEDS, sizes=st.tuples(*[st.integers(min_value=1, max_value=60)] * 2))
def test_rows_follow_from_the_seed_and_a_longer_table_begins_with_the_shorter(
    task: Task, seed: int, sizes: tuple[int, int]
) -> None:
    def tables(task: Task, seed: int, n: int) -> list[Dataset]:
        return [
            task.sft_examples(n, seed=seed),
            task.pairs(n, split="train", seed=seed),
            task.pairs(n, split="held_out", seed=seed),
            task.prompts(n, purpose="selection", seed=seed),
            task.prompts(n, purpose="report", seed=seed),
        ]

    short, long = sorted(sizes)
    for table, again, other in zip(
        tables(task, seed, long), tables(type(task)(), seed, short), tables(task, seed + 1, long), strict=True
    ):
        assert again.to_list() == table.to_list()[:short]
        assert long < 5 or other.to_list() != table.to_list()


def test_rows_do_not_change_between_processes_and_reading_them_needs_no_torch() -> None:
    """Written down when they were first made: a change here changes every result ever measured on the task."""
    script = (
        "import json, sys; from slime_ray.data.tasks import TASKS; import slime_ray.data.preferences;"
        "rows = {name: task.pairs(1, seed=0)[0].values() for name, task in TASKS.items()};"
        "print(json.dumps({name: [text[0]['content'] for text in row] for name, row in rows.items()}));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == {name: list(row) for name, row in GOLDEN.items()}


GOLDEN = {
    "arithmetic": (
        "Please add 19 and 87.",
        "Tens: 10 + 80 = 90. Ones: 9 + 7 = 16. The total is 106. That is it.",
        "Tens: 10 + 80 = 90. Ones: 9 + 7 = 16. The total is 96. That is it.",
    ),
    "notes": (
        "Write a note. Name: Leo. Item: kettle. Day: Thursday. Time: eleven. "
        "Older note: Hi Jon, please bring the camera on Tuesday at six. See you then.",
        "Hi Leo, please bring the kettle on Thursday at eleven. See you then.",
        "Hi Mia, please bring the kettle on Tuesday at eleven. See you then.",
    ),
}


@every_task
def test_rows_are_preference_data_that_loads_as_it_is(task: Task, tmp_path: Path) -> None:
    pairs = task.pairs(20, seed=0)
    pairs.to_parquet(tmp_path / "pairs.parquet")
    loaded = read_preferences(tmp_path / "pairs.parquet", strict=True).dataset
    assert loaded.to_dict() == pairs.to_dict()
    assert loaded.features == pairs.features
    for column, role in {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}.items():
        assert [[message["role"] for message in messages] for messages in pairs[column]] == [[role]] * 20


@every_task
def test_an_empty_request_gives_an_empty_table_with_its_columns(task: Task) -> None:
    assert task.pairs(0, seed=0).column_names == ["prompt", "chosen", "rejected"]
    assert task.sft_examples(0, seed=0).column_names == ["prompt", "chosen"]
    assert task.prompts(0, purpose="report", seed=0).column_names == ["prompt"]


def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        InputError, match=r"no embedded task 'arithmetics'\. Did you mean arithmetic\? There are: arithmetic, notes\."
    ):
        load_task("arithmetics")
    with pytest.raises(InputError, match=r"no embedded task 'xyz'\. There are: arithmetic, notes\."):
        load_task("xyz")


@every_task
def test_the_vocabulary_is_all_that_is_ever_said_and_no_more(task: Task) -> None:
    said_somewhere: set[str] = set()
    for dataset in everything(task, 0).values():
        for column in dataset.column_names:
            for text in said(dataset, column):
                pieces = re.findall(PIECE, text)
                assert "".join(pieces) == text
                said_somewhere.update(pieces)
    assert sorted(said_somewhere) == task.vocabulary()


def test_sentences_end_with_their_marks() -> None:
    assert sentences(" What is it?  Let me think.\nDone") == ["What is it?", "Let me think.", "Done"]
    assert sentences("") == [""]
