"""Text beside prompt, chosen and rejected, or beside role and content: named, counted, and refused where it is asked."""

import json

import pytest
from datasets import Dataset

from slime_ray.data.messages import JSON_TEXT, TEXT_PARTS
from slime_ray.data.preferences import read_preferences
from slime_ray.errors import InputError

from .rows import as_pair, assistant, plain, ultrafeedback, user, write_lines


def ignored(source, **options):
    report = read_preferences(source, **options).report
    return {group.reason: group.count for group in report.text_ignored}


def written(folder, suffix, rows):
    """Rows as a file of either kind."""
    source = folder / f"data.{suffix}"
    write_lines(source, rows) if suffix == "jsonl" else Dataset.from_list(rows).to_parquet(source)
    return source


def with_fields(number, **fields):
    row = as_pair(number)
    return row | {"chosen": [row["chosen"][0] | fields]}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"system": "Answer in French."}, "with a column system"),
        ({"images": ["a.png"]}, "with a column images"),
        ({"chosen_reasoning": "Think long."}, "with a column chosen_reasoning"),
        ({"history": [["before", "then"]]}, "with a column history"),
    ],
)
def test_a_column_with_text_of_its_own_is_named_and_refused_by_strict(tmp_path, suffix, more, reason):
    source = written(tmp_path, suffix, [plain(number) | more for number in range(3)])
    assert ignored(source) == {reason: 3}
    with pytest.raises(InputError, match=f"text that nothing is trained on.* {reason} .*data.metadata"):
        read_preferences(source, strict=True)
    (name,) = more
    assert ignored(source, strict=True, metadata=[name]) == {}


def test_a_column_of_bytes_is_named_without_being_loaded(tmp_path):
    image = {"bytes": b"\x89PNG", "path": None}
    Dataset.from_list([plain(number) | {"images": [image]} for number in range(3)]).to_parquet(tmp_path / "a.parquet")
    assert ignored(tmp_path / "a.parquet") == {"with a column images": 1}


@pytest.mark.parametrize(
    "fields",
    [{"reasoning_content": "I think."}, {"thinking": "So."}, {"weight": 0}, {"tool_call_id": "7", "name": "f"}],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_field_of_a_message_is_named_and_refused_by_strict(tmp_path, suffix, fields):
    source = written(tmp_path, suffix, [as_pair(0), with_fields(1, **fields)])
    expected = {f"with a field {name} of messages": 1 for name in fields if not name.endswith("_id")}
    assert ignored(source) == expected
    with pytest.raises(InputError, match=r"with a field .* of messages"):
        read_preferences(source, strict=True)
    assert ignored(source, strict=True, metadata=list(fields)) == {}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_metadata_numbers_empty_cells_and_repetitions_are_no_text(tmp_path, suffix):
    row = ultrafeedback(0) | {"source": "flan", "turns_left": 3, "system": None, "tools": [], "question": "question 0"}
    loaded = read_preferences(written(tmp_path, suffix, [row]), strict=True)
    assert loaded.report.text_ignored == ()
    assert {"messages", "prompt_id", "source", "system", "turns_left"} <= set(loaded.report.columns_ignored)


def test_a_prompt_column_that_is_not_in_the_conversation_is_refused_by_strict(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [ultrafeedback(0) | {"prompt": "Answer in French."}])
    with pytest.raises(InputError, match="the prompt column is no user turn"):
        read_preferences(source, strict=True)


# Messages as files hold them


@pytest.mark.parametrize(
    "row",
    [
        {name: json.dumps(value) for name, value in as_pair(0).items()},
        as_pair(0) | {"chosen": json.dumps(as_pair(0)["chosen"])},
        {"prompt": json.dumps([user("question 0")]), "chosen": "good 0", "rejected": "bad 0"},
        {name: json.dumps([user("question 0"), assistant(text)])
         for name, text in (("chosen", "good 0"), ("rejected", "bad 0"))},
    ],
    ids=["all", "one side", "prompt", "conversations"],
)  # fmt: skip
def test_messages_kept_as_json_text_are_read_as_messages_and_said(tmp_path, row):
    loaded = read_preferences(write_lines(tmp_path / "data.jsonl", [row]), strict=True)
    assert loaded.dataset[0] == as_pair(0)
    assert [(group.reason, group.count) for group in loaded.report.noted] == [(JSON_TEXT, 1)]


def test_an_answer_that_is_json_itself_is_left_as_it_is(tmp_path):
    answer = json.dumps([assistant("a")])
    row = {"prompt": "Write a message in JSON.", "chosen": answer, "rejected": "No."}
    loaded = read_preferences(write_lines(tmp_path / "data.jsonl", [row]))
    assert loaded.dataset[0]["chosen"] == [assistant(answer)]
    assert loaded.report.noted == ()


@pytest.mark.parametrize(
    "chosen", [assistant("good 0"), [{"role": "assistant", "content": [{"type": "text", "text": "good 0"}]}]]
)
def test_one_message_without_a_list_and_one_part_of_text_are_read(tmp_path, chosen):
    loaded = read_preferences(write_lines(tmp_path / "data.jsonl", [as_pair(0) | {"chosen": chosen}]), strict=True)
    assert loaded.dataset[0] == as_pair(0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "u", "chosen": "nan", "rejected": "b"}, "empty cell"),
        ({"prompt": "Why is the sky blue?", "chosen": "Why is the sky blue? a", "rejected": "Why is the sky blue? b"},
         "begin with the whole prompt"),
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_noted(tmp_path, row, words):
    (group,) = read_preferences(write_lines(tmp_path / "data.jsonl", [row])).report.noted
    assert words in group.reason


# Columns by other names, and other encodings


@pytest.mark.parametrize(
    ("columns", "way_out"),
    [
        (("question", "response_j", "response_k"),
         "Rename question to prompt, response_j to chosen, response_k to rejected"),
        (("query", "good", "bad"), "Rename query to prompt, good to chosen, bad to rejected"),
        (("Prompt", "Chosen", "Rejected"), "Rename Prompt to prompt, Chosen to chosen, Rejected to rejected"),
        (("text",), "no column looks like chosen or rejected"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_by_other_names_are_listed_with_the_ones_to_rename(tmp_path, suffix, columns, way_out):
    source = written(tmp_path, suffix, [dict.fromkeys(columns, "a")])
    with pytest.raises(InputError, match=f"the columns are {', '.join(sorted(columns))}, .*{way_out}"):
        read_preferences(source)


def test_a_prompt_column_by_another_name_is_named(tmp_path):
    row = {"question": "u", "chosen": [assistant("a")], "rejected": [assistant("b")]}
    with pytest.raises(InputError, match=r"no user turn.*There is no column prompt\. Rename question to prompt"):
        read_preferences(write_lines(tmp_path / "data.jsonl", [row]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(plain(0)).encode("utf-16"), "UTF-16"),
        (json.dumps(plain(0)).encode("utf-32-le"), "UTF-32"),
        (b"\x1f\x8b\x08\x00", "is compressed"),
    ],
)
def test_a_file_in_another_encoding_is_named_as_such(tmp_path, content, message):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_preferences(tmp_path / "data.jsonl")


def in_parts(message, count):
    """The same message with its text in so many parts."""
    text, size = message["content"], -(-len(message["content"]) // count)
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return message | {"content": [{"type": "text", "text": part} for part in parts]}


@pytest.mark.parametrize(("count", "noted"), [(1, []), (2, [(TEXT_PARTS, 3)]), (4, [(TEXT_PARTS, 3)])])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_text_parts_of_a_content_are_read_as_one_text(tmp_path, suffix, count, noted):
    pairs = [as_pair(number) for number in range(3)]
    rows = [{name: [in_parts(one, count) for one in side] for name, side in pair.items()} for pair in pairs]
    loaded = read_preferences(written(tmp_path, suffix, rows))
    assert loaded.dataset.to_list() == pairs
    assert [(group.reason, group.count) for group in loaded.report.noted] == noted


def test_text_parts_are_joined_as_templates_that_take_parts_join_them(tmp_path, tokenizers):
    """The loop over parts is that of Qwen2.5-VL's and Llama 4's templates."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
        "{% endfor %}"
    )
    talk = {name: [in_parts(one, 3) for one in side] for name, side in as_pair(0).items()}
    (pair,) = read_preferences(write_lines(tmp_path / "a.jsonl", [talk])).dataset
    tokenizer = next(iter(tokenizers.values()))
    for name, side in talk.items():
        rendered = [
            tokenizer.apply_chat_template(one, chat_template=template, tokenize=False) for one in (side, pair[name])
        ]
        assert rendered[0] == rendered[1]
