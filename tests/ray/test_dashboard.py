"""optuna-dashboard opens a run's study as it is, be it a journal file or a database."""

import io
import json
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest
from optuna_dashboard._storage_url import get_storage

from slime_ray.config.experiment import Search
from slime_ray.config.presets import preset_base
from slime_ray.on_ray.search import StudySearch, study_storage
from slime_ray.runs.folder import STUDY

pytestmark = pytest.mark.usefixtures("quick_disk")
SPACE = {
    "objective.hard_margin": {"uniform": [0.5, 3.0]},
    "objective.stabilizer_strength": {"log_uniform": [1e-4, 0.3]},
    "training.schedule": {"choice": ["linear", "cosine"]},
}
TRIALS = 6


def made(run: Path, url: str | None) -> None:
    """A study as a sweep leaves it: trials that completed and one that diverged."""
    search = StudySearch(
        search=Search.model_validate({"dimensions": SPACE}),
        base=preset_base("arithmetic"),
        goals={"win_rate": "maximize", "stability": "maximize"},
        storage=study_storage(run, url),
        trials=TRIALS,
        seed=0,
    )
    for number in range(TRIALS):
        name = f"search-{number + 1:04}"
        search.ask([name])
        status = "diverged" if number == 2 else "completed"
        search.tell(name, {"win_rate": number / 10, "stability": 0.5, "status": status})


def asked(app: Any, path: str) -> Any:
    """What the dashboard's own page would be answered."""
    environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(app(environ, lambda status, headers, *_: statuses.append(status)))
    assert statuses == ["200 OK"], (statuses, body)
    return json.loads(body)


@pytest.mark.parametrize("place", ["study.journal", "study.db"])
def test_the_dashboard_shows_every_trial_with_its_knobs_goals_and_name(tmp_path, place):
    where = str(tmp_path / place) if place == "study.journal" else f"sqlite:///{tmp_path / place}"
    made(tmp_path, None if place == "study.journal" else where)
    # What the command `optuna-dashboard WHERE` opens.
    app = optuna_dashboard.wsgi(get_storage(where))
    (study,) = asked(app, "/api/studies")["study_summaries"]
    assert study["study_name"] == STUDY
    assert study["directions"] == ["maximize", "maximize"]
    trials = asked(app, f"/api/studies/{study['study_id']}")["trials"]
    assert [trial["state"] for trial in trials] == ["Complete"] * 2 + ["Fail"] + ["Complete"] * 3
    assert {param["name"] for param in trials[0]["params"]} == set(SPACE)
    assert trials[5]["values"] == [0.5, 0.5]
    names = [{attr["key"]: attr["value"] for attr in trial["user_attrs"]}["trial_id"] for trial in trials]
    assert names == [f"search-{number:04}" for number in range(1, TRIALS + 1)]
