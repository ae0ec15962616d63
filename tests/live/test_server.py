"""Who may read the live page and who may act, and what its buttons do."""

import asyncio
import json
import shutil
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.live.server import build_app
from slime_ray.live.view import LiveRun
from slime_ray.runs import results
from slime_ray.runs.instructions import Instructions
from tests.live.conftest import MARKUP, add, add_trial, at_work, end, said

pytestmark = pytest.mark.usefixtures("sketched")
TOKEN = "a-token"
NOTHING = Instructions({}, [])


def talk(run: Path | str, conversation: Callable[[TestClient], Awaitable[Any]]) -> Any:
    """Serve a run that was looked at, and have a conversation with the server."""

    async def go() -> Any:
        live = LiveRun(str(run))
        live.look(build=True)
        async with TestClient(TestServer(build_app(live, TOKEN))) as client:
            return await conversation(client)

    return asyncio.run(go())


async def press(client: TestClient, button: str, asked: Any, **headers: str) -> tuple[int | bool, str]:
    """Press a button as the page does, or with other headers; return whether it was done, or why not, and the answer."""
    own = {"Authorization": f"Bearer {TOKEN}", "Origin": str(client.make_url("")).rstrip("/")}
    answer = await client.post(f"/{button}", json=asked, headers=own | headers)
    text = await answer.text()
    if answer.status != 200:
        return answer.status, text
    return json.loads(text)["done"], json.loads(text)["said"]


def pressed(run: Path | str, button: str, *asked: dict[str, Any]) -> list[tuple[int | bool, str]]:
    """Press a button once with each of these."""

    async def conversation(client: TestClient) -> list[tuple[int | bool, str]]:
        return [await press(client, button, one) for one in asked]

    return talk(run, conversation)


STRANGERS = [
    ({"Authorization": ""}, "read-only"),
    ({"Authorization": "Bearer a-tokem"}, "read-only"),
    ({"Authorization": "Bearer é"}, "read-only"),
    ({"Origin": "http://evil.example"}, "Only the page itself"),
    ({"Origin": "null"}, "Only the page itself"),
    ({"Content-Type": "text/plain"}, "Only the page itself"),
    ({"Host": "evil.example"}, "Open it as"),
    ({"Host": "[::1"}, "Open it as"),
    ({"Host": "127.0.0.1.evil.example:80"}, "Open it as"),
]


def test_nothing_is_done_for_a_stranger(run):
    async def conversation(client: TestClient) -> None:
        for headers, why in STRANGERS:
            status, answer = await press(client, "stop", {"trial": "search-0002"}, **headers)
            assert (status, why in answer) == (403, True), headers

    talk(run, conversation)
    assert Instructions.read(run) == NOTHING


def test_a_header_that_is_no_text_is_no_token(run):
    async def conversation(client: TestClient) -> bytes:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"POST /stop HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\r\n")
        writer.write(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        said = await reader.read()
        writer.close()
        return said

    assert b"This page is read-only" in talk(run, conversation)


def test_everybody_here_may_read_and_a_page_of_another_name_may_not(run):
    async def conversation(client: TestClient) -> None:
        for path in ("/", "/live.js", "/live.css", "/report.css", "/state", "/report", "/knobs", "/favicon.ico"):
            answer = await client.get(path)
            assert answer.status in (200, 204), path
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in answer.headers
            # A name of somebody else's that leads here (DNS rebinding).
            assert (await client.get(path, headers={"Host": "evil.example:8765"})).status == 403
            assert (await client.get(path, headers={"Host": "localhost:1"})).status in (200, 204)
        for path, own in (("/", "default-src 'none'; script-src 'self'"), ("/report", "frame-ancestors 'self'")):
            assert own in (await client.get(path)).headers["Content-Security-Policy"]
        assert (await client.get("/stop")).status == 405

    talk(run, conversation)


def test_the_page_is_told_what_runs_what_was_spent_and_what_is_wrong(run):
    async def conversation(client: TestClient) -> Any:
        return await (await client.get("/state")).json()

    state = talk(run, conversation)
    assert (state["name"], state["state"], state["done"], state["total"]) == ("seen", "at work", 1, 4)
    assert state["running"]["search-0002"]["step"] == 3
    assert state["running"]["search-0002"]["stopping"] is False
    assert state["spent"] == {"hours": [0.5, 2.0]}
    assert (state["left"], state["budget"], state["version"], state["behind"]) == (90.0, 3, 1, 0)
    assert state["alarms"] == {"search-0001": f"it diverges {MARKUP}"}
    assert TOKEN not in json.dumps(state)


def test_time_left_follows_the_pace_of_the_training(run, monkeypatch):
    now = json.loads((run / "status.json").read_text())["written"]
    monkeypatch.setattr("slime_ray.runs.status.time.time", lambda: now)
    live = LiveRun(str(run))
    live.look(build=False)
    assert live.snapshot["running"]["search-0002"]["left"] is None
    now += 10
    at_work(run, step=5)
    live.look(build=False)
    # Two updates took ten seconds, and four are left.
    assert live.snapshot["running"]["search-0002"]["left"] == pytest.approx(20, abs=0.2)
    at_work(run, doing="judging", step=16, updates=512)
    live.look(build=False)
    assert live.snapshot["running"]["search-0002"]["left"] is None


def test_a_stop_is_asked_once(run):
    (first, says), (second, again), (other, unknown) = pressed(
        run, "stop", {"trial": "search-0002"}, {"trial": "search-0002"}, {"trial": "../../x"}
    )
    assert (first, second, other) == (True, False, False)
    assert "will end at its next report" in says
    assert "was asked to stop already" in again
    assert "no running trial ../../x" in unknown
    assert Instructions.read(run).stops == {"search-0002": "stopped by hand"}


def test_a_clone_is_asked_once_unless_it_differs(run):
    def asked(*changes: str) -> dict[str, Any]:
        return {"trial": "search-0001", "changes": changes}

    answers = pressed(
        run, "clone", asked("training.updates=4"), asked("training.updates=4"), asked("training.updates=5"),
        asked(), asked("objective.hard_margn=1"), asked("objective.hard_margin"),
    )  # fmt: skip
    assert [done for done, _ in answers] == [True, False, True, False, False, False]
    assert answers[1][1] == "search-0001-clone-1 has these knobs already."
    assert "has to differ" in answers[3][1]
    assert "Did you mean 'hard_margin'" in answers[4][1]
    assert "key=value" in answers[5][1]
    clones = Instructions.read(run).clones
    assert [clone.values["training.updates"] for clone in clones] == [4, 5]


def test_the_search_is_extended_once_by_what_its_reader_saw(run):
    asked = {"budget": 3, "trials": 2}
    answers = pressed(run, "extend", asked, asked, asked | {"budget": 9}, asked | {"trials": 0})
    assert [done for done, _ in answers] == [True, False, False, False]
    assert "already" in answers[1][1]
    assert "3 trials by now, not 9" in answers[2][1]
    assert "1 or more" in answers[3][1]
    assert Instructions.read(run).extensions == {3: 2}
    add_trial(run, "confirm-search-0001-s0", phase="confirm", won=[1.0])
    assert "The search is over" in pressed(run, "extend", asked)[0][1]


def test_a_page_that_cannot_be_built_ends_nothing(run, monkeypatch):
    def fail(folder: Path) -> str:
        raise ZeroDivisionError("of half a run")

    monkeypatch.setattr("slime_ray.analysis.report.build_live_page", fail)
    live = LiveRun(str(run))
    live.look(build=True)
    assert live.snapshot["problem"] == "The report cannot be built yet (ZeroDivisionError: of half a run)."


@pytest.mark.parametrize("button", ["stop", "clone", "extend"])
def test_what_no_page_asks_is_refused(run, button):
    strange = [{}, [], "x", *({"trials": trials, "budget": 3} for trials in ("many", None, float("inf")))]
    assert {status for status, _ in pressed(run, button, *strange)} == {400}
    assert Instructions.read(run) == NOTHING


def test_when_no_sweep_is_at_work_buttons_say_so(run):
    said(run, ended=True)
    asked = {"stop": {"trial": "search-0002"}, "extend": {"budget": 3, "trials": 1}}
    for button, one in asked.items():
        [(done, answer)] = pressed(run, button, one)
        assert not done
        assert "No sweep is at work" in answer


def test_the_page_is_built_when_somebody_looks_and_results_have_changed(run, monkeypatch):
    built = []
    monkeypatch.setattr("slime_ray.analysis.report.build_live_page", lambda folder: built.append(folder) or len(built))
    live = LiveRun(str(run))
    live.look(build=False)
    assert (built, live.page) == ([], None)
    live.look(build=True)
    live.look(build=True)
    assert len(built) == 1
    at_work(run, step=4)
    live.look(build=True)
    assert len(built) == 1
    add(run, "search-0003")
    live.look(build=False)
    assert live.snapshot["behind"] == 1
    live.look(build=True)
    assert (len(built), live.snapshot["behind"], live.snapshot["version"]) == (2, 0, 2)
    # What it may cost is spent.
    monkeypatch.setattr("slime_ray.live.view.FREE_SECONDS", 0.0)
    monkeypatch.setattr("slime_ray.live.view.SHARE", 0.0)
    add(run, "search-0004")
    live.look(build=True)
    assert (len(built), live.snapshot["behind"]) == (2, 1)


def test_only_the_rows_that_are_new_are_read(run, monkeypatch):
    read = []
    whole = results.finished_trial
    monkeypatch.setattr("slime_ray.live.view.finished_trial", lambda folder: read.append(folder.name) or whole(folder))
    live = LiveRun(str(run))
    live.look(build=False)
    add(run, "search-0003")
    live.look(build=False)
    live.look(build=False)
    assert read == ["search-0001", "search-0003"]


def test_a_damaged_result_is_said_and_the_last_page_stays(run):
    live = LiveRun(str(run))
    live.look(build=True)
    page = live.page
    add(run, "search-0003")
    (run / "trials" / "search-0003" / "answers.parquet").write_bytes(b"no parquet")
    live.look(build=True)
    assert "answers.parquet cannot be read" in live.snapshot["problem"]
    assert (live.page, live.snapshot["version"]) == (page, 1)


def test_it_ends_with_the_sweep_and_leaves_the_report(run, serve):
    serving = serve(run)
    place = serving.address.partition("#")[0]
    with urllib.request.urlopen(f"{place}state") as answer:
        assert json.loads(answer.read())["state"] == "at work"
    end(run)
    state = {"ended": False}
    while not state["ended"]:
        with urllib.request.urlopen(f"{place}state") as answer:
            state = json.loads(answer.read())
    with urllib.request.urlopen(f"{place}report") as answer:
        assert answer.read() == (run / "report" / "report.html").read_bytes()
    assert serving.over() == f"seen: finished; no sweep is at work on it. Its report: {run / 'report' / 'report.html'}"


def test_a_run_that_has_ended_is_reported_and_not_served(run, capsys):
    said(run, ended=True)
    assert cli.main(["watch", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seen: interrupted; no sweep is at work on it. Its report: ")
    assert f"slime-ray extend {run}" in out
    assert (run / "report" / "report.html").is_file()


def test_a_run_that_ended_without_a_trial_has_no_report(run, capsys):
    said(run, ended=True)
    shutil.rmtree(run / "trials")
    assert cli.main(["watch", str(run)]) == 0
    assert "It has no report: no trial finished" in capsys.readouterr().out


def test_a_port_that_is_taken_is_said_with_another_one(run, capsys, monkeypatch):
    monkeypatch.setattr("slime_ray.live.server.os.nice", lambda more: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["watch", str(run), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"Port {port} of 127.0.0.1 is taken. Give another one, such as --port " in error
    assert cli.main(["watch", str(run), "--port", "70000"]) == 2


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_a_run_in_an_object_store_is_read_and_asked_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))
    address = f"file://{run}"
    live = LiveRun(address)
    live.look(build=True)
    assert live.snapshot["version"] == 1
    [(done, _)] = pressed(address, "stop", {"trial": "search-0002"})
    assert done
    assert Instructions.read(run).stops == {"search-0002": "stopped by hand"}
    # What came in between is seen, and is all that is fetched.
    add(run, "search-0003")
    fetched = live._run_store.stamps.copy()
    live.look(build=True)
    new = {name.removesuffix("@here") for name, _ in live._run_store.stamps.items() - fetched.items()}
    assert {name for name in new if "/trials/" in name} == {
        f"seen/trials/search-0003/{file.name}" for file in (run / "trials" / "search-0003").iterdir()
    }
    assert live.snapshot["version"] == 2


def test_a_store_that_does_not_answer_is_an_error_of_one_sentence(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))
    live = LiveRun(f"file://{run}")
    live.look(build=False)
    before = live.snapshot
    shutil.rmtree(run)
    with pytest.raises(InputError, match="seen"):
        live.look(build=False)
    assert live.snapshot == before
