"""Rows: nothing is lost, nothing is computed twice, and every completion token is predicted from the right place."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data.packing import Segment, fill_rows, pack, row_length


@dataclass(frozen=True)
class Ids:
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...] = ()


ids = st.lists(st.integers(1, 60), min_size=1, max_size=9).map(tuple)
some_pairs = st.lists(st.builds(Ids, ids, ids, ids), min_size=1, max_size=6)
some_examples = st.lists(st.builds(Ids, ids, ids), min_size=1, max_size=6)


def test_a_pair_lies_as_prompt_chosen_rejected_and_rejected_continues_the_prompt():
    rows = pack([Ids((1, 2), (3, 4, 5), (6,)), Ids((7,), (8,), (9, 10))])
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert rows.position.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 1, 2]]
    assert rows.segments == (Segment(2, 3, 1), Segment(1, 1, 2))
    # Chosen 3, 4, 5 and 8; rejected 6, 9 and 10. The last prompt token (1; 6) predicts the first of either completion.
    assert rows.targets.tolist() == [3, 4, 5, 8, 6, 9, 10]
    assert rows.predict_at.tolist() == [1, 2, 3, 6, 1, 6, 8]
    assert rows.counts == {"pairs": 2, "chosen_tokens": 4, "rejected_tokens": 3}
    assert rows.real_tokens == 10


@settings(max_examples=80)
@given(pairs=some_pairs | some_examples, shared=st.booleans())
def test_packing_keeps_every_token_and_predicts_every_completion_token(pairs, shared):
    rows = pack(pairs, shared_prompt=shared)
    completions = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    assert rows.targets.tolist() == [token for completion in completions for token in completion]
    prompts = [pair.prompt_ids for pair in pairs] * 2
    written = [
        prompt for prompt, completion in zip(prompts, completions, strict=True) if completion and not shared
    ] or prompts[: len(pairs)]
    assert rows.real_tokens == sum(map(len, written)) + sum(map(len, completions))
    # What stands where a prediction is read is the token before: the prompt's last, or the completion's previous.
    before = rows.input_ids.flatten()[rows.predict_at].tolist()
    expected = [
        (*prompt[-1:], *completion[:-1]) for prompt, completion in zip(prompts, completions, strict=True) if completion
    ]
    assert before == [token for one in expected for token in one]
    assert rows.input_ids.numel() == rows.real_tokens or not shared, "a packed row has no padding"


@settings(max_examples=80)
@given(pairs=some_pairs | some_examples, row_tokens=st.integers(1, 60), shared=st.booleans())
def test_rows_take_every_pair_once_and_keep_to_their_budget(pairs, row_tokens, shared):
    filled = fill_rows(pairs, row_tokens=row_tokens, shared_prompt=shared)
    assert sorted(index for row in filled for index in row) == list(range(len(pairs)))
    for row in filled:
        assert (
            len(row) == 1 or pack([pairs[index] for index in row], shared_prompt=shared).input_ids.numel() <= row_tokens
        )


def test_rows_are_filled_longest_first():
    pairs = [Ids((1,) * n, (1,)) for n in (2, 6, 3, 4, 7)]  # 3, 7, 4, 5 and 8 tokens
    assert [row_length(pair) for pair in pairs] == [3, 7, 4, 5, 8]
    # 8; 7 and then 3; 5 and then 4.
    assert fill_rows(pairs, row_tokens=10) == [[4], [1, 0], [3, 2]]
    assert fill_rows(pairs, row_tokens=1) == [[4], [1], [3], [2], [0]]


def test_an_empty_batch_or_prompt_is_refused():
    with pytest.raises(ValueError, match="pairs is empty"):
        pack([])
    for pair in (Ids((), (1,), (2,)), Ids((1,), (), (2,))):
        with pytest.raises(ValueError, match="pair 0 has an empty prompt or an empty chosen completion"):
            pack([pair])
