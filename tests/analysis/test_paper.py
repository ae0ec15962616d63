"""What a paper takes over: complete, from the report's own tables, escaped, and silent about what nobody recorded."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slime_ray.analysis.methods import methods_paragraph, paper
from slime_ray.analysis.printing import Table, latex_text, one_line
from slime_ray.analysis.report import SECTIONS, Findings, made

from slime_ray import cli
from slime_ray.runs import results

from . import designs, searches
from .conftest import add_trial, finish, outcomes
from .test_league import by_rate, league_run
from .test_panel import panel_run

SPECIAL = "#$%&_{}~^\\<>|[]-!?`',äß–−×±σ√²…漢"
SETTINGS = {
    "model": {"source": "org/m", "revision": None, "dtype": "bfloat16", "lora": {"rank": 16, "alpha": 32.0}},
    "data": {"train": "/home/me/secret place/pairs_100%.jsonl", "max_tokens": 512},
    "sft": None,
    "training": {"learning_rate": 1e-5, "updates": None, "epochs": 2.0, "arguments": {"optim": None}},
    "objective": {"name": "slime", "hard_margin": 1.23456789012345, "remove": []},
}


def written_of(run):
    found = Findings(run)
    tables = [entry for entry in SECTIONS if not entry.caption]
    return paper(
        found.run, found.main, {entry.name: table for entry, table in made(found, tables) if isinstance(table, Table)}
    )


def assert_document_compiles(folder, *parts):
    """Compile each text as a document, nothing of which is too wide; skips where there is neither pdflatex nor tectonic."""
    program = next(filter(shutil.which, ("pdflatex", "tectonic")), None)
    if program is None:
        pytest.skip("neither pdflatex nor tectonic here")
    flags = ["-interaction=nonstopmode", "-halt-on-error"] if program == "pdflatex" else []
    for number, part in enumerate(parts):
        head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        name = f"all-{number}.tex"
        (folder / name).write_text("\n".join([head, part, r"\end{document}"]), encoding="utf-8")
        command = [program, *flags, name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout, done.stdout[done.stdout.index("Overfull") :][:300]


def sentence(run, title):
    (said,) = [each for each in methods_paragraph(run) if each.startswith(f"{title}: ")]
    return said.removeprefix(f"{title}: ")


def assert_well_formed(tex):
    """Environments and braces close in order; what LaTeX would read as its own stands where it may."""
    text = re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", tex)
    opened = []
    for token in re.finditer(r"\\(begin|end)\{(\w+)\}|\\(?:[A-Za-z]+|.|\n)|[{}]|[#^_&$]", text):
        kind, name, mark = token[1], token[2], token[0]
        if kind == "begin" or mark == "{":
            opened.append(name or "{")
        elif kind == "end" or mark == "}":
            assert opened.pop() == (name or "{"), text[token.start() - 200 : token.end()]
        elif mark == "&":
            assert "tabular" in opened
        else:
            assert mark not in "#^_", text[token.start() - 80 : token.end()]
    assert opened == []
    assert text.count("$") == text.count(r"\$") + 2 * len(re.findall(r"\$(?:-|\\\w+)\$", text))


def printed(tex):
    """The letters that LaTeX prints for escaped text: a reading of its commands from their manual."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    names |= {"textgreater": ">", "textbar": "|", "ldots": "…", "surd": "√", "sigma": "σ", "times": "×", "pm": "±"}
    math = re.compile(r"(?<!\\)\$(-|\\\w+)\$")
    tex = math.sub(lambda found: "−" if found[1] == "-" else f"{found[1]}{{}}", tex)
    tex = tex.replace(r"\textsuperscript{2}", "²").replace("--", "–")
    tokens = re.findall(r"\\([A-Za-z]+)\{\}|\\([^A-Za-z])|(\{\})|\{(\[)\}|(.)", tex, flags=re.DOTALL)
    return "".join(names[word] if word else escaped or bracket or plain for word, escaped, _, bracket, plain in tokens)


@settings(max_examples=300)
@given(st.text(st.sampled_from(SPECIAL)) | st.text(st.characters(exclude_categories=["Cs"])))
@example("without--anchor---x")
@example("what?` no!` 1,,2")
def test_any_text_is_printed_as_it_is(text):
    text = text.replace('"', "")  # It is made a pair of quotation marks.
    tex = latex_text(text)
    assert printed(tex) == one_line(text)
    for pair in ("!`", "?`", ",,", "---"):
        assert pair not in tex
    assert_well_formed(tex)


@settings(max_examples=8)
@given(st.text(st.sampled_from(SPECIAL + "ab \n"), min_size=1, max_size=12).filter(str.strip))
def test_labels_and_names_of_any_letters_leave_the_document_whole(name):
    run = designs.run_of(designs.leave_one_out(), {name: outcomes_of(0.5), f"{name}2": outcomes_of(0.7)})
    run.trials["settings"] = json.dumps({**SETTINGS, "data": {"train": f"org/{name}"}})
    experiment = {"search": {"dimensions": {name: {"choice": [name, 1]}}, "sampler": name}}
    tex = written_of(replace(run, manifest=run.manifest | {"name": name, "judge": name, "experiment": experiment}))
    assert_well_formed(tex)
    assert rf"\item[{{{latex_text(name)}}}]" in tex


def outcomes_of(share):
    return designs.np.array([outcomes(share)] * 2)


@pytest.fixture(scope="module")
def runs(judged_run, unjudged_run, one_trial_run, search_only_run, failed_run, tmp_path_factory):
    rng = designs.np.random.default_rng(0)
    cells = leave_one_out_cells(rng)
    factors = designs.factorial(["margin", "anchor"])
    league = league_run(by_rate([0.7, 0.5, 0.4]))
    league.trials["overrides"] = "{}"
    effects = {cell.label: designs.outcomes(rng, 0.6) for cell in factors.cells}
    paths = (judged_run, unjudged_run, one_trial_run, search_only_run, failed_run)
    return {
        **{path.name.rstrip("0123456789"): results.load(path) for path in paths},
        "ablation": designs.run_of(designs.leave_one_out(), cells),
        "factorial": designs.run_of(factors, effects),
        "league": league,
        "panel": panel_run(tmp_path_factory.mktemp("of-panel"), {"llm:a": [1.0, 0.0, 0.5], "llm:b": [1.0, 0.5, 0.5]}),
        "in-memory": searches.search_run(12, prompts=20),
    }


def leave_one_out_cells(rng):
    return {cell.label: designs.outcomes(rng, 0.6) for cell in designs.leave_one_out().cells}


def test_every_kind_of_run_has_its_tables_and_a_whole_document(runs, tmp_path):
    expected = {
        "judged": {"win-rate-stability", "search-space", "search-winners"},
        "unjudged": {"win-rate-stability", "search-space", "search-winners"},
        "one": {"win-rate-stability"},
        "search": {"search-trials"},
        "failed": {"win-rate-stability", "search-space"},
        "ablation": {"win-rate-stability", "ablation"},
        "factorial": {"win-rate-stability", "ablation", "factorial"},
        "league": {"win-rate-stability", "league", "league-pairs", "league-tuning", "search-space"},
        "panel": {"win-rate-stability", "judging", "panel", "agreement", "search-space"},
        "in-memory": {"search-trials", "search-space"},
    }
    written = {name: written_of(run) for name, run in runs.items()}
    for name, tex in written.items():
        assert_well_formed(tex)
        labels = re.findall(r"\\label\{tab:([\w-]+)\}", tex)
        assert len(labels) == len(set(labels))
        assert set(labels) >= expected[name], name
        assert "None" not in tex
        for caption in re.findall(r"\\caption\{(.*)\}\n", tex):
            assert len(re.findall(r"\. [A-Z]", caption)) < 2, caption
        assert tex.isascii(), set(re.findall(r"[^ -~\n]", tex))  # pdflatex prints it, whatever the fonts
    assert_document_compiles(tmp_path, *written.values())


def test_tables_are_the_reports_own(runs):
    for run in (runs["judged"], runs["league"]):
        found, tex = Findings(run), written_of(run)
        for table in (found.main, *found.standings):
            body = table.latex().partition(r"\toprule")[2].partition(r"\bottomrule")[0]
            assert body in tex
            assert all(latex_text(text) in tex for text in (table.caption, *table.notes))


def test_the_paragraph_says_what_the_settings_say(tmp_path):
    about = {"settings": SETTINGS, "overrides": {"objective.hard_margin": 1.0, "training.epochs": 2.0}}
    add_trial(tmp_path, "a", label="a", won=outcomes(0.5), **about)
    other = {**SETTINGS, "training": {**SETTINGS["training"], "learning_rate": 2e-5, "updates": 7}}
    add_trial(tmp_path, "b", label="b", won=outcomes(0.5), settings=other)
    early = {"rule": "pareto", "first": 0.1}
    manifest = {
        "data": {"rows_read": 9, "sft": 3, "train": 4, "held_out": 2},
        "fingerprint": "abc123",
        "experiment": {"early_stopping": early, "constraints": ["kl_to_sft <= 1"]},
        "versions": {"torch": "9.9"},
        "host": {"node": "my-laptop", "cpus": 2},
    }
    run = results.load(finish(tmp_path, manifest))
    assert sentence(run, "Model") == "source org/m, dtype bfloat16, lora.rank 16, lora.alpha 32.0."
    assert sentence(run, "Data") == (
        "train pairs_100%.jsonl, max tokens 512, 3 SFT examples, 4 training pairs, 2 held-out pairs."
    )
    assert sentence(run, "SFT") == "none."
    # One trial counts updates and the other epochs: neither is said to hold for both.
    assert sentence(run, "Preference training") == (
        "learning rate varied (1e-05, 2e-05), updates varied (null, 7), epochs 2.0, AdamW."
    )
    assert sentence(run, "Early stopping") == "rule pareto, first 0.1."
    assert sentence(run, "Goals") == "maximize win_rate, maximize stability; constraints: kl_to_sft <= 1."
    assert sentence(run, "Software") == "slime_ray 0; torch 9.9."
    tex = written_of(run)
    assert r"\item[{a}] slime: hard\_margin 1.23457; training.epochs 2.0" in tex
    assert "abc123" in tex
    assert "my-laptop" not in tex
    assert "/home/me" not in tex


def test_what_was_not_recorded_is_said_to_be_unknown(one_trial_run):
    run = results.load(one_trial_run)
    bare = replace(run, manifest={"name": "old", "stability_version": "stability-v1"})
    for title in ("Model", "SFT", "Preference training", "Search", "Early stopping"):
        assert sentence(bare, title) == "not recorded."
    assert "sizes not recorded" in sentence(bare, "Data")
    assert "versions not recorded" in sentence(bare, "Software")
    assert "none recorded" in sentence(bare, "Seeds")
    assert r"\item[{only}] slime: knobs not recorded" in written_of(bare)
    assert_well_formed(written_of(bare))


@pytest.mark.usefixtures("sketched")
def test_paper_is_written_beside_the_report_when_it_is_asked_for(judged_run, written, sketched, tmp_path, capsys):
    assert not (written.folder / "paper.tex").exists()
    assert cli.main(["report", str(judged_run), "--out", str(tmp_path), "--paper"]) == 0
    assert capsys.readouterr().out.endswith(f"For a paper: {tmp_path / 'paper.tex'}\n")
    tex = (tmp_path / "paper.tex").read_text(encoding="utf-8")
    assert tex == written_of(results.load(judged_run))
    for name in re.findall(r"% numbers: (\w+\.csv)", tex):
        assert (tmp_path / name).exists()
