"""A trial whose answers are judged by a language model: what is kept when the judge stops, and what going on costs."""

import json
import pickle
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from slime_ray.cli import main
from slime_ray.config.experiment import Experiment, Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.evaluation.judges import asking
from slime_ray.runs import results
from slime_ray.runs.store import RunStore
from slime_ray.training import attempts
from slime_ray.training.orders import Command, Paused, pause_for
from slime_ray.training.worker import run_trial
from tests.evaluation.judges.judge_server import KEY, VARIABLE, JudgeServer, Response, serving

from .small_trials import nothing

TEXT = """\
name: judged
preset: arithmetic
base:
  data: {{sft_examples: 100, pairs: 20, held_out_pairs: 8}}
  sft: {{updates: 4}}
  training: {{updates: 2, pairs_per_update: 8, evaluations: 1, learning_rate: 1e-3}}
  evaluation:
    prompts: 10
    selection_prompts: 4
    kl_prompts: 2
    decoding: {{max_new_tokens: 8}}
    judge: {{name: llm, model: rule, template: arena-hard, base_url: '{url}', api_key_env: {variable}, retries: 0,
            concurrency: 1, budget: {{requests: {budget}}}}}
arms: {{slime: {{}}}}
"""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("storage"))


@pytest.fixture
def storage(stages: RunStore) -> RunStore:
    """The stages are made once; verdicts are those of one test."""
    shutil.rmtree(stages.root / ".verdicts", ignore_errors=True)
    return stages


def written(folder: Path, server: JudgeServer, *, budget: int = 100) -> Path:
    path = folder / "judged.yaml"
    path.write_text(TEXT.format(url=server.url, variable=VARIABLE, budget=budget))
    return path


def experiment(folder: Path, server: JudgeServer, *, budget: int = 100) -> Experiment:
    return load_experiment(written(folder, server, budget=budget))


def test_a_trial_whose_judge_stops_keeps_its_model_and_goes_on_without_paying_twice(storage, tmp_path):
    with serving(lambda number, _: Response(500, {}) if number >= 5 else None) as server:
        (trial,) = arm_trials(experiment(tmp_path, server))
        run, folder = storage.root / "stopped", storage.root / "stopped" / "trials" / trial.trial_id
        with pytest.raises(Paused, match=r"error of the server \(500\).*5 requests.*--resume"):
            run_trial(trial, run=run, storage=storage, report=nothing)
        assert results.finished_trials(run) == {}
        assert (folder / "checkpoint" / "model.safetensors").exists()
        assert [attempt.ended for attempt in attempts.read(folder)] == ["paused"]
        asked = len(server.requests)
        server.behave = lambda *_: None
        told: list[Any] = []
        row = run_trial(trial, run=run, storage=storage, report=lambda news: told.append(dict(news)))
        new = len(server.requests) - asked
    assert row["status"] == "completed"
    assert row["judge"] == trial.settings.judge_identity
    judging = json.loads((folder / "judging.json").read_text())
    assert (judging["new"], judging["cached"], judging["requests"]) == (new, 5, new + 5)
    assert KEY not in (folder / "trial.json").read_text() + (folder / "judging.json").read_text()
    assert any(news.get("doing") == "judging" for news in told)


def test_a_trial_whose_judge_hangs_leaves_on_an_order_and_goes_on_later(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "HEARTBEAT", 0.05)
    monkeypatch.setattr(asking, "GRACE", 0.05)
    release = threading.Event()

    def report(told: Any) -> Command | None:
        hangs = told.get("doing") == "judging" and told["step"] == 2
        return Command("preempt", "the node is needed") if hangs else None

    with serving(lambda number, _: (number < 2 or release.wait(10)) and None) as server:
        (trial,) = arm_trials(experiment(tmp_path, server))
        run = storage.root / "left"
        with pytest.raises(Paused, match="the node is needed") as paused:
            run_trial(trial, run=run, storage=storage, report=report)
        assert paused.value.order.kind == "preempt"
        assert results.finished_trials(run) == {}
        release.set()
        asked = len(server.requests)
        assert run_trial(trial, run=run, storage=storage, report=nothing)["status"] == "completed"
    judging = json.loads((run / "trials" / trial.trial_id / "judging.json").read_text())
    assert (judging["cached"], judging["new"]) == (2, len(server.requests) - asked)


def test_an_order_to_stop_training_does_not_end_the_judging(storage, tmp_path):
    def report(told: Any) -> Command | None:
        return Command("stop", "others do better") if told.get("doing") == "judging" else None

    with serving() as server:
        (trial,) = arm_trials(experiment(tmp_path, server))
        row = run_trial(trial, run=storage.root / "stopping", storage=storage, report=report)
    assert (row["status"], row["win_rate"] is None) == ("completed", False)


def test_an_order_to_leave_reaches_every_rank_as_it_is():
    error = pickle.loads(pickle.dumps(Paused(Command("preempt", "the node is needed"))))
    assert pause_for(error).order == Command("preempt", "the node is needed")


@pytest.mark.usefixtures("sketched")
def test_a_trial_whose_scorer_fails_has_not_failed_itself(storage, tmp_path, monkeypatch):
    (tmp_path / "faulty_scorer.py").write_text("def score(prompt, answer):\n    return [1, 2]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with serving() as server:
        path = written(tmp_path, server)
    text = re.sub(
        r"judge: \{.*?\}\}", "judge: {name: exact, scorer: 'faulty_scorer:score'}", path.read_text(), flags=re.DOTALL
    )
    path.write_text(text)
    (trial,) = arm_trials(load_experiment(path))
    run = storage.root / "faulty"
    with pytest.raises(Paused, match=r"faulty_scorer:score fails on the answer .* to the prompt .*is no number"):
        run_trial(trial, run=run, storage=storage, report=nothing)
    assert results.finished_trials(run) == {}


def test_a_budget_holds_over_the_trials_of_a_run_and_can_be_raised(storage, tmp_path):
    with serving() as server:
        (trial,) = arm_trials(experiment(tmp_path, server, budget=3))
        run = storage.root / "budget"
        with pytest.raises(Paused, match=r"budget.requests 3 is spent"):
            run_trial(trial, run=run, storage=storage, report=nothing)
        assert len(server.requests) == 3
        (richer,) = arm_trials(experiment(tmp_path, server, budget=300))
        row = run_trial(richer, run=run, storage=storage, report=nothing)
        assert row["status"] == "completed"
        assert row["win_rate"] is not None
        asked = len(server.requests)
        # Another trial of the same answers pays for nothing.
        other = Trial.model_validate(richer.model_dump() | {"trial_id": "arm-twin-s0"})
        run_trial(other, run=run, storage=storage, report=nothing)
        assert len(server.requests) == asked


@pytest.mark.usefixtures("sketched")
def test_train_says_why_the_judge_stopped_and_resumes(storage, tmp_path, capsys):
    with serving(lambda number, _: Response(500, {}) if number >= 2 else None) as server:
        command = ["train", str(written(tmp_path, server)), "--storage", str(storage.root), "--name", "alone"]
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "error of the server (500)" in said
        assert "--resume" in said
        server.behave = lambda *_: None
        assert main([*command, "--resume"]) == 0
    assert results.read_manifest(storage.root / "alone")["judge"].startswith("llm:rule:arena-hard#")


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_missing_key_is_a_sentence_before_anything_starts(storage, tmp_path, capsys, monkeypatch, command):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        assert main([command, str(written(tmp_path, server))]) == 2
        assert server.requests == []
    assert f"{VARIABLE} holds no key" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


ASKING = """
import torch
from slime_ray.errors import RunError
from slime_ray.world import World

torch.distributed.init_process_group("gloo")
world, asked = World.current(), []
assert world.from_main(lambda: asked.append("once") or 7) == 7
assert len(asked) == world.main


def refuse():
    raise RunError("the budget is spent")


try:
    world.from_main(refuse)
except RunError as error:
    assert str(error) == "the budget is spent"
else:
    raise AssertionError("nothing was raised")
torch.distributed.destroy_process_group()
"""


def test_the_ranks_of_a_trial_ask_once_and_stop_together(on_ranks, tmp_path):
    script = tmp_path / "asking.py"
    script.write_text(ASKING)
    on_ranks(2, script)
