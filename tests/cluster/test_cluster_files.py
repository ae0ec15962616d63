"""The shipped cluster files, and what is said about a file that is wrong. None is started."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from slime_ray.cli import make_parser
from slime_ray.cluster import RayJobFile, check_cluster_file
from slime_ray.cluster.rayjob import GROUPS, HEAD
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
AWS, GCP, RAYJOB = "cluster.yaml", "cluster-gcp.yaml", "kuberay/rayjob.yaml"
PYTHON = "".join(map(str, sys.version_info[:2]))

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or f'rayVersion: "{ray.__version__}"' not in (ROOT / RAYJOB).read_text(),
    reason="the images have one version of Python and Ray, and a file is compared with its reader",
)


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        check_cluster_file(path)
    return str(refused.value)


@pytest.mark.parametrize("name", [AWS, GCP, RAYJOB])
def test_every_shipped_file_is_fine_and_says_what_is_left_to_write(name):
    lines = check_cluster_file(ROOT / name)
    text = (ROOT / name).read_text().splitlines()
    assert any("0 to 8 nodes, spot" in line for line in lines)
    assert any("0 to 2 nodes, on demand" in line for line in lines)
    assert any(line.startswith("head: the head, on demand, CPU 0, trial_drivers 16") for line in lines)
    left = next(line for line in lines if "to be written" in line)
    assert all("REPLACE_ME" in text[int(number) - 1] for number in re.findall(r"\d+", left))


def test_a_number_of_nodes_that_is_fixed_is_said_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        (ROOT / AWS).read_text().replace("min_workers: 0\n    max_workers: 2", "min_workers: 2\n    max_workers: 2")
    )
    assert [line for line in check_cluster_file(path) if ": 2 nodes, on demand" in line]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused: an edit of a shipped file, as text, and what has to be in the sentence


MISTAKES = [
    # YAML and keys
    (AWS, "cluster_name: slime-ray", "cluster_name: [slime-ray", ":10: not valid YAML"),
    (AWS, "cluster_name: slime-ray\n", "", "cluster_name is missing"),
    (AWS, "    priority: 10", "    priorty: 10", "gpu_spot.priorty: unknown key. Did you mean 'priority'?"),
    (AWS, "availability_zone:", "availability_zones:", "Did you mean 'availability_zone'?"),
    (AWS, "max_workers: 10", "max_workers: ten", "max_workers is 'ten' and has to be of type integer"),
    (AWS, "max_workers: 10\n", "\n", "max_workers is missing"),
    (AWS, "idle_timeout_minutes: 10\n", "\n", "idle_timeout_minutes is missing"),
    (AWS, "{CPU: 8, GPU: 1}", "{CPU: 8, GPU: 0.5}", "GPU is 0.5 and has to be of type integer"),
    (AWS, "max_workers: 8", "max_workers: 8\n    max_workers: 9", "stands here twice"),
    # node types
    (AWS, "available_node_types:", "metadata:", "available_node_types is missing"),
    (AWS, "head_node_type: head\n", "\n", "head_node_type is missing"),
    (AWS, "head_node_type: head", "head_node_type: haed", "head_node_type is 'haed', which is none of the types"),
    (AWS, "    max_workers: 8\n", "", "available_node_types.gpu_spot.max_workers is missing"),
    (AWS, "    min_workers: 0\n    max_workers: 8\n", "    max_workers: 8\n", "gpu_spot.min_workers is missing"),
    (AWS, "    min_workers: 0\n    max_workers: 8\n", "    min_workers: 9\n    max_workers: 8\n", "max_workers is 8 and min"),
    # the head
    (AWS, "      InstanceType: m6i.2xlarge", "      InstanceMarketOptions: {MarketType: spot}", "the head is on spot"),
    (GCP, "      machineType: n2-standard-8", "      scheduling: [preemptible: true]", "the head is on spot"),
    (AWS, "max_workers: 0 #", "max_workers: 2 #", "more nodes of the head's type would come and go"),
    (AWS, "{CPU: 0, trial_drivers: 16}", "{CPU: 8, trial_drivers: 16}", "training would be placed on the head"),
    (AWS, "{CPU: 0, trial_drivers: 16}", "{CPU: 0}", "the head has no trial_drivers"),
    (AWS, "{CPU: 8, GPU: 1}", "{CPU: 8, GPU: 1, trial_drivers: 1}", "trial_drivers is for the head alone"),
    # images
    (AWS, "  image: rayproject/ray:2.60.0-py311-gpu\n", "", "docker.image is missing"),
    (AWS, ":2.60.0-py311-gpu", "", "without a tag"),
    (AWS, ":2.60.0-py311-gpu", ":latest-py311-gpu", "may be another image tomorrow"),
    (AWS, ":2.60.0-py311-gpu", ":2.59.0-py311-gpu", "with Ray 2.59.0, but here is Ray 2.60.0"),
    (AWS, ":2.60.0-py311-gpu", ":2.60.0-py312-gpu", "with Python 3.12, but here is Python 3.11"),
    (AWS, ":2.60.0-py311-gpu", ":2.60.0-gpu", "does not say which Ray and Python"),
    (AWS, "rayproject/ray:2.60.0-py311-gpu", "host:5000/own", "host:5000/own, without a tag"),
    (AWS, "rayproject/ray:2.60.0-py311-gpu", "host:5000/own:1-ray2.59.0-py311", "with Ray 2.59.0"),
    # the token
    (AWS, "    - --env RAY_AUTH_MODE=token\n", "", "docker.run_options: nobody is asked for a token"),
    (AWS, "  /home/ray/.ray/auth_token: ~/.ray/auth_token\n", "", "file_mounts: the nodes ask for a token and get none"),
    (AWS, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN=s3cr3t", "a token is written into the file"),
    # RayJob
    (RAYJOB, "kind: RayJob", "kind: RayCluster", "kind is RayCluster"),
    (RAYJOB, "ray.io/v1\n", "ray.io/v1alpha1\n", "apiVersion is ray.io/v1alpha1 and has to be ray.io/v1"),
    (RAYJOB, "metadata:\n  name: slime-ray\n", "metadata: slime-ray\n", "metadata is 'slime-ray' and has to be a map"),
    (RAYJOB, "slime-ray sweep", "python sweep.py", "spec.entrypoint does not call slime-ray"),
    (RAYJOB, "  backoffLimit: 3", "  backofLimit: 3", "spec.backoffLimit is missing. Give how many attempts may follow the first; there is backofLimit"),
    (RAYJOB, "        maxReplicas: 8", "        maxReplica: 8", "maxReplicas is missing. Give how many nodes there are at most; there is maxReplica"),
    (RAYJOB, "    authOptions:\n      mode: token\n", "", "authOptions.mode is not token"),
    (RAYJOB, '"2.60.0"', '"2.59.0"', "rayVersion is 2.59.0, but here is Ray 2.60.0"),
    (RAYJOB, "ray2.60.0-py311\n                env", "ray2.59.0-py311\n                env", "with Ray 2.59.0"),
    (RAYJOB, ":0.2.0-ray2.60.0-py311\n", "\n", "without a tag"),
    (RAYJOB, "cpu_per_worker=6 --auto-resume", "cpu_per_worker=6", "spec.entrypoint never resumes"),
    (RAYJOB, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "nodes outlive the sweep"),
    (RAYJOB, "  ttlSecondsAfterFinished: 600\n", "", "ttlSecondsAfterFinished is missing"),
    (RAYJOB, "activeDeadlineSeconds: 259200", "activeDeadlineSeconds: 0", "has to be at least 1"),
    (RAYJOB, "activeDeadlineSeconds: 259200", "activeDeadlineSeconds: 3 days", "has to be a whole number"),
    (RAYJOB, 'num-cpus: "0"', 'num-cpus: "8"', "training would be placed on the head"),
    (RAYJOB, 'num-cpus: "0"', 'num-cpus: "none"', "num-cpus is 'none' and has to be a number"),
    (RAYJOB, """'"{\\"trial_drivers\\": 16}"'""", "trial_drivers=16", "resources is trial_drivers=16. Write it as '"),
    (RAYJOB, "emptyDir: {medium: Memory, sizeLimit: 8Gi}", "emptyDir: {}", "/dev/shm is the 64 MiB"),
    (RAYJOB, "claimName: slime-ray}\n            - name: shm", "claimName: other}\n            - name: shm", "no claim that"),
    (
        RAYJOB,
        "          restartPolicy: Never\n          securityContext",
        '          nodeSelector: {cloud.google.com/gke-spot: "true"}\n          securityContext',
        "the head is on spot",
    ),
    (
        RAYJOB,
        '- {name: RAY_USAGE_STATS_ENABLED, value: "0"}',
        "- {name: RAY_AUTH_TOKEN, value: s3cr3t}",
        "a token is written into the file",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "instead", "message"), MISTAKES)
def test_a_mistake_is_refused_with_its_place(tmp_path, name, text, instead, message):
    shipped = (ROOT / name).read_text()
    assert text in shipped, "the shipped file no longer has what this edits"
    path = tmp_path / "mine.yaml"
    path.write_text(shipped.replace(text, instead, 1))
    said = refusal(path)
    assert message in said
    assert said.startswith(str(path))
    assert len(said.splitlines()) == 1
    assert "s3cr3t" not in said


EDITS = {
    "as shipped": ("", ""),
    "half a CPU": ('limits: {cpu: "6"', 'limits: {cpu: "1500m"'),
    "told by rayStartParams": ("rayStartParams: {}", 'rayStartParams: {num-cpus: "3", num-gpus: "2"}'),
    "no GPU": (', nvidia.com/gpu: "1"}', "}"),
    "resources of one's own": ("rayStartParams: {}", """rayStartParams: {resources: '"{\\"fast\\": 2}"'}"""),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_rayjobs_nodes_offer_what_ray_takes_them_to_offer(tmp_path, edit):
    """Ray's autoscaler reads the same file, by code that is not public."""
    kuberay = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / RAYJOB).read_text().replace(*EDITS[edit]))
    source = load_yaml(path)
    resource = {"metadata": {"name": "check", "namespace": "check"}, "spec": source.data["spec"]["rayClusterSpec"]}
    types = kuberay._derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    checks = RayJobFile(source)
    for number, name in enumerate(("gpu-spot", "gpu-on-demand")):
        ours = checks.resources((*GROUPS, number))
        theirs = {kind: amount for kind, amount in types[name]["resources"].items() if kind != "memory"}
        # Ray rounds parts of a CPU up.
        assert {kind: math.ceil(amount) for kind, amount in ours.items()} == theirs
    theirs = types["headgroup"]["resources"]
    assert checks.resources(HEAD) == {"CPU": theirs["CPU"], "trial_drivers": theirs["trial_drivers"]}


def test_an_empty_file_and_one_that_is_not_there_are_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "absent.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "empty" in refusal(tmp_path / "empty.yaml")


@pytest.mark.parametrize(("name", "every"), [(AWS, 1), (RAYJOB, 3)])
def test_no_value_whatever_makes_the_check_itself_fail(tmp_path, name, every):
    """Values of the file in turn become something else; the check says something about it, or lets it pass."""
    path = tmp_path / "mine.yaml"
    shipped, refused = load(name), []
    for number, edit in enumerate(edits(shipped)[::every]):
        # A copy in which nothing is shared, as an anchor's value is.
        data = json.loads(json.dumps(shipped))
        edit(data, (None, 7, "text", [], {}, [[]], {"x": None})[number % 7])
        path.write_text(json.dumps(data))
        try:
            check_cluster_file(path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(len(sentence.splitlines()) == 1 for sentence in refused)


def edits(value: Any, at: tuple[Any, ...] = ()) -> list[Callable[[Any, Any], None]]:
    """For each place within a value, what puts something else there."""

    def edit(data: Any, junk: Any) -> None:
        for key in at[:-1]:
            data = data[key]
        data[at[-1]] = junk

    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([edit] if at else []), *(found for key, item in inner for found in edits(item, (*at, key)))]


def test_a_head_alone_is_refused(tmp_path):
    shipped = load(AWS)
    shipped["available_node_types"] = {"head": shipped["available_node_types"]["head"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(shipped))
    assert "there are no nodes but the head" in refusal(tmp_path / "mine.yaml")


def test_a_cluster_of_machines_that_are_there_anyway_needs_no_node_types(tmp_path):
    shipped = load(AWS)
    del shipped["available_node_types"], shipped["head_node_type"]
    shipped["provider"] = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(shipped))
    assert any("asks for the token" in line for line in check_cluster_file(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("image", ["host:5000/own@sha256:" + "0" * 64, "host:5000/own:1.2"])
def test_an_image_of_ones_own_may_be_pinned_as_one_likes(tmp_path, image):
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / AWS).read_text().replace("rayproject/ray:2.60.0-py311-gpu", image))
    assert any("they are not compared" in line for line in check_cluster_file(path))


# ---------------------------------------------------------------------------------------------------------------------
# What the files and docs/cluster.md promise


def test_every_ray_version_in_the_cluster_files_is_the_one_in_constraints():
    pinned = next(
        line.removeprefix("ray==").strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    found = {}
    for name in (AWS, GCP, RAYJOB, "Dockerfile", "docs/cluster.md"):
        text = (ROOT / name).read_text()
        found[name] = set(re.findall(r"(?:rayproject/ray:|-ray|rayVersion: \")(\d+\.\d+\.\d+)", text))
    assert found == {name: {pinned} for name in found}


def test_every_python_version_in_the_image_tags_is_the_same():
    for name in (AWS, GCP, RAYJOB, "Dockerfile", "docs/cluster.md"):
        assert set(re.findall(r"\d-py(\d+)", (ROOT / name).read_text())) == {"311"}, name


@pytest.mark.parametrize("name", [AWS, GCP])
def test_the_dashboard_listens_on_the_head_alone(name):
    start = load(name)["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start


def test_only_what_the_package_is_built_from_goes_into_the_image():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {
        "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
        "slime_ray", "analysis", "search_spaces",
    }  # fmt: skip
    assert all((ROOT / name).exists() for name in kept)


def test_the_rayjobs_entry_point_arrives_whole_and_says_what_the_command_line_knows(tmp_path):
    """Through the shells it meets: KubeRay's submitter pastes it behind `ray job submit --`, Ray hands it to `sh -c`."""
    (tmp_path / "submit").write_text(f"#!{sys.executable}\nimport shlex, sys\nprint(shlex.join(sys.argv[1:]))\n")
    (tmp_path / "slime-ray").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    for script in tmp_path.iterdir():
        script.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def shell(program: str, text: str) -> str:
        done = subprocess.run([program, "-c", text], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    entrypoint = load(RAYJOB)["spec"]["entrypoint"]
    called = json.loads(shell("sh", shell("bash", f"submit {entrypoint} ;")))
    assert called == shlex.split(entrypoint)[1:]
    options = make_parser().parse_args(called)
    assert (options.name, str(options.storage), options.start) == ("first", "/mnt/slime-ray/runs", "either")


def test_a_trial_of_the_rayjob_fits_on_its_workers():
    from slime_ray.search_spaces import find_space

    from slime_ray.config.experiment_file import load_experiment, parse_override

    words = shlex.split(load(RAYJOB)["spec"]["entrypoint"])
    space = words[words.index("sweep") + 1]
    overrides = dict(parse_override(words[at + 1]) for at, word in enumerate(words) if word == "--set")
    resources = load_experiment(find_space(space), overrides=overrides).resources
    for group in load(RAYJOB)["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        offered = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert resources.cpu_per_worker <= int(offered["cpu"])
        assert resources.gpu_per_worker <= int(offered["nvidia.com/gpu"])


@pytest.mark.parametrize(
    ("gpus", "happened", "nodes"),
    [
        (8, None, {"gpu_spot": 8}),
        # What spot nodes may not hold, and no more than the limit of the others.
        (9, None, {"gpu_spot": 8, "gpu_on_demand": 1}),
        (30, None, {"gpu_spot": 8, "gpu_on_demand": 2}),
        # A refused request is made again; a node that never came up makes way.
        (3, "ALLOCATION_FAILED", {"gpu_spot": 3}),
        (2, "ALLOCATION_TIMEOUT", {"gpu_on_demand": 2}),
    ],
)
def test_spot_nodes_come_first_and_on_demand_nodes_for_what_they_lack(gpus, happened, nodes):
    """What cluster.yaml says of Ray's autoscaler, asked of the autoscaler. happened: to gpu_spot."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated import instance_manager_pb2

    shipped = load(AWS)
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=given["min_workers"],
            max_worker_nodes=given["max_workers"] + (name == "head"),
            resources=given["resources"],
            priority=given.get("priority", 0),
        )
        for name, given in shipped["available_node_types"].items()
    }
    monitor = CloudResourceMonitor()
    if happened:
        messages: Any = instance_manager_pb2
        status = messages.Instance.InstanceStatus.Value(happened)
        event = messages.InstanceUpdateEvent(instance_id="1", new_instance_status=status, instance_type="gpu_spot")
        monitor.notify([event])
    requests = [ResourceRequestUtil.make({"CPU": 4, "GPU": 1}) for _ in range(gpus)]
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            node_type_configs=types,
            max_num_nodes=shipped["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            disable_launch_config_check=True,
            cloud_resource_availabilities=monitor.get_resource_availabilities(),
            recoverable_resource_availabilities=monitor.get_recoverable_resource_availabilities(),
        )
    )
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == nodes


def test_the_slurm_script_gives_the_sweep_the_cluster_that_it_starts(tmp_path):
    """Run with stand-ins: `srun` runs one node, and `ray symmetric-run` what stands behind `--`, as Ray's does."""
    [script] = re.findall(r"```\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / "docs/cluster.md").read_text(), re.S)
    programs = {
        "scontrol": "echo node-7; echo node-8",
        "srun": 'exec "$@"',
        "ray": 'until [ "$1" = -- ]; do shift; done; shift; exec "$@"',
        "slime-ray": 'echo "$RAY_ADDRESS $RAY_AUTH_MODE $*"',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_NNODES": "2"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    address, mode, *command = done.stdout.split()
    assert (address, mode) == ("node-7:6379", "token")
    assert make_parser().parse_args(command).start == "either"
