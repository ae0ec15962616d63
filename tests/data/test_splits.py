"""Splits share no prompt, depend on the seed alone, and come as near to the sizes asked for as prompts allow."""

import logging

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data.splits import content_hash, prompt_hash, split_pairs, split_prompts
from slime_ray.errors import InputError


def pair(prompt, answer=0):
    return {
        "prompt": [{"role": "user", "content": f"question {prompt}"}],
        "chosen": [{"role": "assistant", "content": f"good {answer}"}],
        "rejected": [{"role": "assistant", "content": f"bad {answer}"}],
    }


def pairs(groups):
    """A data set whose prompt number i has groups[i] pairs."""
    return Dataset.from_list([pair(prompt, answer) for prompt, n in enumerate(groups) for answer in range(n)])


def prompts_of(dataset):
    return {row["prompt"][0]["content"] for row in dataset}


def sizes(splits):
    return tuple(map(len, splits))


def test_split_sizes_are_exact_when_every_prompt_has_one_pair():
    # 100 held out of 1,000 leaves 900, of which 34 % are 306.
    splits = split_pairs(pairs([1] * 1000), sft_fraction=0.34, held_out_pairs=100, seed=0)
    assert sizes(splits) == (306, 594, 100)


@settings(max_examples=25)
@given(
    groups=st.lists(st.integers(1, 4), min_size=8, max_size=30),
    fraction=st.floats(0, 0.8),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_no_prompt_is_in_two_splits_and_no_pair_is_lost(groups, fraction, seed, data):
    dataset = pairs(groups)
    held_out = data.draw(st.integers(1, len(dataset) // 4))
    try:
        parts = split_pairs(dataset, sft_fraction=fraction, held_out_pairs=held_out, seed=seed)
    except InputError:
        return
    seen = [prompt for part in parts for prompt in prompts_of(part)]
    assert len(seen) == len(set(seen))
    rows = sorted(map(str, (row for part in parts for row in part)))
    assert rows == sorted(map(str, dataset))
    # With groups of at most 4 a size can miss its target by 2 at most: nearer than that, a group would be added or not.
    assert abs(len(parts[2]) - held_out) <= 2


@settings(max_examples=10)
@given(order=st.permutations(range(12)), seed=st.integers(0, 3))
def test_splits_do_not_depend_on_the_order_of_rows(order, seed):
    dataset = pairs([1, 2, 1, 3, 1, 1, 2, 1])
    expected = split_pairs(dataset, sft_fraction=0.4, held_out_pairs=2, seed=seed)
    shuffled = split_pairs(dataset.select(order), sft_fraction=0.4, held_out_pairs=2, seed=seed)
    assert [part.to_list() for part in shuffled] == [part.to_list() for part in expected]


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    dataset = pairs([1] * 50)
    first, again, other = (
        prompts_of(split_pairs(dataset, sft_fraction=0.5, held_out_pairs=10, seed=seed)[2]) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_no_sft_fraction_means_no_sft_pairs():
    assert sizes(split_pairs(pairs([1] * 10), sft_fraction=0.0, held_out_pairs=3, seed=0)) == (0, 7, 3)


def test_a_small_sft_fraction_still_gives_one_pair():
    assert sizes(split_pairs(pairs([1] * 10), sft_fraction=0.01, held_out_pairs=3, seed=0)) == (1, 6, 3)


@pytest.mark.parametrize(
    ("groups", "fraction", "held_out", "message"),
    [
        ([1] * 200, 0.34, 1000, "200 pairs, too few to hold out 1000.*at most 198; 40 would be a fifth"),
        ([1, 1], 0.34, 1, "2 pairs, too few"),
        ([], 0.0, 1, "0 pairs, too few"),
        ([20], 0.34, 5, "20 pairs with 1 different prompts leave no pair for held-out"),
        ([1] * 10, 1.0, 2, "no pair for preference training"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(groups, fraction, held_out, message):
    dataset = pairs(groups) if groups else pairs([1]).select([])
    with pytest.raises(InputError, match=message):
        split_pairs(dataset, sft_fraction=fraction, held_out_pairs=held_out, seed=0)


def test_prompt_sets_are_disjoint_unique_and_of_the_sizes_asked_for():
    splits = split_prompts(pairs([2] * 100), selection=20, report=50, seed=0)
    selection, report = ({prompt_hash(prompt) for prompt in splits[name]} for name in ("selection", "report"))
    assert (len(splits["selection"]), len(splits["report"])) == (20, 50)
    assert (len(selection), len(report)) == (20, 50)
    assert not selection & report


def test_too_few_prompts_shrink_both_sets_in_proportion_and_say_so(caplog):
    # 30 prompts for 256 + 512 asked for: a third and two thirds of them.
    with caplog.at_level(logging.WARNING):
        splits = split_prompts(pairs([1] * 30), selection=256, report=512, seed=0)
    assert (len(splits["selection"]), len(splits["report"])) == (10, 20)
    assert (
        "10 serve for selection (256 asked), 20 for reports (512 asked). Set evaluation.selection_prompts"
        in caplog.text
    )


def test_two_prompts_are_enough_and_one_is_not():
    splits = split_prompts(pairs([1, 1]), selection=1, report=1000, seed=0)
    assert (len(splits["selection"]), len(splits["report"])) == (1, 1)
    with pytest.raises(InputError, match="1 different prompts"):
        split_prompts(pairs([5]), selection=1, report=1, seed=0)


def test_prompt_sets_do_not_depend_on_the_order_of_rows():
    dataset = pairs([1, 2, 3, 1, 2])
    expected = split_prompts(dataset, selection=2, report=2, seed=4)
    assert split_prompts(dataset.select(range(8, -1, -1)), selection=2, report=2, seed=4) == expected


def test_content_hash_is_sha256_of_canonical_json_lines():
    # printf '{"a":1,"b":["x"]}\n{"a":2,"b":[]}\n' | sha256sum
    dataset = Dataset.from_list([{"b": ["x"], "a": 1}, {"b": [], "a": 2}])
    assert content_hash(dataset) == "e8c803eb69dd8b4b"
    assert content_hash(dataset.select([1, 0])) != content_hash(dataset)
    assert content_hash(dataset.select([0])) != content_hash(dataset)


def test_prompt_hash_ignores_neither_role_nor_content():
    messages = [{"role": "user", "content": "a"}]
    assert prompt_hash(messages) == prompt_hash([{"content": "a", "role": "user"}])
    others = [{"role": "system", "content": "a"}], [{"role": "user", "content": "b"}], messages * 2
    assert len({prompt_hash(messages), *map(prompt_hash, others)}) == 4
