"""Tools, their calls and their answers are written by the chat template, as transformers has it write them."""

import copy
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from slime_ray.config.judge import Template
from slime_ray.config.settings import Data
from slime_ray.data.corpus import read_mixture
from slime_ray.data.preferences import read_preferences
from slime_ray.data.splits import content_hash, prompt_hash, rows_of
from slime_ray.data.template_text import resolve_chat_template
from slime_ray.data.tokenizing import LOST, SPECIAL_TEXT, render_prompts, tokenize_pairs, tokenize_prompts
from slime_ray.errors import InputError
from slime_ray.evaluation.conversations import Prompt
from slime_ray.evaluation.field_files import read_questions
from slime_ray.evaluation.judges.llm import render
from slime_ray.training.prompts import read_prompts, write_prompts

from .chat import SPECIAL, byte_level, make, say
from .rows import plain, skipped, write_lines


def tool(name, description, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def call(name, *, text=None, **arguments):
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": text, "tool_calls": [{"type": "function", "function": function}]}


WEATHER = tool(
    "weather", "Weather of a city.", city={"type": "string", "description": "Its name."}, days={"type": "integer"}
)
CALCULATE = tool("calculate", "Value of a formula.", formula={"type": "string"}, exact={"type": "boolean"})
NOTHING = tool("now", "The time.")
ASKED = [say("system", "Be kind."), say("user", "Weather in Århus?")]
HARD = {
    "quote": 'He said "no"\n\tand left.',
    "count": 3,
    "share": 0.5,
    "yes": True,
    "none": None,
    "in": {"deep": ["a\\b", "é"]},
}
ROWS = [
    {
        "prompt": ASKED,
        "chosen": [call("weather", city="Århus", days=2)],
        "rejected": [say("assistant", "I do not know.")],
        "tools": [WEATHER, CALCULATE],
    },
    {
        "prompt": [*ASKED, call("weather", city="Århus"), {"role": "tool", "name": "weather", "content": "12 degrees"}],
        "chosen": [say("assistant", "It is 12.")],
        "rejected": [call("calculate", formula="10 + 2", exact=True)],
        "tools": [WEATHER, CALCULATE],
    },
    {
        "prompt": [say("user", "The time, and what is 2 + 2?")],
        "chosen": [call("now")],
        "rejected": [call("calculate", formula="2 + 2")],
        "tools": [NOTHING, CALCULATE],
    },
    {"prompt": [say("user", "Hi")], "chosen": [say("assistant", "Hello.")], "rejected": [say("assistant", "No.")], "tools": None},
]  # fmt: skip


def tokenizer_of(family):
    special, bos, eos = SPECIAL["qwen3" if family == "qwen_tools" else "llama3"]
    tokenizer = byte_level(family, special, bos=bos, eos=eos)
    tokenizer.chat_template = resolve_chat_template(tokenizer, None)
    return tokenizer


@pytest.fixture(scope="module", params=["qwen_tools", "llama_tools"])
def tokenizer(request):
    return tokenizer_of(request.param)


def expected_ids(tokenizer, messages, tools, **options):
    return tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **options)


# Files


def as_lines(path, rows):
    return write_lines(path.with_suffix(".jsonl"), rows)


def with_json_text(rows):
    """As OpenAI has arguments, and as tools are often kept."""
    rows = copy.deepcopy(rows)
    for row in rows:
        row["tools"] = json.dumps(row["tools"])
        for message in (*row["prompt"], *row["chosen"], *row["rejected"]):
            for each in message.get("tool_calls", ()):
                each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
    return rows


def as_table(path, rows):
    """Arrow gives each object the fields of all, and null where it had none."""
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    if isinstance(rows[0]["tools"], list):
        arguments = pq.read_table(path)["chosen"][0].as_py()[0]["tool_calls"][0]["function"]["arguments"]
        assert arguments == {"city": "Århus", "days": 2} or None in arguments.values()
        assert None in pq.read_table(path)["tools"][0].as_py()[0]["function"]["parameters"]["properties"].values()
    return path


def as_folder(path, rows):
    Dataset.from_list(rows).save_to_disk(path)
    return path


def as_csv(path, rows):
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: json.dumps(cell) for name, cell in row.items()} for row in rows)
    return path


def as_conversations(path, rows):
    """Chosen and rejected as whole conversations."""
    whole = [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"], "tools": row["tools"]}
        for row in rows
    ]
    return as_lines(path, whole)


FORMS = {
    "lines": as_lines,
    "lines with JSON text": lambda path, rows: as_lines(path, with_json_text(rows)),
    "table": as_table,
    "table with JSON text": lambda path, rows: as_table(path, with_json_text(rows)),
    "folder": as_folder,
    "cells": as_csv,
    "conversations": as_conversations,
}


def as_kept(form, value):
    """A value as a form keeps it: older Arrow, such as 22, sorts the fields of an object by name."""
    if form not in ("table", "folder") or pa.array([{"b": 0, "a": 0}]).type.field(0).name == "b":
        return value
    if isinstance(value, dict):
        return {name: as_kept(form, value[name]) for name in sorted(value)}
    return [as_kept(form, each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", FORMS)
def test_pairs_have_the_ids_that_transformers_writes(tmp_path, tokenizer, form):
    loaded = read_preferences(FORMS[form](tmp_path / "data", ROWS), strict=True)
    assert (loaded.report.text_ignored, loaded.report.columns_ignored) == ((), ())
    pairs = tokenize_pairs(loaded.dataset, tokenizer, max_tokens=5000, strict=True)
    for row, ids in zip(as_kept(form, ROWS), pairs.table.to_pylist(), strict=True):
        prompt = expected_ids(tokenizer, row["prompt"], row["tools"], add_generation_prompt=True)
        assert ids["prompt_ids"] == prompt
        for side in ("chosen", "rejected"):
            whole = expected_ids(tokenizer, row["prompt"] + row[side], row["tools"])
            turn = prompt + ids[f"{side}_ids"]
            assert whole[: len(turn)] == turn
            assert tokenizer.decode(whole[len(turn) :]).strip() == ""
    spelled = tokenizer.decode(pairs.table["chosen_ids"][0].as_py())
    assert '"name": "weather"' in spelled
    assert '{"city": "Århus", "days": 2}' in spelled


def test_prompts_to_answer_have_the_ids_that_transformers_writes(tmp_path, tokenizer):
    rows = list(rows_of(read_preferences(as_lines(tmp_path / "data", ROWS)).dataset))
    messages = [row["prompt"] for row in rows]
    kept, _ = tokenize_prompts(messages, tokenizer, strict=True)
    write_prompts(tmp_path / "prompts", [Prompt(str(number), messages[number], ids) for number, ids in kept.items()])
    prompts = read_prompts(tmp_path / "prompts")
    for row, prompt in zip(ROWS, prompts, strict=True):
        assert prompt.token_ids == expected_ids(tokenizer, row["prompt"], row["tools"], add_generation_prompt=True)
    # A later turn is asked after the policy's own answer.
    later = [say("assistant", "Mild."), say("user", "And tomorrow?")]
    again = render_prompts(tokenizer, [[*each.messages, *later] for each in prompts])
    for row, ids in zip(ROWS, again, strict=True):
        assert ids == expected_ids(tokenizer, row["prompt"] + later, row["tools"], add_generation_prompt=True)


def test_hard_arguments_are_written_and_found_again(tmp_path, tokenizer):
    rows = [ROWS[0] | {"chosen": [call("weather", **HARD)]}]
    dataset = read_preferences(as_lines(tmp_path / "data", rows)).dataset
    pairs = tokenize_pairs(dataset, tokenizer, max_tokens=5000, strict=True)
    assert json.dumps(HARD, ensure_ascii=False) in tokenizer.decode(pairs.table["chosen_ids"][0].as_py())


def test_a_special_token_within_arguments_is_encoded_as_text(tmp_path, tokenizer):
    (end,) = {"<|im_end|>", "<|eot_id|>"} & set(tokenizer.all_special_tokens + list(tokenizer.get_added_vocab()))
    dataset = read_preferences(
        as_lines(tmp_path / "d", [ROWS[0] | {"chosen": [call("weather", city=f"a{end}b")]}])
    ).dataset
    pairs = tokenize_pairs(dataset, tokenizer, max_tokens=5000)
    ids = pairs.table["chosen_ids"][0].as_py()
    assert [group.reason for group in pairs.truncation.changed] == [SPECIAL_TEXT]
    assert f'{{"city": "a{end}b"}}' in tokenizer.decode(ids)
    assert ids.count(tokenizer.convert_tokens_to_ids(end)) == 1


def test_the_name_and_the_id_of_an_answered_call_are_given_to_the_template(tmp_path):
    tokenizer = make("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message.content").replace(
        "message.content", "(message.name ~ '#' ~ message.tool_call_id if message.role == 'tool') ~ message.content"
    )
    prompt = [say("user", "Time?"), {"role": "tool", "name": "now", "tool_call_id": "c7", "content": "12:00"}]
    row = {"prompt": prompt, "chosen": [say("assistant", "Noon.")], "rejected": [say("assistant", "No.")]}
    (read,) = rows_of(read_preferences(as_lines(tmp_path / "data", [row]), strict=True).dataset)
    (ids,) = render_prompts(tokenizer, [read["prompt"]])
    assert ids == expected_ids(tokenizer, prompt, None, add_generation_prompt=True)
    assert "now#c712:00" in tokenizer.decode(ids)


def test_questions_of_a_file_have_the_ids_that_transformers_writes(tmp_path, tokenizer):
    lines = [{"prompt": row["prompt"], "tools": row["tools"]} for row in ROWS]
    questions = read_questions(write_lines(tmp_path / "questions.jsonl", lines))
    assert len({question.id for question in questions}) == len(ROWS)
    for row, ids in zip(ROWS, render_prompts(tokenizer, [each.messages() for each in questions]), strict=True):
        assert ids == expected_ids(tokenizer, row["prompt"], row["tools"], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "u", "tools": "hammer"}, "neither a list of objects nor the JSON text"),
        ({"prompt": [say("user", "u") | {"tool_calls": [{"name": "f"}]}]}, "not in a message of the assistant"),
        ({"prompt": [say("user", "u"), call("f")]}, "ends with a message of the user, or the answer of a tool"),
    ],
)
def test_questions_whose_tools_cannot_be_read_are_refused(tmp_path, row, complaint):
    with pytest.raises(InputError, match=rf"questions\.jsonl:1: .*{complaint}"):
        read_questions(write_lines(tmp_path / "questions.jsonl", [row]))


# What a template does not write


def changed(dataset, tokenizer):
    with pytest.raises(InputError, match=r"model\.chat_template"):
        tokenize_pairs(dataset, tokenizer, max_tokens=5000, strict=True)
    return {
        group.reason: (group.rows, group.example)
        for group in tokenize_pairs(dataset, tokenizer, max_tokens=5000).truncation.changed
    }


def test_a_template_without_tools_loses_them_and_their_calls(tmp_path):
    row = ROWS[0] | {"chosen": [call("weather", text="Let me look.", city="Oslo")]}
    dataset = read_preferences(as_lines(tmp_path / "data", [row])).dataset
    assert changed(dataset, make("chatml")) == {
        f"tools of prompts {LOST}": (("row 0",), "weather"),
        f"tool calls of chosen completions {LOST}": (("row 0",), "weather"),
    }


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("{{ call.arguments | tojson }}", "{}", "Århus"),
        ('"name": "\' + call.name + \'"', "", "weather"),
        ("{{ call.arguments | tojson }}", "{{ call.arguments.keys() | list | tojson }}", "Århus"),
    ],
    ids=["arguments", "name", "values"],
)
def test_parts_of_a_call_that_a_template_leaves_out_are_named(tmp_path, old, new, missing):
    tokenizer = tokenizer_of("qwen_tools")
    assert old in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
    dataset = read_preferences(as_lines(tmp_path / "data", ROWS[1:2])).dataset
    assert changed(dataset, tokenizer)[f"tool calls of prompts {LOST}"] == (("row 0",), missing)


def test_what_a_template_raises_costs_the_row_and_is_said(tmp_path):
    twice = call("weather", city="Oslo")
    twice["tool_calls"] *= 2
    dataset = read_preferences(as_lines(tmp_path / "data", [ROWS[1], ROWS[0] | {"chosen": [twice]}])).dataset
    tokenizer = tokenizer_of("llama_tools")
    dropped = tokenize_pairs(dataset, tokenizer, max_tokens=5000).truncation.dropped
    assert skipped_reasons(dropped) == {
        "refused by the chat template: This model calls one tool at a time.": ("row 1",)
    }
    assert len(tokenize_pairs(dataset, tokenizer_of("qwen_tools"), max_tokens=5000, strict=True).table) == 2


def skipped_reasons(groups):
    return {group.reason: group.rows for group in groups}


def test_text_next_to_a_call_that_a_template_leaves_out_is_named(tmp_path):
    row = ROWS[0] | {"chosen": [call("weather", text="Let me look.", city="Oslo")]}
    dataset = read_preferences(as_lines(tmp_path / "data", [row])).dataset
    assert changed(dataset, tokenizer_of("llama_tools")) == {f"chosen completions {LOST}": (("row 0",), "Let me look.")}
    assert len(tokenize_pairs(dataset, tokenizer_of("qwen_tools"), max_tokens=5000, strict=True).table) == 1


# Data sets


def test_tools_belong_to_what_is_asked(tmp_path):
    rows = [ROWS[0], ROWS[0] | {"tools": [WEATHER]}, ROWS[0] | {"tools": None}]
    read = list(rows_of(read_preferences(as_lines(tmp_path / "data", rows)).dataset))
    assert len({prompt_hash(row["prompt"]) for row in read}) == 3


def test_rows_without_tools_are_the_same_next_to_rows_with_some(tmp_path):
    alone = write_lines(tmp_path / "plain.jsonl", [plain(number) for number in range(3)])
    tools = as_lines(tmp_path / "tools", ROWS[:2])
    both, _ = read_mixture(Data(train=[{"source": str(alone)}, {"source": str(tools)}]))
    assert content_hash(both.select(range(3))) == content_hash(read_preferences(alone).dataset)
    together = write_lines(tmp_path / "both.jsonl", [*map(plain, range(1500)), *ROWS[:2]])
    assert len(list(rows_of(read_preferences(together).dataset))) == 1502


def test_declared_as_metadata_tools_are_left_aside(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [plain(0) | {"tools": "hammer"}, ROWS[0]])
    assert skipped(read_preferences(source).report) == {
        "tools is neither a list of objects nor the JSON text of one": ("line 1",)
    }
    loaded = read_preferences(source, strict=True, metadata=["tools"])
    assert loaded.report.rows_kept == 2
    assert loaded.report.columns_ignored == ("tools",)
    assert all("Weather of a city" not in json.dumps(row) for row in rows_of(loaded.dataset))


def test_a_judge_is_shown_tools_and_calls(tmp_path):
    (row,) = rows_of(read_preferences(as_lines(tmp_path / "data", ROWS[1:2])).dataset)
    template = Template(name="t", user="{question}{answer_a}{answer_b} [[A>B]]")
    (_, shown) = render(template, question=row["prompt"], answers={"answer_a": "a", "answer_b": "b"}, nonce="n")
    for text in ("Weather of a city.", '"arguments": {"city": "Århus"}', "12 degrees"):
        assert text in shown["content"]
