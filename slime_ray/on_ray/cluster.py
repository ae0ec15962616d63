"""Checks of a cluster's YAML, offline: a file for `ray up`, or a KubeRay RayJob.

Ray's own schema is checked first. Beyond that stands what makes a sweep fail, or cost, only days later: a head on spot,
a forgotten limit, an image that changes, an open cluster.
"""

import difflib
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from slime_ray.config.yaml_source import KeyPath, YamlSource, load_yaml
from slime_ray.errors import InputError, near

DRIVERS = "trial_drivers"
"""The custom resource of the head that the drivers of trials with several workers hold."""
PLACEHOLDER = "REPLACE_ME"
MOVING_TAGS = {"latest", "nightly"}
KINDS = {dict: "map", list: "list", int: "whole number", str: "text", bool: "true or false", float: "number"}
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# The command, not a folder of that name.
CALLED = re.compile(r"(?<![\w/.-])slime-ray\s|\s-m slime_ray\s")
START_PARAMS = {"CPU": "num-cpus", "GPU": "num-gpus"}
CLUSTER: KeyPath = ("spec", "rayClusterSpec")
HEAD: KeyPath = (*CLUSTER, "headGroupSpec")
GROUPS: KeyPath = (*CLUSTER, "workerGroupSpecs")
MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
WRITTEN_TOKEN = re.compile(r"\bRAY_AUTH_TOKEN\b[\"']?\s*[=:]\s*[\"']?[^\s\"'$]")


@dataclass(frozen=True)
class NodeType:
    """One kind of node. at: where it stands in the file. least, most: how many of it; None where the file is silent."""

    name: str
    at: KeyPath
    spot: bool
    resources: Mapping[str, float]
    least: int | None
    most: int | None
    priority: int


class ClusterChecks:
    """Base of the checks of one file. Every method raises InputError with file, line and key."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.data = source.data

    def lines(self) -> Iterator[str]:
        """What the file says, in lines for a person; it is checked on the way."""
        raise NotImplementedError

    def error(self, at: KeyPath, sentence: str) -> InputError:
        """`sentence` follows the key's path, as in `: why` or ` is what`."""
        return InputError(f"{self.source.place(at)}: {dotted(at)}{sentence}.")

    def value(self, *at: str | int, of: type | tuple[type, ...], default: Any = None, wanted: str = "") -> Any:
        """The value at a path, of a type. Without `wanted` it may be missing; else that says what to give."""
        value: Any = self.data
        for depth, key in enumerate(at):
            kind: type = list if isinstance(key, int) else dict
            if not isinstance(value, kind):
                raise self.error(at[:depth], f" is {shown(value)} and has to be a {KINDS[kind]}")
            items: Any = dict(enumerate(value)) if isinstance(value, list) else value
            value = items.get(key)
            if value is None:
                break
        kinds = of if isinstance(of, tuple) else (of,)
        if value is None:
            if wanted:
                raise self.error(at, f" is missing. Give {wanted}{self._misspelt(at)}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(at, f" is {shown(value)} and has to be a {KINDS[kinds[0]]}")
        return value

    def _misspelt(self, at: KeyPath) -> str:
        """The key that was meant for a missing one, where one is like it."""
        there = self.value(*at[:-1], of=dict, default={}) if isinstance(at[-1], str) else {}
        like = difflib.get_close_matches(str(at[-1]), map(str, there), n=1, cutoff=0.8)
        return f"; there is {like[0]}" if like else ""

    def placeholders(self) -> Iterator[str]:
        """A line for what the user still has to write; the file passes with it."""
        text = self.source.path.read_text(encoding="utf-8").splitlines()
        found = [str(n) for n, line in enumerate(text, 1) if PLACEHOLDER in re.split(r"(?:^|\s)#", line)[0]]
        if found:
            yield f"to be written before it is used: {PLACEHOLDER} in line{'s' * (len(found) > 1)} {', '.join(found)}"

    def limits(self, at: KeyPath, least_key: str, most_key: str) -> tuple[int, int]:
        """How many nodes there are at least and at most, both of which the file has to say."""
        least = self.value(*at, least_key, of=int, wanted="how many nodes there are at least; 0 is common")
        most = self.value(*at, most_key, of=int, wanted="how many nodes there are at most")
        if not 0 <= least <= most:
            raise self.error((*at, most_key), f" is {most} and {least_key} is {least}. Give 0 <= least <= most")
        return least, most

    def nodes(self, head: NodeType, workers: list[NodeType]) -> Iterator[str]:
        """Refuse a head that can be lost or that trains."""
        if head.spot:
            raise self.error(
                head.at, ": the head is on spot, and its loss ends the sweep. Take an on-demand node for it"
            )
        if head.least or head.most:
            raise self.error(
                head.at, ": more nodes of the head's type would come and go. Give it min_workers: 0 and max_workers: 0"
            )
        if head.resources.get("CPU") != 0 or head.resources.get("GPU", 0) != 0:
            raise self.error(
                head.at, ": training would be placed on the head, whose loss ends the sweep. Give it CPU 0 and no GPU"
            )
        if head.resources.get(DRIVERS, 0) < 1:
            raise self.error(
                head.at,
                f": the head has no {DRIVERS}, which trials of several workers need. Give {DRIVERS}: 16 as a resource",
            )
        yield f"{head.name}: the head, on demand, {amounts(head)}"
        if not workers:
            raise self.error(head.at[:-1], ": there are no nodes but the head. Add a type of node for workers")
        for node in workers:
            if DRIVERS in node.resources:
                raise self.error(node.at, f": {DRIVERS} is for the head alone, which is not taken away. Remove it here")
            market = "spot" if node.spot else "on demand"
            yield f"{node.name}: {node.least} to {node.most} nodes, {market}, {amounts(node)}, priority {node.priority}"

    def image(self, at: KeyPath, image: str) -> str:
        """Refuse an image that can change, or that holds another Ray or Python than this environment."""
        import ray

        here = ".".join(platform.python_version_tuple()[:2])
        example = f"rayproject/ray:{ray.__version__}-py{here.replace('.', '')}-gpu"
        name, _, digest = image.partition("@")
        path, _, last = name.rpartition("/")
        repository, _, tag = last.partition(":")
        if not digest and not tag:
            raise self.error(at, f" is {image}, without a tag, so nodes may differ. Name a version, as in {example}")
        if not digest and MOVING_TAGS & set(tag.split("-")):
            raise self.error(at, f" is {image}, which may be another image tomorrow. Name a version, as in {example}")
        official = f"{path}/{repository}".endswith("rayproject/ray")
        version = re.search(r"^(\d+\.\d+\.\d+)" if official else r"ray[-_]?(\d+\.\d+\.\d+)", tag)
        python = re.search(r"py(\d)(\d+)", tag)
        if official and tag and not (version and python):
            raise self.error(at, f" is {image}, which does not say which Ray and Python it has. Take {example}")
        has = {"Ray": version and version[1], "Python": python and f"{python[1]}.{python[2]}"}
        for what, own in (("Ray", ray.__version__), ("Python", here)):
            if has[what] and has[what] != own:
                raise self.error(
                    at, f" is {image} with {what} {has[what]}, but here is {what} {own}. Make them the same"
                )
        if version and python:
            return f"image {image}: Ray {version[1]} and Python {here}, as here"
        return f"image {image}: pinned; its tag does not say which Ray and Python it has, so they are not compared"


def dotted(at: KeyPath) -> str:
    """`("a", 0, "b")` as `a.0.b`."""
    return ".".join(map(str, at))


def shown(value: Any) -> str:
    """A value as an error may show it."""
    return KINDS[type(value)] if isinstance(value, (dict, list)) else repr(value)


def amounts(node: NodeType) -> str:
    """The resources that a node offers, but memory, which Ray detects."""
    return ", ".join(f"{kind} {n:g}" for kind, n in node.resources.items() if kind != "memory") or "as Ray detects them"


class RayJobFile(ClusterChecks):
    """A file with one RayJob."""

    def lines(self) -> Iterator[str]:
        """What the file says, in lines for a person; it is checked on the way."""
        kind = self.value("kind", of=str, wanted="RayJob")
        if kind != "RayJob":
            raise self.error(("kind",), f" is {kind}. What can be checked is a RayJob, or a file for `ray up`")
        version = self.value("apiVersion", of=str, wanted="ray.io/v1")
        if version != "ray.io/v1":
            raise self.error(("apiVersion",), f" is {version} and has to be ray.io/v1")
        self.value("metadata", "name", of=str, wanted="the job's name")
        self.value(*GROUPS, of=list, wanted="a group of workers")
        groups = self._items(GROUPS)
        yield self._life()
        yield from self._nodes(groups)
        yield from self._pods([HEAD, *groups])
        yield self._token()
        yield f"keys beyond these are KubeRay's: kubectl apply --dry-run=server -f {self.source.path.name}"

    def _life(self) -> str:
        """What ends the job and its costs, and what a retry does."""
        if not self.value("spec", "shutdownAfterJobFinishes", of=bool, default=False):
            raise self.error(("spec", "shutdownAfterJobFinishes"), " is not true, so nodes outlive the sweep. Set it")
        stays = self._least("ttlSecondsAfterFinished", 0, "how many seconds the cluster stays when the sweep has ended")
        deadline = self._least("activeDeadlineSeconds", 1, "how many seconds the job may take at most")
        retries = self._least("backoffLimit", 0, "how many attempts may follow the first")
        entrypoint = self.value("spec", "entrypoint", of=str, wanted="the command, `slime-ray sweep ...`")
        if not CALLED.search(entrypoint):
            raise self.error(("spec", "entrypoint"), " does not call slime-ray. Give `slime-ray sweep ...`")
        if retries and "--go-on" not in entrypoint and "--resume" not in entrypoint:
            raise self.error(
                ("spec", "entrypoint"),
                " never resumes, but backoffLimit gives it to a new cluster when the run has already begun. "
                "Add --go-on, which resumes a run that is there",
            )
        return (
            f"{retries} retries, each of which resumes; at most {deadline / 3600:g} hours; "
            f"the cluster goes {stays} seconds after the end"
        )

    def _least(self, key: str, least: int, wanted: str) -> int:
        value: int = self.value("spec", key, of=int, wanted=wanted)
        if value < least:
            raise self.error(("spec", key), f" is {value} and has to be at least {least}")
        return value

    def _nodes(self, groups: list[KeyPath]) -> Iterator[str]:
        import ray

        version = self.value(*CLUSTER, "rayVersion", of=str, wanted=f'"{ray.__version__}"')
        if version != ray.__version__:
            raise self.error(
                (*CLUSTER, "rayVersion"), f" is {version}, but here is Ray {ray.__version__}. Make them the same"
            )
        names = [self.value(*group, "groupName", of=str, wanted="the group's name") for group in groups]
        limits = [self.limits(group, "minReplicas", "maxReplicas") for group in groups]
        for group in (HEAD, *groups):
            self.value(*group, "template", "spec", "containers", 0, of=dict, wanted="the Ray container")
        head = NodeType("head", HEAD, self._on_spot(HEAD), self.resources(HEAD), 0, 0, 0)
        workers = [
            NodeType(name, at, self._on_spot(at), self.resources(at), *least_most, self._priority(at))
            for name, at, least_most in zip(names, groups, limits, strict=True)
        ]
        yield from self.nodes(head, workers)
        seconds = self.value(*CLUSTER, "autoscalerOptions", "idleTimeoutSeconds", of=(int, float), default=60)
        yield f"a worker that is idle for {seconds / 60:g} minutes leaves"

    def _priority(self, group: KeyPath) -> int:
        priority: int = self.value(*group, "priority", of=int, default=0)
        return priority

    def resources(self, group: KeyPath) -> dict[str, float]:
        """What a node offers to Ray: what `rayStartParams` say, and else the limits of the Ray container."""
        container: KeyPath = (*group, "template", "spec", "containers", 0, "resources")
        offer: dict[str, float] = {}
        for part in ("requests", "limits"):
            for key in self.value(*container, part, of=dict, default={}):
                if kind := "CPU" if key == "cpu" else "GPU" if str(key).endswith("/gpu") else None:
                    offer[kind] = self._amount((*container, part, key))
        at: KeyPath = (*group, "rayStartParams")
        params = self.value(*at, of=dict, default={})
        offer |= {kind: self._amount((*at, key)) for kind, key in START_PARAMS.items() if key in params}
        if custom := self._text(at, "resources"):
            try:
                # Quoted twice, for the shell in which KubeRay writes it.
                offer |= {str(kind): float(amount) for kind, amount in dict(json.loads(json.loads(custom))).items()}
            except (ValueError, TypeError):
                raise self.error(
                    (*at, "resources"), f""" is {custom}. Write it as '"{{\\"{DRIVERS}\\": 16}}"'"""
                ) from None
        return offer

    def _amount(self, at: KeyPath) -> float:
        """A number, or one of Kubernetes' quantities, such as 500m."""
        text = str(self.value(*at, of=(str, int, float), default=0))
        try:
            return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
        except ValueError:
            raise self.error(at, f" is {text!r} and has to be a number") from None

    def _on_spot(self, group: KeyPath) -> bool:
        labels = self.value(*group, "template", "spec", "nodeSelector", of=dict, default={})
        return any(str(labels.get(label)).lower() == spot.lower() for label, spot in SPOT_LABELS.items())

    def _pods(self, groups: list[KeyPath]) -> Iterator[str]:
        """Images, memory for /dev/shm, and a claim that every pod mounts."""
        images: dict[str, None] = {}
        shared: set[str] | None = None
        for group in groups:
            pod: KeyPath = (*group, "template", "spec")
            for container in self._items((*pod, "containers")):
                at = (*container, "image")
                images[self.image(at, self.value(*at, of=str, wanted="a pinned image"))] = None
            mounts: KeyPath = (*pod, "containers", 0, "volumeMounts")
            paths = {self._text(mount, "name"): self._text(mount, "mountPath") for mount in self._items(mounts)}
            memory, claims = False, set()
            for volume in self._items((*pod, "volumes")):
                name = self._text(volume, "name")
                if self._text((*volume, "emptyDir"), "medium") == "Memory":
                    memory |= paths.get(name) == "/dev/shm"
                if name in paths and (claim := self._text((*volume, "persistentVolumeClaim"), "claimName")):
                    claims.add(claim)
            if not memory:
                raise self.error(
                    mounts,
                    ": /dev/shm is the 64 MiB that a container has, too little for Ray. "
                    "Mount a volume `emptyDir: {medium: Memory}` there",
                )
            shared = claims if shared is None else shared & claims
            if not shared:
                raise self.error(
                    mounts, ": no claim that every pod mounts, so they share no run's folder. Mount the same in all"
                )
        yield from images
        yield f"/dev/shm in memory, and in every pod the claim {', '.join(sorted(shared or ()))}"

    def _items(self, at: KeyPath) -> list[KeyPath]:
        return [(*at, index) for index in range(len(self.value(*at, of=list, default=[])))]

    def _text(self, at: KeyPath, key: str) -> str:
        text: str = self.value(*at, key, of=str, default="")
        return text

    def _token(self) -> str:
        at = (*CLUSTER, "authOptions", "mode")
        if self.value(*at, of=str) != "token":
            raise self.error(
                at, " is not token, so whoever reaches the cluster may run code on it. Give authOptions: {mode: token}"
            )
        for key, line in self.source.lines.items():
            if key[-1] == "name" and "env" in key:
                entry = self.value(*key[:-1], of=dict)
                if entry.get("name") == "RAY_AUTH_TOKEN" and "value" in entry:
                    raise InputError(
                        f"{self.source.path}:{line}: a token is written into the file. Remove RAY_AUTH_TOKEN: KubeRay "
                        "makes a secret of its own, or takes the one named by authOptions.secretName."
                    )
        return "every pod asks for the token, and gets it from a secret"


def check_cluster_file(path: Path) -> list[str]:
    """What a cluster's file says, in lines for a person, once everything that can be checked offline is right.

    Raises InputError, with file, line and key, for the first thing that is wrong.
    """
    source = load_yaml(path)
    kubernetes = "kind" in source.data or "apiVersion" in source.data
    checks: ClusterChecks = RayJobFile(source) if kubernetes else LauncherFile(source)
    return [*checks.lines(), *checks.placeholders()]


class LauncherFile(ClusterChecks):
    """A file for `ray up`."""

    def lines(self) -> Iterator[str]:
        """What the file says, in lines for a person; it is checked on the way."""
        self._schema()
        # The machines of a local provider are listed in the file, and neither come nor go.
        if self.data["provider"]["type"] != "local":
            yield from self._node_types()
        yield from self._images()
        yield self._token()

    def _schema(self) -> None:
        """The JSON schema that Ray ships, and two names that it does not compare."""
        schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text(encoding="utf-8"))
        complaints = list(Draft7Validator(schema).iter_errors(self.data))
        # A misspelt key is what most often makes the other complaints.
        for complaint in sorted(complaints, key=lambda item: item.validator != "additionalProperties"):
            raise self._complaint(complaint)
        # Ray ignores a key of the provider that it does not know, be it a misspelt zone.
        for key in self.data["provider"].keys() - (known := schema["properties"]["provider"]["properties"]).keys():
            if difflib.get_close_matches(str(key), known, cutoff=0.8):
                raise self.error(("provider", key), f": unknown key{near(str(key), known)}")
        if self.data["provider"]["type"] == "local":
            return
        types = self.value("available_node_types", of=dict, wanted="the types of nodes, with the limits of each")
        head = self.value("head_node_type", of=str, wanted="the name of the head's type of node")
        if head not in types:
            raise self.error(("head_node_type",), f" is {head!r}, which is none of the types: {', '.join(types)}")

    def _complaint(self, error: Any) -> InputError:
        at: KeyPath = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            key = next(key for key in error.instance if key not in known)
            return self.error((*at, key), f": unknown key{near(str(key), known)}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return self.error((*at, missing), " is missing. Add it")
        if error.validator == "type":
            kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            return self.error(at, f" is {shown(error.instance)} and has to be of type {' or '.join(kinds)}")
        return self.error(at, f": {error.message}")

    def _node_types(self) -> Iterator[str]:
        head, *workers = sorted(
            (self._node_type(name) for name in self.data["available_node_types"]),
            key=lambda node: node.name != self.data["head_node_type"],
        )
        total = self.value("max_workers", of=int, wanted="how many worker nodes there are at most, of all types")
        idle = self.value("idle_timeout_minutes", of=(int, float), wanted="after how many idle minutes a worker leaves")
        yield from self.nodes(head, workers)
        yield f"at most {total} worker nodes, and one that is idle for {idle:g} minutes leaves"

    def _node_type(self, name: str) -> NodeType:
        at: KeyPath = ("available_node_types", name)
        given = self.data["available_node_types"][name]
        if name == self.data["head_node_type"]:
            least, most = given.get("min_workers"), given.get("max_workers")
        else:
            least, most = self.limits(at, "min_workers", "max_workers")
        spot = _on_spot(given["node_config"])
        resources = self.value(*at, "resources", of=dict, wanted="what a node offers, such as {CPU: 8, GPU: 1}")
        return NodeType(name, at, spot, resources, least, most, given.get("priority", 0))

    def _images(self) -> Iterator[str]:
        docker = self.value("docker", of=dict, default={})
        keys = ("image", "head_image", "worker_image")
        given: dict[KeyPath, str] = {("docker", key): docker[key] for key in keys if docker.get(key)}
        for name, node in self.value("available_node_types", of=dict, default={}).items():
            if image := _map(node.get("docker")).get("worker_image"):
                given["available_node_types", name, "docker", "worker_image"] = image
        if not given:
            raise self.error(
                ("docker", "image"), " is missing, so nodes would run whatever they find. Name a pinned image"
            )
        yield from dict.fromkeys(self.image(at, image) for at, image in given.items())

    def _token(self) -> str:
        """Whoever reaches the ports that `ray start` opens may run code, unless every node asks for the token."""
        for number, line in enumerate(self.source.path.read_text(encoding="utf-8").splitlines(), 1):
            if WRITTEN_TOKEN.search(line):
                raise InputError(
                    f"{self.source.path}:{number}: a token is written into the file. Remove RAY_AUTH_TOKEN, and send "
                    "the token's file: file_mounts: {/home/ray/.ray/auth_token: ~/.ray/auth_token}."
                )
        docker = self.value("docker", of=dict, default={})
        text = {key: " ".join(map(str, value)) for key, value in docker.items() if key.endswith("run_options")}
        text |= {key: " ".join(value) for key, value in self.data.items() if key.endswith("_commands")}

        def asked(side: str) -> bool:
            keys = (f"{side}run_options", f"{side}setup_commands", f"{side}start_ray_commands")
            return any(MODE.search(text.get(key, "")) for key in keys)

        if not asked("") and not (asked("head_") and asked("worker_")):
            raise self.error(
                ("docker", "run_options"),
                ": nobody is asked for a token, so whoever reaches the cluster may run code on it. "
                "Add `--env RAY_AUTH_MODE=token`, and the token's file to file_mounts",
            )
        mounts: Iterable[str] = self.value("file_mounts", of=dict, default={})
        sent = any(str(remote).rstrip("/").endswith((".ray/auth_token", ".ray")) for remote in mounts)
        if not sent and not any("RAY_AUTH_TOKEN_PATH=" in value for value in text.values()):
            raise self.error(
                ("file_mounts",),
                ": the nodes ask for a token and get none. Add /home/ray/.ray/auth_token: ~/.ray/auth_token",
            )
        return "every node asks for the token, and gets it with file_mounts"


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _on_spot(config: Mapping[str, Any]) -> bool:
    """Whether a provider's node_config asks for spot or preemptible nodes, on AWS, Google Cloud or Azure."""
    scheduling = config.get("scheduling")
    # Older Ray samples for Google Cloud write a list.
    parts = [_map(part) for part in (scheduling if isinstance(scheduling, list) else [scheduling])]
    models = [_map(config.get("InstanceMarketOptions")).get("MarketType")]
    models += [_map(config.get("azure_arm_parameters")).get("priority")]
    models += [part.get("provisioningModel") for part in parts]
    return any(str(model).lower() == "spot" for model in models) or any(part.get("preemptible") for part in parts)
