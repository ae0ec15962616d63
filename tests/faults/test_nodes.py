"""A cluster of three nodes on this machine: one dies, one is about to be taken away, and what is refused on it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.end_to_end.conftest import environment

from .conftest import LONG, Sweep, same, until

pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that runs no trial, and two nodes with a CPU each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"trial_drivers": 4}})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    try:
        yield made
    finally:
        made.shutdown()


def node_of(pid: int, cluster: Cluster):
    """The node whose raylet is the parent of a worker process."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    parent = int(stat.rsplit(")", 1)[1].split()[1])
    return next(
        node for node in cluster.worker_nodes if parent in [info.process.pid for info in node.all_processes["raylet"]]
    )


def test_a_lost_node_costs_what_ran_on_it_since_its_checkpoint(start, whole, table, cluster):
    sweep = start("node", env={"RAY_ADDRESS": cluster.address})
    first = sweep.until_checkpoint()
    kept = until(lambda: sweep.rows().get("arm-sft-s0"), 60, "the short trial")
    struck = time.time()
    cluster.remove_node(node_of(first.pid, cluster), allow_graceful=False)
    text = sweep.end()
    assert sweep.process.returncode == 0, text
    assert sweep.endings() == ["lost", "finished"]
    rows = sweep.rows()
    assert rows["arm-sft-s0"] == kept
    assert same(rows[LONG], whole[LONG])
    made = sweep.attempts()
    table(
        "A node lost, 1 worker, another node free", lost=0, seconds=made[-1].started - struck,
        again=made[0].lost_seconds,
    )  # fmt: skip


def test_a_node_about_to_be_taken_away_is_left_with_a_checkpoint(start, whole, table, cluster):
    sweep = start("drained", "--set", "faults.checkpoint_minutes=60", env={"RAY_ADDRESS": cluster.address})
    first = until(lambda: (made := sweep.attempts()) and made[0], 120, "the trial")
    until(lambda: sweep.rows().get("arm-sft-s0"), 60, "the short trial")
    node = node_of(first.pid, cluster)
    drain(cluster.address, node.node_id)
    struck = time.time()
    text = sweep.end()
    assert sweep.process.returncode == 0, text
    assert sweep.endings() == ["preempted", "finished"]
    assert same(sweep.rows()[LONG], whole[LONG])
    made = sweep.attempts()
    table(
        "Notice that a node will be taken away: until the trial is at work on another", lost=0,
        seconds=made[-1].started - struck, again=made[0].lost_seconds,
    )  # fmt: skip


def drain(address, node_id):
    """What a cloud's notice of preemption becomes in Ray."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    accepted, why = GcsClient(address=address).drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot instance is reclaimed",
        int((time.time() + 300) * 1000),
    )
    assert accepted, why


def test_a_group_that_loses_a_node_goes_on_with_others(start, whole, table, cluster):
    sweep = start("node-group", "--set", "resources.workers=2", env={"RAY_ADDRESS": cluster.address})
    first = sweep.until_checkpoint()
    struck = time.time()
    other = next(node for node in cluster.worker_nodes if node is not node_of(first.pid, cluster))
    cluster.add_node(num_cpus=1)
    cluster.remove_node(other, allow_graceful=False)
    text = sweep.end()
    assert sweep.process.returncode == 0, text
    row = sweep.rows()[LONG]
    assert row["status"] == "completed", row["reason"]
    # Where Ray takes longer than hang_minutes to see that a node is gone, the group is found silent first.
    assert sweep.endings() in (["lost", "finished"], ["hung", "finished"])
    made = sweep.attempts()
    table(
        "A node lost, 2 workers on 2 nodes, a third joins", lost=0, seconds=made[-1].started - struck,
        again=made[0].lost_seconds,
    )  # fmt: skip


def test_a_group_whose_nodes_have_disks_of_their_own_goes_on_from_its_checkpoint(space, tmp_path):
    """Each node keeps its copies where it says itself; what rank 0 had saved is brought to the other rank's node too."""

    def disk(name: object) -> dict[str, str]:
        return {"SLIME_RAY_SCRATCH": str(tmp_path / f"disk-{name}")}

    head = {"num_cpus": 0, "resources": {"trial_drivers": 4}, "env_vars": disk("head")}
    made = Cluster(initialize_head=True, head_node_args=head)
    for number in range(2):
        made.add_node(num_cpus=1, env_vars=disk(number))
    made.wait_for_nodes()
    command = [
        sys.executable, "-m", "slime_ray", "sweep", str(space), "--name", "disks",
        "--storage", f"file://{tmp_path}/bucket", "--set", "resources.workers=2",
    ]  # fmt: skip
    env = environment() | disk("driver") | {"RAY_ADDRESS": made.address}
    sweep = Sweep(tmp_path / "bucket" / "disks", command, env)
    try:
        first = until(sweep.has_checkpoint, 240, "a checkpoint")
        until(lambda: list((sweep.run / "trials" / LONG / "resume").glob("step-*/state.json")), 60, "the checkpoint")
        os.kill(first.pid, signal.SIGKILL)
        text = sweep.end()
        assert sweep.process.returncode == 0, text
        row = sweep.rows()[LONG]
        assert (row["status"], row["workers"]) == ("completed", 2), row["reason"]
        assert sweep.endings() == ["lost", "finished"]
        for number in range(2):
            assert list((tmp_path / f"disk-{number}").glob(f"*/trials/disks/trials/{LONG}"))
        assert list(tmp_path.glob("disk-*/*/trials/disks/trials/*/checkpoint")) == []
        assert (sweep.run / "trials" / LONG / "checkpoint" / "config.json").is_file()
    finally:
        sweep.kill()
        made.shutdown()


def test_no_process_of_a_cluster_outlives_it(cluster):
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert ray.cluster_resources()["CPU"] == 2
        pids = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    finally:
        ray.shutdown()
    cluster.shutdown()
    assert not [
        pid for pid in pids if os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text()
    ]
