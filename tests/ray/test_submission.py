"""What `slime-ray launch` submits, and what it says of it, without a cluster."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray import launch as launching
from slime_ray.on_ray.launch import CONTENT, RUN, Submission, launch, sweep_options

QUERY = "s3://bucket/runs?region=eu&secret_key=SECRET"


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "far.yaml"
    path.write_text("name: far\npreset: arithmetic\narms: {slime: {}}\n")
    return load_experiment(path)


def test_the_query_of_an_address_stays_at_its_end():
    submission = Submission("first", "", QUERY)
    assert submission.run == "s3://bucket/runs/first?region=eu&secret_key=SECRET"
    assert submission.display_address == "s3://bucket/runs/first"
    assert Submission("first", "", "/shared/runs/").run == "/shared/runs/first"


def test_a_launch_with_more_seeds_is_another_job_that_goes_on_with_the_run():
    first = Submission("first", "", "/runs", tuple(sweep_options(trials=None, seeds=None, seed=0, overrides=["a.b=1"])))
    more = Submission("first", "", "/runs", tuple(sweep_options(trials=None, seeds="8", seed=0, overrides=["a.b=1"])))
    assert first.run == more.run
    assert first.job(1) != more.job(1)
    assert more.entrypoint.endswith("--auto-resume --seeds 8 --set a.b=1")


@pytest.mark.parametrize("storage", ["s3://KEY:SECRET@bucket/runs", QUERY])
def test_a_secret_in_an_address_never_reaches_the_cluster(experiment, monkeypatch, storage):
    monkeypatch.setattr(launching, "job_client", lambda address: pytest.fail("the cluster was asked"))
    with pytest.raises(InputError, match="the secret in this address") as refused:
        launch(experiment, Submission("far", "", storage), address="", out=io.StringIO())
    assert "SECRET" not in str(refused.value)


class Status(str):
    """A job's status, as the client gives it."""

    @property
    def value(self) -> str:
        return str(self)

    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED")


def jobs(submission: Submission, status: str, content: str | None = None) -> Any:
    metadata = {RUN: submission.run, CONTENT: content or submission.content}
    return SimpleNamespace(
        list_jobs=lambda: [SimpleNamespace(metadata=metadata, status=Status(status), submission_id="job-1")]
    )


def test_what_is_said_of_a_run_is_its_address_without_a_query(experiment, monkeypatch):
    submission, out = Submission("far", "", "s3://bucket/runs?region=eu"), io.StringIO()
    monkeypatch.setattr(launching, "job_client", lambda address: jobs(submission, "SUCCEEDED"))
    launch(experiment, submission, address="", out=out)
    assert "far is done (job job-1). Its results are in s3://bucket/runs/far on the cluster." in out.getvalue()

    monkeypatch.setattr(launching, "job_client", lambda address: jobs(submission, "RUNNING", "other"))
    with pytest.raises(InputError, match="at work on s3://bucket/runs/far with another") as refused:
        launch(experiment, submission, address="", out=out)

    async def failed(*arguments: Any) -> tuple[str, str]:
        return "FAILED", "it broke."

    monkeypatch.setattr(launching, "job_client", lambda address: jobs(submission, "RUNNING"))
    monkeypatch.setattr(launching, "_follow", failed)
    with pytest.raises(RunError, match="What finished is in s3://bucket/runs/far on the cluster") as ended:
        launch(experiment, submission, address="", out=out)
    assert "region" not in out.getvalue() + str(refused.value) + str(ended.value)


@pytest.mark.parametrize(
    ("base", "setting"),
    [
        ({"data": {"train": [{"source": "a.jsonl"}, {"source": "{}/b.jsonl"}]}}, "data.train.0.source"),
        ({"evaluation": {"retention": {"prompts": "a.jsonl", "scorer": "mine:score"}}}, "evaluation.retention.prompts"),
        ({"evaluation": {"judge": ["exact", {"name": "reward_model", "model": "a.jsonl"}]}}, "judges.1.model"),
    ],
)
def test_every_path_of_this_machine_is_refused_and_absolute_ones_are_not(tmp_path, monkeypatch, base, setting):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("")
    text = json.dumps(base).replace("{}", str(tmp_path))
    data = {"name": "local", "preset": "arithmetic", "arms": {"slime": {}}, "base": json.loads(text)}
    if "data" in base:
        data["base"] |= {"model": {"source": "org/model"}, "evaluation": {"judge": "none"}}
        data["goals"] = {"stability": "maximize"}
    monkeypatch.setattr(launching, "_find", lambda client, submission: ("job", "SUCCEEDED"))
    monkeypatch.setattr(launching, "job_client", lambda address: None)
    with pytest.raises(InputError, match=f"{setting} is written as a path of this machine, {tmp_path}/a.jsonl"):
        launch(load_experiment(data), Submission("local", "", "/shared"), address="", out=io.StringIO())
    data["base"] = json.loads(text.replace('"a.jsonl', f'"{tmp_path}/a.jsonl')) | {
        key: value for key, value in data["base"].items() if key not in base
    }
    launch(load_experiment(data), Submission("local", "", "/shared"), address="", out=io.StringIO())
