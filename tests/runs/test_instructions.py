"""What is asked of a sweep from another terminal, and how it says that it stands."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_ray import cli
from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError, RunError
from slime_ray.runs import results
from slime_ray.runs.folder import lock_run, read_experiment
from slime_ray.runs.instructions import Clone, Instructions, ask_for_clone, ask_to_stop, forget_stops
from slime_ray.runs.status import STATUS, announce, announce_sweep, describe, read_status, write_status
from tests.analysis.conftest import add_trial

TEXT = """\
name: asked
preset: arithmetic
base: {evaluation: {judge: {name: llm, model: m, template: arena-hard, api_key_env: MY_KEY}}}
arms: {slime: {}, dpo: {objective: {name: dpo}}}
search: {objective.hard_margin: {uniform: [0.5, 3.0]}}
budget: {trials: 3}
"""


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    path = tmp_path / "asked.yaml"
    path.write_text(TEXT)
    return load_experiment(path)


@pytest.fixture
def run(tmp_path, experiment) -> Path:
    """A run with one finished search trial, and another that a sweep, this process, has at work."""
    run = tmp_path / "runs" / "asked"
    with lock_run(run, experiment, source=tmp_path / "asked.yaml", seed=0, start="fresh"):
        add_trial(run, "search-0001", phase="search", overrides={"objective.hard_margin": 2.0}, won=[1.0, 0.0])
    trials = {"search-0002": {"step": 3, "updates": 9, "doing": "training", "values": {"objective.hard_margin": 1.0}}}
    write_status(run, finished=1, total=5, trials=trials)
    return run


def test_a_run_gives_back_the_experiment_that_it_was_started_with(run, experiment):
    """The name of the variable that holds a key is no secret, so nothing of it is masked."""
    assert read_experiment(run) == experiment
    assert read_experiment(run).fingerprint == experiment.fingerprint


def test_a_clone_has_the_knobs_of_its_trial_but_for_what_was_changed(run, experiment):
    finished = ask_for_clone(run, experiment, "search-0001", {"objective.anchor_weight": 0.5})
    running = ask_for_clone(run, experiment, "search-0002", {"objective.hard_margin": 1.5})
    of_a_clone = ask_for_clone(run, experiment, finished.trial_id, {"objective.anchor_weight": 0.7})
    assert finished == Clone(
        "search-0001-clone-1", "search-0001", {"objective.hard_margin": 2.0, "objective.anchor_weight": 0.5}
    )
    assert running == Clone("search-0002-clone-2", "search-0002", {"objective.hard_margin": 1.5})
    assert of_a_clone.trial_id == "search-0001-clone-3"
    assert of_a_clone.values == {"objective.hard_margin": 2.0, "objective.anchor_weight": 0.7}
    assert {clone.trial_id for clone in Instructions.read(run).clones} == {
        "search-0001-clone-1", "search-0002-clone-2", "search-0001-clone-3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("trial", "changes", "complaint"),
    [
        ("search-0009", {"objective.hard_margin": 1.0}, "no trial search-0009 that has begun"),
        ("search-0001", {}, "A clone has to differ"),
        ("search-0001", {"objective.hard_margn": 1.0}, "Did you mean 'hard_margin'"),
        (
            "search-0001",
            {"evaluation.selection_prompts": 1},
            "selection_prompts cannot be a clone's own: it decides how",
        ),
        ("search-0001", {"data.seed": 3}, "data.seed cannot be a clone's own: the SFT checkpoint"),
        ("search-0001", {"objective.hard_margin": -1.0}, "hard_margin is -1.0: must be a finite number >= 0"),
    ],
)
def test_a_clone_that_cannot_run_is_refused_and_nothing_is_written(run, experiment, trial, changes, complaint):
    with pytest.raises(InputError, match=complaint):
        ask_for_clone(run, experiment, trial, changes)
    assert Instructions.read(run) == Instructions({}, [])


def test_only_a_running_trial_can_be_stopped(run):
    ask_to_stop(run, "search-0002", running_ids={"search-0002"})
    assert Instructions.read(run).stops == {"search-0002": "stopped by hand"}
    with pytest.raises(InputError, match="search-0001 has finished"):
        ask_to_stop(run, "search-0001", running_ids={"search-0002"})
    with pytest.raises(InputError, match=r"no running trial search-0003\. Running: search-0002"):
        ask_to_stop(run, "search-0003", running_ids={"search-0002"})


def test_a_stopped_trial_whose_folder_was_deleted_may_run_again(run):
    for name in ("search-0002", "search-0003"):
        ask_to_stop(run, name, running_ids={name})
    (run / "trials" / "search-0002").mkdir()
    assert [file.name for file in forget_stops(run)] == ["stop-search-0003.json"]
    assert Instructions.read(run).stops == {"search-0002": "stopped by hand"}


def test_damaged_instructions_count_as_absent(run):
    ask_to_stop(run, "search-0002", running_ids={"search-0002"})
    folder = run / "instructions"
    (folder / "search-0001-clone-1.json").write_text('{"of": "search-0001"}')
    (folder / "stop-x.json").write_text("{")
    assert Instructions.read(run) == Instructions({"search-0002": "stopped by hand"}, [])


def test_status_says_who_is_at_work_how_trials_ended_and_the_front(run):
    found = describe(run)
    assert (found["state"], found["done"], found["total"]) == ("at work", 1, 5)
    assert found["ends"] == {"completed": 1}
    assert found["running"]["search-0002"]["step"] == 3
    assert found["front"] == [{"trial_id": "search-0001", "win_rate": 0.5, "stability": 0.5}]


def test_a_sweep_whose_process_is_gone_is_interrupted(run):
    said = json.loads((run / STATUS).read_text())
    (run / STATUS).write_text(json.dumps(said | {"pid": 2**22 + 1}))
    assert describe(run)["state"] == "interrupted"
    # On another machine only the clock tells.
    (run / STATUS).write_text(json.dumps(said | {"node": "elsewhere"}))
    assert describe(run)["state"] == "at work"
    (run / STATUS).write_text(json.dumps(said | {"node": "elsewhere", "written": said["written"] - 120}))
    assert describe(run)["state"] == "interrupted"


def test_status_says_how_far_the_stages_are_until_trials_run(run, capsys):
    with announce_sweep(run):
        announce(run, stages={"doing": "making sft", "step": 12, "updates": 80, "loss": 0.5})
        assert describe(run)["stages"]["step"] == 12
        assert cli.main(["status", str(run)]) == 0
        assert "\n  stages: making sft 12/80, loss 0.500\n" in capsys.readouterr().out
        write_status(run, finished=1, total=5, trials={})
        assert describe(run)["stages"] == {}
        announce(run, stages={"doing": "making sft"})
    assert describe(run)["stages"] == {}


def test_before_any_trial_the_status_names_the_stage_instead_of_none_of_none(run, capsys):
    (run / STATUS).unlink()
    shutil.rmtree(run / "trials")

    def printed():
        assert cli.main(["status", "--storage", str(run.parent)]) == 0
        assert cli.main(["status", str(run)]) == 0
        text = capsys.readouterr().out
        assert "0 of 0" not in text
        return text

    with announce_sweep(run):
        assert "at work. No trial has begun, as it said 0 s ago: Ray starts.\n" in printed()
        announce(run, stages={"doing": "making sft"})
        text = printed()
        assert "at work, making sft, begun" in text
        assert "ago: making sft.\n" in text
    text = printed()
    assert "interrupted, no trials yet, begun" in text
    assert "interrupted. No trial has begun.\n" in text


def test_a_sweep_is_at_work_from_its_first_second_to_its_last(run):
    said = json.loads((run / STATUS).read_text())
    (run / STATUS).write_text(json.dumps(said | {"pid": 2**22 + 1, "seconds_left": 5.0}))
    with announce_sweep(run):
        found = describe(run)
        # Of the sweep before, what its trials set is needed to run them again; the rest is over.
        values = {"objective.hard_margin": 1.0}
        assert (found["state"], found["left"]) == ("at work", None)
        assert found["running"] == {"search-0002": {"doing": "waiting", "values": values}}
    assert describe(run)["state"] == "interrupted"
    assert read_status(run).trials == {}
    # A disk that takes nothing ends no sweep here.
    shutil.rmtree(run)
    with announce_sweep(run):
        pass


def test_status_knows_what_was_spent_and_what_is_left(run):
    write_status(run, finished=1, total=5, trials={}, spent={"hours": 0.5, "cost": None}, seconds_left=90.0)
    found = describe(run)
    assert (found["spent"], found["left"], found["budget"]) == ({"hours": [0.5, None]}, 90.0, 3)
    write_status(run, finished=5, total=5, trials={}, ended=True, spent={"hours": 0.5}, seconds_left=90.0)
    assert (describe(run)["spent"], describe(run)["left"]) == ({"hours": [0.5, None]}, None)


def test_the_commands(run, capsys):
    assert cli.main(["status", str(run)]) == 0
    assert "search-0002: training 3/9" in capsys.readouterr().out
    assert cli.main(["stop", str(run), "search-0002"]) == 0
    assert cli.main(["clone", str(run), "search-0001", "--set", "objective.hard_margin=2.5"]) == 0
    assert "search-0001-clone-1 runs next" in capsys.readouterr().out
    write_status(run, finished=1, total=5, trials={}, ended=True)
    assert cli.main(["status", str(run)]) == 0
    assert f"`slime-ray extend {run}`, or with the command that began it and --resume." in capsys.readouterr().out
    assert cli.main(["stop", str(run), "search-0002"]) == 2
    assert "No sweep is at work" in capsys.readouterr().err
    assert cli.main(["extend", str(run), "--trials", "-1"]) == 2
    assert cli.main(["status", os.devnull]) == 2


def test_a_clone_is_refused_while_winners_are_confirmed(run, capsys):
    clone = ["clone", str(run), "search-0001", "--set", "objective.hard_margin=2.5"]
    write_status(run, finished=4, total=5, trials={"confirm-search-0001-s0": {"doing": "training"}})
    assert cli.main(clone) == 2
    assert f"`slime-ray extend {run}` then runs it" in capsys.readouterr().err
    assert not (run / "instructions").exists()
    write_status(run, finished=5, total=5, trials={}, ended=True)
    assert cli.main(clone) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is lost, and nothing is written elsewhere


def test_all_who_ask_for_clones_at_once_get_one_each(run, experiment):
    together = threading.Barrier(16)

    def ask(number: int) -> list[Clone]:
        together.wait()
        changes = [{"objective.hard_margin": 1 + number / 100 + place / 1000} for place in range(3)]
        return [ask_for_clone(run, experiment, "search-0001", change) for change in changes]

    with ThreadPoolExecutor(16) as pool:
        told = [clone for clones in pool.map(ask, range(16)) for clone in clones]
    assert len({clone.trial_id for clone in told}) == 48
    found = {clone.trial_id: clone for clone in Instructions.read(run).clones}
    assert found == {clone.trial_id: clone for clone in told}


@pytest.mark.parametrize(
    "trial",
    ["../../other/trials/search-0001", "../trials/search-0001", "/etc/passwd", "..", ".", "", "search-0001/",
     "./search-0001", "a\\b", "x" * 300, "search-0001\n", "é" * 200],
)  # fmt: skip
@pytest.mark.parametrize("command", [["stop"], ["clone", "--set", "objective.hard_margin=2.5"]])
def test_an_id_that_leads_out_of_the_run_is_no_trial(run, command, trial, capsys):
    other = run.parent / "other"
    shutil.copytree(run, other)
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    assert cli.main([command[0], str(run), trial, *command[1:]]) == 2
    assert "trial" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()} == before


def test_instructions_are_not_written_through_a_link(run, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (run / "instructions").symlink_to(tmp_path / "elsewhere")
    assert cli.main(["clone", str(run), "search-0001", "--set", "objective.hard_margin=2.5"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_extend_works_on_the_run_that_is_named_and_not_on_the_one_that_it_is_a_copy_of(run, monkeypatch, capsys):
    shutil.copytree(run, run.parent / "copy")
    worked: list[Path] = []

    def sweep(experiment: Experiment, *, storage: str, **options: object) -> Path:
        worked.append(Path(storage) / experiment.name)
        raise RunError("enough")

    monkeypatch.setattr("slime_ray.on_ray.sweep.run_sweep", sweep)
    assert cli.main(["extend", str(run.parent / "copy")]) == 1
    assert worked == [run.parent / "copy"]


def test_a_later_process_of_the_same_number_is_not_the_sweep(run):
    write_status(run, finished=1, total=4, trials={})
    assert read_status(run).at_work
    said = json.loads((run / STATUS).read_text())
    (run / STATUS).write_text(json.dumps(said | {"started": said["started"] - 100}))
    assert not read_status(run).at_work
    # A status of an earlier version does not say when its process began.
    (run / STATUS).write_text(json.dumps({name: value for name, value in said.items() if name != "started"}))
    assert read_status(run).at_work


def test_runs_are_listed_the_latest_first(run, capsys):
    assert cli.main(["status", "--storage", str(run.parent)]) == 0
    assert capsys.readouterr().out.startswith(f"{results.read_manifest(run)['name']}: ")
    assert cli.main(["status", "--storage", str(run / "trials")]) == 0
    assert "There are no runs in" in capsys.readouterr().out
    assert cli.main(["status", "--storage", "s3://bucket/runs"]) == 2


def test_status_before_the_first_trial_says_what_is_made(run, capsys):
    shutil.rmtree(run / "trials")
    write_status(run, finished=0, total=0, trials={})
    assert cli.main(["status", str(run)]) == 0
    assert "No trial has begun" in capsys.readouterr().out


def test_watching_a_run_at_work_prints_what_changed_until_it_ends(run, capsys, monkeypatch):
    stages = iter(
        [
            {"finished": 1, "total": 4, "trials": {"search-0002": {"step": 3, "updates": 10}}},
            # Nothing has changed but the time since it spoke.
            {"finished": 1, "total": 4, "trials": {"search-0002": {"step": 3, "updates": 10}}},
            {"finished": 1, "total": 4, "trials": {"search-0002": {"step": 7, "updates": 10}}},
            {"finished": 1, "total": 4, "trials": {}, "ended": True},
        ]
    )
    write_status(run, **next(stages))
    # The module's own name alone: threads of the package sleep too.
    clock = SimpleNamespace(sleep=lambda seconds: write_status(run, **next(stages)))
    monkeypatch.setattr("slime_ray.cli.runs.time", clock)
    assert cli.main(["status", str(run), "--watch"]) == 0
    out = capsys.readouterr().out
    assert out.count("trials have ended") == 3
    assert [out.count(step) for step in ("3/10", "7/10")] == [1, 1]
    assert next(stages, None) is None


def test_a_loss_that_is_not_a_number_is_unknown_to_whoever_reads_the_status(run):
    write_status(run, finished=1, total=4, trials={"search-0002": {"loss": float("nan"), "step": 3}})
    running = describe(run)["running"]["search-0002"]
    assert running["loss"] is None
    json.loads(json.dumps(describe(run)), parse_constant=pytest.fail)


@pytest.mark.parametrize("command", [["stop"], ["clone", "--set", "objective.hard_margin=2.5"]])
def test_a_run_that_cannot_be_written_is_told_in_a_sentence(run, command, capsys):
    write_status(run, finished=1, total=4, trials={"search-0002": {"values": {}}})
    (run / "instructions").write_text("no folder")
    assert cli.main([command[0], str(run), "search-0002", *command[1:]]) == 1
    assert "could not be used (FileExistsError: " in capsys.readouterr().err


@pytest.mark.parametrize("constraints", [3, "win_rate <= 1", ["x <= y"], [[]]])
def test_constraints_that_cannot_be_read_are_a_sentence(run, constraints):
    manifest = results.read_manifest(run)
    manifest["experiment"]["constraints"] = constraints
    results.write_manifest(run, manifest)
    with pytest.raises(InputError, match=r"manifest\.json: experiment\.constraints"):
        describe(run)
