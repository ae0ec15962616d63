"""Text that a chat template leaves out or rewrites is found, counted and told, in training and in evaluation."""

import pytest
from datasets import Dataset

from slime_ray.data.lost_text import lost_texts
from slime_ray.data.tokenizing import LOST, tokenize_pairs, tokenize_prompts
from slime_ray.errors import InputError

from .chat import FAMILIES, SHORT, TALK, make, pair, say, simple

THOUGHT = "<think>reason a while</think>the answer"


def templated(turn, *, before="", prompt=""):
    """A tokenizer whose template writes every turn as `turn` does, a Jinja expression over `m`."""
    tokenizer = simple("unasked")
    tokenizer.chat_template = (
        f"{before}{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' + ({turn}) + '<|im_end|>\\n' }}}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}{prompt}"
    )
    return tokenizer


def changed(report):
    return {group.reason: (group.rows, group.example) for group in report.changed}


CUT_THOUGHT = "m.content.split('</think>')[-1]"
UPPER = "m.content | upper if m.content | length > 9 else m.content"
SHORTENED = "m.content[:30]"
NO_SYSTEM = "'' if m.role == 'system' else m.content"


@pytest.mark.parametrize(
    ("turn", "row", "reason", "example"),
    [
        (CUT_THOUGHT, pair("Hi", THOUGHT, "no"), f"chosen completions {LOST}", THOUGHT),
        (CUT_THOUGHT, pair("Hi", "yes", THOUGHT), f"rejected completions {LOST}", THOUGHT),
        (UPPER, pair("Hi", "a long answer", "no"), f"chosen completions {LOST}", "a long answer"),
        (SHORTENED, pair("Hi", "x" * 30 + "this is cut off", "no"), f"chosen completions {LOST}", "this is cut off"),
        (NO_SYSTEM, pair(TALK), f"system turns of prompts {LOST}", "Be kind."),
    ],
    ids=["thought", "rejected thought", "upper case", "end", "system turn"],
)
def test_text_that_a_template_does_not_write_is_counted_and_refused_by_strict(turn, row, reason, example, caplog):
    rows = Dataset.from_list([pair(), row])
    tokenized = tokenize_pairs(rows, templated(turn), max_tokens=500)
    assert changed(tokenized.truncation) == {reason: (("row 1",), example)}
    assert tokenized.truncation.as_dict()["rows_with_lost_text"] == 1
    assert reason in caplog.text
    with pytest.raises(InputError) as caught:
        tokenize_pairs(rows, templated(turn), max_tokens=500, strict=True)
    assert f"1 {reason} (row 1; the first: {example!r})" in str(caught.value)
    assert "model.chat_template" in str(caught.value)
    assert "max_tokens" not in str(caught.value)


def test_prompts_to_answer_are_looked_at_as_those_of_pairs_are():
    prompts = [SHORT, TALK]
    _, report = tokenize_prompts(prompts, templated(NO_SYSTEM))
    assert changed(report) == {f"system turns of prompts {LOST}": (("row 1",), "Be kind.")}
    with pytest.raises(InputError, match=r"Of 2 questions some .*row 1; the first: 'Be kind\.'"):
        tokenize_prompts(prompts, templated(NO_SYSTEM), what="questions", strict=True)


def test_sft_examples_are_looked_at_in_their_chosen_completion_alone():
    rows = Dataset.from_list([pair("Hi", THOUGHT, "no"), pair("Hi", "yes", THOUGHT)])
    assert changed(tokenize_pairs(rows, templated(CUT_THOUGHT), max_tokens=500, rejected=False).truncation) == {
        f"chosen completions {LOST}": (("row 0",), THOUGHT)
    }


@pytest.mark.parametrize("family", [*FAMILIES, "inst", "unasked", "zephyr"])
def test_templates_that_write_everything_lose_nothing(family):
    tokenizer = make(family) if family in FAMILIES else simple(family)
    rows = [pair(), pair(TALK[1:], " It is 4.\n", "a\n\n b"), pair("<|im_end|> and \U000f5a1e", "<eos>", "b")]
    tokenized = tokenize_pairs(Dataset.from_list(rows), tokenizer, max_tokens=500)
    assert tokenized.truncation.rows_with_lost_text == 0
    assert len(tokenized.table) == 3


def test_qwen3_keeps_the_thought_of_the_answer_and_drops_that_of_an_earlier_turn():
    earlier = [say("user", "Hi"), say("assistant", THOUGHT), say("user", "And?")]
    rows = Dataset.from_list([pair("Hi", THOUGHT, "no"), pair(earlier)])
    assert changed(tokenize_pairs(rows, make("qwen3"), max_tokens=500).truncation) == {
        f"assistant turns of prompts {LOST}": (("row 1",), THOUGHT)
    }


@pytest.mark.parametrize(
    ("messages", "rendered", "lost"),
    [
        ([say("user", "yes"), say("assistant", "yes"), say("user", "no")], "U yes A U no", ["assistant"]),
        ([say("system", "S"), say("user", "a"), say("user", "b")], "a S b", []),
        ([say("user", "no"), say("assistant", "no doubt")], "no doubt", ["user"]),
        ([say("user", " a\n b ")], "[a b]", []),
        ([say("user", "")], "", []),
    ],
    ids=["the same twice", "another order", "within another", "whitespace", "empty"],
)
def test_each_text_has_a_place_of_its_own(messages, rendered, lost):
    assert [each.role for each in lost_texts(messages, rendered)] == lost


# Prompts that a template writes otherwise


LAST_USER = (  # as Mistral 7B Instruct v0.3: the system turn goes into the last message, if that is the user's
    "{% if messages[0].role == 'system' %}{% set sys, rest = messages[0].content, messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and sys is defined %}{{ sys + ' ' }}{% endif %}{{ '[I]' + m.content + '[/I]' }}"
    "{% else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
NUMBERED = (  # earlier turns are counted, so that they change once another follows
    "{% for m in messages %}{{ messages | length if loop.first and messages | length > 2 }}"
    "{{ m.content + '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (LAST_USER, [say("system", "Be terse."), say("user", "Odd one?")]),
        (NUMBERED, [*TALK[1:-1], say("user", "Odd one?")]),
    ],
)
def test_a_row_whose_prompt_is_written_otherwise_is_dropped_alone(template, prompt):
    tokenizer = simple("unasked")
    tokenizer.chat_template = template
    odd = pair(prompt)
    tokenized = tokenize_pairs(Dataset.from_list([pair(), odd, pair("What?")]), tokenizer, max_tokens=500)
    assert len(tokenized.table) == 2
    (group,) = tokenized.truncation.dropped
    assert (group.count, group.rows, group.example) == (1, ("row 1",), "Odd one?")
    assert "otherwise once an answer follows" in group.reason
    with pytest.raises(InputError, match=r"row 1; the first: 'Odd one\?'"):
        tokenize_pairs(Dataset.from_list([pair(), odd]), tokenizer, max_tokens=500, strict=True)
    with pytest.raises(InputError, match=r"None of the 2 pairs is left: 2 .*\(row 0, row 1; the first: 'Odd one\?'\)"):
        tokenize_pairs(Dataset.from_list([odd, odd]), tokenizer, max_tokens=500)
