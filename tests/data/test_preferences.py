"""Preference data: every form gives the same pairs, and every bad row is reported with its place."""

import json
import logging

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data.forms import PROMPT_COLUMN_DIFFERS, BadRow, pair_from_row
from slime_ray.data.preferences import read_preferences
from slime_ray.errors import InputError

from .rows import as_pair, assistant, plain, skipped, system, ultrafeedback, user, write_lines

# Forms


TALK = [user("u"), assistant("v"), user("w")]
HUMAN = "\n\nHuman: u\n\nmore \n\nAssistant: v\n\nHuman: w\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        pytest.param(
            {"prompt": [system("s"), user("u")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
            [system("s"), user("u")], "a", "b", id="conversational keeps the system message",
        ),
        pytest.param(
            {"prompt": "u", "chosen": " a", "rejected": " b"}, [user("u")], " a", " b", id="plain text"
        ),
        pytest.param(
            {"chosen": [*TALK, assistant("a")], "rejected": [*TALK, assistant("b")]}, TALK, "a", "b", id="implicit prompt"
        ),
        pytest.param(
            {"prompt": None, "chosen": [system("s"), *TALK, assistant("a")], "rejected": [system("s"), *TALK, assistant("b")]},
            [system("s"), *TALK], "a", "b", id="implicit prompt with an empty prompt column",
        ),
        pytest.param(ultrafeedback(3), [user("question 3")], "good 3", "bad 3", id="UltraFeedback-binarized"),
        pytest.param(
            {"prompt": "u", "chosen": [assistant("a")], "rejected": [assistant("b")]},
            [user("u")], "a", "b", id="text prompt with message completions",
        ),
        pytest.param(
            {"prompt": TALK, "chosen": [*TALK, assistant("a")], "rejected": [*TALK, assistant("b")]},
            TALK, "a", "b", id="conversations that repeat the prompt",
        ),
        pytest.param(
            {"prompt": [system("s"), *TALK], "chosen": [*TALK, assistant("a")], "rejected": [*TALK, assistant("b")]},
            [system("s"), *TALK], "a", "b", id="conversations that repeat the prompt without its system message",
        ),
        pytest.param(
            {"chosen": f"{HUMAN} a: b\n\nc", "rejected": f"{HUMAN} b"},
            [user("u\n\nmore"), *TALK[1:]], "a: b\n\nc", "b", id="HH-RLHF, several turns",
        ),
        pytest.param(
            {
                "prompt": [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            [system("s"), user("u")], "a", "b", id="ShareGPT, as LLaMA-Factory has preferences",
        ),
        pytest.param(
            {"prompt": "\n\nHuman: u\n\nAssistant:", "chosen": " a", "rejected": " b"},
            [user("u")], "a", "b", id="HH-RLHF with its prompt cut off",
        ),
    ],
)  # fmt: skip
def test_each_known_form_becomes_prompt_and_two_completions(tmp_path, row, prompt, chosen, rejected):
    loaded = read_preferences(write_lines(tmp_path / "data.jsonl", [row]))
    assert loaded.dataset.column_names == ["prompt", "chosen", "rejected"]
    assert loaded.dataset[0] == {
        "prompt": prompt,
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
    }
    assert loaded.report.skipped == ()
    assert loaded.report.noted == ()


def test_a_prompt_column_that_is_no_turn_of_the_conversation_is_noted(tmp_path):
    row = ultrafeedback(1) | {"prompt": "something else"}
    loaded = read_preferences(write_lines(tmp_path / "data.jsonl", [ultrafeedback(0), row]))
    assert loaded.dataset["prompt"][1] == [user("question 1")]
    assert [(group.reason, group.count, group.rows) for group in loaded.report.noted] == [
        (PROMPT_COLUMN_DIFFERS, 1, ("line 2",))
    ]


def test_several_assistant_messages_after_the_last_common_user_turn_are_kept(tmp_path):
    row = {"prompt": "u", "chosen": [assistant("a"), assistant("c")], "rejected": [assistant("b")]}
    assert read_preferences(write_lines(tmp_path / "data.jsonl", [row])).dataset[0]["chosen"] == [
        assistant("a"),
        assistant("c"),
    ]


# Bad rows


def chosen(*messages):
    """A row of two conversations, of which the other is sound."""
    return {"chosen": list(messages), "rejected": [user("u"), assistant("b")]}


def part(**fields):
    return chosen(user([{"type": "text", "text": "u"} | fields]))


NO_TEXT = "the content of a message in chosen has a part that is no text alone"
BAD_LINES = {
    "not JSON": b'{"prompt": "u", "chosen": ',
    "not UTF-8": b'{"prompt": "u", "chosen": "\xff", "rejected": "b"}',
    "not an object with columns": b"[1, 2]",
    "chosen is missing": {"prompt": "u", "rejected": "b"},
    "rejected is missing": {"prompt": "u", "chosen": "a", "rejected": None},
    "empty completion": {"prompt": "u", "chosen": "a", "rejected": " \n"},
    "chosen equals rejected": {"prompt": "u", "chosen": "a", "rejected": "a"},
    "no assistant turn": chosen(user("u")),
    "no user turn": {"prompt": [system("s")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    "the prompts of chosen and rejected differ": {
        "chosen": [user("u"), assistant("a"), user("v"), assistant("c")],
        "rejected": [user("u"), assistant("b"), user("v"), assistant("c")],
    },
    "the prompt and the conversations differ": {"prompt": [user("other")], **chosen(user("u"), assistant("a"))},
    "empty prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "rejected is neither text (like the other completion) nor a list of messages": {
        "prompt": "u",
        "chosen": [assistant("a")],
        "rejected": 7,
    },
    "prompt is neither text nor a list of messages": {"prompt": 7, "chosen": "a", "rejected": "b"},
    "chosen is a list of something other than messages": chosen("a"),
    "a message in chosen has no role or no text content": chosen({"role": "user", "content": 7}),
    "a message in chosen is from something other than assistant, gpt, human, system, user": chosen(
        {"from": "human", "value": "u"}, {"from": "function_call", "value": "{}"}
    ),
    f"{NO_TEXT} (image_url)": part(type="image_url", image_url={"url": "x"}),
    f"{NO_TEXT} (cache_control)": part(cache_control={"type": "ephemeral"}),
    f"{NO_TEXT} (no text)": part(text=None),
    "the content of a message in chosen is a list of something other than parts": chosen(user(["u"])),
    "completions are messages kept as text that is not JSON": {
        "prompt": "u",
        "chosen": str([assistant("a")]),
        "rejected": str([assistant("b")]),
    },
    "the prompt is messages kept as text that is not JSON": plain(2) | {"prompt": str([user("u")])},
    "a key stands twice in it": b'{"prompt": "u", "chosen": "a", "chosen": "c", "rejected": "b"}',
    "a message in chosen has a role other than assistant, developer, system, tool, user": chosen(
        {"role": "human", "content": "u"}
    ),
    "a tool call names no function": chosen(user("u"), {"role": "assistant", "tool_calls": [{"id": "1"}]}),
    "the arguments of a tool call are neither an object nor the JSON text of one": chosen(
        user("u"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{'city': 'Oslo'}"}]}
    ),
    "tool_calls is not a list, or not in a message of the assistant": chosen(
        user("u") | {"tool_calls": [{"name": "f"}]}, assistant("a")
    ),
    "tools is neither a list of objects nor the JSON text of one": plain(2) | {"tools": "search"},
    "a completion goes on after the answer of a tool": {
        "prompt": [user("u")],
        "chosen": [assistant("a"), {"role": "tool", "content": "9"}, assistant("b")],
        "rejected": [assistant("b")],
    },
    "no prompt, and the text has no Human and Assistant turns": {"chosen": "a", "rejected": "b"},
    "text is not valid Unicode (half of a surrogate pair)": b'{"prompt": "u", "chosen": "\\ud800", "rejected": "b"}',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_each_bad_row_is_skipped_with_its_reason_and_line(tmp_path, reason):
    source = write_lines(tmp_path / "data.jsonl", [plain(0), BAD_LINES[reason], plain(1)])
    loaded = read_preferences(source)
    assert loaded.dataset.to_list() == [as_pair(0), as_pair(1)]
    assert skipped(loaded.report) == {reason: ("line 2",)}


def test_strict_loading_refuses_bad_rows_and_lists_every_reason(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [plain(0), *BAD_LINES.values()])
    with pytest.raises(InputError) as caught:
        read_preferences(source, strict=True)
    message = str(caught.value)
    assert f"{len(BAD_LINES)} of {len(BAD_LINES) + 1} rows cannot be used" in message
    for line, reason in enumerate(BAD_LINES, start=2):
        assert f"1 {reason} (line {line})" in message


def test_counts_are_exact_and_the_first_20_rows_are_listed(tmp_path):
    rows = [plain(0)] + [{"prompt": "u", "chosen": "", "rejected": "b"}] * 25 + [b"{"]
    report = read_preferences(write_lines(tmp_path / "data.jsonl", rows)).report
    assert (report.rows_read, report.rows_kept, report.rows_skipped) == (27, 1, 26)
    empty, broken = report.skipped
    assert (empty.count, empty.rows) == (25, tuple(f"line {line}" for line in range(2, 22)))
    assert (broken.count, broken.rows) == (1, ("line 27",))


def test_the_report_is_plain_json_for_the_manifest(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [ultrafeedback(0), b"{", plain(1)])
    assert json.loads(json.dumps(read_preferences(source).report.as_dict())) == {
        "source": str(source),
        "split": "train",
        "rows_read": 3,
        "rows_kept": 2,
        "rows_skipped": [{"reason": "not JSON", "count": 1, "rows": ["line 2"]}],
        "rows_noted": [],
        "columns_ignored": ["messages", "prompt_id", "score_chosen", "score_rejected"],
        "text_ignored": [],
    }


def test_skipping_is_said_in_one_warning(tmp_path, caplog):
    rows = [plain(0), b"{", {"prompt": "u", "chosen": "a", "rejected": "a"}]
    source = write_lines(tmp_path / "data.jsonl", rows)
    with caplog.at_level(logging.INFO):
        read_preferences(source)
    assert [record.getMessage() for record in caplog.records] == [
        f"{source}: skipped 2 of 3 rows: 1 not JSON (line 2); 1 chosen equals rejected (line 3)"
    ]


def test_rows_of_columnar_files_count_from_0(tmp_path):
    Dataset.from_list([plain(0), plain(1) | {"chosen": ""}, plain(2) | {"rejected": None}]).to_parquet(
        tmp_path / "data.parquet"
    )
    assert skipped(read_preferences(tmp_path / "data.parquet").report) == {
        "empty completion": ("row 1",),
        "rejected is missing": ("row 2",),
    }


def test_rows_of_a_json_array_count_from_0_and_may_be_of_any_type(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([plain(0), 3, plain(1) | {"chosen": ["a"]}]))
    assert skipped(read_preferences(tmp_path / "data.json").report) == {
        "not an object with columns": ("row 1",),
        "chosen is a list of something other than messages": ("row 2",),
    }


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_keep_their_order_and_number_beyond_one_batch(tmp_path, suffix):
    rows = Dataset.from_list([plain(number) | ({"chosen": ""} if number == 2100 else {}) for number in range(2500)])
    source = tmp_path / f"data.{suffix}"
    rows.to_json(source) if suffix == "jsonl" else rows.to_parquet(source)
    loaded = read_preferences(source)
    assert loaded.dataset.to_list() == [as_pair(number) for number in range(2500) if number != 2100]
    assert skipped(loaded.report) == {"empty completion": ("line 2101" if suffix == "jsonl" else "row 2100",)}


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    report = read_preferences(write_lines(tmp_path / "data.jsonl", [plain(0), b"", b"  ", b"{"])).report
    assert report.rows_read == 2
    assert skipped(report) == {"not JSON": ("line 4",)}


messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.sampled_from(["a", "b", ""])}
    ),
    max_size=5,
)
json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | messages,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("prompt", "chosen", "rejected"), json_values)))
def test_any_row_is_either_a_sound_pair_or_has_a_reason(row):
    try:
        pair = pair_from_row(row)
    except BadRow:
        return
    assert pair.prompt[-1]["role"] == "user"
    assert pair.chosen != pair.rejected
    for completion in (pair.chosen, pair.rejected):
        assert completion
        assert all(message["role"] == "assistant" and message["content"].strip() for message in completion)
