"""Tokens of whole data sets: limits are kept, and everything that is cut or dropped is counted."""

import logging

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data.pairs import ID_COLUMNS
from slime_ray.data.tokenizing import UNKNOWN, tokenize_pairs, tokenize_prompts, tokenized_hash
from slime_ray.errors import InputError
from tests.rendered import render_pair, render_prompt

from .chat import FAMILIES, SHORT, TALK, pair, say


def spell(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


# Unknown text


def test_rows_with_text_for_which_there_is_only_the_unknown_token_are_counted_and_refused_with_strict(letters, caplog):
    rows = Dataset.from_list([pair("pq", "ab", "c"), pair("pq", "aÄ", "c"), pair("p€", "a", "c")])
    report = tokenize_pairs(rows, letters, max_tokens=20).truncation
    assert [(group.reason, group.rows) for group in report.changed] == [(UNKNOWN, ("row 1", "row 2"))]
    assert UNKNOWN in caplog.text
    _, report = tokenize_prompts([row["prompt"] for row in rows], letters)
    assert [(group.reason, group.rows) for group in report.changed] == [(UNKNOWN, ("row 2",))]
    with pytest.raises(InputError, match=rf"2 {UNKNOWN} \(row 1, row 2.* Change the rows, or set data.strict to false"):
        tokenize_pairs(rows, letters, max_tokens=20, strict=True)


# Limits


def test_a_long_prompt_keeps_its_end_and_a_long_completion_its_start(letters):
    rows = [
        pair("pq", "ab", "c"),  # 3 + 3: fits
        pair("ppppq", "ab", "c"),  # the prompt of 6 keeps 4, then 4 remain
        pair("pq", "abcdef", "h"),  # 3 + 7: chosen keeps 5
        pair("ppppq", "abcd", "habcd"),  # everything is cut
    ]
    tokenized = tokenize_pairs(Dataset.from_list(rows), letters, max_tokens=8, max_prompt_tokens=4)
    spelled = [
        tuple(spell(letters, row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        for row in tokenized.table.to_pylist()
    ]
    assert spelled == [
        ("pq<a>", "ab<eos>", "c<eos>"),
        ("ppq<a>", "ab<eos>", "c<eos>"),
        ("pq<a>", "abcde", "h<eos>"),
        ("ppq<a>", "abcd", "habc"),
    ]
    report = tokenized.truncation
    assert (report.rows_read, report.rows_dropped) == (4, 0)
    told = report.as_dict()
    assert (told["prompts_truncated"], told["completions_truncated"]) == (2, 3)
    assert {group.reason: group.rows for group in report.changed} == {
        "prompts cut at their start": ("row 1", "row 3"),
        "chosen completions cut at their end": ("row 2", "row 3"),
        "rejected completions cut at their end": ("row 3",),
    }


def test_a_pair_longer_than_a_row_loses_from_its_longer_completion_first(letters):
    rows = [
        pair("pq", "ab", "c"),  # 3 + 3 + 2 = 8: fits
        pair("pq", "abcdef", "h"),  # 3 + 7 + 2: chosen keeps 5
        pair("pq", "abcdef", "habcdef"),  # 3 + 7 + 8: 7 remain, 3 for each
        pair("pq", "a", "habcdef"),  # 3 + 2 + 8: rejected keeps 5
    ]
    options = {"max_tokens": 100, "row_tokens": 10}
    tokenized = tokenize_pairs(Dataset.from_list(rows), letters, **options)
    spelled = [
        tuple(spell(letters, row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        for row in tokenized.table.to_pylist()
    ]
    assert spelled == [
        ("pq<a>", "ab<eos>", "c<eos>"),
        ("pq<a>", "abcde", "h<eos>"),
        ("pq<a>", "abc", "hab"),
        ("pq<a>", "a<eos>", "habcd"),
    ]
    assert tokenized.truncation.as_dict()["completions_truncated"] == 4
    with pytest.raises(InputError, match="Of 4 pairs some do not fit"):
        tokenize_pairs(Dataset.from_list(rows), letters, strict=True, **options)


def test_a_row_smaller_than_a_prompt_is_refused(letters):
    rows = Dataset.from_list([pair("pppppp", "a", "b")])
    with pytest.raises(InputError, match=r"data.row_tokens is 8, but a prompt has 7 tokens.* Raise data.row_tokens"):
        tokenize_pairs(rows, letters, max_tokens=100, row_tokens=8)
    assert len(tokenize_pairs(rows, letters, max_tokens=100, row_tokens=11).table) == 1


def test_pairs_that_limits_make_useless_are_dropped_and_counted(letters, caplog):
    rows = [
        pair("pq", "a", "b"),
        pair("ppppppp", "a", "b"),  # a prompt of 8 leaves no room
        pair("pq", "abcdea", "abcdeb"),  # 5 remain: both are abcde
        pair("pq", "a", "a"),  # the same from the start
        pair("pp", "b", "a"),
    ]
    with caplog.at_level(logging.WARNING):
        tokenized = tokenize_pairs(Dataset.from_list(rows), letters, max_tokens=8)
    assert len(tokenized.table) == 2
    assert {group.reason: group.rows for group in tokenized.truncation.dropped} == {
        "prompt leaves no room for a completion within data.max_tokens": ("row 1",),
        "chosen and rejected have the same tokens once cut": ("row 2",),
        "chosen and rejected have the same tokens": ("row 3",),
    }
    assert (
        "Of 5 pairs, dropped: 1 prompt leaves no room for a completion within data.max_tokens (row 1; the first: 'ppppppp')"
        in caplog.text
    )


def test_pairs_that_the_template_refuses_are_dropped_with_its_words(tokenizers):
    odd = [say("user", "a"), say("user", "b")]
    several = pair() | {"chosen": [say("assistant", "a"), say("assistant", "b")]}
    tokenized = tokenize_pairs(Dataset.from_list([pair(), pair(odd), several]), tokenizers["gemma3"], max_tokens=100)
    assert len(tokenized.table) == 1
    assert {group.reason: group.rows for group in tokenized.truncation.dropped} == {
        "refused by the chat template: Conversation roles must alternate user/assistant/user/assistant/...": ("row 1",),
        "several assistant messages in a completion": ("row 2",),
    }


def test_strict_tokenizing_refuses_what_does_not_fit_with_counts_and_rows(letters):
    rows = Dataset.from_list([pair("pq", "a", "b"), pair("ppppppp", "a", "b"), pair("pq", "abcdef", "b")])
    with pytest.raises(InputError) as caught:
        tokenize_pairs(rows, letters, max_tokens=8, strict=True)
    assert "1 prompt leaves no room for a completion within data.max_tokens (row 1; the first: 'ppppppp')" in str(
        caught.value
    )
    assert "1 chosen completions cut at their end (row 2; the first: 'pq')" in str(caught.value)
    fitting = tokenize_pairs(rows.select([0]), letters, max_tokens=8, strict=True)
    assert len(fitting.table) == 1


def test_rows_keep_their_order_and_number_beyond_one_batch(letters):
    rows = [pair("p" * (1 + number % 5), "a", "b") for number in range(2500)]
    rows[2100] = pair("pppppppp", "a", "b")
    tokenized = tokenize_pairs(Dataset.from_list(rows), letters, max_tokens=8)
    assert tokenized.truncation.dropped[0].rows == ("row 2100",)
    # A prompt of n letters has n + 1 tokens.
    assert pc.list_value_length(tokenized.table["prompt_ids"]).to_pylist() == [
        2 + number % 5 for number in range(2500) if number != 2100
    ]


def test_nothing_left_is_an_input_error_but_nothing_given_is_not(letters):
    with pytest.raises(InputError, match="None of the 1 pairs is left: 1 prompt leaves no room"):
        tokenize_pairs(Dataset.from_list([pair("ppppppp", "a", "b")]), letters, max_tokens=8)
    empty = tokenize_pairs(Dataset.from_list([pair()]).select([]), letters, max_tokens=8).table
    assert len(empty) == 0
    assert empty.column_names == list(ID_COLUMNS)


def test_sft_examples_have_the_ids_of_chosen_completions_and_no_rejected_ones(letters):
    rows = [pair("pq", "ab", "c"), pair("pq", "abcdef", "h"), pair("pq", "a", "a"), pair("ppppppp", "a", "b")]
    tokenized = tokenize_pairs(Dataset.from_list(rows), letters, max_tokens=8, rejected=False)
    assert [spell(letters, ids) for ids in tokenized.table["chosen_ids"].to_pylist()] == ["ab<eos>", "abcde", "a<eos>"]
    assert tokenized.table["rejected_ids"].to_pylist() == [[], [], []]
    assert tokenized.truncation.as_dict() == {
        "rows_read": 4,
        "prompts_truncated": 0,
        "completions_truncated": 1,
        "rows_with_special_text": 0,
        "rows_with_lost_text": 0,
        "rows_dropped": 1,
        "changed": [{"reason": "chosen completions cut at their end", "count": 1, "rows": ["row 1"], "example": "pq"}],
        "dropped": [
            {
                "reason": "prompt leaves no room for a completion within data.max_tokens",
                "count": 1,
                "rows": ["row 3"],
                "example": "ppppppp",
            }
        ],
    }


def test_limits_that_leave_no_room_are_refused(letters):
    with pytest.raises(InputError, match="max_prompt_tokens 8 leaves no room for completions within max_tokens 8"):
        tokenize_pairs(Dataset.from_list([pair()]), letters, max_tokens=8, max_prompt_tokens=8)


@settings(max_examples=40)
@given(
    texts=st.lists(st.tuples(*[st.text("abcdefghpq", min_size=1, max_size=12)] * 3), min_size=1, max_size=6),
    max_tokens=st.integers(3, 20),
    data=st.data(),
)
def test_no_kept_pair_is_longer_than_allowed_and_every_pair_is_accounted_for(letters, texts, max_tokens, data):
    max_prompt_tokens = data.draw(st.none() | st.integers(1, max_tokens - 1))
    rows = [pair(prompt, chosen, rejected) for prompt, chosen, rejected in texts]
    options = {"max_tokens": max_tokens, "max_prompt_tokens": max_prompt_tokens}
    try:
        tokenized = tokenize_pairs(Dataset.from_list(rows), letters, **options)
    except InputError:
        return
    dropped = {row for group in tokenized.truncation.dropped for row in group.rows}
    kept = [number for number in range(len(rows)) if f"row {number}" not in dropped]
    for source, row in zip(kept, tokenized.table.to_pylist(), strict=True):
        full = render_pair(letters, **rows[source])
        assert 1 <= len(row["prompt_ids"]) <= (max_prompt_tokens or max_tokens)
        assert full.prompt_ids[-len(row["prompt_ids"]) :] == row["prompt_ids"]
        assert row["chosen_ids"] != row["rejected_ids"]
        for ids, whole in ((row["chosen_ids"], full.chosen_ids), (row["rejected_ids"], full.rejected_ids)):
            assert ids
            assert whole[: len(ids)] == ids
            assert len(ids) == min(len(whole), max_tokens - len(row["prompt_ids"]))


# Prompts to generate from


def test_prompts_are_cut_as_those_of_pairs_are(letters):
    prompts = [[say("user", "pq")], [say("user", "ppppq")]]
    kept, report = tokenize_prompts(prompts, letters, max_prompt_tokens=4)
    assert [spell(letters, ids) for ids in kept.values()] == ["pq<a>", "ppq<a>"]
    assert report.as_dict()["prompts_truncated"] == 1
    with pytest.raises(InputError, match=r"1 prompts cut at their start \(row 1; the first: 'ppppq'\)"):
        tokenize_prompts(prompts, letters, max_prompt_tokens=4, strict=True)


@pytest.mark.parametrize("limits", [{}, {"max_prompt_tokens": 4}], ids=["dropped", "cut"])
def test_the_first_row_that_is_not_kept_whole_is_quoted_in_one_short_line(letters, limits):
    rows = [pair("pq", "a", "b"), pair("pp\n" + 40 * "pq ", "a", "b"), pair(200 * "q", "a", "b")]
    report = tokenize_pairs(Dataset.from_list(rows), letters, max_tokens=8, **limits).truncation
    group, *_ = report.changed if limits else report.dropped
    assert (group.count, group.example) == (2, "pp " + 19 * "pq ")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_the_ids_they_have_in_pairs(tokenizers, family):
    tokenizer, rows = tokenizers[family], [pair(SHORT), pair(TALK), pair("<|im_end|><end_of_turn>")]
    pairs = tokenize_pairs(Dataset.from_list(rows), tokenizer, max_tokens=1000).table["prompt_ids"].to_pylist()
    prompts, _ = tokenize_prompts([row["prompt"] for row in rows], tokenizer)
    assert list(prompts.values()) == pairs
    assert [render_prompt(tokenizer, row["prompt"]) for row in rows] == pairs


def test_a_prompt_that_the_template_refuses_is_left_out_and_said(tokenizers):
    odd = [say("user", "a"), say("user", "b")]
    kept, report = tokenize_prompts([odd, SHORT], tokenizers["gemma3"])
    assert list(kept) == [1]
    assert report.rows_dropped == 1
    with pytest.raises(InputError, match="roles must alternate"):
        render_prompt(tokenizers["gemma3"], odd)


# Hashes


def test_tokenized_hash_changes_with_any_id_and_any_boundary():
    def rows(*ids):
        return pa.Table.from_pylist([dict(zip(ID_COLUMNS, row, strict=True)) for row in ids])

    first = rows(([1], [2, 3], [4]), ([5], [6], [7]))
    hashes = {
        tokenized_hash(data)
        for data in (
            first,
            rows(([1], [2, 3], [9]), ([5], [6], [7])),
            rows(([1, 2], [3], [4]), ([5], [6], [7])),
            rows(([1], [2], [4]), ([5], [3, 6], [7])),
            first.take([1, 0]),
            first.take([0]),
        )
    }
    assert len(hashes) == 6
    assert tokenized_hash(rows(([5], [6], [7]), ([1], [2, 3], [4])).take([1, 0])) == tokenized_hash(first)


def test_tokenized_hash_tells_templates_apart(tokenizers):
    data = Dataset.from_list([pair(TALK)])
    hashes = {tokenized_hash(tokenize_pairs(data, tokenizers[name], max_tokens=500).table) for name in FAMILIES}
    assert len(hashes) == len(FAMILIES)
