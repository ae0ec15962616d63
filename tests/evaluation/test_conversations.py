"""Conversations of several turns: each asked after the policy's own answer, the baseline's after the baseline's."""

from typing import Any

import pytest
import torch

from slime_ray.config.evaluation import Decoding
from slime_ray.data.tasks import load_task
from slime_ray.evaluation.answers import judge_answers
from slime_ray.evaluation.conversations import Prompt, ask, side_conversations
from slime_ray.evaluation.generate import Answer, generate_answers
from slime_ray.evaluation.judges import Judge, Judged
from slime_ray.evaluation.verdicts import Comparison, win_rate
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from tests.rendered import render_prompt

TASK = load_task("arithmetic")
TOKENIZER = tiny_tokenizer(TASK)
STOP = (TOKENIZER.eos_token_id,)
ASKED = [row[0]["content"] for row in TASK.prompts(6, purpose="selection", seed=0)["prompt"]]
DECODING = Decoding(temperature=1.0, max_new_tokens=12, batch=4)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompts(*later: tuple[str, ...]) -> list[Prompt]:
    return [
        Prompt(f"q{n}", said(text), render_prompt(TOKENIZER, said(text)), "math" if n == 1 else None, after)
        for n, (text, after) in enumerate(zip(ASKED, later, strict=False))
    ]


@pytest.fixture(scope="module")
def lm():
    return tiny_model(TASK, seed=0)


def asked(lm: Any, given: list[Prompt], *, seed: int = 0) -> tuple[list[Prompt], list[Answer]]:
    return ask(lm, TOKENIZER, given, decoding=DECODING, stop_tokens=STOP, seed=seed)


def test_a_later_turn_holds_the_policys_own_answers_to_those_before(lm):
    given = prompts((), (ASKED[3], ASKED[4]), (ASKED[5],))
    found, answers = asked(lm, given)
    assert [(each.id, each.turn, each.category) for each in found] == [
        ("q0", 1, None), ("q1", 1, "math"), ("q1", 2, "math"), ("q1", 3, "math"), ("q2", 1, None), ("q2", 2, None)
    ]  # fmt: skip
    one, two, three = (each.messages for each in found[1:4])
    assert one == said(ASKED[1])
    assert two == [*one, {"role": "assistant", "content": answers[1].text}, *said(ASKED[3])]
    assert three == [*two, {"role": "assistant", "content": answers[2].text}, *said(ASKED[4])]
    assert answers[1].text != answers[2].text
    for each in found:
        assert each.token_ids == render_prompt(TOKENIZER, each.messages)


def test_single_turns_are_answered_as_without_conversations(lm):
    given = prompts((), (), ())
    found, answers = asked(lm, given)
    assert found == given
    assert answers == generate_answers(
        lm,
        TOKENIZER,
        [each.token_ids for each in given],
        decoding=DECODING,
        categories=[each.category for each in given],
        stop_tokens=STOP,
        seed=0,
    )


def test_the_first_turns_answers_do_not_depend_on_later_ones_and_a_seed_repeats_all(lm):
    alone, several = asked(lm, prompts((), ())), asked(lm, prompts((), (ASKED[3],)))
    assert several[1][:2] == alone[1]
    assert several == asked(lm, prompts((), (ASKED[3],)))
    assert several[1][2] != asked(lm, prompts((), (ASKED[3],)), seed=1)[1][2]


def test_another_turn_or_seed_draws_other_random_numbers():
    """All tokens are equally likely whatever was said, so only the random numbers can tell turns and seeds apart."""
    blank = tiny_model(TASK, seed=0)
    with torch.no_grad():
        blank.get_output_embeddings().weight[:] = 0
    drawn = [answer.token_ids for seed in (0, 1, 4096) for answer in asked(blank, prompts((ASKED[0],)), seed=seed)[1]]
    assert len(set(drawn)) == 6


def words(text: str) -> Answer:
    return Answer(tuple(range(len(text.split()))), text, True, False)


class Watching(Judge):
    """Prefers the longer answer, and notes what it is shown."""

    name = "longer"

    def __init__(self) -> None:
        self.shown: list[tuple[Any, ...]] = []

    def compare(self, pairs: Any) -> Judged:
        self.shown += pairs
        longer = [len(pair.answer) > len(pair.baseline) for pair in pairs]
        comparisons = [Comparison("A>B", "B>A") if won else Comparison("B>A", "A>B") for won in longer]
        return Judged(comparisons)


def test_each_side_is_judged_on_its_own_conversation():
    own = [said("a?"), [*said("a?"), {"role": "assistant", "content": "mine"}, *said("b?")]]
    theirs = [said("a?"), [*said("a?"), {"role": "assistant", "content": "theirs"}, *said("b?")]]
    turns = [Prompt("q", own[0], [1]), Prompt("q", own[1], [1], turn=2)]
    answers, baseline = [words("mine"), words("longer one")], [words("theirs"), words("short")]
    assert side_conversations(turns, baseline) == theirs
    assert side_conversations(turns, answers) == own
    judge = Watching()
    judged = judge_answers(turns, answers, baseline, judge=judge, format_check=None, markers=())
    assert judge.shown == [(own[0], "mine", theirs[0], "theirs"), (own[1], "longer one", theirs[1], "short")]
    assert [comparison.outcome for comparison in judged.comparisons if comparison] == [0.0, 1.0]
    # Two answers, but one prompt: its turns are not told apart as two would be.
    assert (judged.win_rate, judged.judged_prompts) == (0.5, 1)
    assert [(row["prompt_id"], row["turn"], row["prompt"]) for row in judged.rows({})] == [
        ("q", 1, own[0]), ("q", 2, own[1])
    ]  # fmt: skip


def test_a_prompt_of_several_turns_counts_once_in_the_win_rate():
    # Prompt a: a win and a loss, 0.5; prompt b: a win, 1.0. Over answers it would be 2/3.
    win, loss = Comparison("A>B", "B>A"), Comparison("B>A", "A>B")
    assert win_rate([win, loss, win], ["a", "a", "b"]) == 0.75
    assert win_rate([win, None, Comparison(None, None)], ["a", "a", "b"]) == 1.0
