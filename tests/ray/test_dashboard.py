"""optuna-dashboard opens a run's study as it is, be it a journal file or a database."""

import io
import json
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest
from optuna_dashboard._storage_url import get_storage

from slime_ray.runs.folder import STUDY
from tests.ray.studies import SPACE, ask, finished, open_search

pytestmark = pytest.mark.usefixtures("quick_disk", "backend")


def answer(app: Any, path: str) -> Any:
    """What the dashboard's own page would be answered."""
    environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(app(environ, lambda status, headers, *_: statuses.append(status)))
    assert statuses == ["200 OK"], (statuses, body)
    return json.loads(body)


@pytest.mark.parametrize(
    ("backend", "where"), [("file", "{}/study.journal"), ("database", "sqlite:///{}/study.db")], indirect=["backend"]
)
def test_the_dashboard_shows_every_trial_with_its_knobs_goals_and_name(tmp_path, where):
    search = open_search(tmp_path)
    for number, status in enumerate(("completed", "diverged", "completed")):
        ask(search, f"search-000{number}")
        search.tell(f"search-000{number}", finished(win=number / 10, stability=0.5, status=status))
    # What the command `optuna-dashboard WHERE` opens.
    app = optuna_dashboard.wsgi(get_storage(where.format(tmp_path)))
    (study,) = answer(app, "/api/studies")["study_summaries"]
    assert study["study_name"] == STUDY
    assert study["directions"] == ["maximize", "maximize"]
    trials = answer(app, f"/api/studies/{study['study_id']}")["trials"]
    assert [trial["state"] for trial in trials] == ["Complete", "Fail", "Complete"]
    assert {param["name"] for param in trials[0]["params"]} == set(SPACE)
    assert trials[2]["values"] == [0.2, 0.5]
    names = [{attr["key"]: attr["value"] for attr in trial["user_attrs"]}["trial_id"] for trial in trials]
    assert names == [f"search-000{number}" for number in range(3)]
