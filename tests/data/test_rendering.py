"""Token ids of pairs: spans follow from the template's construction, limits are kept, and everything is counted.

The templates in tests/data/templates have the shape of the families' own, text parts only: llama3, qwen3 and gemma3
are those the presets use, inst is Llama 2 and Mistral, zephyr is Zephyr and TinyLlama, r1 is a distilled DeepSeek-R1.
"""

import hashlib
import logging
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from slime_ray.data.chat_template import resolve_chat_template, stop_token_ids, template_hash
from slime_ray.data.preferences import read_preferences
from slime_ray.data.rendering import render_pair, render_prompt
from slime_ray.data.splits import prompt_hash
from slime_ray.data.tokenizing import tokenize_pairs, tokenize_prompts, tokenize_sft, tokenized_hash
from slime_ray.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"
REAL_DATA = Path(__file__).parents[3] / "shared/data/preferences_en.jsonl"

CORPUS = [
    "The quick brown fox jumps over the lazy dog, user and assistant alike.",
    "What is 2 + 2? It is 4.\n\nThank you! system model think Today Date",
]


def byte_level(template, special, *, eos, bos=None):
    """A byte-level BPE tokenizer (GPT-2, Llama 3, Qwen), trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = template and (TEMPLATES / f"{template}.jinja").read_text()
    return fast


def sentencepiece_like(template, prefix):
    """A tokenizer of characters that shows spaces as a mark and puts one in front of every text it is given.

    `prefix` is a prepend scheme, or "normalizer": in front of every piece between special tokens, as older
    conversions of Llama 2 do.
    """
    known = sorted(set("".join(CORPUS)) - {" ", "\n"} | set("AaBbQq12.xy?<|>[]/"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *known]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if prefix == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return fast


# As pretrained checkpoints have it: their own end-of-sequence token is not the one that closes a turn.
SPECIAL = {
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>", "<|end_of_text|>",
    ),
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>"),
    "gemma3": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>"),
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>"),
}  # fmt: skip
END = {"llama3": "<|eot_id|>", "qwen3": "<|im_end|>", "gemma3": "<end_of_turn>", "chatml": "<|im_end|>"}
FAMILIES = tuple(SPECIAL)


def make(family):
    special, bos, eos = SPECIAL[family]
    tokenizer = byte_level(None if family == "chatml" else family, special, bos=bos, eos=eos)
    tokenizer.chat_template = resolve_chat_template(tokenizer, "chatml" if family == "chatml" else None)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {family: make(family) for family in FAMILIES}


def say(role, content):
    return {"role": role, "content": content}


def pair(prompt="Hi", chosen="good", rejected="bad"):
    prompt = [say("user", prompt)] if isinstance(prompt, str) else prompt
    return {
        "prompt": prompt,
        "chosen": [say("assistant", chosen)],
        "rejected": [say("assistant", rejected)],
    }


SHORT = [say("user", "Hi")]
TALK = [say("system", "Be kind."), say("user", "Hi"), say("assistant", "Yes? "), say("user", " 2 + 2?")]
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
    assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[own, 399])) == tuple(sorted([own, end, 399]))
    assert stop_token_ids(tokenizer, GenerationConfig()) == tuple(sorted([own, end]))


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=30).filter(
    str.strip
)
talks = st.lists(words, min_size=0, max_size=2).map(
    lambda texts: [message for text in texts for message in (say("user", text), say("assistant", text[::-1] or "x"))]
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=2, max_size=5))
def test_ids_do_not_depend_on_the_other_rows(tokenizers, family, texts):
    tokenizer = tokenizers[family]
    rows = [pair(question, "a" + answer, "b" + answer) for question, answer in texts]
    together = tokenize_pairs(Dataset.from_list(rows), tokenizer, max_tokens=10_000).dataset
    for index, row in enumerate(rows):
        alone = render_pair(tokenizer, **row)
        assert together[index]["prompt_ids"] == alone.prompt_ids
        assert together[index]["chosen_ids"] == alone.chosen_ids
        assert together[index]["rejected_ids"] == alone.rejected_ids


# Templates that are less regular


def simple(template, **kwargs):
    special = ["<s>", "<eos>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|end|>"]
    return byte_level(template, special, bos="<s>", eos="<eos>", **kwargs)


def texts_of(tokenizer, **row):
    rendered = render_pair(tokenizer, **pair(**row))
    return tokenizer.decode(rendered.prompt_ids), tokenizer.decode(rendered.chosen_ids)


def test_a_template_without_a_generation_prompt_has_its_header_in_the_prompt(caplog):
    assert texts_of(simple("unasked")) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "good<|im_end|>",
    )
    assert "generation prompt is '', but it writes '<|im_start|>assistant\\n'" in caplog.text


def test_a_generation_prompt_that_says_more_than_the_answers_header_is_cut_to_it(caplog):
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
    with pytest.raises(InputError, match="user, assistant, user, assistant does not begin with its prompt"):
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
    assert tokenized.truncation.rows_with_special_text == 1
    assert tokenized.truncation.changed[0].rows == ("row 1",)
    assert "spell out a special token" in caplog.text
    assert tokenized.dataset[1]["chosen_ids"] == rendered.chosen_ids


def test_the_mark_that_stands_for_special_tokens_is_text_like_any_other(tokenizers):
    tokenizer, mark = tokenizers["chatml"], "\U000f5a1e"
    answer = f"{mark}0{mark} <|im_end|> {mark}"
    rendered = render_pair(tokenizer, **pair("Hi", answer, "bad"))
    assert tokenizer.decode(rendered.chosen_ids) == answer + "<|im_end|>"
    assert rendered.chosen_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


# Limits


@pytest.fixture(scope="module")
def letters():
    """One token for each letter: P and Q for a prompt, its special token <a> before an answer, <eos> after it."""
    vocabulary = {token: index for index, token in enumerate(["<a>", "<eos>", "<unk>", *"abcdefghpq"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", additional_special_tokens=["<a>"]
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' else '<a>' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    return fast


def spell(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


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
        for row in tokenized.dataset
    ]
    assert spelled == [
        ("pq<a>", "ab<eos>", "c<eos>"),
        ("ppq<a>", "ab<eos>", "c<eos>"),
        ("pq<a>", "abcde", "h<eos>"),
        ("ppq<a>", "abcd", "habc"),
    ]
    report = tokenized.truncation
    assert (report.rows_read, report.rows_dropped) == (4, 0)
    assert (report.prompts_truncated, report.completions_truncated) == (2, 3)
    assert {group.reason: group.rows for group in report.changed} == {
        "prompts cut at their start": ("row 1", "row 3"),
        "chosen completions cut at their end": ("row 2", "row 3"),
        "rejected completions cut at their end": ("row 3",),
    }
    assert [row["prompt_hash"] for row in tokenized.dataset] == [prompt_hash(row["prompt"]) for row in rows]


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
        for row in tokenized.dataset
    ]
    assert spelled == [
        ("pq<a>", "ab<eos>", "c<eos>"),
        ("pq<a>", "abcde", "h<eos>"),
        ("pq<a>", "abc", "hab"),
        ("pq<a>", "a<eos>", "habcd"),
    ]
    assert tokenized.truncation.completions_truncated == 4
    with pytest.raises(InputError, match="Of 4 pairs some do not fit"):
        tokenize_pairs(Dataset.from_list(rows), letters, strict=True, **options)


def test_a_row_smaller_than_a_prompt_is_refused(letters):
    rows = Dataset.from_list([pair("pppppp", "a", "b")])
    with pytest.raises(InputError, match=r"data.row_tokens is 8, but a prompt has 7 tokens.* Raise data.row_tokens"):
        tokenize_pairs(rows, letters, max_tokens=100, row_tokens=8)
    assert len(tokenize_pairs(rows, letters, max_tokens=100, row_tokens=11).dataset) == 1


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
    assert tokenized.kept == (0, 4)
    assert len(tokenized.dataset) == 2
    assert {group.reason: group.rows for group in tokenized.truncation.dropped} == {
        "prompt leaves no room for a completion": ("row 1",),
        "chosen and rejected have the same tokens once cut": ("row 2",),
        "chosen and rejected have the same tokens": ("row 3",),
    }
    assert "Of 5 pairs, dropped: 1 prompt leaves no room for a completion (row 1)" in caplog.text


def test_pairs_that_the_template_refuses_are_dropped_with_its_words(tokenizers):
    odd = [say("user", "a"), say("user", "b")]
    several = pair() | {"chosen": [say("assistant", "a"), say("assistant", "b")]}
    tokenized = tokenize_pairs(Dataset.from_list([pair(), pair(odd), several]), tokenizers["gemma3"], max_tokens=100)
    assert tokenized.kept == (0,)
    assert {group.reason: group.rows for group in tokenized.truncation.dropped} == {
        "refused by the chat template: Conversation roles must alternate user/assistant/user/assistant/...": ("row 1",),
        "several assistant messages in a completion": ("row 2",),
    }


def test_strict_tokenizing_refuses_what_does_not_fit_with_counts_and_rows(letters):
    rows = Dataset.from_list([pair("pq", "a", "b"), pair("ppppppp", "a", "b"), pair("pq", "abcdef", "b")])
    with pytest.raises(InputError) as caught:
        tokenize_pairs(rows, letters, max_tokens=8, strict=True)
    assert "1 prompt leaves no room for a completion (row 1)" in str(caught.value)
    assert "1 chosen completions cut at their end (row 2)" in str(caught.value)
    fitting = tokenize_pairs(rows.select([0]), letters, max_tokens=8, strict=True)
    assert len(fitting.dataset) == 1


def test_rows_keep_their_order_and_number_beyond_one_batch(letters):
    rows = [pair("p" * (1 + number % 5), "a", "b") for number in range(2500)]
    rows[2100] = pair("pppppppp", "a", "b")
    tokenized = tokenize_pairs(Dataset.from_list(rows), letters, max_tokens=8)
    assert tokenized.truncation.dropped[0].rows == ("row 2100",)
    assert tokenized.kept == tuple(number for number in range(2500) if number != 2100)
    # A prompt of n letters has n + 1 tokens.
    assert [len(ids) for ids in tokenized.dataset["prompt_ids"]] == [2 + number % 5 for number in tokenized.kept]


def test_nothing_left_is_an_input_error_but_nothing_given_is_not(letters):
    with pytest.raises(InputError, match="None of the 1 pairs is left: 1 prompt leaves no room"):
        tokenize_pairs(Dataset.from_list([pair("ppppppp", "a", "b")]), letters, max_tokens=8)
    empty = tokenize_pairs(Dataset.from_list([pair()]).select([]), letters, max_tokens=8).dataset
    assert len(empty) == 0
    assert empty.column_names == ["prompt_ids", "chosen_ids", "rejected_ids", "prompt_hash"]


@pytest.mark.parametrize("column", ["chosen", "completion"])
def test_sft_examples_have_the_ids_of_chosen_completions_and_no_rejected_ones(letters, column):
    rows = [pair("pq", "ab", "c"), pair("pq", "abcdef", "h"), pair("pq", "a", "a"), pair("ppppppp", "a", "b")]
    examples = Dataset.from_list(rows)
    if column == "completion":
        examples = examples.remove_columns("rejected").rename_column("chosen", "completion")
    tokenized = tokenize_sft(examples, letters, max_tokens=8)
    assert [spell(letters, ids) for ids in tokenized.dataset["chosen_ids"]] == ["ab<eos>", "abcde", "a<eos>"]
    assert tokenized.dataset["rejected_ids"][:] == [[], [], []]
    assert tokenized.kept == (0, 1, 2)
    assert tokenized.truncation.as_dict() == {
        "rows_read": 4,
        "prompts_truncated": 0,
        "completions_truncated": 1,
        "rows_with_special_text": 0,
        "rows_dropped": 1,
        "changed": [{"reason": "chosen completions cut at their end", "count": 1, "rows": ["row 1"]}],
        "dropped": [{"reason": "prompt leaves no room for a completion", "count": 1, "rows": ["row 3"]}],
    }


@pytest.mark.parametrize("limits", [(1, None), (8, 0), (8, 8)])
def test_limits_that_leave_no_room_are_refused(letters, limits):
    with pytest.raises(InputError, match="max_"):
        tokenize_pairs(Dataset.from_list([pair()]), letters, max_tokens=limits[0], max_prompt_tokens=limits[1])


@settings(max_examples=100, deadline=None)
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
    assert len(tokenized.kept) + tokenized.truncation.rows_dropped == len(rows)
    for source, row in zip(tokenized.kept, tokenized.dataset, strict=True):
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
    tokenized = tokenize_prompts(prompts, letters, max_prompt_tokens=4)
    assert [spell(letters, ids) for ids in tokenized.prompt_ids] == ["pq<a>", "ppq<a>"]
    assert tokenized.prompt_hashes == tuple(map(prompt_hash, prompts))
    assert tokenized.truncation.prompts_truncated == 1
    with pytest.raises(InputError, match=r"1 prompts cut at their start \(row 1\)"):
        tokenize_prompts(prompts, letters, max_prompt_tokens=4, strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_the_ids_they_have_in_pairs(tokenizers, family):
    tokenizer, rows = tokenizers[family], [pair(SHORT), pair(TALK), pair("<|im_end|><end_of_turn>")]
    pairs = tokenize_pairs(Dataset.from_list(rows), tokenizer, max_tokens=1000).dataset
    prompts = tokenize_prompts([row["prompt"] for row in rows], tokenizer)
    assert list(prompts.prompt_ids) == pairs["prompt_ids"][:]
    assert [render_prompt(tokenizer, row["prompt"]) for row in rows] == pairs["prompt_ids"][:]


def test_a_prompt_that_the_template_refuses_is_left_out_and_said(tokenizers):
    odd = [say("user", "a"), say("user", "b")]
    tokenized = tokenize_prompts([odd, SHORT], tokenizers["gemma3"])
    assert tokenized.kept == (1,)
    assert tokenized.prompt_hashes == (prompt_hash(SHORT),)
    assert tokenized.truncation.rows_dropped == 1
    with pytest.raises(InputError, match="roles must alternate"):
        render_prompt(tokenizers["gemma3"], odd)


# Hashes


def test_tokenized_hash_changes_with_any_id_and_any_boundary():
    def rows(*ids):
        return Dataset.from_list(
            [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in ids]
        )

    first = rows(([1], [2, 3], [4]), ([5], [6], [7]))
    hashes = {
        tokenized_hash(data)
        for data in (
            first,
            rows(([1], [2, 3], [9]), ([5], [6], [7])),
            rows(([1, 2], [3], [4]), ([5], [6], [7])),
            rows(([1], [2], [4]), ([5], [3, 6], [7])),
            first.select([1, 0]),
            first.select([0]),
        )
    }
    assert len(hashes) == 6
    assert tokenized_hash(rows(([5], [6], [7]), ([1], [2, 3], [4])).select([1, 0])) == tokenized_hash(first)


def test_tokenized_hash_tells_templates_apart(tokenizers):
    data = Dataset.from_list([pair(TALK)])
    hashes = {tokenized_hash(tokenize_pairs(data, tokenizers[name], max_tokens=500).dataset) for name in FAMILIES}
    assert len(hashes) == len(FAMILIES)


@pytest.mark.skipif(not REAL_DATA.is_file(), reason="the sample of real preference data is not here")
@pytest.mark.parametrize("family", FAMILIES)
def test_real_preferences_are_tokenized_whole(tokenizers, family):
    tokenizer, data = tokenizers[family], read_preferences(REAL_DATA).dataset
    tokenized = tokenize_pairs(data, tokenizer, max_tokens=100_000)
    assert tokenized.kept == tuple(range(200))
    end = tokenizer.convert_tokens_to_ids(END[family])
    for row, ids in zip(data, tokenized.dataset, strict=True):
        text = tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]], tokenize=False)
        decoded = tokenizer.decode(ids["prompt_ids"] + ids["chosen_ids"])
        assert decoded == text[: text.rindex(END[family]) + len(END[family])]
        assert ids["chosen_ids"].count(end) == ids["rejected_ids"].count(end) == 1
