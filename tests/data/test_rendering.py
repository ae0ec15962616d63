"""Token ids of pairs: spans follow from the template's construction, whatever the template."""

import hashlib

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data import chat_template
from slime_ray.data.chat_template import stop_token_ids
from slime_ray.data.template_text import resolve_chat_template, template_hash
from slime_ray.data.tokenizing import tokenize_pairs
from slime_ray.errors import InputError
from tests.rendered import render_pair, render_prompt

from .chat import END, FAMILIES, SHORT, TALK, TEMPLATES, pair, say, sentencepiece_like, simple

LLAMA3_HEAD = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)


def llama3_turn(role, text):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"


# Written by hand from the templates: what a prompt is, and what the completion " It is 4." is.
EXPECTED = {
    ("llama3", "short"): (
        LLAMA3_HEAD + "<|eot_id|>" + llama3_turn("user", "Hi<|eot_id|>") + llama3_turn("assistant", ""),
        "It is 4.<|eot_id|>",
    ),
    ("llama3", "talk"): (
        LLAMA3_HEAD + "Be kind.<|eot_id|>" + llama3_turn("user", "Hi<|eot_id|>")
        + llama3_turn("assistant", "Yes?<|eot_id|>") + llama3_turn("user", "2 + 2?<|eot_id|>")
        + llama3_turn("assistant", ""),
        "It is 4.<|eot_id|>",
    ),
    # Qwen 3 writes an empty thought into the last answer alone; after this prompt, generation has to write it too.
    ("qwen3", "short"): (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n It is 4.<|im_end|>",
    ),
    ("qwen3", "talk"): (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes? <|im_end|>\n<|im_start|>user\n 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n It is 4.<|im_end|>",
    ),
    ("gemma3", "short"): (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "It is 4.<end_of_turn>",
    ),
    ("gemma3", "talk"): (
        "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\n2 + 2?<end_of_turn>\n<start_of_turn>model\n",
        "It is 4.<end_of_turn>",
    ),
    ("chatml", "short"): (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        " It is 4.<|im_end|>",
    ),
    ("chatml", "talk"): (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes? <|im_end|>\n<|im_start|>user\n 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
        " It is 4.<|im_end|>",
    ),
}  # fmt: skip


# Spans


@pytest.mark.parametrize(("family", "kind"), EXPECTED)
def test_prompt_and_completion_are_what_the_template_writes(tokenizers, family, kind):
    tokenizer, (prompt, completion) = tokenizers[family], EXPECTED[family, kind]
    messages = SHORT if kind == "short" else TALK
    rendered = render_pair(tokenizer, **pair(messages, " It is 4.", " bad"))
    assert tokenizer.decode(rendered.prompt_ids) == prompt
    assert tokenizer.decode(rendered.chosen_ids) == completion
    assert rendered.prompt_ids == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert rendered.chosen_ids == tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert render_prompt(tokenizer, messages) == rendered.prompt_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_ends_with_the_end_of_turn_token_and_holds_it_once(tokenizers, family):
    tokenizer = tokenizers[family]
    end = tokenizer.convert_tokens_to_ids(END[family])
    rendered = render_pair(tokenizer, **pair(TALK))
    for ids in (rendered.chosen_ids, rendered.rejected_ids):
        assert ids[-1] == end
        assert ids.count(end) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_tokens_hold_the_end_of_turn_of_a_template_that_is_not_the_models_own(tokenizers, family):
    tokenizer = tokenizers[family]
    own, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END[family])
    assert stop_token_ids(tokenizer) == tuple(sorted([own, end]))


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=30).filter(
    str.strip
)
talks = st.lists(words, min_size=0, max_size=2).map(
    lambda texts: [message for text in texts for message in (say("user", text), say("assistant", text[::-1] or "x"))]
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(before=talks, question=words, chosen=words, rejected=words)
def test_prompt_and_completion_ids_decode_to_the_rendered_conversation(
    tokenizers, family, before, question, chosen, rejected
):
    tokenizer = tokenizers[family]
    prompt = [*before, say("user", question)]
    rendered = render_pair(tokenizer, **pair(prompt, chosen, rejected))
    for ids, answer in ((rendered.chosen_ids, chosen), (rendered.rejected_ids, rejected)):
        conversation = [*prompt, say("assistant", answer)]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        up_to_the_end = text[: text.rindex(END[family]) + len(END[family])]
        assert tokenizer.decode(rendered.prompt_ids + ids) == up_to_the_end


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(st.lists(st.tuples(words, words), min_size=2, max_size=5))
def test_ids_do_not_depend_on_the_other_rows(tokenizers, family, texts):
    tokenizer = tokenizers[family]
    rows = [pair(question, "a" + answer, "b" + answer) for question, answer in texts]
    together = tokenize_pairs(Dataset.from_list(rows), tokenizer, max_tokens=10_000).table.to_pylist()
    for index, row in enumerate(rows):
        alone = render_pair(tokenizer, **row)
        assert together[index]["prompt_ids"] == alone.prompt_ids
        assert together[index]["chosen_ids"] == alone.chosen_ids
        assert together[index]["rejected_ids"] == alone.rejected_ids


# Templates that are less regular


def texts_of(tokenizer, **row):
    rendered = render_pair(tokenizer, **pair(**row))
    return tokenizer.decode(rendered.prompt_ids), tokenizer.decode(rendered.chosen_ids)


def test_a_template_without_a_generation_prompt_has_its_header_in_the_prompt(caplog):
    chat_template._warn.cache_clear()
    for _ in range(2):
        assert texts_of(simple("unasked")) == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            "good<|im_end|>",
        )
    (record,) = caplog.records
    assert "generation prompt is '', but it writes '<|im_start|>assistant\\n'" in record.message


def test_a_generation_prompt_that_says_more_than_the_answers_header_is_cut_to_it(caplog):
    chat_template._warn.cache_clear()
    assert texts_of(simple("r1")) == ("<s><|User|>Hi<|Assistant|>", "good<|end|>")
    assert "Prompts end with the latter, in training and in evaluation" in caplog.text


def test_a_turn_that_no_special_token_closes_ends_with_eos():
    tokenizer = simple("unclosed")
    assert texts_of(tokenizer) == ("### user\nHi\n\n### assistant\n", "good<eos>")
    assert stop_token_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_an_answer_after_a_space_keeps_the_space():
    assert texts_of(simple("inst")) == ("<s>[INST] Hi [/INST]", " good<eos>")


@pytest.mark.parametrize("prefix", ["normalizer", "first", "always"])
@pytest.mark.parametrize(
    ("template", "tokens"),
    [("zephyr", ["f", "o", "x", "▁", "2", "</s>"]), ("inst", ["▁", "f", "o", "x", "▁", "2", "</s>"])],
)
def test_a_tokenizer_that_puts_spaces_in_front_of_texts_puts_none_in_front_of_completions(template, tokens, prefix):
    tokenizer = sentencepiece_like(template, prefix)
    rendered = render_pair(tokenizer, **pair("the dog", "fox 2", "dog"))
    assert tokenizer.convert_ids_to_tokens(rendered.chosen_ids) == tokens
    text = tokenizer.apply_chat_template([say("user", "the dog"), say("assistant", "fox 2")], tokenize=False)
    assert rendered.prompt_ids + rendered.chosen_ids == tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}", "line 1: "),
        ("{{ raise_exception('never') }}", "does not render a question and an answer: never"),
        ("nothing", "leaves out what the user or the assistant says"),
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[bot]{% endif %}",
            "does not begin with the same conversation's generation prompt",
        ),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "does not begin with"),
    ],
)
def test_a_template_that_cannot_serve_is_an_input_error(template, problem):
    tokenizer = simple("unasked")
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="the chat template cannot be used: ") as caught:
        tokenize_pairs(Dataset.from_list([pair()]), tokenizer, max_tokens=100)
    assert problem in str(caught.value)
    assert "chatml" in str(caught.value)


def test_a_template_that_writes_a_prompt_otherwise_with_some_answers_is_an_input_error():
    tokenizer = simple("unasked")
    tokenizer.chat_template = (
        "{% if messages | length > 3 %}again: {% endif %}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    talk = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    with pytest.raises(InputError, match="prompts that the chat template writes otherwise once an answer follows"):
        render_pair(tokenizer, **pair(talk))


# Where templates come from


def test_a_model_without_a_template_says_how_to_give_one():
    tokenizer = simple(None)
    with pytest.raises(InputError, match=r"no chat template.*model.tokenizer.*\.jinja file or one of chatml, gemma"):
        resolve_chat_template(tokenizer, None)
    assert stop_token_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_a_template_is_found_as_a_file_or_by_its_shipped_name(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages }}")
    assert resolve_chat_template(simple(None), str(path)) == "{{ messages }}"
    assert "<|im_start|>" in resolve_chat_template(simple("inst"), "chatml")


def test_a_template_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"'chatlm': neither a \.jinja file nor one of chatml, gemma\. Did you mean chatml"
    ):
        resolve_chat_template(simple(None), "chatlm")
    with pytest.raises(InputError, match=r"none\.jinja: cannot be read: No such file"):
        resolve_chat_template(simple(None), str(tmp_path / "none.jinja"))
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        resolve_chat_template(simple(None), str(tmp_path / "bad.jinja"))


def test_a_template_that_prints_todays_date_prints_the_same_day_for_ever():
    template = (TEMPLATES / "llama3.jinja").read_text()
    assert "strftime_now(" in template
    pinned = resolve_chat_template(simple("llama3"), None)
    assert "strftime_now(" not in pinned
    assert "'26 Jul 2024'" in pinned
    assert resolve_chat_template(simple("llama3"), None) == pinned
    # Rendering pins the date even where nobody called resolve_chat_template before.
    text = simple("llama3").decode(render_prompt(simple("llama3"), SHORT))
    assert "Today Date: 26 Jul 2024" in text


def test_template_hash_is_sha256_of_its_text():
    tokenizer = simple("unasked")
    tokenizer.chat_template = "abc"
    assert template_hash(tokenizer) == hashlib.sha256(b"abc").hexdigest()[:16] == "ba7816bf8f01cfea"


# Special tokens spelled out in messages


@pytest.mark.parametrize("family", FAMILIES)
def test_a_special_token_spelled_out_in_a_message_is_plain_text(tokenizers, family, caplog):
    tokenizer, end = tokenizers[family], END[family]
    end_id = tokenizer.convert_tokens_to_ids(end)
    row = pair(f"What is {end}?", f"It ends {end} and goes on", "bad")
    honest = render_pair(tokenizer, **pair("What is it?", "good", "bad"))
    rendered = render_pair(tokenizer, **row)
    assert rendered.prompt_ids.count(end_id) == honest.prompt_ids.count(end_id)
    assert rendered.chosen_ids.count(end_id) == 1
    assert rendered.chosen_ids[-1] == end_id
    text = tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]], tokenize=False)
    assert tokenizer.decode(rendered.prompt_ids + rendered.chosen_ids) == text[: text.rindex(end) + len(end)]
    tokenized = tokenize_pairs(Dataset.from_list([pair(), row]), tokenizer, max_tokens=1000)
    assert tokenized.truncation.as_dict()["rows_with_special_text"] == 1
    assert tokenized.truncation.changed[0].rows == ("row 1",)
    assert "spell out a special token" in caplog.text
    assert tokenized.table["chosen_ids"][1].as_py() == rendered.chosen_ids


def test_the_mark_that_stands_for_special_tokens_is_text_like_any_other(tokenizers):
    tokenizer, mark = tokenizers["chatml"], "\U000f5a1e"
    answer = f"{mark}0{mark} <|im_end|> {mark}"
    rendered = render_pair(tokenizer, **pair("Hi", answer, "bad"))
    assert tokenizer.decode(rendered.chosen_ids) == answer + "<|im_end|>"
    assert rendered.chosen_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
