"""The manners of the command line: help that teaches, completion, exit codes, what is printed for whom."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from slime_ray import cli
from slime_ray.cli import experiments, runs
from slime_ray.cli.options import Parser
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import RunError
from tests.analysis.conftest import add_trial, finish

ROOT = Path(__file__).parents[2]


def every(parser: Parser, name: str = "") -> Iterator[tuple[str, Parser]]:
    """This parser and all below it, each with the words that lead to it."""
    yield name, parser
    for word, inner in parser.commands.items():
        yield from every(inner, f"{name} {word}".strip())


def test_every_command_says_what_it_is_for_and_every_option_what_it_does():
    parser = cli.make_parser()
    # argparse's own list, which has those of groups too.
    for name, each in every(parser):
        assert [action for action in each._actions if action.dest != "==SUPPRESS=="] == each.arguments, name
    assert [name for name, command in parser.commands.items() if not command.says] == []
    listed = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(parser.commands)
    silent = [
        f"{name} {action.dest}" for name, command in every(parser) for action in command.arguments if not action.help
    ]
    assert silent == []


def test_the_help_shows_examples_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "slime-ray sweep my.yaml --name first" in shown
    assert "results:\n  report   " in shown
    assert "Exit codes: 0 done, 1 a run ended early or failed, 2 something given was wrong" in shown


@pytest.mark.parametrize("name", sorted(cli.make_parser().commands))
def test_the_help_of_every_command_has_examples_that_are_command_lines(name):
    shown = cli.make_parser().commands[name].format_help()
    examples = re.findall(rf"^  (slime-ray {name}\b.*)$", shown, re.MULTILINE)
    assert examples
    for example in re.findall(r"^  (slime-ray .*)$", shown, re.MULTILINE):
        words = shlex.split(re.split(r"  +# | {2,}| > ", example)[0])[1:]
        assert callable(cli.make_parser().parse_args(words).command), example


def test_no_option_is_taken_for_another_that_begins_like_it(capsys):
    assert [name for name, parser in every(cli.make_parser()) if parser.allow_abbrev] == []
    for line in ("train demo --seed 3", "evaluate demo checkpoint --trials 3", "sweep demo --res"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(line.split())
        assert "unrecognized arguments: --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "command", "meant"),
    [
        ("sweep demo --sed 3", "sweep", "--seed"),
        ("report runs/first --ouput=runs/somewhere/else", "report", "--out"),
        ("bench step --stpes 3", "bench step", "--steps"),
        ("check demo --frobnicate", "check", None),
        # Dashes alone make no two options alike, such as --json and --auto-resume.
        ("train demo --json", "train", None),
    ],
)
def test_a_misspelt_option_gets_the_usage_of_its_command_and_what_may_be_meant(capsys, line, command, meant):
    with pytest.raises(SystemExit, match="2"):
        cli.main(line.split())
    usage, *_, error = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: slime-ray {command} ")
    assert error.endswith(f" (did you mean {meant}?)" if meant else f"unrecognized arguments: {line.split()[-1]}")


def test_a_reader_that_has_enough_gets_no_traceback(tmp_path):
    """As in `slime-ray spaces | head -1`, but with a reader that is gone before anything is written."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    gone, kept = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-m", "slime_ray", "spaces"], stdout=kept, stderr=subprocess.PIPE, cwd=tmp_path, text=True,
        env=buffered,
    )  # fmt: skip
    os.close(kept)
    assert (done.stderr, done.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("spaces --json", "leave_one_out", None),
        ("presets --json", "paper", None),
        ("check demo --json", "trials", 8),
        ("check demo --seeds 3 --json", "seeds", [0, 1, 2]),
        ("check factorial --json", "design", "factorial"),
        ("presets diff mt-bench released-exact --json", "objective.remove", {"other": []}),
        ("presets --json diff simpo-released simpo-recommended", "objective.beta", {"one": 0.1, "other": 2.0}),
        ("presets diff paper paper --json", None, {}),
        pytest.param(
            f"doctor --cluster {ROOT / 'cluster.yaml'} --json",
            "file",
            str(ROOT / "cluster.yaml"),
            marks=pytest.mark.skipif(
                sys.version_info[:2] != (3, 11) or not version("ray").startswith("2.60."),
                reason="the cluster's images have Python 3.11 and Ray 2.60",
            ),
        ),
    ],
)
def test_what_a_script_asks_is_answered_as_json(capsys, line, key, value):
    assert cli.main(line.split()) == 0
    said = json.loads(capsys.readouterr().out)
    found = said if key is None else said[key]
    assert found if value is None else found == value


@pytest.fixture
def two_runs(tmp_path):
    for run in ("one", "two"):
        for seed in range(2):
            add_trial(tmp_path / run, f"arm-a-s{seed}", label="a", seed=seed, won=[1.0] * 6 + [0.0] * 18)
        finish(tmp_path / run, {})
    return tmp_path / "one", tmp_path / "two"


def test_a_report_is_a_path_for_who_wants_quiet_and_numbers_for_a_script(capsys, two_runs, sketched):
    run, _ = two_runs
    assert cli.main(["report", str(run), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{run / 'report' / 'report.html'}\n"
    assert cli.main(["report", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(run / "report" / "report.html")
    [row] = said["tables"]["win_rate_stability"]
    assert (row["label"], row["win_rate"]) == ("a", 0.25)


def test_a_place_that_cannot_be_written_is_a_sentence(capsys, two_runs, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "both.csv"
    assert cli.main(["compare", *map(str, two_runs), "--csv", str(place)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"slime-ray: {tmp_path / 'file'}")
    assert "not a directory" in told


def test_runs_beside_each_other_are_json_for_a_script(capsys, two_runs):
    assert cli.main(["compare", *map(str, two_runs), "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["one", "two"]


def interrupted(options: argparse.Namespace) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("line", "again"),
    [
        (
            "sweep 'my own.yaml' --name first --quiet",
            "slime-ray sweep 'my own.yaml' --name first --quiet --auto-resume",
        ),
        ("sweep mine.yaml --resume --name first", "slime-ray sweep mine.yaml --name first --auto-resume"),
        ("demo", "slime-ray demo --auto-resume"),
        ("extend runs/first --trials 8", "slime-ray extend runs/first"),
    ],
)
def test_an_interrupt_says_what_is_kept_and_the_command_that_goes_on(monkeypatch, capsys, line, again):
    for module, name in ((experiments, "_sweep"), (experiments, "_demo"), (runs, "_extend")):
        monkeypatch.setattr(module, name, interrupted)
    assert cli.main(shlex.split(line)) == 130
    said = capsys.readouterr().err
    assert said == (
        f"slime-ray: interrupted. Finished trials and the last checkpoints are kept; go on with `{again}`.\n"
    )
    assert cli.make_parser().parse_args(shlex.split(again)[1:]).command is interrupted


def test_a_command_without_a_run_promises_none(monkeypatch, capsys):
    monkeypatch.setattr(experiments, "_check", interrupted)
    assert cli.main(["check", "demo"]) == 130
    assert capsys.readouterr().err == "slime-ray: interrupted.\n"


def test_an_early_end_names_the_command_that_goes_on(monkeypatch, capsys):
    def ended(options):
        raise RunError("It ended. Give the same command with --resume to run the rest.")

    monkeypatch.setattr(experiments, "_sweep", ended)
    assert cli.main(["sweep", "demo", "--name", "first"]) == 1
    assert "Give `slime-ray sweep demo --name first --resume` to run the rest." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"), [("", "is already there"), ("--name new --resume", "no such run to resume")]
)
def test_a_name_is_refused_before_ray_is_imported(monkeypatch, tmp_path, capsys, line, words):
    (tmp_path / "methods").mkdir()
    monkeypatch.setitem(sys.modules, "slime_ray.on_ray.sweep", None)
    assert cli.main(["sweep", "methods", "--storage", str(tmp_path), *line.split()]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(("given", "taken"), [("", "demo-2"), ("--resume", "demo"), ("--auto-resume", "demo")])
def test_a_demo_that_goes_on_is_the_latest_one(monkeypatch, tmp_path, given, taken):
    (tmp_path / "demo").mkdir()
    names = []
    monkeypatch.setattr(experiments, "_sweep", lambda options: names.append(options.name))
    assert cli.main(["demo", "--storage", str(tmp_path), *given.split()]) == 0
    assert names == [taken]


COMPLETE = """
import os, sys
from slime_ray import cli
for number, line in enumerate(sys.argv[1:]):
    if (child := os.fork()) == 0:
        os.environ |= {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "|",
                       "_ARGCOMPLETE_STDOUT_FILENAME": f"offered-{number}"}
        cli.main([])
    os.waitpid(child, 0)
"""
"""What a shell does for each line, by the script's own protocol: whoever answers it ends."""


def test_a_shell_completes_commands_options_files_names_and_trials(tmp_path):
    for trial in ("search-0000", "search-0001", "arm-a-s0"):
        (tmp_path / "runs" / "first" / "trials" / trial).mkdir(parents=True)
    (tmp_path / "mine.yaml").touch()
    wanted = {
        "slime-ray swe": {"sweep"},
        "slime-ray sweep dem": {"demo"},
        "slime-ray sweep min": {"mine.yaml"},
        "slime-ray sweep demo --res": {"--resume"},
        "slime-ray bench mem": {"memory"},
        "slime-ray presets show simpo-rel": {"simpo-released"},
        "slime-ray spaces show leave": {"leave_one_out"},
        "slime-ray report ru": {"runs"},
        "slime-ray report runs/first --labels min": {"mine.yaml"},
        "slime-ray stop runs/first search-": {"search-0000", "search-0001"},
        "slime-ray export runs/first arm": {"arm-a-s0"},
        "slime-ray stop elsewhere sea": {""},
        "slime-ray sweep demo --seeds ": {""},
    }
    subprocess.run(
        [sys.executable, "-c", COMPLETE, *wanted], cwd=tmp_path, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    offered = [(tmp_path / f"offered-{number}").read_text() for number in range(len(wanted))]
    found = [{word.rstrip(" /") for word in words.split("|")} for words in offered]
    assert dict(zip(wanted, found, strict=True)) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_the_script_of_every_shell_asks_this_command(capsys, shell):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "slime-ray" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("model", ["google/gemma-3-4b-pt", "some/model", "a folder/with: signs"])
@pytest.mark.parametrize("where", [[], ["--cpu"]])
def test_a_first_experiment_is_one_that_check_accepts_and_an_editor_knows(tmp_path, monkeypatch, capsys, model, where):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    Path("my pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["init", "--model", model, "--data", "my pairs.jsonl", *where]) == 0
    assert "60 pairs were read" in capsys.readouterr().out
    assert cli.main(["check", "experiment.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "my-pairs"
    written = Path("experiment.yaml").read_text()
    assert written.splitlines()[0].endswith("$schema=experiment.schema.json")
    schema = json.loads(Path("experiment.schema.json").read_text())
    assert list(Draft202012Validator(schema).iter_errors(load_yaml("experiment.yaml").data)) == []
    base = load_yaml("experiment.yaml").data["base"]
    assert base["data"]["held_out_pairs"] == 12
    assert base["training"]["pairs_per_update"] == 8


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({"tokenizer_config.json": "{}"}, True),
        ({"tokenizer_config.json": '{"chat_template": "x"}'}, False),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "x"}, False),
        ({}, False),
    ],
)
def test_a_first_experiment_names_a_chat_template_where_the_tokenizer_has_none(
    tmp_path, monkeypatch, capsys, files, lacks
):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    for name, text in files.items():
        (Path("tiny") / name).write_text(text)
    assert cli.main(["init", "--model", "tiny", "--data", "org/pairs"]) == 0
    assert load_yaml("experiment.yaml").data["base"]["model"].get("chat_template") == ("chatml" if lacks else None)
    assert cli.main(["check", "experiment.yaml"]) == 0
    # Whoever writes the file by hand is told.
    capsys.readouterr()
    without = [*("check", "experiment.yaml"), *("--set", "model.chat_template=null")]
    assert cli.main(without) == (2 if lacks else 0)
    told = capsys.readouterr().err
    assert ("no chat template" in told and "model.chat_template to a .jinja file" in told) is lacks


@pytest.mark.parametrize(
    ("rest", "counted"),
    [
        ("arms: {slime: {}}\n", "fine. 1 arm x 1 seed.\n"),
        (
            "league: {entries: {dpo: {}, ipo: {}}, trials: 2, seeds: 2}\n",
            "fine. 2 entries, 2 trials and 2 seeds each.\n",
        ),
    ],
)
def test_check_counts_what_there_is(tmp_path, capsys, rest, counted):
    file = tmp_path / "few.yaml"
    file.write_text(f"name: few\npreset: arithmetic\n{rest}")
    assert cli.main(["check", str(file)]) == 0
    assert counted in capsys.readouterr().out


def test_check_counts_what_a_data_set_of_this_machine_is_divided_into(tmp_path, capsys):
    """A file that trains one update, or leaves rows out, is seen before anything is started."""
    rows = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    same = {"prompt": "p", "chosen": "the same", "rejected": "the same"}
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, [*rows, same])))
    file = tmp_path / "own.yaml"
    text = (
        "name: own\nbase:\n  model: {source: some/model, chat_template: chatml}\n  objective: {name: slime}\n"
        "  training: {pairs_per_update: 10, epochs: 2, learning_rate: 1e-4}\n  sft: {learning_rate: 1e-4}\n"
        f"  data: {{train: {data}, held_out_pairs: HELD, sft_fraction: 0.25}}\n"
        "  evaluation: {judge: none, prompts: 4, selection_prompts: 2}\narms: {slime: {}}\n"
        "goals: {preference_accuracy: maximize, stability: maximize}\n"
    )
    file.write_text(text.replace("HELD", "12"))
    assert cli.main(["check", str(file)]) == 0
    told = capsys.readouterr().out
    counts = (
        "12 SFT examples, 36 pairs to train on, 8 updates, 12 pairs held out, 2 selection prompts, 4 report prompts"
    )
    assert f"Data: {counts}." in told
    assert "1 of 61 rows are left out" in told
    assert cli.main(["check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["updates"] == 8
    more = tmp_path / "more"
    more.mkdir()
    (more / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:40])))
    (more / "lost.jsonl.orig").symlink_to(more / "gone")
    arm = f"arms: {{slime: {{}}, small: {{data.train: '{more / 'train.jsonl'}'}}, same: {{data.train: {more}}}}}"
    file.write_text(text.replace("HELD", "12").replace("arms: {slime: {}}", arm))
    code = cli.main(["check", str(file)])
    assert code == 0, capsys.readouterr().err
    assert "arm small: it has data of its own: 7 SFT examples, 21 pairs to train on" in capsys.readouterr().out
    file.write_text(text.replace("HELD", "70"))
    assert cli.main(["check", str(file)]) == 2
    assert "There are 60 pairs, too few to hold out 70" in capsys.readouterr().err


def test_check_says_which_data_it_did_not_read(tmp_path, capsys, monkeypatch):
    rows = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    for name in ("base", "own"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)).ljust(2**20))
    file = tmp_path / "large.yaml"
    file.write_text(
        "name: large\nbase:\n  model: {source: some/model, chat_template: chatml}\n  objective: {name: slime}\n"
        "  training: {pairs_per_update: 10, epochs: 2, learning_rate: 1e-4}\n  sft: {learning_rate: 1e-4}\n"
        f"  data: {{train: {tmp_path / 'base.jsonl'}, held_out_pairs: 12, sft_fraction: 0.25}}\n"
        "  evaluation: {judge: none, prompts: 4, selection_prompts: 2}\n"
        f"arms: {{slime: {{}}, own: {{data.train: {tmp_path / 'own.jsonl'}}}}}\n"
        "goals: {preference_accuracy: maximize, stability: maximize}\n"
    )
    sentence = "1.0 MiB of data are not read: `check` reads 1.0 MiB at most, and read {} MiB. `plan` reads all."
    monkeypatch.setattr(experiments, "MOST_READ", 2**20)
    assert cli.main(["check", str(file)]) == 0
    assert f"warning: arm own: {sentence.format('1.0')}\n" in capsys.readouterr().out
    monkeypatch.setattr(experiments, "MOST_READ", 2**20 - 1)
    assert cli.main(["check", str(file), "--json"]) == 0
    assert sentence.format("0.0") in json.loads(capsys.readouterr().out)["warnings"]


def test_check_says_what_the_reference_is_where_no_sft_stage_makes_it(tmp_path, capsys):
    file = tmp_path / "cup.yaml"
    for sft, said in (("null", True), ("{updates: 3}", False)):
        file.write_text(f"name: a\npreset: arithmetic\nbase: {{sft: {sft}}}\narms: {{dpo: {{objective.name: dpo}}}}\n")
        assert cli.main(["check", str(file)]) == 0
        told = "The reference of dpo is embedded/arithmetic as it is, since sft is null." in capsys.readouterr().out
        assert told == said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "lost.jsonl"], "there is no such file"),
        (["--data", "few.jsonl"], "few.jsonl has 3 pairs"),
        (["--data", "few.jsonl", "--to", "few.jsonl"], "is there already"),
        (["--data", "few.jsonl", "--to", "no/e.yaml"], "there is no such folder"),
    ],
)
def test_a_first_experiment_that_cannot_be_is_a_sentence_and_no_file(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"})
    Path("few.jsonl").write_text("\n".join([row] * 3))
    assert cli.main(["init", "--model", "some/model", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["few.jsonl"]


def test_what_ships_can_be_printed(capsys):
    assert cli.main(["spaces", "show", "demo"]) == 0
    assert "name: demo" in capsys.readouterr().out
    assert cli.main(["presets", "show", "paper"]) == 0
    assert "stabilizer_exponent: 2.5" in capsys.readouterr().out
    assert cli.main(["spaces", "show", "dmeo"]) == 2
    assert "Did you mean 'demo'" in capsys.readouterr().err


def test_a_sweep_of_the_plans_benchmark_is_chosen_by_its_name(monkeypatch, capsys):
    """Some names have commas."""
    chosen = []

    def measured(*, cases, **options):
        chosen.extend(cases)
        raise RunError("enough")

    monkeypatch.setattr("slime_ray.bench.plan.measure_plans", measured)
    assert cli.main(["bench", "plan", "--cases", "demo, shortened", "--cases", "small updates"]) == 1
    assert chosen == ["demo, shortened", "small updates"]
    assert cli.main(["bench", "plan", "--cases", "demo"]) == 2
    assert "--cases demo: must be among 'demo, shortened', 'small updates'" in capsys.readouterr().err


def test_no_command_at_all_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert "usage: slime-ray" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"), [(["swep"], "sweep"), (["presets", "shwo"], "show"), (["bench", "stp"], "step")]
)
def test_a_misspelt_command_names_the_one_that_is_meant(capsys, words, meant):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err
