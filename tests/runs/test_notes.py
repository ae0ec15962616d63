"""What `train`, `sweep`, `evaluate`, `plan` and the report say of the data."""

import pytest

from slime_ray.runs.notes import data_notes


def group(reason, count, *rows, **more):
    return {"reason": reason, "count": count, "rows": list(rows), **more}


def test_what_is_not_trained_on_as_given_is_told_with_its_places():
    whole = {"rows_read": 22, "rows_dropped": 0, "changed": [], "dropped": []}
    data = {
        "rows_read": 88,
        "rows_skipped": [
            group("rejected is missing", 4, "line 12", "line 13", "line 14", "line 15"),
            group("not JSON", 1, "line 20"),
        ],
        "rows_noted": [group("messages kept as JSON text, read as messages", 1, "line 2")],
        "text_ignored": [group("with a column system", 1, "line 3")],
        "columns_ignored": ["id", "system"],
        "truncated": {
            "sft": whole,
            "train": whole
            | {"changed": [group("chosen completions with lost text", 2, "row 0", "row 1", example="Hi")]},
            "held_out": {"rows_read": 20, "rows_dropped": 3, "dropped": [group("prompt too long", 3, "row 5")]},
            "report_prompts": whole | {"changed": [group("prompts cut at their start", 1, "row 7")]},
        },
    }
    assert data_notes(data) == [
        "Data: 5 of 88 rows are left out: 4 rejected is missing (line 12, line 13, line 14, ...); 1 not JSON (line 20).",
        "Data: rows that are odd but kept: 1 messages kept as JSON text, read as messages (line 2).",
        "Data: rows with text that nothing is trained on: 1 with a column system (line 3). Write it into the messages, or "
        "name what is no text to train on in data.metadata.",
        "Data: other columns are not read: id.",
        "Data: of 22 training pairs some are changed: 2 chosen completions with lost text (row 0, row 1; the first: 'Hi').",
        "Data: 3 of 20 held-out pairs are left out: 3 prompt too long (row 5).",
        "Data: of 22 report prompts some are changed: 1 prompts cut at their start (row 7).",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"rows_read": 1024, "skipped": [], "truncated": {"sft": {"rows_read": 22, "rows_dropped": 0}}},
        {
            "rows_skipped": 3,
            "rows_noted": "x",
            "text_ignored": [1, {"reason": 2}],
            "columns_ignored": 7,
            "truncated": {},
        },
        {"truncated": {"train": 5}},
    ],
    ids=["nothing", "a whole embedded task", "damaged", "damaged part"],
)
def test_manifests_with_less_in_them_say_less(data):
    assert data_notes(data) == []


def test_a_manifest_of_an_earlier_version_has_counts_alone():
    data = {"truncated": {"held_out": {"rows_read": 20, "rows_dropped": 3}}}
    assert data_notes(data) == ["Data: 3 of 20 held-out pairs are left out; manifest.json says which."]
