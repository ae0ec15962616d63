"""A trial whose answers a server draws: the same result as without it, and what is kept where the server fails."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slime_ray.config.experiment import Trial, arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs.store import RunStore
from slime_ray.training.orders import Paused
from slime_ray.training.outcome import MODEL
from slime_ray.training.worker import run_trial
from tests.evaluation.answer_server import BASE, Call, model_server

from . import small_trials

DECODING = "decoding: {max_new_tokens: 12, batch: 6}"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("storage"))


def checkpoint(storage: RunStore) -> Path:
    """The SFT checkpoint that the run has made by the time at which the server is first asked."""
    (weights,) = (file for file in storage.root.rglob("model.safetensors") if (file.parent / "made.json").is_file())
    return weights.parent


def trial_of(folder: Path, url: str | None, seconds: float = 20.0) -> Trial:
    engine = f", engine: {{name: openai, model: {BASE}, base_url: '{url}', deadline_seconds: {seconds}}}" if url else ""
    greedy = DECODING.replace("batch", "temperature: 0.0, batch")
    path = folder / "trial.yaml"
    path.write_text(small_trials.TEXT.replace(DECODING, greedy + engine))
    return arm_trials(load_experiment(str(path)))[0]


def answers(run: Path, trial: Trial) -> pd.DataFrame:
    return pd.read_parquet(run / "trials" / trial.trial_id / "answers.parquet")


def test_a_trial_has_the_answers_that_it_draws_itself(storage, tmp_path):
    own = trial_of(tmp_path, None)
    row = run_trial(own, run=storage.root / "own", storage=storage, report=small_trials.nothing)
    with model_server(lambda: checkpoint(storage)) as server:
        asked = trial_of(tmp_path, server.url)
        served = run_trial(asked, run=storage.root / "served", storage=storage, report=small_trials.nothing)
        # Once before training, once after it; the baseline is the base itself.
        paths = [Path(body["lora_path"]).name for body in server.called("/v1/load_lora_adapter")]
        assert paths == ["rehearsal", MODEL]
        assert BASE in {body["model"] for body in server.called("/v1/completions")}
        assert not server.adapters
    pd.testing.assert_frame_equal(answers(storage.root / "served", asked), answers(storage.root / "own", own))
    for column in ("win_rate", "kl_to_sft", "broken_outputs", "length_shift", "stability"):
        assert served[column] == row[column], column
    assert not (storage.root / "served" / "trials" / asked.trial_id / "rehearsal").exists()


def refusing(number: int) -> Any:
    """The server loads no adapter from a certain call on."""
    full = (400, {"error": {"message": "LoRA rank 4 is greater than max_lora_rank 2."}})
    return lambda call: full if call.path == "/v1/load_lora_adapter" and call.number >= number else None


def test_a_server_that_refuses_the_adapter_stops_the_trial_before_training(storage, tmp_path):
    steps = []

    def report(told: Any) -> None:
        steps.append(told.get("doing"))

    with model_server(lambda: checkpoint(storage), refusing(0)) as server:
        trial = trial_of(tmp_path, server.url)
        with pytest.raises(Paused, match="greater than max_lora_rank 2"):
            run_trial(trial, run=storage.root / "refused", storage=storage, report=report)
    assert "training" not in steps
    assert not (storage.root / "refused" / "trials" / trial.trial_id / "trial.json").exists()


def test_a_server_that_fails_after_training_costs_no_training(storage, tmp_path):
    steps = []

    def report(told: Any) -> None:
        if told.get("doing") == "training":
            steps.append(told["step"])

    fails = [True]

    def behave(call: Call) -> Any:
        return refusing(1)(call) if fails else None

    run = storage.root / "later"
    with model_server(lambda: checkpoint(storage), behave) as server:
        trial = trial_of(tmp_path, server.url)
        with pytest.raises(Paused, match="same command again with --resume"):
            run_trial(trial, run=run, storage=storage, report=report)
        assert max(steps) == 6
        steps.clear()
        fails.clear()
        row = run_trial(trial, run=run, storage=storage, report=report)
    assert row["status"] == "completed"
    shutil.rmtree(run)


def test_without_a_server_the_run_stops_with_the_checkpoint_to_serve(tmp_path):
    storage = RunStore(tmp_path / "storage")
    with model_server(lambda: checkpoint(storage)) as server:
        url = server.url
    trial = trial_of(tmp_path, url, seconds=0.2)
    with pytest.raises(Paused, match="no connection") as error:
        run_trial(trial, run=storage.root / "run", storage=storage, report=small_trials.nothing)
    assert f"The checkpoint that it has to serve is {checkpoint(storage)}" in str(error.value)
