"""Preference data: every form gives the same pairs, and every bad row is reported with its place."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data import sources
from slime_ray.data.forms import PROMPT_COLUMN_DIFFERS, BadRow, pair_from_row
from slime_ray.data.preferences import read_preferences
from slime_ray.errors import InputError

REAL_DATA = Path(__file__).parents[3] / "shared/data/preferences_en.jsonl"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def plain(number):
    return {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}


def as_pair(number):
    return {
        "prompt": [user(f"question {number}")],
        "chosen": [assistant(f"good {number}")],
        "rejected": [assistant(f"bad {number}")],
    }


def ultrafeedback(number, score=8.0):
    """A row as it stands in HuggingFaceH4/ultrafeedback_binarized."""
    prompt = f"question {number}"
    chosen = [
        {"content": prompt, "role": "user"},
        {"content": f"good {number}", "role": "assistant"},
    ]
    return {
        "prompt": prompt,
        "prompt_id": f"{number:064x}",
        "chosen": chosen,
        "rejected": [
            {"content": prompt, "role": "user"},
            {"content": f"bad {number}", "role": "assistant"},
        ],
        "messages": chosen,
        "score_chosen": score,
        "score_rejected": 4.0,
    }


def write_lines(path, rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def skipped(report):
    return {group.reason: group.rows for group in report.skipped}


# Forms


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        pytest.param(
            {
                "prompt": [system("s"), user("u")],
                "chosen": [assistant("a")],
                "rejected": [assistant("b")],
            },
            [system("s"), user("u")], "a", "b", id="conversational keeps the system message",
        ),
        pytest.param(
            {"prompt": "u", "chosen": " a", "rejected": " b"}, [user("u")], " a", " b", id="plain text"
        ),
        pytest.param(
            {
                "chosen": [user("u"), assistant("v"), user("w"), assistant("a")],
                "rejected": [user("u"), assistant("v"), user("w"), assistant("b")],
            },
            [user("u"), assistant("v"), user("w")], "a", "b", id="implicit prompt",
        ),
        pytest.param(
            {
                "prompt": None,
                "chosen": [system("s"), user("u"), assistant("a")],
                "rejected": [system("s"), user("u"), assistant("b")],
            },
            [system("s"), user("u")], "a", "b", id="implicit prompt with an empty prompt column",
        ),
        pytest.param(ultrafeedback(3), [user("question 3")], "good 3", "bad 3", id="UltraFeedback-binarized"),
        pytest.param(
            {"prompt": "u", "chosen": [assistant("a")], "rejected": [assistant("b")]},
            [user("u")], "a", "b", id="text prompt with message completions",
        ),
        pytest.param(
            {
                "prompt": [user("u")],
                "chosen": [user("u"), assistant("a")],
                "rejected": [user("u"), assistant("b")],
            },
            [user("u")], "a", "b", id="conversations that repeat the prompt",
        ),
        pytest.param(
            {
                "prompt": [system("s"), user("u")],
                "chosen": [user("u"), assistant("a")],
                "rejected": [user("u"), assistant("b")],
            },
            [system("s"), user("u")], "a", "b", id="conversations that repeat the prompt without its system message",
        ),
        pytest.param(
            {
                "chosen": "\n\nHuman: u\n\nmore \n\nAssistant: v\n\nHuman: w\n\nAssistant: a: b\n\nc",
                "rejected": "\n\nHuman: u\n\nmore \n\nAssistant: v\n\nHuman: w\n\nAssistant: b",
            },
            [user("u\n\nmore"), assistant("v"), user("w")], "a: b\n\nc", "b", id="HH-RLHF, several turns",
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


# Sources


def jsonl_file(folder):
    return write_lines(folder / "pairs.jsonl", [plain(number) for number in range(3)])


def json_array(folder):
    (folder / "pairs.json").write_text(json.dumps([plain(number) for number in range(3)], indent=1))
    return folder / "pairs.json"


def json_lines_named_json(folder):
    return write_lines(folder / "pairs.json", [plain(number) for number in range(3)])


def jsonl_of_windows(folder):
    lines = "\r\n".join(json.dumps(plain(number)) for number in range(3))
    (folder / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    return folder / "pairs.jsonl"


def parquet_file(folder):
    Dataset.from_list([ultrafeedback(number) for number in range(3)]).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def saved_dataset(folder):
    Dataset.from_list([ultrafeedback(number) for number in range(3)]).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(folder):
    rows = Dataset.from_list([as_pair(number) for number in range(3)])
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(folder / "saved")
    return folder / "saved"


def folder_of_jsonl(folder):
    write_lines(folder / "a.jsonl", [plain(0)])
    write_lines(folder / "b.jsonl", [plain(1), plain(2)])
    return folder


@pytest.mark.parametrize(
    "make",
    [
        jsonl_file, json_array, json_lines_named_json, jsonl_of_windows, parquet_file, saved_dataset, saved_splits,
        folder_of_jsonl,
    ],
)  # fmt: skip
def test_every_kind_of_source_gives_the_same_pairs(tmp_path, make):
    source = make(tmp_path)
    expected = [as_pair(number) for number in range(3)]
    assert read_preferences(source).dataset.to_list() == expected
    assert read_preferences(str(source), limit=2).dataset.to_list() == expected[:2]


def ultrafeedback_folder(folder):
    """Two splits of the data set's own layout on the Hub."""
    (folder / "data").mkdir()
    for split, first in (("train_prefs", 0), ("test_prefs", 10)):
        rows = Dataset.from_list([ultrafeedback(number) for number in range(first, first + 2)])
        rows.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def test_a_downloaded_ultrafeedback_folder_is_read_by_split(tmp_path):
    loaded = read_preferences(ultrafeedback_folder(tmp_path), split="test_prefs")
    assert loaded.dataset.to_list() == [as_pair(10), as_pair(11)]
    assert loaded.report.columns_ignored == (
        "messages", "prompt_id", "score_chosen", "score_rejected",
    )  # fmt: skip


def test_a_data_set_from_the_hub_is_read_by_split(tmp_path, monkeypatch):
    # `load_dataset` reads a folder as it reads a repository, so this is the Hub's path without the network.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repository").mkdir()
    folder = str(ultrafeedback_folder(tmp_path / "repository"))
    found = sources._from_hub(folder, split="train_prefs", subset=None, revision=None)
    assert [row for _, row in sources._arrow_rows(found, folder)][1]["prompt"] == "question 1"
    with pytest.raises(InputError, match=r"no split 'train'\. It has .*train_prefs"):
        sources._from_hub(folder, split="train", subset=None, revision=None)


def test_rows_of_a_folder_are_named_by_file_and_line(tmp_path):
    write_lines(tmp_path / "a.jsonl", [plain(0)])
    write_lines(tmp_path / "b.jsonl", [plain(1), b"{"])
    assert skipped(read_preferences(tmp_path).report) == {"not JSON": ("b.jsonl line 2",)}


# Bad rows


BAD_LINES = {
    "not JSON": b'{"prompt": "u", "chosen": ',
    "not UTF-8": b'{"prompt": "u", "chosen": "\xff", "rejected": "b"}',
    "not an object with columns": b"[1, 2]",
    "chosen is missing": {"prompt": "u", "rejected": "b"},
    "rejected is missing": {"prompt": "u", "chosen": "a", "rejected": None},
    "empty completion": {"prompt": "u", "chosen": "a", "rejected": " \n"},
    "chosen equals rejected": {"prompt": "u", "chosen": "a", "rejected": "a"},
    "no assistant turn": {"chosen": [user("u")], "rejected": [user("u"), assistant("b")]},
    "no user turn": {"prompt": [system("s")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    "the prompts of chosen and rejected differ": {
        "chosen": [user("u"), assistant("a"), user("v"), assistant("c")],
        "rejected": [user("u"), assistant("b"), user("v"), assistant("c")],
    },
    "the prompt and the conversations differ": {
        "prompt": [user("other")],
        "chosen": [user("u"), assistant("a")],
        "rejected": [user("u"), assistant("b")],
    },
    "empty prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "rejected is neither text (like the other completion) nor a list of messages": {
        "prompt": "u",
        "chosen": [assistant("a")],
        "rejected": 7,
    },
    "prompt is neither text nor a list of messages": {"prompt": 7, "chosen": "a", "rejected": "b"},
    "chosen is a list of something other than messages": {"chosen": ["a"], "rejected": [assistant("b")]},
    "a message in chosen has no role or no text content": {
        "chosen": [{"from": "human", "value": "u"}],
        "rejected": [assistant("b")],
    },
    "a message in chosen has a role other than assistant, developer, system, tool, user": {
        "chosen": [{"role": "human", "content": "u"}],
        "rejected": [assistant("b")],
    },
    "a message calls tools": {
        "chosen": [user("u"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
        "rejected": [user("u"), assistant("b")],
    },
    "no prompt, and the text has no Human and Assistant turns": {"chosen": "a", "rejected": "b"},
    "text is not valid Unicode (half of a surrogate pair)": (b'{"prompt": "u", "chosen": "\\ud800", "rejected": "b"}'),
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


def test_limit_counts_usable_pairs(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [b"{", plain(0), plain(1), plain(2)])
    loaded = read_preferences(source, limit=2)
    assert loaded.dataset.to_list() == [as_pair(0), as_pair(1)]
    assert loaded.report.rows_read == 3


# What cannot be read at all


def test_a_missing_file_is_named(tmp_path):
    for source in (tmp_path / "none.jsonl", str(tmp_path / "none"), "./none", "none.jsonl"):
        with pytest.raises(InputError, match=r"none.*no such file or folder"):
            read_preferences(source)


def test_a_hub_id_that_cannot_be_reached_is_an_input_error(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HuggingFaceH4/ultrafeedback_binarized: no such file or folder here"):
        read_preferences("HuggingFaceH4/ultrafeedback_binarized", split="train_prefs")


def test_an_unknown_split_says_which_there_are(tmp_path):
    ultrafeedback_folder(tmp_path)
    with pytest.raises(InputError, match=r"no split 'train'\. It has test_prefs, train_prefs"):
        read_preferences(tmp_path)
    with pytest.raises(InputError, match=r"no split 'test'\. It has train"):
        read_preferences(jsonl_file(tmp_path), split="test")


@pytest.mark.parametrize("make", ["jsonl", "parquet"])
def test_unknown_columns_are_listed_beside_the_known_forms(tmp_path, make):
    rows = Dataset.from_list([{"question": "u", "response_j": "a", "response_k": "b"}])
    source = tmp_path / f"data.{make}"
    rows.to_json(source) if make == "jsonl" else rows.to_parquet(source)
    with pytest.raises(InputError, match=r"the columns are question, response_j, response_k.*known forms are"):
        read_preferences(source)


def test_an_empty_source_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "empty.json").write_text("[]")
    Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}).to_parquet(tmp_path / "empty.parquet")
    for name in ("empty.jsonl", "empty.json", "empty.parquet"):
        with pytest.raises(InputError, match="there are no rows"):
            read_preferences(tmp_path / name)


def test_a_source_without_one_usable_row_is_refused_with_the_reasons(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [plain(0) | {"chosen": ""}, b"{"])
    with pytest.raises(InputError, match=r"none of its 2 rows can be used: 1 empty completion \(line 1\); 1 not JSON"):
        read_preferences(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", b"[{]", r"data.json:1: not JSON: .* at column 3"),
        ("data.json", b'["\xff"]', "not UTF-8 at byte 2"),
        ("data.json", b"[" * 100_000, "not JSON that can be read"),
        ("data.jsonl", b"[" * 100_000, "none of its 1 rows"),
        ("data.parquet", b"not parquet at all", "cannot be read as parquet"),
        ("data.csv", b"prompt,chosen,rejected\n", "files of this kind are not read"),
    ],
)
def test_an_unreadable_file_is_an_input_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_preferences(tmp_path / name)


def test_unreadable_folders_are_input_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no data set can be made out"):
        read_preferences(tmp_path / "empty")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/state.json").write_text("{")
    with pytest.raises(InputError, match="save_to_disk wrote, but it cannot be read"):
        read_preferences(tmp_path / "half")
    source = saved_dataset(tmp_path)
    arrow = next(source.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        read_preferences(source)


@pytest.mark.parametrize("option", [{"subset": "default"}, {"revision": "main"}, {"limit": 0}])
def test_options_that_make_no_sense_are_refused(tmp_path, option):
    with pytest.raises(InputError, match=next(iter(option))):
        read_preferences(jsonl_file(tmp_path), **option)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["json", "jsonl", "parquet"]))
def test_no_content_of_a_file_gives_anything_but_an_input_error(tmp_path_factory, content, suffix):
    source = tmp_path_factory.mktemp("any") / f"data.{suffix}"
    source.write_bytes(content)
    with pytest.raises(InputError):
        read_preferences(source)


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


@settings(max_examples=400, deadline=None)
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


def test_reading_preferences_needs_no_torch():
    code = "import slime_ray.data.splits, slime_ray.data.preferences, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not REAL_DATA.is_file(), reason="the sample of real preference data is not here")
def test_real_preferences_load_without_a_skipped_row():
    loaded = read_preferences(REAL_DATA, strict=True)
    with REAL_DATA.open() as file:
        assert loaded.dataset.to_list() == [json.loads(line) for line in file]
    assert len(loaded.dataset) == 200
