"""Judgments that others made: Arena-Hard's games and MT-Bench's ratings, and rows that are refused."""

import pandas as pd
import pytest
from slime_ray.analysis.statistics import arena_hard_score

from slime_ray.evaluation.field_files.judgments import MIRRORED, mt_bench_means, read_judgments, read_ratings
from slime_ray.evaluation.verdicts import POINTS_OF_A, Comparison
from tests.evaluation.test_field_files import FILES, change, refused, rows_of


def test_the_first_game_shows_the_baseline_as_a_and_the_second_the_model():
    # Game 1 "A>B": the baseline, as A, is better. Game 2 "A>>B": the model, as A, is much better.
    scored = read_judgments(FILES / "arena_hard_judgments.jsonl")
    assert scored[0].comparison == Comparison(ab="A>>B", ba="A>B")
    assert scored[0].comparison.outcome == 0.5
    assert scored[0].votes == ["A>>B", "B>A"]
    # `A<<B` is Arena-Hard's other spelling of `B>>A`: the model, as B, is much better. A game that failed is missing.
    assert scored[1].comparison == Comparison(ab=None, ba="B>>A")
    assert scored[1].comparison.outcome == 1.0
    # 3 votes won and 1 lost for coding, 3 won for writing.
    assert arena_hard_score(scored[0].votes + scored[1].votes) == pytest.approx(6 / 7)


def test_older_judgments_have_the_same_order_and_no_baseline():
    (judgment,) = read_judgments(FILES / "older_arena_hard_judgments.jsonl")
    assert (judgment.judge, judgment.baseline, judgment.category) == ("gpt-4-1106-preview", None, None)
    assert judgment.comparison == Comparison(ab=None, ba="B>>A")


@pytest.mark.parametrize("label", ["A", "A>C", "", "a>b", None])
def test_a_score_that_is_no_label_is_missing_never_a_loss(write, label):
    row = rows_of("arena_hard_judgments")[0]
    row["games"][0]["score"] = label
    assert read_judgments(write([row]))[0].comparison == Comparison(ab="A>>B", ba=None)


def test_a_row_of_one_game_is_a_comparison_with_one_order(write):
    row = rows_of("arena_hard_judgments")[0]
    row["games"] = row["games"][:1]
    (prompt,) = read_judgments(write([row]))
    # The baseline as A won: the policy, as B, lost in the only order.
    assert prompt.comparison == Comparison(ab=None, ba="A>B")
    assert prompt.comparison.outcome == 0
    assert arena_hard_score(prompt.votes) == 0


def rating(model, turn, score, question=81):
    about = {"question_id": question, "model": model, "judge": ["gpt-4", "single-v1"], "judgment": ""}
    return about | {"turn": turn, "score": score}


def test_means_of_mt_bench_are_those_that_pandas_gives_as_fastchat_asks_it(write):
    rows = [rating("m", 1, 7), rating("m", 1, 9.5), rating("m", 2, 4, 82), rating("m", 2, -1), rating("n", 1, 10)]
    path = write(rows)
    means = mt_bench_means(read_ratings(path, repeats=True))
    # show_result.py: rows of -1 are dropped; means by model and turn, and by model over both turns.
    frame = pd.read_json(path, lines=True)[["model", "score", "turn"]]
    frame = frame[frame["score"] != -1]
    by_turn, both = frame.groupby(["model", "turn"])["score"].mean(), frame.groupby("model")["score"].mean()
    assert {(model, turn): value for model, own in means.items() for turn, value in own.turns.items()} == dict(by_turn)
    assert {model: own.mean for model, own in means.items()} == pytest.approx(dict(both))
    assert means["m"].missing == 1


def test_a_model_without_any_rating_has_no_mean(write):
    means = mt_bench_means(read_ratings(write([rating("m", 1, -1)])))
    assert (means["m"].turns, means["m"].mean, means["m"].missing) == ({}, None, 1)


def test_repeated_ratings_are_read_on_request_alone(write):
    path = write([rating("m", 1, 7), rating("m", 1, 9)])
    refused(read_ratings, path, ":2: turn 1 of '81' by 'm' stands in")
    assert [one.score for one in read_ratings(path, repeats=True)] == [7, 9]


def test_ratings_of_mt_bench_are_read():
    first, second, none = read_ratings(FILES / "mt_bench_ratings.jsonl")
    assert [(rating.question_id, rating.turn, rating.score) for rating in (first, second)] == [
        ("81", 1, 7.0), ("81", 2, 8.5)
    ]  # fmt: skip
    assert {rating.judge for rating in (first, second, none)} == {"gpt-4"}
    assert none.score is None


def test_a_mirrored_verdict_is_worth_what_the_other_side_loses():
    for label, points in POINTS_OF_A.items():
        assert POINTS_OF_A[str(MIRRORED[label])] == 1 - points
        assert MIRRORED[MIRRORED[label]] == label


@pytest.mark.parametrize(
    ("read", "name", "path", "value", "message"),
    [
        (read_judgments, "arena_hard_judgments", "games", [], r":2: games is \[\]: there must be two games"),
        (read_judgments, "arena_hard_judgments", "games.0.score", 7, r":2: games\.0\.score is 7"),
        (read_judgments, "arena_hard_judgments", "baseline", KeyError, ":2: baseline is missing"),
        (read_ratings, "mt_bench_ratings", "score", "7", r":3: score is \"7\""),
        (read_ratings, "mt_bench_ratings", "turn", 0, ":3: turn is 0"),
        (read_judgments, "arena_hard_judgments", "judge", "other", ":2: the judge is 'other', but 'gpt-4.1'"),
        (read_judgments, "arena_hard_judgments", "model", "other", ":2: the model is 'other', but 'policy'"),
        (read_judgments, "arena_hard_judgments", "category", "hard_prompt", ":2: the baseline is 'gemini"),
        (read_ratings, "mt_bench_ratings", "judge", ["other", "single-v1"], ":3: the judge is 'other'"),
    ],
)
def test_a_wrong_row_is_refused_by_line(write, read, name, path, value, message):
    refused(read, write(change(name, path, value)), message)


def test_a_prompt_that_was_judged_twice_is_refused(write):
    row = rows_of("arena_hard_judgments")[0]
    refused(read_judgments, write([row, row]), ":2: a judgment of '3f1c0a77' stands in")


def test_a_file_of_another_kind_is_told_what_is_wanted():
    refused(
        read_judgments, FILES / "mt_bench_ratings.jsonl", r":1: the keys are question_id, model, .* has the keys uid"
    )
    refused(read_ratings, FILES / "arena_hard_judgments.jsonl", ":1: the keys are uid, .*question_id, model, judge")


# ---------------------------------------------------------------------------------------------------------------------
# Scores of published judgments, values only, as their own scripts count them

# Arena-Hard's data/arena_hard_battles.jsonl of 2024, claude-3-haiku-20240307 as baseline against claude-3-opus-20240229:
# question, verdicts of both games as they stand in judgments, and the rows of votes that were published for them.
BATTLES = {
    16: (("A>B", "A>>B"), "abbb"),
    20: (("A=B", "B>A"), "ta"),
    34: (("B>>A", "A>>B"), "bbbbbb"),
    36: (("B>>A", "B>>A"), "bbbaaa"),
    37: (("B>>A", "B>A"), "bbba"),
    42: (("B>A", "A>B"), "bb"),
    46: (("A>>B", "A>>B"), "aaabbb"),
    49: (("B>A", "B>A"), "ba"),
    52: (("B>A", "A=B"), "bt"),
}


def test_votes_of_judgments_are_those_that_arena_hard_published(write):
    rows = [
        {"question_id": str(question), "model": "opus", "judge": "gpt-4", "games": [{"score": one} for one in verdicts]}
        for question, (verdicts, _) in BATTLES.items()
    ]
    prompts = read_judgments(write(rows))
    for prompt, (_, votes) in zip(prompts, BATTLES.values(), strict=True):
        share = sum({"a": 0.0, "t": 0.5, "b": 1.0}[vote] for vote in votes) / len(votes)
        assert arena_hard_score(prompt.votes) == pytest.approx(share)
    # 22 votes and two ties of 34.
    assert arena_hard_score([vote for prompt in prompts for vote in prompt.votes]) == pytest.approx(23 / 34)


# GPT-4's ratings of mistral-orpo (FastChat's single-v1 prompts, the repository alvarobartt/FastChat), which were run
# twice: question, turn, both scores. The last lacks one.
RATINGS = [
    *[(81, 1, 8, 10), (81, 2, 1, 8), (101, 1, 7, 10), (101, 2, 2, 3), (131, 1, 10, 10), (131, 2, 1, 10)],
    *[(143, 1, 8, 8.5), (143, 2, 6, 2), (160, 1, 9.5, 10), (160, 2, 8, 10), (158, 1, 9, 10), (158, 2, -1, 10)],
]


def test_means_of_ratings_run_twice_are_those_of_fastchats_script(write):
    about = {"model": "mistral-orpo", "judge": ["gpt-4", "single-v1"], "judgment": ""}
    rows = [
        about | {"question_id": question, "turn": turn, "score": score}
        for question, turn, *both in RATINGS
        for score in both
    ]
    means = mt_bench_means(read_ratings(write(rows), repeats=True))["mistral-orpo"]
    # show_result.py of that repository printed 9.166667 and 5.545455 for the turns, 7.434783 for both.
    assert means.turns == pytest.approx({1: 9.166667, 2: 5.545455}, abs=1e-6)
    assert means.mean == pytest.approx(7.434783, abs=1e-6)
    assert means.missing == 1
