"""What is refused before anything starts: addresses, shapes, storages; and what `doctor` says of a cluster."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from slime_ray.cli import main
from slime_ray.config.experiment import Experiment
from slime_ray.config.experiment_file import load_experiment
from slime_ray.on_ray.cluster_state import NodeRequest, inspect_node
from slime_ray.on_ray.preflight import examine
from slime_ray.runs.store import RunStore

pytestmark = pytest.mark.ray


Doctor = Callable[[str], str]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Returns the refusal of an address. Ray is not asked, which would wait for over a minute."""

    def refusal(address: str) -> str:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was asked"))
        assert main(["doctor"]) == 2
        return capsys.readouterr().err

    return refusal


def test_an_address_that_nobody_answers_is_refused_before_ray_is_asked(doctor):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"No Ray cluster answers at {address}" in doctor(address)


def test_something_else_that_answers_is_refused_before_ray_is_asked(doctor):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert "no Ray cluster that can be used" in doctor(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("address", "words"), [("ray://head:10001", "inside the cluster"), ("nonsense", "host:port")])
def test_an_address_that_a_driver_cannot_use_is_refused(doctor, address, words):
    assert words in doctor(address)


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
    seen = inspect_node(node, NodeRequest(RunStore(tmp_path), tmp_path / "mine", "token", ["/no/such/model"]))
    assert (seen.can_read, seen.write_error, seen.missing) == (True, None, ("/no/such/model",))
    elsewhere = inspect_node(node, NodeRequest(RunStore(tmp_path), tmp_path / "other", "token"))
    assert not elsewhere.can_read
    assert elsewhere.write_error == "No such file or directory"


def test_a_storage_that_cannot_be_written_is_refused(cluster, experiment, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in sentences(experiment, tmp_path / "file" / "runs", "error")
