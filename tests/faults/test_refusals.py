"""What is refused before anything starts: addresses, shapes, storages; and what `doctor` says of a cluster."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.on_ray.cluster_state import NodeRequest, look_at_node
from slime_ray.on_ray.preflight import examine
from slime_ray.runs.store import RunStore
from tests.end_to_end.conftest import environment

pytestmark = pytest.mark.ray


def doctor(address: str) -> tuple[str, float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "slime_ray", "doctor"], capture_output=True, text=True, timeout=60, check=False,
        env=environment() | {"RAY_ADDRESS": address},
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr, time.monotonic() - started


def test_an_address_that_nobody_answers_is_refused_within_seconds():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        said, seconds = doctor(address)
    assert f"No Ray cluster answers at {address}" in said
    assert seconds < 20


def test_something_else_that_answers_is_refused_within_seconds():
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        said, seconds = doctor(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "no Ray cluster that can be used" in said
    assert seconds < 20


@pytest.mark.parametrize(("address", "words"), [("ray://head:10001", "inside the cluster"), ("nonsense", "host:port")])
def test_an_address_that_a_driver_cannot_use_is_refused(address, words):
    assert words in doctor(address)[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=2)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def experiment(space: Path) -> Experiment:
    return load_experiment(space)


def sentences(experiment: Experiment, storage: Path, level: str) -> str:
    return "\n".join(found.sentence for found in examine(experiment, storage=RunStore(storage)) if found.level == level)


def test_every_node_is_asked_and_nothing_of_the_probe_stays(cluster, experiment, tmp_path, monkeypatch):
    # Ray sets it in its own process where the home folder has a token.
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    findings = examine(experiment, storage=RunStore(tmp_path / "runs"))
    assert [found for found in findings if found.level == "error"] == []
    assert any("probed from 3 nodes" in found.sentence for found in findings)
    assert any("RAY_AUTH_MODE=token" in found.sentence for found in findings if found.level == "warning")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_shape_that_no_cluster_of_this_size_can_hold_is_refused(cluster, experiment, tmp_path):
    wide = experiment.model_copy(
        update={"resources": experiment.resources.model_copy(update={"workers": 3, "placement": "STRICT_SPREAD"})}
    )
    assert "only 2 nodes have room for one" in sentences(wide, tmp_path, "error")


def test_a_node_with_another_disk_is_noticed(cluster, tmp_path):
    """A node's view of the storage is a path; here one is given a path that the driver's probe is not under."""
    node = next(node["NodeID"] for node in ray.nodes() if node["Alive"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "driver").write_text("token")
    seen = look_at_node(node, NodeRequest(RunStore(tmp_path), tmp_path / "mine", "token", ["/no/such/model"]))
    assert (seen.read, seen.wrote, seen.missing) == (True, None, ("/no/such/model",))
    elsewhere = look_at_node(node, NodeRequest(RunStore(tmp_path), tmp_path / "other", "token"))
    assert not elsewhere.read
    assert elsewhere.wrote == "No such file or directory"


def test_a_storage_that_cannot_be_written_is_refused(cluster, experiment, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in sentences(experiment, tmp_path / "file" / "runs", "error")
