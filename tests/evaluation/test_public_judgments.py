"""Scores of published judgments: a few of Arena-Hard's and of MT-Bench's, values only, as their own scripts count them."""

import json
from pathlib import Path
from typing import Any

import pytest
from slime_ray.analysis.statistics import arena_hard_score

from slime_ray.evaluation.field_files.judgments import mt_bench_means, read_judgments, read_ratings


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of these rows."""
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


def test_votes_of_judgments_are_those_that_arena_hard_published(tmp_path):
    rows = [
        {"question_id": str(question), "model": "opus", "judge": "gpt-4", "games": [{"score": one} for one in verdicts]}
        for question, (verdicts, _) in BATTLES.items()
    ]
    prompts = read_judgments(written(tmp_path, rows))
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


def test_means_of_ratings_run_twice_are_those_of_fastchats_script(tmp_path):
    about = {"model": "mistral-orpo", "judge": ["gpt-4", "single-v1"], "judgment": ""}
    rows = [
        about | {"question_id": question, "turn": turn, "score": score}
        for question, turn, *both in RATINGS
        for score in both
    ]
    means = mt_bench_means(read_ratings(written(tmp_path, rows), repeats=True))["mistral-orpo"]
    # show_result.py of that repository printed 9.166667 and 5.545455 for the turns, 7.434783 for both.
    assert means.turns == pytest.approx({1: 9.166667, 2: 5.545455}, abs=1e-6)
    assert means.mean == pytest.approx(7.434783, abs=1e-6)
    assert means.missing == 1
