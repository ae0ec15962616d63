"""The main table as text, Markdown, LaTeX, HTML and CSV."""

import io
import re

import pandas as pd
import pytest
from slime_ray.analysis import tables

from slime_ray.runs import results

from .conftest import add_trial, finish
from .test_tables import small


def test_the_terminal_form_fits_140_columns(main, unjudged_run):
    for table in (main, tables.win_rate_stability(results.load(unjudged_run))):
        lines = table.text().splitlines()
        assert max(map(len, lines)) <= 140
        assert any(line.startswith("search-0004 ") for line in lines)
        assert "dpo: failed 1 of 2: out of memory" in lines


def test_a_terminal_never_obeys_what_a_label_or_reason_says(tmp_path):
    add_trial(tmp_path, "a", label="a\x1b[31m\nb", status="failed", reason="\x1b]0;x\x07", stability=0.0)
    table = tables.win_rate_stability(results.load(finish(tmp_path)))
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", table.text())


def test_latex_is_escaped(main):
    latex = main.latex()
    assert r"100\% \& \textless{}b\textgreater{}\$x\$\textless{}/b\textgreater{} &" in latex
    assert r"dpo\_tuned &" in latex
    assert r"\textbf{75.0 {[}" in latex
    assert not re.search(r"(?<!\\)%(?! needs)(?!$)", latex, flags=re.MULTILINE)
    columns = latex.count("&", 0, latex.index(r"\midrule")) - latex.count(r"\&", 0, latex.index(r"\midrule"))
    for line in latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines():
        assert len(re.findall(r"(?<!\\)&", line)) == columns


def test_html_is_escaped_and_marked(main):
    page = main.html()
    assert '<th scope="row" class="text">100% &amp; &lt;b&gt;$x$&lt;/b&gt;</th>' in page
    assert "<b>75.0 <span>[54.0, 88.5]</span></b>" in page


def test_markdown_keeps_its_columns(main):
    lines = [line for line in main.markdown().splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(lines) == 2 + len(main.frame)
    assert "**75.0 \\[" in main.markdown()


def test_csv_holds_the_numbers_unrounded(main):
    read = pd.read_csv(io.StringIO(main.csv()))
    assert read["win_rate"].tolist() == pytest.approx(main.frame["win_rate"].tolist(), abs=1e-15)


def test_latex_asks_for_no_font_encoding(main):
    # A plain document has OT1, which lacks this letter.
    assert '"no change"' in " ".join(main.notes)
    assert "textquotedbl" not in main.latex()
    assert "``no change''" in main.latex()


def test_labels_of_any_length_are_shown_whole_and_cost_no_more_columns_than_shorter_ones(tmp_path):
    shared = "without-" + "anchor-" * 12
    long = small(tmp_path / "long", **{f"{shared}{end}": [1.0, 0.0] for end in "ab"}).text()
    assert f"{shared}a" in long
    assert f"{shared}b" in long
    label = "x" * 48
    short = small(tmp_path / "short", **{label: [1.0, 0.0]}).text()
    left_out = [[line for line in text.splitlines() if line.startswith("Left out")] for text in (long, short)]
    assert left_out[0] == left_out[1]
