"""`slime-ray launch`, against the job server of a Ray head that the test starts."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from slime_ray.cli import main
from slime_ray.runs import results
from tests.end_to_end.conftest import environment
from tests.faults.conftest import until
from tests.processes import left_behind

TOKEN = "a" * 40
TEXT = """\
name: launched
preset: arithmetic
base:
  data: {sft_examples: 200, pairs: 64, held_out_pairs: 24}
  sft: {updates: 5}
  training: {updates: 20, pairs_per_update: 8, evaluations: 2}
  evaluation: {prompts: 8, selection_prompts: 8, kl_prompts: 4, decoding: {max_new_tokens: 8}}
arms: {slime: {}}
"""


@dataclass
class Head:
    address: str
    folder: Path
    session: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head as docs/cluster.md starts one, with a token, in a session of its own."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(TOKEN)
    (folder / "space.yaml").write_text(TEXT)
    bin_folder = Path(sys.executable).parent
    env = environment() | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }  # fmt: skip
    port = free_port()
    # Not under pytest's folders, whose long names are too long for sockets; nor in the default one, where it would
    # leave its address for other programs to find.
    temporary = tempfile.mkdtemp(prefix="ray-")
    command = [str(bin_folder / "ray"), "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}",
               "--num-cpus=2", f"--temp-dir={temporary}"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, start_new_session=True
    )

    def answers() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, 300, "the dashboard")
        yield Head(f"http://127.0.0.1:{port}", folder, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            left = left_behind(process.pid)
            if left:
                os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(temporary, ignore_errors=True)
        assert left == []


def start(head: Head, *arguments: str, token: str = TOKEN, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "slime_ray", "launch", str(head.folder / "space.yaml"), "--address", head.address,
         "--storage", str(head.folder / "runs"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} | env,
    )  # fmt: skip


def launch(head: Head, *arguments: str, token: str = TOKEN, **env: str) -> tuple[int, str]:
    process = start(head, *arguments, token=token, **env)
    text, _ = process.communicate(timeout=240)
    assert "Traceback" not in text
    return process.returncode, text


@pytest.mark.ray
@pytest.mark.slow
def test_a_launch_runs_the_sweep_once_and_is_given_again_without_harm(head):
    # An address in the environment is that of another cluster; the option is what counts.
    code, text = launch(head, RAY_ADDRESS="10.255.255.1:6379")
    assert code == 0, text
    job = re.findall(r"Submitted (slime-ray-launched-[0-9a-f]{8})\.", text)
    assert len(job) == 1
    rows = results.finished_trials(head.folder / "runs" / "launched")
    assert [row["status"] for row in rows.values()] == ["completed"]
    assert "arm-slime" in text or "slime" in text.splitlines()[-1]
    code, again = launch(head)
    assert (code, again.count("is done")) == (0, 1), again
    assert job[0] in again


@pytest.mark.ray
@pytest.mark.faults
def test_leaving_it_leaves_it_running_and_the_same_command_follows_it_again(head):
    options = ("--name", "followed", "--set", "training.updates=300")
    first = start(head, *options)
    assert first.stdout is not None
    submitted = first.stdout.readline()
    until((head.folder / "runs" / "followed" / "manifest.json").exists, 300, "the sweep")
    first.send_signal(signal.SIGINT)
    text, _ = first.communicate(timeout=30)
    assert "The sweep goes on" in text
    assert first.returncode == 0
    code, refused = launch(head, "--name", "followed", "--set", "training.updates=10")
    assert code == 2
    assert "is at work on" in refused
    code, again = launch(head, *options)
    assert code == 0, again
    assert "is running" in again or "is done" in again
    job = submitted.split()[1].rstrip(".")
    assert job in again
    manifest = json.loads((head.folder / "runs" / "followed" / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["interruptions"] == []


@pytest.mark.ray
@pytest.mark.faults
def test_a_sweep_that_failed_is_gone_on_with_by_the_same_command(head):
    """Its driver is ended as when the head is lost: nothing is computed twice that had finished."""
    options = ("--name", "broken", "--set", "training.updates=300", "--set", "faults.checkpoint_minutes=0.01")
    first = start(head, *options)
    trial = head.folder / "runs" / "broken" / "trials" / "arm-slime-s0"
    until((trial / "attempts.json").exists, 300, "the trial")
    driver = [
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"--name\0broken\0--storage" in path.read_bytes() and b"--auto-resume" in path.read_bytes()
        and b"/sh\0" not in path.read_bytes()[:16]
    ]  # fmt: skip
    for pid in driver:
        os.kill(pid, signal.SIGKILL)
    text, _ = first.communicate(timeout=120)
    assert first.returncode == 1, text
    assert "the same command goes on from there" in text
    code, again = launch(head, *options)
    assert code == 0, again
    assert re.search(r"Submitted slime-ray-broken-[0-9a-f]{8}-2\.", again)
    assert json.loads((trial / "trial.json").read_text())["attempts"] == 2


@pytest.mark.ray
@pytest.mark.faults
def test_a_refused_token_is_a_sentence(head):
    code, text = launch(head, "--name", "other", token="b" * 40)
    assert code == 2
    assert "refused this client's token" in text
    assert TOKEN not in text
    assert "b" * 40 not in text


def refusal(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a launch from this folder is refused with."""
    monkeypatch.chdir(folder)
    assert main(["launch", "space.yaml", "--storage", "/shared", *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--storage", "runs"), "give the absolute path"),
        (("--address", "10.0.0.1:6379"), "address of Ray's dashboard"),
        (("--address", f"http://127.0.0.1:{free_port()}"), "No Ray dashboard answers"),
    ],
)
def test_what_the_cluster_could_not_use_is_refused(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "space.yaml").write_text(TEXT)
    assert words in refusal(tmp_path, monkeypatch, capsys, *arguments)


def test_a_stranger_is_told_from_a_dashboard(tmp_path, monkeypatch, capsys):
    (tmp_path / "space.yaml").write_text(TEXT)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert "is no Ray dashboard" in refusal(tmp_path, monkeypatch, capsys, "--address", address)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
