"""A file of pairs is read where it lies: each pair as it was tokenized, and nothing else in memory."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from slime_ray.data.pairs import ID_COLUMNS, PairFile, TokenPair, write_pairs
from slime_ray.data.tokenizing import tokenize_pairs
from slime_ray.errors import InputError

from .chat import pair

Triples = list[tuple[list[int], list[int], list[int]]]

some_ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)


def write(path: Path, triples: Triples, chunk: int = 3) -> Path:
    """A file of pairs, in batches of a few."""
    kind = pa.list_(pa.int32())
    batches = [
        pa.record_batch(
            [pa.array(column, kind) for column in zip(*triples[start : start + chunk], strict=True)], ID_COLUMNS
        )
        for start in range(0, len(triples), chunk)
    ]
    write_pairs(path, pa.Table.from_batches(batches, pa.schema(dict.fromkeys(ID_COLUMNS, kind))))
    return path


@given(triples=st.lists(st.tuples(some_ids, some_ids, some_ids), max_size=8), data=st.data())
def test_pairs_are_read_as_they_were_written(tmp_path_factory, triples, data):
    expected = [TokenPair(*triple) for triple in triples]
    read = PairFile(write(tmp_path_factory.mktemp("pairs") / "some.arrow", triples))
    assert [(list(one.prompt_ids), list(one.chosen_ids), list(one.rejected_ids)) for one in read] == triples
    assert len(read) == len(expected)
    cut = slice(*data.draw(st.tuples(*[st.none() | st.integers(-9, 9)] * 2)))
    assert [one.prompt_ids for one in read[cut]] == [one.prompt_ids for one in expected[cut]]
    if expected:
        assert read[-1].chosen_ids == expected[-1].chosen_ids
    with pytest.raises(IndexError):
        read[len(expected)]


def test_the_longest_pair_is_that_of_the_sums_of_its_parts(tmp_path):
    triples = [([1], [2] * 5, [3]), ([1, 2, 3], [4] * 4, [5] * 4), ([], [1], [])]
    assert PairFile(write(tmp_path / "pairs.arrow", triples)).longest == 11
    assert PairFile(write(tmp_path / "one.arrow", triples[2:])).longest == 1


def test_references_belong_to_their_pairs(tmp_path):
    path = write(tmp_path / "some.arrow", [([1], [2], [3]), ([4], [5], [6])])
    np.savez(tmp_path / "sums.npz", chosen=[-1.5, -2.5], rejected=[-3.5, -4.5])
    read = PairFile(path, tmp_path / "sums.npz")
    assert [(one.reference_chosen, one.reference_rejected) for one in read] == [(-1.5, -3.5), (-2.5, -4.5)]
    assert pickle.loads(pickle.dumps(read))[1] == TokenPair([4], [5], [6], -2.5, -4.5)
    np.savez(tmp_path / "sums.npz", chosen=[-1.5], rejected=[-3.5])
    with pytest.raises(ValueError, match=r"sums.npz is not of the 2 pairs of .*some.arrow"):
        PairFile(path, tmp_path / "sums.npz")


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_file_that_was_cut_short_is_refused_when_it_is_opened(tmp_path, left):
    path = write(tmp_path / "pairs.arrow", [([1, 2], [3], [4, 5])] * 40)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"pairs\.arrow is cut short\. Remove its folder"):
        PairFile(path)


def test_an_open_file_holds_no_tokens_and_a_pickle_only_its_name(tmp_path):
    """Counted by Arrow's own allocator, which has nothing to do with memory that is mapped."""
    path = write(tmp_path / "many.arrow", [(list(range(1000)), [1] * 1000, [2] * 1000)] * 300, chunk=100)
    assert path.stat().st_size > 3_600_000
    before = pa.total_allocated_bytes()
    read = PairFile(path)
    assert read[150].prompt_ids == list(range(1000))
    assert pa.total_allocated_bytes() - before < 20_000
    assert len(pickle.dumps(read)) < 200 + len(str(path))


@pytest.mark.parametrize("family", ["llama3", "gemma3"])
def test_a_file_of_many_batches_has_what_the_tokenizer_makes_of_each_conversation(tokenizers, family, tmp_path):
    """Of the whole conversation at once, by transformers alone."""
    tokenizer = tokenizers[family]
    rows = [pair(f"Hi {number}? " + "go " * (number % 7), f"good {number}", f"bad {number}") for number in range(2100)]
    write_pairs(tmp_path / "pairs.arrow", tokenize_pairs(Dataset.from_list(rows), tokenizer, max_tokens=500).table)
    read = PairFile(tmp_path / "pairs.arrow")
    assert len(read) == len(rows)
    for number in (*range(0, 2100, 97), 999, 1000, 1999, 2000, 2099):
        for side, ids in (("chosen", read[number].chosen_ids), ("rejected", read[number].rejected_ids)):
            talk = [*rows[number]["prompt"], *rows[number][side]]
            whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
            spelled = [*read[number].prompt_ids, *ids]
            # A template may write a line break behind the end of a turn.
            assert whole[: len(spelled)] == spelled
            assert not tokenizer.decode(whole[len(spelled) :]).strip()
