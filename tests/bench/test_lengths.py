"""Lengths from files and distributions, and the pairs of a round."""

import json
import random
from pathlib import Path

import pytest

from slime_ray.bench.lengths import (
    Lengths,
    cut,
    draw_workload,
    find_source,
    from_file,
    read_lengths,
    sequence_length,
)
from slime_ray.errors import InputError


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_words_and_marks_are_counted(tmp_path):
    file = written(
        tmp_path / "pairs.jsonl",
        {
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why, exactly?"}],
            "chosen": [{"role": "assistant", "content": "Because it's 42."}],
            "rejected": "No",
        },
        "",
    )
    # Be kind . | Why , exactly ? | Because it ' s 42 . | No
    assert read_lengths(file) == [Lengths(7, 6, 1)]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        {"prompt": "a", "chosen": "b"},
        {"prompt": 3, "chosen": "b", "rejected": "c"},
        {"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": " ", "rejected": "c"},
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, line):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(InputError, match=r":2: not a JSON object with prompt, chosen and rejected, each a text"):
        read_lengths(written(tmp_path / "pairs.jsonl", good, line))


def test_an_unknown_name_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="--lengths nowhere: neither a file nor one of ultrafeedback, longest"):
        find_source("nowhere")
    with pytest.raises(InputError, match="holds no pairs"):
        find_source(str(written(tmp_path / "empty.jsonl")))


def test_long_pairs_are_cut_and_all_are_shrunk():
    assert cut(Lengths(3000, 900, 3000), 1) == Lengths(1024, 900, 1024)
    assert cut(Lengths(100, 201, 1), 4) == Lengths(25, 50, 1)


def test_both_orders_hold_the_same_pairs_and_the_sorted_one_pads_less():
    workload = draw_workload(find_source("ultrafeedback"), pairs=8, steps=4, vocabulary=50, shrink=4, seed=0)
    assert [len(step) for step in workload.drawn] == [len(step) for step in workload.bucketed] == [8] * 4
    bucketed = [pair for step in workload.bucketed for pair in step]
    assert sorted(workload.pairs, key=repr) == sorted(bucketed, key=repr)
    assert workload.real_tokens == sum(sum(pair.lengths) for pair in bucketed)

    def padded(steps) -> int:
        return sum(2 * len(step) * max(sequence_length(pair.lengths) for pair in step) for step in steps)

    assert padded(workload.bucketed) < 0.8 * padded(workload.drawn)
    assert all(0 < token < 50 for pair in bucketed for token in pair.prompt_ids)


def test_a_workload_follows_from_its_seed():
    def draw(seed: int):
        return draw_workload(find_source("ultrafeedback"), pairs=4, steps=3, vocabulary=50, shrink=8, seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_short_file_is_drawn_from_again_and_a_long_one_once():
    few = [Lengths(1, 1, 1), Lengths(2, 2, 2)]
    assert len(from_file(few, 10, random.Random(0))) == 10
    many = [Lengths(n, n, n) for n in range(1, 30)]
    assert len(set(from_file(many, 20, random.Random(0)))) == 20


def test_the_named_distributions_have_their_means():
    drawn = find_source("ultrafeedback")(20_000, random.Random(0))
    prompt, chosen, rejected = (sum(part) / len(drawn) for part in zip(*drawn, strict=True))
    assert prompt == pytest.approx(180, rel=0.05)
    assert chosen == pytest.approx(250, rel=0.03)
    assert rejected == pytest.approx(250, rel=0.03)
    assert find_source("longest")(2, random.Random(0)) == [Lengths(1024, 1024, 1024)] * 2
