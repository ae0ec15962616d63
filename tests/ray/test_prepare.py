"""What a sweep says of the shared stages when they are made."""

from slime_ray.on_ray.prepare import unused_rows
from slime_ray.training.facts import model_lines


def test_rows_that_could_not_be_used_are_told_with_their_places():
    whole = {"rows_read": 22, "rows_dropped": 0}
    data = {
        "rows_read": 88,
        "rows_skipped": [
            {"reason": "rejected is missing", "count": 4, "rows": ["line 12", "line 13", "line 14", "line 15"]},
            {"reason": "not JSON", "count": 1, "rows": ["line 20"]},
        ],
        "truncated": {"sft": whole, "train": whole, "held_out": {"rows_read": 20, "rows_dropped": 3}},
    }
    assert unused_rows(data) == [
        "Data: 5 of 88 rows are left out: 4 rejected is missing (line 12, line 13, line 14); 1 not JSON (line 20).",
        "Data: 3 of 20 held-out rows are left out in tokenizing; manifest.json says which.",
    ]
    assert unused_rows({"rows_read": 1024, "skipped": [], "truncated": {"sft": whole}}) == []


def test_what_was_loaded_for_a_model_is_told():
    note = "The adapter a was merged into its base b."
    assert model_lines({"rows_read": 8, "model_notes": [note]}) == [f"Model: {note}"]
