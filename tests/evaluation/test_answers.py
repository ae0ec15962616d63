"""Verdicts, broken answers and the rows that are written of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.errors import InputError
from slime_ray.evaluation.answers import judge_answers
from slime_ray.evaluation.conversations import Prompt
from slime_ray.evaluation.generate import Answer
from slime_ray.evaluation.judges import ExactJudge, load_scorer
from slime_ray.evaluation.stability import broken_reason, sequence_repetition
from slime_ray.evaluation.verdicts import POINTS_OF_A, Comparison, win_rate


def answer(text: str, *, stopped: bool = True, leaked: bool = False) -> Answer:
    return Answer(tuple(range(len(text.split()))), text, stopped, leaked)


def length_score(prompt: str, text: str) -> float:
    return len(text)


PROMPTS = [Prompt(f"p{n}", [{"role": "user", "content": f"question {n}"}], [n + 1]) for n in range(3)]


def test_outcomes_and_parts_are_those_of_the_answers():
    policy = [answer("longer one"), answer("same"), answer("x")]
    baseline = [answer("short"), answer("same"), answer("much longer", stopped=False)]
    judged = judge_answers(
        PROMPTS, policy, baseline, judge=ExactJudge(length_score), format_check=lambda q, a: a != "x", markers=()
    )
    # A win, a tie, a loss.
    assert [c.outcome for c in judged.comparisons] == [1.0, 0.5, 0.0]
    assert judged.win_rate == 0.5
    assert judged.judged_prompts == 3
    assert judged.broken == [None, None, "format"]
    assert judged.baseline_broken == [None, None, "no_stop"]
    assert judged.broken_outputs == 0
    assert judged.format_valid == pytest.approx(2 / 3)
    row = judged.rows({"trial_id": "arm-x-s0"})[2]
    assert (row["trial_id"], row["prompt_id"], row["verdict_ab"], row["verdict_ba"]) == ("arm-x-s0", "p2", "B>A", "A>B")
    assert (row["score"], row["baseline_score"], row["broken_reason"]) == (1.0, 11.0, "format")


def test_without_a_judge_nothing_is_won_or_lost():
    answers = [answer("a"), answer("b"), answer("")]
    judged = judge_answers(PROMPTS, answers, answers, judge=None, format_check=None, markers=())
    assert judged.win_rate is None
    assert judged.judged_prompts == 0
    assert judged.format_valid is None
    assert judged.rows({})[0]["outcome"] is None


@pytest.mark.parametrize(
    ("given_answer", "reason"),
    [
        (answer("fine answer"), None),
        (answer("   "), "empty"),
        (answer("never ends", stopped=False), "no_stop"),
        # Twelve equal tokens: nine 4-grams, one of them unique, so seq-rep-4 = 8/9.
        (Answer((7,) * 12, "hi " * 12, True, False), "repetition"),
        (answer("leaks", leaked=True), "leaked_tokens"),
        (answer("leaks <|end|> text"), "leaked_tokens"),
        (answer("```python\nx = 1"), "open_fence"),
        (answer("```python\nx = 1\n```"), None),
    ],
)
def test_each_kind_of_broken_answer_is_named(given_answer, reason):
    assert broken_reason(given_answer, markers=["<|end|>"]) == reason


def test_a_failed_format_check_is_the_last_reason():
    assert broken_reason(answer("text"), format_ok=False) == "format"
    assert broken_reason(answer("text", stopped=False), format_ok=False) == "no_stop"


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repetition_is_a_share_and_zero_without_repeats(ids):
    assert 0 <= sequence_repetition(ids) < 1
    assert sequence_repetition(list(range(len(ids)))) == 0


labels = st.sampled_from([*POINTS_OF_A, None])


@given(st.lists(st.tuples(labels, labels), min_size=1))
def test_swapping_the_sides_turns_a_win_rate_into_its_complement(verdicts):
    rate = win_rate([Comparison(ab, ba) for ab, ba in verdicts])
    swapped = win_rate([Comparison(ba, ab) for ab, ba in verdicts])
    assert (rate is None) == (swapped is None)
    if rate is not None and swapped is not None:
        assert rate + swapped == pytest.approx(1)


def test_one_invalid_order_leaves_the_other_to_count():
    assert Comparison("A>B", None).outcome == 1.0
    assert Comparison(None, None).outcome is None
    assert win_rate([Comparison(None, None)]) is None


def test_a_scorer_is_imported_by_name_and_a_wrong_name_is_explained():
    assert load_scorer("operator:eq")("a", "a") is True
    for place in ("operator", "operator:absent", "no_such_module:f", "math:pi"):
        with pytest.raises(InputError, match=r"package\.module:function"):
            load_scorer(place)


@pytest.mark.parametrize("marker", ["$ERROR$", " $ERROR$\n"])
def test_an_answer_that_failed_on_either_side_is_not_judged_and_counted_apart(marker, caplog):
    asked = []

    def score(prompt, text):
        asked.append(text)
        return len(text)

    policy, baseline = [answer(marker), answer("long"), answer("long")], [answer("x"), answer(marker), answer("x")]
    with caplog.at_level("INFO", logger="slime_ray"):
        judged = judge_answers(PROMPTS, policy, baseline, judge=ExactJudge(score), format_check=None, markers=())
    nothing = Comparison(None, None)
    assert judged.comparisons == [nothing, nothing, Comparison("A>B", "B>A", 4.0, 1.0)]
    assert asked == ["long", "x"]
    assert (judged.win_rate, judged.judged_prompts) == (1.0, 1)
    assert judged.broken == ["failed_generation", None, None]
    assert judged.baseline_broken == [None, "failed_generation", None]
    assert (judged.summary.failed, judged.summary.empty) == (2, 0)
    said = "2 comparisons were not judged, since an answer is $ERROR$, a failed generation"
    assert said in judged.summary.sentence
    assert said in caplog.text
    rows = judged.rows({})
    assert [(row["verdict_ab"], row["score"], row["outcome"]) for row in rows[:2]] == [(None, None, None)] * 2


def test_an_answer_after_a_failed_one_of_its_conversation_is_not_judged():
    talk = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "$ERROR$"},
        {"role": "user", "content": "r"},
    ]
    turns = [Prompt("p", talk[:1], [1]), Prompt("p", talk, [1], turn=2)]
    policy = [answer("$ERROR$"), answer("fine")]
    baseline = [answer("a"), answer("b")]
    judged = judge_answers(turns, policy, baseline, judge=ExactJudge(length_score), format_check=None, markers=())
    assert judged.win_rate is None
    assert judged.summary.failed == 2


def test_an_answer_that_only_mentions_the_marker_is_an_answer():
    policy = [answer("it prints $ERROR$")] * 3
    judged = judge_answers(
        PROMPTS, policy, [answer("x")] * 3, judge=ExactJudge(length_score), format_check=None, markers=()
    )
    assert judged.win_rate == 1.0
    assert judged.summary.complete


def test_empty_answers_are_judged_as_they_are_and_counted():
    policy, baseline = [answer(""), answer("a"), answer(" \n")], [answer("x"), answer("b"), answer("")]
    judged = judge_answers(PROMPTS, policy, baseline, judge=ExactJudge(length_score), format_check=None, markers=())
    assert [one.outcome for one in judged.comparisons] == [0.0, 0.5, 1.0]
    assert (judged.summary.empty, judged.summary.complete) == (2, False)
    assert "2 comparisons have an empty answer, judged as it is" in judged.summary.sentence


def test_a_failed_answer_beyond_those_that_are_judged_counts_nothing():
    policy = [answer("a"), answer("$ERROR$"), answer("$ERROR$")]
    judged = judge_answers(
        PROMPTS, policy, policy, judge=ExactJudge(length_score), format_check=None, markers=(), first=2
    )
    assert judged.summary.failed == 1
    assert judged.comparisons == [Comparison("A=B", "A=B", 1.0, 1.0), Comparison(None, None), None]
