"""docs/extending.md, step by step: the files that it shows are written as they stand there, and its commands are run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray.cli import main
from slime_ray.objectives import OBJECTIVES
from slime_ray.runs import results

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SHORT = (
    "data.sft_examples=400", "data.pairs=32", "data.held_out_pairs=24", "sft.updates=30", "training.updates=4",
    "training.pairs_per_update=8", "training.evaluations=2", "evaluation.prompts=16", "evaluation.selection_prompts=8",
    "evaluation.kl_prompts=4", "resources.concurrent_trials=1",
)  # fmt: skip
"""What makes a trial of the embedded task as small as it can be."""


def section(name: str) -> str:
    """The text of one section of the page."""
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder outside of the checkout with every file that the page shows."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def steps(name: str) -> list[list[str]]:
    """The commands of a section, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", section(name), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert all(words[0] in ("export", "python", "slime-ray") for words in lines)
    return [words for words in lines if words[0] != "export"]


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], str]:
    """Runs one command in the folder, with PYTHONPATH as the page exports it; trials are cut short. Returns its output."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def output(words: list[str]) -> str:
        program, *arguments = words
        if program == "slime-ray" and arguments[0] in ("train", "sweep"):
            arguments += [word for setting in SHORT for word in ("--set", setting)]
        if program == "python":
            return python(arguments, folder)
        if arguments[0] == "sweep":
            # Ray's workers find the page's files by the variable.
            return python(["-m", "slime_ray", *arguments], folder)
        assert main(arguments) == 0
        return capsys.readouterr().out

    return output


def python(arguments: list[str], folder: Path) -> str:
    """Run Python in a process of its own and return its output."""
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "kept"), [("An objective", "squared"), ("A judge", "polite")])
def test_the_steps_up_to_one_trial_do_what_they_say(folder, run, name, kept):
    first, check, train, _ = steps(name)
    assert " passed" in run(first)
    assert "fine." in run(check)
    run(train)
    assert kept not in OBJECTIVES
    [row] = results.load(folder / "runs" / f"{kept}-{train[-1]}").trials.to_dict("records")
    assert row["status"] == "completed"
    expected = {"squared": ("objective", "squared:Squared"), "polite": ("judge", "exact:polite:score")}
    column, value = expected[kept]
    assert row[column] == value


@pytest.mark.ray
@pytest.mark.slow
def test_the_steps_to_the_end_with_an_objective_and_a_table(folder, run):
    *_, sweep = steps("An objective")
    run(sweep)
    [table] = steps("A table")
    said = run(table)
    assert "squared: win rate in %, by seed." in said
    assert {line.split()[0] for line in said.splitlines() if line} >= {"sft", "slime", "squared"}
    assert "| squared |" in (folder / "by_seed.md").read_text(encoding="utf-8")
    assert "squared" in (folder / "by_seed.tex").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("{name: 'squared:Squared', targett: 2.0}", "objective.targett: unknown key. Did you mean 'target'?"),
        ("{name: 'squared:Squared', target: two}", "objective.target is 'two'"),
        ("{name: 'squared:Squared', target: -1.0}", "objective.target is -1.0: must be a finite number >= 0"),
        ("{name: 'squared:Square'}", "objective.name is 'squared:Square', which cannot be imported"),
        ("{name: 'nowhere:Squared'}", "objective.name is 'nowhere:Squared', which cannot be imported: No module named"),
        ("{name: 'json:JSONDecoder'}", "which is no frozen dataclass, as an objective is"),
        ("{name: 'slime_ray.objectives.base:Term'}", "whose name has no value: give its class one"),
        ("{name: hing}", "objective.name is 'hing'"),
    ],
)
def test_what_is_wrong_with_an_objective_of_ones_own_is_told_where_it_stands(folder, monkeypatch, objective, said):
    from slime_ray.config.experiment_file import load_experiment
    from slime_ray.errors import InputError

    monkeypatch.syspath_prepend(folder)
    path = folder / "wrong.yaml"
    path.write_text(f"name: wrong\npreset: arithmetic\narms:\n  mine: {{objective: {objective}}}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"wrong\.yaml:4: arm mine: ") as error:
        load_experiment(path)
    assert said in str(error.value)


def test_settings_of_an_objective_of_ones_own_survive_the_way_to_a_worker(folder, monkeypatch):
    from slime_ray.config.experiment import Trial, arm_trials
    from slime_ray.config.experiment_file import load_experiment

    monkeypatch.syspath_prepend(folder)
    trial = arm_trials(load_experiment(folder / "squared.yaml"))[2]
    assert trial.trial_id == "arm-squared-s0"
    again = Trial.model_validate(trial.model_dump(mode="json"))
    assert again == trial
    assert again.settings.objective.build().target == 2.0
