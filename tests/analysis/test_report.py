"""A report stands alone, repeats, escapes what models and users wrote, and says first what is not settled."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib
import pytest
from slime_ray.analysis import report, tables

from slime_ray.errors import InputError
from slime_ray.runs import results

from .conftest import HOSTILE, add_trial, finish, outcomes
from .designs import factorial, knobs


@pytest.fixture(scope="session")
def page(written):
    return written.html.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects tags with their attributes, ids, and what was left open."""

    VOID = {"meta", "link", "br", "wbr", "img", "use", "path", "rect"}

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


DATA = ("front-data", "front-spec", "curves-spec")
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def answer(run):
    """The sentences, with plain blanks."""
    both = tables.answer(run, tables.win_rate_stability(run))
    return tuple([sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in said] for said in both)


def elements(page):
    parser = Elements()
    parser.feed(page)
    assert parser.open == []
    return parser.found


def test_all_files_are_written_and_no_partial_ones_stay(written):
    tables_ = ["win_rate_stability", "stability_parts", "search_trials", "search_winners", "search_front"]
    tables_ += ["search_budget", "cost", "failures"]
    drawings = ["pareto", "logprob_curves", "search_slices", "search_budget"]
    names = [f"{name}.{kind}" for name in tables_ for kind in ("md", "csv", "tex")]
    names += [f"{name}.{kind}" for name in drawings for kind in ("svg", "png", "pdf")]
    assert sorted(path.name for path in written.folder.iterdir()) == sorted([*names, "report.html"])
    assert sorted(written.files) == sorted(written.folder.iterdir())


def test_winners_as_confirmed_stand_before_the_front_that_they_were_chosen_on(page):
    assert page.index("The winners of the search, as the search measured them") < page.index("The front of the search")


def test_the_page_asks_for_nothing_from_outside(page):
    for tag, attributes in elements(page):
        assert tag not in ("link", "img", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    style = "".join(re.findall(r"<style.*?</style>", page, flags=re.DOTALL))
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", SCRIPT.sub("", page)) == []
    # The answers speak of an address; nothing else does. What the scripts ask for is seen in a browser.
    assert "://" not in SCRIPT.sub("", page).replace("http://x.example", "")


def test_only_the_scripts_of_the_page_may_run(page):
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in SCRIPT.findall(page)]
    assert len(hashes) == 2
    assert policy.partition("script-src ")[2].split() == [f"'sha256-{digest}'" for digest in hashes]


def test_headings_go_down_one_step_at_a_time_and_tables_say_what_their_cells_are(page):
    found = elements(page)
    levels = [int(tag[1]) for tag, _ in found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tables_ = [tag for tag, _ in found if tag in ("table", "caption")]
    assert len(tables_) > 4
    assert tables_[::2] == ["table"] * (len(tables_) // 2)
    assert tables_[1::2] == ["caption"] * (len(tables_) // 2)
    assert {attributes.get("scope") for tag, attributes in found if tag == "th"} == {"col", "row"}


def test_ids_occur_once_and_references_lead_somewhere(page):
    found = elements(page)
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [attributes["href"][1:] for _, attributes in found if attributes.get("href")]
    used += re.findall(r"url\(#([^)]+)\)", SCRIPT.sub("", page))
    assert used
    assert set(used) <= set(ids)


def test_a_drawing_on_the_page_is_that_of_the_file_to_a_hundredth_of_a_point(written, page):
    number = re.compile(r"-?\d+\.?\d*")
    drawn = re.findall(r'<svg role="img" aria-label="([^"]+)".*?</svg>', page, re.DOTALL)
    assert drawn == ["pareto", "logprob curves", "search slices", "search budget"]
    for name in drawn:
        on_page = re.search(rf'<svg role="img" aria-label="{name}".*?</svg>', page, re.DOTALL)[0]
        assert ">\n" not in on_page
        in_file = (written.folder / f"{name.replace(' ', '_')}.svg").read_text()
        short, exact = (re.findall(r'<(?:path|use)[^>]*? (?:d|x)="([^"]*)"', text) for text in (on_page, in_file))
        assert len(short) == len(exact) > 0
        for one, other in zip(short, exact, strict=True):
            assert re.findall("[A-Za-z]", one) == re.findall("[A-Za-z]", other)
            numbers = (list(map(float, number.findall(text))) for text in (one, other))
            assert next(numbers) == pytest.approx(next(numbers), abs=0.01)
            assert not re.search(r"\.\d{3}", one)


def test_what_models_and_users_wrote_is_escaped(page):
    opened = ["<script>", "<script>"] + [f'<script type="application/json" id="{name}">' for name in DATA]
    assert sorted(re.findall(r"<script[^>]*>", SCRIPT.sub("<script></script>", page))) == sorted(opened)
    assert "<img" not in SCRIPT.sub("", page)
    answers = json.loads(page.partition('id="front-data">')[2].partition("</script>")[0])["texts"]
    assert f"<script>alert(0)</script> & http://x.example {HOSTILE}" in answers
    assert "&lt;script&gt;alert(0)&lt;/script&gt; &amp; http://x.example" in page
    assert "100% &amp; &lt;b&gt;$x$&lt;/b&gt;" in page
    assert "<b>$x$" not in page


def test_a_report_repeats_bit_for_bit_whatever_the_users_style_is(judged_run, written, tmp_path):
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.fonttype": "none"}):
        again = report.write_report(judged_run, tmp_path)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in written.files]


def test_what_is_not_settled_stands_before_the_answer(page):
    assert page.index("Not settled") < page.index("What the run says") < page.index("Win rate and stability")


def test_the_answer_is_what_the_numbers_say(judged_run):
    run = results.load(judged_run)
    open_, said = answer(run)
    # search-0004 and nll win the same 18 of 24 prompts.
    assert any(sentence.startswith("Which of nll, ") and "search-0004" in sentence for sentence in open_)
    assert any(sentence.startswith("2 of 24 trials failed or diverged") for sentence in open_)
    assert any("these checkpoints only" in sentence for sentence in open_)
    # The arm without updates is the SFT checkpoint: nothing is open there.
    (unclear,) = [sentence for sentence in open_ if "covers 50 %" in sentence]
    assert unclear.startswith("Whether dpo_tuned, slime-paper and 100% & <b>$x$</b> are better or worse")
    assert (
        said[0]
        == "nll has the highest win rate: 75.0 % [54.0, 88.5], at stability 0.70 (2 seeds, 24 prompts, judge exact, 96 verdicts)."
    )
    assert "Of the rows that cannot be told apart, nll has the highest stability: 0.70." in said
    assert any(one.startswith("Worse than the baseline on these prompts: ") and "(at least " in one for one in said)
    assert any(sentence.startswith("Search: 5 of 8 trials on the front") for sentence in said)


def test_a_clear_winner_is_called_separable(tmp_path):
    add_trial(tmp_path, "a", label="a", won=[1.0] * 20)
    add_trial(tmp_path, "b", label="b", won=[0.0] * 20)
    run = results.load(finish(tmp_path))
    open_, said = answer(run)
    assert "separable from every other row" in said[0]
    assert not any("wins most" in sentence for sentence in open_)


@pytest.mark.parametrize(
    ("won", "opened"),
    [
        ([1.0] * 19, "Everything here: 19 prompts were answered"),
        ([1.0] * 22 + [0.0] * 18, "Whether a is better or worse"),
    ],
)
def test_nothing_is_called_separable_by_few_prompts_or_where_the_baseline_may_be_as_good(tmp_path, won, opened):
    add_trial(tmp_path, "a", label="a", won=won)
    add_trial(tmp_path, "b", label="b", won=[0.0] * len(won))
    open_, said = answer(results.load(finish(tmp_path)))
    assert "separable" not in said[0]
    assert any(sentence.startswith(opened) for sentence in open_)


@pytest.mark.parametrize(
    ("accuracies", "claim"),
    [
        ({"a": 0.8}, "The held-out preference accuracy of a is 80.0 %"),
        ({"a": 0.8, "b": 0.7}, "a has the highest held-out preference accuracy: 80.0 %"),
        ({"a": 1.0, "b": 1.0, "c": 0.9}, "a and b have the same held-out preference accuracy, the highest: 100.0 %"),
    ],
)
def test_an_accuracy_that_several_rows_have_is_not_told_of_one(tmp_path, accuracies, claim):
    for label, accuracy in accuracies.items():
        add_trial(tmp_path, f"arm-{label}-s0", label=label, preference_accuracy=accuracy, win_rate=None, judge="none")
    finish(tmp_path, {"judge": "none"})
    _, said = answer(results.load(tmp_path))
    assert said[0].startswith(claim)


def test_without_a_judge_no_win_is_claimed(unjudged_run):
    run = results.load(unjudged_run)
    open_, said = answer(run)
    assert any("nothing was judged" in sentence for sentence in open_)
    assert not any("win rate" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("answers", "stabilities", "opened"),
    [
        (6, {"a": 0.9, "b": 0.1}, ["How stable the rows are: S rests on 6 answers of each trial; below 20"]),
        (24, {"a": 0.9, "b": 0.1}, []),
        (
            24,
            {"a": 0.5, "b": 0.49},
            ["Which of a and b is the most stable: no interval of S tells them apart (24 answers"],
        ),
        # The intervals overlap, and that of the difference leaves 0 out.
        (24, {"a": 0.5, "b": 0.41}, []),
    ],
)
def test_a_stability_that_chance_may_have_made_is_not_settled_without_a_judge(tmp_path, answers, stabilities, opened):
    add_trial(tmp_path, "sft", label="sft", won=[1.0] * answers, win_rate=None, judge="none", updates=0, stability=1.0)
    for label, stability in stabilities.items():
        about = {"win_rate": None, "judge": "none", "pairs": 40, "preference_accuracy": stability}
        shift = 0.35 * (1 / stability - 1) ** 0.5
        add_trial(tmp_path, label, label=label, won=[1.0] * answers, stability=stability, entropy_shift=shift, **about)
    run = results.load(finish(tmp_path, {"judge": "none"}))
    # Each S with the ends that its label has; the bootstrap of S itself is held in test_stability.
    main = tables.win_rate_stability(run)
    scores = main.frame["stability"]
    main.frame["stability_low"], main.frame["stability_high"] = scores - 0.05, scores + 0.05
    open_, _ = tables.answer(run, main)
    said = [sentence for sentence in open_ if " stable" in sentence]
    assert [one[: len(start)] for one, start in zip(said, opened, strict=True)] == opened


def test_rows_without_an_interval_of_stability_are_not_told_apart_by_it(tmp_path):
    for label, stability in (("a", 0.9), ("b", 0.1)):
        add_trial(tmp_path, label, label=label, won=[1.0, 0.0], win_rate=None, judge="none", stability=stability)
    open_, _ = answer(results.load(finish(tmp_path, {"judge": "none"})))
    assert any(one.startswith("Which of a and b is the most stable: no interval") for one in open_)


def test_the_page_tells_versions_hashes_data_and_estimators(page):
    for words in (
        "python 3.11",
        "held_out abc",
        "rows_read 9",
        "2 empty",
        "2026-01-01",
        "effective number of prompts",
        "two-way analysis of variance",
    ):
        assert words in page


def test_five_answers_stand_beside_the_baselines(page):
    assert page.count("<article>") == 5
    assert "question 0" in page
    assert "baseline 0" in page


def test_a_finished_row_without_the_leading_measure_is_not_called_unfinished(tmp_path):
    add_trial(tmp_path, "arm-a-s0", label="a", judge="none", win_rate=None, preference_accuracy=None)
    open_, _ = answer(results.load(finish(tmp_path, {"judge": "none"})))
    assert "No arm and no confirmed winner has a preference accuracy, so nothing can be compared." in open_


@pytest.mark.parametrize("kind", ["failed_run", "one_trial_run", "search_only_run", "unjudged_run"])
@pytest.mark.usefixtures("sketched")
def test_every_kind_of_run_gets_a_report(kind, request, tmp_path):
    files = report.write_report(request.getfixturevalue(kind), tmp_path)
    elements(page := files.html.read_text(encoding="utf-8"))
    if kind == "failed_run":
        assert "4 of 4 trials failed or diverged" in page
        assert "no memory" in page
    assert ("search_trials.csv" in {path.name for path in files.files}) == (kind in ("search_only_run", "unjudged_run"))


@pytest.mark.usefixtures("sketched")
def test_the_default_place_is_inside_the_run_and_both_may_be_given_as_text(tmp_path):
    add_trial(tmp_path, "a", won=[1.0, 0.0])
    finish(tmp_path)
    assert report.write_report(tmp_path).html == tmp_path / "report" / "report.html"
    assert report.write_report(str(tmp_path), str(tmp_path / "out")).html == tmp_path / "out" / "report.html"


@pytest.mark.usefixtures("sketched")
def test_the_terminal_gets_the_tables_or_the_search(written, search_only_run, tmp_path):
    assert "win rate % [95 %]" in written.text
    # What the search found: the winner first, then the front.
    assert re.findall(r"^search-\d+: hard_margin=\S+$", written.text, re.MULTILINE) == [
        "search-0004: hard_margin=2", *(f"search-000{trial}: hard_margin={trial / 2:g}" for trial in (4, 3, 2, 1, 0)),
    ]  # fmt: skip
    assert "search-0002" in report.write_report(search_only_run, tmp_path).text


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="not a run"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sketched")
def test_a_place_that_cannot_be_written_is_a_sentence(one_trial_run, tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError, match=r"taken.* cannot be written.*--out"):
            report.write_report(one_trial_run, place)
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("sketched")
def test_a_report_that_fails_leaves_the_older_one_whole(tmp_path, monkeypatch):
    add_trial(tmp_path, "a", won=[1.0, 0.0])
    finish(tmp_path)
    older = {path: path.read_bytes() for path in report.write_report(tmp_path).files}
    add_trial(tmp_path, "b", label="b", won=[1.0, 1.0])
    results.consolidate(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "build_page", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "report").iterdir()} == older


@pytest.mark.usefixtures("sketched")
def test_the_search_is_explained_where_there_was_one(page, one_trial_run, tmp_path):
    assert "The front of the search" in page
    assert "reference point win rate 0, stability 0" in page
    written = report.write_report(one_trial_run, tmp_path)
    assert not [path.name for path in written.files if path.name.startswith("search_")]
    assert "The front of the search" not in written.html.read_text(encoding="utf-8")


def design_run(path, design, seeds=5):
    """The run of a design on disk: the anchor is worth a quarter of all wins."""
    for cell in design.cells:
        for seed in range(seeds):
            share = 0.75 if cell.levels.get("anchor", True) else 0.5
            won = outcomes(share)[seed:] + outcomes(share)[:seed]
            add_trial(path, f"arm-{cell.label}-s{seed}", label=cell.label, seed=seed, won=won)
    experiment = {"design": design.model_dump(mode="json"), "arms": [{"label": cell.label} for cell in design.cells]}
    return finish(path, {"experiment": experiment, "seeds": list(range(seeds))})


@pytest.mark.usefixtures("sketched")
def test_a_run_with_a_design_has_its_tables_as_files_on_the_page_and_in_the_terminal(tmp_path):
    files = report.write_report(design_run(tmp_path, factorial(("anchor", "stabilizer"))))
    names = {path.name for path in files.files}
    for table in ("ablation", "factorial", "beside_the_paper"):
        assert {f"{table}.md", f"{table}.csv", f"{table}.tex"} <= names
    page = files.html.read_text(encoding="utf-8")
    for words in (
        "The ablation",
        "Effects of the components",
        "Beside the paper",
        "each cell minus full in points",
    ):
        assert words in page
    elements(page)
    assert "effect of " in files.text
    # What a factorial design declares are its main effects.
    assert "anchor matters: its main effect is +25.0" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "sensitivity.svg" not in names


@pytest.mark.usefixtures("sketched")
def test_a_design_that_varies_knobs_has_its_figure(tmp_path):
    files = report.write_report(design_run(tmp_path, knobs("sensitivity", {"a.x": 1.0}, {"a.x": 2.0})))
    names = {path.name for path in files.files}
    assert {"sensitivity.svg", "sensitivity.png", "sensitivity.pdf", "ablation.md"} <= names
    assert not {"factorial.md", "beside_the_paper.md"} & names
    page = files.html.read_text(encoding="utf-8")
    assert "whose own value is the diamond" in page
    assert "Effects of the components" not in page
