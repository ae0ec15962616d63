"""Ids and positions that the tokens of an experiment ask for, refused before anything is trained."""

from pathlib import Path

import pyarrow as pa
import pytest

from slime_ray.data.pairs import write_pairs
from slime_ray.data.tasks import load_task
from slime_ray.data.tokenizing import render_prompts
from slime_ray.errors import InputError
from slime_ray.evaluation.conversations import Prompt
from slime_ray.model.limits import Limits
from slime_ray.model.tiny import tiny_tokenizer
from slime_ray.training.checks import check_reach
from slime_ray.training.prompts import PROMPT_SETS, write_prompts

TOKENIZER = tiny_tokenizer(load_task("arithmetic"))
IDS = len(TOKENIZER)
SAID = [{"role": "user", "content": "1 + 1"}]


def tokens_of(folder: Path, *, pairs: list[tuple[list[int], list[int], list[int]]], prompts: list[Prompt]) -> Path:
    """A folder as the tokens stage leaves it."""
    for name in ("train", "held_out"):
        columns = zip(*pairs, strict=True)
        table = pa.table(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, columns), strict=True)))
        write_pairs(folder / f"{name}.arrow", table)
    sft = {"prompt_ids": [[5, 6]], "chosen_ids": [[7]], "rejected_ids": pa.array([[]], pa.list_(pa.int64()))}
    write_pairs(folder / "sft.arrow", pa.table(sft))
    for name in PROMPT_SETS:
        write_prompts(folder / f"prompts-{name}.parquet", prompts)
    TOKENIZER.save_pretrained(folder / "tokenizer")
    return folder


ONE = [Prompt("a", SAID, [5, 6, 7])]
PAIRS = [([5, 6], [7], [8, 9]), ([5], [6, 7, 8, 9], [7])]


def test_what_fits_exactly_passes(tmp_path):
    tokens = tokens_of(tmp_path, pairs=PAIRS, prompts=ONE)
    check_reach(Limits(10, 5, "the model's 5 positions"), tokens, max_new_tokens=2)
    check_reach(Limits(10), tokens, max_new_tokens=10_000)


@pytest.mark.parametrize(
    ("limits", "answer", "message"),
    [
        (Limits(9), 1, r"train row 1: the token '.+' has id 9, and the model has 9 ids, 0 to 8\. Use the tokenizer"),
        (
            Limits(10, 4, "the model's 4 positions"),
            1,
            r"train row 1 \(chosen\) has 5 tokens, more than the model's 4 positions\. Set data.max_tokens to 4 or less",
        ),
        (
            Limits(10, 5, "the model's 5 positions"),
            3,
            r"selection prompt 0 with an answer of 3 tokens has 6 tokens, more than the model's 5 .*max_new_tokens",
        ),
    ],
    ids=["ids", "pairs", "answers"],
)
def test_what_does_not_is_named_with_its_place_and_the_way_out(tmp_path, limits, answer, message):
    with pytest.raises(InputError, match=message):
        check_reach(limits, tokens_of(tmp_path, pairs=PAIRS, prompts=ONE), max_new_tokens=answer)


def test_an_id_of_a_prompt_is_looked_at_as_well(tmp_path):
    prompts = [Prompt("a", SAID, [5]), Prompt("b", SAID, [IDS + 3])]
    with pytest.raises(InputError, match=rf"selection prompt 1: a token has id {IDS + 3}"):
        check_reach(Limits(IDS), tokens_of(tmp_path, pairs=PAIRS, prompts=prompts), max_new_tokens=1)


def test_a_later_turn_follows_on_the_longest_answers_before_it(tmp_path):
    (first,) = render_prompts(TOKENIZER, [SAID])
    later = [{"role": "assistant", "content": "?"}, {"role": "user", "content": "2 + 2"}]
    (second,) = render_prompts(TOKENIZER, [[*SAID, *later]])
    tokens = tokens_of(tmp_path, pairs=PAIRS, prompts=[Prompt("a", SAID, first, later=["2 + 2"])])
    most = len(second) + 2 * 6
    check_reach(Limits(IDS, most, "room"), tokens, max_new_tokens=6)
    with pytest.raises(InputError, match=rf"selection prompt 0 with an answer of 6 tokens has {most} tokens"):
        check_reach(Limits(IDS, most - 1, "room"), tokens, max_new_tokens=6)
