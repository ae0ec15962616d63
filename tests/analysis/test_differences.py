"""Where two answers differ: as a person would mark it, and put together again what was there."""

import numpy as np
import pytest
from slime_ray.analysis import report
from slime_ray.analysis.differences import differing, pieces

from .conftest import add_trial, finish, outcomes


def marked(text, spans):
    return "".join(f"[{piece}]" if is_marked else piece for is_marked, piece in pieces(text, spans))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("the same words", "the same words", ("the same words", "the same words")),
        ("The cat sat down.", "The dog sat.", ("The [cat] sat [down].", "The [dog] sat.")),
        ("so  it is\n<b>", "so it is <i>", ("so  it is\n<[b]>", "so it is <[i]>")),
        ("one two \U0001f600 three", "one two four", ("one two [\U0001f600 three]", "one two [four]")),
        ("nothing of this", "is shared by those", ("nothing of this", "is shared by those")),
        ("", "one", ("", "one")),
        # An answer that repeats itself would take many seconds.
        ("! " * 1000, "! . " * 500, ("! " * 1000, "! . " * 500)),
    ],
)
def test_words_that_the_other_has_not_are_marked(one, other, expected):
    ours, theirs = differing(one, other)
    assert (marked(one, ours), marked(other, theirs)) == expected


def test_what_is_not_marked_is_the_same_in_both():
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, other = (" ".join(rng.choice(list("abc"), rng.integers(1, 20))) for _ in range(2))
        ours, theirs = differing(one, other)
        if not ours and not theirs:
            continue
        texts = [
            "".join(piece for is_marked, piece in pieces(text, spans) if not is_marked).split()
            for text, spans in ((one, ours), (other, theirs))
        ]
        assert texts[0] == texts[1]
        assert "".join(piece for _, piece in pieces(one, ours)) == one


def test_the_page_marks_them_and_shows_markup_as_text(tmp_path):
    answers = {"answer": lambda index: f"baseline <img src=x> {index}"}
    add_trial(tmp_path, "arm-only-s0", label="only", won=outcomes(0.75), **answers)
    run = finish(tmp_path, {"seeds": [0], "experiment": {"arms": [{"label": "only"}]}})
    page = report.write_report(run, tmp_path / "out").html.read_text(encoding="utf-8")
    assert "<p>baseline <ins>&lt;img src=x&gt;</ins> 0</p>" in page
    assert "<p>baseline 0</p>" in page
